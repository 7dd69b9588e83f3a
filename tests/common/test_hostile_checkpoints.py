"""Checkpoints from anywhere: nothing of them is run, and nothing is built larger than they are."""

from __future__ import annotations

import base64
import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import CONFIG_MAPPING

import evaluate
import export
import predict
from models import model_class
from tests.support.tiny import write_tiny_dataset
from tests.support.tiny_encoder import tiny_encoder, tokenizer_json, vocabulary
from utils.common.checkpoints import read_checkpoint, write_checkpoint
from utils.common.config import build_config
from utils.common.errors import UserError
from utils.common.paths import Layout
from utils.neural.architectures import TYPES
from utils.neural.encoders import EncoderSpec, build_encoder, load_encoder, position_limit
from utils.neural.tokenizer import TextTokenizer

MODEL = "db_linear"
Meta = dict[str, Any]
Arrays = dict[str, np.ndarray]


def saved(folder: Path, model: str = MODEL, **config: Any) -> tuple[Arrays, Meta]:
    """An untrained checkpoint's arrays and values."""
    layout = Layout(folder / "root")
    data = write_tiny_dataset(layout, "tiny", rows=49)
    cls = model_class(model)
    made = cls(data.hierarchy, build_config(cls.Config, {"max_len": 16, **config}, "test"))
    encoder = load_encoder(str(tiny_encoder(folder / "encoder")), pooling="mean", max_len=16)
    made._assemble(encoder, seed=0)
    made.info = {"dataset": "tiny"}
    made.save(folder / "model.pt")
    return read_checkpoint(folder / "model.pt", training=True)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Arrays, Meta]:
    return saved(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def load(sound: tuple[Arrays, Meta], tmp_path: Path) -> Callable[..., Any]:
    """Load the checkpoint with some of its values changed."""

    def loaded(change: Callable[[Arrays, Meta], Any] = lambda arrays, meta: None) -> Any:
        arrays, meta = dict(sound[0]), copy.deepcopy(sound[1])
        change(arrays, meta)
        write_checkpoint(tmp_path / "model.pt", arrays, meta)
        return model_class(MODEL).from_checkpoint(tmp_path / "model.pt")

    return loaded


def with_architecture(**values: Any) -> Callable[[Arrays, Meta], Any]:
    return lambda arrays, meta: meta["state"]["encoder"]["architecture"].update(values)


def refused(load: Callable[..., Any], change: Callable[[Arrays, Meta], Any], *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        load(change)
    assert "model.pt" in caught.value.message
    for part in parts:
        assert part in caught.value.message


def trap(folder: Path) -> Path:
    """A folder with a module that leaves a mark when it is run."""
    folder.mkdir()
    mark = folder / "executed"
    (folder / "code.py").write_text(
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
        "from transformers import BertModel as M\n"
    )
    return mark


@pytest.mark.parametrize("command", [evaluate, export, predict])
@pytest.mark.parametrize("kind", ["altclip_text_model", "clip_text_model", "distilbert"])
def test_code_that_a_checkpoint_names_is_not_run_whatever_is_answered(
    layout: Layout, sound: tuple[Arrays, Meta], tmp_path: Path, command: Any, kind: str
) -> None:
    write_tiny_dataset(layout, "tiny", rows=49)
    mark = trap(tmp_path / "evil")
    arrays, meta = sound[0], copy.deepcopy(sound[1])
    named = dict.fromkeys(("AutoModel", "AutoConfig"), f"{mark.parent}--code.M")
    meta["state"]["encoder"]["architecture"] = {"model_type": kind, "auto_map": named}
    path = layout.weight_dir(MODEL, "tiny") / "best_2026-01-01T00:00:00.pt"
    write_checkpoint(path, arrays, meta)
    (tmp_path / "rows.csv").write_text("text\nwash\n")
    more = [str(tmp_path / "rows.csv")] if command is predict else []
    result = CliRunner().invoke(command.main, ["-m", MODEL, "-d", "tiny", *more], input="y\ny\ny\n")
    assert not mark.exists()
    assert result.exit_code == 1
    assert "[y/N]" not in result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert path.name in line


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auto_map", {"AutoModel": "evil--code.M"}),
        ("auto_map", None),
        ("code", "import os"),
        ("custom_generate", "evil/code"),
        ("custom_pipelines", {}),
        ("_attn_implementation", "evil/kernels"),
        ("attn_implementation", "eager"),
        ("text_config", {"model_type": "bert"}),
        ("inner", {"model_type": "bert"}),
        ("quantization_config", {"quant_method": "bitsandbytes"}),
        ("adapter_file", "x"),
        ("base_model_name_or_path", "x"),
        ("transformers_weights", "x.safetensors"),
        ("trust_remote_code", True),
        ("_name_or_path", "/somewhere"),
        ("anything", "/somewhere"),
        ("anything", ["~/somewhere"]),
        ("anything", "../somewhere"),
        ("anything", "https://somewhere"),
        ("activation", "evil/kernel"),
        ("activation", "__import__('os')"),
    ],
)
def test_what_names_code_or_places_is_refused(
    load: Callable[..., Any], key: str, value: Any
) -> None:
    refused(load, with_architecture(**{key: value}), key)


