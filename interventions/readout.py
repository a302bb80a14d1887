"""The end of a model by itself: from a state after the last block to logits, by its own modules."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from activations.engines.fork_plan import block_paths
from activations.engines.offload import sharing_copy
from activations.engines.packing import CannotPack
from activations.places import first_tensor, with_first
from interventions.errors import EditError

if TYPE_CHECKING:
    from activations import Model

#: Logits that are held at once.
_LOGITS = 2**24


class Readout:
    """What follows a model's last block: its norm, its unembedding, its scaling and capping.

    The model's own code runs, on a copy of its modules that shares every weight and whose blocks
    hand on what they are given. So whatever an architecture does there is done, once, as it does
    it. Edits are not made here.

    Raises:
        EditError: no head, no weights on this machine, blocks that are no modules, or an edit that
            is open after the last block.
    """

    def __init__(self, model: Model) -> None:
        if (model.origin or {}).get("remote"):
            raise EditError(
                f"NDIF runs {model.name}, and a lens needs its last norm and its head here: open "
                "the model without `remote`."
            )
        if not model.engine.has_head:
            raise EditError(f"{model.name} has no head, so nothing in it stands for a token.")
        try:
            paths = block_paths(model.engine.sites, model.n_layers)
        except CannotPack as error:
            raise EditError(f"{model.name} cannot be cut after its blocks: {error}.") from None
        with model.lock:
            self.last = f"blocks.{model.n_layers - 1}.hook_resid_post"
            self._require_no_edit(model)
            self._hf: Any = sharing_copy(model.hf)
        self._device, self._dtype = model.device, model.dtype
        self._options = {"use_cache": False} if model._takes("use_cache") else {}
        #: How many states are looked at at once, so that their logits fit in memory.
        self.rows = max(1, _LOGITS // int(self._hf.get_output_embeddings().weight.shape[0]))
        self._state: Tensor | None = None
        returned: dict[int, Any] = {}
        blocks = [self._hf.get_submodule(path) for path in paths]
        looks = [
            block.register_forward_hook(
                lambda _module, _args, output, number=number: returned.update({number: output})
            )
            for number, block in enumerate(blocks)
        ]
        self._run(1)
        for number, (block, look) in enumerate(zip(blocks, looks, strict=True)):
            look.remove()
            block.forward = partial(self._hand_on, returned[number], number == len(blocks) - 1)

    def __call__(self, states: Tensor) -> Tensor:
        """Logits `[n, vocabulary]` of states `[n, d_model]` after the last block."""
        return torch.cat([self._logits(part) for part in states.split(self.rows)])

    def head(self, states: Tensor) -> Tensor:
        """The same before any scaling or capping: what the unembedding itself gives."""
        got: list[Tensor] = []
        module = self._hf.get_output_embeddings()
        look = module.register_forward_hook(lambda _m, _a, output: got.append(output.detach()))
        try:
            for part in states.split(self.rows):
                self._logits(part)
        finally:
            look.remove()
        return torch.cat([one.reshape(-1, one.shape[-1]) for one in got])

    def each(self, states: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """`function` of logits `[m, vocabulary]` in f32, few states at a time, end to end."""
        return torch.cat([function(self._logits(part).float()) for part in states.split(self.rows)])

    @torch.no_grad()
    def _logits(self, states: Tensor) -> Tensor:
        self._state = states[:, None].to(self._device, self._dtype)
        return self._run(len(states)).logits[:, 0]

    @torch.no_grad()
    def _run(self, rows: int) -> Any:
        """A pass over texts of one token, whatever it is."""
        ids = torch.zeros((rows, 1), dtype=torch.long, device=self._device)
        return self._hf(input_ids=ids, attention_mask=torch.ones_like(ids), **self._options)

    def _hand_on(
        self, returned: Any, is_last: bool, hidden_states: Tensor, *_args: Any, **_named: Any
    ) -> Any:
        """A block's output in the form that it has, with the state that is looked at at the end."""
        state = self._state if is_last else hidden_states
        assert state is not None
        return with_first(returned, state.to(first_tensor(returned).device))

    def _require_no_edit(self, model: Model) -> None:
        order = {name: at for at, name in enumerate(model.sites)}
        for name, _ in model._edits:
            if order[name] > order[self.last]:
                raise EditError(
                    f"An edit at {name} is open, after the last block, where a lens makes none: "
                    "edit a site of a block, or leave the context."
                )
