"""The one error of this room."""

from __future__ import annotations


class ProbeError(ValueError):
    """No honest probe can be fitted to this: the message says what is wrong and what to do."""
