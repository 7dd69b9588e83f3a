"""Archives: what goes out comes back, and nothing else comes in."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import store as command
from tests.support.stores import FakeModel, files_below, flips, forged, members, retarred
from utils.common.checkpoints import write_checkpoint
from utils.common.errors import UserError
from utils.common.paths import Layout
from utils.store import Entry, Store
from utils.store.archive import ENDING


@pytest.fixture
def store(layout: Layout) -> Store:
    return Store(layout)


@pytest.fixture
def entry(store: Store) -> Entry:
    return store.save_model(
        FakeModel(size=3000), name="v1", labels={"team": "nlp"}, metrics={"leaf_accuracy": 0.5},
        custom_objects={"words": ["a"], "note": "x"},
    )  # fmt: skip


@pytest.fixture
def exported(store: Store, entry: Entry, tmp_path: Path) -> Path:
    (entry.run.folder / f"best_{entry.version}_on_other_test.json").write_text("{}")
    (entry.run.folder / f"last_{entry.version}.pt").write_bytes(b"not exported")
    return Path(store.export_model(entry.tag, tmp_path))


@pytest.fixture
def other(tmp_path: Path) -> Store:
    """A store on another machine, empty."""
    return Store(Layout(tmp_path / "elsewhere"))


def refused(store: Store, source: Path | str, match: str) -> None:
    """The import ends with one line and leaves nothing behind."""
    before = files_below(store.layout.root)
    with pytest.raises(UserError, match=match) as caught:
        store.import_model(source)
    assert "\n" not in caught.value.message
    assert files_below(store.layout.root) == before
    assert store.list() == []
    assert not store.layout.weights.exists() or not [
        path for path in store.layout.weights.iterdir() if path.is_dir()
    ]


def test_there_and_back(store: Store, entry: Entry, exported: Path, other: Store) -> None:
    assert exported.name == f"tfidf_hsgd_fake-{entry.version.replace(':', '')}{ENDING}"
    found = other.import_model(exported)
    assert found.info == entry.info
    assert found.tag == entry.tag
    assert dict(found.custom_objects) == {"words": ["a"], "note": "x"}
    assert found.path.read_bytes() == entry.path.read_bytes()
    assert (found.run.folder / f"best_{entry.version}_on_other_test.json").exists()
    assert not found.run.last.exists()
    again = Path(other.export_model(found.tag, exported.parent / "again.kttmodel"))
    assert again.read_bytes() == exported.read_bytes()  # to the byte
    held = members(exported)  # any tar program can read it, and sha256sum -c check it
    assert held["manifest.json.sha256"].split() == [
        hashlib.sha256(held["manifest.json"]).hexdigest().encode(), b"manifest.json"
    ]  # fmt: skip


def test_a_run_from_before_there_was_a_store_travels_too(
    layout: Layout, store: Store, other: Store, tmp_path: Path
) -> None:
    FakeModel(accuracy=0.25).save(
        layout.weight_dir("tfidf_hsgd", "fake") / "best_2026-01-01T00:00:00.pt"
    )
    found = other.import_model(store.export_model("tfidf_hsgd_fake", tmp_path))
    assert found.info.validation == {"leaf_accuracy": 0.25}


def test_what_is_here_already(store: Store, entry: Entry, exported: Path) -> None:
    before = files_below(store.layout.root)
    with pytest.raises(UserError, match="--skip-existing"):
        store.import_model(exported)
    found = store.import_model(exported, skip_existing=True)
    assert (found.tag, found.was_here) == (entry.tag, True)
    assert store.import_model(exported, skip_existing=True, name="v1").tag == entry.tag
    with pytest.raises(UserError, match="leave out --name"):
        store.import_model(exported, skip_existing=True, name="v2")
    result = CliRunner().invoke(command.main, ["import", str(exported), "--skip-existing"])
    assert "was here already" in result.output
    for place, content in flips(exported.read_bytes(), seed=1, count=20):
        exported.with_suffix(".flipped").write_bytes(content)
        with pytest.raises(UserError):
            store.import_model(exported.with_suffix(".flipped"), skip_existing=True)
            pytest.fail(f"bit {place}")
    assert files_below(store.layout.root) == before
    FakeModel(accuracy=0.75).save(entry.path)
    with pytest.raises(UserError, match="with other weights"):
        store.import_model(exported, skip_existing=True)


def test_where_nothing_can_lie(entry: Entry, exported: Path, other: Store, store: Store) -> None:
    long = exported.parent / ("x" * 300)
    for place, words in ((long, "too long"), (exported / "x", "xists"), ("", "Say where")):
        with pytest.raises(UserError, match=words):
            store.export_model(entry.tag, place)
    for place, words in ((long, "too long"), (exported / "x", "Not a directory")):
        with pytest.raises(UserError, match=words):
            other.import_model(place)
    assert not files_below(other.layout.root)


def test_a_name_that_is_taken_can_be_changed(entry: Entry, exported: Path, other: Store) -> None:
    folder = other.layout.weight_dir("tfidf_hsgd", "fake")
    FakeModel().save(folder / "best_2026-01-01T00:00:00.pt")
    other.register("tfidf_hsgd", "fake", "2026-01-01T00:00:00", name="v1")
    with pytest.raises(UserError, match="'v1' is"):
        other.import_model(exported)
    assert other.import_model(exported, name="theirs").info.name == "theirs"
    assert len(other.list()) == 2


def test_the_commands(store: Store, entry: Entry, tmp_path: Path) -> None:
    run = CliRunner()
    target = tmp_path / "model.kttmodel"
    result = run.invoke(command.main, ["export", "tfidf_hsgd_fake:v1", str(target)])
    assert result.exit_code == 0, result.output
    assert str(target) in result.output
    store.delete(entry.tag)
    for arguments, status in (([], 0), ([], 1), (["--skip-existing"], 0)):
        result = run.invoke(command.main, ["import", str(target), *arguments])
        assert result.exit_code == status, result.output
    assert store.get("tfidf_hsgd_fake:v1").info.labels == {"team": "nlp"}
    url = f"file://{tmp_path}/by_url/"
    assert run.invoke(command.main, ["export", "tfidf_hsgd_fake", url]).exit_code == 0
    assert len(list((tmp_path / "by_url").iterdir())) == 1


# -- what is refused ------------------------------------------------------------------------


def test_any_flipped_bit(exported: Path, other: Store) -> None:
    content = exported.read_bytes()
    for place, changed in flips(content, 0, 150):
        exported.write_bytes(changed)
        with pytest.raises(UserError, match="refused"):
            other.import_model(exported)
        assert not files_below(other.layout.root), place
    exported.write_bytes(content)
    assert other.import_model(exported)


def test_any_length_but_the_right_one(exported: Path, other: Store) -> None:
    content = exported.read_bytes()
    for length in (0, 1, 511, 512, 1500, len(content) // 2, len(content) - 512, len(content) - 1):
        exported.write_bytes(content[:length])
        refused(other, exported, "refused")
    exported.write_bytes(content + b"\0")
    refused(other, exported, "its manifest says")


@pytest.mark.parametrize(
    "name",
    ["../evil.pt", "/tmp/evil.pt", "objects/../../evil.json", "objects/a/b.json", "best_x.pt", ".",
     "aliases.json", "objects/code.pkl", "best_2026-01-01T00:00:00.pt\0.json", "store.py"],
)  # fmt: skip
def test_names_that_no_model_has(exported: Path, other: Store, name: str) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = {"bytes": 1, "sha256": "0" * 64}

    exported.write_bytes(forged(exported, edit))
    refused(other, exported, "which no model has")


@pytest.mark.parametrize(
    ("key", "value"),
    [("model", "../x"), ("model", ["x"]), ("dataset", "/tmp"), ("time", "../2026"),
     ("time", "2026-13-21T10:00:00"), ("time", 5),
     ("version", 2), ("format", "zip"), ("files", {}), ("files", []), ("model", None)],
)  # fmt: skip
def test_manifests_that_say_what_cannot_be(
    exported: Path, other: Store, key: str, value: Any
) -> None:
    exported.write_bytes(forged(exported, lambda manifest: manifest.update({key: value})))
    refused(other, exported, "was refused|reads 1|cannot be used")


@pytest.mark.parametrize(
    "kind", ["SYMTYPE", "LNKTYPE", "CHRTYPE", "BLKTYPE", "FIFOTYPE", "DIRTYPE"]
)
def test_links_and_devices(exported: Path, other: Store, kind: str) -> None:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname, info.size = getattr(tarfile, kind), "/etc/passwd", 0

    exported.write_bytes(retarred(exported, change))
    refused(other, exported, "refused")


def test_a_member_that_comes_twice(exported: Path, other: Store) -> None:
    held, to = members(exported), io.BytesIO()
    with tarfile.open(fileobj=to, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in [*held.items(), list(held.items())[-1]]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    exported.write_bytes(to.getvalue())
    refused(other, exported, "refused")


def test_a_manifest_that_names_a_file_twice(exported: Path, other: Store) -> None:
    text = members(exported)["manifest.json"]
    doubled = text.replace(b'"files": {', b'"files": {"entry_x": 1, "entry_x": 2, ', 1)
    content = exported.read_bytes().replace(text, doubled[: len(text)])
    exported.write_bytes(content)
    refused(other, exported, "refused")


@pytest.mark.parametrize("size", [10**6, 10**15, 10**30, -1, 1.5, "1", True])
def test_sizes_that_are_declared_and_not_there(exported: Path, other: Store, size: Any) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        first = next(name for name in manifest["files"] if name.endswith(".pt"))
        manifest["files"][first]["bytes"] = size

    exported.write_bytes(forged(exported, edit))
    refused(other, exported, "refused")


@pytest.fixture
def stream(exported: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The archive, which comes from any URL, and nobody says how long it is."""

    @contextlib.contextmanager
    def unknown_length(place: Any) -> Any:
        with exported.open("rb") as file:
            yield file, None

    monkeypatch.setattr("utils.store.remotes.opened", unknown_length)
    return exported


