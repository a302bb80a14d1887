"""A language model opened once: its sites, its states, its edits, its words."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import takewhile
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from activations.batching import length_batches
from activations.edit import Edit, Texts, for_texts
from activations.engines.engine import Engine
from activations.engines.passes import skipped_positions
from activations.errors import CaptureError, ModelError, SiteError
from activations.places import Site
from activations.sites import EMBEDDING, resolve_sites


class Model:
    """See `open_model`. One lock guards every pass, so that threads never see others' edits."""

    embedding_site = EMBEDDING

    def __init__(
        self, name: str, engine: Engine, hf: Any, tokenizer: Any, *, revision: str | None = None
    ) -> None:
        self.name = name
        self.engine = engine
        self.hf = hf
        self.tokenizer = tokenizer
        self.revision = revision
        self.lock = threading.RLock()
        self.n_layers = engine.n_layers
        self.d_model = engine.d_model
        self._first_position = skipped_positions(hf)
        longest = int(getattr(hf.config, "max_position_embeddings", 0) or 2**20)
        self.max_length = longest - self._first_position
        #: How to open it again in another process; None where it was given as a module.
        self.origin: dict[str, Any] | None = None
        self._edits: list[tuple[str, Edit]] = []
        self._packs: dict[tuple[str, ...], bool] = {}

    def __repr__(self) -> str:
        return (
            f"Model({self.name!r}, {self.n_layers} layers, d_model {self.d_model}, "
            f"{self.dtype} on {self.device})"
        )

    def _repr_html_(self) -> str:
        facts = {
            "model": self.name,
            "layers": self.n_layers,
            "d_model": self.d_model,
            "dtype": f"{self.dtype} on {self.device}",
            "engine": type(self.engine).__name__,
            "edits": len(self._edits),
        }
        return pd.Series(facts, dtype=object).to_frame().to_html(header=False, border=0)

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of the embeddings."""
        return self.engine.device

    @property
    def dtype(self) -> torch.dtype:
        return self.hf.dtype

    @property
    def has_chat_template(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None))

    @property
    def bridge(self) -> Any:
        """TransformerLens's bridge over the same weights, for what it offers beside ours.

        Raises:
            ModelError: another engine runs the model.
        """
        if not hasattr(self.engine, "bridge"):
            raise ModelError(f"{self.name} runs on {self.engine.name}, which has no bridge.")
        return self.engine.bridge  # type: ignore[attr-defined]

    @property
    def sites(self) -> tuple[str, ...]:
        """Every place that can be read, in the order in which a pass reaches them."""
        return tuple(self.engine.sites)

    def site(self, name: str) -> Site:
        """What is known of a site, such as the shape of one token's states there.

        Raises:
            SiteError: the model has no such site.
        """
        return self.engine.sites[self.resolve_sites(name)[0]]

    @property
    def is_causal(self) -> bool:
        """Whether a token sees only those before it; an encoder's sees all of them."""
        return self.engine.is_causal

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all weights, their names, shapes and dtypes, wherever they lie."""
        return self.engine.digest()

    def resolve_sites(
        self, spec: str | Sequence[str] = "resid_post", layers: Sequence[int] | None = None
    ) -> list[str]:
        """Hook names for short forms (`resid_post`: one a layer) and full names."""
        return resolve_sites(
            spec, layers, self.engine.sites, self.n_layers, faults=self.engine.faults
        )

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
        return self.encode_many([text], rendered=rendered)[0]

    def encode_many(self, texts: Sequence[str], *, rendered: bool = False) -> list[list[int]]:
        """`encode` of many texts at once, which tokenizers do faster."""
        if not texts:
            return []
        coded = self.tokenizer(list(texts), add_special_tokens=not rendered)["input_ids"]
        for text, ids in zip(texts, coded, strict=True):
            if not ids:
                raise CaptureError(f"The text {text[:60]!r} has no token.")
            if len(ids) > self.max_length:
                raise CaptureError(
                    f"The text {text[:60]!r}… has {len(ids)} tokens; the model's context holds "
                    f"{self.max_length}. Shorten or drop it."
                )
        return [list(ids) for ids in coded]

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
        """Next-token logits `[batch, pos, vocabulary]`; an encoder's are of each token itself.

        Raises:
            ModelError: the model has no head.
        """
        self._require_head()
        with self.lock:
            return self._pass(input_ids, attention_mask)[0].logits

    def _require_head(self) -> None:
        if not self.engine.has_head:
            kind = type(self.hf).__name__
            raise ModelError(f"{self.name} ({kind}) has no head and so no logits, only states.")

    def _require_causal(self, what: str) -> None:
        if not self.is_causal:
            raise ModelError(
                f"{self.name} ({type(self.hf).__name__}) is an encoder: its tokens see those "
                f"after them, so it has no {what}; use a decoder."
            )
        self._require_head()

    def activations(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        sites: Sequence[str],
        *,
        select: Callable[[Tensor, Site], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """States `[batch, pos, ...]` at the sites; the pass ends after the last of them.

        `select` takes a part of a site's states at once, so that the rest is never kept.
        """

        reads = self._reads(sites, select)
        with self.lock:
            got = self._pass(input_ids, attention_mask, reads=reads, stop=True)[1]
        missing = set(reads) - set(got)
        if missing:
            raise SiteError(f"The forward pass of {self.name} never reaches {sorted(missing)[0]}.")
        return got

    @torch.no_grad()
    def packed_activations(
        self,
        ids: Sequence[Sequence[int]],
        sites: Sequence[str],
        *,
        select: Callable[[Tensor, Site], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The same, `[1, tokens, ...]`, of texts laid end to end; see `packs`.

        Raises:
            ModelError: under edits, which such a pass would not make.
        """
        with self.lock:
            if self._edits:
                raise ModelError("Texts laid end to end run without edits: use `activations`.")
            return self.engine.run_packed(ids, self._reads(sites, select))  # type: ignore[attr-defined]

    def packs(self, ids: Sequence[Sequence[int]], sites: Sequence[str]) -> bool:
        """Whether texts laid end to end give the states at `sites` that padded ones give: tried on
        the first few of `ids`, once for each choice of sites.
        """
        from activations.engines.packing import CannotPack, agree

        key = tuple(sites)
        with self.lock:
            if self._edits or not hasattr(self.engine, "run_packed"):
                return False
            if key in self._packs:
                return self._packs[key]
            few = [list(one) for one in ids[:4]] + [list(ids[0][: len(ids[0]) // 2 + 1])]
            tokens, mask = self.pad(few)
            try:
                packed = self.packed_activations(few, sites)
                padded = self.activations(tokens, mask, sites)
                real = {site: x[mask.to(x.device) > 0][None] for site, x in padded.items()}
                self._packs[key] = agree(packed, real)
            except (CannotPack, RuntimeError, TypeError, ValueError):
                self._packs[key] = False
            return self._packs[key]

    def _reads(self, sites: Sequence[str], select: Any) -> dict[str, Callable[[Tensor], Tensor]]:
        def keep(states: Tensor, site: Site) -> Tensor:
            kept = states.detach() if select is None else select(states.detach(), site)
            # What follows may write into the same memory.
            return kept.clone() if _share_memory(kept, states) else kept

        return {name: partial(keep, site=self.site(name)) for name in sites}

    def _pass(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        *,
        reads: Any = None,
        stop: bool = False,
        cache: Any = None,
        use_cache: bool = False,
        end: Any = None,
        texts: Texts | None = None,
        grad: bool = False,
    ) -> tuple[Any, dict[str, Tensor]]:
        """One pass under the edits that are open; with a cache only the newest tokens are in it."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        texts = Texts.of(mask) if texts is None else texts
        positions = (mask.cumsum(-1) - 1).clamp(0, self.max_length - 1)
        positions = positions[:, -input_ids.shape[1] :]
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": mask}
        if self._takes("position_ids"):
            inputs["position_ids"] = positions + self._first_position
        if self._takes("use_cache"):
            inputs["use_cache"] = use_cache
        if use_cache:
            inputs["past_key_values"] = cache
        told = {id(edit): for_texts(edit, texts) for _, edit in self._edits}
        edits = [
            (site, partial(_edited, edit=told[id(edit)], site=site, positions=positions))
            for site, edit in self._edits
        ]
        with torch.set_grad_enabled(grad):
            return self.engine.run(inputs, edits=edits, reads=reads, stop=stop, end=end)

    def _takes(self, argument: str) -> bool:
        return argument in self._parameters

    @cached_property
    def _parameters(self) -> frozenset[str]:
        return frozenset(inspect.signature(type(self.hf).forward).parameters)

    @contextmanager
    def edited(self, *edits: Edit) -> Iterator[Model]:
        """Run with the edits, in the order given and after those of contexts around this one.

        The model is as before on leaving. Holds its lock for the whole block, so that other
        threads wait rather than see the edits. Works in `generate` as in a plain pass.

        Raises:
            SiteError: an edit names a site that the model does not have.
        """
        with self.lock:
            before = self._edits
            added = [(self.site(site).name, edit) for edit in edits for site in edit.sites]
            self._edits = [*before, *added]
            try:
                yield self
            finally:
                self._edits = before

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[str], *, max_new_tokens: int = 16, rendered: bool = True
    ) -> list[str]:
        """Greedy continuations, the prompt left out; batched by length, padded on the left.

        `rendered` says that the prompts went through `render`, which brings the special tokens.
        A continuation ends with the model's context, whatever it is batched with.

        Raises:
            ModelError: the model is an encoder, or has no head.
        """
        ids = [self.encode(prompt, rendered=rendered) for prompt in prompts]
        new = self.generate_ids(ids, max_new_tokens=max_new_tokens)
        return [self.tokenizer.decode(one, skip_special_tokens=True) for one in new]

    @torch.no_grad()
    def generate_ids(
        self, ids: Sequence[Sequence[int]], *, max_new_tokens: int = 16
    ) -> list[list[int]]:
        """`generate` from token ids to token ids, without the one that ends a continuation."""
        self._require_causal("continuations")
        found: list[list[int]] = [[]] * len(ids)
        ends = self._ends
        with self.lock:
            for batch in length_batches([len(i) for i in ids], budget=4096):
                tokens, mask = self.pad([ids[i] for i in batch], side="left")
                texts = Texts.of(mask, batch, len(ids))
                for place, new in zip(
                    batch, self._decode(tokens, mask, max_new_tokens, ends, texts)
                ):
                    found[place] = new[: self.max_length - len(ids[place])]
        return found

    @cached_property
    def _ends(self) -> list[int]:
        """Tokens that end a reply: the tokenizer's, and those the model itself declares."""
        own = getattr(getattr(self.hf, "generation_config", None), "eos_token_id", None)
        several = own if isinstance(own, (list, tuple)) else [own]
        return [t for t in dict.fromkeys([self.tokenizer.eos_token_id, *several]) if t is not None]

    def _decode(
        self, tokens: Tensor, mask: Tensor, steps: int, ends: list[int], texts: Texts
    ) -> list[list[int]]:
        """Greedy decoding with a key-value cache and explicit position ids."""
        cache, done = None, torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        new: list[Tensor] = []
        step_in = tokens
        for _ in range(steps):
            out = self._pass(step_in, mask, cache=cache, use_cache=True, texts=texts)[0]
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

        Raises:
            ModelError: the model is an encoder, or has no head.
        """
        self._require_causal("next-token losses")
        ids = [self.encode(text) for text in texts]
        short = next((t for t, i in zip(texts, ids) if len(i) < 2), None)
        if short is not None:
            raise CaptureError(f"The text {short!r} has one token, so it has no loss.")
        total, count = np.zeros(len(ids)), np.array([len(i) - 1 for i in ids])
        for batch in length_batches([len(i) for i in ids], budget=4096):
            tokens, mask = self.pad([ids[i] for i in batch])
            with self.lock:
                end = partial(_log_likelihood, tokens=tokens)
                said = self._pass(tokens, mask, end=end, texts=Texts.of(mask, batch, len(ids)))[0]
            counted = said.double().masked_fill(mask[:, 1:].to(said.device) == 0, 0.0)
            total[batch] = -counted.sum(-1).cpu().numpy()
        return total, count


def _edited(states: Tensor, edit: Edit, site: str, positions: Tensor) -> Tensor:
    return edit(states, site, positions.to(states.device))


def _log_likelihood(output: Any, tokens: Tensor) -> Tensor:
    """Of each token given those before it, in nats `[batch, pos - 1]`."""
    scores = output.logits[:, :-1].float().log_softmax(-1)
    return scores.gather(-1, tokens[:, 1:, None].to(scores.device))[..., 0]


def _share_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
