"""What a bundle holds, and what writing one leaves behind."""

import ast
import base64
import csv
import hashlib
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from utils.common.errors import UserError
from utils.common.paths import PROJECT_ROOT
from utils.export.bundle import local_modules, pinned, write_bundle, write_wheel

pytest.importorskip("ktt_bentoml_compat", reason="pip install ./packages/bentoml-py311")
pytestmark = pytest.mark.filterwarnings("ignore:.*find_spec:ImportWarning")

TOY = Path(__file__).parents[1] / "support" / "toy_service.py"
TRAINING = {"torch", "transformers", "rich", "tqdm", "dvc", "models"}


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "classifier").mkdir()
    (folder / "classifier" / "root.txt").write_text("Root", encoding="utf-8")
    return write_bundle(
        folder / "build" / "toy_data" / "inference",
        service_file=TOY,
        classifier=folder / "classifier",
        version="1",
    )


def test_a_bundle_is_whole_and_nothing_lies_beside_it(bundle: Path) -> None:
    names = {path.name for path in bundle.iterdir()}
    assert {"bentoml.yml", "Dockerfile", "bentoml-init.sh", "requirements.txt"} <= names
    assert [path.name for path in bundle.parent.iterdir()] == ["inference"]
    assert (bundle / "ToyService/artifacts/classifier/root.txt").read_text() == "Root"
    assert not list((bundle / "ToyService/artifacts").rglob("__init__.py"))


def test_each_bundle_has_its_own_requirements(tmp_path: Path) -> None:
    # trap: another model's requirements in the image
    (tmp_path / "classifier").mkdir()
    (tmp_path / "classifier" / "root.txt").write_text("Root", encoding="utf-8")
    pins = {}
    for wanted in ("scipy", "tokenizers"):
        service = tmp_path / wanted / "toy_service.py"
        service.parent.mkdir()
        service.write_text(TOY.read_text(encoding="utf-8"), encoding="utf-8")
        service.with_name("requirements.txt").write_text(wanted, encoding="utf-8")
        folder = write_bundle(
            tmp_path / "build" / wanted, service_file=service, classifier=tmp_path / "classifier"
        )
        lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
        pins[wanted] = {line.partition("==")[0] for line in lines}
    assert "scipy" in pins["scipy"]
    assert "scipy" not in pins["tokenizers"]
    assert "tokenizers" in pins["tokenizers"]
    assert "tokenizers" not in pins["scipy"]


def test_a_bundle_of_the_torch_runtime_has_torch_instead_of_onnxruntime(tmp_path: Path) -> None:
    service = tmp_path / "service" / "toy_service.py"
    service.parent.mkdir()
    service.write_text(TOY.read_text(encoding="utf-8"), encoding="utf-8")
    service.with_name("requirements.txt").write_text("numpy\nonnxruntime\ntokenizers\n")
    (tmp_path / "classifier").mkdir()
    (tmp_path / "classifier" / "root.txt").write_text("Root", encoding="utf-8")
    found = {}
    for runtime in ("onnx", "torch"):
        (tmp_path / "classifier" / "service.json").write_text(f'{{"runtime": "{runtime}"}}')
        folder = write_bundle(
            tmp_path / runtime, service_file=service, classifier=tmp_path / "classifier"
        )
        lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
        modules = {
            path.stem
            for path in (folder / "ToyService" / "utils" / "inference").glob("*_scorer.py")
        }
        found[runtime] = {line.partition("==")[0] for line in lines}, modules
    assert {"onnxruntime", "tokenizers"} <= found["onnx"][0]
    assert "torch" not in found["onnx"][0]
    assert found["onnx"][1] == {"onnx_scorer"}
    assert {"torch", "tokenizers"} <= found["torch"][0]
    assert "onnxruntime" not in found["torch"][0]
    assert found["torch"][1] == {"torch_scorer"}


def test_its_code_is_what_the_service_imports_and_needs_no_training_code(bundle: Path) -> None:
    code = bundle / "ToyService"
    inside = {str(path.relative_to(code)) for path in code.rglob("*.py")}
    modules = local_modules(TOY, leave_out=["utils.inference.torch_scorer"])
    needed = {name.replace(".", "/") for name in modules}
    assert {
        "utils/serving/service",
        "utils/serving/requests",
        "utils/inference/classifier",
        "utils/inference/onnx_scorer",
    } <= needed
    copied = {str(file.relative_to(PROJECT_ROOT)) for file in modules.values()}
    assert inside == copied | {"__init__.py", "toy_service.py"}
    for path in code.rglob("*.py"):
        assert not _imports(path) & TRAINING, path


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_modules_are_followed_into_functions_but_not_for_types(tmp_path: Path) -> None:
    (tmp_path / "utils").mkdir()
    for name, text in {
        "__init__": "",
        "a": "def f():\n    from utils import b\n",
        "b": "import utils.c\nimport json\n",
        "c": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import utils.d\n",
        "d": "import utils.a\n",
    }.items():
        (tmp_path / "utils" / f"{name}.py").write_text(text, encoding="utf-8")
    start = tmp_path / "svc.py"
    start.write_text("from utils.a import f\n", encoding="utf-8")
    assert set(local_modules(start, tmp_path)) == {"utils", "utils.a", "utils.b", "utils.c"}


