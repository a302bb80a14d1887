"""A stand-in for NDIF behind its own protocol: it takes the bytes of a request, rebuilds the trace
where none of this repository's modules can be imported, runs it on weights of its own, and answers
over a socket as NDIF does.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

HUB_ID = "someone/big-model"


class _Lacking:
    """NDIF has torch and nnsight; nothing of this repository, and not all that it stands on."""

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> None:
        if name.split(".")[0] in ("activations", "geometry", "interventions", "jaxtyping", "tests"):
            raise ModuleNotFoundError(f"No module named {name!r}")


class FakeNdif:
    """Answers HTTP and the websocket; keeps what it was asked and how many numbers it sent back."""

    def __init__(self, server: Any) -> None:
        self.server = server  # nnsight's model, with weights
        self.error, self.refuses = "", 0
        self.headers: list[dict[str, str]] = []
        self.sent: list[int] = []
        self.answers: list[bytes] = []
        self.deployments: dict[str, Any] = {}

    # httpx.Client(...).post(...)

    def client(self, **_options: Any) -> FakeNdif:
        return self

    def __enter__(self) -> FakeNdif:
        return self

    def __exit__(self, *_error: object) -> None:
        return None

    def post(self, url: str, *, data: Any, files: Any, headers: dict[str, str]) -> Any:
        import httpx

        assert url.endswith("/request")
        self.headers.append(headers)
        request = httpx.Request("POST", url)
        if self.refuses:
            body = json.dumps({"detail": "Invalid API key."})
            return httpx.Response(self.refuses, text=body, request=request)
        envelope = json.loads(data["data"])
        assert envelope["session_id"] == "session"
        if self.error:
            self.answer("ERROR", description=self.error)
        else:
            blob = self.run(files["blob"][1], envelope["compress"])
            self.answer("COMPLETED", data=blob)
        received = json.dumps({"id": "1", "status": "RECEIVED"})
        return httpx.Response(200, text=received, request=request)

    def answer(self, status: str, **more: Any) -> None:
        from nnsight.schema.response import ResponseModel

        self.answers.append(ResponseModel(id="1", status=status, **more).pickle())  # type: ignore[arg-type]

    # websocket.create_connection(...)

    def socket(self, url: str, header: Any = None) -> Any:
        assert url.endswith("/subscribe")
        first = [json.dumps({"session_id": "session"})]
        return SimpleNamespace(
            recv=lambda: first.pop() if first else self.answers.pop(0), close=lambda: None
        )

    def run(self, blob: bytes, compress: bool) -> bytes:
        """The saves of a request, as NDIF packs them."""
        import zstandard
        from nnsight.intervention.backends.local import LocalSimulationBackend
        from nnsight.schema.request import RequestModel
        from nnsight.tracing import tracer as tracing

        hiding = LocalSimulationBackend(self.server)
        hidden = hiding._hide_local_modules()
        sys.meta_path.insert(0, _Lacking())
        try:
            with pytest.raises(ModuleNotFoundError):  # or else nothing would be shown
                import activations.places  # noqa: F401
            known = self.server._remoteable_persistent_objects()
            trace = RequestModel.deserialize(blob, known, compress)
            tracing.inc()
            try:
                before = dict(trace.info.frame.f_locals)
                with torch.no_grad():
                    trace.execute(trace.info.code)
            finally:
                tracing.dec()
            after = trace.info.frame.f_locals
            saves = {k: v for k, v in after.items() if v is not before.get(k)}
        finally:
            sys.meta_path.pop(0)
            hiding._restore(hidden)
        self.sent.append(sum(t.numel() for t in _tensors(saves)))
        packed = io.BytesIO()
        torch.save(saves, packed)
        return zstandard.ZstdCompressor().compress(packed.getvalue())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    for one in value.values() if isinstance(value, dict) else ():
        yield from _tensors(one)


def stand_in(monkeypatch: Any, fake: FakeNdif, *, deployed: bool = True) -> FakeNdif:
    """Put the stand-in where nnsight reaches for the network."""
    import httpx
    import huggingface_hub
    import nnsight
    import websocket

    monkeypatch.setattr(httpx, "Client", fake.client)
    monkeypatch.setattr(websocket, "create_connection", fake.socket)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "model_info", lambda _self, name, **_: SimpleNamespace(id=HUB_ID)
    )
    repo = HUB_ID if deployed else "someone/else"
    fake.deployments = {"a": {"repo_id": repo, "revision": None, "deployment_level": "HOT"}}
    fake.deployments["b"] = {"repo_id": "someone/sleeping", "deployment_level": "COLD"}
    monkeypatch.setattr(nnsight, "status", lambda raw: {"deployments": fake.deployments})
    return fake
