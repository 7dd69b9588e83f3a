"""Exported folders from anywhere: edited as one can who edits the hashes too."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from models import model_class
from tests.support.tiny import write_tiny_dataset
from tests.support.tiny_encoder import tiny_encoder
from utils.common.config import build_config
from utils.common.errors import UserError
from utils.common.paths import Layout
from utils.inference.classifier import Classifier
from utils.inference.manifest import hashes
from utils.inference.onnx_scorer import open_session
from utils.inference.sources import from_export
from utils.inference.torch_scorer import _open
from utils.neural.encoders import load_encoder

Values = dict[str, Any]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of an untrained encoder model."""
    folder = tmp_path_factory.mktemp("sound")
    data = write_tiny_dataset(Layout(folder / "root"), "tiny", rows=49)
    cls = model_class("db_linear")
    model = cls(data.hierarchy, build_config(cls.Config, {"max_len": 16}, "test"))
    encoder = load_encoder(str(tiny_encoder(folder / "encoder")), pooling="mean", max_len=16)
    model._assemble(encoder, seed=0)
    model.info = {"dataset": "tiny"}
    model.export_classifier(folder / "export")
    return folder / "export"


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a TF-IDF model."""
    folder = tmp_path_factory.mktemp("linear")
    data = write_tiny_dataset(Layout(folder / "root"), "tiny", rows=49)
    cls = model_class("tfidf_lsgd")
    model = cls(data.hierarchy, build_config(cls.Config, {"min_df": 1, "max_iter": 5}, "test"))
    list(model.fit(data.train, data.val, epochs=None, seed=0))
    model.info = {"dataset": "tiny"}
    model.export_classifier(folder / "export")
    return folder / "export"


def edited(folder: Path, to: Path, change: Callable[[Path, Values], Any]) -> Path:
    """A copy with something changed, and hashes that fit."""
    shutil.copytree(folder, to)
    manifest = json.loads((to / "manifest.json").read_text())
    change(to, manifest)
    manifest["files"] = hashes(to)
    (to / "manifest.json").write_text(json.dumps(manifest))
    return to


def refused(folder: Path, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        Classifier.load(folder)
    for part in parts:
        assert part in caught.value.message


def test_nothing_changed_is_loaded(sound: Path, linear: Path, tmp_path: Path) -> None:
    for place, folder in enumerate((sound, linear)):
        copy = edited(folder, tmp_path / str(place), lambda folder, manifest: None)
        assert len(Classifier.load(copy).answer(["wash foam"])) == 1


def of_scorer(**values: Any) -> Callable[[Path, Values], Any]:
    return lambda folder, manifest: manifest["scorer"].update(values)


def in_json(name: str, change: Callable[[Values], Any]) -> Callable[[Path, Values], Any]:
    def changed(folder: Path, manifest: Values) -> None:
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return changed


@pytest.mark.parametrize("change", [
    of_scorer(pad_id=10**6), of_scorer(pad_id=-(10**6)), of_scorer(pad_id=2**70),
    of_scorer(pad_id=None), of_scorer(max_len=10**9), of_scorer(max_len=65), of_scorer(max_len=0),
    of_scorer(max_len=[]), of_scorer(kind="torch"), of_scorer(file=None), of_scorer(file=7),
    of_scorer(tokenizer={}), of_scorer(file=["model.onnx"]),
    in_json("tokenizer.json", lambda v: v["model"]["vocab"].update(zebra=10**6)),
    in_json("tokenizer.json", lambda v: v["model"]["vocab"].update(zebra=2**32 - 1)),
    in_json("tokenizer.json", lambda v: v["model"]["vocab"].pop("[UNK]")),
    in_json("tokenizer.json", lambda v: v["post_processor"]["single"].append(
        {"SpecialToken": {"id": "[NONE]", "type_id": 0}})),
    in_json("hierarchy.json", lambda v: v["classes"].__setitem__(0, "a\nb")),
    in_json("hierarchy.json", lambda v: v["classes"].__setitem__(0, "a\ud800")),
    in_json("hierarchy.json", lambda v: v["classes"].__setitem__(1, v["classes"][0])),
    in_json("hierarchy.json", lambda v: v.update(level_sizes=[1])),
    in_json("service.json", lambda v: v.update(model=["a"])),
    in_json("service.json", lambda v: v.update(runtime="pickle")),
    in_json("service.json", lambda v: v.update(more=1)),
    lambda folder, manifest: manifest.update(temperature="1e400"),
    lambda folder, manifest: manifest.update(temperature=[1]),
    lambda folder, manifest: manifest.update(temperature=1e300),
    lambda folder, manifest: manifest.update(temperature=1e-300),
    lambda folder, manifest: (folder / "model.onnx").write_bytes(b"\x08"),
    lambda folder, manifest: (folder / "hierarchy.json").write_text("[" * 5000),
])  # fmt: skip
def test_an_export_that_does_not_fit_together(
    sound: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], change: Callable[..., Any]
) -> None:
    refused(edited(sound, tmp_path / "export", change))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("key", ["file", "tokenizer"])
@pytest.mark.parametrize("absolute", [False, True])
def test_files_outside_the_folder_are_not_opened(
    sound: Path, tmp_path: Path, key: str, absolute: bool
) -> None:
    copy = edited(sound, tmp_path / "export", lambda folder, manifest: None)
    manifest = json.loads((copy / "manifest.json").read_text())
    name = manifest["scorer"][key]
    outside = tmp_path / name
    (copy / name).rename(outside)
    place = str(outside) if absolute else f"../{name}"
    manifest["scorer"][key] = place
    manifest["files"][place] = manifest["files"][name]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    refused(copy, place, "which is not in")


@pytest.mark.parametrize("change", [
    lambda entry: entry["tfidf"].update(word_ngrams=10**9),
    lambda entry: entry["tfidf"].update(stemmer="klingon"),
    lambda entry: entry["tfidf"].update(char_ngrams=10**9),
    lambda entry: entry["tfidf"].update(sublinear_tf="yes"),
    lambda entry: entry["tfidf"].update(more=1),
    lambda entry: entry.update(tfidf=None),
    lambda entry: entry.update(vocabulary=None),
])  # fmt: skip
def test_a_vocabulary_of_odd_settings(
    linear: Path, tmp_path: Path, change: Callable[[Values], Any]
) -> None:
    def changed(folder: Path, manifest: Values) -> None:
        change(manifest["scorer"])

    refused(edited(linear, tmp_path / "export", changed))


@pytest.mark.parametrize("more", [True, False])
def test_a_vocabulary_of_another_model(linear: Path, tmp_path: Path, more: bool) -> None:
    from safetensors.numpy import load_file, save_file

    def change(folder: Path, manifest: Values) -> None:
        file = folder / manifest["scorer"]["vocabulary"]
        arrays = load_file(file)
        words = bytes(arrays["words"]) + b"\nzz\nzzz"
        arrays["words"] = np.frombuffer(words, np.uint8)
        if more:  # features that the graph does not have
            arrays["idf"] = np.append(arrays["idf"], np.ones(2, np.float32))
        save_file(arrays, file)

    refused(edited(linear, tmp_path / "export", change))


@pytest.mark.parametrize("place", ["../secret.bin", "{folder}/secret.bin", "link.bin"])
def test_weights_outside_the_folder_of_a_graph_are_not_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "secret.bin").write_bytes(b"\1\0\0\0")
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "link.bin").symlink_to("../secret.bin")
    weights = TensorProto(name="w", data_type=TensorProto.INT32, dims=[1],
                          data_location=TensorProto.EXTERNAL)  # fmt: skip
    weights.external_data.add(key="location", value=place.format(folder=tmp_path))
    output = helper.make_tensor_value_info("y", TensorProto.INT32, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [output],
                              [weights])  # fmt: skip
    opsets = [helper.make_opsetid("", 17)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    (folder / "model.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(UserError, match="cannot be opened"):
        open_session(folder / "model.onnx")
    assert capfd.readouterr().err == ""


class Writing(torch.nn.Module):
    """Leaves a file when it is run."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        torch.save(ids, self.place)
        return ids, mask


def test_torchscript_that_writes_files_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Writing(str(tmp_path / "written"))).save(str(tmp_path / "m.torchscript"))
    with pytest.raises(UserError, match="would write or read files"):
        _open(tmp_path / "m.torchscript", "cpu")


def test_where_a_graph_is_meant_no_torchscript_is_opened(sound: Path, tmp_path: Path) -> None:
    copy = edited(sound, tmp_path / "export", of_scorer(kind="torch"))
    with pytest.raises(UserError, match="kind 'torch', not 'onnx'"):
        from_export(copy)
