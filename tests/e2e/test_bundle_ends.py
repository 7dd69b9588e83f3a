"""How a bundle ends, and what does not end it: signals, full disks, settings that are none."""

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.e2e.test_bundle_http import BENTOML, processes, toy, until
from tests.e2e.test_interruptions import mounted
from utils.serving.local_server import Server, free_port, served

pytest.importorskip("ktt_bentoml_compat", reason="pip install ./packages/bentoml-py311")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy(tmp_path_factory.mktemp("toy"))


def _ask(server: Server, text: str) -> int | str:
    """The status of the answer; or why there is none."""
    try:
        return server.ask("/predict", {"text": text}).status
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:
        return type(error).__name__


@pytest.mark.parametrize("command", ["serve-gunicorn", "serve"])
def test_a_service_that_is_stopped_answers_what_it_was_asked(
    bundle: Path, tmp_path: Path, command: str
) -> None:
    """A terminal that is closed, then Ctrl+C and SIGTERM to all processes, twice, under load."""
    stopped = threading.Event()
    with served(bundle, command, BENTOML, tmp_path) as running, ThreadPoolExecutor(20) as pool:
        everybody = processes(running)

        def hammer() -> set[int | str]:
            found: set[int | str] = set()
            while not stopped.is_set():
                found.add(_ask(running, "a"))
            return found

        def tell(number: signal.Signals) -> None:
            for process in reversed(everybody):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

        tell(signal.SIGHUP)
        assert {_ask(running, "a b") for _ in range(5)} == {200}
        load = [pool.submit(hammer) for _ in range(10)]
        time.sleep(0.5)
        with socket.create_connection(("127.0.0.1", running.port)) as idle:
            in_flight = [pool.submit(_ask, running, f"slow {number}") for number in range(4)]
            time.sleep(0.2)
            for number in (signal.SIGINT, signal.SIGTERM) * 2:
                tell(number)
            _, left = psutil.wait_procs(everybody, 15)
            idle.settimeout(5)
            assert idle.recv(1) == b""
        stopped.set()
        assert not left
        assert [one.result() for one in in_flight] == [200] * 4
        assert set().union(*(one.result() for one in load)) <= {200, 503, "refused"}
    assert "Traceback" not in running.log.read_text(encoding="utf-8")


def test_a_service_that_is_stopped_while_it_starts_leaves_nothing(
    bundle: Path, tmp_path: Path
) -> None:
    command = [BENTOML, "serve-gunicorn", bundle, "--port", str(free_port())]
    env = {**os.environ, "BENTOML_HOME": str(tmp_path)}
    with (tmp_path / "log").open("wb") as log:
        main = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    until(psutil.Process(main.pid).children, 30, pause=0.005)
    main.terminate()
    assert main.wait(15) in {0, -signal.SIGTERM}
    until(lambda: not [p for p in psutil.process_iter() if _session(p.pid) == main.pid], 15)


def _session(pid: int) -> int:
    with contextlib.suppress(ProcessLookupError):
        return os.getsid(pid)
    return 0


def test_a_worker_of_the_proxy_that_ends_takes_nothing_along(bundle: Path, tmp_path: Path) -> None:
    with served(bundle, "serve-gunicorn", BENTOML, tmp_path) as running:
        main, *_ = processes(running)
        (proxy,) = (one for one in main.children() if not one.children())
        others = [one for one in processes(running) if one != proxy]
        proxy.terminate()
        proxy.wait(15)
        until(lambda: _ask(running, "a b") == 200)
        time.sleep(1.5)
        assert all(one.is_running() for one in others)
        assert _ask(running, "a b") == 200


def test_a_full_home_costs_metrics_not_workers(bundle: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with mounted(home, "size=2m"), served(bundle, "serve-gunicorn", BENTOML, home) as running:
        with contextlib.suppress(OSError), (home / "fill").open("wb", buffering=0) as fill:
            while fill.write(bytes(4096)):
                pass
        workers = [one for one in processes(running) if not one.children()]
        for worker in workers:
            worker.kill()
        psutil.wait_procs(workers, 10)
        until(lambda: _ask(running, "a b") == 200)
        replaced = [one for one in processes(running) if not one.children()]
        assert {_ask(running, "a b") for _ in range(20)} == {200}
        time.sleep(1)
        assert all(one.is_running() for one in replaced)  # none has died and been replaced


@pytest.mark.parametrize("token", [" ", "\udcff"])
def test_a_token_that_cannot_be_one_ends_it_with_a_line(
    bundle: Path, tmp_path: Path, token: str
) -> None:
    done = subprocess.run(
        [BENTOML, "serve", bundle, "--port", str(free_port())],
        env={**os.environ, "BENTOML_HOME": str(tmp_path), "KTT_API_TOKEN": token},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    printed = done.stdout + done.stderr
    assert sum("KTT_API_TOKEN" in line for line in printed.splitlines()) == 1
    assert "Traceback" not in printed
