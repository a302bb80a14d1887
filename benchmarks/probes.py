"""Probes: every fold and labelling of a layer at once, against loops of scikit-learn fits.

`vs_sklearn_loop`: the logistic probes of all layers and folds, against one
`LogisticRegression` after another: f64, lbfgs at tol 1e-5, since its default leaves coefficients
some percent off. Both sides' largest differences from newton-cg in f64 at tol 1e-12 are printed.
`vs_sklearn_loop_one_core` is the same with one of our threads, `vs_best_sklearn_loop` against the
fastest scikit-learn solver of about the same precision, newton-cg in f32, and
`vs_sklearn_loop_controls` with five control labelings beside the labels, as `probe_sites` has them.

`vs_sklearn_full_analysis`: `probe_sites`, with five control labelings and 100 permutations for p,
against a loop that refits the logistic probe to each of them. Our p-values are those of a ridge
reader on the same folds, and most of the ratio is that; `vs_sklearn_same_analysis` is against a
loop that does the same: logistic fits to labels and controls, `Ridge` refitted to permutations.

Loops are timed on a sample and extrapolated, which is printed; each has one BLAS thread, which is
its best on shared cores. Both sides centre and scale by the training rows of each fold. Seconds
are medians of interleaved runs; seconds of processor time stand beside them.

    python -m benchmarks.probes [--quick] [--json FILE] [--workers N]
"""

from __future__ import annotations

from benchmarks.machine import arguments, machine, write_record  # isort: skip

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy
import sklearn
from sklearn.linear_model import LogisticRegression, Ridge
from threadpoolctl import threadpool_limits

from probes import control_labels, fit_folds, grouped_folds, probe_sites
from probes.batched import TOL, FoldFits
from probes.controls import permuted_codes
from probes.parallel import cores, each

#: layers, rows, rows in a group, features, classes, folds, control labelings, permutations
FULL = {
    "layers": 24,
    "n": 800,
    "group": 8,
    "d": 1024,
    "classes": 8,
    "folds": 5,
    "controls": 5,
    "permutations": 100,
}
QUICK = {**FULL, "layers": 4, "n": 200, "d": 256, "permutations": 20}

Seconds = dict[str, tuple[float, float]]


class Problem:
    """Layers of states, labels in groups, folds, and labelings that mean nothing."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        n, d, classes = sizes["n"], sizes["d"], sizes["classes"]
        rng = np.random.default_rng(0)
        turn = np.linalg.qr(rng.standard_normal((d, d)))[0]
        self.code = np.arange(n) % classes
        self.groups = np.arange(n) // sizes["group"]
        self.layers = []
        for _ in range(sizes["layers"]):
            x = rng.standard_normal((n, d))
            x += rng.standard_normal((self.groups.max() + 1, d))[self.groups]
            x += 0.2 * rng.standard_normal((classes, d))[self.code]
            spectrum = 1 / np.sqrt(np.arange(1, d + 1))
            self.layers.append(((x * spectrum) @ turn.T).astype(np.float32))
        self.folds = grouped_folds(self.code, self.groups, n_folds=sizes["folds"], seed=0)
        self.controls = np.stack(
            [control_labels(self.code, self.groups, seed=[0, i]) for i in range(sizes["controls"])]
        )
        self.permuted = permuted_codes(self.code, self.groups, draws=sizes["permutations"], seed=0)
        every = [
            (layer, fold) for layer in range(len(self.layers)) for fold in range(sizes["folds"])
        ]
        few = np.linspace(0, len(every) - 1, min(6, len(every))).astype(int)
        self.sample = [every[i] for i in few]
        self.fits = len(every)

    def scaled(self, layer: int, fold: int, dtype: type) -> tuple[np.ndarray, np.ndarray]:
        """Training rows as every probe here is given them, and their numbers."""
        train, _ = self.folds[fold]
        x = self.layers[layer][train].astype(np.float64)
        return ((x - x.mean(axis=0)) / x.std(axis=0)).astype(dtype), train


def sklearn_fits(
    problem: Problem, labels: np.ndarray, solver: str, tol: float, dtype: type
) -> list[LogisticRegression]:
    """The sample, one fit after another; standardising is part of it, as it is of ours."""
    fits = []
    for layer, fold in problem.sample:
        z, train = problem.scaled(layer, fold, dtype)
        probe = LogisticRegression(solver=solver, tol=tol, max_iter=5000)
        fits.append(probe.fit(z, labels[train]))
    return fits


def ridge_fits(problem: Problem, labels: np.ndarray) -> list[Ridge]:
    """The sample, by ridge regression to one-hot labels."""
    fits = []
    for layer, fold in problem.sample:
        z, train = problem.scaled(layer, fold, np.float64)
        alpha = float(np.mean(np.sum(z * z, axis=1)))
        fits.append(Ridge(alpha=alpha).fit(z, np.eye(labels.max() + 1)[labels[train]]))
    return fits


def ours(problem: Problem, labelings: np.ndarray, workers: int) -> list[FoldFits]:
    """Every layer and fold."""
    return each(lambda x: fit_folds(x, labelings, problem.folds), problem.layers, workers=workers)


def interleaved(ways: Mapping[str, Callable[[], object]], *, runs: int) -> Seconds:
    """Median (wall, processor) seconds of each way; every round runs each once, after a warm-up."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(runs + 1):
        for name, way in ways.items():
            began, busy = time.perf_counter(), time.process_time()
            way()
            took = time.perf_counter() - began, time.process_time() - busy
            if turn:
                found[name].append(took)
    return {
        name: (statistics.median(w for w, _ in f), statistics.median(c for _, c in f))
        for name, f in found.items()
    }


