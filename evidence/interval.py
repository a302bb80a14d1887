"""Intervals from one figure for each group: Student's t, and t corrected for skewness.

Everything here rests on G figures: group means, or the pseudo-values of a delete-one-group
jackknife, of which a smooth statistic of all groups is, nearly, the mean.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from scipy import special

from evidence.estimate import EvidenceError

Ends = tuple[float, float]
MeanMethod = Literal["skewness", "t"]

#: The most skewness / √G that is corrected for where figures have no bounds. Beyond it the cubic
#: of the transform is flat, and an end would run to ten standard errors with nothing gained.
MOST_SKEWED = 0.4
#: A sample of a long tail shows too little of its skewness (1.5 where it is 5, for 20 lognormal
#: groups), so that it is taken for more. Found by simulation (docs/statistics.md).
_UNSEEN = 1.5


class Interval(NamedTuple):
    """Both ends, p for the null that was given (else NaN), and words on what may be wrong."""

    low: float
    high: float
    p: float
    warning: str = ""

    def said(self, method: str) -> str:
        """The method in words, with the warning."""
        return f"{method}; {self.warning}" if self.warning else method


def group_interval(
    centre: float,
    figures: np.ndarray,
    *,
    level: float,
    null: float = np.nan,
    bounds: Ends | None = None,
    method: MeanMethod = "skewness",
) -> Interval:
    """The interval around `centre` of the mean of `figures` `[G]`.

    With standard error e = s / √G and skewness γ of the figures, T = (centre - mean) / e is not
    t-distributed where γ is not 0, but Hall's (1992) monotone transform of it,
    g(T) = T + (γ/√G)(T²/3 + 1/6) + (γ²/G) T³/27, nearly is; the interval holds the means for which
    |g(T)| is below the quantile of t with G - 1 degrees of freedom. γ is known badly where G is
    small, and too small where the sample has missed a long tail. So

    - figures without bounds get the hull of this interval, with 1.5 γ/√G, at most 0.4, for γ/√G,
      and the plain t interval: no end comes nearer for a skewness that may be chance;
    - figures within bounds get what this interval shares with the exact binomial one (Clopper and
      Pearson 1934) of G groups each at one bound, the widest that bounded figures can be.

    Figures that all lie at one bound have no spread; the exact limit then is the other end.

    Raises:
        EvidenceError: an unknown method.
    """
    if method not in ("skewness", "t"):
        raise EvidenceError(f"The method is {method!r}: choose 'skewness' or 't'.")
    count = len(figures)
    error = float(figures.std(ddof=1) / np.sqrt(count)) if count > 1 else 0.0
    if error <= 1e-14 * float(np.abs(figures).max()):
        return _without_spread(centre, count, level, null, bounds)
    seen = 0.0 if method == "t" else skewness(figures) / np.sqrt(count)
    lean = seen
    if bounds is None:
        lean = float(np.clip(_UNSEEN * seen, -MOST_SKEWED, MOST_SKEWED))
    reach = float(special.stdtrit(count - 1, (1 + level) / 2))
    low, high = centre - error * _inverse(reach, lean), centre - error * _inverse(-reach, lean)
    distance = (centre - null) / error
    p = _two_sided(_transformed(distance, lean), count - 1)
    warning = ""
    if bounds is None:
        low, high = min(low, centre - error * reach), max(high, centre + error * reach)
        p = max(p, _two_sided(distance, count - 1))
        if abs(seen) > MOST_SKEWED:
            warning = (
                f"perhaps too narrow, since the groups are very skewed ({seen * count**0.5:.1f})"
            )
    else:
        low, high = max(low, bounds[0]), min(high, bounds[1])
        if method == "skewness":
            exact = _binomial(centre, count, level, null, bounds)
            low, high = max(low, exact.low), min(high, exact.high)
            p = float(np.fmin(p, exact.p))
    return Interval(float(low), float(high), p, warning)


def _without_spread(
    centre: float, count: int, level: float, null: float, bounds: Ends | None
) -> Interval:
    if bounds is not None and any(abs(centre - bound) <= 1e-12 for bound in bounds):
        exact = _binomial(centre, count, level, null, bounds)
        return exact._replace(warning=f"exact limit for {count} groups without an exception")
    p = np.nan if np.isnan(null) else float(np.isclose(centre, null, rtol=1e-12, atol=0))
    return Interval(centre, centre, p)


def _binomial(centre: float, count: int, level: float, null: float, bounds: Ends) -> Interval:
    """Clopper and Pearson's interval for a share of `count` groups, which need not be whole."""
    span = bounds[1] - bounds[0]
    hits = float(np.clip((centre - bounds[0]) / span, 0.0, 1.0)) * count
    tail = (1 - level) / 2
    low, high, p = 0.0, 1.0, np.nan
    share = float(np.clip((null - bounds[0]) / span, 0.0, 1.0))
    above = below = 1.0
    if hits > 1e-9:
        low = float(special.betaincinv(hits, count - hits + 1, tail))
        above = float(special.betainc(hits, count - hits + 1, share))
    if hits < count - 1e-9:
        high = float(special.betaincinv(hits + 1, count - hits, 1 - tail))
        below = float(special.betaincc(hits + 1, count - hits, share))
    if not np.isnan(null):
        p = min(1.0, 2 * min(above, below))
    return Interval(bounds[0] + span * low, bounds[0] + span * high, p)


def skewness(figures: np.ndarray) -> float:
    """Skewness with the usual correction for few figures; 0 for fewer than three."""
    count = len(figures)
    if count < 3:
        return 0.0
    spread = figures - figures.mean()
    plain = float(np.mean(spread**3) / np.mean(spread**2) ** 1.5)
    return plain * np.sqrt(count * (count - 1)) / (count - 2)


def _two_sided(distance: float, freedom: int) -> float:
    return float(2 * special.stdtr(freedom, -abs(distance)))


def _transformed(distance: float, lean: float) -> float:
    return distance + lean * (distance**2 / 3 + 1 / 6) + lean**2 * distance**3 / 27


def _inverse(reached: float, lean: float) -> float:
    """The T whose transform is `reached`."""
    if abs(lean) < 1e-7:
        return reached - lean * (reached**2 / 3 + 1 / 6)
    return float((np.cbrt(1 + lean * (reached - lean / 6)) - 1) * 3 / lean)
