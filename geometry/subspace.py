"""A linear subspace of activation space, with the point that it is measured from."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from geometry import angles
from geometry.checks import finite
from geometry.errors import GeometryError

_FORMAT = "isogloss.subspace.1"


@dataclass(frozen=True, eq=False)
class Subspace:
    """k orthonormal directions in d dimensions; a direction is a subspace with k = 1 and a sign.

    Attributes:
        basis: `[d, k]`, orthonormal columns.
        mean: `[d]`, the point at which coordinates are zero.
        singular_values: `[k]`, the weight of each column in the units of what it was made from.
        site: the hook name that it was estimated at, empty when it belongs to none.
        provenance: how it was made, as JSON can hold it.

    Raises:
        GeometryError: shapes that do not fit, numbers that are not finite, a basis that is not
            orthonormal.
    """

    basis: Float[np.ndarray, "d k"]
    mean: Float[np.ndarray, " d"]
    singular_values: Float[np.ndarray, " k"]
    site: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        basis = finite(self.basis, name="basis", ndim=2)
        mean = finite(self.mean, name="mean", ndim=1)
        values = finite(self.singular_values, name="singular_values", ndim=1)
        d, k = basis.shape
        if k > d:
            raise GeometryError(
                f"basis has shape {basis.shape}, more columns than dimensions; transpose it."
            )
        if mean.shape != (d,):
            raise GeometryError(f"mean has shape {mean.shape}, but the basis needs ({d},).")
        if values.shape != (k,):
            raise GeometryError(
                f"singular_values has shape {values.shape}, but the basis needs ({k},)."
            )
        if np.abs(basis.T @ basis - np.eye(k)).max() > 1e-6:
            raise GeometryError(
                "basis is not orthonormal; take numpy.linalg.qr(basis)[0] or estimate it again."
            )
        for name, value in (("basis", basis), ("mean", mean), ("singular_values", values)):
            frozen = value.copy()
            frozen.flags.writeable = False
            object.__setattr__(self, name, frozen)
        object.__setattr__(self, "provenance", dict(self.provenance))

    @property
    def d(self) -> int:
        """Dimensions of the space."""
        return self.basis.shape[0]

    @property
    def k(self) -> int:
        """Dimensions of the subspace."""
        return self.basis.shape[1]

    @property
    def direction(self) -> Float[np.ndarray, " d"]:
        """The unit vector of a subspace with k = 1.

        Raises:
            GeometryError: k is not 1.
        """
        if self.k != 1:
            raise GeometryError(
                f"This subspace has {self.k} dimensions, so it has no one direction; "
                "take a column of .basis."
            )
        return self.basis[:, 0]

    def coordinates(self, x: ArrayLike) -> Float[np.ndarray, "*rows k"]:
        """Coordinates of `x` `[..., d]` from the mean, in the units of `x`."""
        return (self._points(x) - self.mean) @ self.basis

    def project(self, x: ArrayLike) -> Float[np.ndarray, "*rows d"]:
        """The nearest point of the affine subspace: mean + P(x - mean)."""
        return self.mean + self.coordinates(x) @ self.basis.T

    def reject(self, x: ArrayLike) -> Float[np.ndarray, "*rows d"]:
        """`x` with its coordinates set to the mean's: x - P(x - mean)."""
        points = self._points(x)
        return points - ((points - self.mean) @ self.basis) @ self.basis.T

    def angle_to(self, other: Subspace) -> Float[np.ndarray, " min_k"]:
        """Principal angles in radians, smallest first; signs of directions do not matter."""
        return angles.principal_angles(self.basis, other.basis)

    def overlap(self, other: Subspace) -> float:
        """Mean squared cosine of the principal angles, in [0, 1]."""
        return angles.overlap(self.basis, other.basis)

    def save(self, path: str | Path) -> Path:
        """Writes one safetensors file and returns its path."""
        from safetensors.numpy import save_file

        path = Path(path)
        try:
            provenance = json.dumps(self.provenance, sort_keys=True)
        except TypeError as error:
            raise GeometryError(
                f"provenance cannot be written as JSON ({error}); keep plain values in it."
            ) from error
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {
                "basis": np.ascontiguousarray(self.basis),
                "mean": np.ascontiguousarray(self.mean),
                "singular_values": np.ascontiguousarray(self.singular_values),
            },
            path,
            metadata={"format": _FORMAT, "site": self.site, "provenance": provenance},
        )
        return path

    @classmethod
    def load(cls, path: str | Path) -> Subspace:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            GeometryError: a file that holds no subspace.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}; check the path.")
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise GeometryError(f"{path} holds no subspace; pass a file of Subspace.save.")
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise GeometryError(
                f"{path} cannot be read as safetensors ({error}); save the subspace again."
            ) from error
        return cls(
            arrays["basis"],
            arrays["mean"],
            arrays["singular_values"],
            site=metadata.get("site", ""),
            provenance=json.loads(metadata.get("provenance", "{}")),
        )

    def _points(self, x: ArrayLike) -> np.ndarray:
        points = np.asarray(x, dtype=np.float64)
        if points.ndim == 0 or points.shape[-1] != self.d:
            raise GeometryError(
                f"The points have shape {points.shape}, but this subspace needs [..., {self.d}]."
            )
        return points

    def __repr__(self) -> str:
        site = f", site={self.site!r}" if self.site else ""
        return f"Subspace(d={self.d}, k={self.k}{site})"

    def _repr_html_(self) -> str:
        """Size, site, the largest singular values, and how it was made."""
        values = ", ".join(f"{value:.3g}" for value in self.singular_values[:6])
        facts = {"dimensions": f"{self.k} of {self.d}", "site": self.site or "none"}
        facts["singular values"] = values + (", …" if self.k > 6 else "")
        facts |= {str(name): str(said) for name, said in self.provenance.items()}
        rows = (
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(said[:200])}</td></tr>"
            for name, said in facts.items()
        )
        return f"<table>{''.join(rows)}</table>"
