"""Decoding: scores to coherent answers."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from tests.support.tiny import random_tree
from utils.hierarchy.confidence import Calibration
from utils.hierarchy.decode import (
    ScoreHistogram,
    decode,
    independent_codes,
    join,
    leaf_log_probs,
    marginals,
)


def brute_force(scores: np.ndarray, tree, temperature: float) -> np.ndarray:
    """Path log-probabilities, one row and one leaf at a time."""
    last = tree.level_slice(tree.depth - 1)
    found = np.zeros((len(scores), last.stop - last.start))
    for row, values in enumerate(scores / temperature):
        for column, leaf in enumerate(range(last.start, last.stop)):
            for node in tree.ancestors(leaf):
                parent = tree.parents_global[node]
                family = np.flatnonzero(tree.parents_global == parent)
                found[row, column] += values[node] - np.log(np.exp(values[family]).sum())
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_path_probabilities_are_products_along_the_path(seed: int, temperature: float) -> None:
    rng = np.random.default_rng(seed)
    hierarchy, _ = random_tree(rng, 4)
    tree = hierarchy.full_depth()
    scores = rng.normal(size=(7, tree.class_count)).astype(np.float32)
    found = leaf_log_probs(scores, tree, temperature)
    np.testing.assert_allclose(found, brute_force(scores, tree, temperature), atol=1e-4)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, atol=1e-4)


def test_flat_scores_are_one_softmax(rng: np.random.Generator) -> None:
    hierarchy, _ = random_tree(rng, 3)
    tree = hierarchy.full_depth()
    scores = rng.normal(size=(7, tree.level_sizes[-1])).astype(np.float32)
    found = np.exp(leaf_log_probs(scores, tree, 0.5))
    wanted = np.exp(scores / 0.5)
    np.testing.assert_allclose(found, wanted / wanted.sum(axis=1, keepdims=True), rtol=1e-4)


def test_shifting_a_familys_scores_changes_nothing(rng: np.random.Generator) -> None:
    hierarchy, _ = random_tree(rng, 3)
    tree = hierarchy.full_depth()
    scores = rng.normal(size=(7, tree.class_count)).astype(np.float32)
    shifts = rng.normal(size=tree.class_count + 1).astype(np.float32)
    shifted = scores + shifts[tree.parents_global]
    np.testing.assert_allclose(
        leaf_log_probs(scores, tree, 1.0), leaf_log_probs(shifted, tree, 1.0), atol=1e-4
    )


def test_marginals_sum_leaves(rng: np.random.Generator) -> None:
    hierarchy, _ = random_tree(rng, 4)
    tree = hierarchy.full_depth()
    probs = rng.dirichlet(np.ones(tree.level_sizes[-1]), size=5).astype(np.float32)
    last = tree.level_slice(tree.depth - 1)
    for level, found in enumerate(marginals(probs, tree)):
        for code in range(tree.level_sizes[level]):
            below = tree.path_codes[last][:, level] == code
            np.testing.assert_allclose(found[:, code], probs[:, below].sum(axis=1), atol=1e-6)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_answers_are_paths_of_the_tree(flat: bool, depth: int, rng: np.random.Generator) -> None:
    hierarchy, _ = random_tree(rng, depth)
    tree = hierarchy.full_depth()
    width = tree.level_sizes[-1] if flat else tree.class_count
    calibration = Calibration(temperature=0.7)
    found = decode(rng.normal(size=(50, width)).astype(np.float32), hierarchy, tree, calibration)
    assert hierarchy.check_codes(found.codes) is None
    assert (np.diff(found.top_probs, axis=1) <= 0).all(), "best first"
    assert (np.diff(found.level_probs, axis=1) <= 1e-6).all(), (
        "a class is less likely than its parent"
    )
    np.testing.assert_allclose(found.level_probs[:, -1], found.confidence, atol=1e-5)
    assert {len(set(row)) for row in found.top.tolist()} == {found.top.shape[1]}


def test_independent_argmaxes_may_be_incoherent_where_answers_are_not() -> None:
    from utils.hierarchy.tree import Hierarchy

    hierarchy, _ = Hierarchy.from_paths([["a", "a", "b"], ["x", "y", "x"]])
    tree = hierarchy.full_depth()
    scores = np.log(np.array([[0.6, 0.4, 0.3, 0.3, 0.4]], dtype=np.float32))
    assert independent_codes(scores, tree).tolist() == [[0, 2]]
    found = decode(scores, hierarchy, tree)
    assert found.codes.tolist() == [[1, 2]], "a has .3 on each of its two leaves, b has .4"


def test_ties_and_extreme_scores_stay_finite(rng: np.random.Generator) -> None:
    hierarchy, _ = random_tree(rng, 3)
    tree = hierarchy.full_depth()
    scores = np.zeros((3, tree.class_count), dtype=np.float32)
    scores[1] = 1e6 * rng.normal(size=tree.class_count)
    scores[2] = -1e6
    found = decode(scores, hierarchy, tree, Calibration(temperature=0.01))
    assert np.isfinite(found.level_probs).all()
    assert np.isfinite(found.confidence).all()


def test_an_answer_stops_where_it_is_sure_enough(rng: np.random.Generator) -> None:
    hierarchy, _ = random_tree(rng, 3)
    tree = hierarchy.full_depth()
    found = decode(rng.normal(size=(40, tree.class_count)).astype(np.float32), hierarchy, tree)
    assert (found.ends_at(0.0) == found.ends).all()
    assert (found.ends_at(1.1) == -1).all()
    for row, node in enumerate(found.ends_at(0.4)):
        sure = int((found.level_probs[row] >= 0.4).sum())
        wanted = [code for code in found.codes[row].tolist() if code >= 0][:sure]
        got = [] if node < 0 else [c for c in hierarchy.path_codes[node].tolist() if c >= 0]
        assert got == wanted


def test_batches_join_to_the_whole(rng: np.random.Generator) -> None:
    hierarchy, _ = random_tree(rng, 3)
    tree = hierarchy.full_depth()
    scores = rng.normal(size=(20, tree.class_count)).astype(np.float32)
    half = Calibration(temperature=0.5)
    whole = decode(scores, hierarchy, tree, half)
    parts = join([decode(scores[a:b], hierarchy, tree, half) for a, b in ((0, 1), (1, 9), (9, 20))])
    for name in ("top", "top_probs", "level_probs", "independent", "raw_best"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


def test_many_classes_take_the_same_best(rng: np.random.Generator) -> None:
    scores = rng.permuted(np.tile(np.arange(500, dtype=np.float32), (6, 1)), axis=1)
    from utils.hierarchy.decode import _best

    assert (_best(scores, 5) == np.argsort(-scores, axis=1)[:, :5]).all()


def test_average_precision_equals_scikit_learns(rng: np.random.Generator) -> None:
    probs = rng.dirichlet(np.full(20, 0.3), size=300).astype(np.float32)
    truth = rng.integers(0, 20, 300)
    histogram = ScoreHistogram()
    histogram.add(probs[:100], truth[:100])
    histogram.add(probs[100:], truth[100:])
    wanted = average_precision_score(np.eye(20)[truth], probs, average="micro")
    assert histogram.average_precision() == pytest.approx(wanted, abs=2e-3)


def test_average_precision_of_a_random_scorer_is_the_share_of_hits(
    rng: np.random.Generator,
) -> None:
    # trap: an invented sample, positive for every class, lifted a random scorer from .025 to .320
    histogram = ScoreHistogram()
    histogram.add(rng.random((5000, 40)).astype(np.float32), rng.integers(0, 40, 5000))
    assert histogram.average_precision() == pytest.approx(1 / 40, abs=0.003)
