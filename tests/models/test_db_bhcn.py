"""DB_BHCN's equations, and the training loop that all encoder models share."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models import model_pytorch
from models.db_bhcn.db_bhcn import BHCN, DB_BHCN, BHCNConfig, nearness
from models.model_pytorch import pooling_matrix
from tests.support.tiny import random_tree, tiny_rows, write_rows, write_tiny_dataset
from tests.support.tiny_encoder import tiny_encoder
from utils.common.errors import UserError
from utils.common.paths import Layout
from utils.hierarchy.dataset import Dataset, Split
from utils.hierarchy.tree import Hierarchy
from utils.neural.loop import Run, learning_rate_factor, training_batches

WIDTH = 12


def make_head(tree: Hierarchy, **values: Any) -> BHCN:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return BHCN(WIDTH, tree, BHCNConfig(**values))


def rows_of(tree: Hierarchy, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random features and codes of random full-depth paths."""
    rng = np.random.default_rng(seed)
    paths = tree.path_codes[tree.level_slice(tree.depth - 1)]
    codes = paths[rng.integers(0, len(paths), count)]
    features = rng.normal(size=(count, WIDTH)).astype(np.float32)
    return torch.from_numpy(features), torch.from_numpy(codes).long()


# -- the head -----------------------------------------------------------------------------


def expected_loss(outputs: list[Tensor], codes: Tensor, tree: Hierarchy, c: BHCNConfig) -> float:
    """The paper's loss, row by row and class by class."""
    depth, rows = tree.depth, len(codes)
    weights = 1 - np.linspace(-c.gamma_l, c.gamma_l, depth)
    logs = [level.detach().double().numpy() for level in outputs]
    total = 0.0
    for h in range(depth):
        own = [-logs[h][row, codes[row, h]] for row in range(rows)]
        total += c.lambda_l * weights[h] * np.mean(own)
    for h in range(depth - 1):
        parents = tree.parents[tree.level_slice(h + 1)]
        terms = []
        for row in range(rows):
            below = -logs[h + 1][row]
            scaled = (below - below.min()) / (below.max() - below.min())
            factor = 1 - scaled[codes[row, h + 1]]
            terms.append(-logs[h][row, parents[logs[h + 1][row].argmax()]] * factor)
        total += c.lambda_h * np.mean(terms)
    return float(total)


@pytest.mark.parametrize("seed", range(3))
def test_loss_is_the_published_one(seed: int) -> None:
    tree = random_tree(np.random.default_rng(seed), depth=4)[0].full_depth()
    head = make_head(tree, gamma_l=-0.2, lambda_l=0.6, lambda_h=0.9).eval()
    features, codes = rows_of(tree, 20, seed)
    outputs = head(features)
    want = expected_loss(outputs, codes, tree, head.config)
    assert head.loss(outputs, codes).mean().item() == pytest.approx(want, rel=1e-5)


def test_layers_are_those_of_the_equations() -> None:
    tree = random_tree(np.random.default_rng(0))[0].full_depth()
    head = make_head(tree).eval()
    features, _ = rows_of(tree, 4)
    raw = features @ head.levels[0].weight.T + head.levels[0].bias
    for level in range(1, tree.depth):
        hidden = raw.clamp(min=0)
        mean, var = hidden.mean(1, keepdim=True), hidden.var(1, correction=0, keepdim=True)
        normed = (hidden - mean) / (var + 1e-5).sqrt()
        layer = head.levels[level]
        raw = torch.cat([normed, features], 1) @ layer.weight.T + layer.bias
        torch.testing.assert_close(head(features)[level], raw.log_softmax(1))


def test_scores_have_a_column_per_class_in_order() -> None:
    tree = random_tree(np.random.default_rng(0))[0].full_depth()
    head = make_head(tree).eval()
    scores = head.scores(head(rows_of(tree, 3)[0]))
    assert scores.shape == (3, tree.class_count)
    for level in range(tree.depth):
        sums = scores[:, tree.level_slice(level)].exp().sum(1)
        torch.testing.assert_close(sums, torch.ones(3))