def differences(problem: Problem, fits: list[FoldFits]) -> dict[str, float]:
    """Largest difference of a coefficient of standardised states from the reference, by solver."""
    exact = sklearn_fits(problem, problem.code, "newton-cg", 1e-12, np.float64)
    solvers = {
        "lbfgs f64, tol 1e-5": sklearn_fits(problem, problem.code, "lbfgs", 1e-5, np.float64),
        "newton-cg f32, tol 1e-5": sklearn_fits(
            problem, problem.code, "newton-cg", 1e-5, np.float32
        ),
    }
    found = {
        name: max(float(np.abs(a.coef_ - b.coef_).max()) for a, b in zip(own, exact, strict=True))
        for name, own in solvers.items()
    }
    worst = 0.0
    for (layer, fold), other in zip(problem.sample, exact, strict=True):
        train, _ = problem.folds[fold]
        scale = problem.layers[layer][train].astype(np.float64).std(axis=0)
        worst = max(worst, float(np.abs(fits[layer].coef[0, fold] * scale - other.coef_).max()))
    print(
        f"  largest coefficient {max(np.abs(e.coef_).max() for e in exact):.2f}; differences from "
        f"newton-cg f64, tol 1e-12, over {len(exact)} fits:"
    )
    found["isogloss"] = worst
    for name, value in found.items():
        print(f"    {name:28s} {value:.1e}")
    return found


def logistic(problem: Problem, workers: int, runs: int) -> dict[str, Any]:
    """The probes alone, without and with control labelings."""
    labels, many = problem.code[None], np.vstack([problem.code[None], problem.controls])
    began = time.perf_counter()
    fits = ours(problem, labels, workers)
    first = time.perf_counter() - began
    wrong = differences(problem, fits)
    print(f"  fits that took double precision: {sum(f.refitted for f in fits)} of {problem.fits}")

    def loop(labels: np.ndarray, solver: str, dtype: type) -> Callable[[], object]:
        return lambda: sklearn_fits(problem, labels, solver, 1e-5, dtype)

    seconds = interleaved(
        {
            "loop, lbfgs f64": loop(problem.code, "lbfgs", np.float64),
            "loop, newton-cg f32": loop(problem.code, "newton-cg", np.float32),
            "loop, lbfgs f64, a control": loop(problem.controls[0], "lbfgs", np.float64),
            "isogloss": lambda: ours(problem, labels, workers),
            "isogloss, one core": lambda: ours(problem, labels, 1),
            "isogloss, with controls": lambda: ours(problem, many, workers),
        },
        runs=runs,
    )
    whole = extrapolated(seconds, problem)
    told(whole, f"extrapolated from {len(problem.sample)} of {problem.fits} fits")
    print(f"  {'isogloss, first call':28s} {first:10.2f} s")
    all_labelings = whole["loop, lbfgs f64"][0]
    all_labelings += len(problem.controls) * whole["loop, lbfgs f64, a control"][0]
    fastest = whole["isogloss"][0]
    ratios = {
        "vs_sklearn_loop": whole["loop, lbfgs f64"][0] / fastest,
        "vs_sklearn_loop_one_core": whole["loop, lbfgs f64"][0] / whole["isogloss, one core"][0],
        "vs_best_sklearn_loop": whole["loop, newton-cg f32"][0] / fastest,
        "vs_sklearn_loop_controls": all_labelings / whole["isogloss, with controls"][0],
    }
    busy = whole["loop, lbfgs f64"][1] / whole["isogloss"][1]
    print(f"  by processor time, vs_sklearn_loop would be {busy:.1f} for each core of ours")
    return {"ratios": ratios, "seconds": whole, "first_call": first, "differences": wrong}


