"""Metrics and calibration."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from tests.support.tiny import random_tree
from utils.hierarchy.calibration import expected_calibration_error, fit_temperature
from utils.hierarchy.confidence import Calibration
from utils.hierarchy.decode import ScoreHistogram, decode
from utils.hierarchy.metrics import class_scores, coherence, evaluate


def predictions_of(codes: np.ndarray, hierarchy, rng: np.random.Generator):
    """Predictions that answer `codes` with a confidence near 1."""
    tree = hierarchy.full_depth()
    scores = rng.normal(size=(len(codes), tree.level_sizes[-1])).astype(np.float32)
    last = tree.last_codes(codes, hierarchy)
    scores[np.arange(len(codes)), last] = 30
    return decode(scores, hierarchy, tree, Calibration(), last, ScoreHistogram())


def test_perfect_answers_score_one(rng: np.random.Generator) -> None:
    hierarchy, codes = random_tree(rng, 3)
    figures = evaluate(predictions_of(codes, hierarchy, rng), codes)
    zero = {"calibration_error", "calibration_error_raw"}
    for name, value in figures.items():
        if name == "rows":
            assert value == len(codes)
        else:
            assert value == pytest.approx(0 if name in zero else 1, abs=1e-3), name


def test_figures_agree_with_sets_and_scikit_learn(rng: np.random.Generator) -> None:
    hierarchy, codes = random_tree(rng, 3, rows=400)
    answered = codes[rng.permutation(len(codes))]
    keep = rng.random(len(codes)) < 0.5
    answered[keep] = codes[keep]
    figures = evaluate(predictions_of(answered, hierarchy, rng), codes)

    true = [set(hierarchy.ancestors(node)) for node in hierarchy.end_classes(codes)]
    given = [set(hierarchy.ancestors(node)) for node in hierarchy.end_classes(answered)]
    shared = sum(len(a & b) for a, b in zip(true, given, strict=True))
    assert figures["hierarchical_precision"] == pytest.approx(shared / sum(map(len, given)))
    assert figures["hierarchical_recall"] == pytest.approx(shared / sum(map(len, true)))
    assert figures["hierarchical_f1"] == pytest.approx(
        2 * shared / (sum(map(len, given)) + sum(map(len, true)))
    )
    assert figures["path_precision"] == pytest.approx(
        np.mean([len(a & b) / len(b) for a, b in zip(true, given, strict=True)])
    )
    # trap: a "path accuracy" that was a mean over levels
    exact = np.mean([a == b for a, b in zip(true, given, strict=True)])
    assert figures["path_accuracy"] == figures["leaf_accuracy"] == pytest.approx(exact)
    ends, found = hierarchy.end_classes(codes), hierarchy.end_classes(answered)
    options = {"average": "macro", "zero_division": 0.0}
    assert figures["leaf_macro_f1"] == pytest.approx(f1_score(ends, found, **options))
    assert figures["leaf_precision"] == pytest.approx(precision_score(ends, found, **options))
    assert figures["leaf_recall"] == pytest.approx(recall_score(ends, found, **options))
    reach = codes[:, 1] >= 0
    assert figures["level_2_accuracy"] == pytest.approx(
        (codes[reach, 1] == answered[reach, 1]).mean()
    )
    assert figures["coherence"] == 1.0


def test_absent_classes_do_not_count() -> None:
    true, found = np.array([0, 0, 3]), np.array([0, 3, 3])
    assert class_scores(true, found, 1000)[2] == pytest.approx(
        f1_score(true, found, average="macro")
    )


def test_incoherent_answers_are_seen(rng: np.random.Generator) -> None:
    hierarchy, codes = random_tree(rng, 3)
    found = predictions_of(codes, hierarchy, rng)
    assert coherence(found) == 1.0
    broken = found.codes.copy()
    deep = np.flatnonzero(broken[:, 1] >= 0)
    broken[deep[0], 0] = (broken[deep[0], 0] + 1) % hierarchy.level_sizes[0]
    object.__setattr__(found, "codes", broken)
    assert coherence(found) == pytest.approx(1 - 1 / len(codes))


def test_no_rows_no_figures(rng: np.random.Generator) -> None:
    hierarchy, codes = random_tree(rng, 3)
    assert evaluate(predictions_of(codes[:1], hierarchy, rng), codes[:0]) == {"rows": 0.0}


@pytest.mark.parametrize("flat", [False, True])
def test_temperature_is_found_again(flat: bool, rng: np.random.Generator) -> None:
    from utils.hierarchy.decode import leaf_log_probs

    hierarchy, _ = random_tree(rng, 3)
    tree = hierarchy.full_depth()
    width = tree.level_sizes[-1] if flat else tree.class_count
    scores = (3 * rng.normal(size=(20_000, width))).astype(np.float32)
    probs = np.exp(leaf_log_probs(scores, tree, 2.5)).astype(float)
    truth = (
        probs.cumsum(axis=1) < rng.random((len(probs), 1)) * probs.sum(axis=1, keepdims=True)
    ).sum(axis=1)
    found = fit_temperature(scores, truth, tree)
    assert found == pytest.approx(2.5, rel=0.05)
    after = decode(scores, hierarchy, tree, Calibration(temperature=found), truth)
    correct = after.top[:, 0] == truth
    assert expected_calibration_error(after.confidence, correct) < 0.02
    assert expected_calibration_error(after.raw_confidence, after.raw_best == truth) > 0.1


def test_temperature_without_rows_is_the_default(rng: np.random.Generator) -> None:
    hierarchy, _ = random_tree(rng, 3)
    tree = hierarchy.full_depth()
    nothing = np.zeros((0, tree.class_count), dtype=np.float32)
    assert fit_temperature(nothing, np.zeros(0, dtype=np.int32), tree, 0.25) == 0.25


def test_calibration_error_of_known_bins() -> None:
    confidence = np.array([0.95, 0.95, 0.05, 0.05])
    assert expected_calibration_error(confidence, np.array([1, 1, 0, 0], bool)) == pytest.approx(
        0.05
    )
    assert expected_calibration_error(confidence, np.array([0, 0, 1, 1], bool)) == pytest.approx(
        0.95
    )
    assert np.isnan(expected_calibration_error(confidence[:0], np.zeros(0, bool)))


def test_few_rows_that_are_all_right_do_not_make_certain(rng: np.random.Generator) -> None:
    hierarchy, _ = random_tree(rng, 2)
    tree = hierarchy.full_depth()
    truth = rng.integers(0, tree.level_sizes[-1], 12)
    scores = np.full((12, tree.level_sizes[-1]), -1, dtype=np.float32)
    scores[np.arange(12), truth] = 1
    assert 0.05 < fit_temperature(scores, truth, tree, 0.3) < 0.6
    assert 0.5 < fit_temperature(np.zeros_like(scores), truth, tree, 1.0) < 2
