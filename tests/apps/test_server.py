"""The explorer's server: many readers at once, no other host's name, no file but the pages' own."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from apps.session import EXAMPLE

from .visitor import Visitor, elements

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("", "varieties", "directions", "patch", "steer", "tokens", "runs")
SECRET = "never to be served"

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Server:
    """`isogloss explore` in a process of its own."""

    command: subprocess.Popen[bytes]
    port: int
    log: Path

    def answer(self, path: str, host: str, **headers: str) -> tuple[int, bytes]:
        """Status and body, the path and the Host header sent as they are."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        line.request("GET", path, headers={"Host": host} | headers)
        answer = line.getresponse()
        body = b"" if answer.status == 101 else answer.read()
        line.close()
        return answer.status, body

    def handshake(self, host: str, origin: str) -> int:
        """The status with which a websocket is met."""
        asked = {
            "Origin": origin,
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        }
        return self.answer("/_stcore/stream", host, **asked)[0]

    def megabytes(self) -> float:
        """Resident memory of the process that serves."""
        process = self.command.pid
        children = Path(f"/proc/{process}/task/{process}/children")
        if not children.exists():
            pytest.skip("resident memory is read from /proc, which this system lacks")
        served = children.read_text(encoding="utf-8").split()[0]
        told = Path(f"/proc/{served}/status").read_text(encoding="utf-8")
        return int(told.split("VmRSS:")[1].split()[0]) / 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "outside.txt").write_text(SECRET)
    (folder / "runs" / "one").mkdir(parents=True)
    (folder / "runs" / "one" / "config.toml").write_text(f'model = "{SECRET}"\n')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A reader who has left is kept for this many seconds, two minutes by default.
    told = {"DISPLAY": "", "WAYLAND_DISPLAY": "", "STREAMLIT_SERVER_DISCONNECTED_SESSION_TTL": "1"}
    line = [sys.executable, "-m", "apps.cli", "explore", str(EXAMPLE), "--port", str(port)]
    with (folder / "log").open("wb") as log:
        command = subprocess.Popen(
            line, cwd=ROOT, env=os.environ | told, stdout=log, stderr=log, start_new_session=True
        )
    server = Server(command, port, folder / "log")
    try:
        wait_until_it_answers(server)
        yield server
    finally:
        if command.poll() is None:
            os.killpg(command.pid, 9)
            command.wait(20)


def wait_until_it_answers(server: Server) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            server.answer("/_stcore/health", "localhost")
            return
        except OSError:
            assert server.command.poll() is None and time.monotonic() < end, server.log.read_text()
            time.sleep(0.1)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST.", "[::1]"])
@pytest.mark.parametrize("port", [True, False])
def test_this_machines_names_are_served(server: Server, host: str, port: bool) -> None:
    host = f"{host}:{server.port}" if port else host
    assert server.answer("/", host)[0] == 200
    assert server.handshake(host, f"http://{host}") == 101


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "x@127.0.0.1", "0.0.0.0"],
)
def test_another_hosts_name_is_refused_everything(server: Server, host: str) -> None:
    for named in (host, f"{host}:{server.port}"):
        for path in ("/", "/steer", "/_stcore/health", "/_stcore/host-config", "/media/a"):
            status, body = server.answer(path, named)
            assert status == 403 and b"<" not in body
        assert server.handshake(named, f"http://{named}") == 403  # as a rebound name would ask
        assert server.handshake(named, f"http://127.0.0.1:{server.port}") == 403


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://127.0.0.1:1", "http://localhost", "null"]
)
def test_a_page_of_another_site_or_port_is_refused(server: Server, origin: str) -> None:
    own = f"127.0.0.1:{server.port}"
    assert server.handshake(own, origin) == 403
    assert server.answer("/_stcore/health", own, Origin=origin)[0] == 403
    assert server.answer("/_stcore/health", own, Origin=f"http://{own}")[0] == 200


def test_an_address_that_others_can_reach_is_refused_by_the_command() -> None:
    line = [sys.executable, "-m", "apps.cli", "explore", "--host", "0.0.0.0"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "--host" in done.stderr


@pytest.mark.parametrize("start", ["/", "/media/", "/app/static/", "/static/", "/component/a/"])
def test_no_file_is_served_that_a_path_names(server: Server, start: str) -> None:
    shell = server.answer("/", "localhost")[1]
    outside = server.log.with_name("outside.txt")
    back = "../" * 24
    for file in (outside, Path("/etc/passwd"), ROOT / "apps" / "explorer.py"):
        held = file.read_bytes()[:40]
        for way in (
            f"{start}{back}{file.relative_to('/')}",
            f"{start}{back}{file.relative_to('/')}".replace("../", "..%2f"),
            f"{start}{back}{file.relative_to('/')}".replace("../", "%2e%2e/"),
            f"{start}{back}{file.relative_to('/')}".replace("../", "..\\"),
            f"{start}{file}",
            f"{start}{file.name}",
            f"{start}%2f{file.relative_to('/')}",
        ):
            status, body = server.answer(way, "localhost")
            assert held not in body and (400 <= status < 500 or body == shell), way


def test_an_address_names_no_run_or_model_but_those_that_are_offered(server: Server) -> None:
    reader = Visitor(server.port)
    try:
        for page in ("directions", "patch", "runs"):
            told = reader.ask(page, "run=../../runs/one&model=/etc/passwd&beside=/etc&against=/etc")
            assert not elements(told, "exception")
            for box in elements(told, "selectbox"):
                assert not {"/etc/passwd", "/etc", "../../runs/one"} & {*box.options, box.raw_value}
            assert SECRET.encode() not in b"".join(m.SerializeToString() for m in told)
    finally:
        reader.leave()


def at_once(port: int, count: int) -> None:
    """That many readers, a page each, who stay until all have theirs."""
    readers = [Visitor(port) for _ in range(count)]

    def read(number: int) -> None:
        page = PAGES[number % len(PAGES)]
        told = readers[number].ask(page, seconds=120)
        assert not elements(told, "exception")
        assert elements(told, "heading")[0].body == (page or "layers").capitalize()

    try:
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(read, range(count)))
    finally:
        for reader in readers:
            reader.leave()


def test_twenty_readers_at_once_each_get_their_page_and_leave_no_memory_behind(
    server: Server,
) -> None:
    held = []
    for readers in (1, 20, 20, 20):
        at_once(server.port, readers)
        held.append(server.megabytes())
        time.sleep(1.5)  # the server forgets them
    alone, _, before, after = held
    assert before - alone < 120  # 50 to 60 as measured
    assert after - before < 20  # -6 to 5 as measured
    assert "Traceback" not in server.log.read_text()


def test_the_server_ends_with_its_command(server: Server) -> None:
    assert server.command.poll() is None
    server.command.terminate()
    assert server.command.wait(20) == 0
    with pytest.raises(OSError):
        server.answer("/", "localhost")
