"""Writes a whole system to be run: a bundle, its monitoring service, Prometheus, Grafana.

What ``docker-compose up`` needs lies in one folder, made from `templates/deployment` and
`templates/monitoring`.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.common.errors import UserError
from utils.common.files import atomic_dir, read_json
from utils.common.paths import PROJECT_ROOT
from utils.export.bundle import write_bundle

if TYPE_CHECKING:
    import pyarrow as pa

TEMPLATES = PROJECT_ROOT / "templates"
VERSIONS = {"prometheus": "v2.42.0", "grafana": "11.6.14", "alertmanager": "v0.25.0"}
"""Of the images. The dashboard is built for Grafana's (see requirements-dev.txt)."""

LOCAL = "prometheus-local.yaml"
"""The same configuration for a Prometheus without containers; yours: an export keeps it."""

WRITTEN = ("docker-compose.yaml", "inference", "monitoring", "prometheus", "grafana")
PASSWORD, API_TOKEN, MONITOR_TOKEN = (
    "KTT_GRAFANA_PASSWORD", "KTT_API_TOKEN", "KTT_MONITOR_TOKEN",
)  # fmt: skip
LEAST_ROWS = 20
"""Of a reference set: with fewer the monitoring service does not start."""

_NOT_COPIED = shutil.ignore_patterns("__pycache__", "tests", "data")


def write_deployment(
    folder: Path,
    *,
    service_file: Path,
    classifier: Path,
    reference: Path | pa.Table,
    score_columns: Iterable[str],
    token: bool = True,
) -> Path:
    """Write what ``docker-compose up`` runs, whole.

    Parameters
    ----------
    folder
        Where. What an earlier export wrote there is replaced; its `.env`, the settings of the
        alertmanager, `prometheus-local.yaml` and whatever else lies there stay.
    service_file
        A model's `svc_lts.py`; `evidently.yaml` and `dashboard.json` stand beside it.
    classifier
        A folder for `Classifier.load`.
    reference
        The reference set of the same weights: its file, or a table.
    score_columns
        Of the reference set.
    token
        Whether requests to the service need one, if `.env` does not have it already.

    Raises
    ------
    UserError
        As `write_bundle` does; or the monitoring service would not start with these files.
    """
    kept = [entry.name for entry in _entries(folder) if entry.name not in (*WRITTEN, ".env")]
    settings = folder / ".env"
    if settings.is_dir():
        raise UserError(f"{settings} is a folder, and a file of settings goes there. Move it.")
    # some editors begin a file with a mark, which docker-compose reads past
    before = settings.read_text("utf-8-sig", "surrogateescape") if settings.is_file() else ""
    after = settings_with_secrets(before, token=token)
    with atomic_dir(folder, keep=kept) as temporary:
        write_bundle(temporary / "inference", service_file=service_file, classifier=classifier)
        _write_monitoring(
            temporary / "monitoring", service_file.parent, classifier, reference, score_columns
        )
        _write_configuration(temporary, service_file.parent, folder.name, _needs_gpu(classifier))
        if "alertmanager" not in kept:
            shutil.copytree(TEMPLATES / "deployment" / "alertmanager", temporary / "alertmanager")
        if LOCAL not in kept:
            _write_local(temporary / LOCAL)
        _make_readable(temporary)
        _write_secret(temporary / ".env", after)
    return folder


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _needs_gpu(classifier: Path) -> bool:
    """Whether the bundle may use a GPU: its scorer is then the model itself, not its graph."""
    service = classifier / "service.json"
    return service.is_file() and read_json(service).get("runtime") == "torch"


def _write_monitoring(
    folder: Path,
    model: Path,
    classifier: Path,
    reference: Path | pa.Table,
    score_columns: Iterable[str],
) -> None:
    """The monitoring service with what it compares live traffic with."""
    import pyarrow.parquet as pq

    shutil.copytree(TEMPLATES / "monitoring", folder, ignore=_NOT_COPIED)
    if isinstance(reference, Path):
        shutil.copyfile(reference, folder / "references.parquet")
    else:
        pq.write_table(reference, folder / "references.parquet", compression="zstd")
    shutil.copyfile(classifier / "hierarchy.json", folder / "hierarchy.json")
    if (classifier / "service.json").is_file():  # names the model and the dataset
        shutil.copyfile(classifier / "service.json", folder / "service.json")
    text = (model / "evidently.yaml").read_text(encoding="utf-8")
    (folder / "evidently.yaml").write_text(
        f"{text.rstrip()}\n{prediction_yaml(score_columns)}", encoding="utf-8"
    )
    _check_monitoring(folder)


