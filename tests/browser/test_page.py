"""The pages for people, in a real browser without a network. CI installs chromium by apt."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.browser.driver import Page, chromium
from tests.integration.launch import Server, launched
from tests.serving import SIZE, encoded, pictures, png_of, write_linear

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--virtual-time-budget=8000",
]


RULES = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
PLACES = """(() => {
  const place = (node) => { const r = node.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; };
  return [place(document.querySelector('#answer img')), [...document.querySelectorAll('#answer rect')].map(place)];
})()"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("page")
    write_linear(root, ["plain", "<img src=x onerror=alert(1)>", "ünïcode"])
    with launched(root) as running:
        running.until("process began")
        yield running


def browse(url: str, profile: Path) -> tuple[str, str]:
    """The page's elements after its scripts have run, and what the browser logged."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
            *FLAGS,
            RULES,
            f"--user-data-dir={profile}",
            "--enable-logging=stderr",
            "--dump-dom",
            url,
        ],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def test_the_page_says_what_is_served_and_that_it_is_ready(server: Server, tmp_path: Path) -> None:
    page, console = browse(f"{server.url}/", tmp_path)
    assert re.search(r'id="state"[^>]*>Ready<', page), page
    assert "linear 1" in page and "multiclass" in page and "8 x 8" in page and "CPUExecutionProvider" in page
    assert f"{server.url}/predict?model=linear" in unescape(page)
    assert console == ""


def test_a_hostile_class_name_is_text_and_never_markup(server: Server, tmp_path: Path) -> None:
    page, console = browse(f"{server.url}/", tmp_path)
    assert "&lt;img src=x onerror=alert(1)&gt;" in page and "<img" not in page
    assert "ünïcode" in page
    assert console == ""


def ask(page: Page, url: str, file: Path) -> None:
    page.open(url)
    page.until("document.querySelector('#state')?.textContent === 'Ready'")
    page.choose("#file", [file])
    page.run("document.querySelector('#form').requestSubmit()")


def test_a_person_asks_for_the_class_of_a_picture_and_about_its_label(server: Server, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    file = tmp_path / "one.png"
    file.write_bytes(png_of(pictures(1, SIZE)[0]))
    with chromium(CHROMIUM, [*FLAGS[:-1], RULES]) as page:
        ask(page, f"{server.url}/", file)
        assert page.until("document.querySelectorAll('#answer meter').length") == 3
        page.run("document.querySelector('#label').value = 'plain'")
        page.run("document.querySelector('#form').requestSubmit()")
        assert "Focal loss" in page.until("document.querySelector('#answer').textContent.match(/Focal loss.*/)?.[0]")


def test_a_detectors_boxes_lie_on_the_picture(detector_artifacts: Path, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    file = tmp_path / "two.png"
    file.write_bytes(encoded(np.kron(pictures(1, 20)[0], np.ones((10, 15, 1), np.uint8)), "PNG"))
    with launched(detector_artifacts) as running, chromium(CHROMIUM, [*FLAGS[:-1], RULES]) as page:
        running.until("process began")
        ask(page, f"{running.url}/", file)
        count = page.until("document.querySelectorAll('#answer rect').length")
        answer = httpx.post(f"{running.url}/predict", content=file.read_bytes()).json()["predictions"][0]
        assert count == len(answer["boxes"]) > 0
        picture, boxes = page.run(PLACES)
        for box, found in zip(answer["boxes"], boxes, strict=True):
            x1, y1, x2, y2 = (side / edge for side, edge in zip(box["box"], (300, 200, 300, 200), strict=True))
            want = [x1 * picture[2], y1 * picture[3], (x2 - x1) * picture[2], (y2 - y1) * picture[3]]
            got = [found[0] - picture[0], found[1] - picture[1], found[2], found[3]]
            assert np.allclose(got, want, atol=3.0), (got, want)
        assert page.run("document.querySelector('#labelled').hidden")


def test_the_api_docs_work_without_a_network(server: Server, tmp_path: Path) -> None:
    page, console = browse(f"{server.url}/docs", tmp_path)
    assert page.count('class="opblock ') >= 6
    assert "Classify images" in page and "Score given labels" in page
    outside = re.findall(r'(?:src|href)="(?:https?:)?//(?!127\.0\.0\.1)[^"]+"', page)
    assert outside == []
    assert "Refused" not in console and "ERR_" not in console, console


def test_the_page_says_why_it_is_not_ready(tmp_path: Path) -> None:
    artifacts = tmp_path / "artifacts"
    artifacts.mkdir()
    with launched(artifacts) as empty:
        empty.until("not ready")
        page, _ = browse(f"{empty.url}/", tmp_path / "profile")
        assert re.search(r'id="state"[^>]*>Not ready: there is no bundle', page), page