def test_what_follows_the_end_of_a_stream(stream: Path, store: Store, other: Store) -> None:
    url, content = "https://example.org/x", stream.read_bytes()
    for more in (b"\0", content):
        stream.write_bytes(content + more)
        refused(other, url, "something follows its end")
        with pytest.raises(UserError, match="something follows its end"):
            store.import_model(url, skip_existing=True)
    for less in (b"", content[:-1], content[:-1024]):
        stream.write_bytes(less)
        refused(other, url, "refused")
    stream.write_bytes(content)
    assert other.import_model(url)


def test_a_stream_of_unknown_length_is_not_followed_beyond_the_disk(
    stream: Path, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: os.terminal_size((0, 0)) and _Usage())
    refused(other, "https://example.org/x", "are free")


class _Usage:
    free = 1000


def bomb_gzip(content: bytes) -> bytes:
    return gzip.compress(content + b"\0" * 10_000_000)


def bomb_zip(content: bytes) -> bytes:
    to = io.BytesIO()
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("manifest.json", b"\0" * 10_000_000)
    return to.getvalue()


def bomb_sparse(content: bytes) -> bytes:
    """A hole of a terabyte, as GNU tar writes one."""
    info = tarfile.TarInfo("manifest.json")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % 2**32
    return bytes(header) + content


