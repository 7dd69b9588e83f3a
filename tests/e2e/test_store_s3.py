"""The store against a server that speaks S3, and other places that are not this disk."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from tests.support.s3 import BUCKET, CREDENTIALS, s3_server
from tests.support.stores import FakeModel, files_below, fill
from utils.common.errors import UserError
from utils.common.paths import Layout
from utils.store import Store

pytestmark = pytest.mark.slow

LARGE = 12_000_000  # bytes: an upload in several parts


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3")) as address:
        yield address


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server's address, with credentials in the environment as its users have them."""
    for key, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": server}.items():
        monkeypatch.setenv(key, value)
    with urlopen(Request(f"{server}/moto-api/reset", method="POST"), timeout=60):
        pass
    with urlopen(Request(f"{server}/{BUCKET}", method="PUT"), timeout=60):
        return server


@pytest.fixture
def here(tmp_path: Path) -> Store:
    return Store(Layout(tmp_path / "here"))


@pytest.fixture
def there(tmp_path: Path) -> Store:
    return Store(Layout(tmp_path / "there"))


def configure(store: Store, **remotes: object) -> None:
    store.layout.root.mkdir(exist_ok=True)
    (store.layout.root / "store.json").write_text(json.dumps({"remotes": remotes}))


def test_export_and_import_by_url(s3: str, here: Store, there: Store) -> None:
    entry = here.save_model(FakeModel(size=LARGE), custom_objects={"a": 1})
    url = here.export_model(entry.tag, f"s3://{BUCKET}/models/")
    assert url == f"s3://{BUCKET}/models/tfidf_hsgd_fake-{entry.version.replace(':', '')}.kttmodel"
    found = there.import_model(url)
    assert found.info == entry.info
    assert found.path.read_bytes() == entry.path.read_bytes()
    with pytest.raises(UserError, match="--skip-existing"):
        there.import_model(url)


def test_a_damaged_object_is_refused(s3: str, here: Store, there: Store, tmp_path: Path) -> None:
    entry = here.save_model(FakeModel(size=100_000))
    content = bytearray(Path(here.export_model(entry.tag, tmp_path / "x")).read_bytes())
    for name, changed in {
        "cut": bytes(content[:-2000]), "flipped": bytes(content[:5000]) + b"!" + content[5001:],
        "longer": bytes(content) + b"x",
    }.items():  # fmt: skip
        place = f"s3://{BUCKET}/{name}"
        put = Request(f"{s3}/{BUCKET}/{name}", data=changed, method="PUT")
        put.add_header("Content-Type", "application/octet-stream")
        with urlopen(put, timeout=60):
            pass
        with pytest.raises(UserError, match="was refused") as caught:
            there.import_model(place)
        assert place in caught.value.message
    assert not files_below(there.layout.root)


def test_push_and_pull(s3: str, here: Store, there: Store) -> None:
    for store in (here, there):
        configure(store, team={"url": f"s3://{BUCKET}/team", "endpoint": s3})
    low, high, last = fill(here, [0.1, 0.9, 0.5])
    here.alias(low.tag, "production")
    with pytest.raises(UserError, match="push one first"):
        there.pull("tfidf_hsgd_fake")
    for version in (high.version, "latest", "production"):
        here.push(f"tfidf_hsgd_fake:{version}")
    assert there.pull("tfidf_hsgd_fake").tag == last.tag
    assert there.pull("tfidf_hsgd_fake:best").tag == high.tag
    assert there.pull("tfidf_hsgd_fake:production").tag == low.tag
    assert there.get("tfidf_hsgd_fake:production").path.read_bytes() == low.path.read_bytes()
    assert len(there.list()) == 3
    here.alias(high.tag, "production")
    here.push("tfidf_hsgd_fake:production")
    assert there.pull("tfidf_hsgd_fake:production").aliases == ("production",)
    assert there.get("tfidf_hsgd_fake:production").tag == high.tag
    with pytest.raises(UserError, match="Unknown version of tfidf_hsgd_fake 'prod'"):
        there.pull("tfidf_hsgd_fake:prod")


def test_what_s3_refuses_is_one_line_without_secrets(
    s3: str, here: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = here.save_model(FakeModel())
    cases = [
        lambda: here.export_model(entry.tag, "s3://no-such-bucket/x/"),
        lambda: here.import_model(f"s3://{BUCKET}/nothing.kttmodel"),
    ]
    for case in cases:
        with pytest.raises(UserError, match=r"^Cannot (read|write) s3://") as caught:
            case()
        assert "\n" not in caught.value.message
        assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in caught.value.message
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="^Cannot read s3://"):
        here.import_model(f"s3://{BUCKET}/x")


def test_import_over_http(here: Store, there: Store, tmp_path: Path) -> None:
    entry = here.save_model(FakeModel(size=100_000))
    name = Path(here.export_model(entry.tag, tmp_path)).name
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://user:hunter2@127.0.0.1:{server.server_port}/{name}"
        assert there.import_model(url).info == entry.info
        with pytest.raises(UserError, match="Cannot read http://127") as caught:
            there.import_model(url.replace(name, "missing?token=hunter2"))
        assert "hunter2" not in caught.value.message
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
