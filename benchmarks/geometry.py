"""Geometry: all layers and pairs at once, against loops over pairs.

`vs_cka_loop`: debiased CKA of every two layers, against one pair at a time in feature form.
`vs_scipy_loop`: principal angles of every two varieties at every layer, against
`scipy.linalg.subspace_angles` in a loop. `vs_null_loop`: the overlaps of those pairs, each beside
random subspaces of its dimensions, against a loop that draws two bases by QR for every overlap.
Most of that ratio is that subspaces of equal dimensions have one null, which is drawn once;
`vs_null_loop_shared` is against a loop that knows this too.

Loops that would take minutes are timed on a sample and extrapolated, which is printed. All is f64
on both sides, on the same number of threads, warm, and the results are compared first.

    python -m benchmarks.geometry [--quick] [--json FILE] [--threads 1]
"""

from __future__ import annotations

from benchmarks.machine import arguments, machine, timed, write_record  # isort: skip

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import scipy.linalg
from threadpoolctl import threadpool_limits

from geometry import (
    angle_matrix,
    cka_matrix,
    haar_overlap,
    haar_overlap_sample,
    overlap,
    overlap_matrix,
)

#: rows, features, layers, varieties, dimensions of a subspace, null draws
FULL = {"n": 800, "d": 1024, "layers": 24, "varieties": 8, "k": 7, "draws": 1000}
QUICK = {"n": 200, "d": 128, "layers": 6, "varieties": 4, "k": 3, "draws": 100}


