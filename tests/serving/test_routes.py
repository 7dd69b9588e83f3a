"""What a service answers besides its two APIs, asked for without servers."""

import difflib
import gzip
import json
import re
import unicodedata
from types import SimpleNamespace
from typing import Any

import pytest

from utils.common.errors import UserError
from utils.common.paths import PROJECT_ROOT
from utils.serving.feedback import KnownPaths, feedback_of
from utils.serving.requests import MAX_CHARACTERS, Refusal

pytest.importorskip("ktt_bentoml_compat", reason="pip install ./packages/bentoml-py311")
pytestmark = pytest.mark.filterwarnings("ignore:.*find_spec:ImportWarning")

PATHS = frozenset({("Home",), ("Home", "Rugs"), ("Toys",), ("Toys", "Dolls"), ("Pets", "Dolls")})
ID = "0f" * 16


@pytest.fixture
def offered() -> list[tuple[str, tuple[str, ...]]]:
    return []


@pytest.fixture
def client(offered: list[Any]) -> Any:
    from flask import Flask

    from utils.serving import routes

    app = Flask("test", static_folder=None)
    routes.add_refusals(app)
    routes.add_feedback(app, PATHS, lambda name, path: offered.append((name, path)))
    app.add_url_rule("/fails", "fails", lambda: 1 // 0)
    return app.test_client()


def test_feedback_is_taken(client: Any, offered: list[Any]) -> None:
    one = {"request_id": ID, "path": ["Home", "Rugs"]}
    other = {"request_id": "ab" * 16, "path": ["Toys"], "more": 1}
    assert client.post("/feedback", json=one).status_code == 202
    assert client.post("/feedback", json={"data": [one, other]}).get_json() == {"accepted": 2}
    taken = [(ID, ("Home", "Rugs")), ("ab" * 16, ("Toys",))]
    assert offered == [taken[0], *taken]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b"{}", 400),
        (b'{"data": []}', 400),
        (b'{"data": {}}', 400),
        (b'{"data": [1]}', 400),
        (b'{"request_id": "x", "path": ["Home"]}', 400),
        (b'{"request_id": 1, "path": ["Home"]}', 400),
        (json.dumps({"request_id": ID}).encode(), 400),
        (json.dumps({"request_id": ID, "path": []}).encode(), 400),
        (json.dumps({"request_id": ID, "path": "Home"}).encode(), 400),
        (json.dumps({"request_id": ID, "path": ["Home", 1]}).encode(), 400),
        (json.dumps({"request_id": ID, "path": ["\ud800"]}).encode(), 400),
        (json.dumps({"request_id": f"{ID}\n", "path": ["Home"]}).encode(), 400),
        (json.dumps({"data": [{"request_id": ID, "path": ["Home"]}] * 1001}).encode(), 413),
        (b" " * 1_048_577, 413),
        (b"\xff", 400),
    ],
)
def test_other_feedback_is_refused_with_one_line(
    client: Any, offered: list[Any], body: bytes, status: int
) -> None:
    reply = client.post("/feedback", data=body)
    assert reply.status_code == status
    assert len(reply.text.splitlines()) == 1
    assert not offered


def test_a_path_that_no_class_has_is_answered_with_the_nearest(
    client: Any, offered: list[Any]
) -> None:
    good = {"request_id": ID, "path": ["Toys"]}
    for path, nearest in (
        (["Home", "Rug"], "Home > Rugs"),
        (["Toy", "Dolls"], "Toys > Dolls"),
        (["Pet", "Dolls"], "Pets > Dolls"),
    ):
        reply = client.post("/feedback", json={"data": [good, {"request_id": ID, "path": path}]})
        assert reply.status_code == 400
        assert nearest in reply.text
        assert "Entry 1" in reply.text
    assert not offered  # all or nothing