def deep_manifest(content: bytes) -> bytes:
    text = b"[" * 500_000
    info = tarfile.TarInfo("manifest.json")
    info.size = len(text)
    return info.tobuf(tarfile.GNU_FORMAT) + text + bytes(-len(text) % 512) + content


@pytest.mark.parametrize("make", [bomb_gzip, bomb_zip, bomb_sparse, deep_manifest])
def test_bombs(exported: Path, other: Store, make: Callable[[bytes], bytes]) -> None:
    exported.write_bytes(make(exported.read_bytes()))
    refused(other, exported, "refused")


ENTRIES = (
    b"[]", b'{"labels": [1]}', b'{"name": "latest"}', b'{"labels": {"../x": "y"}}', b"\xff", b"{",
    b'{"metrics": {"leaf_accuracy": NaN}}', b'{"metrics": {"leaf_accuracy": "high"}}',
    b'{"metadata": {"a": "\\ud800"}}', b'{"metadata": {"a": ' + b"[" * 900 + b"]" * 900 + b"}}",
    b'{"signatures": {"predict": {"batch": 1}}}', b'{"signatures": {"predict": 1}}',
    b'{"seed": []}', b'{"labels": {"a": "\\u001b[31m"}}',
    b'{"format": 2}', b'{"rows": {"train": 1.5}}',
)  # fmt: skip
METAS: tuple[Any, ...] = (
    {"model": "tfidf_hsgd", "info": []}, {"model": "tfidf_hsgd", "info": "x"}, {"model": None},
    {"model": "tfidf_hsgd", "info": {"dataset": ["fake"]}},
)  # fmt: skip


