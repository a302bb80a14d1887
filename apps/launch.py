"""Start the explorer as a Streamlit server that only this machine can reach."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

#: The names under which the explorer answers.
LOCAL = ("127.0.0.1", "localhost", "::1")


def target(told: str | None, model: str | None = None) -> list[str]:
    """What the pages are given for the command's TARGET: a folder, a model, or neither.

    The run that comes with the code is offered where no folder was named, so that there is
    something to see at once.

    Raises:
        ConfigError: no such folder, and no embedded model.
    """
    from experiments.settings import ConfigError

    named = Path(told or "runs")
    is_model = bool(told) and (told.startswith("organism/") or (named / "config.json").is_file())
    if is_model:
        if model and model != told:
            raise ConfigError(f"The model is given twice, as {told!r} and as {model!r}.")
        model, told = told, None
    if told and not named.is_dir():
        raise ConfigError(
            f"There is no folder {told}; isogloss run compare makes a run. A model is "
            "organism/NAME, its folder, or --model ID."
        )
    import organisms

    if model and model.startswith("organism/") and model[9:] not in organisms.NAMES:
        known = ", ".join(f"organism/{name}" for name in organisms.NAMES)
        raise ConfigError(f"There is no {model}; the embedded models are {known}.")
    found = [told or "runs"]
    if model:
        found += ["--model", model]
    return found if told else [*found, "--example"]


def explore(
    arguments: Sequence[str],
    *,
    port: int | None = None,
    host: str = "127.0.0.1",
    headless: bool | None = None,
) -> int:
    """Serve the explorer on a run directory, a folder of them or a model, until it is stopped.

    Args:
        arguments: as `target` gives them; nothing outside that folder is offered.
        port: None takes Streamlit's choice.
        host: the address to bind; only addresses of this machine are accepted.
        headless: whether to leave the browser closed; None: where no display is known.

    Returns:
        The server's exit code; 0 when stopped from the keyboard, or asked to end.

    Raises:
        ValueError: an address that other machines could reach.
    """
    if host not in LOCAL:
        raise ValueError(
            f"The explorer has no passwords, so it binds {LOCAL[0]} only, not {host!r}; "
            "reach it from elsewhere through an SSH tunnel."
        )
    # `subprocess.run` takes the server along on an exception, but not on a signal.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return subprocess.run(
            command(arguments, port=port, host=host, headless=headless)
        ).returncode
    except KeyboardInterrupt:
        return 0


def command(
    arguments: Sequence[str],
    *,
    port: int | None = None,
    host: str = "127.0.0.1",
    headless: bool | None = None,
) -> list[str]:
    """The server's command line. Settings that the installed Streamlit lacks are left out."""
    from streamlit import config

    if headless is None:
        headless = sys.platform == "linux" and not (
            os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        )
    settings: list[tuple[str, str]] = [
        ("server.address", host),
        ("server.headless", str(headless).lower()),
        # A page of another site that resolves its own name to this machine is turned away.
        *(("server.allowedHosts", name) for name in LOCAL),
        ("server.enableAgentApi", "false"),
        ("server.fileWatcherType", "none"),
        ("browser.gatherUsageStats", "false"),
        ("server.showEmailPrompt", "false"),
        # A click on a curve sets the slider, which also has a default: meant, and tested.
        ("global.disableWidgetStateDuplicationWarning", "true"),
        ("client.toolbarMode", "minimal"),
        ("client.showErrorDetails", "type"),
    ]
    if port is not None:
        settings.append(("server.port", str(port)))
    known = config.get_config_options()
    flags = [f"--{name}={value}" for name, value in settings if name in known]
    # Older versions of Streamlit come without the server that `apps.served` stands on.
    served = all(map(find_spec, ("streamlit.starlette", "starlette", "uvicorn")))
    script = Path(__file__).with_name("served.py" if served else "explorer.py")
    return [sys.executable, "-m", "apps.serve", "run", str(script), *flags, "--", *arguments]
