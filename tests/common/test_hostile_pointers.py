"""DVC's small files from anywhere write nothing but what they stand beside."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import train
from tests.support.tiny import write_tiny_dataset
from utils.common import dvc
from utils.common.errors import UserError
from utils.common.paths import Layout

MD5 = "0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SITE_CACHE", "GLOBAL_CONFIG", "SYSTEM_CONFIG"):
        monkeypatch.setenv(f"DVC_{name}_DIR", str(tmp_path / "dvc" / name))


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DVC repository of a moment ago."""
    root = tmp_path_factory.mktemp("empty")
    command = [sys.executable, "-m", "dvc", "init", "--quiet", "--no-scm"]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    return root


@pytest.fixture
def repository(layout: Layout, empty: Path) -> Layout:
    from shutil import copytree

    copytree(empty, layout.root)
    return layout


def cached(root: Path, content: bytes, ending: str = "") -> str:
    """Put something into DVC's cache; return its hash."""
    md5 = hashlib.md5(content).hexdigest() + ending
    path = root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return md5


def pointer(md5: str, path: str = "val.parquet", more: str = "") -> str:
    return f"outs:\n- md5: {md5}\n  size: 2\n  hash: md5\n  path: {path}\n{more}"


@pytest.mark.parametrize("place", ["../../tomllib.py", "/{root}/tomllib.py", "sub/../../tomllib.py",
                                   "../val.parquet", "./../../tomllib.py"])  # fmt: skip
@pytest.mark.parametrize("form", [
    "outs:\n- md5: {md5}\n  size: 2\n  hash: md5\n  path: {place}\n",
    "outs:\n- md5: {md5}\n  hash: md5\n  path: '{place}'\n",
    'outs: [{{"md5": {md5}, "hash": md5, "path": "{place}"}}]\n',
    "wdir: ../..\nouts:\n- md5: {md5}\n  hash: md5\n  path: tomllib.py\n",
    "outs:\n- md5: {md5}\n  hash: md5\n  path: val.parquet\n"
    "- md5: {md5}\n  hash: md5\n  path: {place}\n",
])  # fmt: skip
def test_a_pointer_writes_nothing_elsewhere(repository: Layout, form: str, place: str) -> None:
    md5 = cached(repository.root, b"raise SystemExit('run')")
    file = repository.dataset("tiny") / "val.parquet"
    file.parent.mkdir(parents=True)
    text = form.format(md5=md5, place=place.format(root=str(repository.root).strip("/")))
    file.with_name("val.parquet.dvc").write_text(text)
    with pytest.raises(UserError, match=r"val\.parquet is missing, and DVC cannot fetch it"):
        dvc.ensure(repository, file)
    assert not list(repository.root.rglob("tomllib.py"))
    assert not (repository.datasets / "val.parquet").exists()


SOUND = pointer(MD5)


