"""The command `isogloss`. Heavy libraries load inside the commands, so help answers at once."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from apps.batch_command import batch
from apps.capture_command import capture
from apps.errors import is_users
from apps.options import (
    Assignments,
    CorpusOption,
    LayersOption,
    ModelOption,
    SitesOption,
    names,
    numbers,
)
from apps.store_commands import store_app
from experiments.registry import EXPERIMENTS, Experiment

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find where a language model keeps its varieties and its alignment, and change it.",
)
run_app = typer.Typer(no_args_is_help=True, help="Run an experiment into a run directory.")
app.add_typer(run_app, name="run")
app.add_typer(store_app, name="store")
app.command()(capture)
app.command()(batch)


def _run_command(experiment: Experiment) -> Callable[..., None]:
    """The command that runs one experiment; all take the same options."""

    def command(
        context: typer.Context,
        model: ModelOption = None,
        corpus: CorpusOption = None,
        standard: Annotated[str | None, typer.Option(help="Which variety is the standard.")] = None,
        sites: SitesOption = None,
        layers: LayersOption = None,
        tokens: Annotated[
            str | None, typer.Option(help="Which token is read: last or mean.")
        ] = None,
        device: Annotated[str | None, typer.Option(help="cpu, cuda, auto.")] = None,
        dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16, auto.")] = None,
        seed: Annotated[int | None, typer.Option(help="Seed of every random step.")] = None,
        store: Annotated[str | None, typer.Option(help="Folder of the activations.")] = None,
        out: Annotated[str | None, typer.Option(help="The run directory itself.")] = None,
        config: Annotated[str | None, typer.Option(help="Settings in TOML.")] = None,
        assign: Assignments = None,
        trust_remote_code: Annotated[
            bool | None,
            typer.Option("--trust-remote-code", help="Run code that the model brings."),
        ] = None,
        quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no summary.")] = False,
        as_json: Annotated[
            bool, typer.Option("--json", help="Last line of output: one JSON object.")
        ] = False,
    ) -> None:
        began = time.perf_counter()
        options = {
            "model": model,
            "corpus": corpus,
            "standard": standard,
            "sites": names(sites),
            "layers": numbers(layers),
            "tokens": tokens,
            "device": device,
            "dtype": dtype,
            "seed": seed,
            "store": store,
            "trust_remote_code": trust_remote_code,
        }
        options |= _by_position(experiment, context.args, options, assign or ())
        settings = experiment.settings.read(config, options=options, assignments=assign or ())
        run = experiment.run(settings, out=out, progress=not quiet)
        if not quiet and not as_json:
            from experiments.compare.report import summary

            print(summary(run.path))
        if as_json:
            record = {
                "run": str(run.path),
                "results": str(run.path / "results.parquet"),
                "seconds": round(time.perf_counter() - began, 2),
            }
            print(json.dumps(record))

    return command


def _by_position(
    experiment: Experiment,
    given: Sequence[str],
    options: Mapping[str, Any],
    assignments: Sequence[str],
) -> dict[str, str]:
    """What was given without a name, as options; other experiments than `diff` take none.

    Raises:
        ConfigError: more or fewer than the experiment takes, or a model that was named too.
    """
    wanted = experiment.positionals
    if not given:
        return {}
    from experiments.settings import ConfigError

    if len(given) != len(wanted):
        raise ConfigError(
            f"{experiment.name} takes {' and '.join(w.upper() for w in wanted)}, and {len(given)} "
            f"{'was' if len(given) == 1 else 'were'} given: {' '.join(given)}."
        )
    told = {text.partition("=")[0].strip() for text in assignments}
    named = next((n for n in wanted if options.get(n) is not None or n in told), None)
    if named:
        place = given[wanted.index(named)]
        raise ConfigError(f"{named.upper()} is given twice, by its name and as {place!r}.")
    return dict(zip(wanted, given, strict=True))


for _experiment in EXPERIMENTS.values():
    _places = " ".join(name.upper() for name in _experiment.positionals)
    run_app.command(
        _experiment.name,
        help=_experiment.about,
        options_metavar=f"[{_places}] [OPTIONS]" if _places else "[OPTIONS]",
        context_settings={"allow_extra_args": bool(_places)},
    )(_run_command(_experiment))


@app.command()
def models() -> None:
    """The embedded models, with what their cards state."""
    import organisms

    for name in organisms.NAMES:
        card = organisms.card(name)
        print(f"organism/{name}  {card.get('about', '')}".rstrip())


@app.command()
def runs(root: Annotated[str, typer.Option(help="Folder of runs.")] = "runs") -> None:
    """The run directories here."""
    found = sorted(Path(root).rglob("config.toml"))
    if not found:
        print(f"No run under {root}; `isogloss run compare` makes one.")
    for config in found:
        state = "done" if (config.parent / "report.md").exists() else "unfinished"
        print(f"{config.parent}  {state}")


@app.command()
def explore(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN | MODEL]",
            help="A run directory, a folder of them (runs if left out), or organism/NAME.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="To ask on the pages; the run's own if left out.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port; Streamlit's default if left out.")] = None,
) -> None:
    """Open the explorer on a run or a model, in the browser, on this machine only."""
    from apps import launch

    raise typer.Exit(launch.explore(launch.target(target, model), port=port))


def _quiet_libraries() -> None:
    """Libraries' own chatter hides ours; set before they load."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def main() -> None:
    """Entry point: exit 0 done, 2 bad input with one sentence, 1 our fault."""
    _quiet_libraries()
    try:
        code = app(standalone_mode=False)
    except Exception as error:
        told = _misuse(error) if hasattr(error, "format_message") else str(error)
        if not (is_users(error) or hasattr(error, "format_message")):
            raise
        if told:
            print(f"isogloss: {told}", file=sys.stderr)
        raise SystemExit(2) from None
    raise SystemExit(code or 0)


def _misuse(error: Any) -> str:
    """A command line that cannot be read, in one sentence; empty where help was printed instead."""
    told = " ".join(error.format_message().split()).rstrip(".")
    command = error.ctx.command_path if getattr(error, "ctx", None) else "isogloss"
    return f"{told}; see {command} --help." if told else ""


if __name__ == "__main__":
    main()