def test_keys_that_mean_nothing_to_the_encoder_are_left_out(load: Callable[..., Any]) -> None:
    # what older versions of libraries wrote into config.json, and checkpoints have kept
    odd = {"gradient_checkpointing": False, "position_embedding_type": "absolute",
           "sentence_transformers": {"version": "5.0"}, "language": "en"}  # fmt: skip
    found = load(with_architecture(**odd))
    assert not odd.keys() & vars(found.network.encoder.transformer.config).keys()
    assert len(found.predict(["wash foam"]).top) == 1


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"n_layers": 10**6}, "'n_layers' is beyond"),
        ({"dim": 10**12}, "'dim' is beyond"),
        ({"vocab_size": 10**9}, "'vocab_size' is beyond"),
        ({"hidden_dim": -(10**30)}, "'hidden_dim' is beyond"),
        ({"max_position_embeddings": 10**9}, "'max_position_embeddings' is beyond"),
        ({"dropout": float("inf")}, "'dropout' is beyond"),
        ({"dropout": float("nan")}, "'dropout' is beyond"),
        ({"vocab_size": 3_000_000}, "more weights than it holds"),
        ({"max_position_embeddings": 900_000}, "more weights than it holds"),
        ({"hidden_dim": 900_000}, "more weights than it holds"),
        ({"n_layers": 3}, "damaged"),
        ({"n_layers": "two"}, ""),
        ({"n_heads": 0}, ""),
        ({"n_heads": 3}, ""),
        ({"pad_token_id": 10**5}, ""),
        ({"is_encoder_decoder": True}, "no text encoder"),
    ],
)
def test_nothing_is_built_that_the_weights_do_not_fill(
    load: Callable[..., Any], values: Meta, part: str
) -> None:
    refused(load, with_architecture(**values), part)


def test_a_head_is_no_larger_than_its_weights(tmp_path: Path) -> None:
    arrays, meta = saved(tmp_path, "db_achmcnn", h_hidden_dim=8)
    meta["config"] |= {"h_hidden_dim": 10_000, "h_layer_count": 3}
    write_checkpoint(tmp_path / "model.pt", arrays, meta)
    with pytest.raises(UserError, match=r"model\.pt.*more weights than it holds"):
        model_class("db_achmcnn").from_checkpoint(tmp_path / "model.pt")


