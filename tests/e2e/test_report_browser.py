"""The report as a browser without network shows it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.tiny import columns_of
from tests.training.test_report import EVIL, answered, drawn
from utils.hierarchy.tree import Hierarchy

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs chromium"),
]

Browse = Callable[..., str]


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    """Open a page in a browser that can reach no network."""

    def run(page: Path, width: int, *options: str) -> str:
        command = [
            str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--disable-dev-shm-usage",
            "--proxy-server=127.0.0.1:9", "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2400", *options,
            page.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        return done.stdout

    return run


@pytest.fixture
def page(rng: np.random.Generator, tmp_path: Path) -> Path:
    """A report of 120 classes, one of which is called evil."""
    paths = [(f"root {k % 4}", f"branch {k % 12}", f"leaf {k}") for k in range(120)]
    hierarchy, codes = Hierarchy.from_paths(columns_of([*paths, ("root 0", EVIL)] * 5))
    predictions, split = answered(hierarchy, codes, [EVIL] * len(codes), rng, right=3.0)
    path = tmp_path / "report.html"
    path.write_text(drawn(predictions, split))
    return path


def scripted(page: Path, script: str) -> Path:
    """The page with a script of the test's after its own, and without its policy."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    path = page.with_name("scripted.html")
    path.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    return path


def title(dom: str) -> str:
    found = re.search(r"<title>(.*?)</title>", dom)
    assert found
    return html.unescape(found.group(1))


@pytest.mark.parametrize("width", [1280, 390])
def test_plots_are_there_and_nothing_is_wider_than_the_screen(
    page: Path, browse: Browse, tmp_path: Path, width: int
) -> None:
    picture = tmp_path / "page.png"
    browse(page, width, f"--screenshot={picture}")
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    assert pixels.shape[1] == width
    for colour in ((0x1F, 0x6F, 0x8B), (0xC2, 0x57, 0x1A)):  # the first two lines
        assert (np.abs(pixels - colour).max(axis=2) < 8).sum() > 300
    # in a frame, since windows have a least width
    script = """
      const frame = document.querySelector("iframe").contentDocument;
      const boxes = [...frame.querySelectorAll("figure > svg")].map((e) =>
        e.getBoundingClientRect());
      document.title = JSON.stringify({
        wide: frame.documentElement.scrollWidth,
        plots: boxes.filter((box) => box.width > 200 && box.height > 100).length,
      })"""
    outer = tmp_path / "outer.html"
    outer.write_text(
        f'<title></title><iframe width="{width}" height="900" '
        f'srcdoc="{html.escape(page.read_text())}" style="border:0"></iframe>'
        f"<script>addEventListener('load', () => {{{script}}})</script>"
    )
    found = json.loads(title(browse(outer, 1400, "--dump-dom")))
    assert found == {"wide": width, "plots": 4}


def test_the_table_sorts_filters_and_pages(page: Path, browse: Browse) -> None:
    script = """
      const cells = (n) => [...document.querySelectorAll("#table tbody tr")].map((row) =>
        row.cells[n].textContent);
      const at = (id) => document.getElementById(id);
      const found = { first: cells(0).length, tools: !at("tools").hidden };
      at("on").click();
      found.second = at("where").textContent;
      document.querySelector("#table th[data-key='7'] button").click();
      found.f1 = cells(6);
      at("filter").value = " BRANCH 7 > leaf";
      at("filter").dispatchEvent(new Event("input"));
      found.filtered = cells(0);
      at("level").value = "1";
      at("level").dispatchEvent(new Event("change"));
      found.none = at("where").textContent;
      document.title = JSON.stringify(found);"""
    found = json.loads(title(browse(scripted(page, script), 1280, "--dump-dom")))
    assert found["first"] == 25
    assert found["tools"]
    assert found["second"] == "26–50 of 137"
    shares = [float(text.split("\xa0")[0]) for text in found["f1"]]
    assert shares == sorted(shares)
    assert len(set(shares)) > 3
    assert len(found["filtered"]) == 10
    assert all(text.startswith("root 3 > branch 7 > leaf") for text in found["filtered"])
    assert found["none"] == "no class fits"


def test_what_names_and_texts_hold_is_not_executed(page: Path, browse: Browse) -> None:
    for path in (page, scripted(page, "")):
        dom = browse(path, 1280, "--dump-dom")
        assert title(dom) == "db_bhcn on shop"
        assert "<img" not in dom.split("<script", maxsplit=1)[0]


def test_the_policy_stops_scripts_that_are_not_the_pages(page: Path, browse: Browse) -> None:
    page.write_text(
        page.read_text().replace("</body>", "<script>document.title='owned'</script></body>")
    )
    assert title(browse(page, 1280, "--dump-dom")) == "db_bhcn on shop"
