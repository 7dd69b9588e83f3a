"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from models import MODELS
from utils.common.paths import PROJECT_ROOT
from utils.export.bundle import local_modules

UTILS = sorted((PROJECT_ROOT / "utils").rglob("*.py"))
MODEL_FILES = sorted((PROJECT_ROOT / "models").rglob("*.py"))
COMMANDS = sorted(PROJECT_ROOT.glob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def rooms(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def test_there_is_something_to_check() -> None:
    assert len(UTILS) > 10
    assert len(MODEL_FILES) > 5
    assert {"adapt.py", "train.py", "export.py"} <= {path.name for path in COMMANDS}


@pytest.mark.parametrize("path", UTILS, ids=str)
def test_utils_import_no_models_and_no_commands(path: Path) -> None:
    assert not rooms(path) & {"models", *(command.stem for command in COMMANDS)}


@pytest.mark.parametrize("path", MODEL_FILES, ids=str)
def test_models_neither_print_nor_know_the_command_line(path: Path) -> None:
    assert not rooms(path) & {"click", "tqdm", "rich", "dvc", *(c.stem for c in COMMANDS)}
    assert not imports(path) & {"utils.common.cli", "utils.common.dvc", "utils.common.paths"}
    assert "print(" not in re.sub(r"\w+print\(", "", path.read_text())


@pytest.mark.parametrize("path", sorted(PROJECT_ROOT.glob("models/*/bentoml/svc_lts.py")), ids=str)
def test_services_import_only_serving(path: Path) -> None:
    assert {name for name in imports(path) if name != "__future__"} <= {"utils.serving.service"}


@pytest.mark.parametrize("path", UTILS + MODEL_FILES + COMMANDS, ids=str)
def test_no_shell_strings_no_pickle(path: Path) -> None:
    text = path.read_text()
    assert not rooms(path) & {"pickle", "joblib", "dill", "cloudpickle"}
    for forbidden in ("shell=True", "os.system(", "allow_pickle=True", "weights_only=False"):
        assert forbidden not in text, forbidden


def test_registry_folders_and_hyperparameters_have_the_same_names() -> None:
    folders = {path.parent.name for path in PROJECT_ROOT.glob("models/*/__init__.py")}
    blocks = set(json.loads((PROJECT_ROOT / "hyperparameters.json").read_text()))
    for name in folders - set(MODELS):
        line = f'"{name}": "models.{name}.{name}:CLASS",'
        pytest.fail(f"models/{name} is not registered. Add to models/__init__.py: {line}")
    assert set(MODELS) - folders == set(), "registered, but without a folder"
    assert blocks == set(MODELS), "hyperparameters.json has one block per model"
    for name, place in MODELS.items():
        assert place.startswith(f"models.{name}.{name}:")


HEAVY = (
    "torch", "transformers", "sklearn", "numba", "pandas", "pyarrow", "onnxruntime", "bentoml",
    "scipy",
)  # fmt: skip


@pytest.mark.parametrize("command", ["train", "export", "adapt"])
def test_help_loads_nothing_heavy(command: str, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(PROJECT_ROOT)!r}); import {command}\n"
        f"try: {command}.main(['--help'])\n"
        f"except SystemExit: pass\n"
        f"print('LOADED', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "LOADED []" in done.stdout


def test_linear_models_never_import_torch(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(PROJECT_ROOT)!r})\n"
        "from models import model_class\n"
        "model_class('tfidf_hsgd'); model_class('tfidf_lsgd')\n"
        "print('LOADED', [m for m in ('torch', 'transformers', 'numba') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "LOADED []" in done.stdout


@pytest.mark.parametrize(
    ("left_out", "runtime"),
    [("utils.inference.torch_scorer", "onnxruntime"), ("utils.inference.onnx_scorer", "torch")],
)
def test_what_a_bundle_copies_is_free_of_training(left_out: str, runtime: str) -> None:
    """A bundle has one of the two runtimes: the other's module is left out."""
    found = local_modules(PROJECT_ROOT / "utils" / "serving" / "service.py", leave_out=[left_out])
    assert "utils.inference.classifier" in found
    assert not [name for name in found if name.startswith("models")]
    external = {name for file in found.values() for name in rooms(file)}
    assert external & {"torch", "onnxruntime"} == {runtime}
    assert not external & {"transformers", "pandas", "dvc", "rich", "numba"}


def test_no_function_is_longer_than_sixty_lines() -> None:
    for path in UTILS + MODEL_FILES + COMMANDS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 60, f"{path.name}: {node.name} has {length} lines"
