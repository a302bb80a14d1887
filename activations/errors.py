"""What can be wrong with a model, a site, a capture or a store, each said in one sentence."""

from __future__ import annotations


class ModelError(ValueError):
    """A model that cannot be opened or used as asked."""


class SiteError(ValueError):
    """A site or layer that the model does not have."""


class CaptureError(ValueError):
    """Texts that cannot be captured, or states that are not numbers."""


class StoreError(ValueError):
    """A store that is broken, half written, or of something else."""
