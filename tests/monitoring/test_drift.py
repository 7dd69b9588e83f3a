"""Drift: silent on traffic like the reference, loud on other traffic, at the right place."""

from __future__ import annotations

import numpy as np
import pytest

from monitor_drift import (
    Detector,
    Finding,
    Rows,
    kolmogorov_smirnov,
    merged,
    numeric_edges,
    one_hot,
    total_variation,
)
from monitor_settings import Settings
from tests.support.monitoring import FEATURES, Traffic, tree
from utils.hierarchy.metrics import class_scores


def _families(findings: list[Finding]) -> set[str]:
    return {finding.family for finding in findings if finding.ratio > 1}


def _signals(findings: list[Finding]) -> set[str]:
    return {finding.signal for finding in findings if finding.ratio > 1}


def _detector(traffic: Traffic, rng: np.random.Generator, rows: int = 1000) -> Detector:
    detector = Detector(traffic.tree, traffic.draw(rng, rows), Settings(), resamples=1000)
    detector.learn()
    return detector


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_traffic_like_the_reference_raises_few_alarms(
    sparse: bool, rng: np.random.Generator
) -> None:
    traffic = Traffic(tree(), sparse=sparse)
    alarms = windows = 0
    for _ in range(3):
        detector = _detector(traffic, rng)
        for size in (100, 300, 500, 500) * 25:
            windows += 1
            alarms += bool(_families(detector.compare(traffic.draw(rng, size))))
    assert alarms / windows <= 0.05


def test_one_subtree_only_is_seen_on_the_first_level(rng: np.random.Generator) -> None:
    traffic = Traffic(tree())
    inside = tree().ancestors[traffic.ends, 0] == 0
    shares = np.where(inside, traffic.shares, 0)
    findings = _detector(traffic, rng).compare(traffic.draw(rng, 100, shares / shares.sum()))
    assert {"level 1", "level 2"} <= _signals(findings)
    assert not {name for name in _signals(findings) if name.startswith("within T1")}


def test_a_shift_inside_one_node_is_said_to_be_there(rng: np.random.Generator) -> None:
    traffic = Traffic(tree())
    classes = tree()
    shares = traffic.shares.copy()
    inside = np.flatnonzero(classes.ancestors[traffic.ends, 0] == 0)
    last = inside[-2:]
    shares[last] += shares[inside].sum() / 2 - shares[last]
    rest = np.setdiff1d(inside, last)
    shares[rest] = 1e-9
    shares /= shares.sum()
    found = _signals(_detector(traffic, rng).compare(traffic.draw(rng, 500, shares)))
    assert "within T0" in found
    assert "level 1" not in found
    assert not {name for name in found if name.startswith(("within T1", "within T2", "within T3"))}


def test_noise_in_the_texts_is_seen_in_features_and_confidence(rng: np.random.Generator) -> None:
    traffic = Traffic(tree())
    found = _detector(traffic, rng).compare(traffic.draw(rng, 500, noise=1.0))
    assert {"features", "confidence"} <= _families(found)
    assert "estimated_accuracy" in _signals(found)
    assert "length" not in _families(found)


def test_a_window_that_is_not_full_is_compared_at_the_size_it_has_reached(
    rng: np.random.Generator,
) -> None:
    traffic = Traffic(tree())
    detector = _detector(traffic, rng)
    assert detector.sizes == [100, 200, 400, 500]
    few = detector.compare(traffic.draw(rng, 99))
    assert all(finding.ratio == finding.distance == 0 for finding in few)
    rows = traffic.draw(rng, 250)
    old = Rows(
        classes=rows.classes,
        features=rows.features + np.r_[np.zeros(50), np.full(200, 3.0)][:, None],
        confidence=rows.confidence,
        length=rows.length,
    )
    newest = detector.compare(old.take(slice(50, None)))
    assert detector.compare(old) == newest
    assert newest[0].ratio > 1  # 200 rows are compared, none of the 50 before them
    full = detector.compare(traffic.draw(rng, 700))
    assert full[0].threshold < newest[0].threshold


def test_lengths_that_are_not_sent_are_not_drift(rng: np.random.Generator) -> None:
    traffic = Traffic(tree())
    detector = _detector(traffic, rng)
    rows = traffic.draw(rng, 500)
    unknown = np.where(np.arange(500) < 450, np.nan, rows.length)
    findings = detector.compare(
        Rows(
            classes=rows.classes,
            features=rows.features,
            confidence=rows.confidence,
            length=unknown,
        )
    )
    (length,) = [finding for finding in findings if finding.family == "length"]
    assert length.distance == 0


def test_a_reference_without_lengths_has_no_such_family(rng: np.random.Generator) -> None:
    traffic = Traffic(tree())
    rows = traffic.draw(rng, 200)
    bare = Rows(
        classes=rows.classes,
        features=rows.features,
        confidence=rows.confidence,
        length=np.full(200, np.nan),
    )
    families = {finding.family for finding in Detector(tree(), bare, Settings()).nothing()}
    assert families == {"features", "predictions", "confidence"}


def test_switched_off_monitors_watch_nothing(rng: np.random.Generator) -> None:
    rows = Traffic(tree()).draw(rng, 200)
    only = Detector(tree(), rows, Settings(monitors=("cat_target_drift",)))
    assert {f.monitor for f in only.nothing()} == {"cat_target_drift"}
    none = Detector(tree(), rows, Settings(monitors=("regression_performance",)))
    none.learn()
    assert none.compare(rows) == []


