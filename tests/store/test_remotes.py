"""Remotes: which one is meant, and what goes there and comes back, with no server."""

from __future__ import annotations

import errno
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import store as command
from tests.support.stores import FakeModel, files_below, fill
from utils.common.errors import UserError
from utils.common.paths import Layout
from utils.serving.local_server import free_port
from utils.store import Entry, Store, remotes
from utils.store.remotes import Place, _file_system, remote, shown


@pytest.fixture
def here(layout: Layout) -> Store:
    layout.root.mkdir()
    return Store(layout)


@pytest.fixture
def there(tmp_path: Path) -> Store:
    found = Store(Layout(tmp_path / "there"))
    found.layout.root.mkdir()
    return found


def configure(store: Store, values: Any) -> None:
    (store.layout.root / "store.json").write_text(json.dumps(values))


def test_push_and_pull_a_folder(here: Store, there: Store, tmp_path: Path) -> None:
    url = str(tmp_path / "shared")
    configure(here, {"default": "a", "remotes": {"a": {"url": url}, "b": {"url": "own"}}})
    configure(there, {"remotes": {"only": {"url": f"file://{url}"}}})
    one, two = fill(here, [0.9, 0.1])
    here.label(one.tag, {"team": "nlp"})
    run, elsewhere = CliRunner(), {"KTT_ROOT": str(there.layout.root)}
    for arguments in (["push", str(one.tag)], ["push", str(two.tag), "--remote", "b"]):
        result = run.invoke(command.main, arguments)
        assert result.exit_code == 0, result.output
    found = there.pull("tfidf_hsgd_fake:best")
    assert (found.info.labels, found.was_here) == ({"team": "nlp"}, False)
    assert len(there.list()) == 1
    assert (here.layout.root / "own" / "tfidf_hsgd" / "fake").is_dir()
    before = files_below(there.layout.weights)
    assert there.pull("tfidf_hsgd_fake").was_here  # nothing happens
    result = run.invoke(command.main, ["pull", "tfidf_hsgd_fake"], env=elsewhere)
    assert f"{one.tag} was here already" in result.output
    assert files_below(there.layout.weights) == before
    result = run.invoke(command.main, ["pull", str(two.tag), "--remote", "b"])
    assert result.exit_code == 0, result.output


