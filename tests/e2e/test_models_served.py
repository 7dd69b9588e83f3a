"""Each model, trained and exported as a user does it, served from an environment of its own.

The bundle lies in another folder, its environment holds its own requirements only, and the project
is out of its sight; its answers must be the model's.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from models import MODELS, model_class
from utils.common.checkpoints import find_checkpoint
from utils.common.paths import PROJECT_ROOT, Layout
from utils.hierarchy.dataset import load_dataset
from utils.serving.local_server import Server, served

pytestmark = pytest.mark.slow

TEXTS = 500
LOAD_SECONDS = os.environ.get("KTT_LOAD_SECONDS", "60")
LONG = ("db_bhcn", "tfidf_hsgd")
"""One of each kind bears the load for long, the others for a few seconds."""


def toolkit(root: Path, *arguments: str) -> None:
    command, *rest = arguments
    subprocess.run(
        [sys.executable, str(PROJECT_ROOT / command), *rest],
        env=os.environ | {"KTT_ROOT": str(root)},
        check=True,
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A project with a generated dataset and all models trained on it."""
    layout = Layout(tmp_path_factory.mktemp("project"))
    toolkit(layout.root, "adapt.py", "demo", "shop", "--rows", "6000")
    names = ",".join(MODELS)
    toolkit(layout.root, "train.py", "-m", names, "-d", "shop", "--encoder", "minilm", "-e", "1")
    toolkit(layout.root, "export.py", "--bento")
    return layout


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Environments by requirements, made when asked for."""
    return {"": tmp_path_factory.mktemp("environments")}


def own_environment(bundle: Path, environments: dict[str, Path]) -> Path:
    """Python of an environment with the bundle's requirements and nothing else."""
    requirements = bundle / "requirements.txt"
    key = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    if key not in environments:
        folder = environments[""] / key
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        wheels = [str(wheel) for wheel in (bundle / "bundled_pip_dependencies").iterdir()]
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "-r", str(requirements), *wheels], check=True)
        environments[key] = folder / "bin"
    return environments[key]


@dataclass(frozen=True)
class Served:
    name: str
    server: Server
    bundle: Path
    environment: Path


@pytest.fixture(scope="module", params=sorted(MODELS))
def running(
    request: pytest.FixtureRequest,
    project: Layout,
    environments: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    bundle = elsewhere / "bundle"
    shutil.copytree(project.bundle(request.param, "shop") / "inference", bundle)
    environment = own_environment(bundle, environments)
    with served(bundle, "serve-gunicorn", environment / "bentoml", elsewhere / "home") as server:
        yield Served(request.param, server, bundle, environment)


def test_no_training_framework_is_in_its_environment(running: Served) -> None:
    listed = subprocess.run(
        [str(running.environment / "python"), "-m", "pip", "list", "--format", "json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    installed = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert "bentoml" in installed
    assert not installed & {"torch", "transformers", "pandas", "scikit-learn", "dvc"}


def test_no_place_of_this_machine_is_in_the_bundle(running: Served, project: Layout) -> None:
    places = [str(PROJECT_ROOT).encode(), str(project.root).encode()]
    for path in running.bundle.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(place in content for place in places), path


def test_its_answers_are_those_of_the_model(running: Served, project: Layout) -> None:
    model = model_class(running.name).from_checkpoint(
        find_checkpoint(project, running.name, "shop")
    )
    test = load_dataset(project, "shop").test
    rows = test.take(slice(0, TEXTS))
    assert len(rows) == TEXTS
    found = model.test(rows)
    with ThreadPoolExecutor(16) as pool:
        replies = list(
            pool.map(lambda text: running.server.ask("/classify", {"text": text}), rows.texts)
        )
        paths = list(
            pool.map(lambda text: running.server.ask("/predict", {"text": text}), rows.texts)
        )
    assert {reply.status for reply in (*replies, *paths)} == {200}
    for row, (reply, path) in enumerate(zip(replies, paths, strict=True)):
        answer: dict[str, Any] = reply.json()
        wanted = list(model.hierarchy.path(int(found.ends[row])))
        assert answer["path"] == wanted, rows.texts[row]
        assert path.json() == "\n".join(wanted)
        assert answer["confidence"] == pytest.approx(float(found.confidence[row]), abs=1e-3)


def test_it_bears_32_connections(running: Served) -> None:
    script = str(PROJECT_ROOT / "benchmarks" / "serving_load.py")
    url = f"http://127.0.0.1:{running.server.port}/predict"
    seconds = LOAD_SECONDS if running.name in LONG else "5"
    options = ["--connections", "32", "--seconds", seconds, "--bad-share", "0.1"]
    done = subprocess.run(
        [sys.executable, script, url, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