def analysis(problem: Problem, workers: int, runs: int) -> dict[str, Any]:
    """Probes, controls, intervals and p-values."""
    sites = {f"blocks.{i}.hook_resid_post": x for i, x in enumerate(problem.layers)}
    draws, controls = len(problem.permuted), len(problem.controls)
    labels, permuted = problem.code, problem.permuted[0]
    seconds = interleaved(
        {
            "loop, the labels": lambda: sklearn_fits(problem, labels, "lbfgs", 1e-5, np.float64),
            "loop, a control": lambda: sklearn_fits(
                problem, problem.controls[0], "lbfgs", 1e-5, np.float64
            ),
            "loop, a permutation": lambda: sklearn_fits(
                problem, permuted, "lbfgs", 1e-5, np.float64
            ),
            "loop, a permutation by ridge": lambda: ridge_fits(problem, permuted),
            "isogloss": lambda: probe_sites(
                sites,
                problem.code,
                problem.groups,
                n_folds=len(problem.folds),
                control_draws=controls,
                permutations=draws,
                workers=workers,
                seed=0,
            ),
        },
        runs=runs,
    )
    whole = extrapolated(seconds, problem)
    told(whole, f"one labelling, extrapolated from {len(problem.sample)} fits")
    fitted = whole["loop, the labels"][0] + controls * whole["loop, a control"][0]
    refits = fitted + draws * whole["loop, a permutation"][0]
    same = fitted + draws * whole["loop, a permutation by ridge"][0]
    fits = problem.fits * (1 + controls + draws)
    print(f"  {'loop of refits':28s} {refits:10.1f} s, extrapolated to {fits:,} logistic fits")
    print(f"  {'loop, permutations by ridge':28s} {same:10.1f} s, extrapolated likewise")
    ratios = {
        "vs_sklearn_full_analysis": refits / whole["isogloss"][0],
        "vs_sklearn_same_analysis": same / whole["isogloss"][0],
    }
    return {"ratios": ratios, "seconds": {**whole, "loop of refits": (refits, float("nan"))}}


def extrapolated(seconds: Seconds, problem: Problem) -> Seconds:
    """Seconds of the loops for all fits, from those for the sample."""
    part = problem.fits / len(problem.sample)
    return {
        name: (wall * part, busy * part) if name.startswith("loop") else (wall, busy)
        for name, (wall, busy) in seconds.items()
    }


def told(seconds: Seconds, how: str) -> None:
    """Seconds in a table."""
    for name, (wall, busy) in seconds.items():
        said = f", {how}" if name.startswith("loop") else ""
        print(f"  {name:28s} {wall:10.2f} s, processor {busy:8.2f} s{said}")


def growth(sizes: Mapping[str, int], workers: int) -> list[dict[str, float]]:
    """Seconds of ours as one size grows and the others stay; half the layers, to be brief."""
    base = {**sizes, "layers": max(2, sizes["layers"] // 2)}
    rows = []
    print("\n  size          labels, s   with controls, s")
    for name in ("n", "d", "layers"):
        for factor in (0.25, 0.5, 1):
            value = max(1, int(base[name] * factor))
            problem = Problem({**base, name: value})
            many = np.vstack([problem.code[None], problem.controls])
            took = interleaved(
                {
                    "labels": lambda p=problem: ours(p, p.code[None], workers),
                    "controls": lambda p=problem, m=many: ours(p, m, workers),
                },
                runs=1,
            )
            rows.append({"size": name, "value": value, **{k: s for k, (s, _) in took.items()}})
            print(f"  {name:6s} {value:6d} {took['labels'][0]:11.3f} {took['controls'][0]:14.3f}")
    return rows


def main() -> None:
    """Run, print, and write what was asked for."""
    parser = arguments(__doc__)
    parser.add_argument("--workers", type=int, default=cores(), help="threads of ours")
    options = parser.parse_args()
    sizes = QUICK if options.quick else FULL
    runs = 1 if options.quick else 3
    machine_told = (
        f"{machine()}; numpy {np.__version__}, scipy {scipy.__version__}, scikit-learn "
        f"{sklearn.__version__}; loops: one process, one BLAS thread; isogloss: one process, "
        f"{options.workers} threads with one BLAS thread each, f32 to a gradient of {TOL:.0e} per "
        "row; nothing is compiled, so warm and cold differ by the first call alone"
    )
    print(machine_told)
    print(", ".join(f"{name} {value}" for name, value in sizes.items()))
    problem = Problem(sizes)
    record: dict[str, Any] = {"machine": machine_told, "sizes": sizes, "ratios": {}, "seconds": {}}
    with threadpool_limits(1):
        for part in (logistic, analysis):
            print(f"\n{part.__name__}")
            found = part(problem, options.workers, runs)
            for name, ratio in found["ratios"].items():
                print(f"  {name:28s} {ratio:10.1f}")
            record["ratios"] |= found["ratios"]
            record["seconds"] |= {
                f"{part.__name__}: {name}": s for name, (s, _) in found["seconds"].items()
            }
            if "differences" in found:
                record["max_difference"] = found["differences"]["isogloss"]
                record["differences"] = found["differences"]
        record["growth"] = growth(sizes, options.workers)
    write_record(options.json, record)


if __name__ == "__main__":
    main()
