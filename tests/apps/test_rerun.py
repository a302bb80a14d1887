"""A run again: what a page may change, where the run goes, and that it is carried out."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from apps import rerun
from apps.rerun import Desk, as_text, changeable, changed, experiment_of, models_of, place_for
from apps.session import EXAMPLE
from experiments.registry import EXPERIMENTS
from experiments.runner import check_out
from experiments.settings import ConfigError, Settings

OFFERED = ["organism/base", "organism/aligned"]
COMPARE = EXPERIMENTS["compare"]


def make(folder: Path, experiment: str = "compare", **settings: object) -> Path:
    folder.mkdir(parents=True)
    EXPERIMENTS[experiment].settings(**settings).write(folder / "config.toml")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make(tmp_path / "runs" / "compare" / "first", corpus="mine.csv", store="there")


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    if desk.run:
        desk.run.child.stop()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_is_left_as_it_was_gives_the_settings_of_the_run(tmp_path: Path, name: str) -> None:
    experiment = EXPERIMENTS[name]
    run = make(tmp_path / "x", name, seed=3, corpus="mine.csv")
    told = {m: tomllib.loads((run / "config.toml").read_text())[m] for m in models_of(experiment)}
    same = changed(experiment, run, as_text(experiment, run), told, OFFERED)
    assert same == experiment.settings(seed=3, corpus="mine.csv")
    assert experiment_of(run) is experiment  # by its settings, since the folder does not say


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_setting_that_may_be_changed_names_a_file(name: str) -> None:
    # The list is by hand: a new text among the settings is kept from pages until it is put here.
    free = changeable(EXPERIMENTS[name])
    fields = EXPERIMENTS[name].settings.model_fields
    texts = {x for x in free if fields[x].annotation is str}
    assert texts == {"standard", "device", "dtype"}
    held = {"corpus", "store", "engine", "trust_remote_code", "task", "examples"}
    assert not held & set(free)


def test_changes_are_taken_and_the_rest_stays(run: Path) -> None:
    told = changed(COMPARE, run, "seed = 7\nk = 2", {"model": "organism/base"}, OFFERED)
    assert (told.seed, told.model, told.corpus) == (7, "organism/base", "mine.csv")
    assert told.model_dump()["k"] == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed = ", "not valid TOML"),
        ("seed = 1\nseed = 2", "not valid TOML"),
        ("sede = 1", "did you mean seed"),
        ("seed = -1", "'seed'"),
        ('k = "many"', "'k'"),
        ("[k]\na = 1", "'k'"),
        ('corpus = "../../secret.csv"', "'corpus' stays"),
        ('store = "elsewhere"', "'store' stays"),
        ('engine = "ndif"', "'engine' stays"),
        ("trust_remote_code = true", "'trust_remote_code' stays"),
        ('text_column = "other"', "'text_column' stays"),
    ],
)
def test_what_a_page_may_not_say_is_one_sentence(run: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        changed(COMPARE, run, text, {"model": "organism/aligned"}, OFFERED)
    assert "\n" not in str(raised.value).strip()


@pytest.mark.parametrize("model", ["../../weights", "gpt2", ""])
def test_a_model_that_is_not_offered_is_refused(run: Path, model: str) -> None:
    with pytest.raises(ConfigError, match="model"):
        changed(COMPARE, run, "", {"model": model}, OFFERED)
    with pytest.raises(ConfigError, match="model"):  # nor by way of the text
        changed(COMPARE, run, f'model = "{model}"', {}, OFFERED)


def test_trust_in_one_models_code_is_none_in_anothers(tmp_path: Path) -> None:
    run = make(tmp_path / "x", trust_remote_code=True, model="mine")
    assert changed(COMPARE, run, "seed = 2", {"model": "mine"}, OFFERED).seed == 2
    with pytest.raises(ConfigError, match="code that its model brings"):
        changed(COMPARE, run, "", {"model": "organism/base"}, OFFERED)


def test_a_config_of_something_else_is_a_sentence(run: Path) -> None:
    (run / "config.toml").write_text("colour = 1")
    with pytest.raises(ConfigError, match="colour"):
        as_text(COMPARE, run)


# Where it goes


def placed(run: Path, root: Path) -> Path:
    place = place_for(COMPARE, run, root, Settings())
    assert place.name.endswith(Settings().digest()) and not place.exists()
    return place.parent


def test_a_run_again_lies_beside_the_run_and_within_the_folder(tmp_path: Path, run: Path) -> None:
    root = tmp_path / "runs"
    assert placed(run, root) == root / "compare"
    assert placed(run, root / "compare") == root / "compare"
    assert placed(make(root / "mine"), root) == root
    assert placed(make(root / "batch" / "grid" / "one"), root) == root / "compare"
    for outside in (EXAMPLE, make(tmp_path / "elsewhere" / "compare" / "one")):
        assert placed(outside, root) == root / "compare"
        assert placed(outside, tmp_path / "not-yet") == tmp_path / "not-yet" / "compare"


def test_no_two_runs_are_given_one_folder(run: Path, tmp_path: Path) -> None:
    seen = set()
    for _ in range(5):
        place = place_for(COMPARE, run, tmp_path / "runs", Settings())
        place.mkdir()
        seen.add(place)
    assert len(seen) == 5


def test_one_run_alone_has_no_room_beside_it(run: Path) -> None:
    with pytest.raises(ConfigError, match="isogloss explore"):
        place_for(COMPARE, run, run, Settings())


# The run itself


def wait(desk: Desk, seconds: float = 120) -> None:
    assert desk.run is not None
    end = time.monotonic() + seconds
    while desk.run.child.alive:
        assert time.monotonic() < end, desk.run.child.lines(9)
        time.sleep(0.05)


@pytest.mark.slow
def test_a_refusal_of_the_command_is_its_sentence_and_leaves_nothing(
    desk: Desk, tmp_path: Path
) -> None:
    patch = EXPERIMENTS["patch"]
    made = desk.begin(patch, patch.settings(corpus="nowhere.csv"), tmp_path / "new")
    assert desk.at_work() and desk.at_work(tmp_path / "new") and not desk.at_work(tmp_path)
    with pytest.raises(ConfigError, match="still under way"):
        desk.begin(patch, patch.settings(), tmp_path / "other")
    wait(desk)
    assert "nowhere.csv" in made.refusal and "\n" not in made.refusal and not made.child.stopped
    assert list(tmp_path.iterdir()) == []
    desk.clear()
    assert desk.run is None and not desk.at_work()


@pytest.mark.slow
def test_a_stopped_run_keeps_its_folder_to_go_on_from(desk: Desk, tmp_path: Path) -> None:
    patch = EXPERIMENTS["patch"]
    settings = patch.settings(model="organism/base", layers=[3], pairs=2, positions=2)
    out = tmp_path / "new"
    made = desk.begin(patch, settings, out)
    end = time.monotonic() + 100
    while not (out / "config.toml").is_file():
        assert made.child.alive and time.monotonic() < end, made.child.lines(9)
        time.sleep(0.01)
    made.child.stop()
    assert made.child.stopped and made.refusal == "" and not (out / "report.md").exists()
    check_out(out, settings)  # as the command does when it is told to go on
    assert patch.settings.read(out / "config.toml") == settings


def test_the_command_is_the_one_a_reader_would_type(tmp_path: Path) -> None:
    told = rerun.command(COMPARE, tmp_path / "c.toml", tmp_path / "out")
    assert told[1:5] == ["-m", "apps.cli", "run", "compare"]
    assert told[5:] == ["--config", str(tmp_path / "c.toml"), "--out", str(tmp_path / "out")]
