"""The pipeline in a clone of the project, and a remote: real git, real DVC."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from utils.common.files import write_json
from utils.common.paths import PROJECT_ROOT, Layout

GIT = shutil.which("git")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not GIT or not (PROJECT_ROOT / ".git").exists(), reason="no git clone"),
]

MODEL, DATASET = "tfidf_hsgd", "demo"
PLOTS = {"Reliability", "Levels", "Confusions of level 1", "Learning"}


class Clone:
    """A clone of the project, in which commands are run."""

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self.root, self.environment, self.layout = root, environment, Layout(root)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    def ran(self, *command: str) -> str:
        done = self.run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def json(self, *command: str) -> Any:
        return json.loads(self.ran(*command))

    def repro(self) -> list[str]:
        """Reproduce; the stages that were run."""
        printed = self.ran("dvc", "repro").splitlines()
        return [line.split("'")[1] for line in printed if line.startswith("Running stage ")]

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.root / name).read_text("utf-8")
        assert text.count(old) == 1
        (self.root / name).write_text(text.replace(old, new), "utf-8")

    def checkpoints(self) -> list[str]:
        return sorted(p.name for p in self.layout.weight_dir(MODEL, DATASET).glob("best_*.pt"))

    def figures(self) -> Any:
        return json.loads(self.layout.metrics(MODEL, DATASET).read_text("utf-8"))

    def changed(self) -> set[str]:
        """What git would commit."""
        printed = self.ran("git", "status", "--porcelain", "--untracked-files=all")
        return {line[3:] for line in printed.splitlines()}

    def lose(self) -> None:
        """Remove everything that was made, and DVC's cache."""
        for name in ("datasets", "weights", "outputs", "build"):
            for path in sorted((self.root / name).rglob("*"), reverse=True):
                if path.is_dir():
                    continue
                if path.suffix != ".dvc":
                    path.unlink()
        shutil.rmtree(self.root / ".dvc" / "cache")


