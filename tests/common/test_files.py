"""Files are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils.common.errors import UserError, unknown
from utils.common.files import (
    atomic_dir,
    atomic_path,
    explained,
    followed,
    link,
    read_json,
    write_json,
)
from utils.common.paths import PROJECT_ROOT, Layout, given_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failure_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(tmp_path / "a.json") == {"old": 1}
    assert names(tmp_path) == ["a.json"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with atomic_dir(tmp_path / "d") as temporary:
            (temporary / content).write_text(content)
    assert names(tmp_path) == ["d"]
    assert names(tmp_path / "d") == ["two"]
    with pytest.raises(RuntimeError), atomic_dir(tmp_path / "d") as temporary:
        (temporary / "three").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == ["d"]
    assert names(tmp_path / "d") == ["two"]


def test_kept_entries_are_in_the_new_folder_too(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    (folder / "logs" / "run").mkdir(parents=True)
    (folder / "page").write_text("page")
    (folder / "gone").write_text("gone")
    with (folder / "logs" / "run" / "events").open("a") as events:
        events.write("one ")
        events.flush()
        with atomic_dir(folder, keep=("logs", "page", "never there")) as temporary:
            (temporary / "new").write_text("new")
        events.write("two")  # who is writing meanwhile writes on in the same file
    assert names(folder) == ["logs", "new", "page"]
    assert (folder / "logs" / "run" / "events").read_text() == "one two"
    assert names(tmp_path) == ["d"]
    with pytest.raises(RuntimeError), atomic_dir(folder, keep=("logs",)) as temporary:
        raise RuntimeError
    assert names(folder) == ["logs", "new", "page"]


KEEPING = """
import sys, pathlib
sys.path.insert(0, sys.argv[1])
from utils.common.files import atomic_dir
print("ready", flush=True)
for k in range(10_000):
    with atomic_dir(pathlib.Path(sys.argv[2]) / "d", keep=("kept",)) as temporary:
        (temporary / "x").write_text(str(k))
"""


def test_kill_at_random_moments_never_loses_what_is_kept(tmp_path: Path) -> None:
    (tmp_path / "d" / "kept").mkdir(parents=True)
    for number in range(50):
        (tmp_path / "d" / "kept" / str(number)).write_text("kept")
    for delay in (0.02, 0.055, 0.09, 0.13):
        command = [sys.executable, "-c", KEEPING, str(PROJECT_ROOT), str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(delay)
            os.kill(process.pid, signal.SIGKILL)
        assert {path.read_text() for path in (tmp_path / "d" / "kept").iterdir()} == {"kept"}
        assert len(names(tmp_path / "d" / "kept")) == 50


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        write_json(tmp_path / "file" / "a.json", {})
    with pytest.raises(UserError, match="Cannot write"), atomic_path(tmp_path / "b") as temporary:
        temporary.write_text("x")
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == ["file"]


def test_a_folder_that_cannot_be_copied_is_one_short_line(tmp_path: Path) -> None:
    full = "[Errno 28] No space left on device: 'a' -> 'b'"
    copies = [(f"from/{name}", f"to/{name}", full) for name in "abcdef"]
    with pytest.raises(UserError) as caught, explained(tmp_path / "d"):
        raise shutil.Error(copies)  # as copytree does
    assert str(caught.value).startswith(f"Cannot write {tmp_path}/d: No space left on device. ")
    assert len(str(caught.value)) < len(str(tmp_path)) + 100


def test_what_cannot_be_written_in_the_current_folder_is_one_line(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    for name in ("folder", ".", "folder/../folder"):
        with pytest.raises(UserError, match="Cannot write"):
            write_json(Path(name), {})
    assert names(tmp_path) == ["folder"]


def test_pipes_and_devices_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a file"):
        write_json(tmp_path / "pipe", {})
    assert (tmp_path / "pipe").is_fifo()


def test_a_link_is_followed_to_its_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "there")
    assert followed(tmp_path / "link") == tmp_path / "there"
    assert followed(tmp_path / "plain") == tmp_path / "plain"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert followed(tmp_path / "loop") == tmp_path / "loop"


def test_json_too_deep_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(tmp_path / "a.json")


def test_a_device_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"a\.json is a device"):
        read_json(tmp_path / "a.json")


def test_a_link_shares_the_content_and_survives_a_new_source(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    link(tmp_path / "a", tmp_path / "b")
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("2")
    assert (tmp_path / "b").read_text() == "1"


def test_leavings_of_dead_processes_are_swept(tmp_path: Path) -> None:
    dead, mine, young = ".tmp-4194305-a", f".tmp-{os.getpid()}-b", ".tmp-4194305-c"
    for name in (dead, mine, young):
        (tmp_path / name).write_text("half")
    for name in (dead, mine):
        os.utime(tmp_path / name, (0, 0))
    write_json(tmp_path / "a.json", {})
    assert names(tmp_path) == sorted([mine, young, "a.json"])


def test_readers_of_a_replaced_folder_always_find_one(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1])\n"
        "from utils.common.files import atomic_dir\n"
        "for k in range(200):\n"
        "    with atomic_dir(pathlib.Path(sys.argv[2]) / 'd') as temporary:\n"
        "        (temporary / 'x').write_text(str(k))\n"
    )
    with atomic_dir(tmp_path / "d") as temporary:
        (temporary / "x").write_text("first")
    looked = 0
    with subprocess.Popen(
        [sys.executable, "-c", code, str(PROJECT_ROOT), str(tmp_path)]
    ) as process:
        while process.poll() is None:
            assert (tmp_path / "d").is_dir()
            looked += 1
    assert process.returncode == 0
    assert looked > 100
    assert (tmp_path / "d" / "x").read_text() == "199"


KILLED = """
import sys, pathlib
sys.path.insert(0, sys.argv[1])
from utils.common.files import atomic_path
path = pathlib.Path(sys.argv[2]) / "data.bin"
print("ready", flush=True)
for k in range(10_000):
    with atomic_path(path) as temporary:
        temporary.write_bytes(bytes([k % 256]) * 3_000_000)
