"""The explorer in a real browser: its charts are drawn, clicks do what they say, nothing leaves."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pandas as pd
import pytest

from ..experiments import made_results

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Page, and a text of each chart on it that says what made_results.py holds.
PAGES = {
    "Layers": (
        "Variety is read best at block 3: 0.90",
        "Harmfulness is read best at block 5: 0.91",
        "held-out harmful requests lie at",
        "States differ most between block 0 and block 5: CKA 0.50",
        "The variety probe is right more often than it claims",
    ),
    "Varieties": (
        "At block 3, hill and valley share most",
        "hill and island share most at",
        "Varieties share most at block 5",
        "the tree of varieties at block 3 has 2 of 2 by words",
        "At block 3, hill and island lie nearest",
    ),
    "Directions": ("Cosine of the refusal and the harmful direction: 0.60", ""),
    "Patch": ("Patching closes most of the gap (96%)",),
    "Steer": ("Removing a variety's subspace changes the loss by +0.600", "refuses 95% of harmful"),
    "Tokens": (),
    "Runs": (),
}

IDLE = "[data-testid=stApp][data-test-script-state=notRunning]"

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def wait(ready: Callable[[], Any], what: str, seconds: float = 20) -> Any:
    """What `ready` returns once it is true; a page that is being redrawn counts as not ready."""
    from selenium.common.exceptions import WebDriverException

    end = time.monotonic() + seconds
    while True:
        try:
            if found := ready():
                return found
        except WebDriverException:
            pass
        assert time.monotonic() < end, f"waited {seconds} s in vain for {what}"
        time.sleep(0.05)


class Page:
    """The explorer's page on one run, as a reader has it before them."""

    def __init__(self, driver: Any, address: str, folder: Path, results: pd.DataFrame) -> None:
        self.driver, self.address, self.folder, self.results = driver, address, folder, results

    def open(self, name: str = "Layers") -> None:
        """Load a page afresh, as it is first met."""
        self.driver.get(self.address + ("" if name == "Layers" else name.lower()))
        self.drawn(name)

    def turn_to(self, name: str) -> None:
        """Follow the page's link at the left."""
        self.press("[data-testid=stSidebarNavLink]", name)
        self.drawn(name)

    def drawn(self, name: str) -> None:
        headed = lambda: [h.text for h in self.all("h2")][:1] == [name]  # noqa: E731
        whole = lambda: len(self.charts()) >= len(PAGES[name])  # noqa: E731
        wait(lambda: headed() and whole() and self.all(IDLE), f"the page {name}")

    def stays(self, selector: str) -> list[Any]:
        """Elements of the page, seen or not."""
        return self.driver.find_elements("css selector", selector)

    def press(self, selector: str, text: str = "") -> None:
        """Click the first such element that can be seen, with this text if one is given."""

        def pressed() -> bool:
            for element in self.all(selector):
                if not text or element.text == text:
                    element.click()
                    return True
            return False

        wait(pressed, f"{selector} {text}")

    def all(self, selector: str) -> list[Any]:
        """Elements that can be seen."""
        found = self.driver.find_elements("css selector", selector)
        return [element for element in found if element.is_displayed()]

    def charts(self) -> list[Any]:
        return self.all("svg.marks, canvas.marks")

    def titles(self, chart: Any) -> str:
        """The titles and subtitles of a chart."""
        lines = chart.find_elements("css selector", "[aria-label*='itle text ']")
        return " ".join(x.get_attribute("aria-label") for x in lines).replace("\xa0", " ")

    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.driver.current_url).query)

    def asked_for(self) -> list[str]:
        """Every address that the page has asked for, in all tests so far."""
        asked = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            told = message["params"]
            if message["method"] == "Network.requestWillBeSent":
                asked.append(told["request"]["url"])
            elif message["method"] == "Network.webSocketCreated":
                asked.append(told["url"])
        return asked


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver_path = shutil.which("chromedriver")
    if browser is None or driver_path is None:
        pytest.skip("no Chromium with its chromedriver: apt-get install chromium chromium-driver")
    folder = tmp_path_factory.mktemp("browser")
    results = made_results.made_results()
    run = folder / "runs" / "first"
    run.mkdir(parents=True)
    results.to_parquet(run / "results.parquet")
    made_results.made_points().to_parquet(run / "projection.parquet")
    made_results.made_axes().to_parquet(run / "projection_axes.parquet")
    (run / "config.toml").write_text('model = "made"\n')
    (run / "report.md").write_text("# made: a run\n\n## Findings\n\n- Found by hand.\n")
    # Neither program writes to the home or the temporary folder of whoever runs the tests.
    surroundings = os.environ | {"HOME": str(folder), "TMPDIR": str(folder)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "apps.cli", "explore", str(run), "--port", str(port)]
    server = subprocess.Popen(
        command,
        cwd=ROOT,
        env=surroundings | {"DISPLAY": "", "WAYLAND_DISPLAY": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    driver = None
    try:
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for flag in (
            "headless=new",
            "no-sandbox",
            "disable-gpu",
            "disable-dev-shm-usage",
            "disable-background-networking",
            "window-size=1400,1400",
            f"user-data-dir={folder / 'profile'}",
        ):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(driver_path, env=surroundings))
        where = {"behavior": "allow", "downloadPath": str(folder)}
        driver.execute_cdp_cmd("Browser.setDownloadBehavior", where)
        address = f"http://127.0.0.1:{port}/"
        wait(lambda: _answers(f"{address}_stcore/health"), "the explorer's server", 60)
        page = Page(driver, address, folder, results)
        page.open("Directions")  # the first address asked of a server may be any page's own
        assert "Layer" in [label.text for label in page.all("[data-testid=stSidebar] label")]
        yield page
    finally:
        if driver is not None:
            driver.quit()
        os.killpg(server.pid, 15)
        server.wait(20)


def _answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(address, timeout=1).status == 200
    except OSError:
        return False


def test_every_page_draws_its_charts_without_an_error(page: Page) -> None:
    for name, told in PAGES.items():
        page.open(name)
        for chart, words in zip(page.charts(), told, strict=True):
            assert min(chart.size.values()) > 100, (name, chart.size)
            assert words in page.titles(chart)
        assert not page.stays("[data-testid=stException]"), name
        assert name == "Tokens" or not page.stays("[data-testid=stAlert]"), name
    wait(lambda: any("Found by hand." in x.text for x in page.all("li")), "the report")
    # From a page's own address Streamlit first asks beside it, then at the root.
    said = [e["message"] for e in page.driver.get_log("browser") if e["level"] == "SEVERE"]
    assert not [m for m in said if "/_stcore/" not in m]


def test_curve_and_matrix_show_every_figure_of_the_run(page: Page) -> None:
    page.open()
    points = "[aria-roledescription=point][aria-label*='line: probe']"
    assert len(page.charts()[0].find_elements("css selector", points)) == 7
    shown = {}
    for name in ("Varieties", "Patch"):
        page.open(name)
        labels = page.charts()[0].find_elements("css selector", ".mark-text.role-mark text")
        shown[name] = [label.text.replace("−", "-") for label in labels]
    frame = page.results
    overlap = frame[(frame["measure"] == "subspace_overlap") & (frame["variety"] != "")]
    overlap = overlap[overlap["site"] == "blocks.3.hook_resid_post"]
    twice = pd.concat([overlap, overlap[overlap["variety"] != overlap["reference"]]])
    assert sorted(shown["Varieties"]) == sorted(f"{v:.2f}" for v in twice["value"])
    patched = frame[frame["measure"] == "recovered_fraction"]
    means = patched.groupby(["layer", "position"])["value"].mean()
    assert len(shown["Patch"]) == len(means) == 60
    assert f"{means[5, 0]:.2f}" in shown["Patch"]


def test_a_click_on_a_point_of_either_line_opens_its_depth(page: Page) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    page.open()
    for line, depth in (("probe", "1"), ("control task", "4")):
        page.turn_to("Layers")
        aim = f"[aria-roledescription=point][aria-label*='): {depth};'][aria-label*='line: {line}']"
        point = page.charts()[0].find_element("css selector", aim)
        ActionChains(page.driver).move_to_element(point).click().perform()
        wait(lambda d=depth: page.query().get("layer") == [d], "the address to name the depth")
        page.turn_to("Varieties")
        told = f"At block {depth}"
        wait(lambda t=told: t in page.titles(page.charts()[0]), "the overlap at that depth")


def test_a_lasso_round_all_points_lists_all_of_them(page: Page) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    page.driver.get(f"{page.address}?lasso=true&layer=1")
    chart = wait(lambda: page.all("[data-testid=stEChartsChart]"), "the chart with a lasso")[0]
    wait(lambda: page.all(IDLE), "the page")
    page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    time.sleep(1)  # a chart that is still being laid out loses clicks
    wide, tall = chart.size["width"], chart.size["height"]
    plot = (76, tall - 440, 554, tall - 75)  # left, top, right, bottom

    def drag(*path: tuple[float, float]) -> ActionChains:
        pen = ActionChains(page.driver, duration=20)
        for i, (x, y) in enumerate(path):
            pen.move_to_element_with_offset(chart, int(x - wide / 2), int(y - tall / 2))
            pen = pen.click_and_hold() if i == 0 else pen
        return pen.release()

    left, top, right, bottom = plot
    drag((left + 20, top - 10)).perform()  # the toolbox's first button
    corners = [(left, top + 5), (right, top + 5), (right, bottom), (left, bottom)]
    drag(*corners, (left, top + 9)).perform()
    told = lambda: [x.text for x in page.all("[data-testid=stCaptionContainer]")]  # noqa: E731
    wait(lambda: any(t.startswith("80 of 80 texts in the lasso") for t in told()), "their list")


def test_a_click_on_a_cell_opens_the_pair_and_the_link_shows_it_again(page: Page) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    page.open("Varieties")
    cell = "[aria-label*='variety: river'][aria-label*='reference: valley']"
    ActionChains(page.driver).move_to_element(
        page.charts()[0].find_element("css selector", f"path{cell}, rect{cell}")
    ).click().perform()
    pair = "river and valley"
    wait(lambda: page.query().get("pair") == [pair], "the address to name the pair")
    wait(lambda: pair in page.titles(page.charts()[1]), "the pair's curve")
    page.press("[data-testid=stPopover] button", "")
    link = wait(lambda: [x.text for x in page.all("[data-testid=stCode]")], "the link")[0]
    page.driver.get("about:blank")
    page.driver.get(link)
    page.drawn("Varieties")
    wait(lambda: pair in page.titles(page.charts()[1]), "the same view")


def test_steering_in_one_window_shows_three_replies(page: Page) -> None:
    page.driver.get(f"{page.address}steer?block=3&model=organism%2Faligned")
    page.drawn("Steer")
    page.press("[data-testid=stBaseButton-primary]", "Steer")

    def replies() -> list[str]:
        """All three; read once, since the page goes on being redrawn."""
        said = [x.text for x in page.all("[data-testid=stCode]")][:3]
        return said if len(said) == 3 and "…" not in said and "" not in said else []

    plain, steered, random = wait(replies, "replies", 90)
    assert "sorry" in steered and "sorry" not in plain + random
    wait(lambda: "by strength" in page.titles(page.charts()[0]), "the response")


def test_the_patching_map_can_be_of_one_variety(page: Page) -> None:
    page.open("Patch")
    page.press("input[aria-label*='Runs of']")
    page.press("[role=option]", "river")
    wait(lambda: page.query().get("patched") == ["river"], "the address to name it")
    wait(lambda: "runs of river" in page.titles(page.charts()[0]), "the map of river")


def test_a_table_opens_and_can_be_taken_along(page: Page) -> None:
    page.open()
    page.press("[data-testid=stExpander] summary")
    grid = lambda: page.all("[data-testid=stDataFrame] canvas")  # noqa: E731
    wait(lambda: min(grid()[0].size.values()) > 100 if grid() else False, "the table")
    page.press("[data-testid=stDownloadButton] button", "Download CSV")
    saved = page.folder / "variety_probe_accuracy.csv"
    wait(saved.exists, "the download")
    asked = page.results[page.results["measure"] == "variety_probe_accuracy"]
    assert pd.read_csv(saved)["value"].tolist() == pytest.approx(asked["value"].tolist())


def test_nothing_runs_out_of_a_narrow_window(page: Page) -> None:
    wide = page.driver.get_window_size()
    page.driver.set_window_size(900, wide["height"])
    try:
        main = "document.querySelector('[data-testid=stMain]')"
        for name in ("Layers", "Varieties", "Patch", "Steer"):
            page.open(name)
            assert page.driver.execute_script(f"return {main}.scrollWidth <= {main}.clientWidth")
            # What does not fit is reached by moving the chart in its own box.
            moved = page.driver.execute_script(
                "return [...document.querySelectorAll('.stVegaLiteChart')].map(chart => {"
                "  const box = chart.parentElement; box.scrollLeft = 1e4;"
                "  return chart.getBoundingClientRect().right - box.getBoundingClientRect().right;"
                "})"
            )
            assert max(moved) <= 1, name
    finally:
        page.driver.set_window_size(wide["width"], wide["height"])


def test_nothing_was_asked_of_another_host(page: Page) -> None:
    for name in PAGES:
        page.turn_to(name)
    asked = [urlsplit(url) for url in page.asked_for()]
    network = ("http", "https", "ws", "wss")
    assert {x.netloc for x in asked if x.scheme in network} == {urlsplit(page.address).netloc}
    assert "ws" in {x.scheme for x in asked}  # the log does see what is asked
