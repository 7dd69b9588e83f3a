"""The runner's worker processes, in programs that end in every way."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.runner_models import FragileOpener
from utils.common.paths import PROJECT_ROOT
from utils.runner import Runner, Signature, WorkerDied

pytestmark = pytest.mark.slow

SOAK = float(os.environ.get("KTT_SOAK_SECONDS", "8"))
PATIENCE = 60.0

START = """
import sys, threading, time
from pathlib import Path
from tests.support.runner_models import FragileOpener
from utils.runner import Runner, RunnerClosed, Signature, WorkerDied

def ask():
    try:
        runner.echo.run(["sleep s"])
    except (RunnerClosed, WorkerDied):
        print("told")

if __name__ == "__main__":
    opener = FragileOpener(Path("."))
    signatures = {"echo": Signature()}
    runner = Runner("test", opener, signatures=signatures, workers=WORKERS).init_local()
    print("PIDS", *runner._opened().pids(), flush=True)
"""
ENDS = {
    "unclosed": "print(runner.echo.run(['a'])[0][0])",
    "at work": (
        "threading.Thread(target=ask, daemon=True).start()\n"
        "    while not Path('s').exists(): time.sleep(.01)"
    ),
    "by an error": "raise SystemExit(3)",
    "waiting": "runner.echo.run(['sleep s'])",
}


def program(folder: Path, workers: int, ending: str) -> subprocess.Popen[str]:
    """Start a program with a runner."""
    script = folder / "program.py"
    script.write_text(START.replace("WORKERS", str(workers)) + f"    {ending}\n")
    return subprocess.Popen(
        [sys.executable, str(script)], cwd=folder, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def pids_of(running: subprocess.Popen[str]) -> list[int]:
    assert running.stdout
    return [int(pid) for pid in running.stdout.readline().split()[1:]]


def gone(pids: list[int]) -> bool:
    end = time.monotonic() + PATIENCE
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["unclosed", "at work", "by an error"])
def test_a_program_that_forgets_to_close_ends_quietly(
    tmp_path: Path, kind: str, workers: int
) -> None:
    running = program(tmp_path, workers, ENDS[kind])
    pids = pids_of(running)
    assert len(pids) == workers
    _, errors = running.communicate(timeout=PATIENCE)  # a batch takes five minutes
    assert errors == ""
    assert running.returncode == (3 if kind == "by an error" else 0)
    assert gone(pids)


def test_workers_end_with_a_program_that_is_killed(tmp_path: Path) -> None:
    running = program(tmp_path, 2, "time.sleep(300)")
    pids = pids_of(running)
    running.kill()
    running.communicate()
    assert gone(pids)


def test_ctrl_c_ends_a_waiting_call_and_the_workers(tmp_path: Path) -> None:
    running = program(tmp_path, 2, ENDS["waiting"])
    pids = pids_of(running)
    end = time.monotonic() + PATIENCE
    while not (tmp_path / "s").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGINT)
    _, errors = running.communicate(timeout=PATIENCE)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert errors.count("Traceback") == 1, errors
    assert gone(pids)


def test_a_program_without_a_guard_is_told(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    lines = START.replace("WORKERS", "1").replace('if __name__ == "__main__":', "if True:")
    script.write_text(lines)
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, text=True, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    assert "ended while it started" in done.stderr.splitlines()[-1]
    assert '`if __name__ == "__main__":`' in done.stderr.splitlines()[-1]


def test_workers_are_killed_at_random_and_nobody_waits_for_ever(tmp_path: Path) -> None:
    runner = Runner(
        "test", FragileOpener(tmp_path), signatures={"echo": Signature()}, workers=2,
        max_batch_size=16,
    )  # fmt: skip
    counts = {"answered": 0, "died": 0}
    wrong: list[Any] = []
    enough = threading.Event()

    def ask(number: int) -> None:
        turn = 0
        while not enough.is_set():
            turn += 1
            rows = [f"{number}-{turn}-{k}" for k in range(1 + turn % 3)]
            try:
                found = [row for row, _ in runner.echo.run(rows)]
                wrong.extend([] if found == rows else [(rows, found)])
                counts["answered"] += 1
            except WorkerDied:
                counts["died"] += 1

    with runner:
        threads = [threading.Thread(target=ask, args=(n,), daemon=True) for n in range(16)]
        for thread in threads:
            thread.start()
        rng = random.Random(0)
        start, kills = time.monotonic(), 0
        while time.monotonic() < start + SOAK - 2 or runner.counts.restarts < 3:
            assert time.monotonic() < start + SOAK + PATIENCE
            time.sleep(rng.uniform(0.05, 0.7))
            # however slow they are: so many answers come between two kills
            if counts["answered"] > 150 * kills and (pids := runner._opened().pids()):
                os.kill(rng.choice(pids), signal.SIGKILL)
                kills += 1
        time.sleep(2)
        enough.set()
        end = time.monotonic() + PATIENCE
        for thread in threads:
            thread.join(max(0.1, end - time.monotonic()))
        assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    assert counts["answered"] > 100 * counts["died"]
