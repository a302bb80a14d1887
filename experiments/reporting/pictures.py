"""A chart as a page shows it: drawn once for light and once for dark readers, as SVG."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

# What each mark says to a screen reader, which a picture inside a page does not pass on.
_HEARD = re.compile(r' (?:aria-[a-z]+|role)="[^"]*"')


@dataclass(frozen=True)
class Picture:
    """One figure.

    Attributes:
        light, dark: the SVG of each theme.
        alt: what is seen in it, for those who do not see it.
    """

    light: str
    dark: str
    alt: str


def picture_of(spec: dict[str, Any], title: str) -> Picture:
    """The picture of a chart drawn in the light theme, by its specification.

    The title stands in for a description.
    """
    return Picture(_svg(spec), _svg(darkened(spec)), str(spec.get("description") or title))


def darkened(spec: dict[str, Any]) -> dict[str, Any]:
    """A chart's specification in the dark theme's colours; its data are left as they are.

    A colour that the theme would turn into one that the chart already uses, for another variety,
    stays: two things never come to look alike.
    """
    from experiments.figures.look import palette

    drawn = {part: value for part, value in spec.items() if part != "datasets"}
    used = _colours(drawn)
    turned = {
        old.lower(): new
        for old, new in palette("light").pairs(palette("dark"))
        if new.lower() not in used
    }
    return {**spec, **_recoloured(drawn, turned)}


def _svg(spec: dict[str, Any]) -> str:
    import vl_convert

    from experiments.figures.look import SPEC_VERSION

    return _HEARD.sub("", vl_convert.vegalite_to_svg(spec, vl_version=SPEC_VERSION))


def _colours(part: Any) -> set[str]:
    if isinstance(part, dict):
        return {colour for value in part.values() for colour in _colours(value)}
    if isinstance(part, list):
        return {colour for value in part for colour in _colours(value)}
    return {part.lower()} if isinstance(part, str) and part.startswith("#") else set()


def _recoloured(part: Any, turned: dict[str, str]) -> Any:
    if isinstance(part, dict):
        return {name: _recoloured(value, turned) for name, value in part.items()}
    if isinstance(part, list):
        return [_recoloured(value, turned) for value in part]
    return turned.get(part.lower(), part) if isinstance(part, str) else part
