"""What the subspaces of many varieties have in common, and what each has for itself.

The subspaces lie in one activation space and are decomposed there. AJIVE on data matrices (Feng,
Jiang, Hannig & Marron 2018) works in the space of rows instead and answers another question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from geometry.checks import count, finite, orthonormalised, spread
from geometry.errors import GeometryError


class JointSubspaces(NamedTuple):
    """Shared and private parts of V subspaces.

    Attributes:
        shared: `[d, r]`, orthonormal, most widely shared first; r may be 0.
        private: for each variety `[d, p_i]`, orthonormal, orthogonal to `shared`; p_i may be 0.
            Private parts of different varieties need not be orthogonal to each other.
        eigenvalues: of the mean projector, falling. Each is the mean over varieties of the squared
            cosine between its direction and the variety's subspace: 1 for a direction that lies
            in all of them, 1/V for one that lies in one and is orthogonal to the rest.
        shared_energy: `[V]`, the share of each variety's energy that lies in `shared`, in [0, 1].
        null: the upper quantile of the largest eigenvalue of V random subspaces.
        threshold: what an eigenvalue had to exceed to count as shared.
        null_level: the level of that quantile.
    """

    shared: Float[np.ndarray, "d r"]
    private: tuple[Float[np.ndarray, "d p"], ...]
    eigenvalues: Float[np.ndarray, " m"]
    shared_energy: Float[np.ndarray, " v"]
    null: float
    threshold: float
    null_level: float


def joint_subspaces(
    bases: ArrayLike | Sequence[ArrayLike],
    *,
    singular_values: Sequence[ArrayLike] | None = None,
    spectrum: ArrayLike | None = None,
    share: float = 0.5,
    level: float = 0.95,
    least_private: float = 0.5,
    null: ArrayLike | None = None,
    draws: int = 1000,
    seed: int,
) -> JointSubspaces:
    """Split V subspaces into directions that varieties share and directions of their own.

    The shared directions are the eigenvectors of the mean projector (1/V) ΣQ_iQ_iᵀ whose
    eigenvalue exceeds both `share` and what random subspaces of the same dimensions reach: the
    `level` quantile of their largest eigenvalue, the random-direction bound of Feng et al. (2018,
    J. Multivariate Anal. 166, section 2.3). Their second bound, of perturbation, needs the data
    and is not taken: bootstrap the bases instead. The private parts are what is left of each
    subspace.

    How many dimensions each basis was given decides much here: repeat it with two more and fewer.

    Args:
        bases: `[V, d, k]`, or a sequence of V bases `[d, k_i]`.
        singular_values: for each variety `[k_i]`, the weight of each column, by which its energy
            is counted; only for orthonormal bases. The same for all columns unless given.
        spectrum: eigenvalues of the covariance of the activations. Random subspaces then are
            drawn with that spread, as `covariance_overlap_sample` does, since uniform ones share
            too little. Uniform unless given.
        share: the mean squared cosine over varieties that a shared direction has at least. Two
            of eight varieties stand out from chance too, but 0.25 is not what all share.
        least_private: the share of its energy (a squared sine) that a private direction has
            outside `shared`. One with less is taken for a shared one estimated with error; lower
            it to 0.01 where bases are nearly free of noise.
        null: what `joint_null` drew for these dimensions, where many sets of bases share it; drawn
            here unless given; if it is, `spectrum`, `draws` and `seed` count for nothing.
        draws: sets of random subspaces.

    Raises:
        GeometryError: fewer than two subspaces, other shapes, numbers that are not finite,
            dependent columns, a spectrum of lower rank than a subspace, options out of range.
    """
    stack = [orthonormalised(b, name=f"basis {i}") for i, b in enumerate(_each(bases))]
    if len(stack) < 2:
        raise GeometryError(f"There are {len(stack)} subspaces; nothing is shared by fewer than 2.")
    if len({len(b) for b in stack}) > 1:
        raise GeometryError(
            f"The bases lie in {sorted({len(b) for b in stack})} dimensions; "
            "decompose subspaces of one space."
        )
    for name, value in (("share", share), ("level", level), ("least_private", least_private)):
        if not 0 <= value < 1 or (name == "level" and value == 0):
            raise GeometryError(f"{name} is {value!r}; it must lie between 0 and 1.")
    v, d = len(stack), len(stack[0])
    sizes = [b.shape[1] for b in stack]
    energies = _energies(bases, stack, singular_values)
    axes, values, _ = np.linalg.svd(np.hstack(stack) / np.sqrt(v), full_matrices=False)
    eigenvalues = np.clip(values**2, 0.0, 1.0)
    if null is None:
        null = joint_null(d, sizes, spectrum=spectrum, draws=draws, seed=seed)
    chance = float(np.quantile(finite(null, name="null", ndim=1), level))
    threshold = max(chance, share)
    # Where chance alone reaches 1, as for subspaces that fill the space, nothing can exceed it.
    shared = axes[:, eigenvalues > threshold + 1e-12]
    private, held = [], []
    for basis, energy in zip(stack, energies, strict=True):
        inside = shared.T @ basis
        left, sines, _ = np.linalg.svd(basis - shared @ inside, full_matrices=False)
        private.append(left[:, sines**2 > max(least_private, 1e-20)])
        held.append(np.sum(inside**2, axis=0) @ energy / energy.sum())
    return JointSubspaces(
        shared,
        tuple(private),
        eigenvalues,
        np.clip(np.array(held), 0.0, 1.0),
        chance,
        threshold,
        level,
    )


def joint_null(
    d: int,
    sizes: Sequence[int],
    *,
    spectrum: ArrayLike | None = None,
    draws: int,
    seed: int,
) -> Float[np.ndarray, " draws"]:
    """Largest eigenvalues of the mean projector of random subspaces of dimensions `sizes`.

    Uniform (Haar) subspaces, or with a `spectrum` `[m]` the spans of columns from a Gaussian with
    these covariance eigenvalues. Only the products of columns matter, and those of Gaussian
    columns are Wishart, which Bartlett's factor draws without d-dimensional vectors.

    Raises:
        GeometryError: sizes above d, a spectrum of lower rank than the largest, no draws.
    """
    d = count(d, name="d")
    sizes = [count(k, name="k", most=d) for k in sizes]
    draws = count(draws, name="draws")
    roots = None if spectrum is None else spread(spectrum, d=d, k=max(sizes))
    rng = np.random.default_rng(seed)
    total, ends = sum(sizes), np.cumsum(sizes)
    largest = np.empty(draws)
    for i in range(draws):
        if roots is None and d >= total:
            factor = np.tril(rng.standard_normal((total, total)), -1)
            np.fill_diagonal(factor, np.sqrt(rng.chisquare(d - np.arange(total))))
            products = factor @ factor.T
        else:
            columns = rng.standard_normal((d if roots is None else len(roots), total))
            columns = columns if roots is None else roots[:, None] * columns
            products = columns.T @ columns
        # Orthonormalise each block: L⁻¹ W L⁻ᵀ with L the block-diagonal Cholesky factor.
        whitener = np.zeros((total, total))
        for start, end in zip(ends - sizes, ends, strict=True):
            block = slice(start, end)
            whitener[block, block] = np.linalg.inv(np.linalg.cholesky(products[block, block]))
        largest[i] = np.linalg.eigvalsh(whitener @ products @ whitener.T)[-1] / len(sizes)
    return np.clip(largest, 0.0, 1.0)


def _each(bases: Any) -> Any:
    """The bases one by one."""
    if not isinstance(bases, Sequence | np.ndarray):
        raise GeometryError("bases must be an array [V, d, k] or a list of bases [d, k].")
    return bases


def _energies(bases: Any, stack: list[np.ndarray], singular_values: Any) -> list[np.ndarray]:
    """The energy of each column of each basis."""
    if singular_values is None:
        return [np.ones(b.shape[1]) for b in stack]
    given = [finite(s, name=f"singular_values {i}", ndim=1) for i, s in enumerate(singular_values)]
    if [len(s) for s in given] != [b.shape[1] for b in stack]:
        raise GeometryError(
            "singular_values must hold as many numbers for each variety as its basis has columns."
        )
    for i, (basis, made) in enumerate(zip(bases, stack, strict=True)):
        if np.abs(np.asarray(basis, dtype=np.float64) - made).max() > 1e-6:
            raise GeometryError(
                f"basis {i} is not orthonormal, so its singular values belong to no columns; pass "
                "Subspace.basis and Subspace.singular_values."
            )
        if not given[i].any():
            raise GeometryError(f"singular_values {i} are all zero; leave that variety out.")
    return [s**2 for s in given]
