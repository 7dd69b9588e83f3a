"""The manifest of an exported folder: what it was made with, and the hash of every file."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from utils.common.errors import UserError
from utils.common.files import read_json

FILE = "manifest.json"
SERVICE = "service.json"
FORMAT = 2
OPSET = 17
OPSETS = range(11, 21)
RUNTIMES = ("onnx", "torch")
AGAIN = "Export again."


@dataclass(frozen=True, kw_only=True)
class ServiceInfo:
    """What service.json says: how a bundle is run.

    Parameters
    ----------
    model, dataset, checkpoint
        What is served.
    runtime
        One of `RUNTIMES`.
    monitoring
        Whether rows go to a monitoring service.
    """

    model: str
    dataset: str
    checkpoint: str
    runtime: str = RUNTIMES[0]
    monitoring: bool = False


def check_opset(opset: int) -> None:
    """Refuse operator sets that graphs cannot be written in."""
    if opset not in OPSETS:
        raise UserError(
            f"--opset {opset} is not supported: take one from {OPSETS[0]} to {OPSETS[-1]}."
        )


def versions(libraries: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of those libraries that are installed."""
    found = {"python": platform.python_version()}
    for library in libraries:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def hashes(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file but the manifest, by path within the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != FILE)
    return {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": _sha256(path),
        }
        for path in files
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of an exported folder.

    Raises
    ------
    UserError
        There is none, or one of another version of the toolkit.
    """
    manifest = read_json(folder / FILE)
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise UserError(
            f"{folder / FILE} has format {found}, this version of KTT reads {FORMAT}. Export again."
        )
    return dict(manifest)


def read_service(folder: Path, manifest: dict[str, Any]) -> ServiceInfo:
    """Read service.json; a folder without one is of an export that no service was made for.

    Raises
    ------
    UserError
        It is not the file that was exported, or says nothing that is understood.
    """
    if SERVICE not in manifest["files"]:
        info = manifest["info"]
        return ServiceInfo(
            model=str(manifest["model"]),
            dataset=str(manifest["dataset"]),
            checkpoint=str(info.get("checkpoint", "")),
        )
    check_files(folder, manifest, [SERVICE])
    found = ServiceInfo(**read_json(folder / SERVICE))
    words = (found.model, found.dataset, found.checkpoint)
    if found.runtime not in RUNTIMES or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{found} in {SERVICE}")
    return found


def check_files(folder: Path, manifest: dict[str, Any], names: Iterable[str]) -> None:
    """Make sure that files are those that were exported.

    Raises
    ------
    UserError
        One is missing, or is another.
    """
    for name in names:
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise UserError(f"{folder / FILE} names {name!r}, which is not in {folder}.")
        known = manifest["files"].get(name, {})
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing. Export again.")
        if _sha256(folder / name) != known.get("sha256"):
            raise UserError(f"{folder / name} is not the file that was exported. Export again.")


@contextmanager
def understood(folder: Path) -> Iterator[None]:
    """Turn what an edited manifest leads to into the user's error.

    Values of any type may stand where others belong; what reads them trips in as many ways.
    """
    try:
        yield
    except UserError as error:
        if error.message.endswith(AGAIN):
            raise
        raise UserError(f"{folder}: {error.message} {AGAIN}") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{folder / FILE} does not fit the files beside it ({reason}). {AGAIN}"
        ) from error
