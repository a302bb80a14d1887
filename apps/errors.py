"""Which errors are the user's to mend, and how they are told."""

from __future__ import annotations

import sys
from typing import Any

_KNOWN = {
    "corpora": ("CorpusError",),
    "evidence": ("EvidenceError",),
    "organisms": ("OrganismError",),
    "activations": ("ModelError", "SiteError", "StoreError", "CaptureError"),
    "geometry": ("GeometryError",),
    "probes": ("ProbeError",),
    "interventions": ("EditError",),
    "experiments.settings": ("ConfigError",),
}


def is_users(error: BaseException) -> bool:
    """Errors that the rooms raise for bad input; whichever room is not loaded raised none."""
    for module, kinds in _KNOWN.items():
        loaded: Any = sys.modules.get(module)
        if loaded and any(isinstance(error, getattr(loaded, kind)) for kind in kinds):
            return True
    return False
