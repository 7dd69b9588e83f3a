"""The documentation page of a service as a browser shows it."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from flask import Flask
from werkzeug.serving import make_server

from utils.serving.local_server import free_port
from utils.serving.openapi import document
from utils.serving.routes import add_docs

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")

pytest.importorskip("ktt_bentoml_compat", reason="pip install ./packages/bentoml-py311")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs chromium"),
    pytest.mark.filterwarnings("ignore:.*find_spec:ImportWarning"),
]

WATCH = """
  window.violations = [];
  document.addEventListener("securitypolicyviolation", (event) =>
    violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""
LOOK = """(async () => {
  for (let i = 0; i < 100 && !document.querySelector(".opblock"); i++)
    await new Promise((done) => setTimeout(done, 100));
  const lines = (element) => {
    const range = document.createRange();
    range.selectNodeContents(element);
    return new Set([...range.getClientRects()].map((box) => Math.round(box.top))).size;
  };
  const all = (selector) => [...document.querySelectorAll(selector)];
  return JSON.stringify({
    violations,
    title: document.title,
    heading: document.querySelector("h2.title").innerText,
    paths: Object.fromEntries(all(".opblock-summary-path").map((element) =>
      [element.textContent.replace(/[^/a-z]/g, ""), lines(element)])),
    padlocks: all(".authorization__btn, .authorize").length,
    screen: innerWidth,
    wide: document.documentElement.scrollWidth,
  });
})()"""
"""What a page looks like once it is drawn."""


async def _shown(port: int, url: str, width: int) -> dict[str, Any]:
    """Open an address in a running browser, at a phone's or a desk's width."""
    async with aiohttp.ClientSession() as session:
        async with session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as reply:
            address = (await reply.json())["webSocketDebuggerUrl"]
        async with session.ws_connect(address) as page:
            screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
            found = None
            for number, (method, parameters) in enumerate(
                [
                    ("Page.enable", {}),
                    ("Emulation.setDeviceMetricsOverride", screen),
                    ("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH}),
                    ("Page.navigate", {"url": url}),
                    ("Runtime.evaluate", {"expression": LOOK, "awaitPromise": True}),
                ]
            ):
                await page.send_json({"id": number, "method": method, "params": parameters})
                seen: list[dict[str, Any]] = []
                while not any(message.get("id") == number for message in seen):
                    seen.append(await page.receive_json(timeout=60))
                found = seen[-1]
                while method == "Page.navigate" and not any(
                    message.get("method") == "Page.loadEventFired" for message in seen
                ):
                    seen.append(await page.receive_json(timeout=60))
    assert found
    return dict(json.loads(found["result"]["result"]["value"]))


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[int]:
    """The port of a browser that waits to be told what to open."""
    port = free_port()
    command = [
        str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path / 'profile'}", f"--remote-debugging-port={port}",
        "--proxy-server=127.0.0.1:9", "--proxy-bypass-list=127.0.0.1",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    try:
        assert any("DevTools listening" in line for line in process.stdout)
        yield port
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def page(secured: bool) -> Iterator[str]:
    """The address of the page, with the files that BentoML has for it."""
    found = find_spec("bentoml")
    assert found
    assert found.origin
    folder = Path(found.origin).parent / "server" / "static_content"
    app = Flask("page", static_folder=str(folder), static_url_path="/static_content")
    for endpoint, rule in (("docs", "/docs.json"), ("swagger", "/docs"), ("index", "/")):
        app.add_url_rule(rule, endpoint, lambda: "as released")
    described = document(
        "tfidf_hsgd on shop", "1", ("Home", "Rugs"), 500, secured=secured, monitored=True
    )
    add_docs(app, described)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("secured", [True, False])
def test_the_page_keeps_to_its_policy_and_fits_a_phone(
    page: str, browser: int, secured: bool
) -> None:
    for width in (1280, 700, 390):
        seen = asyncio.run(_shown(browser, page, width))
        assert seen["violations"] == []
        assert seen["title"] == "tfidf_hsgd on shop"
        assert seen["heading"].startswith("tfidf_hsgd on shop")
        assert seen["paths"] == dict.fromkeys(
            ["/predict", "/classify", "/feedback", "/healthz", "/livez", "/readyz", "/metrics"], 1
        )  # each on one line
        assert bool(seen["padlocks"]) is secured
        assert seen["screen"] == width
        assert seen["wide"] <= width
