"""Who may post to the monitor, and what a page in somebody's browser cannot do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flask.testing import FlaskClient

from monitor_access import Access
from monitor_app import app_of
from monitor_reference import load_setup
from monitor_report import Reports
from monitor_service import Monitor
from monitor_tree import SetupError
from tests.support.monitoring import Traffic, body_of, tree, write_folder

TOKEN = "a-token-of-the-tests"
JSON = "application/json"


@pytest.fixture(scope="module")
def monitor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitor]:
    rows = Traffic(tree()).draw(np.random.default_rng(0), 60)
    folder = write_folder(tmp_path_factory.mktemp("access") / "monitoring", rows)
    made = Monitor(load_setup(folder), folder / "data", {"model": "m", "dataset": "d"})
    yield made
    made.stop()


class NoReports(Reports):
    """Makes none."""

    def page(self) -> bytes | None:
        return None


def client_of(monitor: Monitor, access: Access | None = None) -> FlaskClient:
    return app_of(monitor, NoReports(Path(), Path()), access or Access()).test_client()


def post(client: FlaskClient, headers: dict[str, str], kind: str | None = JSON) -> int:
    return client.post(
        "/iterate", data=b'{"data": []}', content_type=kind, headers=headers
    ).status_code


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (JSON, 200),
        ("application/json; charset=utf-8", 200),
        ('Application/JSON;charset="UTF-8"', 200),
        (None, 415),
        ("", 415),
        ("text/plain", 415),
        ("text/plain; application/json", 415),
        ("text/json", 415),
        ("application/jsonp", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=a", 415),
        ("application/json, text/plain", 415),
        ("application/json; charset=punycode", 415),
        ("application/json; charset=utf-16", 415),
    ],
)
def test_posts_are_json_in_utf_8(kind: str | None, status: int, monitor: Monitor) -> None:
    for path in ("/iterate", "/feedback"):
        answer = client_of(monitor).post(path, data=b'{"data": []}', content_type=kind)
        assert answer.status_code == status
        if status == 415:
            assert answer.text == "Send application/json in UTF-8.\n"


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost:5001", None, 200),
        ("127.0.0.1:5001", "http://127.0.0.1:5001", 200),
        ("LOCALHOST:5001", "http://localhost:5001", 200),
        ("localhost:5001", "http://evil.example", 403),
        ("localhost:5001", "https://evil.example:5001", 403),
        ("localhost:5001", "http://localhost:3000", 403),
        ("localhost:5001", "http://localhost:5001.evil.example", 403),
        ("localhost:5001", "http://evil.example//localhost:5001", 403),
        ("localhost:5001", "null", 403),
        ("localhost:5001", "", 403),
        ("localhost:5001", "http://[", 403),
    ],
)
def test_pages_of_other_origins_cannot_post(
    host: str, origin: str | None, status: int, monitor: Monitor
) -> None:
    headers = {"Host": host} | ({} if origin is None else {"Origin": origin})
    assert post(client_of(monitor), headers) == status
    if status == 403:  # nor with a token
        headers["Authorization"] = f"Bearer {TOKEN}"
        assert post(client_of(monitor, Access(token=TOKEN)), headers) == status


@pytest.mark.parametrize(
    ("host", "right"),
    [
        ("localhost", True),
        ("monitoring:5001", True),
        ("127.0.0.1:5001", True),
        ("10.1.2.3", True),
        ("[::1]:5001", True),
        ("a.localhost:5001", True),
        ("monitor.mine.example:5001", True),
        ("Monitor.Mine.example.", True),
        ("evil.example:5001", False),
        ("evil.example.:5001", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example:5001", False),
        ("monitor.mine.example.evil.example", False),
        ("localhost@evil.example", False),
        ("[evil.example", False),
    ],
)
def test_a_page_whose_name_leads_here_is_refused(host: str, right: bool, monitor: Monitor) -> None:
    access = Access.of_environment({"KTT_MONITOR_HOSTS": "monitor.mine.example, other.example"})
    client = client_of(monitor, access)
    assert post(client, {"Host": host, "Origin": f"http://{host}"}) == (200 if right else 403)
    assert (client.get("/report", headers={"Host": host}).status_code == 403) is not right
    assert client.get("/metrics", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer  {TOKEN} ", 200),
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        (f"Basic {TOKEN}", 401),
        (TOKEN, 401),
        (f"Bearer {TOKEN}x", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        ("Bearer ü", 401),
    ],
)
def test_posts_bring_the_token(authorization: str | None, status: int, monitor: Monitor) -> None:
    client = client_of(monitor, Access(token=TOKEN))
    headers = {} if authorization is None else {"Authorization": authorization}
    for path in ("/iterate", "/feedback"):
        answer = client.post(path, json={"data": []}, headers=headers)
        assert answer.status_code == status
        assert TOKEN not in answer.text
        assert answer.headers.get("WWW-Authenticate") == ("Bearer" if status == 401 else None)
    for path in ("/metrics", "/healthz", "/livez", "/readyz"):
        assert client.get(path).status_code in (200, 503)


def test_who_has_the_token_may_use_any_name(monitor: Monitor) -> None:
    headers = {"Host": "monitor.elsewhere.example", "Authorization": f"Bearer {TOKEN}"}
    assert post(client_of(monitor, Access(token=TOKEN)), headers) == 200


def test_what_is_refused_is_not_kept(monitor: Monitor, rng: np.random.Generator) -> None:
    body = body_of(Traffic(tree()).draw(rng, 5), [f"refused{row}" for row in range(5)])
    before = len(monitor.window.kept().rows)
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        assert client_of(monitor).post("/iterate", json=body, headers=headers).status_code == 403
    locked = client_of(monitor, Access(token=TOKEN))
    assert locked.post("/iterate", json=body).status_code == 401
    assert len(monitor.window.kept().rows) == before


@pytest.mark.parametrize("token", [" ", "\t\n", "a b", "a\nb", "ü", "\udcff", "a\x00b", "\x7f"])
def test_a_token_that_cannot_be_one_ends_the_start(token: str) -> None:
    with pytest.raises(SetupError, match="KTT_MONITOR_TOKEN is blank, or") as caught:
        Access.of_environment({"KTT_MONITOR_TOKEN": token})
    assert "\n" not in str(caught.value)
    assert Access.of_environment({"KTT_MONITOR_TOKEN": ""}).token == ""
    assert Access.of_environment({"KTT_MONITOR_TOKEN": f"{TOKEN}\r\n"}).token == TOKEN