def with_tokenizer(change: Callable[[Meta], Any]) -> Callable[[Arrays, Meta], Any]:
    def changed(arrays: Arrays, meta: Meta) -> None:
        values = json.loads(bytes(arrays["tokenizer"]))
        change(values)
        arrays["tokenizer"] = np.frombuffer(json.dumps(values).encode(), np.uint8)

    return changed


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["model"]["vocab"].update(zebra=10**6),
        lambda values: values["model"]["vocab"].update(zebra=2**32 - 1),
        lambda values: values["model"]["vocab"].pop("[UNK]"),
        lambda values: values["added_tokens"].append(
            {"id": 2**32 - 1, "content": "zebra", "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False, "special": True}
        ),
        lambda values: values["post_processor"]["special_tokens"]["[CLS]"].update(ids=[10**6]),
        lambda values: values["post_processor"]["special_tokens"]["[CLS]"].update(ids=[2**32 - 1]),
        lambda values: values["post_processor"]["special_tokens"]["[CLS]"].update(ids=[-1]),
        lambda values: values.update(model=None),
        lambda values: values.update(truncation={"max_length": 5, "stride": 9, "strategy": "x",
                                                 "direction": "Right"}),
    ],
)  # fmt: skip
def test_ids_that_the_encoder_has_no_vector_for(
    load: Callable[..., Any], change: Callable[[Meta], Any]
) -> None:
    refused(load, with_tokenizer(change))


def growing(letter: str, times: int) -> Meta:
    step = {"type": "Replace", "pattern": {"String": letter}, "content": letter * 2}
    return {"type": "Sequence", "normalizers": [step] * times}


UNIGRAM = {"type": "Unigram", "unk_id": 0, "vocab": [["[UNK]", 0.0], ["x" * 5_000, -1.0]]}
BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}
CHARSMAP = base64.b64encode(b"\4\0\0\0" + b"\0" * 4 + b"x" * 5_000 + b"\0").decode()


@pytest.mark.parametrize(
    "values",
    [
        {"normalizer": growing("q", 24)},
        {"normalizer": {"type": "Sequence", "normalizers": [growing("q", 12), growing("q", 12)]}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "q*"}, "content": "q" * 5_000}},
        {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "q" * 5_000}},
        {"normalizer": {"type": "Prepend", "prepend": "q" * 5_000}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": CHARSMAP}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES] * 12}},
        {"model": UNIGRAM},
    ],
)
def test_a_tokenizer_makes_no_gigabytes_of_a_letter(load: Callable[..., Any], values: Meta) -> None:
    refused(load, with_tokenizer(lambda tokenizer: tokenizer.update(values)), "at most are taken")


@pytest.mark.parametrize(
    "steps",
    [
        [{"type": "NFKC"}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}],
        [{"type": "Prepend", "prepend": "\u2581"},
         {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}],
        [{"type": "Replace", "pattern": {"String": "``"}, "content": '"'},
         {"type": "Replace", "pattern": {"String": "''"}, "content": '"'}, {"type": "ByteLevel"}],
    ],
)  # fmt: skip
def test_steps_of_usual_tokenizers_are_taken(load: Callable[..., Any], steps: list[Meta]) -> None:
    sequence = {"type": "Sequence", "normalizers": steps}
    assert load(with_tokenizer(lambda tokenizer: tokenizer.update(normalizer=sequence)))


@pytest.mark.parametrize("many", [False, True])
def test_a_panic_of_the_tokenizers_library_is_one_line(
    load: Callable[..., Any], capfd: pytest.CaptureFixture[str], many: bool
) -> None:
    def broken(values: Meta) -> None:
        values["post_processor"]["single"].append({"SpecialToken": {"id": "[NONE]", "type_id": 0}})
        if many:
            parts = [values["post_processor"]]
            values["post_processor"] = {"type": "Sequence", "processors": parts}

    refused(load, with_tokenizer(broken), "tokenizer.json is damaged")
    assert capfd.readouterr() == ("", "")
    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"


