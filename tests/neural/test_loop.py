"""What the training loop promises beyond a plain one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.db_bhcn.db_bhcn import DB_BHCN, BHCNConfig
from tests.support.tiny import tiny_rows, write_rows, write_tiny_dataset
from tests.support.tiny_encoder import tiny_encoder
from utils.common.errors import UserError
from utils.common.paths import Layout
from utils.hierarchy.dataset import Dataset
from utils.neural.distributed import Team
from utils.neural.loop import class_weights, share_of


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One without dropout, so that runs differ in nothing but what is asked."""
    folder = tiny_encoder(tmp_path_factory.mktemp("encoder"))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(settings | {"dropout": 0.0, "attention_dropout": 0.0})
    )
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_tiny_dataset(Layout(tmp_path_factory.mktemp("project")), "tiny")


def make_model(dataset: Dataset, encoder: Path, **values: Any) -> DB_BHCN:
    settings = {
        "encoder": str(encoder), "max_len": 16, "epochs": 2, "dropout": 0.0, "precision": "fp32",
    }  # fmt: skip
    return DB_BHCN(dataset.hierarchy, BHCNConfig(**settings | values))


def train(model: DB_BHCN, dataset: Dataset) -> list[float]:
    epochs = model.fit(dataset.train, dataset.val, epochs=None, seed=0)
    return [epoch.metrics["loss"] for epoch in epochs]


def weights(model: DB_BHCN) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in model.state(resumable=False)[0].items()}