def test_feedback_may_be_zipped(client: Any, offered: list[Any]) -> None:
    body = gzip.compress(json.dumps({"request_id": ID, "path": ["Toys"]}).encode())
    headers = {"Content-Encoding": "gzip"}
    assert client.post("/feedback", data=body, headers=headers).status_code == 202
    assert len(offered) == 1
    assert client.post("/feedback", data=b"{}", headers=headers).status_code == 400


@pytest.mark.parametrize("charset", ["punycode", "utf-7", "hex", "utf-8; charset=idna"])
def test_feedback_is_in_a_usual_character_set(
    client: Any, offered: list[Any], charset: str
) -> None:
    body = json.dumps({"request_id": ID, "path": ["Toys"]})
    headers = {"Content-Type": f"application/json; charset={charset}"}
    assert client.post("/feedback", data=body, headers=headers).status_code == 415
    assert not offered
    headers = {"Content-Type": "application/json; charset=utf-16"}
    assert client.post("/feedback", data=body.encode("utf-16"), headers=headers).status_code == 202


def test_zipped_feedback_is_whole(client: Any, offered: list[Any]) -> None:
    body = gzip.compress(json.dumps({"request_id": ID, "path": ["Toys"]}).encode())
    for damaged in (body[:-8], body + b"!"):
        reply = client.post("/feedback", data=damaged, headers={"Content-Encoding": "gzip"})
        assert reply.status_code == 400
    assert not offered


NAMES = ["Bücher", "Żółta łódź", "한국어 책", "हिन्दी", "Café au lait", "Ångström"]


def client_of(paths: Any, offered: list[Any]) -> Any:
    from flask import Flask

    from utils.serving import routes

    app = Flask("test", static_folder=None)
    routes.add_refusals(app)
    routes.add_feedback(app, paths, lambda name, path: offered.append(path))
    return app.test_client()