def test_a_panic_amid_texts_is_the_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As pyo3 names what Rust's panics become."""

    tokenizer = TextTokenizer(tokenizer_json(), 16, 0)
    broken, stopped = Failing(PanicException("boom")), Failing(KeyboardInterrupt())
    monkeypatch.setattr(tokenizer, "_tokenizer", broken)
    with pytest.raises(UserError, match="damaged: boom"):
        tokenizer(["a"])
    monkeypatch.setattr(tokenizer, "_tokenizer", stopped)
    with pytest.raises(KeyboardInterrupt):
        tokenizer(["a"])


class Failing:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def encode_batch_fast(self, texts: list[str]) -> Any:
        raise self.error


@pytest.mark.parametrize(
    "values",
    [
        {"pad_id": 10**6}, {"pad_id": -1}, {"pad_id": 2**70}, {"pad_id": "0"}, {"pad_id": None},
        {"pooling": "sum"}, {"pooling": None}, {"architecture": None}, {"architecture": []},
        {"more": 1},
    ],
)  # fmt: skip
def test_an_encoder_of_wrong_values(load: Callable[..., Any], values: Meta) -> None:
    refused(load, lambda arrays, meta: meta["state"]["encoder"].update(values))


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Arrays, Meta]:
    """A checkpoint that a training goes on from."""
    folder = tmp_path_factory.mktemp("interrupted")
    data = write_tiny_dataset(Layout(folder / "root"), "tiny", rows=49)
    encoder = tiny_encoder(folder / "encoder", "bert")
    cls = model_class(MODEL)
    model = cls(data.hierarchy, build_config(cls.Config, {"encoder": str(encoder)}, "test"))
    next(iter(model.fit(data.train, data.val, epochs=2, seed=0)))
    model.save(folder / "last.pt")
    return read_checkpoint(folder / "last.pt", training=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays, run: run.update(epoch=-5),
        lambda arrays, run: run.update(seed=-1),
        lambda arrays, run: run.update(seed="x"),
        lambda arrays, run: run.update(total=1.5),
        lambda arrays, run: run.update(best=["a", "b"]),
        lambda arrays, run: arrays.update({"training/zebra": np.zeros(3)}),
        lambda arrays, run: arrays.update({"training/99999/step": np.zeros(1)}),
        lambda arrays, run: arrays.update({"training/0/exp_avg": np.zeros(3, np.float32)}),
        lambda arrays, run: arrays.update(
            {"training/0/exp_avg": np.zeros(arrays["training/0/exp_avg"].shape, np.int8)}
        ),
        lambda arrays, run: arrays.pop("training/0/exp_avg_sq"),
        lambda arrays, run: arrays.pop("training/0/step"),
    ],
)
def test_an_interrupted_training_that_does_not_fit_together(
    interrupted: tuple[Arrays, Meta], tmp_path: Path, change: Callable[[Arrays, Meta], Any]
) -> None:
    arrays, meta = copy.deepcopy(interrupted)
    write_checkpoint(tmp_path / "last.pt", arrays, meta)
    assert model_class(MODEL).from_checkpoint(tmp_path / "last.pt", resumable=True)
    change(arrays, meta["state"]["run"])
    write_checkpoint(tmp_path / "last.pt", arrays, meta)
    with pytest.raises(UserError, match=r"last\.pt is damaged"):
        model_class(MODEL).from_checkpoint(tmp_path / "last.pt", resumable=True)


@pytest.mark.parametrize("value", [1e308, 1e-308, 0, -1, float("nan"), float("inf"), "x", None])
def test_a_temperature_that_no_calibration_gives(load: Callable[..., Any], value: Any) -> None:
    refused(load, lambda arrays, meta: meta.update(temperature=value))


@pytest.mark.parametrize("value", ["x", 7, [[1, 1, 0]] * 64, [["1", 2, None]], [[1e308] * 3]])
def test_maps_of_levels_that_no_calibration_gives(load: Callable[..., Any], value: Any) -> None:
    refused(load, lambda arrays, meta: meta.update(calibration=value))