def test_nearness_is_one_at_the_top_zero_at_the_bottom_and_defined_on_ties() -> None:
    logs = torch.tensor([[3.0, 2.0, 1.0]] * 3).log_softmax(1)
    found = nearness(logs, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(found, torch.tensor([1.0, 0.5, 0.0]))
    assert nearness(torch.zeros(2, 4), torch.tensor([1, 3])).tolist() == [1.0, 1.0]
    assert nearness(torch.zeros(2, 1), torch.tensor([0, 0])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "names",
    [[["a"]], [["a", "b"]], [["a"], ["b"], ["c", "d"]], [["a", "b"], ["c", "d"], ["e", "f"]]],
    ids=["one class", "one level", "levels of one class", "single children"],
)
def test_gradients_are_finite_on_odd_trees(names: list[list[str]]) -> None:
    parents = [[min(k, len(above) - 1) for k in range(len(level))]
               for above, level in zip([names[0], *names], names, strict=False)]  # fmt: skip
    tree = Hierarchy.from_parents(names, parents).full_depth()
    head = make_head(tree, dropout=0.0)
    for layer in head.levels:
        torch.nn.init.zeros_(layer.weight)  # all scores tie
    features, codes = rows_of(tree, 5)
    loss = head.loss(head(features), codes).mean()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


def test_the_factor_carries_no_gradient() -> None:
    tree = random_tree(np.random.default_rng(0), depth=2)[0].full_depth()
    head = make_head(tree, lambda_l=0.0, dropout=0.0)
    features, codes = rows_of(tree, 6)
    head.loss(head(features), codes).mean().backward()
    assert head.levels[0].weight.grad.abs().sum() > 0
    assert not head.levels[1].weight.grad.any()  # only the factor depends on it


def test_nothing_but_weights_grows_with_pairs_of_classes() -> None:
    tree = random_tree(np.random.default_rng(0))[0].full_depth()
    head = make_head(tree)
    assert max(buffer.numel() for buffer in head.buffers()) <= tree.class_count
    assert not any("parents" in name for name in head.state_dict())


def test_a_few_steps_lower_the_loss() -> None:
    tree = random_tree(np.random.default_rng(0))[0].full_depth()
    head = make_head(tree, dropout=0.0)
    features, codes = rows_of(tree, 8)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        loss = head.loss(head(features), codes).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# -- the loop -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_tiny_dataset(Layout(tmp_path_factory.mktemp("project")), "tiny")


def make_model(dataset: Dataset, encoder: Path, **values: Any) -> DB_BHCN:
    settings = {"encoder": str(encoder), "max_len": 16, "epochs": 3} | values
    return DB_BHCN(dataset.hierarchy, BHCNConfig(**settings))


def train(model: DB_BHCN, dataset: Dataset, seed: int = 0, **kwargs: Any) -> list[Any]:
    return list(model.fit(dataset.train, dataset.val, **{"epochs": None, "seed": seed, **kwargs}))


def weights(model: DB_BHCN) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in model.state(resumable=True)[0].items()}


def test_an_epoch_moves_encoder_and_head(dataset: Dataset, encoder: Path) -> None:
    model = make_model(dataset, encoder, epochs=1)
    model._begin(None, 0)
    before = weights(model)
    train(model, dataset)
    after = weights(model)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    still = set(before) - moved
    assert {name for name in still if name.startswith("encoder.transformer.transformer")} == set()
    assert {name for name in moved if name.startswith("scoring.head.levels")}
    assert "tokenizer" in still


def test_a_frozen_encoder_stays_as_it_is_and_encodes_once(
    dataset: Dataset, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(dataset, encoder, frozen=True, classifier_lr=0.01)
    model._begin(None, 0)
    before = weights(model)
    rows = []
    features = DB_BHCN._features

    def counted(self: DB_BHCN, tokens: Any) -> Any:
        rows.append(len(tokens))
        return features(self, tokens)

    monkeypatch.setattr(DB_BHCN, "_features", counted)
    epochs = train(model, dataset)
    assert sorted(rows) == sorted([len(dataset.train), len(dataset.val)])
    assert epochs[-1].metrics["loss"] < epochs[0].metrics["loss"]
    after = weights(model)
    assert all(np.array_equal(before[n], after[n]) for n in before if n.startswith("encoder."))
    assert not model.network.encoder.training


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_same_seed_same_run(dataset: Dataset, encoder: Path, precision: str) -> None:
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed + 40)  # must not matter
        model = make_model(dataset, encoder, epochs=2, precision=precision)
        runs.append([epoch.metrics["loss"] for epoch in train(model, dataset, seed)])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert np.isfinite(runs).all()


