"""`isogloss capture`: keep a model's activations in a store, or say what that would cost."""

from __future__ import annotations

import json
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apps.options import Assignments, CorpusOption, LayersOption, names, numbers

if TYPE_CHECKING:
    from corpora import Corpus


class Engine(StrEnum):
    """What runs the model."""

    auto = "auto"
    transformer_lens = "transformer_lens"
    nnsight = "nnsight"


class WorkerEngine(StrEnum):
    """Where workers live."""

    process = "process"
    ray = "ray"


def capture(
    model: Annotated[str, typer.Option(help="organism/NAME, a folder, a GGUF file, or a hub id.")],
    store: Annotated[str | None, typer.Option(help="Folder of the store.")] = None,
    corpus: CorpusOption = None,
    sites: Annotated[str, typer.Option(help="Sites, comma-separated.")] = "resid_post",
    layers: LayersOption = None,
    tokens: Annotated[
        str, typer.Option(help="last, mean or all; of a span in columns NAME_*, last:NAME.")
    ] = "last",
    store_dtype: Annotated[
        str, typer.Option(help="What is kept: float32, float16, bfloat16.")
    ] = "float32",
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what it would cost; do nothing.")
    ] = False,
    engine: Annotated[Engine, typer.Option(help="What runs the model.")] = Engine.auto,
    remote: Annotated[
        bool, typer.Option("--remote", help="Run on NDIF, with engine nnsight.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, auto.")] = "auto",
    device_map: Annotated[
        str | None, typer.Option(help="auto: spread the weights over all devices.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of the model: float32, bfloat16, float16, auto.")
    ] = "auto",
    token_budget: Annotated[
        int | None, typer.Option(help="Most tokens in one pass; by device if left out.")
    ] = None,
    pack: Annotated[
        bool | None, typer.Option("--pack/--pad", help="Lay texts end to end, or pad them.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that share the work; 0: this one.")] = 0,
    engine_workers: Annotated[
        WorkerEngine, typer.Option(help="Workers on this machine, or on Ray.")
    ] = WorkerEngine.process,
    devices: Annotated[
        str | None, typer.Option(help="Of the workers, in turn: cuda:0,cuda:1.")
    ] = None,
    ray_address: Annotated[str, typer.Option(help="Of a running Ray cluster.")] = "",
    assign: Assignments = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that the model brings.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Last line of output: one JSON object.")
    ] = False,
) -> None:
    """Keep a model's activations on texts in a store on disk; a killed capture goes on.

    A corpus needs a text column here and nothing else.
    With --set, text_column, variety_column, group_column and behaviour_column name the columns.
    """
    began = time.perf_counter()
    from experiments.settings import ConfigError

    if store is None and not plan:
        raise ConfigError("Say where the activations go with --store DIR, or ask for the --plan.")
    texts = _texts(corpus, assign or [])
    from activations import Workers, open_model
    from activations import capture as keep

    opened = open_model(
        model,
        engine=engine.value,
        remote=remote,
        device=device,
        device_map=device_map,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    crew = None
    if workers:
        crew = Workers(
            workers,
            engine=engine_workers.value,
            devices=tuple(names(devices) or ()),
            address=ray_address,
        )
    options: dict[str, Any] = {
        "sites": names(sites) or [],
        "layers": numbers(layers),
        "tokens": tokens,
        "dtype": store_dtype,
        "token_budget": token_budget,
        "pack": pack,
    }
    if plan:
        cost = keep(opened, texts, plan=True, **options)
        print(json.dumps(vars(cost)) if as_json else cost)
        return
    kept = keep(opened, texts, store=store, workers=crew, progress=not quiet, **options)
    seconds = round(time.perf_counter() - began, 2)
    if as_json:
        record = {"store": store, "rows": kept.manifest["n_rows"], "seconds": seconds}
        print(json.dumps(record))
    else:
        print(f"{kept.manifest['n_rows']} rows at {len(kept.sites)} sites in {store}")


def _texts(corpus: str | None, assignments: list[str]) -> Corpus:
    from corpora import read_corpus
    from experiments.settings import ConfigError

    columns: dict[str, str] = {}
    known = ("text", "variety", "group", "behaviour")
    for text in assignments:
        key, equals, value = text.partition("=")
        name = key.strip().removesuffix("_column")
        if not equals or name not in known or name == key.strip():
            allowed = ", ".join(f"{k}_column" for k in known)
            raise ConfigError(f"--set takes NAME=COLUMN with {allowed} here, not {text!r}.")
        columns[name] = value.strip()
    if corpus:
        return read_corpus(corpus, comparable=False, **columns)
    import organisms

    return organisms.bundled_corpus()