def test_pull_proposes_aliases_of_the_remote(here: Store, there: Store, tmp_path: Path) -> None:
    for store in (here, there):
        configure(store, {"remotes": {"a": {"url": str(tmp_path / "shared")}}})
    (one,) = fill(here, [0.5])
    here.alias(one.tag, "production")
    here.push("tfidf_hsgd_fake:production")
    with pytest.raises(UserError, match="Did you mean 'production'"):
        there.pull("tfidf_hsgd_fake:producton")
    assert there.pull("tfidf_hsgd_fake").aliases == ()  # only the one that was asked for
    found = there.pull("tfidf_hsgd_fake:production")
    assert (found.aliases, found.was_here) == (("production",), True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is read of remotes."""
    found, opened = [], remotes.opened

    def counted(place: Place) -> Any:
        found.append(place.url.rpartition("/")[2].partition("_")[0].rpartition(".")[2])
        return opened(place)

    monkeypatch.setattr(remotes, "opened", counted)
    return found


@pytest.fixture
def pushed(here: Store, there: Store, tmp_path: Path) -> list[Entry]:
    """Runs that are on a remote: the third the best, the second `production`, the last named."""
    for store in (here, there):
        configure(store, {"remotes": {"a": {"url": str(tmp_path / "shared")}}})
    found = [*fill(here, [0.1, 0.2, 0.9, 0.4]), *fill(here, [0.5], name="mine")]
    here.alias(found[1].tag, "production")
    for entry in found:
        here.push(entry.tag)
    here.push("tfidf_hsgd_fake:production")
    return found


def described(entry: Entry, tmp_path: Path) -> Path:
    """What describes a run on the remote."""
    name = entry.version.replace(":", "")
    return tmp_path / "shared" / entry.model / entry.dataset / f"{name}.json"


def test_no_more_is_read_than_may_be_meant(
    pushed: list[Entry], there: Store, asked: list[str]
) -> None:
    one, archive = "json", "kttmodel"
    for version, place, reads in (
        (pushed[2].version, 2, [one, archive]),
        (pushed[2].version[:10], None, []),  # of several
        ("latest", 4, [one, archive]),
        ("production", 1, ["alias", one, archive]),
        ("mine", 4, [one] * 5 + [archive]),
        ("best", 2, [one] * 5 + [archive]),
        ("2020-01-01", None, []),
    ):
        asked.clear()
        if place is None:
            with pytest.raises(UserError, match="may be any of|Unknown version"):
                there.pull(f"tfidf_hsgd_fake:{version}")
        else:
            assert there.pull(f"tfidf_hsgd_fake:{version}").tag == pushed[place].tag
        assert asked == reads, version


def test_what_is_damaged_on_a_remote_blocks_only_what_it_decides(
    pushed: list[Entry], there: Store, tmp_path: Path
) -> None:
    described(pushed[0], tmp_path).write_text("{")
    told: list[str] = []
    for version, place in ((pushed[2].version, 2), ("latest", 4), ("production", 1)):
        assert there.pull(f"tfidf_hsgd_fake:{version}", tell=told.append).tag == pushed[place].tag
    assert told == []  # nobody asked for it
    assert there.pull("tfidf_hsgd_fake:mine", tell=told.append).tag == pushed[4].tag
    assert len(told) == 1
    assert str(pushed[0].tag) in told[0]
    result = CliRunner().invoke(command.main, ["pull", "tfidf_hsgd_fake:mine"])
    assert (result.exit_code, result.output.count("Warning: ")) == (0, 1), result.output
    for version in ("best", "other", pushed[0].version):  # which may be that one
        with pytest.raises(UserError, match="is damaged: push that model") as caught:
            there.pull(f"tfidf_hsgd_fake:{version}")
        assert "\n" not in caught.value.message
    described(pushed[1], tmp_path).with_suffix(".kttmodel").unlink()
    with pytest.raises(UserError, match="leads to no run that is there"):
        there.pull("tfidf_hsgd_fake:production")


def test_a_remote_that_holds_something_else_changes_nothing(
    here: Store, there: Store, tmp_path: Path
) -> None:
    url = str(tmp_path / "shared")
    for store in (here, there):
        configure(store, {"remotes": {"a": {"url": url}}})
    one, two = fill(here, [0.9, 0.1])
    places = [Path(here.push(entry.tag)) for entry in (one, two)]
    places[0].write_bytes(places[1].read_bytes())
    with pytest.raises(UserError, match="push it again"):
        there.pull(one.tag)
    description = places[1].with_suffix(".json")
    for text in ("", "[]", "[" * 100_000, '{"labels": 5}'):
        description.write_text(text)
        with pytest.raises(UserError):
            there.pull(two.tag)
    description.unlink()  # died before it was described: it is not there
    with pytest.raises(UserError, match="Unknown version"):
        there.pull(two.tag)
    assert there.list() == []


def test_the_remote_of_dvc(here: Store, there: Store) -> None:
    with pytest.raises(UserError, match=r"No remote is configured: write .*store\.json"):
        here.push(here.save_model(FakeModel()).tag)
    for store in (here, there):
        (store.layout.root / ".dvc").mkdir()
        (store.layout.root / ".dvc" / "config").write_text(
            "[core]\n    remote = disk\n['remote \"disk\"']\n    url = ../../shared\n"
        )
    here.push("tfidf_hsgd_fake")
    assert there.pull("tfidf_hsgd_fake").info == here.get("tfidf_hsgd_fake").info
    assert (here.layout.root.parent / "shared" / "ktt-store").is_dir()
    with pytest.raises(UserError, match="No remote is configured"):
        here.push("tfidf_hsgd_fake", "team")


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ([], "must be an object"),
        ({"remotes": {"a": {"url": "x"}}, "remote": {}}, "unknown key 'remote'"),
        ({"remotes": {"a": {}}}, "it needs a \"url\""),
        ({"remotes": {"a": {"url": "x", "secret_key": "hunter2"}}}, "credentials do not belong"),
        ({"remotes": {"a": {"url": "sftp://me:hunter2@host/x"}}}, "holds a password"),
        ({"remotes": {"a": {"url": "x", "endpoint": "http://me:hunter2@h"}}}, "holds a password"),
        ({"remotes": {"a": {"url": "x", "region": 5}}}, "region is no text"),
        ({"remotes": {"a": {"url": ""}}}, "it needs a \"url\""),
        ({"remotes": {"a": {"url": "s3://"}}}, "its url names no place"),
        ({"remotes": {"a": {"url": "http://host/x?token=hunter2"}}}, "its url holds a ?"),
        ({"remotes": {"a": {"url": "http://[::1/x"}}}, "its url is no address"),
        ({"default": [], "remotes": {"a": {"url": "x"}}}, "default [] is no remote"),
        ({"default": "b", "remotes": {"a": {"url": "x"}}}, "default 'b' is no remote"),
        ({"remotes": {"a": {"url": "x"}, "b": {"url": "y"}}}, "add --remote with one of a, b"),
        ({"remotes": {}}, "names no remote"),
        ({"remotes": {"a": {"url": "a\0b"}}}, "url has characters that no place has"),
        ({"remotes": {"a": {"url": "a\ud800"}}}, "url has characters that no place has"),
        ({"remotes": {"a": {"url": "~nobody-9/x"}}}, "Cannot read ~nobody-9/x"),
    ],
)  # fmt: skip
def test_mistakes_in_the_configuration(here: Store, values: Any, part: str) -> None:
    configure(here, values)
    with pytest.raises(UserError) as caught:
        remote(here.layout)
    assert part in caught.value.message
    assert "hunter2" not in caught.value.message


def test_an_unknown_remote(here: Store) -> None:
    configure(here, {"remotes": {"team": {"url": "x"}}})
    with pytest.raises(UserError, match="Did you mean 'team'"):
        remote(here.layout, "taem")


def test_secrets_in_urls_are_not_shown(here: Store) -> None:
    url = "https://me:hunter2@example.org/x.kttmodel?token=hunter2"
    assert shown(url) == str(Place(url=url)) == "https://example.org/x.kttmodel"
    entry = here.save_model(FakeModel())
    for case in (
        lambda: here.import_model("sftp://me:hunter2@127.0.0.1:9/x"),
        lambda: here.import_model("nowhere://me:hunter2@host/x"),
        lambda: here.export_model(entry.tag, "nowhere://me:hunter2@host/x"),
    ):
        with pytest.raises(UserError, match="^Cannot|needs another package") as caught:
            case()
        assert "hunter2" not in caught.value.message
        assert "\n" not in caught.value.message


def test_any_file_system_of_fsspec(here: Store, there: Store) -> None:
    entry = here.save_model(FakeModel(), custom_objects={"a": 1})
    url = here.export_model(entry.tag, "memory://models/")
    assert there.import_model(url).info == entry.info


def test_a_url_without_a_place_is_no_folder_here(here: Store, monkeypatch: Any) -> None:
    monkeypatch.chdir(here.layout.root)
    before = {path.name for path in here.layout.root.iterdir()} | {"weights"}
    entry = here.save_model(FakeModel())
    with pytest.raises(UserError, match="^Cannot write nowhere://"):
        here.export_model(entry.tag, "nowhere://")
    assert {path.name for path in here.layout.root.iterdir()} <= before


def test_http_is_read_only(here: Store) -> None:
    entry = here.save_model(FakeModel())
    with pytest.raises(UserError, match="can only be read"):
        here.export_model(entry.tag, "http://127.0.0.1:9/x.kttmodel")


@pytest.fixture
def failing() -> Iterator[str]:
    """A server that answers /404 with that status, and so on; /302 leads to /404."""

    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            status = int(self.path[1:4])
            if status == 408:
                over.wait(60)
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/404?token=hunter2")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    over.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("404", "answers 404, it has no such file"),
        ("401", "answers 401, it wants to know who asks"),
        ("408", "does not answer"),
        ("500", "answers 500"),
        ("302", "answers 404"),
        ("403?a=hunter2", "answers 403, it refuses that"),
    ],
)
def test_what_a_server_refuses_is_told(
    here: Store, failing: str, monkeypatch: pytest.MonkeyPatch, path: str, words: str
) -> None:
    if path == "408":
        monkeypatch.setattr("utils.store.remotes.SILENCE", 0.3)
    with pytest.raises(UserError, match=f"^Cannot read http.*{words}") as caught:
        here.import_model(f"{failing}/{path}")
    assert "hunter2" not in caught.value.message


def test_a_server_that_is_not_there_is_told(here: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{free_port()}/x"
    configure(here, {"remotes": {"a": {"url": url}, "b": {"url": "http://nohost.invalid/x"}}})
    with pytest.raises(UserError, match=f"^Cannot read {url}: the server cannot be reached: Conn"):
        here.import_model(url)
    with pytest.raises(UserError, match=f"^Cannot read {url}/.*: the server cannot be reached: Co"):
        here.pull("tfidf_hsgd_fake", "a")

    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", unknown)
    with pytest.raises(UserError, match="no server of that name is known here"):
        here.pull("tfidf_hsgd_fake", "b")


@pytest.mark.parametrize(
    ("code", "said", "words"),
    [
        (6, "Could not resolve hostname; Details: Could not resolve host: h", "no server of that"),
        (7, "Could not connect to server; Details: Failed to connect to h:9", "cannot be reached"),
        (28, "Timeout was reached", "the server does not answer"),
    ],
)
def test_what_arrows_client_for_s3_says(code: int, said: str, words: str) -> None:
    error = OSError(f"When reading: AWS Error NETWORK_CONNECTION: curlCode: {code}, {said}")
    reason = remotes._reason(error, Place(url="s3://bucket/x"))
    assert words in reason
    assert said.partition("Details: ")[2] in reason
    assert "curlCode" not in reason


def test_the_home_folder_of_a_remote(here: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    configure(here, {"remotes": {"a": {"url": "~/models"}}})
    assert remote(here.layout).path == Path("/home/somebody/models")


def test_no_room_for_temporary_files_is_one_line(
    here: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = here.save_model(FakeModel())

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("utils.store.archive.write_archive", full)
    with pytest.raises(UserError, match="Cannot write .*No space left on device"):
        here.export_model(entry.tag, "memory://full/")


def test_keys_of_s3_are_taken_as_they_are() -> None:
    place = Place(url="s3://bucket/a b%20c?d#e") / "x.json"
    assert _file_system(place)[1] == "bucket/a b%20c?d#e/x.json"