def hsic(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased HSIC of centred x and y from features alone (Song et al. 2012, eq. 5)."""
    n = len(x)
    x_squares, y_squares = np.einsum("nd,nd->n", x, x), np.einsum("nd,nd->n", y, y)
    x_sums, y_sums = x @ x.sum(axis=0) - x_squares, y @ y.sum(axis=0) - y_squares
    both = np.sum((x.T @ y) ** 2) - x_squares @ y_squares
    ends = x_sums.sum() * y_sums.sum() / ((n - 1) * (n - 2)) - 2 * x_sums @ y_sums / (n - 2)
    return float((both + ends) / (n * (n - 3)))


def pair_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Debiased CKA of one pair, as a loop over pairs would compute it."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))


def cka(sizes: dict[str, int], runs: int, sample: int) -> dict[str, Any]:
    """Every two layers, a layer with itself and both orders among them, as the loop does."""
    n, d, layers = sizes["n"], sizes["d"], sizes["layers"]
    x = states(n, d, layers)
    every = [(a, b) for a in range(layers) for b in range(layers)]
    some = [every[i] for i in np.linspace(0, len(every) - 1, min(sample, len(every))).astype(int)]
    ours = cka_matrix(x)
    worst = max(float(abs(ours[a, b] - pair_cka(x[a], x[b]))) for a, b in some)
    seconds, peaks = timed(
        {
            "loop over pairs": lambda: [pair_cka(x[a], x[b]) for a, b in some],
            "isogloss": lambda: cka_matrix(x),
        },
        runs=runs,
    )
    return finished("vs_cka_loop", seconds, peaks, len(every), len(some), worst)


def angles(sizes: dict[str, int], runs: int) -> dict[str, Any]:
    """Every two varieties at every layer; the bases are not orthonormal for either side."""
    d, layers, v, k = (sizes[s] for s in ("d", "layers", "varieties", "k"))
    bases = np.random.default_rng(0).standard_normal((layers, v, d, k))
    every = [(i, a, b) for i in range(layers) for a, b in combinations(range(v), 2)]

    def loop() -> list[np.ndarray]:
        return [scipy.linalg.subspace_angles(bases[i, a], bases[i, b]) for i, a, b in every]

    ours = angle_matrix(bases)
    worst = max(
        float(np.abs(ours[i, a, b] - theirs[::-1]).max())
        for (i, a, b), theirs in zip(every, loop(), strict=True)
    )
    seconds, peaks = timed(
        {"loop over pairs": loop, "isogloss": lambda: angle_matrix(bases)}, runs=runs
    )
    return finished("vs_scipy_loop", seconds, peaks, len(every), len(every), worst)


def nulls(sizes: dict[str, int], runs: int, sample: int) -> dict[str, Any]:
    """Every two varieties at every layer, and for each the mean of its null and its p."""
    d, layers, v, k, draws = (sizes[s] for s in ("d", "layers", "varieties", "k", "draws"))
    bases = np.random.default_rng(0).standard_normal((layers, v, d, k))
    every = [(i, a, b) for i in range(layers) for a, b in combinations(range(v), 2)]
    some = [every[i] for i in np.linspace(0, len(every) - 1, min(sample, len(every))).astype(int)]
    few = max(1, draws // 10)

    def draw(rng: np.random.Generator) -> float:
        one, two = (np.linalg.qr(rng.standard_normal((d, k)))[0] for _ in range(2))
        return float(np.sum((one.T @ two) ** 2)) / k

    def loop() -> list[tuple[float, float, np.ndarray]]:
        rng, found = np.random.default_rng(0), []
        for i, a, b in some:
            one, two = np.linalg.qr(bases[i, a])[0], np.linalg.qr(bases[i, b])[0]
            value = float(np.sum((one.T @ two) ** 2)) / k
            null = np.array([draw(rng) for _ in range(few)])
            found.append((value, float((1 + np.sum(null >= value)) / (1 + few)), null))
        return found

    def ours() -> tuple[np.ndarray, np.ndarray]:
        # Subspaces of equal dimensions have one null, whatever the layer.
        values = overlap_matrix(bases)
        null = np.sort(haar_overlap_sample(d, k, k, draws=draws, seed=0))
        above = draws - np.searchsorted(null, values, side="left")
        return values, (1 + above) / (1 + draws)

    values, _ = ours()
    worst = max(float(abs(values[i, a, b] - overlap(bases[i, a], bases[i, b]))) for i, a, b in some)
    moments = haar_overlap(d, k, k)
    theirs = np.concatenate([null for _, _, null in loop()])
    own = haar_overlap_sample(d, k, k, draws=draws, seed=0)
    print(
        f"  mean of the null: {moments.mean:.5f} in theory, {theirs.mean():.5f} in the loop, "
        f"{own.mean():.5f} in ours"
    )

    def shared() -> np.ndarray:
        rng = np.random.default_rng(0)
        null = np.array([draw(rng) for _ in range(draws)])
        qs = [[np.linalg.qr(basis)[0] for basis in layer] for layer in bases]
        found = np.array([np.sum((qs[i][a].T @ qs[i][b]) ** 2) / k for i, a, b in every])
        return (1 + (null >= found[:, None]).sum(axis=1)) / (1 + draws)

    seconds, peaks = timed(
        {"loop over pairs": loop, "isogloss": ours, "loop, one null": shared}, runs=runs
    )
    whole = len(every) * draws
    result = finished("vs_null_loop", seconds, peaks, whole, len(some) * few, worst)
    result["ratio_shared"] = seconds["loop, one null"] / seconds["isogloss"]
    print(f"  vs_null_loop_shared {result['ratio_shared']:6.1f}     a loop that draws one null")
    return result


def states(n: int, d: int, layers: int) -> np.ndarray:
    """Layers that drift, with a spectrum as uneven as that of activations."""
    rng = np.random.default_rng(0)
    found = np.empty((layers, n, d))
    found[0] = rng.standard_normal((n, d)) / np.sqrt(np.arange(1, d + 1))
    for i in range(1, layers):
        step = rng.standard_normal((n, d)) / np.sqrt(np.arange(1, d + 1))
        found[i] = found[i - 1] + 0.3 * step
    return found


def finished(
    name: str, seconds: dict[str, float], peaks: dict[str, int], whole: int, part: int, worst: float
) -> dict[str, Any]:
    """Extrapolate the loop, print, and return what belongs into the record."""
    loop = seconds["loop over pairs"] * whole / part
    ratio = loop / seconds["isogloss"]
    said = f", extrapolated from {part:,} of {whole:,}" if part < whole else ""
    print(f"  loop over pairs {loop:10.3f} s{said}")
    print(f"  isogloss        {seconds['isogloss']:10.3f} s, {peaks['isogloss'] / 1e6:,.0f} MB")
    print(f"  {name:15s} {ratio:10.1f}     largest difference {worst:.1e}")
    return {
        "seconds": {"loop": loop, "isogloss": seconds["isogloss"]},
        "ratio": ratio,
        "loop_share_timed": part / whole,
        "max_difference": worst,
        "peak_bytes": peaks["isogloss"],
    }


def growth(sizes: dict[str, int], runs: int) -> list[dict[str, Any]]:
    """Seconds of each of ours as one size doubles and the others stay."""
    rows = []
    print("\n  size        CKA, s   angles, s   overlaps with null, s")
    for name in ("n", "d", "layers"):
        for factor in (0.25, 0.5, 1, 2):
            now = {**sizes, name: max(2, int(sizes[name] * factor))}
            d, v, k = now["d"], now["varieties"], now["k"]
            x = states(now["n"], d, now["layers"])
            bases = np.random.default_rng(0).standard_normal((now["layers"], v, d, k))
            ways: dict[str, Callable[[], object]] = {
                "cka": lambda x=x: cka_matrix(x),
                "angles": lambda bases=bases: angle_matrix(bases),
                "null": lambda bases=bases, d=d, k=k: (
                    overlap_matrix(bases),
                    haar_overlap_sample(d, k, k, draws=sizes["draws"], seed=0),
                ),
            }
            seconds, _ = timed(ways, runs=runs)
            rows.append({"size": name, "value": now[name], **seconds})
            print(
                f"  {name:6s} {now[name]:5d} {seconds['cka']:9.3f} {seconds['angles']:11.4f} "
                f"{seconds['null']:14.4f}"
            )
    return rows


def main() -> None:
    """Run, print, and write what was asked for."""
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=1, help="of BLAS, for both sides")
    options = parser.parse_args()
    sizes = QUICK if options.quick else FULL
    runs = 1 if options.quick else 3
    told = f"{machine()}; numpy {np.__version__}, f64, {options.threads} BLAS thread(s), warm"
    record: dict[str, Any] = {"machine": told, "sizes": sizes, "runs": {}}
    print(told)
    print(", ".join(f"{name} {value}" for name, value in sizes.items()))
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "vs_cka_loop": lambda: cka(sizes, runs, 10),
        "vs_scipy_loop": lambda: angles(sizes, runs),
        "vs_null_loop": lambda: nulls(sizes, runs, 10),
    }
    with threadpool_limits(options.threads):
        for name, part in parts.items():
            print(f"\n{name}")
            record["runs"][name] = part()
        record["growth"] = growth(sizes, 1)
    record["ratios"] = {name: found["ratio"] for name, found in record["runs"].items()}
    record["ratios"]["vs_null_loop_shared"] = record["runs"]["vs_null_loop"]["ratio_shared"]
    write_record(options.json, record)


if __name__ == "__main__":
    main()
