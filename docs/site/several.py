"""What the parser does not know of our docstrings: several names in one line, and `#:` comments."""

from __future__ import annotations

import re
from typing import Any

import griffe

_SEVERAL = re.compile(r"^( +\w+(?:, \w+)+)(?=: )", re.M)


class Several(griffe.Extension):
    """Keeps names together, as in `low, high: of the interval`: the second is no type of the first.

    Comments that begin with `#:` above a constant are its docstring.
    """

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            text = obj.docstring.value
            obj.docstring.value = _SEVERAL.sub(lambda m: m[1].replace(", ", ",\u00a0"), text)

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        if isinstance(attr.filepath, list) or attr.docstring is not None:
            return
        said: list[str] = []
        for line in reversed(attr.lines_collection[attr.filepath][: (attr.lineno or 1) - 1]):
            if not line.startswith("#:"):
                break
            said.insert(0, line.removeprefix("#:").strip())
        if said:
            attr.docstring = griffe.Docstring("\n".join(said), parent=attr)
