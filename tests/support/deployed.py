"""Runs an exported system, and lets a test stop, kill, freeze and ask its parts, or replace one.

With containers: those of a Docker daemon or, without one, of the script in
``KTT_CONTAINER_ENGINE`` (by default ``../shared/containers/engine.sh``, if there is one).
Otherwise the same programs run as processes: the bundle in the environment of ``KTT_BENTOML``
(by default this one), the monitoring service in that of ``KTT_MONITOR_PYTHON`` (by default one
made from its requirements), and an installed Prometheus.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from utils.common.paths import PROJECT_ROOT
from utils.serving.local_server import Reply, free_port

SERVICES = ("inference", "monitoring", "prometheus")
READY = {"inference": "/readyz", "monitoring": "/healthz", "prometheus": "/-/ready"}
PORTS = {
    "inference": "KTT_PORT",
    "monitoring": "KTT_MONITOR_PORT",
    "prometheus": "KTT_PROMETHEUS_PORT",
}
INNER_PORTS = {"inference": 5000, "monitoring": 5001, "prometheus": 9090}
BUILD_SECONDS = 1800
OUTAGES = ("stopped", "frozen", "failing")
ANSWERS_500 = """
import http.server, sys

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("", int(sys.argv[1])), Handler).serve_forever()
"""


class Runner(Protocol):
    """What a way of running the services must be able to do."""

    containers: bool

    def up(self) -> None: ...
    def down(self) -> None: ...
    def stop(self, service: str) -> None: ...
    def start(self, service: str) -> None: ...
    def kill(self, service: str) -> None: ...
    def freeze(self, service: str) -> None: ...
    def thaw(self, service: str) -> None: ...
    def stand_in(self, service: str, script: str) -> None: ...
    def memory(self, service: str) -> int: ...
    def logs(self, service: str) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """A running system."""

    folder: Path
    ports: Mapping[str, int]
    run: Runner

    def request(
        self,
        service: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout: float = 10,
    ) -> Reply:
        """GET a path of a service, or POST a body to it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[service], timeout=timeout)
        try:
            method = "GET" if body is None else "POST"
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return Reply(status=answer.status, body=answer.read(), headers=dict(answer.headers))
        finally:
            connection.close()

    def ask(self, path: str, document: Any, *, timeout: float = 10) -> Reply:
        """POST a JSON document to the inference service."""
        body = json.dumps(document).encode()
        return self.request("inference", path, body, self.headers, timeout=timeout)

    @functools.cached_property
    def headers(self) -> dict[str, str]:
        """What a request to the inference service brings."""
        token = settings_of(self.folder).get("KTT_API_TOKEN")
        bearer = {"Authorization": f"Bearer {token}"} if token else {}
        return {"Content-Type": "application/json", **bearer}

    def prometheus(self, path: str, **parameters: str) -> Any:
        """What Prometheus's HTTP API answers."""
        query = urllib.parse.urlencode(parameters)
        reply = self.request("prometheus", f"/api/v1/{path}?{query}")
        document = reply.json()
        assert document["status"] == "success", document
        return document["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series that an expression gives now."""
        found: list[dict[str, Any]] = self.prometheus("query", query=expr)["result"]
        return found

    def value(self, expr: str) -> float:
        """The one value of an expression; NaN if it has none."""
        found = self.query(expr)
        return float(found[0]["value"][1]) if found else float("nan")

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        alerts = self.prometheus("alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def metric(self, service: str, name: str, **labels: str) -> float:
        """What a service itself says now, as a sum over the series with these labels."""
        from prometheus_client.parser import text_string_to_metric_families

        families = text_string_to_metric_families(self.request(service, "/metrics").text)
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def ready(self, service: str) -> bool:
        """Whether a service says that it is ready."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.request(service, READY[service], timeout=3).status == 200
        return False

    def wait_until_ready(self, seconds: float = 60, services: Sequence[str] = SERVICES) -> float:
        """Wait for all services; how long it took."""
        started = time.monotonic()
        self.wait_for(lambda: all(self.ready(service) for service in services), seconds)
        return time.monotonic() - started

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                tails = [f"== {name}\n{self.run.logs(name)[-3000:]}" for name in SERVICES]
                raise AssertionError("\n".join([f"not within {seconds} s", *tails]))
            time.sleep(0.5)


@contextlib.contextmanager
def outage(system: Deployed, service: str, how: str) -> Iterator[None]:
    """Let a service be away, in one of the ways of `OUTAGES`, until the block ends."""
    if how == "frozen":
        system.run.freeze(service)
    elif how == "stopped":
        system.run.stop(service)
    else:
        system.run.stand_in(service, ANSWERS_500)
    try:
        yield
    finally:
        (system.run.thaw if how == "frozen" else system.run.start)(service)


@contextlib.contextmanager
def deployed(folder: Path, period: int | None = None) -> Iterator[Deployed]:
    """Run the system in an exported folder, which is changed a little, until the block ends.

    Parameters
    ----------
    period
        Seconds between two calculations of the monitor; by default as exported.
    """
    ports = {service: free_port() for service in SERVICES}
    _set_ports(folder / ".env", ports)
    if period is not None:
        _replace(
            folder / "monitoring" / "evidently.yaml",
            r"(calculation_period_sec:) .*",
            rf"\g<1> {period}",
        )
    engine = container_environment()
    project = {"COMPOSE_PROJECT_NAME": f"e2e_{folder.name}"}  # not that of a system in use
    run: Runner = (
        Containers(folder=folder, env={**project, **engine})
        if engine is not None
        else Processes(folder, ports)
    )
    system = Deployed(folder=folder, ports=ports, run=run)
    try:
        run.up()
        yield system
    finally:
        run.down()


def settings_of(folder: Path) -> dict[str, str]:
    """What `.env` of an exported folder sets."""
    lines = (folder / ".env").read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("=") for line in lines if not line.startswith("#")]
    return {name: value for name, _, value in pairs if value}


def _set_ports(settings: Path, ports: Mapping[str, int]) -> None:
    for service, name in PORTS.items():
        _replace(settings, rf"(?m)^#?{name}=.*$", f"{name}={ports[service]}")


def _replace(file: Path, pattern: str, text: str) -> None:
    before = file.read_text(encoding="utf-8")
    after, count = re.subn(pattern, text, before)
    assert count, f"{file} has no {pattern}"
    file.write_text(after, encoding="utf-8")


# -- containers -----------------------------------------------------------------------------


def compose_command() -> list[str] | None:
    """docker-compose 1.29, else the plugin of Docker."""
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    if shutil.which("docker") and _succeeds(["docker", "compose", "version"]):
        return ["docker", "compose"]
    return None


@functools.cache
def container_environment() -> dict[str, str] | None:
    """The environment in which containers can be run, None if they cannot."""
    if os.environ.get("KTT_CONTAINER_ENGINE") == "none" or compose_command() is None:
        return None
    if shutil.which("docker") and _succeeds(["docker", "info"]):
        return dict(os.environ)
    default = PROJECT_ROOT.parent / "shared" / "containers" / "engine.sh"
    engine = Path(os.environ.get("KTT_CONTAINER_ENGINE") or default).absolute()
    if not engine.is_file():
        return None
    # It stays, so it must not stand in a folder that may go: it could start no container then.
    subprocess.run([str(engine), "up"], check=True, stdout=subprocess.DEVNULL, timeout=900, cwd="/")
    exports = subprocess.run([str(engine), "env"], check=True, capture_output=True, text=True)
    pairs = [word.partition("=") for word in exports.stdout.split() if "=" in word]
    return {**os.environ, **{name: value.strip("'\"") for name, _, value in pairs}}


def _succeeds(command: list[str]) -> bool:
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with contextlib.suppress(subprocess.TimeoutExpired):  # a daemon that hangs is none
        return subprocess.run(command, check=False, timeout=60, **quiet).returncode == 0
    return False


@dataclass(frozen=True, kw_only=True)
class Containers:
    """The services as containers of docker-compose."""

    folder: Path
    env: Mapping[str, str]
    containers = True

    def compose(self, *arguments: str, check: bool = True, seconds: float = 120) -> str:
        """Run docker-compose in the exported folder; what it printed."""
        command = compose_command()
        assert command
        done = subprocess.run(
            [*command, *arguments], cwd=self.folder, env=dict(self.env), check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds,
        )  # fmt: skip
        assert not check or not done.returncode, f"{arguments}: {done.stdout[-6000:]}"
        return done.stdout

    def up(self) -> None:
        """Build the images, then start the containers, without what a killed run has left."""
        self.down()
        self.compose("build", *SERVICES[:2], seconds=BUILD_SECONDS)
        self.compose("up", "-d", *SERVICES, seconds=300)

    def down(self) -> None:
        """Remove containers and volumes."""
        for service in SERVICES:
            self._engine("rm", "--force", self._stand_in(service), check=False)
        self.compose("down", "--volumes", "--timeout", "5", check=False)

    def stop(self, service: str) -> None:
        """Stop a service as docker-compose does."""
        self.compose("stop", "--timeout", "10", service)

    def start(self, service: str) -> None:
        """Start a stopped service, in place of what stood in for it."""
        self._engine("rm", "--force", self._stand_in(service), check=False)
        self.compose("start", service)

    def kill(self, service: str) -> None:
        """Kill the processes of a service, as a crash would; its restart policy applies."""
        self.compose("exec", "-T", service, "sh", "-c", "kill -9 -1", check=False)

    def freeze(self, service: str) -> None:
        """Let the processes stand still; docker-compose pauses, but not every engine goes on."""
        self.compose("exec", "-T", service, "sh", "-c", "kill -STOP -1")

    def thaw(self, service: str) -> None:
        """Let them go on."""
        self.compose("exec", "-T", service, "sh", "-c", "kill -CONT -1")

    def stand_in(self, service: str, script: str) -> None:
        """Stop a service, and let a Python script answer in its place on the port it is given."""
        self.stop(service)
        name, port = self._stand_in(service), str(INNER_PORTS[service])
        run = ("run", "--detach", "--no-deps", "--use-aliases", "--name", name)
        self.compose(*run, service, "python", "-c", script, port)

    def memory(self, service: str) -> int:
        """Bytes that its processes have taken, without the files they have mapped."""
        _, said = self.inside(service, "cat /proc/[0-9]*/smaps_rollup")
        return _proportional(said)

    def logs(self, service: str) -> str:
        """All that a service has printed."""
        return self.compose("logs", "--no-color", service, check=False)

    def _stand_in(self, service: str) -> str:
        return f"{self.env['COMPOSE_PROJECT_NAME']}_{service}_stand_in"

    def _engine(self, *arguments: str, check: bool = True) -> None:
        subprocess.run(
            ["docker", *arguments], env=dict(self.env), check=check, capture_output=True, timeout=60
        )

    def inside(self, service: str, script: str) -> tuple[int, str]:
        """Run a shell script in a container: its status and what it printed."""
        printed = self.compose(
            "exec", "-T", service, "sh", "-c", f"({script}) 2>&1; echo status=$?", check=False
        )
        text, _, status = printed.rpartition("status=")
        return int(status.split()[0]), text.strip()


# -- processes ------------------------------------------------------------------------------


@dataclass
class Processes:
    """The services as processes of this machine."""

    folder: Path
    ports: Mapping[str, int]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    containers = False

    def up(self) -> None:
        """Start all."""
        self._work().mkdir(exist_ok=True)
        for service in SERVICES:
            self.start(service)

    def down(self) -> None:
        """Stop all."""
        for service in list(self.running):
            self._end(service, signal.SIGKILL)

    def stop(self, service: str) -> None:
        """Stop a service."""
        self._end(service, signal.SIGTERM)

    def start(self, service: str) -> None:
        """Start a service, in place of what stood in for it."""
        if service in self.running:
            self._end(service, signal.SIGKILL)
        command, where, env = getattr(self, f"_{service}")()
        self._begin(service, command, where, env)

    def stand_in(self, service: str, script: str) -> None:
        """Stop a service, and let a Python script answer in its place on the port it is given."""
        self._end(service, signal.SIGTERM)
        command = [sys.executable, "-c", script, str(self.ports[service])]
        self._begin(service, command, self._work(), {})

    def _begin(self, service: str, command: list[str], where: Path, env: Mapping[str, str]) -> None:
        with self._log(service).open("ab") as log:
            self.running[service] = subprocess.Popen(
                command, cwd=where, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **settings_of(self.folder), **env},
            )  # fmt: skip

    def kill(self, service: str) -> None:
        """Kill a service and start it again, as docker-compose would."""
        self._end(service, signal.SIGKILL)
        self.start(service)

    def freeze(self, service: str) -> None:
        """Let the processes stand still."""
        os.killpg(self.running[service].pid, signal.SIGSTOP)

    def thaw(self, service: str) -> None:
        """Let them go on."""
        os.killpg(self.running[service].pid, signal.SIGCONT)

    def memory(self, service: str) -> int:
        """Bytes that its processes have taken, without the files they have mapped."""
        session, said = self.running[service].pid, []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.getsid(int(process.name)) == session:
                    said.append((process / "smaps_rollup").read_text())
        return _proportional("".join(said))

    def logs(self, service: str) -> str:
        """All that a service has printed."""
        log = self._log(service)
        return log.read_text(errors="replace") if log.exists() else ""

    def _end(self, service: str, how: signal.Signals) -> None:
        process = self.running.pop(service)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _work(self) -> Path:
        return self.folder.parent / f"{self.folder.name}-processes"

    def _log(self, service: str) -> Path:
        return self._work() / f"{service}.log"

    def _inference(self) -> tuple[list[str], Path, dict[str, str]]:
        bentoml = os.environ.get("KTT_BENTOML") or str(Path(sys.executable).with_name("bentoml"))
        bundle, port = str(self.folder / "inference"), str(self.ports["inference"])
        env = {
            "EVIDENTLY_HOST": "127.0.0.1",
            "EVIDENTLY_PORT": str(self.ports["monitoring"]),
            "BENTOML_HOME": str(self._work() / "bentoml"),
        }
        return [bentoml, "serve-gunicorn", bundle, "--port", port], self._work(), env

    def _monitoring(self) -> tuple[list[str], Path, dict[str, str]]:
        folder = self.folder / "monitoring"
        env = {
            "KTT_MONITOR_PORT": str(self.ports["monitoring"]),
            "KTT_MONITOR_DATA": str(self._work() / "data"),
        }
        gunicorn = ["-m", "gunicorn", "--config", "gunicorn.conf.py", "monitoring:app"]
        return [monitor_python(folder, self._work()), *gunicorn], folder, env

    def _prometheus(self) -> tuple[list[str], Path, dict[str, str]]:
        folder = self._work() / "prometheus"
        if not folder.exists():
            shutil.copytree(self.folder / "prometheus", folder)
            for inside, service in (
                ("inference:5000", "inference"),
                ("monitoring:5001", "monitoring"),
                ("localhost:9090", "prometheus"),
            ):
                _replace(folder / "prometheus.yaml", inside, f"127.0.0.1:{self.ports[service]}")
        command = [
            str(shutil.which("prometheus")),
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={self._work() / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{self.ports['prometheus']}",
        ]
        return command, folder, {}


def _proportional(rollups: str) -> int:
    """Bytes in the sum of files ``/proc/*/smaps_rollup``; what processes share is counted once.

    Mapped files do not count: how much of a library is whose depends on who else has it mapped.
    """
    sizes = re.findall(r"(?m)^Pss_(?:Anon|Shmem): +(\d+) kB", rollups)
    return 1024 * sum(map(int, sizes))


def monitor_python(folder: Path, work: Path) -> str:
    """A Python with what the monitoring service requires."""
    given = os.environ.get("KTT_MONITOR_PYTHON")
    if given:
        return given
    venv = work / "venv"
    if not venv.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        install = [str(venv / "bin" / "pip"), "install", "--quiet", "--requirement"]
        subprocess.run([*install, str(folder / "requirements.txt")], check=True, timeout=900)
    return str(venv / "bin" / "python")


def why_not() -> str | None:
    """Why nothing can be deployed here, if so."""
    if container_environment() is None and not shutil.which("prometheus"):
        return "needs containers (Docker, or KTT_CONTAINER_ENGINE) or an installed prometheus"
    return None
