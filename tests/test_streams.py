"""Commands whose standard streams are closed, full, or read by nobody any more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.common.paths import PROJECT_ROOT

ADAPT = ("adapt.py", "demo", "d", "--no-dvc", "--rows", "200")


def shell(
    root: Path, redirection: str, script: str, *arguments: str, inherited: int = 2
) -> tuple[int, str]:
    """Exit status, and what was printed where it could be."""
    argv = [sys.executable, str(PROJECT_ROOT / script), *arguments]
    done = subprocess.run(
        ["bash", "-c", f'exec "$0" "$@" {redirection}', *argv], pass_fds=[inherited],
        env={**os.environ, "KTT_ROOT": str(root)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    assert "Exception ignored" not in done.stderr
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_work_is_done_without_streams(tmp_path: Path, closed: str) -> None:
    status, printed = shell(tmp_path, closed, *ADAPT)
    assert status == 0, printed
    assert ("splits:" in printed) == (">&-" not in closed or closed == "2>&-")
    assert {file.stem for file in (tmp_path / "datasets" / "d").glob("*.parquet")} == {
        "train", "val", "test",
    }  # fmt: skip


@pytest.mark.parametrize(
    "command", [ADAPT, ("adapt.py", "--help"), ("store.py", "list"), ("evaluate.py", "--help")]
)
def test_a_full_disk_behind_standard_output_is_one_line(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    status, printed = shell(tmp_path, ">/dev/full", *command)
    assert status == 1
    assert printed == "Error: Cannot write to standard output: No space left on device.\n"


@pytest.mark.parametrize("command", [ADAPT, ("train.py", "--help"), ("store.py", "list")])
def test_a_reader_that_has_had_enough_ends_a_command_in_silence(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    status, printed = shell(tmp_path, f">&{writing}", *command, inherited=writing)
    os.close(writing)
    assert (status, printed) == (141, "")


def test_messages_that_cannot_be_shown_end_nothing(tmp_path: Path) -> None:
    status, printed = shell(tmp_path, "2>/dev/full", *ADAPT)
    assert status == 0
    assert "splits:" in printed
    status, _ = shell(tmp_path, "2>/dev/full", "train.py", "-d", "nothing")
    assert status == 1


def test_answers_for_a_closed_output_are_refused(tmp_path: Path) -> None:
    import utils.tables.formats as formats
    from utils.common.errors import UserError

    before, sys.__stdout__ = sys.__stdout__, None  # type: ignore[misc]
    try:
        with pytest.raises(UserError, match="closed"), formats._direct(None):
            pass
    finally:
        sys.__stdout__ = before  # type: ignore[misc]
