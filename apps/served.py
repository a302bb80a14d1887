"""The explorer as a server that answers under this machine's own names only.

A page of another site may make its name stand for this machine, or ask from another port of it, and
would then read what is served here and start what can be started. Streamlit's own settings refuse
the first a websocket; this refuses both everything.
"""

from __future__ import annotations

import asyncio
import webbrowser
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from streamlit import config
from streamlit.starlette import App

from apps.launch import LOCAL

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_SOON = 0.5  # seconds, after which the server listens


def is_local(host: str) -> bool:
    """Whether a Host header names this machine, whatever the port."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return "@" not in host and name.rstrip(".") in LOCAL


def is_own(host: list[str], origin: list[str]) -> bool:
    """Whether a request names this machine, and comes from a page of this server or from none."""
    if len(host) != 1 or not is_local(host[0]):
        return False
    return not origin or origin in ([f"http://{host[0]}"], [f"https://{host[0]}"])


class OnlyLocal:
    """Refuses a request, or a websocket, that `is_own` does not hold for: status 403."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        host, origin = (
            [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]
            for wanted in (b"host", b"origin")
        )
        if is_own(host, origin):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            said = "The explorer answers its own pages under 127.0.0.1 and localhost only.\n"
            await PlainTextResponse(said, status_code=403)(scope, receive, send)


@asynccontextmanager
async def _opening(_app: Any) -> AsyncIterator[None]:
    """Opens the browser, as Streamlit does for a script but not for an application."""
    if not config.get_option("server.headless"):
        address = f"http://localhost:{config.get_option('server.port')}"
        asyncio.get_running_loop().call_later(_SOON, webbrowser.open, address)
    yield


app = App("explorer.py", middleware=[Middleware(OnlyLocal)], lifespan=_opening)
