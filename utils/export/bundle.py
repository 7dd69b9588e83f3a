"""Writes a service bundle: a BentoML 0.13 folder that runs without this project.

It holds the service's code with the modules that it imports, the classifier, pinned
requirements, the package that lets bentoml run on this Python, and a Dockerfile.
"""

from __future__ import annotations

import ast
import base64
import copy
import hashlib
import importlib.util
import logging
import os
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from utils.common.errors import UserError
from utils.common.files import atomic_dir, read_json
from utils.common.paths import PROJECT_ROOT
from utils.inference.manifest import RUNTIMES, SERVICE

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from utils.serving.service import TextClassifierService

COMPAT = "ktt-bentoml-compat"
_INSTALL_COMPAT = "pip install ./packages/bentoml-py311"
_RUNTIMES = {
    "onnx": ("utils.inference.onnx_scorer", "onnxruntime"),
    "torch": ("utils.inference.torch_scorer", "torch"),
}
"""Module and requirement of each; what service files require is for ONNX Runtime."""
_INSTALLER_FILES = frozenset({"INSTALLER", "REQUESTED", "RECORD", "direct_url.json"})
_README = """

## Run

    pip install -r requirements.txt bundled_pip_dependencies/*
    bentoml serve-gunicorn .
    curl -d '{"text": "…"}' localhost:5000/predict

or `docker build -t NAME . && docker run -p 5000:5000 NAME`. Give each service of a machine its own
`BENTOML_HOME`: it keeps logs and the counters of `/metrics` there.
"""


def write_bundle(
    folder: Path, *, service_file: Path, classifier: Path, version: str | None = None
) -> Path:
    """Write a bundle, whole.

    Parameters
    ----------
    folder
        Where; a bundle that is there is replaced.
    service_file
        A model's `svc_lts.py`, with one subclass of `TextClassifierService`. The file
        `requirements.txt` beside it names what the service imports besides bentoml.
    classifier
        A folder for `Classifier.load`, copied. Its service.json, if it has one, names the runtime:
        the bundle has that one alone.
    version
        Of the service, as `/metadata` and the metrics show it; default: time and chance.

    Returns
    -------
    Path
        `folder`

    Raises
    ------
    UserError
        A requirement is not installed, or in another version; the folder cannot be written.
    """
    runtime = _runtime_of(classifier)
    requirements = pinned(_requirements(service_file.with_name("requirements.txt"), runtime))
    with _quiet_bentoml(), atomic_dir(folder) as temporary:
        with _imported(service_file) as module:
            service_class = _service_class(module, service_file)
            service = service_class()
            service.pack("classifier", classifier)
            pins = temporary / "requirements.txt"
            pins.write_text("\n".join(requirements) + "\n", encoding="utf-8")
            # the class holds one environment for all bundles, which remembers the first one's
            service._env = copy.deepcopy(service.env)
            service.env._requirements_txt_file = str(pins)
            service.save_to_dir(str(temporary), version=version)
        _complete(temporary, temporary / service.name, service_file, runtime)
    return folder


def _runtime_of(classifier: Path) -> str:
    file = classifier / SERVICE
    runtime = read_json(file)["runtime"] if file.is_file() else RUNTIMES[0]
    return str(runtime)


def _complete(bundle: Path, code: Path, service_file: Path, runtime: str) -> None:
    """Add what BentoML leaves out and take away what harms.

    Its own search for modules finds none in a project whose folder is named lib… or python…, and
    takes along what is imported for type checking only.
    """
    for stray in (code / "artifacts").rglob("__init__.py"):
        stray.unlink()
    others = [module for name, (module, _) in _RUNTIMES.items() if name != runtime]
    modules = local_modules(service_file, leave_out=others)
    for package in {name.partition(".")[0] for name in modules}:
        shutil.rmtree(code / package, ignore_errors=True)
    for file in modules.values():
        target = code / file.relative_to(PROJECT_ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    wheels = bundle / "bundled_pip_dependencies"
    wheels.mkdir()
    write_wheel(COMPAT, wheels)
    # the init script reads "3.1" from it and would have conda install that
    (bundle / "python_version").unlink()
    (bundle / "docs.json").unlink()  # of BentoML's making; the service has a better one
    for name in ("Dockerfile", ".dockerignore"):
        shutil.copyfile(PROJECT_ROOT / "templates" / "bundle" / name, bundle / name)
    with (bundle / "README.md").open("a", encoding="utf-8") as readme:
        readme.write(_README)


# -- the service's code ---------------------------------------------------------------------


@contextmanager
def _imported(service_file: Path) -> Iterator[ModuleType]:
    """Import a file under its own bare name, as the bundle will, for as long as needed."""
    name = service_file.stem
    spec = importlib.util.spec_from_file_location(name, service_file)
    if spec is None or spec.loader is None or not service_file.is_file():
        raise UserError(f"There is no service in {service_file}.")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # BentoML looks the class's module up by name
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before


def _service_class(module: ModuleType, file: Path) -> type[TextClassifierService]:
    from utils.serving.service import TextClassifierService

    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, TextClassifierService)
        and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise UserError(f"{file} must define one subclass of TextClassifierService.")
    return found[0]


