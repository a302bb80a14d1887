"""The one error of this room."""

from __future__ import annotations


class GeometryError(ValueError):
    """What was given holds no such subspace: the message says what is wrong and what to do."""