@pytest.mark.parametrize(
    "text",
    [
        "", "garbage", "outs:\n", "outs:\n- \n", "outs: []\n", SOUND * 2, SOUND + SOUND[6:],
        pointer(MD5, "train.parquet"), pointer(MD5, "./val.parquet"), pointer(MD5, "val.parquet/x"),
        pointer(MD5, "*"), pointer(MD5, ".."), pointer(MD5, "${x}"), pointer(MD5, "!!str val"),
        pointer(MD5, "s3://elsewhere/val.parquet"), pointer(MD5, "remote://x/val.parquet"),
        pointer(MD5[:-1]), pointer(MD5.upper()), pointer("../../../etc/passwd"),
        pointer(MD5, more="  remote: evil\n"), pointer(MD5, more="  desc: x\n"),
        pointer(MD5, more="  path: val.parquet\n"), pointer(MD5, more="  cache: false\n"),
        pointer(MD5, more="  cloud: x\n"), pointer(MD5, more="  version_id: x\n"),
        pointer(MD5, more="wdir: ..\n"), pointer(MD5, more="cmd: touch hacked\n"),
        pointer(MD5, more="frozen: true\n"), pointer(MD5, more="deps:\n- path: x\n"),
        pointer(MD5, more="deps:\n- path: x\n  repo:\n    url: ext::sh -c touch% hacked\n"),
        pointer(MD5, more="meta: {a: 1}\n"), pointer(MD5, more="# a comment\n"),
        pointer(MD5, more="---\n" + SOUND), pointer(MD5, more="...\n" + SOUND),
        SOUND.replace("hash: md5", "hash: sha256"), SOUND.replace("hash: md5", "hash: ../x"),
        SOUND.replace("md5:", "etag:", 1), SOUND.replace("size: 2", "size: -2"),
        SOUND.replace("size: 2", "size: &a 2"), SOUND.replace("- ", "-   "),
        SOUND.replace("\n", "\r\r\n"), "\ufeff" + SOUND, SOUND + " " * 20_000, "a: " * 5_000,
    ],
)  # fmt: skip
def test_only_what_dvc_add_writes_is_given_to_dvc(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    write_tiny_dataset(layout, "tiny")
    (layout.root / ".dvc").mkdir()
    file = layout.dataset("tiny") / "val.parquet"
    file.unlink()
    file.with_name("val.parquet.dvc").write_text(text, encoding="utf-8", newline="")
    monkeypatch.setattr(subprocess, "run", never)
    result = CliRunner().invoke(train.main, ["-m", "tfidf_lsgd", "-d", "tiny"])
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: datasets/tiny/val.parquet is missing")
    assert "val.parquet.dvc" in line


def never(argv: Any, **_: Any) -> Any:
    raise AssertionError(f"{argv} was run")


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    calls: list[list[str]] = []

    def run(argv: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(argv)
        return subprocess.CompletedProcess(argv, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return calls


@pytest.mark.parametrize(
    "text",
    [
        SOUND, SOUND.rstrip("\n"), SOUND.replace("\n", "\r\n"), pointer(f"'{MD5}'"),
        pointer(MD5, '"val.parquet"'), pointer(MD5, more="  isexec: true\n"),
        f"outs:\n- path: val.parquet\n  md5: {MD5}\n",
    ],
)  # fmt: skip
def test_what_dvc_add_writes_is(layout: Layout, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    file = layout.dataset("tiny") / "val.parquet"
    file.parent.mkdir(parents=True)
    file.with_name("val.parquet.dvc").write_text(text, newline="")
    calls = recorded(monkeypatch)
    with pytest.raises(UserError):  # as nothing was fetched here
        dvc.ensure(layout, file)
    assert len(calls) == 1


@pytest.mark.parametrize("link", ["pointer", "file", "folder", "datasets"])
def test_links_are_not_followed(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = layout.dataset("tiny")
    file = folder / "val.parquet"
    if link == "datasets":
        layout.root.mkdir()
        layout.datasets.symlink_to(outside)
        folder.mkdir()
    elif link == "folder":
        layout.datasets.mkdir(parents=True)
        folder.symlink_to(outside)
    else:
        folder.mkdir(parents=True)
    place = outside / "pointer" if link == "pointer" else folder / "val.parquet.dvc"
    place.write_text(SOUND)
    if link == "pointer":
        (folder / "val.parquet.dvc").symlink_to(place)
    if link == "file":
        file.symlink_to(outside / "new")
    monkeypatch.setattr(subprocess, "run", never)
    with pytest.raises(UserError, match="is a link"):
        dvc.ensure(layout, file)


def listed(root: Path, *places: Any) -> str:
    """Put the list of a folder's files into the cache, and one file; return the list's hash."""
    md5 = cached(root, b"print()")
    entries = [{"md5": md5, "relpath": place} for place in places]
    return cached(root, json.dumps(entries).encode(), ".dir")


@pytest.mark.parametrize(
    "places",
    [["../../tomllib.py"], ["ok.onnx", "a/../../../tomllib.py"], ["/tmp/x"], [".git/config"],
     ["a//b"], [""], ["a/"], [7], ["a\\..\\b"], ["a\0b"]],
)  # fmt: skip
def test_the_files_of_a_folder_lie_in_it(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, places: list[Any]
) -> None:
    folder = layout.root / "outputs" / "m_d" / "encoder"
    folder.parent.mkdir(parents=True)
    md5 = listed(layout.root, *places)
    folder.with_name("encoder.dvc").write_text(pointer(md5, "encoder"))
    pulled = []

    def run(argv: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        pulled.append(argv[4])
        cache = layout.root / ".dvc" / "cache"
        return subprocess.CompletedProcess(argv, 0, f"{cache}\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(UserError, match="a file of the folder would be written to"):
        dvc.ensure(layout, folder)
    assert pulled == ["fetch", "cache"]


@pytest.mark.parametrize("change", [
    lambda path: path.unlink(),
    lambda path: path.write_text("[]"),
    lambda path: path.write_text("{"),
    lambda path: path.write_text("7"),
])  # fmt: skip
def test_a_damaged_list_of_files(
    repository: Layout, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], Any]
) -> None:
    folder = repository.root / "outputs" / "m_d" / "encoder"
    folder.parent.mkdir(parents=True)
    md5 = listed(repository.root, "a.onnx")
    folder.with_name("encoder.dvc").write_text(pointer(md5, "encoder"))
    cache = repository.root / ".dvc" / "cache"
    change(cache / "files" / "md5" / md5[:2] / md5[2:])

    def run(argv: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(argv, 0, f"{cache}\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(UserError, match="list of the folder's files is"):
        dvc.ensure(repository, folder)


def test_a_folder_is_fetched_back(repository: Layout) -> None:
    folder = repository.root / "outputs" / "m_d" / "encoder"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.onnx", "deep/b.json"):
        (folder / name).write_text(name)
    dvc.add(repository.root, [folder])
    for name in ("a.onnx", "deep/b.json"):
        (folder / name).unlink()
    (folder / "deep").rmdir()
    dvc.ensure(repository, folder)
    assert (folder / "deep" / "b.json").read_text() == "deep/b.json"


@pytest.mark.parametrize("setting", [
    "['remote \"r\"']\n    url = webdav://x\n    bearer_token_command = touch hacked\n",
    "['remote \"r\"']\n    url = s3://x\n    configpath = aws.ini\n",
    "['remote \"r\"']\n    url = s3://x\n    'CredentialPath' = aws.ini\n",
    "[core]\n    site_cache_dir = ../cache\n",
    "[hydra]\n    plugins_path=x\n",
    "[core]\n    analytics = false\f    site_cache_dir = ../cache\n",
    "[core] # mine\x85    site_cache_dir = ../cache\n",
    "[core]\n    remote = r\u2028['remote \"r\"']\vbearer_token_command = touch hacked\n",
])  # fmt: skip
def test_settings_that_come_with_a_project_run_nothing(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    file = layout.dataset("tiny") / "val.parquet"
    file.parent.mkdir(parents=True)
    file.with_name("val.parquet.dvc").write_text(SOUND)
    (layout.root / ".dvc").mkdir()
    (layout.root / ".dvc" / "config").write_text(setting, "utf-8")
    monkeypatch.setattr(subprocess, "run", never)
    with pytest.raises(UserError, match="can run a program of whoever wrote it"):
        dvc.ensure(layout, file)
    with pytest.raises(UserError, match="can run a program of whoever wrote it"):
        dvc.add(layout.root, [file])


def test_settings_of_a_repository_that_a_root_lies_in_run_nothing(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = layout.dataset("tiny") / "val.parquet"
    file.parent.mkdir(parents=True)
    file.with_name("val.parquet.dvc").write_text(SOUND)
    (layout.root.parent / ".dvc").mkdir()
    (layout.root.parent / ".dvc" / "config").write_text("[core]\n    site_cache_dir = cache\n")
    monkeypatch.setattr(subprocess, "run", never)
    with pytest.raises(UserError, match="can run a program of whoever wrote it"):
        dvc.ensure(layout, file)


def test_a_pipeline_that_grows_as_it_is_written_out(layout: Layout) -> None:
    lines = ["vars:", "- a0: &a0 [x, x]"]
    lines += [f"- a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    lines += ["stages:", "  one:", "    outs:", "    - *a29", "    - ${a29}", "    - real: *a29"]
    layout.root.mkdir()
    (layout.root / "dvc.yaml").write_text("\n".join(lines))
    assert dvc.pipeline_stage(layout.root, layout.root / "real" / "file") == "one"
    assert dvc.pipeline_stage(layout.root, layout.root / "other") is None
    odd = ["vars:", f"- a: 0x{'f' * 10_000}", "stages:", "  one:", "    outs: ['${a}', real]"]
    (layout.root / "dvc.yaml").write_text("\n".join(odd))
    assert dvc.pipeline_stage(layout.root, layout.root / "real") == "one"
    (layout.root / "dvc.yaml").write_text("a: " + "[" * 50_000)
    assert dvc.pipeline_stage(layout.root, layout.root / "other") is None