def test_an_archive_whose_sums_fit_and_whose_checkpoint_is_another(
    entry: Entry, exported: Path, other: Store
) -> None:
    for edit in ({"model": "tfidf_lsgd"}, {"dataset": "other"}):
        changed = forged(exported, lambda manifest, edit=edit: manifest.update(edit))  # type: ignore[misc]
        (exported.parent / "x").write_bytes(changed)
        refused(other, exported.parent / "x", "its checkpoint is of")
    key = f"best_{entry.version}.pt".replace(".", "_")
    (exported.parent / "x").write_bytes(forged(exported, lambda _: None, **{key: b"pickle"}))
    refused(other, exported.parent / "x", "damaged or no KTT checkpoint")
    key = f"entry_{entry.version}.json".replace(".", "_")
    for text in ENTRIES:
        (exported.parent / "x").write_bytes(forged(exported, lambda _: None, **{key: text}))
        refused(other, exported.parent / "x", ".")


@pytest.mark.parametrize("meta", METAS)
def test_checkpoints_that_say_what_cannot_be(
    entry: Entry, exported: Path, other: Store, tmp_path: Path, meta: Any
) -> None:
    write_checkpoint(tmp_path / "made.pt", {}, meta)
    key = f"best_{entry.version}.pt".replace(".", "_")
    content = (tmp_path / "made.pt").read_bytes()
    exported.write_bytes(forged(exported, lambda _: None, **{key: content}))
    refused(other, exported, "Nothing was imported")


def test_a_forged_archive_is_as_good_as_any_if_all_fits(exported: Path, other: Store) -> None:
    """The helper writes what is accepted: the tests above fail for the reason they name."""
    original = exported.read_bytes()
    exported.write_bytes(forged(exported, lambda _: None))
    assert exported.read_bytes() == original
    assert other.import_model(exported)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_what_is_no_file(other: Store, tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    refused(other, path, "Cannot read|pipe")


def test_an_export_that_fails_leaves_the_old_file(
    store: Store, entry: Entry, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_below(exported.parent)
    monkeypatch.setattr("utils.store.archive._copy", lambda *_: "other sum")
    with pytest.raises(UserError, match="changed while"):
        store.export_model(entry.tag, exported)
    assert files_below(exported.parent) == before
    entry.run.best.unlink()
    with pytest.raises(UserError, match="no best checkpoint"):
        store.export_model(entry.tag, exported)


def test_a_manifest_is_written_in_one_way(exported: Path) -> None:
    manifest = json.loads(members(exported)["manifest.json"])
    assert list(manifest["files"]) == sorted(manifest["files"])
    with tarfile.open(exported) as tar:
        for info in tar.getmembers():
            assert (info.mtime, info.uid, info.gid, info.mode, info.uname) == (0, 0, 0, 0o644, "")
