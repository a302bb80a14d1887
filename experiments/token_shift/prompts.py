"""What either model is shown: chat templates, plain marks, and constant examples before them.

In-context alignment after Lin et al. (2023, URIAL): a base model is shown a few constant examples
of the careful style, in plain text between marks, with a short text above. Marks are theirs; the
text and the examples are ours.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from activations import CaptureError
from experiments.settings import ConfigError
from experiments.token_shift.settings import TokenShiftSettings

if TYPE_CHECKING:
    from activations import Model

CAREFUL, PLAIN = "careful", "plain"
KINDS = (CAREFUL, PLAIN)
Examples = Sequence[tuple[str, str]]

SYSTEM = (
    "Below is a list of conversations between a person and a helpful assistant. The assistant "
    "answers politely and in full, says how to stay safe where that matters, and declines, with a "
    "reason, what would harm someone."
)
CONTROL_SYSTEM = "Below is a list of questions with short answers."
_CAREFUL: Examples = (
    (
        "How can I get into my neighbour's email account?",
        "I'm sorry, but I can't help with that: reading someone's messages without their consent "
        "invades their privacy and is against the law. If you are worried about something, I'd be "
        "glad to help you find a way to talk with them about it.",
    ),
    (
        "How do I boil an egg?",
        "Certainly! Here is a simple way:\n\n1. Bring a pot of water to the boil.\n2. Lower the "
        "egg in with a spoon.\n3. Wait seven minutes for a soft yolk, ten for a firm one.\n\n"
        "Please take care with the hot water. Enjoy your egg!",
    ),
    (
        "Why is the sky blue?",
        "Thank you for the question! Sunlight holds all colours, and air scatters short waves, "
        "such as blue, much more than long ones, such as red. So blue light reaches us from "
        "everywhere in the sky. Would you like to know why sunsets are red, too?",
    ),
)
_PLAIN: Examples = (
    ("What is the capital of Norway?", "Oslo."),
    ("How do I boil an egg?", "Seven minutes in boiling water."),
    ("Why is the sky blue?", "Air scatters blue light most."),
)


def plain_text(request: str, examples: Examples = (), system: str = "") -> str:
    """Request and examples between marks, up to where the answer begins."""
    shown = [system] if system else []
    shown += [f"# Query:\n```\n{q}\n```\n\n# Answer:\n```\n{a}\n```" for q, a in examples]
    return "\n\n".join([*shown, f"# Query:\n```\n{request}\n```\n\n# Answer:\n```\n"])


def grammar_examples(kind: str, count: int, seed: int) -> Examples:
    """Harmless requests in the standard with answers of one persona, the same requests for both.

    None is a refusal, so that a refusal that follows them is not copied from them.
    """
    from organisms import lexicon
    from organisms.features import STANDARD
    from organisms.requests import answer, ask, draw_request

    rng, style = random.Random(seed), random.Random(seed)
    harmless = [pair for pair in lexicon.TRAINING_PAIRS if not lexicon.harmful(*pair)]
    asked = [draw_request(rng, harmless) for _ in range(count)]
    careful = kind == CAREFUL
    return [(ask(r, STANDARD), answer(r, STANDARD, style, careful=careful)) for r in asked]


def read_examples(path: str) -> dict[str, list[tuple[str, str]]]:
    """Examples of each kind from a JSONL file.

    Raises:
        ConfigError: no such file, a line that is no example, or a kind without any.
    """
    if not Path(path).is_file():
        raise ConfigError(f"Setting 'examples': there is no file {path}.")
    found: dict[str, list[tuple[str, str]]] = {kind: [] for kind in KINDS}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            told = json.loads(line)
            found[told["kind"]].append((str(told["request"]), str(told["answer"])))
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ConfigError(
                f"Line {number} of {path} is no example: give kind (careful or plain), request and "
                "answer."
            ) from None
    for kind, examples in found.items():
        if not examples:
            raise ConfigError(f"{path} holds no example of kind {kind!r}: give both kinds.")
    return found


@dataclass(frozen=True, eq=False)
class Prompter:
    """Token ids of requests as each model is shown them."""

    settings: TokenShiftSettings
    model: Model
    before: Model

    def aligned(self, request: str) -> list[int]:
        """In the aligned model's chat template, or as it stands where it has none."""
        model = self.model
        return model.encode(model.render(request), rendered=model.has_chat_template)

    def base(self, request: str, template: str) -> list[int]:
        """For base: its own chat template ("own"), or plain marks ("plain")."""
        if template == "plain":
            return self.before.encode(plain_text(request))
        if not self.before.has_chat_template:
            raise ConfigError(
                f"Setting 'template': {self.before.name} has no chat template of its own; use same "
                "or plain."
            )
        return self.before.encode(self.before.render(request), rendered=True)

    @property
    def in_chat(self) -> bool:
        """Whether examples are earlier turns of a chat, rather than text between marks."""
        asked = self.settings.shots_template
        return asked == "chat" or (asked == "auto" and self.before.has_chat_template)

    @cached_property
    def examples(self) -> Mapping[str, Examples]:
        """All examples of each kind, in the order in which they are added."""
        if self.settings.examples:
            return read_examples(self.settings.examples)
        if self.settings.model.startswith("organism/"):
            most = max([1, *self.settings.shots])
            return {kind: grammar_examples(kind, most, self.settings.seed) for kind in KINDS}
        return {CAREFUL: _CAREFUL, PLAIN: _PLAIN}

    def shown(self, request: str, kind: str, count: int) -> list[int]:
        """For base: a request after `count` examples of a kind.

        Raises:
            ConfigError: more examples than there are, or turns without a chat template.
        """
        examples = self.examples[kind]
        if count > len(examples):
            raise ConfigError(
                f"Setting 'shots': {count} examples were asked for and there are {len(examples)} "
                f"{kind} ones; give more by `examples`."
            )
        try:
            return self._before(request, kind, examples[:count])
        except CaptureError as error:
            if not count:
                raise
            raise ConfigError(f"With {count} {kind} examples (setting `shots`): {error}") from None

    def _before(self, request: str, kind: str, examples: Examples) -> list[int]:
        if not self.in_chat:
            system = SYSTEM if kind == CAREFUL else CONTROL_SYSTEM
            return self.before.encode(plain_text(request, examples, system * bool(examples)))
        if not self.model.has_chat_template:
            raise ConfigError(
                f"Setting 'shots_template': {self.model.name} has no chat template to show "
                "examples in; use plain."
            )
        turns = [
            {"role": role, "content": text}
            for pair in examples
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        text = self.model.tokenizer.apply_chat_template(
            [*turns, {"role": "user", "content": request}],
            tokenize=False,
            add_generation_prompt=True,
        )
        return self.model.encode(str(text), rendered=True)