def test_a_feature_that_was_always_the_same_may_not_change(rng: np.random.Generator) -> None:
    traffic = Traffic(tree())
    reference, live = traffic.draw(rng, 400), traffic.draw(rng, 100)
    reference.features[:, 2] = 0.1234567
    live.features[:, 2] = 0.123457  # as it is sent
    detector = Detector(tree(), reference, Settings(), resamples=200)
    detector.learn()
    assert _families(detector.compare(live)) == set()
    live.features[:2, 2] = 0.2  # two rows may be chance: the reference may have missed such
    assert _families(detector.compare(live)) == set()
    live.features[:20, 2] = 0.2
    assert _signals(detector.compare(live)) == {"2"}


def test_classes_that_the_reference_lacks_are_drift(rng: np.random.Generator) -> None:
    traffic = Traffic(tree())
    missing = tree().ancestors[traffic.ends, 0] == 3
    shares = np.where(missing, 0, traffic.shares)
    reference = traffic.draw(rng, 1000, shares / shares.sum())
    detector = Detector(tree(), reference, Settings(), resamples=500)
    detector.learn()
    only = np.where(missing, traffic.shares, 0)
    findings = detector.compare(traffic.draw(rng, 100, only / only.sum()))
    assert "level 1" in _signals(findings)


@pytest.mark.parametrize("kind", ["normal", "ties", "zeros", "constant", "two", "huge", "tiny"])
def test_bins_hold_about_as_many_rows_each_and_every_value(
    kind: str, rng: np.random.Generator
) -> None:
    values = {
        "normal": rng.standard_normal(1000),
        "ties": rng.integers(5, size=1000).astype(float),
        "zeros": np.maximum(rng.standard_normal(1000), 0),
        "constant": np.full(1000, -3.25),
        "two": np.r_[np.zeros(999), 1.0],
        "huge": rng.standard_normal(1000) * 1e300,
        "tiny": rng.standard_normal(1000) * 1e-9,
    }[kind]
    edges = numeric_edges(values)
    assert len(edges) + 1 <= 48
    assert (np.diff(edges) > 0).all()
    assert edges[0] < values.min() <= values.max() < edges[-1]
    shares = np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1) / 1000
    if kind in ("normal", "huge"):
        assert shares.max() < 0.08
    if kind == "zeros":
        nothing = np.searchsorted(edges, 0.0)
        assert shares[nothing] == pytest.approx((values == 0).mean())


def test_neighbouring_classes_share_a_bin_until_it_has_enough_rows() -> None:
    assert merged(np.array([50, 1, 1, 1, 2, 40, 3])).tolist() == [0, 1, 1, 1, 1, 2, 2]
    assert merged(np.array([0, 0, 0])).tolist() == [0, 0, 0]
    assert merged(np.arange(10_000) % 3).max() < 70


def test_distances_are_what_their_names_say(rng: np.random.Generator) -> None:
    left, right = rng.integers(6, size=50), rng.integers(6, size=80)
    a, b = (one_hot(codes, 6).sum(axis=0, keepdims=True) for codes in (left, right))
    p, q = (np.bincount(codes, minlength=6) / len(codes) for codes in (left, right))
    assert total_variation(a, b)[0] == pytest.approx(np.abs(p - q).sum() / 2)
    far = max(abs((left <= k).mean() - (right <= k).mean()) for k in range(6))
    assert kolmogorov_smirnov(a, b)[0] == pytest.approx(far)


def test_ten_thousand_classes_are_learned_in_bounded_memory(rng: np.random.Generator) -> None:
    from monitor_tree import Tree

    codes = np.arange(10_000)
    tops = codes // 100
    names = [*(f"t{i}" for i in range(100)), *(f"l{i}" for i in codes)]
    big = Tree.from_dict(
        {
            "classes": names,
            "level_sizes": [100, 10_000],
            "parent_of": [list(range(100)), tops.tolist()],
        }
    )
    shares = rng.dirichlet(np.full(10_000, 0.5))

    def draw(rows: int) -> Rows:
        return Rows(
            classes=100 + rng.choice(10_000, size=rows, p=shares),
            features=rng.standard_normal((rows, 2)),
            confidence=rng.random(rows),
            length=np.full(rows, np.nan),
        )

    detector = Detector(big, draw(3000), Settings(), resamples=400)
    detector.learn()
    # Most classes are rare, many never seen: that alone is no drift.
    alarms = sum(bool(_families(detector.compare(draw(500)))) for _ in range(100))
    assert alarms <= 8
    assert len(detector.signals) <= FEATURES + 60


def test_macro_f1_is_the_models_own(rng: np.random.Generator) -> None:
    from monitor_performance import macro_f1

    true, found = rng.integers(20, size=100), rng.integers(20, size=100)
    expected = class_scores(true.astype(np.int32), found.astype(np.int32), 30)[2]
    assert macro_f1(true, found, 30) == pytest.approx(expected)


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order(rng: np.random.Generator) -> None:
    from monitor_performance import area_under_curve

    scores = rng.integers(5, size=60) / 5
    own = rng.random(60) < 0.4
    pairs = scores[own][:, None] - scores[~own][None, :]
    expected = ((pairs > 0) + (pairs == 0) / 2).mean()
    assert area_under_curve(scores, own) == pytest.approx(expected)
