"""A reader without a browser: what one sends over the websocket, and what the server answers."""

from __future__ import annotations

from typing import Any

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import connect


class Visitor:
    """One session of the explorer at a port of this machine, until it leaves."""

    def __init__(self, port: int) -> None:
        address = f"127.0.0.1:{port}"
        self._socket = connect(
            f"ws://{address}/_stcore/stream",
            subprotocols=["streamlit"],  # pyright: ignore[reportArgumentType]
            origin=f"http://{address}",  # pyright: ignore[reportArgumentType]
            max_size=None,
        ).__enter__()

    def ask(self, page: str = "", query: str = "", *, seconds: float = 60) -> list[ForwardMsg]:
        """Every message of the server until it has drawn the page."""
        asked = BackMsg()
        asked.rerun_script.page_name = page
        asked.rerun_script.query_string = query
        self._socket.send(asked.SerializeToString())
        told: list[ForwardMsg] = []
        while not told or told[-1].WhichOneof("type") != "script_finished":
            message = self._socket.recv(seconds)
            assert isinstance(message, bytes)
            told.append(ForwardMsg.FromString(message))
        return told

    def leave(self) -> None:
        self._socket.close()


def elements(told: list[ForwardMsg], kind: str) -> list[Any]:
    """The elements of one kind on the page, in order."""
    new = [m.delta.new_element for m in told if m.WhichOneof("type") == "delta"]
    return [getattr(one, kind) for one in new if one.WhichOneof("type") == kind]