def test_training_leaves_the_random_state_alone(dataset: Dataset, encoder: Path) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    for _ in make_model(dataset, encoder, epochs=1).fit(
        dataset.train, dataset.val, epochs=None, seed=0
    ):
        assert (torch.random.get_rng_state() == before).all()


@pytest.mark.parametrize("stop", [1, 2])
def test_resumed_after_any_epoch_it_ends_with_the_same_bits(
    dataset: Dataset, encoder: Path, tmp_path: Path, stop: int
) -> None:
    whole = make_model(dataset, encoder, encoder_lr=1e-3)
    wanted = train(whole, dataset)
    model = make_model(dataset, encoder, encoder_lr=1e-3)
    for epoch in itertools.islice(model.fit(dataset.train, dataset.val, epochs=None, seed=0), stop):
        assert epoch.total == 3
    model.save(tmp_path / "last.pt")
    again = DB_BHCN.from_checkpoint(tmp_path / "last.pt", resumable=True)
    again.save(tmp_path / "copy.pt")  # before going on: nothing of the run may be lost
    again = DB_BHCN.from_checkpoint(tmp_path / "copy.pt", resumable=True)
    found = train(again, dataset, seed=7)  # the run's own seed counts
    assert [epoch.metrics for epoch in found] == [epoch.metrics for epoch in wanted[stop:]]
    assert [epoch.is_best for epoch in found] == [epoch.is_best for epoch in wanted[stop:]]
    left, right = weights(again), weights(whole)
    assert left.keys() == right.keys()
    assert all(np.array_equal(left[name], right[name]) for name in left)


def test_a_complete_run_has_nothing_left_to_do(
    dataset: Dataset, encoder: Path, tmp_path: Path
) -> None:
    model = make_model(dataset, encoder, epochs=1)
    train(model, dataset)
    model.save(tmp_path / "last.pt")
    again = DB_BHCN.from_checkpoint(tmp_path / "last.pt", resumable=True)
    assert train(again, dataset) == []
    assert [epoch.number for epoch in train(again, dataset, epochs=2)] == [2]


def test_without_training_state_the_file_is_smaller_and_answers_alike(
    dataset: Dataset, encoder: Path, tmp_path: Path
) -> None:
    model = make_model(dataset, encoder, epochs=1)
    train(model, dataset)
    model.save(tmp_path / "last.pt")
    model.save(tmp_path / "small.pt", resumable=False)
    sizes = [(tmp_path / name).stat().st_size for name in ("last.pt", "small.pt")]
    assert sizes[1] < 0.5 * sizes[0]
    again = DB_BHCN.from_checkpoint(tmp_path / "small.pt")
    texts = dataset.test.texts
    assert (again.predict(texts).top_probs == model.predict(texts).top_probs).all()


def test_the_best_epoch_is_chosen_by_the_metric_and_ties_by_nll() -> None:
    run = Run(seed=0, total=9)
    figures = [(0.5, 1.0), (0.5, 0.9), (0.4, 0.1), (0.5, 0.9), (0.6, 5.0)]
    judged = [run.judge({"leaf_accuracy": a, "nll": n}, "leaf_accuracy") for a, n in figures]
    assert judged == [True, True, False, False, True]
    lower = Run(seed=0, total=9)
    assert [lower.judge({"nll": n}, "nll") for n in (2.0, 3.0, 1.0)] == [True, False, True]
    nothing = Run(seed=0, total=9)
    assert [nothing.judge({"loss": 1.0}, "leaf_accuracy") for _ in range(2)] == [True, True]


