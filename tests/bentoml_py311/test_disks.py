"""A service whose disk is full or refuses: its metrics are lost, its answers are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bentoml_py311.test_compat import run
from tests.e2e.test_interruptions import mounted

pytest.importorskip("ktt_bentoml_compat", reason="pip install ./packages/bentoml-py311")

COUNT = """
import logging, os, resource, signal, sys
from pathlib import Path
logging.basicConfig(format="%(message)s")
os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[1]
from ktt_bentoml_compat import counts
counts.guard()
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest, multiprocess
if sys.argv[2] == "limited":  # as a full disk refuses, for whoever may not mount one
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), -1))
first = Counter("first", "First.", ["name"])
Gauge("second", "Second.", multiprocess_mode="livesum").set(1)
for number in range(int(sys.argv[4])):
    first.labels("x" * 100 + str(number)).inc(number)
print(first.labels("x" * 100 + "7")._value.get())
registry = CollectorRegistry()
multiprocess.MultiProcessCollector(registry)
print(len(generate_latest(registry)) > 100)
"""


def count(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-c", COUNT, str(folder), *arguments, home=folder)


@pytest.mark.parametrize(
    ("limit", "numbers", "readable"),
    [("1000000", "10", True), ("1000", "10", False), ("70000", "900", True)],
    ids=["room", "no room", "room for the first only"],
)
def test_counting_goes_on_without_room(
    tmp_path: Path, limit: str, numbers: str, readable: bool
) -> None:
    done = count(tmp_path, "limited", limit, numbers)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["7.0", str(readable)]
    lost = [line for line in done.stderr.splitlines() if line.startswith("Metrics are lost")]
    assert len(lost) == (limit != "1000000")


@pytest.mark.parametrize("room", ["0k", "4k", "64k", "100k"])
def test_a_full_disk_kills_nobody(tmp_path: Path, room: str) -> None:
    """As released: SIGBUS, for this process and for each that takes its place."""
    folder = tmp_path / "home"
    with mounted(folder, "size=200k"):
        (folder / "fill").write_bytes(bytes((200 - int(room[:-1])) * 1024))
        done = count(folder, "mounted", "", "900")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "7.0"
    assert done.stderr.count("Metrics are lost") == 1


def test_a_folder_that_is_missing_is_one_line(tmp_path: Path) -> None:
    code = (
        "import os, logging; logging.basicConfig(format='%(message)s')\n"
        "os.environ['PROMETHEUS_MULTIPROC_DIR'] = '/nowhere'\n"
        "from ktt_bentoml_compat import counts, proxy; counts.guard()\n"
        "from prometheus_client import Counter\n"
        "Counter('a', 'A.').inc()\n"
        "print(proxy.metrics().status)"
    )
    done = run(sys.executable, "-c", code, home=tmp_path)
    assert done.stdout.split() == ["503"], done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("Metrics are lost, answers are not")


def test_a_home_that_refuses_is_one_line(tmp_path: Path) -> None:
    home = tmp_path / "file"
    home.write_text("no folder")
    code = "import bentoml, logging; logging.getLogger('bentoml').warning('said'); print('on')"
    done = run(sys.executable, "-W", "ignore", "-c", code, home=home)
    assert done.returncode == 0, done.stderr
    refused, said, on = done.stdout.splitlines()
    assert "No log files are written" in refused
    assert said.endswith("said")
    assert on == "on"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full 2>&1"])
def test_output_that_nobody_can_have_goes_nowhere_else(tmp_path: Path, closed: str) -> None:
    """A log file, or a connection, that is opened as number 1 would have all that is printed."""
    code = (
        "import os, warnings; warnings.simplefilter('ignore'); import bentoml, logging\n"
        "logging.getLogger('bentoml').warning('said')\n"
        "os.write(1, b'printed') if not os.environ.get('FULL') else None\n"
        "raise SystemExit(7)"
    )
    command = f'exec "$0" -c "$1" {closed}'
    full = "FULL=1 " if "full" in closed else ""
    done = run("sh", "-c", f"{full}{command}", sys.executable, code, home=tmp_path / "home")
    assert done.returncode == 7
    assert "Traceback" not in done.stderr
    logs = [path.read_text() for path in (tmp_path / "home" / "logs").iterdir()]
    assert not any("printed" in log for log in logs)
    assert any("said" in log for log in logs)
