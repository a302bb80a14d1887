"""Docstrings that describe several names in one line, as in `low, high: of the interval`."""

from __future__ import annotations

import re
from typing import Any

import griffe

_SEVERAL = re.compile(r"^( +\w+(?:, \w+)+)(?=: )", re.M)


class Several(griffe.Extension):
    """Keeps such names together, where the parser takes the second for the type of the first."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            text = obj.docstring.value
            obj.docstring.value = _SEVERAL.sub(lambda m: m[1].replace(", ", ",\u00a0"), text)
