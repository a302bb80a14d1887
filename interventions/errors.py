"""The error of this room."""

from __future__ import annotations


class EditError(ValueError):
    """An edit or a sweep that cannot be made as asked: what is wrong, and what to do."""
