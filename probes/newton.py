"""Newton's method for many logistic regressions on the same rows.

Minimises Σᵢ [lse(fᵢ) - f_{i,yᵢ}] + (λ/2)‖W‖², f = ZWᵀ + b, b free, for several labelings y of the
rows Z [n, d] together; with two classes f is the one logit of the second and W its one vector, as
in scikit-learn. Where n <= d the unknowns are a weight for each row, W = AᵀZ, and in the inner
product ⟨A, B⟩ = tr(AᵀKB), K = ZZᵀ, the gradient is P - Y + λA and the Hessian takes V to
S(KV) + λV, where S(t) = P∘(t - Σ_c P∘t) (Böhning 1992). Otherwise the unknowns are W.

The Newton equations are solved by conjugate gradients with the preconditioner M = (hK + λ)⁻¹, h
near the mean of p(1 - p), which all labelings share. It also gives KMr = (r - λMr)/h, so that an
iteration costs one product with an n × n matrix and none with K. (This use of M is ours; how
folds share K and M is said in `probes.spaces`.)

Arrays are [labelings, classes, rows], rows last, so that what is done to every row of a class runs
through memory in order, in the precision of Z.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from probes.spaces import ByFeature, ByRow, ByRowOfPart, Part, dots

Array = np.ndarray[Any, Any]

#: Newton steps, iterations within one of them, and evaluations of one line search, at most.
_STEPS, _ITERATIONS, _SEARCHES = 30, 60, 15
#: Share of the residual that a step leaves, but for the last.
_FORCING = 0.1
#: h at the start, in terms of that for even odds. Fits to more features than rows end far below.
_EASE = 0.05


@dataclass(frozen=True, eq=False)
class Solutions:
    """What was found for each labelling.

    Attributes:
        weights: W. intercepts: b. gradient: its largest element, per row, at these.
        steps: of Newton's method. products: with M or K, for all labelings together.
    """

    weights: Float[np.ndarray, "labelings classes d"]
    intercepts: Float[np.ndarray, "labelings classes"]
    gradient: Float[np.ndarray, " labelings"]
    steps: int
    products: int


def solve(
    z: Float[np.ndarray, "n d"] | Part,
    targets: Float[np.ndarray, "labelings classes n"],
    penalty: float,
    *,
    tol: float,
) -> Solutions:
    """The weights of every labelling, to a gradient of `tol` per row where the precision allows.

    `z` is the rows, or a `Part` of rows that other fits share, which takes a weight for each row.
    A labelling that is there is set aside; one that will not get there comes with the best point
    it had. `targets` are 0 and 1, of the dtype of `z`, one row of them where there are two
    classes; every class must occur.
    """
    space: Any
    if isinstance(z, Part):
        space = ByRowOfPart(z, penalty)
    else:
        space = (ByRow if len(z) <= z.shape[1] else ByFeature)(z, penalty)
    count, classes, n = targets.shape
    live, products, step = np.arange(count), 1, 0
    now = _start(space, targets)
    unknowns = now.a.copy()
    intercepts, gradient = np.zeros((count, classes)), np.full(count, np.inf)
    for step in range(_STEPS + 1):
        off = now.y - now.p
        r, rb = space.pull(off) - space.penalty * now.a, off.sum(axis=2, keepdims=True)
        left = np.maximum(_largest(space.slope(r)), _largest(rb)) / n
        better = left < gradient[live]
        unknowns[live[better]] = now.a[better]
        intercepts[live[better]] = now.b[better, :, 0]
        gradient[live[better]] = left[better]
        going = left > tol  # not where it is NaN
        if step == _STEPS or not going.any():
            break
        if not going.all():
            live, now, r, rb = live[going], now.of(going), r[going], rb[going]
        # No more than brings the last step to the tolerance, the gradient being linear in it.
        rest = np.clip(0.5 * tol / left[going], _FORCING, 0.5)
        v, vb, used = _newton_step(space, now, r, rb, rest)
        products += used + 1
        t = space.logits(v)
        now = _moved(space, now, v, vb, t, -space.inner(r, v, t) - dots(rb, vb))
    return Solutions(space.weights(unknowns), intercepts, gradient, step, products)


@dataclass(frozen=True, eq=False)
class _Point:
    """Where the labelings stand: unknowns, intercepts, ZWᵀ, probabilities; and their targets."""

    a: Array
    b: Array
    f: Array
    p: Array
    y: Array

    def of(self, which: Array) -> _Point:
        return _Point(self.a[which], self.b[which], self.f[which], self.p[which], self.y[which])


def _start(space: Any, y: Array) -> _Point:
    """The best point along a ridge regression to the labels, from the odds of the classes."""
    even = 0.25 if y.shape[1] == 1 else 1 / y.shape[1]
    share = y.mean(axis=2, keepdims=True)
    if y.shape[1] == 1:
        b = np.log(share / (1 - share))
    else:
        b = np.log(share)
        b -= b.mean(axis=1, keepdims=True)
    space.prepare(_EASE * even)
    r = space.pull(y - share)
    v, _ = space.precondition(r)
    t = space.logits(v)
    zero = np.zeros_like(y)
    here = _Point(np.zeros_like(v), b, zero, zero + share, y)
    # A whole step can overshoot to where the loss is flat, so this search is a narrow one.
    return _moved(space, here, v, np.zeros_like(b), t, -space.inner(r, v, t), rest=0.01)


def _newton_step(
    space: Any, now: _Point, r: Array, rb: Array, rest: Array
) -> tuple[Array, Array, int]:
    """The step in unknowns and intercepts, by conjugate gradients; and the products it took.

    A share `rest` of the residual, of each labelling, is left.
    """
    p, real = now.p, now.p.dtype.type
    spread = np.mean(p - p * p, axis=(1, 2), dtype=np.float64)
    space.prepare(float(np.exp(np.mean(np.log(spread + 1e-12)))))
    level = real(1 / (space.h * p.shape[2]))
    v, vb = np.zeros_like(r), np.zeros_like(rb)
    z, t = space.precondition(r)
    zb = level * rb
    size = first = space.inner(r, z, t) + dots(rb, zb)
    q, tq, qb = z, t, zb
    going, used = size > 0, 1
    for _ in range(_ITERATIONS):
        used += 1
        bent = _curvature(p, tq + qb)
        hb = bent.sum(axis=2, keepdims=True)
        hq = space.pull(bent)
        hq += space.penalty * q
        pace = _ratio(size, space.inner(hq, q, tq) + dots(hb, qb)) * going
        pace = pace.astype(real)[:, None, None]
        v += pace * q
        vb += pace * qb
        hq *= pace
        r = r - hq
        rb = rb - pace * hb
        z, t = space.precondition(r)
        zb = level * rb
        new = space.inner(r, z, t) + dots(rb, zb)
        # Where rounding has the better of it the residual grows, and no product helps.
        going &= (new > rest**2 * first) & (new < 100 * first)
        if not going.any():
            break
        turn = _ratio(new, size).astype(real)[:, None, None]
        q *= turn
        q += z
        tq *= turn
        tq += t
        qb, size = zb + turn * qb, new
    space.took(used)
    return v, vb, used


def _moved(
    space: Any, now: _Point, v: Array, vb: Array, t: Array, steep: Array, *, rest: float = 0.1
) -> _Point:
    """The point along a step where `rest` of its slope is left, sought for each labelling.

    `steep` is the slope at its start. Further on it is the sum of what has been added, since the
    difference of loss and penalty would drown in rounding.
    """
    real = now.p.dtype.type
    change, start = t + vb, now.f + now.b
    bend = space.penalty * space.inner(v, v, t)
    low, high = np.zeros(len(v)), np.full(len(v), np.inf)
    pace = tried = np.ones(len(v))
    p = now.p
    for _ in range(_SEARCHES):
        pace = tried
        p = _probabilities(start + pace.astype(real)[:, None, None] * change)
        slope = steep + dots(change, p - now.p) + pace * bend
        far = np.abs(slope) > rest * np.abs(steep)
        if not far.any():
            break
        curve = dots(_curvature(p, change), change) + bend
        low = np.where(slope < 0, np.maximum(low, pace), low)
        high = np.where(slope > 0, np.minimum(high, pace), high)
        middle = np.where(np.isinf(high), 2 * pace, (low + high) / 2)
        tried = pace - _ratio(slope, curve)
        tried = np.where((tried > low) & (tried < high), tried, middle)
        tried = np.where(far, tried, pace)
    s = pace.astype(real)[:, None, None]
    return _Point(now.a + s * v, now.b + s * vb, now.f + s * t, p, now.y)


def _probabilities(f: Array) -> Array:
    if f.shape[1] == 1:
        # e to the 80th is finite in single precision.
        return 1 / (1 + np.exp(np.minimum(-f, f.dtype.type(80))))
    p = np.exp(f - f.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return p


def _curvature(p: Array, t: Array) -> Array:
    """The Hessian of the loss in the logits, applied to t."""
    s = p * t
    s -= p * (s if p.shape[1] == 1 else s.sum(axis=1, keepdims=True))
    return s


def _largest(u: Array) -> Array:
    return np.abs(u).max(axis=(1, 2))


def _ratio(u: Array, v: Array) -> Array:
    """u / v, and 0 where v is not above 0: there is nothing left to gain."""
    return np.divide(u, v, out=np.zeros_like(u), where=v > 0)