"""


def test_kill_at_random_moments_never_shows_a_half_file(tmp_path: Path) -> None:
    for delay in (0.02, 0.055, 0.09, 0.13):
        command = [sys.executable, "-c", KILLED, str(PROJECT_ROOT), str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(delay)
            os.kill(process.pid, signal.SIGKILL)
        for path in tmp_path.glob("[!.]*"):
            content = path.read_bytes()
            assert len(content) == 3_000_000
            assert len(set(content)) == 1


def test_kept_links_stay_links(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "large").write_text("large")
    old = tmp_path / "d"
    (old / "inner").mkdir(parents=True)
    for place, target in (("l", "../elsewhere"), ("gone", "nowhere"), ("inner/l", "../x")):
        (old / place).symlink_to(target)
    with atomic_dir(old, keep=["l", "gone", "inner"]):
        pass
    for place, target in (("l", "../elsewhere"), ("gone", "nowhere"), ("inner/l", "../x")):
        assert str((old / place).readlink()) == target
    assert (old / "l" / "large").read_text() == "large"


def test_nearest_name_is_offered() -> None:
    message = unknown("model", "db_bhcm", ["db_bhcn", "tfidf_hsgd"]).message
    assert message == "Unknown model 'db_bhcm'. Did you mean 'db_bhcn'? Known: db_bhcn, tfidf_hsgd."


@pytest.mark.parametrize(
    "name", ["", "..", "a/b", "/etc", ".hidden", "a b", "-x", "a" * 200, "a\n"]
)
def test_names_cannot_leave_their_folder(name: str) -> None:
    layout = Layout("/somewhere")
    with pytest.raises(UserError, match="cannot be used"):
        layout.dataset(name)
    with pytest.raises(UserError, match="cannot be used"):
        layout.weight_dir("db_bhcn", name)


def test_the_root_does_not_depend_on_the_current_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("KTT_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert Layout().root == PROJECT_ROOT
    monkeypatch.setenv("KTT_ROOT", str(tmp_path / "here"))
    assert Layout().datasets == tmp_path / "here" / "datasets"


@pytest.mark.parametrize("text", ["x" * 5000, "~nobody-9/x"])
def test_what_can_be_no_path_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match="^Cannot read "):
        given_path(text)
    with pytest.raises(UserError, match="^Cannot read "):
        Layout(text)


def test_home_is_known(monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert given_path("~/x") == Path("/somewhere/x")
