"""What answers texts for a (model, dataset) pair: its ONNX export or its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from utils.common import dvc
from utils.common.checkpoints import checkpoint_meta, find_checkpoint, runs
from utils.common.errors import UserError, unknown
from utils.common.files import POINTER, pointers, read_json
from utils.common.paths import Layout
from utils.inference.manifest import FILE as MANIFEST
from utils.inference.manifest import RUNTIMES
from utils.inference.pipeline import Source


def open_source(
    layout: Layout,
    model: str,
    dataset: str,
    class_of: Callable[[str], Any],
    *,
    time: str | None = None,
    runtime: str | None = None,
) -> Source:
    """Open a trained pair.

    Parameters
    ----------
    class_of
        The registry's `model_class`, called only to load a checkpoint: an export needs no torch.
    time
        Of the run; None for the newest.
    runtime
        ``"onnx"``, ``"torch"``, or None for the quicker: an encoder's export if it is of that run,
        else the checkpoint.

    Raises
    ------
    UserError
        There is no such thing.
    """
    if runtime not in (None, *RUNTIMES):
        raise unknown("runtime", str(runtime), RUNTIMES)
    folder = layout.output(model, dataset)
    exported = None if runtime == "torch" else _exported(layout, folder)
    if not exported:
        if runtime == "onnx":
            raise _no_export(folder, model, dataset, time, "There is no ONNX export")
        return from_checkpoint(
            find_checkpoint(layout, model, dataset, "best", time), class_of(model)
        )
    if not runs(layout, model, dataset) and not time:
        return from_export(folder)  # an export that travelled alone
    checkpoint = find_checkpoint(layout, model, dataset, "best", time)
    difference = _difference(exported, checkpoint)
    if not difference and (runtime or not is_linear(exported)):
        return from_export(folder)
    if runtime == "onnx":
        raise _no_export(folder, model, dataset, time, f"The ONNX export is of {difference}")
    remark = f" (the ONNX export is of {difference})" if difference else ""
    return from_checkpoint(checkpoint, class_of(model), remark)


def _exported(layout: Layout, folder: Path) -> dict[str, Any]:
    """The manifest of an export, empty where there is none; `Classifier.load` checks it."""
    tracked = [name.removesuffix(POINTER) for name in pointers(folder) if name.endswith(POINTER)]
    dvc.ensure(layout, *(folder / name for name in tracked))
    found = read_json(folder / MANIFEST) if (folder / MANIFEST).exists() else {}
    return found if isinstance(found, dict) else {}


def text_columns(layout: Layout, model: str, dataset: str, time: str | None = None) -> list[str]:
    """The columns that a pair's texts came from; none where that is not known."""
    try:
        if runs(layout, model, dataset):
            meta = checkpoint_meta(find_checkpoint(layout, model, dataset, "best", time))
        else:
            meta = read_json(layout.output(model, dataset) / "manifest.json")
        found = meta["info"]["text_columns"]
    except (UserError, KeyError, TypeError):
        return []  # what is wrong shows when the pair is opened
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def is_linear(manifest: dict[str, Any]) -> bool:
    """Whether an export is of a TF-IDF model: its graph takes seven times as long as the model."""
    return "vocabulary" in _object(manifest, "scorer")


def _object(manifest: dict[str, Any], key: str) -> dict[str, Any]:
    """An object of a manifest, or of a checkpoint, that anybody may have edited."""
    found = manifest.get(key)
    return found if isinstance(found, dict) else {}


def _no_export(folder: Path, model: str, dataset: str, time: str | None, reason: str) -> UserError:
    run = f" -t {time}" if time else ""
    return UserError(f"{reason} in {folder}. Export: python export.py -m {model} -d {dataset}{run}")


def _difference(manifest: dict[str, Any], checkpoint: Path) -> str:
    """What an export is of, if not of this checkpoint as it is now; else nothing."""
    info = _object(manifest, "info")
    if info.get("checkpoint") != checkpoint.name:
        return str(info.get("checkpoint"))
    now = _object(checkpoint_meta(checkpoint), "info")
    # a resumed run writes better weights under the same name
    if any(info.get(key) != now.get(key) for key in ("started", "epoch")):
        return f"an earlier state of {checkpoint.name}"
    return ""


def from_export(folder: Path) -> Source:
    """Open a folder that export.py wrote."""
    from utils.inference.classifier import Classifier
    from utils.inference.onnx_scorer import OnnxScorer

    found = Classifier.load(folder, kind="onnx")
    manifest, scorer = found.manifest, cast(OnnxScorer, found.scorer)
    info = _object(manifest, "info")
    checkpoint = str(info.get("checkpoint", "an unknown checkpoint"))
    precision = "int8" if manifest.get("quantization") else "fp32"
    return Source(
        hierarchy=found.hierarchy,
        tree=found.tree,
        calibration=found.calibration,
        encode=scorer.encode,
        run=scorer.run,
        checkpoint=checkpoint,
        description=f"the ONNX export ({precision}) of {checkpoint} in {folder}",
        form=f"onnx_{precision}",
        fingerprint=str(info.get("fingerprint", "")),
    )


def from_checkpoint(path: Path, cls: Any, remark: str = "") -> Source:
    """Open a checkpoint of a model's class."""
    found = cls.from_checkpoint(path)
    return Source(
        hierarchy=found.hierarchy,
        tree=found.tree,
        calibration=found.calibration,
        encode=found.encode,
        run=found.run,
        checkpoint=path.name,
        description=f"checkpoint {path.name}{remark}",
        fingerprint=str(found.info.get("fingerprint", "")),
    )
