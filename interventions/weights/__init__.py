"""Changes to a model's weights, and directions written for other programs."""

from __future__ import annotations

from interventions.weights.control_vectors import control_vector
from interventions.weights.edited import EditedModel, save_edited
from interventions.weights.orthogonal import orthogonalise

__all__ = ["EditedModel", "control_vector", "orthogonalise", "save_edited"]
