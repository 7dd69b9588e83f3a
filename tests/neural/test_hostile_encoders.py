"""Encoder folders from anywhere: no code of theirs is run, no file elsewhere is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.tiny_encoder import tiny_encoder, vocabulary
from utils.common.errors import UserError
from utils.neural.encoders import load_encoder


def load(folder: Path) -> Any:
    return load_encoder(str(folder), pooling="auto", max_len=16)


def change(file: Path, **values: Any) -> None:
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**known, **values}))


def refused(folder: Path, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        load(folder)
    for part in parts:
        assert part in caught.value.message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_encoder(tmp_path / "encoder", "bert")


@pytest.fixture
def mark(folder: Path) -> Path:
    """What the folder's own module would leave if it were run."""
    mark = folder.parent / "executed"
    code = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
    names = "from transformers import BertModel as M, BertConfig as C, BertTokenizer as T\n"
    (folder / "code.py").write_text(code + names)
    return mark


@pytest.mark.parametrize(
    "values",
    [
        {"auto_map": {"AutoModel": "code.M", "AutoConfig": "code.C"}},
        {"auto_map": {"AutoModel": "code.M", "AutoConfig": "code.C"}, "model_type": "own"},
        {"auto_map": {"AutoModel": "code.M"}, "model_type": "altclip_text_model"},
        {"custom_generate": "code"},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"_attn_implementation": "somebody/kernel"},
        {"encoder": {"model_type": "bert"}},
        {"base_model_name_or_path": "somebody/model"},
        {"transformers_weights": "../other/model.safetensors"},
        {"num_hidden_layers": 10**5},
        {"vocab_size": 10**10},
    ],
)
def test_a_configuration_that_asks_for_more_than_an_encoder(
    folder: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    change(folder / "config.json", **values)
    refused(folder, "" if "model_type" in values else f"config.json: {next(iter(values))!r}")
    assert not mark.exists()


def test_code_of_a_tokenizer_is_not_run(
    folder: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    named = {"auto_map": {"AutoTokenizer": ["code.T", "code.T"]}, "tokenizer_class": "Own"}
    change(folder / "tokenizer_config.json", **named)
    load(folder)  # whose tokenizer.json says everything
    (folder / "tokenizer.json").rename(folder / "gone")
    (folder / "vocab.txt").write_text("\n".join(vocabulary()))
    with suppress(UserError):
        load(folder)
    assert not mark.exists()


def test_what_only_changes_another_model_is_refused(folder: Path) -> None:
    change(folder / "adapter_config.json", base_model_name_or_path="somebody/model")
    refused(folder, "adapter_config.json", "Merge")


@pytest.mark.parametrize(
    "names",
    [
        ["../elsewhere/model.safetensors"],
        ["/elsewhere/model.safetensors"],
        ["model-1.safetensors", "../model.safetensors"],
        ["pytorch_model.bin"],
        [""],
        [None],
        [["model-1.safetensors"]],
    ],
)
def test_an_index_names_files_beside_it(folder: Path, names: list[Any]) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    placed = {f"weight {place}": name for place, name in enumerate(names)}
    change(folder / "model.safetensors.index.json", weight_map=placed)
    refused(folder, "index.json names", "no file of weights in this folder")


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', "junk", '{"weight_map": 7}'])
def test_a_damaged_index(folder: Path, content: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    refused(folder, "")


def test_weights_in_several_files_are_read(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    placed = {}
    for place in (1, 2):
        part = dict(list(weights.items())[place - 1 :: 2])
        name = f"model-0000{place}-of-00002.safetensors"
        save_file(part, folder / name, metadata={"format": "pt"})
        placed |= dict.fromkeys(part, name)
    change(folder / "model.safetensors.index.json", weight_map=placed, metadata={})
    found = load(folder).state_dict()
    name = "embeddings.word_embeddings.weight"
    assert torch.equal(found[f"transformer.{name}"], weights[name])


@pytest.mark.parametrize(
    "values", [{"vocab_size": 3_000_000}, {"max_position_embeddings": 900_000}]
)
def test_what_the_weights_do_not_fill_is_not_made_up(folder: Path, values: dict[str, Any]) -> None:
    change(folder / "config.json", **values)
    refused(folder, "more weights than it holds")


def test_weights_in_16_bits_fill_an_encoder_in_32(folder: Path) -> None:
    path = folder / "model.safetensors"
    half = {name: value.half() for name, value in load_file(path).items()}
    save_file(half, path, metadata={"format": "pt"})
    assert load(folder).state_dict()["transformer.embeddings.word_embeddings.weight"].dtype == (
        torch.float32
    )


@pytest.mark.parametrize("name", ["config.json", "1_Pooling/config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["[]", "7", "null", "[" * 5000, '{"a": ' * 2000, "\udcff"])
def test_odd_json(folder: Path, name: str, content: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    outcome: Callable[[], Any] = lambda: load(folder).spec.text_tokenizer(16)  # noqa: E731
    if name.startswith("1_") and content in ("[]", "7", "null"):
        outcome()  # as if it were not there
        return
    with pytest.raises(UserError) as caught:
        outcome()
    assert "\n" not in caught.value.message


def test_ids_of_another_vocabulary(folder: Path) -> None:
    values = json.loads((folder / "tokenizer.json").read_text())
    values["model"]["vocab"]["zebra"] = 5_000
    (folder / "tokenizer.json").write_text(json.dumps(values))
    refused(folder, "ids up to 5,000", "do not belong together")
