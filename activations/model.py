"""A language model opened once: its sites, its states, its edits, its words."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from itertools import takewhile
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from activations.batching import length_batches
from activations.errors import CaptureError, SiteError
from activations.sites import EMBEDDING, resolve_sites


class Edit(Protocol):
    """A change to the states at some sites, made while the model runs."""

    @property
    def name(self) -> str: ...

    @property
    def sites(self) -> Sequence[str]: ...

    def __call__(self, activation: Tensor, site: str, positions: Tensor | None) -> Tensor:
        """The new states `[batch, pos, ...]`, in a new tensor; `positions` are position ids."""
        ...


class _Stop(Exception):
    """Raised inside the forward pass once the last site has been read."""


class Model:
    """See `open_model`. One lock guards every pass, so that threads never see others' edits."""

    embedding_site = EMBEDDING

    def __init__(
        self, name: str, bridge: Any, hf: Any, tokenizer: Any, *, revision: str | None = None
    ) -> None:
        self.name = name
        self.bridge = bridge
        self.hf = hf
        self.tokenizer = tokenizer
        self.revision = revision
        self.lock = threading.RLock()
        self.n_layers = int(bridge.cfg.n_layers)
        self.d_model = int(bridge.cfg.d_model)
        self.max_length = int(getattr(hf.config, "max_position_embeddings", 0) or 2**20)
        self._positions: Tensor | None = None

    def __repr__(self) -> str:
        return (
            f"Model({self.name!r}, {self.n_layers} layers, d_model {self.d_model}, "
            f"{self.dtype} on {self.device})"
        )

    @property
    def device(self) -> torch.device:
        return next(self.hf.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.hf.parameters()).dtype

    @property
    def has_chat_template(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None))

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """Every hook name of the engine."""
        return tuple(self.bridge.hook_dict)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all weights, their names and shapes."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.hf.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(raw.numpy().tobytes())
        return digest.hexdigest()

    def resolve_sites(
        self, spec: str | Sequence[str] = "resid_post", layers: Sequence[int] | None = None
    ) -> list[str]:
        """Hook names for short forms (`resid_post`: one a layer) and full names."""
        return resolve_sites(spec, layers, self.sites, self.n_layers)

    # Text

    def render(self, text: str) -> str:
        """A request as the model expects it: its chat template, or the text where it has none."""
        if not self.has_chat_template:
            return text
        message = [{"role": "user", "content": text}]
        return self.tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True
        )

    def encode(self, text: str, *, rendered: bool = False) -> list[int]:
        """Token ids; a rendered text brings its own special tokens, so none are added again.

        Raises:
            CaptureError: no token, or more than the model's context holds.
        """
        ids = self.tokenizer(text, add_special_tokens=not rendered)["input_ids"]
        if not ids:
            raise CaptureError(f"The text {text[:60]!r} has no token.")
        if len(ids) > self.max_length:
            raise CaptureError(
                f"The text {text[:60]!r}… has {len(ids)} tokens; the model's context holds "
                f"{self.max_length}. Shorten or drop it."
            )
        return list(ids)

    def pad(
        self, ids: Sequence[Sequence[int]], *, side: str = "right"
    ) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
        """Token ids and attention mask of one batch."""
        longest = max(map(len, ids))
        tokens = torch.zeros((len(ids), longest), dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, one in enumerate(ids):
            at = slice(0, len(one)) if side == "right" else slice(longest - len(one), longest)
            tokens[row, at] = torch.tensor(one)
            mask[row, at] = 1
        return tokens.to(self.device), mask.to(self.device)

    # Passes

    def logits(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Next-token logits `[batch, pos, vocabulary]`."""
        with self.lock:
            return self._forward(input_ids, attention_mask)

    def activations(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        sites: Sequence[str],
        *,
        select: Callable[[Tensor], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """States `[batch, pos, ...]` at the sites; the pass ends after the last of them.

        `select` takes a part of the states at once, so that the rest is never kept.
        """
        got: dict[str, Tensor] = {}
        wanted = set(sites)

        def keep(site: str) -> Any:
            def hook(states: Tensor, hook: Any = None) -> None:
                # A copy: what follows may write into the same memory.
                got[site] = (states if select is None else select(states)).detach().clone()
                if len(got) == len(wanted):
                    raise _Stop

            return hook

        with self.lock, ExitStack() as held:
            for site in wanted:
                held.enter_context(self._hooked(site, keep(site)))
            with suppress(_Stop):
                self._forward(input_ids, attention_mask)
        missing = wanted - set(got)
        if missing:
            raise SiteError(f"The forward pass of {self.name} never reaches {sorted(missing)[0]}.")
        return got

    @torch.no_grad()
    def _forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        self._positions = positions
        try:
            options = {"position_ids": positions} if self._takes_positions else {}
            out = self.hf(input_ids=input_ids, attention_mask=mask, use_cache=False, **options)
            return out.logits
        finally:
            self._positions = None

    @cached_property
    def _takes_positions(self) -> bool:
        import inspect

        return "position_ids" in inspect.signature(type(self.hf).forward).parameters

    @contextmanager
    def _hooked(self, site: str, function: Any) -> Iterator[None]:
        """One hook at one site, gone on leaving whatever happens."""
        if site not in self.bridge.hook_dict:
            raise SiteError(f"The model has no site {site!r}.")
        handle = _hook_point(self.bridge, site).register_forward_hook(
            lambda _module, _inputs, output: function(output)
        )
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def edited(self, *edits: Edit) -> Iterator[Model]:
        """Run with the edits, in the order given; the model is as before on leaving.

        Holds the model's lock for the whole block, so that other threads wait rather than see
        the edits. Works in `generate` as in a plain pass.
        """
        with self.lock, ExitStack() as held:
            for edit in edits:
                for site in edit.sites:
                    held.enter_context(self._hooked(site, self._apply(edit, site)))
            yield self

    def _apply(self, edit: Edit, site: str) -> Any:
        return lambda states: edit(states, site, self._current_positions(states))

    def _current_positions(self, states: Tensor) -> Tensor | None:
        """Position ids of the tokens in this pass; with a cache only the newest are in it."""
        if self._positions is None:
            return None
        return self._positions[:, -states.shape[1] :]

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[str], *, max_new_tokens: int = 16, rendered: bool = True
    ) -> list[str]:
        """Greedy continuations, the prompt left out; batched by length, padded on the left.

        `rendered` says that the prompts went through `render`, which brings the special tokens.
        A continuation ends with the model's context, whatever it is batched with.
        """
        ids = [self.encode(prompt, rendered=rendered) for prompt in prompts]
        replies = [""] * len(ids)
        ends = self._ends
        with self.lock:
            for batch in length_batches([len(i) for i in ids], budget=4096):
                tokens, mask = self.pad([ids[i] for i in batch], side="left")
                for place, new in zip(batch, self._decode(tokens, mask, max_new_tokens, ends)):
                    room = self.max_length - len(ids[place])
                    replies[place] = self.tokenizer.decode(new[:room], skip_special_tokens=True)
        return replies

    @cached_property
    def _ends(self) -> list[int]:
        """Tokens that end a reply: the tokenizer's, and those the model itself declares."""
        own = getattr(getattr(self.hf, "generation_config", None), "eos_token_id", None)
        several = own if isinstance(own, (list, tuple)) else [own]
        return [t for t in dict.fromkeys([self.tokenizer.eos_token_id, *several]) if t is not None]

    def _decode(self, tokens: Tensor, mask: Tensor, steps: int, ends: list[int]) -> list[list[int]]:
        """Greedy decoding with a key-value cache and explicit position ids."""
        cache, done = None, torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        new: list[Tensor] = []
        step_in = tokens
        for _ in range(steps):
            positions = (mask.cumsum(-1) - 1).clamp(0, self.max_length - 1)
            positions = positions[:, -step_in.shape[1] :]
            self._positions = positions
            try:
                options = {"position_ids": positions} if self._takes_positions else {}
                out = self.hf(
                    input_ids=step_in,
                    attention_mask=mask,
                    past_key_values=cache,
                    use_cache=True,
                    **options,
                )
            finally:
                self._positions = None
            cache = out.past_key_values
            chosen = out.logits[:, -1].argmax(-1)
            new.append(torch.where(done, torch.full_like(chosen, ends[0] if ends else 0), chosen))
            for end in ends:
                done |= chosen == end
            if bool(done.all()):
                break
            step_in = chosen[:, None]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        rows = torch.stack(new, dim=1).tolist()
        return [list(takewhile(lambda token: token not in ends, row)) for row in rows]

    def losses(
        self, texts: Sequence[str]
    ) -> tuple[Float[np.ndarray, " texts"], Int[np.ndarray, " texts"]]:
        """Negative log-likelihood of each text in nats (sum over its tokens), and token counts.

        The first token has nothing before it and is not counted.
        """
        ids = [self.encode(text) for text in texts]
        short = next((t for t, i in zip(texts, ids) if len(i) < 2), None)
        if short is not None:
            raise CaptureError(f"The text {short!r} has one token, so it has no loss.")
        total, count = np.zeros(len(ids)), np.array([len(i) - 1 for i in ids])
        for batch in length_batches([len(i) for i in ids], budget=4096):
            tokens, mask = self.pad([ids[i] for i in batch])
            scores = self.logits(tokens, mask)[:, :-1].float().log_softmax(-1)
            picked = scores.gather(-1, tokens[:, 1:, None])[..., 0].double()
            total[batch] = -picked.masked_fill(mask[:, 1:] == 0, 0.0).sum(-1).cpu().numpy()
        return total, count


def _hook_point(bridge: Any, site: str) -> torch.nn.Module:
    return bridge.hook_dict[site]
