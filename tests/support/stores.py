"""A store with small models in it, and archives that somebody has worked on."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from models import model_class
from tests.support.tiny import write_tiny_dataset
from utils.common.checkpoints import write_checkpoint
from utils.common.config import build_config
from utils.common.paths import Layout
from utils.store import Entry, Store
from utils.store.archive import END, _header, _padding


def tiny_model(layout: Layout, name: str = "tfidf_hsgd", dataset: str = "tiny") -> Any:
    """A trained model, ready for `Store.save_model`."""
    data = write_tiny_dataset(layout, dataset)
    cls = model_class(name)
    model = cls(data.hierarchy, build_config(cls.Config, {}, name))
    for epoch in model.fit(data.train, data.val, epochs=None, seed=0):
        model.info = {
            "dataset": dataset,
            "fingerprint": data.fingerprint,
            "val": epoch.metrics,
            "history": [{"epoch": 1, "seconds": 1.5, **epoch.metrics}],
        }
    return model


class FakeModel:
    """What `save_model` needs of a model, with weights of any size and any figure."""

    name = "tfidf_hsgd"

    def __init__(self, dataset: str = "fake", accuracy: float = 0.5, size: int = 16) -> None:
        self.info: dict[str, Any] = {"dataset": dataset, "val": {"leaf_accuracy": accuracy}}
        self.config: dict[str, Any] = {"alpha": 1e-4}
        self._weights = np.random.default_rng(int(accuracy * 1e9)).bytes(size)

    def save(self, path: Path) -> None:
        """Write a checkpoint as `Model.save` does."""
        meta = {"model": self.name, "config": self.config, "info": self.info}
        write_checkpoint(path, {"weights": np.frombuffer(self._weights, np.uint8)}, meta)


def fill(store: Store, accuracies: list[float], **values: Any) -> list[Entry]:
    """Save a fake model for each figure."""
    return [store.save_model(FakeModel(accuracy=one), **values) for one in accuracies]


def files_below(folder: Path) -> dict[str, bytes]:
    """All files, hidden ones too, but for the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".store.lock"
    }


def members(archive: Path) -> dict[str, bytes]:
    """The files of an archive, as any tar program reads them."""
    with tarfile.open(archive, "r:") as tar:
        return {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]


def forged(archive: Path, edit: Callable[[dict[str, Any]], None], **files: bytes) -> bytes:
    """An archive whose sums fit its manifest, put together by somebody else.

    Parameters
    ----------
    edit
        Changes the manifest.
    files
        Other contents by name with ``_`` for ``.``.
    """
    held = members(archive)
    manifest = json.loads(held.pop("manifest.json"))
    del held["manifest.json.sha256"]
    held |= {name: files[key] for name in held if (key := name.replace(".", "_")) in files}
    for name, content in held.items():
        sums = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest["files"][name] = sums
    edit(manifest)
    text = (json.dumps(manifest, indent=2) + "\n").encode()
    sums = f"{hashlib.sha256(text).hexdigest()}  manifest.json\n".encode()
    parts = {"manifest.json": text, "manifest.json.sha256": sums, **held}
    return b"".join(_member(name, content) for name, content in parts.items()) + END


def _member(name: str, content: bytes) -> bytes:
    return _header(name, len(content)) + content + _padding(len(content))


def retarred(archive: Path, change: Callable[[tarfile.TarInfo], None]) -> bytes:
    """An archive whose last member is of another kind."""
    held, to = members(archive), io.BytesIO()
    with tarfile.open(fileobj=to, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for place, (name, content) in enumerate(held.items()):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if place == len(held) - 1:
                change(info)
            tar.addfile(info, io.BytesIO(content))
    return to.getvalue()


def flips(content: bytes, seed: int, count: int) -> Iterator[tuple[int, bytes]]:
    """The content with one bit flipped, at random places."""
    rng = np.random.default_rng(seed)
    for place in rng.integers(len(content) * 8, size=count):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << (place % 8)
        yield int(place), bytes(changed)