@pytest.mark.parametrize("length", [65, 10**6, 2**31 - 1])
def test_texts_longer_than_the_encoder_takes(load: Callable[..., Any], length: int) -> None:
    refused(load, lambda arrays, meta: meta["config"].update(max_len=length), "max_len")


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_that_may_be_built_encodes(kind: str) -> None:
    config_class = CONFIG_MAPPING[kind]
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 1,
             "intermediate_size": 64, "vocab_size": 77, "max_position_embeddings": 64,
             "embedding_size": 32, "n_inner": 64, "intra_bottleneck_size": 32,
             "true_hidden_size": 32}  # fmt: skip
    named = {config_class.attribute_map.get(key, key): size for key, size in sizes.items()}
    known = config_class().to_dict()
    words = len(vocabulary())
    architecture = {key: value for key, value in named.items() if key in known}
    spec = EncoderSpec(
        architecture={**architecture, "model_type": kind, "vocab_size": words},
        tokenizer=tokenizer_json(), pooling="mean", pad_id=1,
    )  # fmt: skip
    encoder = build_encoder(spec, 16).eval()
    limit = position_limit(encoder.transformer.config)
    rows = spec.text_tokenizer(limit)(["wash " * 100, "foam"])
    ids, mask = (torch.from_numpy(part) for part in rows.padded(np.arange(2)))
    with torch.inference_mode():
        together, alone = encoder(ids, mask), encoder(ids[1:, :3], mask[1:, :3])
    assert together.shape == (2, encoder.width)
    np.testing.assert_allclose(together[1:], alone, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays, meta: arrays.update(
            words=np.frombuffer(bytes(arrays["words"]) + b"\nzebra", np.uint8)
        ),
        lambda arrays, meta: arrays.update(runs_2=np.append(arrays["runs_2"], [10**12] * 9)),
        lambda arrays, meta: arrays.update(idf=arrays["idf"][:, None]),
        lambda arrays, meta: meta["state"]["tfidf"].update(word_ngrams=10**9),
        lambda arrays, meta: meta["state"]["tfidf"].update(char_ngrams=10**9),
        lambda arrays, meta: meta["state"].update(tfidf=[]),
        lambda arrays, meta: meta["hierarchy"]["classes"].__setitem__(0, "a\nb"),
        lambda arrays, meta: meta["info"].update(loss=float("nan")),
        lambda arrays, meta: meta["info"].update(history=5),
        lambda arrays, meta: meta["info"].update(history=[{"seconds": 1.0}]),
        lambda arrays, meta: meta["info"].update(history=[{"epoch": 1, "loss": "x"}]),
        lambda arrays, meta: meta["info"].update(text_columns=["\ud800"]),
        lambda arrays, meta: meta["info"].update(deep=json.loads("[" * 500 + "]" * 500)),
        lambda arrays, meta: meta["hierarchy"]["classes"].__setitem__(0, "a\udfff"),
        lambda arrays, meta: meta["hierarchy"]["classes"].__setitem__(
            0, meta["hierarchy"]["classes"][1]
        ),
    ],
)
def test_a_linear_checkpoint_that_does_not_fit_together(
    tmp_path: Path, change: Callable[[Arrays, Meta], Any]
) -> None:
    data = write_tiny_dataset(Layout(tmp_path / "root"), "tiny", rows=49)
    cls = model_class("tfidf_lsgd")
    model = cls(data.hierarchy, build_config(cls.Config, {"max_iter": 5}, "test"))
    list(model.fit(data.train, data.val, epochs=None, seed=0))
    model.save(tmp_path / "model.pt")
    assert cls.from_checkpoint(tmp_path / "model.pt").predict(["zebra"])
    arrays, meta = read_checkpoint(tmp_path / "model.pt")
    change(arrays, meta)
    write_checkpoint(tmp_path / "model.pt", arrays, meta)
    with pytest.raises(UserError, match=r"model\.pt"):
        cls.from_checkpoint(tmp_path / "model.pt")