def clone_to(folder: Path) -> Clone:
    """Clone what would be committed here, and let DVC keep to that folder."""
    assert GIT
    root = folder / "clone"
    # bytecode is written, as for a user: it must not look like changed code
    left_out = ("KTT_ROOT", "PYTHONDONTWRITEBYTECODE")
    environment = {name: os.environ[name] for name in os.environ if name not in left_out}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder), "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(folder / "site"),
        "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }  # fmt: skip
    subprocess.run([GIT, "clone", "--quiet", PROJECT_ROOT, root], env=environment, check=True)
    listed = subprocess.run(
        [GIT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT_ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (PROJECT_ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PROJECT_ROOT / name, root / name)
    clone = Clone(root, environment)
    clone.edit("dvc.yaml", "rows: 3000", "rows: 600")
    clone.ran("git", "add", "--all")
    clone.ran("git", "commit", "--quiet", "--message", "as it is")
    return clone


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    return clone_to(tmp_path_factory.mktemp("pipeline"))


def test_the_whole_pipeline(clone: Clone, tmp_path: Path) -> None:
    assert clone.repro() == ["adapt", "train", "export"]
    assert (clone.layout.bundle(MODEL, DATASET) / "inference" / "bentoml.yml").exists()
    assert clone.changed() == {"dvc.lock"}
    first = clone.checkpoints()
    assert clone.repro() == []
    assert clone.checkpoints() == first
    assert clone.figures()["checkpoint"] == first[0]
    (shown,) = clone.json("dvc", "metrics", "show", "--json")[""]["data"].values()
    assert shown["data"] == clone.figures()
    plots = clone.json("dvc", "plots", "show", "--json", "--out", str(tmp_path))["data"]
    assert set(plots) == PLOTS
    assert all(plot["content"]["data"]["values"] for (plot, *_) in plots.values())

    clone.ran("git", "add", "dvc.lock")
    clone.ran("git", "commit", "--quiet", "--message", "one")
    settings = json.loads((clone.root / "hyperparameters.json").read_text("utf-8"))
    settings["tfidf_lsgd"]["alpha"] = 0.01
    write_json(clone.root / "hyperparameters.json", settings)
    assert clone.repro() == []
    settings[MODEL]["alpha"] = 0.01
    write_json(clone.root / "hyperparameters.json", settings)
    assert clone.repro() == ["train", "export"]
    second = clone.checkpoints()
    assert len(second) == 2
    assert first[0] in second  # the earlier run is still there
    manifest = next(clone.layout.bundle(MODEL, DATASET).rglob("manifest.json"))
    assert json.loads(manifest.read_text("utf-8"))["info"]["checkpoint"] == second[1]
    (changes,) = clone.json("dvc", "metrics", "diff", "--json").values()
    assert changes["leaf_accuracy"]["diff"] != 0
    assert changes["checkpoint"] == {"old": first[0], "new": second[1]}

    clone.edit("dvc.yaml", "rows: 600", "rows: 700")
    assert clone.repro() == ["adapt", "train", "export"]
    assert len(clone.checkpoints()) == 3


def test_what_was_pushed_comes_back(clone: Clone, tmp_path: Path) -> None:
    clone.ran("dvc", "remote", "add", "--local", "--default", "there", str(tmp_path / "remote"))
    clone.repro()
    clone.ran("dvc", "push")
    kept = clone.checkpoints()
    clone.lose()
    assert clone.checkpoints() == []
    clone.ran("dvc", "pull")
    assert clone.checkpoints() == kept
    assert clone.repro() == []
    pair = ("-m", MODEL, "-d", DATASET)
    clone.ran("python", "evaluate.py", *pair)
    (clone.layout.weight_dir(MODEL, DATASET) / "aliases.json").write_text("{}")
    assert clone.repro() == []  # looking at a run, or naming it, is no reason to train anew
    clone.ran("python", "export.py", *pair, "--no-dvc")
    clone.ran("python", "train.py", *pair, "--no-dvc")


def test_the_pipelines_pair_by_hand(clone: Clone) -> None:
    clone.ran("dvc", "remote", "add", "--local", "--force", "-d", "there", str(clone.root / "x"))
    clone.repro()
    command = ("python", "train.py", "-m", MODEL, "-d", DATASET)
    refused = clone.run(*command, "--dvc")
    assert refused.returncode == 1
    assert refused.stderr.startswith("Error: weights/tfidf_hsgd/demo is of stage 'train'")
    assert len(refused.stderr.splitlines()) == 1
    before = clone.checkpoints()
    clone.ran(*command)  # without --dvc it is left to the pipeline
    assert len(clone.checkpoints()) == len(before) + 1
    assert not list(clone.layout.weights.rglob("*.dvc"))


def test_by_hand_with_a_remote(tmp_path: Path) -> None:
    clone = clone_to(tmp_path)
    pair = ("-m", "tfidf_lsgd", "-d", "shop")
    clone.ran("python", "adapt.py", "demo", "shop", "--rows", "300")
    assert clone.changed() == set()  # a clone tracks nothing before DVC is used in it
    clone.ran("dvc", "remote", "add", "--local", "--default", "there", str(tmp_path / "remote"))
    clone.ran("python", "adapt.py", "demo", "shop", "--rows", "300")
    clone.ran("python", "train.py", *pair, "-r")
    clone.ran("python", "export.py", *pair, "--onnx", "--monitoring")
    pointers = clone.changed()
    assert {f"datasets/shop/{name}.parquet.dvc" for name in ("train", "val", "test")} < pointers
    assert {"outputs/tfidf_lsgd_shop/manifest.json.dvc", "build/tfidf_lsgd_shop/inference.dvc",
            "build/tfidf_lsgd_shop/monitoring.dvc"} < pointers  # fmt: skip
    assert {name for name in pointers if not name.endswith(".dvc")} == set()
    assert not [name for name in pointers if ".env" in name]  # a password; it stays here
    clone.ran("dvc", "push")
    clone.ran("git", "add", "--all")
    clone.ran("git", "commit", "--quiet", "--message", "tracked")

    clone.lose()
    (clone.root / "rows.csv").write_text("text\nblue cotton shirt\n")
    clone.ran("python", "predict.py", *pair, "rows.csv", "--runtime", "onnx")
    clone.ran("python", "export.py", *pair, "--monitoring")
    assert not clone.run("python", "train.py", *pair).returncode
    assert any(name.startswith("weights/tfidf_lsgd/shop/best_") for name in clone.changed())


def test_two_commands_at_once(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "project")
    layout.root.mkdir()
    environment = {
        **os.environ, "KTT_ROOT": str(layout.root), "DVC_SITE_CACHE_DIR": str(tmp_path / "site"),
    }  # fmt: skip
    subprocess.run(
        [sys.executable, "-m", "dvc", "init", "-q", "--no-scm"],
        cwd=layout.root, env=environment, check=True,
    )  # fmt: skip
    script = str(PROJECT_ROOT / "adapt.py")
    started = [
        subprocess.Popen(
            [sys.executable, script, "demo", name, "--rows", "150"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for name in ("one", "two", "three")
    ]  # fmt: skip
    for process in started:
        printed, _ = process.communicate()
        assert process.returncode == 0, printed
    assert len(list(layout.datasets.rglob("*.parquet.dvc"))) == 9
