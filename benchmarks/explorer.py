"""How fast the explorer answers in a real browser: first view, clicks, steering, Stop, bytes.

python -m benchmarks.explorer [--json FILE]      # needs selenium, Chromium and its chromedriver

Each first view has an empty cache. Seconds run from the action to what it changes on the page.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd

from apps.session import EXAMPLE
from benchmarks.machine import arguments, machine, write_record

#: What a reader should never wait longer for, in seconds, and the most bytes of a page.
BUDGETS = {
    "first_view": 2.0,
    "click": 0.3,
    "first_view, 20,000 points": 4.0,
    "click, 20,000 points": 0.3,
    "steer_start": 1.0,
    "stop": 1.0,
}
MOST_BYTES = 7e6
_POINTS = 20_000
_PAGES = ("", "varieties", "directions", "patch", "steer", "tokens", "runs")


class Explorer:
    """The server on a folder of runs, and a browser before it."""

    def __init__(self, folder: Path, runs: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        line = [sys.executable, "-m", "apps.cli", "explore", str(runs), "--port", str(port)]
        around = os.environ | {"DISPLAY": "", "WAYLAND_DISPLAY": "", "HOME": str(folder)}
        quiet = subprocess.DEVNULL
        self.server = subprocess.Popen(
            line, env=around, stdout=quiet, stderr=quiet, start_new_session=True
        )
        self.address = f"http://127.0.0.1:{port}/"
        wait(lambda: urllib.request.urlopen(f"{self.address}_stcore/health").status == 200, 60)
        options = webdriver.ChromeOptions()
        browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))))
        options.binary_location = str(browser)
        for flag in ("headless=new", "no-sandbox", "disable-gpu", "window-size=1400,1400"):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        self.driver = webdriver.Chrome(
            options=options, service=Service(shutil.which("chromedriver"))
        )
        self.driver.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": True})

    def close(self) -> None:
        self.driver.quit()
        os.killpg(self.server.pid, 15)
        self.server.wait(20)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def view(self, page: str, query: str = "") -> float:
        """Seconds until a page's first chart is drawn; until it is idle where it has none."""
        self.driver.get("about:blank")
        began = time.perf_counter()
        self.driver.get(f"{self.address}{page}{query}")
        wait(lambda: self.all("svg.marks, canvas.marks"))
        return time.perf_counter() - began

    def click(self, depth: str) -> float:
        """Seconds from a click on the curve until the slider has followed."""
        from selenium.webdriver.common.action_chains import ActionChains

        aim = f"[aria-roledescription=point][aria-label*='): {depth};'][aria-label*='line: probe']"
        wait(self._idle)
        time.sleep(1)  # a chart that is still being laid out loses clicks
        action = ActionChains(self.driver).move_to_element(self.all(aim)[0])
        action.perform()
        began = time.perf_counter()
        ActionChains(self.driver).click().perform()
        wait(lambda: f"layer={depth}" in self.driver.current_url)
        return time.perf_counter() - began

    def steer(self) -> tuple[float, float]:
        """Seconds from Steer to the first reply, and from Stop to its end, the model being open."""
        go = "[data-testid=stBaseButton-primary]"
        self.driver.get(f"{self.address}steer?model=organism%2Faligned")
        wait(lambda: self._idle() and self.all(go))
        self.all(go)[0].click()  # opens the model and finds the direction
        wait(lambda: "by strength" in self.driver.page_source, 120)
        wait(lambda: not self._stops(), 120)
        self.all(go)[0].click()
        began = time.perf_counter()
        wait(lambda: self._stops() and self.all("[data-testid=stCode]"))
        started = time.perf_counter() - began
        self._stops()[0].click()
        began = time.perf_counter()
        wait(lambda: "Stopped:" in self.driver.page_source)
        return started, time.perf_counter() - began

    def received(self) -> tuple[int, set[str]]:
        """Bytes since the last call, HTTP and websocket together, and the hosts asked."""
        size, hosts = 0, set()
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            told = message["params"]
            if message["method"] == "Network.loadingFinished":
                size += int(told["encodedDataLength"])
            elif message["method"] == "Network.webSocketFrameReceived":
                size += len(told["response"]["payloadData"]) * 3 // 4  # base64
            elif message["method"] == "Network.requestWillBeSent":
                hosts.add(urlsplit(told["request"]["url"]).netloc)
        return size, hosts - {"", urlsplit(self.address).netloc}

    def _idle(self) -> bool:
        return bool(self.all("[data-testid=stApp][data-test-script-state=notRunning]"))

    def _stops(self) -> list[Any]:
        return [b for b in self.all("[data-testid=stBaseButton-secondary]") if b.text == "Stop"]


def wait(ready: Callable[[], Any], seconds: float = 30) -> None:
    """Until `ready` is true; a page that is being redrawn, or no server yet, is not."""
    from selenium.common.exceptions import WebDriverException

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if ready():
                return
        except (WebDriverException, OSError, IndexError):
            pass
        time.sleep(0.01)
    raise TimeoutError(f"The explorer did not answer within {seconds} s.")


def measure(browser: Explorer, runs: int) -> tuple[dict[str, float], dict[str, int], set[str]]:
    """Median seconds of each action, bytes of each page, other hosts asked."""
    found: dict[str, list[float]] = {name: [] for name in BUDGETS}
    sizes: dict[str, int] = {}
    for _ in range(runs):
        for name, query in (("", "?run=small"), (", 20,000 points", "?run=large")):
            found[f"first_view{name}"].append(browser.view("", query))
            wait(lambda: len(browser.all("svg.marks, canvas.marks")) >= 4)
            found[f"click{name}"] += [browser.click(depth) for depth in "0131"]
        started, stopped = browser.steer()
        found["steer_start"].append(started)
        found["stop"].append(stopped)
    _, hosts = browser.received()
    for page in _PAGES:
        browser.driver.get(f"{browser.address}{page}?run=small")
        time.sleep(4)
        sizes[page or "layers"], others = browser.received()
        hosts |= others
    return {name: statistics.median(s) for name, s in found.items()}, sizes, hosts


def main() -> None:
    """Measure and print; see the module."""
    options = arguments(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as place:
        for name in ("small", "large"):
            shutil.copytree(EXAMPLE, Path(place) / "runs" / name)
        path = Path(place) / "runs" / "large" / "projection.parquet"
        points = pd.read_parquet(path)
        many = points.groupby("site").sample(_POINTS, replace=True, random_state=0)
        many.to_parquet(path)
        browser = Explorer(Path(place), Path(place) / "runs")
        try:
            seconds, sizes, hosts = measure(browser, 1 if options.quick else 3)
        finally:
            browser.close()
    print(machine())
    for name, took in seconds.items():
        print(
            f"{name:<28} {took:6.2f} s   {'within' if took < BUDGETS[name] else 'OVER':>6} "
            f"{BUDGETS[name]:g} s"
        )
    for page, size in sizes.items():
        print(
            f"{page:<28} {size / 1e6:6.1f} MB  {'within' if size < MOST_BYTES else 'OVER':>6} 7 MB"
        )
    print(f"other hosts asked: {', '.join(sorted(hosts)) or 'none'}")
    write_record(
        options.json,
        {"machine": machine(), "seconds": seconds, "bytes": sizes, "other_hosts": sorted(hosts)},
    )


if __name__ == "__main__":
    main()
