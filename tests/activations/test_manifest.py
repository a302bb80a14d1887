"""A store is begun, continued and finished by any number of writers, and loses nothing valid."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from activations import ActivationStore, StoreError
from activations.atomic import file_sha256
from activations.manifest import begin, finish, missing, problems, read_manifest, undone
from activations.shards import record_path, shard_path, write_shard

from .made_stores import Made, files, made


def keep(source: Made, folder: Path, numbers: list[int]) -> None:
    capture = read_manifest(folder)["capture"]
    for number in numbers:
        write_shard(folder, number, source.shard(number), capture=capture)


def test_the_manifest_is_written_at_the_beginning_and_at_the_end_alone(tmp_path):
    source = made()
    begun = source.begin(tmp_path)
    file = tmp_path / "manifest.json"
    told = file.read_bytes()
    assert json.loads(told) == begun and not begun["complete"]
    assert begun["n_rows"] == len(pd.read_parquet(tmp_path / "rows.parquet"))
    keep(source, tmp_path, [2, 0, 3])
    assert file.read_bytes() == told
    with pytest.raises(StoreError, match=r"lacks 1 of 4 shards \(1\); run the same capture"):
        finish(tmp_path, begun)
    assert undone(tmp_path, begun) == [1]
    keep(source, tmp_path, [1])
    ended = finish(tmp_path, begun)
    assert json.loads(file.read_bytes()) == ended and ended["complete"]
    assert not list((tmp_path / "shards").glob("*.json"))
    for number, shard in enumerate(ended["shards"]):
        one = shard_path(tmp_path, number)
        assert shard["bytes"] == one.stat().st_size and shard["sha256"] == file_sha256(one)
        assert shard["rows"] == source.manifest["shards"][number]["rows"]
    assert missing(tmp_path, ended) == [] and undone(tmp_path, ended) == []


def test_what_a_killed_worker_left_unfinished_goes_when_the_others_have_ended(tmp_path):
    source = made()
    begun = source.begin(tmp_path)
    keep(source, tmp_path, [0, 1, 2, 3])
    program = (
        "import sys; from pathlib import Path; from activations.atomic import write_whole\n"
        "def blocks():\n    yield b'half'\n    import os; os._exit(1)\n"
        "write_whole(Path(sys.argv[1]), blocks())"
    )
    for place in (shard_path(tmp_path, 2), tmp_path / "rows.parquet"):
        subprocess.run([sys.executable, "-c", program, str(place)], check=False)
    assert len(list(tmp_path.rglob("*.partial"))) == 2
    finish(tmp_path, begun)
    assert not list(tmp_path.rglob("*.partial"))


def test_two_processes_may_end_the_same_capture_at_once(tmp_path, monkeypatch):
    """The other ends it after this one has read the manifest, and takes the records with it."""
    source = made()
    begun = source.begin(tmp_path)
    keep(source, tmp_path, [0, 1, 2, 3])

    def meanwhile(folder, found):
        monkeypatch.undo()
        finish(folder, begun)
        return undone(folder, found)

    monkeypatch.setattr("activations.manifest.undone", meanwhile)
    assert finish(tmp_path, begun)["complete"]
    assert problems(tmp_path) == []


def test_the_same_capture_has_the_same_name_wherever_it_is_made(tmp_path):
    ids = [made().begin(tmp_path / name)["capture"] for name in "ab"]
    other = [
        made(seed=1).begin(tmp_path / "c")["capture"],
        made(model_digest="others").begin(tmp_path / "d")["capture"],
        made(shards=3).begin(tmp_path / "e")["capture"],
    ]
    assert ids[0] == ids[1] and len({ids[0], *other}) == 4


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"model_digest": "x"}, "other weights;"),
        ({"model_dtype": "torch.float16"}, "other precision of the forward pass;"),
        ({"corpus_digest": "x"}, "other texts;"),
        ({"tokens": "last"}, "other token rule;"),
        ({"dtype": "bfloat16"}, "other dtype;"),
        ({"rendered": True}, "other chat template;"),
        ({"sites": {"blocks.9": [5]}}, "other sites;"),
        ({"positions_digest": "x"}, "other positions;"),
        ({"tokens": "mean", "positions_digest": "x"}, "other token rule;"),
        ({"corpus_digest": "x", "model_digest": "x"}, "other weights and other texts;"),
    ],
)
def test_another_capture_is_refused_by_the_name_of_what_differs(tmp_path, facts, words):
    made().write(tmp_path)
    before = files(tmp_path)
    with pytest.raises(StoreError, match=f"was made with {words} name another folder"):
        made(**facts).begin(tmp_path)
    assert files(tmp_path) == before


def test_other_tokens_of_the_same_texts_are_refused(tmp_path):
    source = made()
    source.write(tmp_path, 0)
    source.rows["token_id"] += 1
    with pytest.raises(StoreError, match="was made with other tokens;"):
        source.begin(tmp_path)


def test_the_plan_on_disk_is_kept(tmp_path):
    source = made()
    source.write(tmp_path, 1)
    n = len(source.rows)
    found = begin(
        tmp_path, {**source.manifest, "shards": [{"rows": n, "examples": 11}]}, source.rows
    )
    assert found["shards"] == source.manifest["shards"]
    assert missing(tmp_path, found) == [0, 2, 3]


def test_a_plan_that_does_not_hold_together_is_refused(tmp_path):
    source = made()
    with pytest.raises(StoreError, match="shards' rows do not add up"):
        begin(tmp_path / "s", source.manifest, source.rows.iloc[1:])
    with pytest.raises(StoreError, match="need a column 'variety'"):
        begin(tmp_path / "s", source.manifest, source.rows.drop(columns="variety"))
    assert not (tmp_path / "s").exists()


def test_what_is_no_store_is_left_alone(tmp_path):
    source = made()
    (tmp_path / "file").write_text("a thesis")
    with pytest.raises(StoreError, match="is a file; name a folder"):
        source.begin(tmp_path / "file")
    with pytest.raises(StoreError, match=r"cannot be made at .*file"):
        source.begin(tmp_path / "file" / "s")
    for name in ("chapter.txt", "rows.parquet", "shards/00000.safetensors", "notes.partial"):
        folder = tmp_path / name.replace("/", "-")
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("a thesis")
        with pytest.raises(StoreError, match="is not empty and not a store"):
            source.begin(folder)
        assert files(folder) == {name: b"a thesis"}
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "manifest.json").write_text('{"format": 1, "complete": true}')
    with pytest.raises(StoreError, match="of format 1, and this version reads format 2"):
        source.begin(tmp_path / "old")


# Damage


def test_only_what_is_broken_is_made_again(tmp_path):
    source = made(shards=6)
    source.write(tmp_path / "whole")
    source.write(tmp_path / "s")
    whole, folder = files(tmp_path / "whole"), tmp_path / "s"
    shard_path(folder, 1).unlink()
    shard_path(folder, 3).write_bytes(shard_path(folder, 4).read_bytes())
    data = shard_path(folder, 5).read_bytes()
    shard_path(folder, 5).write_bytes(data[:-1] + bytes([data[-1] ^ 8]))
    kept = {k: shard_path(folder, k).stat().st_mtime_ns for k in (0, 2, 4)}
    found = source.begin(folder)
    assert missing(folder, found) == [1, 3, 5]
    # From here on it says that it is half written, so that a kill now hides nothing.
    with pytest.raises(StoreError, match="half written"):
        ActivationStore.open(folder)
    again = source.begin(folder)
    assert not again["complete"] and missing(folder, again) == [1, 3, 5]
    keep(source, folder, [3])
    assert missing(folder, again) == [1, 5]
    keep(source, folder, [1, 5])
    finish(folder, found)
    assert files(folder) == whole
    assert kept == {k: shard_path(folder, k).stat().st_mtime_ns for k in kept}


def test_a_half_written_store_keeps_what_is_whole(tmp_path):
    source = made(shards=6)
    source.write(tmp_path, 0, 1, 2, 3)
    record_path(tmp_path, 0).unlink()  # a file without a record
    shard_path(tmp_path, 1).unlink()  # a record without its file
    shard_path(tmp_path, 2).write_bytes(shard_path(tmp_path, 2).read_bytes()[:-1])
    assert missing(tmp_path, source.begin(tmp_path)) == [0, 1, 2, 4, 5]
    told = "\n".join(problems(tmp_path))
    assert "half written: it lacks 4 of 6 shards (0, 1, 4, 5); run the same capture" in told
    assert "00000.safetensors has no record" in told
    assert "00001.safetensors is missing" in told
    assert "00002.safetensors is truncated" in told
    assert told.count("\n") == 3


def test_rows_are_made_again_where_they_are_lost(tmp_path):
    source = made()
    source.write(tmp_path)
    rows = tmp_path / "rows.parquet"
    good = rows.read_bytes()
    for bad in (None, b"", good[:-1], good[:-40] + b"\0" + good[-39:]):
        rows.unlink() if bad is None else rows.write_bytes(bad)
        assert len(problems(tmp_path)) == 1 and "rows.parquet" in problems(tmp_path)[0]
        found = source.begin(tmp_path)
        assert rows.read_bytes() == good
        assert found["complete"] and missing(tmp_path, found) == []
    ActivationStore.open(tmp_path).verify()


def test_rows_written_by_another_version_of_parquet_are_as_good(tmp_path):
    source = made()
    source.write(tmp_path)
    rows, manifest = tmp_path / "rows.parquet", tmp_path / "manifest.json"
    pd.read_parquet(rows).to_parquet(rows, compression="gzip")
    older = {**json.loads(manifest.read_text()), "rows_sha256": file_sha256(rows)}
    manifest.write_text(json.dumps(older))
    assert source.begin(tmp_path) == older
    ActivationStore.open(tmp_path).verify()
    rows.unlink()
    assert source.begin(tmp_path)["rows_sha256"] == file_sha256(rows)
    ActivationStore.open(tmp_path).verify()


def test_verification_names_every_problem(tmp_path):
    source = made()
    source.write(tmp_path)
    assert problems(tmp_path) == []
    (tmp_path / "rows.parquet").unlink()
    shard_path(tmp_path, 1).unlink()
    shard_path(tmp_path, 9).write_bytes(b"")
    found = problems(tmp_path)
    assert [line.split("/")[-1] for line in found] == [
        "rows.parquet is missing; capture again to mend it.",
        "00001.safetensors is missing; capture again to mend it.",
        "00009.safetensors is no shard of this store; remove it.",
    ]
    with pytest.raises(StoreError, match=r"rows\.parquet is missing.* \(2 more: isogloss store"):
        ActivationStore.open(tmp_path).verify()


# Kills


@pytest.mark.parametrize("after", range(12))
def test_a_writer_killed_between_any_two_writes_is_taken_up(tmp_path, monkeypatch, after):
    """Each file is renamed into place; the writer dies just before the one numbered `after`."""
    source = made(shards=3)
    source.write(tmp_path / "whole")
    folder, real, done = tmp_path / "s", Path.replace, []

    class KilledError(BaseException):
        pass

    def replace(self, target):
        if len(done) == after:
            raise KilledError
        done.append(target)
        return real(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", replace)
        patched.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # nor clean up
        try:
            source.write(folder)
        except KilledError:
            with pytest.raises(StoreError, match=r"half written|no store"):
                ActivationStore.open(folder)
    for partial in folder.rglob("*.partial"):  # as if its process were gone
        node = partial.name.split(".")[-2].rsplit("-", 1)[0]
        partial.rename(
            partial.with_name(f"{partial.name.split('.')[0]}.{node}-{2**22 + 1}.partial")
        )
    source.write(folder)
    assert files(folder) == files(tmp_path / "whole")


_WRITER = """
import sys
from pathlib import Path
from activations.manifest import finish, missing
from activations.shards import write_shard
from tests.activations.made_stores import made
source, folder = made(texts=300, shards=200), Path(sys.argv[1])
manifest = source.begin(folder)
for number in missing(folder, manifest):
    write_shard(folder, number, source.shard(number), capture=manifest["capture"])
finish(folder, manifest)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills as POSIX does")
def test_processes_killed_without_warning_leave_a_store_that_goes_on(tmp_path):
    source = made(texts=300, shards=200)
    source.write(tmp_path / "whole")
    folder, root = tmp_path / "s", Path(__file__).parents[2]
    command = [sys.executable, "-c", _WRITER, str(folder)]
    for target in (0, 60):
        with subprocess.Popen(command, cwd=root) as process:
            while not _begun(folder) or len(list((folder / "shards").glob("*.json"))) < target:
                assert process.poll() is None, "the writer ended before it could be killed"
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
        assert len(missing(folder, source.begin(folder))) <= 200 - target
        assert not list(folder.rglob("*.partial"))
    subprocess.run(command, check=True, cwd=root)
    assert files(folder) == files(tmp_path / "whole")


def _begun(folder: Path) -> bool:
    return (folder / "manifest.json").exists()