def _check_monitoring(folder: Path) -> None:
    """Let the monitoring service itself say whether it would start."""
    command = [sys.executable, "-B", "monitor_reference.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["its check failed"])[-1]
        raise UserError(f"The monitoring service would not start: {reason}")


def prediction_yaml(score_columns: Iterable[str]) -> str:
    """What an export adds to `evidently.yaml`: the score columns, in order."""
    import yaml

    columns = {"prediction": list(score_columns)}
    return yaml.safe_dump(columns, allow_unicode=True, default_flow_style=False, width=10_000)


def _write_configuration(folder: Path, model: Path, name: str, gpu: bool) -> None:
    """Prometheus, Grafana and the file that puts the parts together."""
    source = TEMPLATES / "deployment"
    services = ["inference", "inference-gpu"] if gpu else ["inference"]
    shutil.copytree(source / "prometheus" / "rules", folder / "prometheus" / "rules")
    _render(
        source / "prometheus" / "prometheus.yaml.tmpl",
        folder / "prometheus" / "prometheus.yaml",
        rules="rules",
        inference=[f"{service}:5000" for service in services],
        monitoring="monitoring:5001",
        alertmanager="alertmanager:9093",
    )
    shutil.copytree(source / "grafana", folder / "grafana")
    dashboards = folder / "grafana" / "provisioning" / "dashboards"
    shutil.copyfile(model / "dashboard.json", dashboards / "dashboard.json")
    digests = {part: _digest(folder / part) for part in ("prometheus", "grafana")}
    _render(
        source / "docker-compose.yaml.tmpl",
        folder / "docker-compose.yaml",
        name=name,
        gpu=gpu,
        versions=VERSIONS,
        digests=digests,
    )


def _write_local(target: Path) -> None:
    _render(
        TEMPLATES / "deployment" / "prometheus" / "prometheus.yaml.tmpl",
        target,
        rules="prometheus/rules",
        inference=["localhost:5000"],
        monitoring="localhost:5001",
        alertmanager="localhost:9093",
    )


def _make_readable(folder: Path) -> None:
    """Let everyone read it, whatever the umask: the containers' users are nobody here."""
    for path in folder.rglob("*"):
        path.chmod(stat.S_IMODE(path.stat().st_mode) | (0o755 if path.is_dir() else 0o644))


def _render(template: Path, target: Path, **values: Any) -> None:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    text = environment.from_string(template.read_text(encoding="utf-8")).render(values)
    target.write_text(text, encoding="utf-8")


def _digest(folder: Path) -> str:
    """Tells two states of a folder apart.

    It stands in a container's labels, so that docker-compose starts the container anew when what
    it has mounted is not what it was.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


# -- settings -------------------------------------------------------------------------------


def settings_with_secrets(before: str, *, token: bool = True) -> str:
    """Text for `.env`: the one that was there, with the secrets that it had not.

    Parameters
    ----------
    token
        Whether one of them is that of the service's clients.

    Raises
    ------
    UserError
        As `value_of` does.
    """
    text = before or (TEMPLATES / "deployment" / "env.tmpl").read_text(encoding="utf-8")
    for name in (PASSWORD, MONITOR_TOKEN, *([API_TOKEN] if token else [])):
        if not value_of(text, name):
            text = _with_value(text, name, secrets.token_urlsafe(24))
    return text


def value_of(settings: str, name: str) -> str:
    """The value that `.env` gives a variable; empty without one.

    Raises
    ------
    UserError
        It begins with a quote and is not one text in quotes: docker-compose reads past the line.
    """
    found = _line_of(name).findall(settings)
    value: str = found[-1].strip() if found else ""  # the last one counts
    if not value.startswith(("'", '"')):
        return re.sub(r"(^|\s+)#.*", "", value)
    quoted = re.fullmatch(r"""(["'])((?:\\.|(?!\1)[^\\])*)\1(\s*#.*)?""", value)
    if quoted is None:
        raise UserError(
            f"In .env the value of {name} begins with a quote and does not end with it: no value "
            "for docker-compose. Mend that line."
        )
    return quoted[2].strip()


def _with_value(settings: str, name: str, value: str) -> str:
    """Give a variable a value where it stands without one, else at the end."""
    line = f"{name}={value}"
    places = list(_line_of(name).finditer(settings))
    if places:
        return settings[: places[-1].start()] + line + settings[places[-1].end() :]
    return f"{settings.rstrip()}\n{line}\n"


def _line_of(name: str) -> re.Pattern[str]:
    return re.compile(rf"^[ \t]*(?:export[ \t]+)?{name}[ \t]*=(.*)$", re.MULTILINE)


def _write_secret(path: Path, text: str) -> None:
    """Write a file that nobody else may read, at no moment."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)


# -- the reference set ----------------------------------------------------------------------


def row_count(reference: Path | Sized) -> int:
    """Rows of a reference set, or of the split that it is made from."""
    import pyarrow.parquet as pq

    if isinstance(reference, Path):
        return int(pq.read_metadata(reference).num_rows)
    return len(reference)


def fits(reference: Path, columns: Iterable[str]) -> bool:
    """Whether a reference set has these columns: an older toolkit wrote fewer.

    Raises
    ------
    UserError
        The file is no Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = set(pq.read_schema(reference).names)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{reference} is no reference set: {reason}. Delete it; the export makes another from "
            "the dataset's test split."
        ) from error
    return names >= set(columns)
