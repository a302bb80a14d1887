"""The embedded organisms: where they lie, their cards, and their truth."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from organisms.planted import Truth, make_truth

#: The embedded models, each opened as `organism/NAME`.
NAMES = ("base", "aligned", "drifted")
_WEIGHTS = Path(__file__).parent / "weights"


class OrganismError(ValueError):
    """No such organism, or its files are missing."""


def path(name: str) -> Path:
    """The Hugging Face folder of an organism, by its name with or without "organism/"."""
    short = name.removeprefix("organism/")
    if short not in NAMES:
        raise OrganismError(f"There is no organism {short!r}: choose one of {', '.join(NAMES)}.")
    folder = _WEIGHTS / short
    if not (folder / "config.json").is_file():
        raise OrganismError(
            f"The weights of organism/{short} are missing: make them with "
            "`python -m organisms.train`, or install the package again."
        )
    return folder


def card(name: str) -> dict[str, Any]:
    """What was measured on held-out material when an organism was made."""
    return json.loads((path(name) / "card.json").read_text(encoding="utf-8"))


@cache
def truth() -> Truth:
    """The planted truth, with the drift measured on organism/drifted."""
    drifted = card("drifted")
    return make_truth(
        drift_refusal=drifted["refusal_harmful_by_variety"],
        drift_variety=drifted["drift_variety"],
    )