def spellings(name: str) -> list[str]:
    """What looks like a name."""
    return [
        name,
        unicodedata.normalize("NFD", name),
        f"  {name}\t\n",
        name.replace(" ", "\u00a0"),
        name.replace(" ", "  \u3000"),
        f"\ufeff{name}",
        f"{name[0]}\u00ad{name[1:]}\u200b",
        f"\u202a{name}\u202c",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_names_in_feedback_are_tidied_as_those_of_a_dataset(offered: list[Any], name: str) -> None:
    other = NAMES[NAMES.index(name) - 1]
    paths = {(name,), *((other, each) for each in NAMES)}
    client = client_of(paths, offered)
    for path in [(spelt,) for spelt in spellings(name)] + [
        (unicodedata.normalize("NFD", other), spelt) for spelt in spellings(name)
    ]:
        reply = client.post("/feedback", json={"request_id": ID, "path": list(path)})
        assert reply.status_code == 202, ascii(path)
    assert set(offered) == {(name,), (other, name)}  # spelt as the monitor knows them
    assert len(offered) == 2 * len(spellings(name))


@pytest.mark.parametrize("name", NAMES)
def test_the_nearest_is_found_however_a_name_is_spelt(offered: list[Any], name: str) -> None:
    paths = {("Shop", each) for each in [*NAMES, "Bicher", "Zolta lodz", "Cafe creme", "Other"]}
    client = client_of(paths, offered)
    for spelt in spellings(f"{name}x") + spellings(name.upper() + "y"):
        reply = client.post("/feedback", json={"request_id": ID, "path": ["Shop", spelt]})
        assert f"The nearest is: Shop > {name}." in reply.text, ascii(spelt)
    assert not offered


def test_classes_that_only_look_alike_are_told_apart(offered: list[Any]) -> None:
    """Datasets of older versions have such."""
    twins = [("Café",), (unicodedata.normalize("NFD", "Café"),)]
    client = client_of(twins, offered)
    for path in twins:
        client.post("/feedback", json={"request_id": ID, "path": list(path)})
    assert offered == twins
    unclear = {"request_id": ID, "path": [" Café"]}
    assert client.post("/feedback", json=unclear).status_code == 400


def test_the_nearest_of_thousands_of_classes_is_found_without_comparing_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = []
    matches = difflib.get_close_matches

    def counted(wanted: str, labels: Any, **options: Any) -> list[str]:
        compared.extend(labels)
        return matches(wanted, labels, **options)

    monkeypatch.setattr(difflib, "get_close_matches", counted)
    paths = {(f"Shelf {i % 7}", f"Article number {i:05}") for i in range(5000)}
    paths.add(("Shelf 3", "Garden hose"))
    body = json.dumps({"request_id": ID, "path": ["Shelf 3", "Gardn hose"]})
    with pytest.raises(Refusal, match="Shelf 3 > Garden hose"):
        feedback_of(body, KnownPaths(paths))
    assert len(compared) <= 50


def test_without_a_monitor_feedback_is_told_to_have_no_use() -> None:
    from flask import Flask

    from utils.serving.routes import add_feedback

    app = Flask("test", static_folder=None)
    add_feedback(app, PATHS, None)
    assert (
        app.test_client().post("/feedback", json={"request_id": ID, "path": []}).status_code == 404
    )


@pytest.mark.parametrize("token", ["secret", "tökén", "日本"])
def test_with_a_token_feedback_needs_it(
    client: Any, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("KTT_API_TOKEN", token)
    good = {"request_id": ID, "path": ["Toys"]}
    refused = client.post("/feedback", json=good)
    assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
    as_bytes = f"Bearer {token}".encode().decode("latin-1")  # as WSGI has them
    headers = {"Authorization": as_bytes}
    assert client.post("/feedback", json=good, headers=headers).status_code == 202


def test_refusals_are_one_line_of_plain_text(client: Any) -> None:
    for path, status in (("/nothing", 404), ("/feedback", 405), ("/fails", 500)):
        reply = client.get(path, headers={"Accept": "text/html"})
        assert reply.status_code == status
        assert reply.content_type.startswith("text/plain")
        assert len(reply.text.splitlines()) == 1
        assert "division" not in reply.text
    assert "POST" in client.get("/feedback").headers["Allow"]


def test_ready_is_who_answers() -> None:
    from flask import Flask

    from utils.serving.routes import add_state

    state = SimpleNamespace(broken=False)

    def probe() -> None:
        if state.broken:
            raise RuntimeError("secret")

    app = Flask("test", static_folder=None)
    add_state(app, probe)
    client = app.test_client()
    assert client.get("/readyz").status_code == 200
    state.broken = True
    reply = client.get("/readyz")
    assert (reply.status_code, "secret" in reply.text) == (503, False)
    assert client.get("/livez").status_code == 200


@pytest.mark.parametrize(
    ("header", "passes"),
    [
        ("Bearer tökén", True),
        ("bearer  tökén ", True),
        ("Bearer tökén2", False),
        ("Bearer tök", False),
        ("Bearer", False),
        ("tökén", False),
        ("Basic tökén", False),
        ("Bearer \udcff", False),
        ("", False),
        (None, False),
    ],
)
def test_only_the_token_opens(
    monkeypatch: pytest.MonkeyPatch, header: str | None, passes: bool
) -> None:
    from utils.serving.access import check_token

    monkeypatch.setenv("KTT_API_TOKEN", "tökén\n")
    if passes:
        check_token(header)
    else:
        with pytest.raises(Refusal) as refused:
            check_token(header)
        assert refused.value.status == 401
        assert "tök" not in str(refused.value)


def test_no_token_leaves_it_open(monkeypatch: pytest.MonkeyPatch) -> None:
    from utils.serving.access import check_token, token

    monkeypatch.setenv("KTT_API_TOKEN", "")
    check_token(None)
    assert token() == ""
    monkeypatch.delenv("KTT_API_TOKEN")
    check_token(None)


@pytest.mark.parametrize(
    "value", [" ", "\t\n", "two\nlines", "a\x07b", "\udce9t\udce9", "x" * 5000]
)
def test_a_token_that_cannot_be_one_ends_the_service_and_opens_nothing(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    from utils.serving.access import check_token, token

    monkeypatch.setenv("KTT_API_TOKEN", value)
    for header in (None, f"Bearer {value}", "Bearer "):
        with pytest.raises(UserError, match="KTT_API_TOKEN"):
            check_token(header)
    with pytest.raises(UserError) as wrong:
        token()
    assert len(wrong.value.message) < 120
    assert value.strip() == "" or value not in wrong.value.message


def test_the_length_of_texts_can_be_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    from utils.serving.access import max_characters

    for value, limit in (("", MAX_CHARACTERS), ("500", 500)):
        monkeypatch.setenv("KTT_MAX_CHARACTERS", value)
        assert max_characters() == limit
    for value in ("0", "-1", "many", "1000001", "1e3", " ", "²"):
        monkeypatch.setenv("KTT_MAX_CHARACTERS", value)
        with pytest.raises(UserError, match="KTT_MAX_CHARACTERS"):
            max_characters()


def described(*, secured: bool = True, monitored: bool = True) -> dict[str, Any]:
    from utils.serving.openapi import document

    return document("Name", "1", ("Home", "Rugs"), 500, secured=secured, monitored=monitored)


def test_the_document_describes_what_is_there() -> None:
    found = described()
    assert found["openapi"].startswith("3.")
    assert {"/predict", "/classify", "/feedback"} <= set(found["paths"])
    for path in ("/predict", "/classify", "/feedback"):
        post = found["paths"][path]["post"]
        assert post["security"] == [{"token": []}]
        assert {"400", "401", "405", "413"} <= set(post["responses"])
        good = post["responses"]["202" if path == "/feedback" else "200"]
        assert "example" in good["content"]["application/json"]
    assert found["components"]["schemas"]["Text"]["properties"]["text"]["maxLength"] == 500


@pytest.mark.parametrize("monitored", [True, False])
@pytest.mark.parametrize("secured", [True, False])
def test_the_document_offers_nothing_that_is_not_there(secured: bool, monitored: bool) -> None:
    found = described(secured=secured, monitored=monitored)
    text = json.dumps(found)
    assert ("feedback" in text.lower()) is monitored
    assert ("security" in text) is secured
    assert ("401" in text) is secured
    for name in found["components"]["schemas"]:
        assert f"#/components/schemas/{name}" in text
    for used in re.findall("#/components/schemas/([A-Za-z]+)", text):
        assert used in found["components"]["schemas"]


def test_page_and_document_tell_of_the_same_refusals() -> None:
    page = (PROJECT_ROOT / "docs" / "service.md").read_text(encoding="utf-8")
    posts = [path["post"]["responses"] for path in described()["paths"].values() if "post" in path]
    said = {status for responses in posts for status in responses if status.startswith("4")}
    # nobody is offered what is refused with 404
    assert set(re.findall(r"(?m)\| (4\d\d) \|$", page)) - {"404"} == said


def test_the_page_loads_nothing_from_elsewhere() -> None:
    from flask import Flask

    from utils.serving.routes import add_docs

    app = Flask("test", static_folder=None)
    for endpoint, rule in (("docs", "/docs.json"), ("swagger", "/docs"), ("index", "/")):
        app.add_url_rule(rule, endpoint, lambda: "as released")
    add_docs(app, {"info": {"title": "<b> on shop"}})
    reply = app.test_client().get("/docs")
    assert "<title>&lt;b&gt; on shop</title>" in reply.text
    assert "//" not in reply.text
    assert reply.headers["Content-Security-Policy"].startswith("default-src 'self'")
    assert app.test_client().get("/docs.json").get_json() == {"info": {"title": "<b> on shop"}}
