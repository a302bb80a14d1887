"""The unknowns of Newton's method, what maps them to logits and back, and the preconditioner.

`probes.newton` says what is solved. Where folds are parts of the same rows, K differs among them by
the scale of the features alone: K_f = ZD²Zᵀ over the rows that the fold keeps, D near 1. `Rows` has
ZZᵀ once, and the preconditioner of a fold, (hZZᵀ + λ)⁻¹ over its rows, comes from that of all rows.
So D is left out of it, and of the logits KMr that it gives within a Newton step, which costs a few
iterations; the logits of whole steps and the gradient have D. (Ours.)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from probes.matrices import Strips, inverse, inverse_without

Array = np.ndarray[Any, Any]

#: The preconditioner is made anew when h is off by this factor, or by the second after a step that
#: took more than `_SLOW` iterations.
_STALE, _STALE_AND_SLOW, _SLOW = 40.0, 2.0, 30


class Rows:
    """Rows z [n, d], of which every fold is fitted to a part."""

    def __init__(self, z: Array) -> None:
        self.z, self.gram = z, z @ z.T
        self.down, self.across = Strips(z), Strips(z.T)
        self._last: tuple[tuple[float, float], Array] | None = None

    def inverse(self, h: float, penalty: float) -> Array:
        """(hK + λ)⁻¹; the last is kept."""
        if self._last is None or self._last[0] != (h, penalty):
            self._last = (h, penalty), _inverse(self.gram, h, penalty)
        return self._last[1]


class Part:
    """The rows of one fold, those `kept` and not the `others`, features multiplied by `factor`."""

    def __init__(self, rows: Rows, kept: Array, others: Array, factor: Array) -> None:
        self.rows, self.kept, self.others, self.factor = rows, kept, others, factor

    def pull(self, v: Array) -> Array:
        """v [..., kept] times the rows that are kept: [..., d]."""
        wide = np.zeros((*v.shape[:-1], len(self.rows.z)), v.dtype)
        wide[..., self.kept] = v
        found = self.rows.down.times(wide)
        found *= self.factor
        return found

    def logits(self, w: Array) -> Array:
        """Of weights w [..., d], on all rows, the others too: [..., n]."""
        return self.rows.across.times(w * self.factor)


class Space:
    """What `newton` asks of the unknowns."""

    def __init__(self, penalty: np.floating, level: float) -> None:
        self.penalty, self.level = penalty, level
        self.h, self.slow = 0.0, False

    def prepare(self, h: float) -> None:
        """Makes the preconditioner for h, to a power of 2, unless the one at hand will do."""
        # Where K is not felt beside the penalty, KMr would be lost in rounding.
        h = max(h, 1e-2 * float(self.penalty) / self.level if self.level else h)
        off = max(h / self.h, self.h / h) if self.h else np.inf
        if off > _STALE or (self.slow and off > _STALE_AND_SLOW):
            self.h = 2.0 ** round(np.log2(h))
            self.inverse = Strips(self.invert(self.h))

    def took(self, iterations: int) -> None:
        """Notes whether the last step was a slow one."""
        self.slow = iterations > _SLOW

    def invert(self, h: float) -> Array:
        """(hK + λ)⁻¹."""
        raise NotImplementedError

    def precondition(self, r: Array) -> tuple[Array, Array]:
        """Mr, and its logits."""
        raise NotImplementedError


class ByRow(Space):
    """A weight for each row."""

    def __init__(self, z: Array, penalty: float) -> None:
        self.z, self.gram = z, z @ z.T
        super().__init__(z.dtype.type(penalty), _level(self.gram))

    def invert(self, h: float) -> Array:
        return _inverse(self.gram, h, float(self.penalty))

    def precondition(self, r: Array) -> tuple[Array, Array]:
        v = self.inverse.times(r)
        t = self.penalty * v
        np.subtract(r, t, out=t)
        t *= r.dtype.type(1 / self.h)
        return v, t

    def logits(self, v: Array) -> Array:
        return times(v, self.gram)

    def pull(self, residual: Array) -> Array:
        return residual

    def inner(self, u: Array, v: Array, logits_of_v: Array) -> Array:
        return dots(u, logits_of_v)

    def weights(self, v: Array) -> Array:
        return times(v, self.z)

    def slope(self, r: Array) -> Array:
        return self.weights(r)


class ByRowOfPart(ByRow):
    """A weight for each row of a part of the rows that all folds share."""

    def __init__(self, part: Part, penalty: float) -> None:
        self.part = part
        gram = part.rows.gram
        Space.__init__(self, gram.dtype.type(penalty), _level(gram))

    def invert(self, h: float) -> Array:
        part = self.part
        return inverse_without(part.rows.inverse(h, float(self.penalty)), part.kept, part.others)

    def logits(self, v: Array) -> Array:
        return np.ascontiguousarray(self.part.logits(self.part.pull(v))[..., self.part.kept])

    def weights(self, v: Array) -> Array:
        return self.part.pull(v)


class ByFeature(Space):
    """A weight for each feature."""

    def __init__(self, z: Array, penalty: float) -> None:
        self.gram = z.T @ z
        super().__init__(z.dtype.type(penalty), _level(self.gram))
        self.down, self.across = Strips(z), Strips(z.T)

    def invert(self, h: float) -> Array:
        return _inverse(self.gram, h, float(self.penalty))

    def precondition(self, r: Array) -> tuple[Array, Array]:
        v = self.inverse.times(r)
        return v, self.logits(v)

    def logits(self, v: Array) -> Array:
        return self.across.times(v)

    def pull(self, residual: Array) -> Array:
        return self.down.times(residual)

    def inner(self, u: Array, v: Array, logits_of_v: Array) -> Array:
        return dots(u, v)

    def weights(self, v: Array) -> Array:
        return v

    slope = weights


def times(v: Array, matrix: Array) -> Array:
    """v [..., m] times matrix [m, k], as one product."""
    return (v.reshape(-1, v.shape[-1]) @ matrix).reshape(*v.shape[:-1], matrix.shape[1])


def dots(u: Array, v: Array) -> Array:
    """Inner products [labelings], in f64."""
    k = len(u)
    found = np.matmul(u.reshape(k, 1, -1), v.reshape(k, -1, 1))
    return found.reshape(k).astype(np.float64)


def _level(gram: Array) -> float:
    return float(np.trace(gram)) / len(gram)


def _inverse(gram: Array, h: float, penalty: float) -> Array:
    system = gram.dtype.type(h) * gram
    system.flat[:: len(system) + 1] += gram.dtype.type(penalty)
    return inverse(system)
