"""The load test for locust, without locust: what it sends, and how it judges the answers."""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from utils.common.paths import PROJECT_ROOT
from utils.serving.openapi import document
from utils.serving.requests import Refusal, decode_body, text_of

FOLDER = PROJECT_ROOT / "benchmarks" / "loadtest"


def _listener(function: Any) -> Any:
    return function


@pytest.fixture
def locustfile(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    stub: Any = ModuleType("locust")
    event = SimpleNamespace(add_listener=_listener)
    stub.events = SimpleNamespace(init=event, init_command_line_parser=event)
    stub.FastHttpUser, stub.task = object, lambda weight: _listener
    stub.constant_throughput = lambda rate: lambda user: 1 / rate
    monkeypatch.setitem(sys.modules, "locust", stub)
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("locustfile", FOLDER / "locustfile.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def options_of(locustfile: Any, *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    locustfile.add_options(parser)
    return parser.parse_args(arguments)


class Client:
    """Answers as the service would, or wrongly, and notes how that is judged."""

    def __init__(self, right: bool) -> None:
        self.right = right
        self.paths: set[str] = set()
        self.judged: list[bool] = []

    @contextmanager
    def post(self, path: str, *, data: Any, headers: dict[str, str], **_: Any) -> Iterator[Any]:
        self.paths.add(path)
        assert headers["Authorization"] == "Bearer secret"
        body = data if isinstance(data, bytes) else data.encode()
        status = status_of(body) if self.right else 500
        yield SimpleNamespace(
            status_code=status,
            success=lambda: self.judged.append(True),
            failure=lambda reason: self.judged.append(False),
        )


def status_of(body: bytes) -> int:
    try:
        text_of(decode_body(body))
    except Refusal as refusal:
        return refusal.status
    return 200


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("share", ["0", "0.5", "1"])
def test_it_asks_what_the_service_answers(
    locustfile: Any, monkeypatch: pytest.MonkeyPatch, share: str, right: bool
) -> None:
    monkeypatch.setenv("KTT_API_TOKEN", "secret")
    user = locustfile.Client()
    user.client = Client(right)
    user.environment = SimpleNamespace(
        parsed_options=options_of(locustfile, "--bad-share", share, "--rate", "4")
    )
    user.on_start()
    for _ in range(50):
        user.classify()
        user.predict()
    assert user.client.judged == [right] * 100
    served = document("A", "1", ("B",), 9, secured=True, monitored=True)
    apis = {path for path, routes in served["paths"].items() if "post" in routes}
    assert user.client.paths == {"/classify", "/predict"} <= apis
    assert user.wait_time() == 0.25


def test_texts_may_be_given(locustfile: Any, tmp_path: Any) -> None:
    (tmp_path / "texts.txt").write_text("one\n\n two\n", encoding="utf-8")
    options = options_of(locustfile, "--texts", str(tmp_path / "texts.txt"))
    locustfile.read_texts(SimpleNamespace(parsed_options=options))
    assert locustfile.TEXTS == ["one", " two"]


def test_the_page_names_its_options(locustfile: Any) -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    own = {f"--{name.replace('_', '-')}" for name in vars(options_of(locustfile))}
    locusts = {"--host", "--headless", "--users", "--spawn-rate", "--run-time"}
    assert set(re.findall(r"(?<![\w-])--[a-z-]+", page)) == own | locusts
    (requirement,) = (FOLDER / "requirements.txt").read_text().splitlines()[1:]
    assert requirement.startswith("locust==")