def test_every_requirement_is_pinned_to_what_is_installed(bundle: Path) -> None:
    lines = (bundle / "requirements.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines)
    assert list(pins) == sorted(pins)
    assert pins["bentoml"] == "0.13.1"
    assert pins["numpy"] == version("numpy")
    assert {"protobuf", "cloudpickle", "gunicorn", "werkzeug"} <= set(pins)
    assert not {"torch", "transformers", "ktt-bentoml-compat"} & set(pins)


def test_a_requirement_in_another_version_or_missing_is_an_error_with_the_fix() -> None:
    with pytest.raises(UserError, match=r"numpy<1.*installed: pip install 'numpy<1'"):
        pinned(["numpy<1"])
    with pytest.raises(UserError, match=r"no-such-thing, which is missing: pip install"):
        pinned(["no-such-thing"])


def test_the_bundled_wheel_is_complete_and_says_so(bundle: Path) -> None:
    (path,) = (bundle / "bundled_pip_dependencies").iterdir()
    wheel = zipfile.ZipFile(path)
    names = wheel.namelist()
    assert {"ktt-bentoml-compat.pth", "ktt_bentoml_compat/repairs.py"} <= set(names)
    (record,) = (name for name in names if name.endswith("/RECORD"))
    rows = list(csv.reader(wheel.read(record).decode().splitlines()))
    assert sorted(row[0] for row in rows) == sorted(names)
    for name, digest, size in rows:
        if name != record:
            content = wheel.read(name)
            sha = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
            assert (digest, size) == (f"sha256={sha}", str(len(content)))


def test_the_same_package_gives_the_same_wheel(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    first = write_wheel("ktt-bentoml-compat", tmp_path)
    assert first.read_bytes() == write_wheel("ktt-bentoml-compat", tmp_path / "again").read_bytes()


def test_the_image_is_slim_runs_as_a_user_and_reports_nothing(bundle: Path) -> None:
    lines = (bundle / "Dockerfile").read_text().splitlines()
    assert lines[0] == "FROM python:3.11-slim-bookworm"
    assert "BENTOML_DO_NOT_TRACK=True" in lines[1]
    assert "USER bentoml" in lines
    assert not (bundle / "python_version").exists()


def test_exporting_again_replaces_the_bundle_and_a_failure_leaves_it(
    bundle: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(bundle, tmp_path / "build" / "inference")
    before = (bundle / "bentoml.yml").read_text()
    broken = tmp_path / "broken_service.py"
    broken.write_text("from utils.serving.service import TextClassifierService\n", encoding="utf-8")
    with pytest.raises(UserError, match="one subclass of TextClassifierService"):
        write_bundle(bundle, service_file=broken, classifier=tmp_path)
    assert (bundle / "bentoml.yml").read_text() == before
    with pytest.raises(UserError, match="no service in"):
        write_bundle(bundle, service_file=tmp_path / "absent.py", classifier=tmp_path)
    assert [path.name for path in bundle.parent.iterdir()] == ["inference"]
    assert "toy_service" not in sys.modules
    (tmp_path / "classifier").mkdir()
    (tmp_path / "classifier" / "root.txt").write_text("Other", encoding="utf-8")
    write_bundle(bundle, service_file=TOY, classifier=tmp_path / "classifier", version="2")
    assert "service_version: '2'" in (bundle / "bentoml.yml").read_text().replace('"', "'")


def test_no_folder_is_made_in_the_home_and_no_log_file_stays_open(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "root.txt").write_text("R", encoding="utf-8")
    code = (
        "import logging\nfrom pathlib import Path\nfrom utils.export.bundle import write_bundle\n"
        f"write_bundle(Path({str(tmp_path / 'b')!r}), service_file=Path({str(TOY)!r}), "
        f"classifier=Path({str(tmp_path / 'c')!r}))\n"
        "kinds = [type(h).__name__ for n in ('bentoml', 'bentoml.prediction', 'bentoml.feedback')"
        " for h in logging.getLogger(n).handlers]\nprint(sorted(set(kinds)))\n"
    )
    env = {**os.environ, "HOME": str(tmp_path / "home"), "PYTHONPATH": str(PROJECT_ROOT)}
    env.pop("BENTOML_HOME", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['StreamHandler']"
    assert done.stderr == ""
    assert not (tmp_path / "home").exists()