def local_modules(
    file: Path, root: Path = PROJECT_ROOT, leave_out: Collection[str] = ()
) -> dict[str, Path]:
    """The project's modules that a file imports, directly or through one another.

    Imports inside functions count, those for type checking only and of `leave_out` do not.
    """
    found: dict[str, Path] = {}
    queue = [file]
    while queue:
        for name in _imported_names(ast.parse(queue.pop().read_text(encoding="utf-8"))):
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                module = _module_file(root, parts[:end])
                dotted = ".".join(parts[:end])
                if module is not None and dotted not in found and dotted not in leave_out:
                    found[dotted] = module
                    queue.append(module)
    return found


def _module_file(root: Path, parts: Sequence[str]) -> Path | None:
    path = root.joinpath(*parts)
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _imported_names(tree: ast.AST) -> Iterator[str]:
    """Every name that may be a module: of ``from a import b`` both ``a`` and ``a.b``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from _imported_names(node)


# -- its requirements -----------------------------------------------------------------------


def _requirements(file: Path, runtime: str) -> list[str]:
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    bare = (line.partition("#")[0].strip() for line in lines)
    usual, own = _RUNTIMES[RUNTIMES[0]][1], _RUNTIMES[runtime][1]
    return [own if line == usual else line for line in bare if line]


def pinned(requirements: Iterable[str]) -> list[str]:
    """Pin what a service needs, and what that needs, to the versions installed here.

    Parameters
    ----------
    requirements
        Besides bentoml; with or without versions.

    Returns
    -------
    list of str
        ``name==version``, sorted; without the package that is bundled as a wheel.

    Raises
    ------
    UserError
        One is not installed, or in a version that it excludes.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    queue = [Requirement(line) for line in (COMPAT, *requirements)]
    seen: set[tuple[str, frozenset[str]]] = set()
    pins: dict[str, str] = {}
    while queue:
        wanted = queue.pop()
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        found = _installed(wanted)
        if key in seen:
            continue
        seen.add(key)
        pins[key[0]] = found.version.partition("+")[0]  # without a label such as +cpu
        queue += [
            child
            for child in map(Requirement, found.requires or ())
            if child.marker is None
            or any(child.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras))
        ]
    del pins[COMPAT]
    return [f"{name}=={version}" for name, version in sorted(pins.items())]


def _installed(wanted: Requirement) -> Distribution:
    fix = _INSTALL_COMPAT if wanted.name == COMPAT else f"pip install '{wanted}'"
    try:
        found = distribution(wanted.name)
    except PackageNotFoundError:
        raise UserError(f"The service needs {wanted.name}, which is missing: {fix}.") from None
    if not wanted.specifier.contains(found.version, prereleases=True):
        raise UserError(f"The service needs {wanted}; {found.version} is installed: {fix}.")
    return found


def write_wheel(name: str, folder: Path) -> Path:
    """Pack an installed pure-Python package into a wheel again: no build, no network.

    Raises
    ------
    UserError
        It is not installed as a copy of its files.
    """
    found = distribution(name)
    files = [
        file
        for file in found.files or ()
        if file.name not in _INSTALLER_FILES
        and file.suffix != ".pyc"
        and file.parts[0] not in {"..", "/"}
    ]
    info = next((file.parent for file in files if file.name == "WHEEL"), None)
    if info is None or not any(file.suffix == ".pth" for file in files):
        raise UserError(f"{name} is not installed as a package: {_INSTALL_COMPAT}.")
    path = folder / f"{name.replace('-', '_')}-{found.version}-py3-none-any.whl"
    record = ""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for file in sorted(files, key=str):
            content = Path(str(found.locate_file(file))).read_bytes()
            wheel.writestr(zipfile.ZipInfo(str(file)), content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            record += f"{file},sha256={digest.decode()},{len(content)}\n"
        record += f"{info}/RECORD,,\n"
        wheel.writestr(zipfile.ZipInfo(f"{info}/RECORD"), record)
    return path


# -- BentoML's manners ----------------------------------------------------------------------


@contextmanager
def _quiet_bentoml() -> Iterator[None]:
    """Import BentoML without its folder in the user's home, its log files and its chatter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if "bentoml" not in sys.modules:
            _import_bentoml()
        logger = logging.getLogger("bentoml")
        before = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(before)


def _import_bentoml() -> None:
    before = os.environ.get("BENTOML_HOME")
    with tempfile.TemporaryDirectory() as home:
        os.environ["BENTOML_HOME"] = home
        try:
            import bentoml  # noqa: F401
        except TypeError as error:  # what Python 3.11 says to the unrepaired package
            raise UserError(f"bentoml does not import ({error}): {_INSTALL_COMPAT}.") from error
        except ImportError as error:
            raise UserError(f"Bundles need bentoml ({error}): {_INSTALL_COMPAT}.") from error
        finally:
            if before is None:
                del os.environ["BENTOML_HOME"]
            else:
                os.environ["BENTOML_HOME"] = before
        for name in ("bentoml", "bentoml.prediction", "bentoml.feedback"):
            logger = logging.getLogger(name)
            for handler in list(logger.handlers):
                if isinstance(handler, logging.FileHandler):
                    logger.removeHandler(handler)
                    handler.close()
