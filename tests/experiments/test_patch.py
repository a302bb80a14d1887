"""`isogloss run patch`: what it measures, its control by hand, and a run that was killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from activations import open_model
from evidence import Estimate
from experiments import ConfigError, patch
from experiments.inputs import read_inputs
from experiments.patch import PatchSettings, run_patch
from experiments.patch_report import sentences
from experiments.results import as_frame, row

SMALL: dict[str, Any] = {
    "model": "organism/base",
    "varieties": ["tarn"],
    "layers": [1, 3],
    "pairs": 4,
    "positions": 4,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("patch") / "run"
    return run_patch(PatchSettings(**SMALL, heads=True), out=out, progress=False).path


@pytest.fixture(scope="module")
def results(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "results.parquet")


def cells(frame: pd.DataFrame, measure: str, **where: Any) -> pd.DataFrame:
    chosen = frame["measure"] == measure
    for column, value in ({"control": ""} | where).items():
        chosen &= frame[column] == value
    assert chosen.any(), (measure, where)
    return frame[chosen]


def test_the_last_token_after_the_last_block_closes_all_of_the_gap(results: pd.DataFrame) -> None:
    found = cells(results, "recovered_fraction", layer=3, position=0)
    assert sorted(found["edit"]) == ["patch(arden→tarn)", "patch(tarn→arden)"]
    np.testing.assert_allclose(found["value"], 1.0, atol=1e-6)
    assert set(cells(results, "recovered_fraction", position=0)["n"]) == {4}


def test_pooling_one_dialect_changes_nothing(results: pd.DataFrame) -> None:
    for control in ("", "shuffled_pairs"):
        own = cells(results, "recovered_fraction", control=control)
        pooled = cells(results, "recovered_fraction_pooled", control=control)
        np.testing.assert_array_equal(own["value"], pooled["value"])


def test_states_of_other_sentences_against_two_plain_runs(results: pd.DataFrame) -> None:
    """After the last block a patch of the last token is the other sentence's own prediction."""
    settings = PatchSettings(**SMALL)
    pairs = patch.parallel(read_inputs(settings), "tarn", 4, 0)
    model = open_model("organism/base")

    def end(text: str) -> torch.Tensor:
        return model.logits(torch.tensor([model.encode(text)]))[0, -1].double().log_softmax(-1)

    def kl(p: torch.Tensor, q: torch.Tensor) -> float:
        return float((p.exp() * (p - q)).sum())

    own = [end(standard) for _, _, standard in pairs]
    base = [end(dialect) for _, dialect, _ in pairs]
    patched = sum(kl(own[i], own[i - 1]) for i in range(4))
    gap = sum(kl(own[i], base[i]) for i in range(4))
    where = {"layer": 3, "position": 0, "edit": "patch(arden→tarn)"}
    found = cells(results, "recovered_fraction", control="shuffled_pairs", **where)
    assert float(found["value"].iloc[0]) == pytest.approx(1 - patched / gap, abs=1e-4)


def test_every_head_has_a_row(results: pd.DataFrame) -> None:
    found = cells(results, "head_recovered_fraction", variety="dialects")
    assert sorted(zip(found["layer"], found["position"], strict=True)) == [
        (layer, head) for layer in (1, 3) for head in range(4)
    ]


def test_the_run_directory_is_whole(folder: Path) -> None:
    kept = {path.name for path in folder.iterdir()}
    assert kept == {
        "config.toml",
        "results.parquet",
        "figures",
        "report.md",
        "report.html",
        "environment.json",
        "log.txt",
    }
    stems = {path.stem for path in (folder / "figures").glob("*.png")}
    wanted = {"into_dialects", "into_standard", "shuffled", "heads_denoise", "heads_noise"}
    assert stems == wanted == {path.stem for path in (folder / "figures").glob("*.html")}
    report = (folder / "report.md").read_text()
    assert "of the gap is closed" in report
    assert "made by a grammar" in report.split("## Read with care")[1]


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.2, 0.5, "a good part of what is carried is the variety"),
        (-0.5, -0.1, "another one's leads away"),
        (-0.2, 0.4, "so what is carried belongs to the sentence."),
        (-0.9, 1.2, "which leaves open whether the variety or the sentence is carried"),
    ],
)
def test_what_other_sentences_show_follows_their_interval(
    low: float, high: float, said: str
) -> None:
    at: dict[str, Any] = {"site": "blocks.3.hook_resid_post", "layer": 3, "position": 0}
    at |= {"variety": "dialects", "reference": "arden", "edit": "patch(arden→dialects)"}
    made = as_frame(
        [
            row("recovered_fraction_pooled", Estimate(1.0, 0.9, 1.0, n=20), **at),
            row(
                "recovered_fraction_pooled",
                Estimate((low + high) / 2, low, high, n=20),
                control="shuffled_pairs",
                **at,
            ),
        ]
    )
    assert sum(said in told for told in sentences(made, "arden", ("denoise",))) == 1


def test_a_killed_run_goes_on_where_its_sweep_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = PatchSettings(**SMALL | {"way": "denoise", "layers": [3]})
    whole = run_patch(settings, out=tmp_path / "whole", progress=False)
    with monkeypatch.context() as broken:
        broken.setattr(patch, "_best", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_patch(settings, out=tmp_path / "killed", progress=False)
    assert "ZeroDivisionError" in (tmp_path / "killed" / "log.txt").read_text()
    done = tmp_path / "killed" / "stages" / "sweeps" / "denoise-own" / "00000.parquet"
    before = done.stat().st_mtime_ns
    seen = []
    measure_rows = patch._rows
    monkeypatch.setattr(
        patch, "_rows", lambda *a: seen.append(done.stat().st_mtime_ns) or measure_rows(*a)
    )
    again = run_patch(settings, out=tmp_path / "killed", progress=False)
    assert set(seen) == {before}
    frames = [pd.read_parquet(run.path / "results.parquet") for run in (whole, again)]
    pd.testing.assert_frame_equal(*frames)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"varieties": ["mars"]}, "'mars' is no dialect of the corpus, which has tarn"),
        ({"layers": [99]}, "99"),
    ],
)
def test_what_cannot_be_patched_is_said_and_leaves_nothing(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run_patch(PatchSettings(**SMALL | changes), out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_corpus_of_requests_alone_is_refused(tmp_path: Path) -> None:
    lines = [f"say {i},g{i},{'harmful' if i % 2 else 'harmless'}" for i in range(8)]
    (tmp_path / "c.csv").write_text("text,group,behaviour\n" + "\n".join(lines) + "\n")
    settings = PatchSettings(**SMALL | {"corpus": str(tmp_path / "c.csv"), "varieties": []})
    with pytest.raises(ConfigError, match="fewer than two varieties"):
        run_patch(settings, out=tmp_path / "run", progress=False)