def test_patience_ends_a_run(
    dataset: Dataset, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([0.5, 0.6, 0.4, 0.3, 0.9])
    monkeypatch.setattr(
        DB_BHCN, "validate", lambda self, val: {"leaf_accuracy": next(accuracies), "nll": 1.0}
    )
    epochs = train(make_model(dataset, encoder, epochs=9, patience=2), dataset)
    assert [epoch.is_best for epoch in epochs] == [True, True, False, False]
    assert epochs[-1].number == epochs[-1].total == 4
    assert epochs[0].total == 9


def test_divergence_is_told(dataset: Dataset, encoder: Path) -> None:
    model = make_model(dataset, encoder, epochs=1, classifier_lr=1e38, encoder_lr=1e38)
    with pytest.raises(UserError, match=r"diverged.*Lower encoder_lr"):
        train(model, dataset)


def test_nothing_to_train_on(dataset: Dataset, encoder: Path) -> None:
    nothing = Split(texts=[], codes=dataset.train.codes[:0])
    with pytest.raises(UserError, match="empty"):
        next(make_model(dataset, encoder).fit(nothing, dataset.val, epochs=None, seed=0))


def test_progress_reaches_the_number_of_rows(dataset: Dataset, encoder: Path) -> None:
    seen: list[tuple[int, int]] = []
    model = make_model(dataset, encoder, epochs=1)
    train(model, dataset, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(dataset.train), len(dataset.train))
    assert len(seen) == -(-len(dataset.train) // model.config.train_minibatch_size)


def test_scores_keep_the_order_in_windows(
    dataset: Dataset, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(dataset, encoder, epochs=1)
    train(model, dataset)
    texts = tiny_rows(40, seed=3)[0]
    texts = [text * (place % 4 + 1) for place, text in enumerate(texts)]
    whole = list(model.score_batches(texts))
    monkeypatch.setattr(model_pytorch, "WINDOW_ROWS", 7)
    parts = list(model.score_batches(texts))
    assert [len(part[0]) for part in parts] == [7, 7, 7, 7, 7, 5]
    for place in (0, 1):
        joined = np.concatenate([part[place] for part in parts])
        np.testing.assert_allclose(joined, whole[0][place], atol=1e-5)


def test_a_bert_learns_too(layout: Layout, tmp_path: Path) -> None:
    dataset = write_rows(layout, "more", *tiny_rows(700))
    folder = tiny_encoder(tmp_path / "bert", "bert")
    model = make_model(
        dataset, folder, pooling="mean", epochs=6, encoder_lr=3e-3, classifier_lr=3e-3
    )
    assert train(model, dataset)[-1].metrics["leaf_accuracy"] > 0.9


@pytest.mark.parametrize(("width", "columns"), [(768, 24), (384, 12), (40, 2), (5, 1)])
def test_features_are_pooled_over_columns(width: int, columns: int) -> None:
    matrix = pooling_matrix(width)
    assert matrix.shape == (width, columns)
    features = torch.arange(width, dtype=torch.float32)
    parts = [chunk.mean() for chunk in features.split(32)]
    torch.testing.assert_close(features @ matrix, torch.stack(parts))


def test_training_batches_hold_every_row_once_and_little_padding() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 60, 1000)
    batches = training_batches(lengths, 16, np.random.default_rng(1))
    assert sorted(np.concatenate(batches).tolist()) == list(range(1000))
    padded = sum(lengths[batch].max() * len(batch) for batch in batches)
    assert padded < 1.15 * lengths.sum()
    other = training_batches(lengths, 16, np.random.default_rng(2))
    assert any(not np.array_equal(a, b) for a, b in zip(batches, other, strict=True))


def test_the_learning_rate_rises_and_falls() -> None:
    factors = [learning_rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert max(factors) == factors[9] == factors[10] == 1.0
    assert factors[-1] == pytest.approx(1 / 90)
    assert all(0 < factor <= 1 for factor in factors)
    assert [learning_rate_factor(0, 1, warmup) for warmup in (0.0, 1.0)] == [1.0, 1.0]
