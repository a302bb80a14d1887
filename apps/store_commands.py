"""`isogloss store`: look at a store of activations, check it, join several, export one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

store_app = typer.Typer(no_args_is_help=True, help="Look at, check, join or export stores.")

PathArgument = Annotated[str, typer.Argument(metavar="PATH", help="Folder of the store.")]


class ExportFormat(StrEnum):
    """What `isogloss store export` writes."""

    parquet = "parquet"
    numpy = "numpy"
    datasets = "datasets"


@store_app.command()
def info(
    path: PathArgument,
    as_json: Annotated[bool, typer.Option("--json", help="The manifest, as JSON.")] = False,
) -> None:
    """What a store holds, also one that is half written."""
    from activations.manifest import read_manifest

    folder = Path(path)
    manifest = read_manifest(folder)
    if as_json:
        print(json.dumps(manifest))
        return
    for name, told in _facts(folder, manifest):
        print(f"{name:<10}{told}".rstrip())


@store_app.command()
def verify(path: PathArgument) -> None:
    """Compare every file of a store with its digest; each problem is a line."""
    from activations.manifest import problems

    found = problems(Path(path))
    for problem in found:
        print(problem)
    if found:
        print(f"isogloss: {path} is not whole ({len(found)} problems).", file=sys.stderr)
        raise typer.Exit(2)
    print(f"{path}: every shard is whole")


@store_app.command()
def merge(
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new folder.")],
    stores: Annotated[list[str], typer.Argument(metavar="STORE...", help="What to join.")],
) -> None:
    """Join parts of one capture, or captures of different texts that were made alike."""
    from activations.manifest import mending, name_shards, undone
    from activations.merging import merge as join

    merged = join(stores, out)
    for sentence in merged.left_out:
        print(sentence, file=sys.stderr)
    manifest = merged.manifest
    print(f"{manifest['n_rows']:,} rows at {len(manifest['sites'])} sites in {out}")
    if not manifest["complete"]:
        lacks = name_shards(undone(Path(out), manifest), len(manifest["shards"]))
        print(f"It is half written: it lacks {lacks}; {mending(manifest)}.")


@store_app.command()
def export(
    path: PathArgument,
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new file (parquet) or folder.")],
    format: Annotated[
        ExportFormat, typer.Option("--format", help="For which tools.")
    ] = ExportFormat.parquet,
) -> None:
    """Write a store's rows and states as Parquet, NumPy or a Hugging Face dataset."""
    from activations import ActivationStore
    from activations.exporting import export as write

    store = ActivationStore.open(path)
    write(store, out, format.value)
    print(f"{len(store):,} rows at {len(store.sites)} sites in {out}")


def _facts(folder: Path, manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What people want to know of a store, as (name, text) lines."""
    from activations.manifest import mending, name_shards, undone

    whole = "complete" if manifest["complete"] else "half written"
    revision = f", revision {manifest['revision']}" if manifest.get("revision") else ""
    texts = sum(shard["examples"] for shard in manifest["shards"])
    yield "store", f"{folder}, {whole}, format {manifest['format']}"
    yield "model", f"{manifest.get('model')}{revision}, run in {manifest.get('model_dtype')}"
    yield "texts", f"{texts:,} of {manifest.get('corpus')}"
    yield "tokens", str(manifest.get("tokens"))
    name = "sites"
    for sites in _sites(manifest["sites"]):
        yield name, sites
        name = ""
    yield "dtype", manifest["dtype"]
    yield "rows", f"{manifest['n_rows']:,}"
    for line in _rows(folder, manifest):
        yield "", line
    lacks, n = undone(folder, manifest), len(manifest["shards"])
    told = f"; it lacks {name_shards(lacks, n)}; {mending(manifest)}" if lacks else ""
    yield "shards", f"{n - len(lacks)} of {n}{told}"
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    yield "on disk", f"{size / 1e6:,.1f} MB"


def _sites(shapes: Mapping[str, list[int]]) -> Iterator[str]:
    """Sites with the shape of a row, those of all layers on one line."""
    from activations import layer_of

    layers: dict[tuple[str, str], list[int]] = {}
    for site, shape in shapes.items():
        layer = layer_of(site)
        kind = site.replace(f"blocks.{layer}.", "blocks.{}.", 1)
        layers.setdefault((kind, str(shape)), []).append(layer)
    for (kind, shape), numbers in layers.items():
        yield f"{kind.replace('{}', _ranges(numbers))}  {shape}"


def _ranges(numbers: list[int]) -> str:
    """As `0-3,7`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)


def _rows(folder: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """How many rows each variety and behaviour has; the rows are known before any state is."""
    from activations import StoreError
    from activations.manifest import mending
    from activations.rows import read_rows

    try:
        columns = ["variety", "behaviour"]
        file = folder / "rows.parquet"
        read = read_rows(file, columns, manifest["n_rows"], mend=mending(manifest))
    except StoreError as error:
        yield str(error)
        return
    counted = read.to_pandas().groupby(columns).size()
    for (variety, behaviour), n in counted.items():
        yield f"{n:>10,}  {', '.join(filter(None, (variety, behaviour))) or 'no variety'}"
