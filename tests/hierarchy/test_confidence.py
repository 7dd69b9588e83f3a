"""Confidence per level: what the maps keep true, and that fitting them finds what is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support.tiny import random_tree
from utils.hierarchy.calibration import expected_calibration_error, fit_calibration
from utils.hierarchy.confidence import Calibration, LevelMap
from utils.hierarchy.decode import decode, leaf_confidences
from utils.hierarchy.tree import Hierarchy


def random_calibration(rng: np.random.Generator, depth: int) -> Calibration:
    levels = [
        LevelMap(a=rng.uniform(0, 3), c=rng.uniform(0, 3), b=rng.normal()) for _ in range(depth)
    ]
    return Calibration(temperature=rng.uniform(0.3, 3), levels=tuple(levels))


@pytest.fixture(params=range(8))
def answered(request: pytest.FixtureRequest) -> tuple[Any, ...]:
    """Scores over a ragged tree, a calibration, and what both give."""
    rng = np.random.default_rng(request.param)
    hierarchy, _ = random_tree(rng, 3)
    tree = hierarchy.full_depth()
    width = tree.level_sizes[-1] if request.param % 2 else tree.class_count
    scores = 3 * rng.normal(size=(60, width)).astype(np.float32)
    calibration = random_calibration(rng, tree.depth)
    return scores, hierarchy, tree, calibration, decode(scores, hierarchy, tree, calibration)


def test_the_paths_answered_do_not_depend_on_the_maps(answered: tuple[Any, ...]) -> None:
    scores, hierarchy, tree, calibration, found = answered
    plain = decode(scores, hierarchy, tree, Calibration(temperature=calibration.temperature))
    np.testing.assert_array_equal(found.top[:, 0], plain.top[:, 0])
    np.testing.assert_array_equal(np.sort(found.top), np.sort(plain.top))
    assert not np.allclose(found.level_probs, plain.level_probs)


def test_no_class_is_surer_than_the_one_above(answered: tuple[Any, ...]) -> None:
    *_, found = answered
    assert (np.diff(found.level_probs, axis=1) <= 0).all()
    assert (found.level_probs >= 0).all()
    assert (found.level_probs[:, 0] <= 1).all()
    np.testing.assert_array_equal(found.confidence, found.level_probs[:, -1])


def test_other_paths_are_ranked_below_the_answer(answered: tuple[Any, ...]) -> None:
    *_, found = answered
    assert (np.diff(found.top_probs, axis=1) <= 0).all()
    assert (found.top_probs.sum(axis=1) <= 1 + 1e-5).all()


def test_paths_together_are_no_surer_than_the_classes_they_share(
    answered: tuple[Any, ...],
) -> None:
    scores, _, tree, calibration, found = answered
    answers, sure = leaf_confidences(scores, tree, calibration)
    np.testing.assert_array_equal(answers, found.top[:, 0])
    assert (sure.max(axis=1) == found.confidence).all()
    assert (sure.sum(axis=1) <= 1 + 1e-5).all()
    paths = tree.path_codes[tree.level_slice(tree.depth - 1)]
    for level in range(tree.depth):
        below = paths[:, level] == paths[answers, level][:, None]
        assert ((sure * below).sum(axis=1) <= found.level_probs[:, level] + 1e-5).all()


def test_the_best_paths_are_as_sure_as_among_all(answered: tuple[Any, ...]) -> None:
    scores, _, tree, calibration, found = answered
    _, sure = leaf_confidences(scores, tree, calibration)
    among_all = np.take_along_axis(sure, found.top, axis=1)
    np.testing.assert_allclose(found.top_probs, among_all, atol=1e-6)


def test_maps_that_change_nothing_change_nothing(answered: tuple[Any, ...]) -> None:
    scores, hierarchy, tree, *_ = answered
    plain = decode(scores, hierarchy, tree)
    same = decode(scores, hierarchy, tree, Calibration(levels=(LevelMap(),) * tree.depth))
    np.testing.assert_allclose(same.level_probs, plain.level_probs, atol=1e-5)
    np.testing.assert_allclose(same.top_probs, plain.top_probs, atol=1e-5)


def rows_of(
    rng: np.random.Generator, rows: int, right: float
) -> tuple[np.ndarray, np.ndarray, Hierarchy, Hierarchy]:
    """Rows of a tree of 400 leaves below 20: the first level always right, the leaf by chance.

    All scores are low, as of a model that has seen few rows of each class.
    """
    parents = [np.zeros(20, dtype=np.int32), np.repeat(np.arange(20), 20).astype(np.int32)]
    names = [[f"top {i}" for i in range(20)], [f"leaf {i}" for i in range(400)]]
    hierarchy = Hierarchy.from_dict(
        {
            "classes": [name for level in names for name in level],
            "level_sizes": [20, 400],
            "level_offsets": [0, 20, 420],
            "parent_of": [list(range(20)), parents[1].tolist()],
        },
        "hierarchy",
    )
    tree = hierarchy.full_depth()
    truth = rng.integers(0, 400, rows).astype(np.int32)
    top = truth // 20
    leaf = np.where(rng.random(rows) < right, truth, 20 * top + rng.integers(0, 20, rows))
    scores = rng.normal(size=(rows, 420)).astype(np.float32) / 4
    scores[np.arange(rows), top] += 1.5
    scores[np.arange(rows), 20 + leaf] += rng.uniform(1, 2, rows).astype(np.float32)
    return scores, truth, hierarchy, tree


def errors(scores: Any, truth: Any, hierarchy: Any, tree: Any, by: Calibration) -> list[float]:
    found = decode(scores, hierarchy, tree, by)
    paths = tree.path_codes[tree.level_slice(tree.depth - 1)]
    correct = paths[found.top[:, 0]] == paths[truth]
    return [
        expected_calibration_error(found.level_probs[:, level], correct[:, level])
        for level in range(tree.depth)
    ]


def test_each_level_is_as_sure_as_it_is_right(rng: np.random.Generator) -> None:
    """One temperature cannot: the first level is always right, and the leaf seldom."""
    scores, truth, hierarchy, tree = rows_of(rng, 6_000, 0.3)
    found = fit_calibration(scores[:1000], truth[:1000], hierarchy, tree)
    others = scores[1000:], truth[1000:], hierarchy, tree
    assert max(errors(*others, found)) < 0.04
    assert max(errors(*others, Calibration(temperature=found.temperature))) > 0.15


def test_few_rows_get_no_maps(rng: np.random.Generator) -> None:
    scores, truth, hierarchy, tree = rows_of(rng, 30, 0.3)
    assert fit_calibration(scores, truth, hierarchy, tree).levels == ()
    assert fit_calibration(scores[:0], truth[:0], hierarchy, tree, 0.3).temperature == 0.3


def test_maps_that_would_not_hold_are_not_taken(rng: np.random.Generator) -> None:
    """Probabilities that are right as they are gain nothing from maps but noise."""
    _, _, hierarchy, tree = rows_of(rng, 1, 0.3)
    taken = 0
    for _ in range(10):
        scores = 2 * rng.normal(size=(200, 400)).astype(np.float32)
        probs = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        chosen = (probs.cumsum(axis=1) < rng.random((200, 1))).sum(axis=1)
        truth = np.minimum(chosen, 399).astype(np.int32)
        calibration = fit_calibration(scores, truth, hierarchy, tree)
        taken += bool(calibration.levels)
        plain = Calibration(temperature=calibration.temperature)
        if calibration.levels:
            near = errors(scores, truth, hierarchy, tree, calibration)
            assert max(near) <= max(errors(scores, truth, hierarchy, tree, plain)) + 0.05
    assert taken < 10


def test_it_is_the_same_after_plain_values(rng: np.random.Generator) -> None:
    calibration = random_calibration(rng, 3)
    again = Calibration.from_values(calibration.temperature, calibration.level_values(), 3)
    assert again == calibration
    old = Calibration.from_values(1.5, None, 3)  # as in checkpoints from before there were maps
    assert old == Calibration(temperature=1.5)


DAMAGED: list[Callable[[int], Any]] = [
    lambda depth: [[1, 1, 0]] * (depth + 1),
    lambda depth: [[1, 1]] * depth,
    lambda depth: [[-1, 1, 0]] * depth,
    lambda depth: [[1, float("nan"), 0]] * depth,
    lambda depth: [[1, 1, float("inf")]] * depth,
    lambda depth: [[1, 1, 1e9]] * depth,
    lambda depth: [["x", 1, 0]] * depth,
    lambda depth: {"a": 1},
    lambda depth: 7,
]


@pytest.mark.parametrize("values", DAMAGED)
def test_what_no_calibration_gives_is_refused(values: Callable[[int], Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        Calibration.from_values(1.0, values(3), 3)