def test_accumulated_batches_equal_one_large_batch(dataset: Dataset, encoder: Path) -> None:
    large = make_model(dataset, encoder, train_minibatch_size=24)
    small = make_model(dataset, encoder, train_minibatch_size=8, accumulate=3)
    other = make_model(dataset, encoder, train_minibatch_size=8)
    losses = train(large, dataset)
    assert train(small, dataset) == pytest.approx(losses, rel=1e-4)
    assert train(other, dataset) != pytest.approx(losses, rel=1e-2)
    for name, value in weights(large).items():
        np.testing.assert_allclose(weights(small)[name], value, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_processes_share_out_every_row_once(size: int) -> None:
    for rows in (1, 2, 5, 16):
        batch = np.arange(100, 100 + rows)
        seen: list[int] = []
        for rank in range(size):
            parts, weight = share_of(batch, 4, Team(rank, size))
            assert parts
            assert all(1 <= len(part) <= 4 for part in parts)
            seen += [int(row) for part in parts for row in part] if weight else []
        assert sorted(seen) == batch.tolist()


def test_class_weights_are_those_of_the_formula() -> None:
    codes = np.array([0, 0, 0, 2, 2, 5])
    inverse = np.array([6 / (3 * n) for n in (3, 3, 3, 2, 2, 1)])
    np.testing.assert_allclose(class_weights(codes, 1.0), inverse / inverse.mean(), rtol=1e-6)
    half = np.sqrt(inverse)
    np.testing.assert_allclose(class_weights(codes, 0.5), half / half.mean(), rtol=1e-6)
    assert (class_weights(codes, 0.0) == 1).all()


def test_class_weights_help_the_rare(encoder: Path, layout: Layout) -> None:
    texts = ["wash" if row % 10 else "wash metal" for row in range(400)]
    paths = [("often",) if row % 4 else ("rare",) for row in range(400)]  # cannot be told apart
    dataset = write_rows(layout, "skew", [f"{t} {i}" for i, t in enumerate(texts)], paths)
    shares = []
    for power in (0.0, 1.0):
        model = make_model(dataset, encoder, class_weight_power=power, epochs=4, classifier_lr=0.02)
        train(model, dataset)
        rare = model.hierarchy.names.index("rare")
        scores = np.concatenate([s for s, _ in model.score_batches(dataset.test.texts)])
        shares.append(float(np.exp(scores[:, rare]).mean()))
    assert shares[0] == pytest.approx(0.25, abs=0.12)
    assert shares[1] > shares[0] + 0.15  # one half, but for what was learned by heart


@pytest.mark.parametrize(("share", "kept"), [(0.0, 0), (0.5, 1), (0.99, 1), (1.0, 2)])
def test_a_share_of_the_encoder_stays_as_it_is(
    dataset: Dataset, encoder: Path, share: float, kept: int
) -> None:
    model = make_model(dataset, encoder, frozen_share=share, epochs=1, encoder_lr=1e-3)
    model._begin(None, 0)
    before = weights(model)
    train(model, dataset)
    after = weights(model)
    still = {name for name in before if np.array_equal(before[name], after[name])}
    layers = {name for name in before if ".layer." in name}
    lowest = {name for name in layers if int(name.split(".layer.")[1].split(".")[0]) < kept}
    assert {name for name in layers if name in still} == lowest
    words = {name for name in before if "word_embeddings" in name}
    assert words <= still if share else not words & still
    assert not [name for name in still if "scoring.head.levels" in name]


def test_what_is_kept_has_no_dropout(dataset: Dataset, tmp_path: Path) -> None:
    model = make_model(dataset, tiny_encoder(tmp_path / "encoder"), frozen_share=0.5)
    model._begin(None, 0)
    step = model._training_step().train()
    dropouts = {
        name: part.training
        for name, part in step.named_modules()
        if isinstance(part, torch.nn.Dropout) and "transformer" in name
    }
    lower = {name: on for name, on in dropouts.items() if ".layer.1." not in name}
    assert lower
    assert not any(lower.values())
    assert all(on for name, on in dropouts.items() if name not in lower)


def test_validation_texts_are_tokenised_once(
    dataset: Dataset, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from utils.neural.tokenizer import TextTokenizer

    counted: list[int] = []
    encode = TextTokenizer._encode

    def spy(self: TextTokenizer, texts: Any) -> Any:
        counted.append(len(texts))
        return encode(self, texts)

    monkeypatch.setattr(TextTokenizer, "_encode", spy)
    train(make_model(dataset, encoder, epochs=3), dataset)
    assert sum(counted) == len(dataset.train) + len(dataset.val)


@pytest.mark.parametrize("limit", [5, 21, 10_000], ids=["thinned", "whole", "far below"])
def test_a_frozen_encoder_encodes_each_validation_text_once(
    dataset: Dataset, encoder: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """However many rows the validation split has: of 21 rows `limit` are scored."""
    from utils.neural.encoders import Encoder

    model = make_model(dataset, encoder, epochs=4, frozen=True)
    monkeypatch.setattr("models.model.VALIDATION_CELLS", limit * model.tree.class_count)
    encoded: list[int] = []
    forward = Encoder.forward

    def spy(self: Encoder, ids: Any, mask: Any) -> Any:
        encoded.append(len(ids))
        return forward(self, ids, mask)

    monkeypatch.setattr(Encoder, "forward", spy)
    train(model, dataset)
    assert len(dataset.val) == 21
    assert sum(encoded) == len(dataset.train) + min(limit, 21)


def test_a_thinned_validation_split_is_scored_like_its_rows(
    dataset: Dataset, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(dataset, encoder, epochs=1, frozen=True)
    few = dataset.val.take(np.linspace(0, len(dataset.val) - 1, 6).astype(int))
    (whole,) = model.fit(dataset.train, few, epochs=None, seed=0)
    monkeypatch.setattr("models.model.VALIDATION_CELLS", 6 * model.tree.class_count)
    (thinned,) = make_model(dataset, encoder, epochs=1, frozen=True).fit(
        dataset.train, dataset.val, epochs=None, seed=0
    )
    assert thinned.metrics == pytest.approx(whole.metrics)
    assert thinned.metrics["rows"] == 6


def test_a_copy_of_the_validation_texts_is_known_and_other_texts_are_not(
    dataset: Dataset, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(dataset, encoder, epochs=1, frozen=True)
    train(model, dataset)
    texts = [str(text) for text in dataset.val.texts]
    wanted = [model.predict(part).ends.tolist() for part in (texts[:9], texts[::-1])]
    monkeypatch.setattr("utils.neural.encoders.Encoder.forward", None)  # would fail
    (scores, _), *_ = model.score_batches([text[:1] + text[1:] for text in texts])
    monkeypatch.undo()
    assert wanted[0] == model.predict(texts).ends[:9].tolist()
    assert wanted[1] == model.predict(texts).ends[::-1].tolist()
    assert len(scores) == len(texts)


def test_consecutive_rows_of_tokens(encoder: Path, dataset: Dataset) -> None:
    model = make_model(dataset, encoder)
    model._begin(None, 0)
    texts = tiny_rows(9)[0]
    whole, part = model.tokenizer(texts), model.tokenizer(texts)[3:7]
    assert len(part) == 4
    for row in range(4):
        want = whole.padded(np.array([row + 3]))[0]
        assert (part.padded(np.array([row]))[0] == want).all()
    assert len(whole[9:]) == 0


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_compiled_training_equals_plain_training(dataset: Dataset, encoder: Path) -> None:
    plain = train(make_model(dataset, encoder), dataset)
    assert train(make_model(dataset, encoder, compile=True), dataset) == pytest.approx(
        plain, rel=1e-3
    )


def test_an_encoder_whose_layers_cannot_be_told(dataset: Dataset, encoder: Path) -> None:
    model = make_model(dataset, encoder)
    model._begin(None, 0)
    model.network.encoder.transformer.config.n_layers = 7
    with pytest.raises(UserError, match="frozen_share = 0.5"):
        model.network.encoder.keep(0.5)
