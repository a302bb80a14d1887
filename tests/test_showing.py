"""What objects show of themselves in a notebook: their figures, escaped, and nothing dear."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from activations import ActivationStore, open_model
from corpora import Corpus
from evidence import Estimate
from experiments.runner import Run
from experiments.settings import Settings
from geometry import Subspace
from interventions import DoseResponse, Outcome, PatchSweep, PathSweep
from probes import ProbeResult

BAD = "<script>x</script>"


def store() -> ActivationStore:
    class Unread:
        """Fails as soon as rows or states are asked for."""

        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"{name} was read")

    sites = {f"blocks.{layer}.hook_resid_post": [8] for layer in range(40)}
    told = {"model": BAD, "corpus": "c", "tokens": "last", "n_rows": 7, "sites": sites}
    return ActivationStore(told, Unread())  # type: ignore[arg-type]


def outcome(values: list[float]) -> Outcome:
    return Outcome("loss", np.array(values), np.array(["a", "b"]), variety=BAD)


def objects(tmp_path: Path) -> dict[str, tuple[Any, list[str]]]:
    where = {"way": "denoise", "head": -1, "pair": 0}
    patched = pd.DataFrame([{**where, "site": BAD, "position": 0, "value": 0.625}])
    path = pd.DataFrame([{**where, "sender": BAD, "receiver": "output", "value": 0.375}])
    estimate = Estimate(0.9, 0.8, 0.95, n=60, null=0.5, p=0.01, unit=BAD, method=BAD)
    eye = np.eye(9)[:, :7]
    return {
        "Estimate": (estimate, ["0.90", "[0.80, 0.95]", "60", "0.50", "0.01"]),
        "Subspace": (
            Subspace(eye, np.zeros(9), np.arange(7, 0, -1.0), site="s", provenance={"from": BAD}),
            ["7 of 9", "7, 6, 5, 4, 3, 2, …"],
        ),
        "Corpus": (
            Corpus(
                pd.DataFrame(
                    {
                        "text": [BAD, "b"],
                        "variety": ["u", BAD],
                        "group": [1, 1],
                        "behaviour": ["", ""],
                    }
                )
            ),
            ["2 texts"],
        ),
        "ActivationStore": (store(), ["[7, 8]", "blocks.39.hook_resid_post", "memory"]),
        "ProbeResult": (
            ProbeResult(BAD, 1, estimate, Estimate(0.11), 0.4, 0.125, np.zeros(3)),
            ["0.90 [0.80, 0.95]", "0.11", "0.12"],
        ),
        "PatchSweep": (PatchSweep(patched, patched), ["0.62", "1 pairs"]),
        "PathSweep": (PathSweep(path, path), ["0.38", "output"]),
        "DoseResponse": (
            DoseResponse((1.0,), (outcome([1.0, 3.0]),), ((outcome([2.0, 4.0]),),)),
            ["plain", "2 [", "3 ["],
        ),
        "Run": (Run(tmp_path / "r", Settings(corpus=BAD, seed=3)), ["unfinished", "seed", "3"]),
    }


NAMES = [
    "Estimate", "Subspace", "Corpus", "ActivationStore", "ProbeResult", "PatchSweep", "PathSweep",
    "DoseResponse", "Run",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_an_object_shows_its_figures_and_escapes_what_users_wrote(
    name: str, tmp_path: Path
) -> None:
    made, wanted = objects(tmp_path)[name]
    shown = made._repr_html_()
    for figure in wanted:
        assert figure in shown, figure
    assert BAD not in shown and "&lt;script&gt;" in shown
    for tag in ("table", "tr", "td", "th", "p"):
        assert len(re.findall(f"<{tag}[ >]", shown)) == shown.count(f"</{tag}>"), tag
    assert len(shown) < 6000
    assert name in repr(made) and len(repr(made)) < 700


def test_a_model_shows_its_shape_and_its_edits() -> None:
    model = open_model("organism/base")
    shown = model._repr_html_()
    for fact in ("organism/base", "128", "float32 on cpu"):
        assert fact in shown
