"""How far live rows are from the reference, and how far is too far.

Every signal is a function of sums over rows, so that thousands of resampled windows are a matrix
product. What a distance may be by chance is learned from the reference: windows are drawn from it,
whole rows at a time, so that signals stay as dependent on each other as they are, and with shares
of the rows as uncertain as the reference is small, so that its own error is part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from monitor_settings import DATA_DRIFT, TARGET_DRIFT, Settings
from monitor_tree import Bools, Ints, Tree

Floats = NDArray[np.float64]
Sums = NDArray[np.float32]

NUMERIC_BINS = 16  # a few more where values are tied
FEATURE_BINS = 1024  # of all features together
CLASS_BINS = 64
MIN_BIN_ROWS = 5
NODES = 50  # inner nodes looked into
NODE_ROWS = 30  # that a window should hold of a node that is looked into
RESAMPLES = 2_000
CHUNK = 200  # resamples held at a time
REFERENCE_ROWS = 5_000  # or four windows; more rows only cost time
MOST_REFERENCE_ROWS = 20_000
SCALE_LEVEL = 0.95
UNSEEN = 3  # rows' worth of a value never seen that chance explains


@dataclass(frozen=True, eq=False, kw_only=True)
class Rows:
    """Answers and what they were made from; NaN where a length is not known.

    Parameters
    ----------
    classes
        Predicted class per row.
    features
        Pooled features; shape (rows, features).
    """

    classes: Ints
    features: Floats
    confidence: Floats
    length: Floats

    def __len__(self) -> int:
        return len(self.classes)

    def take(self, index: Ints | Bools | slice) -> Rows:
        """Some of the rows."""
        return Rows(
            classes=self.classes[index],
            features=self.features[index],
            confidence=self.confidence[index],
            length=self.length[index],
        )


class Distance(Protocol):
    """Distance of windows from references, given the sums of a signal's columns."""

    def __call__(self, window: Sums, reference: Sums, /) -> Floats:
        """Both (resamples, columns); the result (resamples,)."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Signal:
    """One thing that is watched.

    Parameters
    ----------
    columns
        What is summed over rows; shape (rows, columns).
    distance
        What is made of a window's and a reference's sums.
    least
        Rows of the smallest window in which there is anything to see.
    """

    monitor: str
    family: str
    name: str
    columns: Callable[[Rows], Sums]
    distance: Distance
    least: int = 0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A signal's distance and the distance that counts as drift."""

    monitor: str
    family: str
    signal: str
    distance: float = 0.0
    threshold: float = 0.0

    @property
    def ratio(self) -> float:
        """Above 1 is drift."""
        return self.distance / self.threshold if self.threshold > 0 else 0.0


# -- distances ----------------------------------------------------------------------------


def _shares(sums: Sums) -> tuple[Floats, Floats]:
    totals = sums.sum(axis=1, keepdims=True, dtype=np.float64)
    return sums / np.maximum(totals, 1), totals[:, 0]


def kolmogorov_smirnov(window: Sums, reference: Sums) -> Floats:
    """Largest difference of the distribution functions at the bins' edges."""
    (left, some), (right, others) = _shares(window), _shares(reference)
    far: Floats = np.abs(np.cumsum(left - right, axis=1)).max(axis=1)
    return np.where((some > 0) & (others > 0), far, 0.0)


def total_variation(window: Sums, reference: Sums) -> Floats:
    """Share of the rows that would have to change bins."""
    (left, some), (right, others) = _shares(window), _shares(reference)
    far: Floats = np.abs(left - right).sum(axis=1) / 2
    return np.where((some > 0) & (others > 0), far, 0.0)


def within_node(window: Sums, reference: Sums) -> Floats:
    """Total variation among the rows of one node; the last column counts all rows.

    With fewer rows in the node than expected the distance is shrunk as its noise grew: that the
    node is visited less is said by the level's signal, not by this one.
    """
    here, there = window[:, :-1], reference[:, :-1]
    share = there.sum(axis=1) / np.maximum(reference[:, -1], 1)
    expected = np.maximum(window[:, -1] * share, 1e-9)
    shrunk: Floats = np.sqrt(np.minimum(1.0, here.sum(axis=1) / expected))
    return total_variation(here, there) * shrunk


def mean_difference(window: Sums, reference: Sums) -> Floats:
    """Difference of means; columns: the values, and ones."""
    left, right = (sums[:, 0] / np.maximum(sums[:, 1], 1) for sums in (window, reference))
    return np.abs(left.astype(np.float64) - right)


# -- bins ---------------------------------------------------------------------------------


def numeric_edges(values: Floats, bins: int = NUMERIC_BINS) -> Floats:
    """Bin edges between distinct values near the quantiles; heavy values get bins of their own.

    Edges lie well between values, never on one, so that rounding moves no row. The outermost ones
    lie outside: a value that is always the same has a bin of its own, and so have others.
    """
    values = np.sort(values[np.isfinite(values)])
    if not len(values):
        return np.zeros(0)
    size = max(abs(values[0]), abs(values[-1]))
    same = 1e-5 * (values[-1] - values[0]) + 2e-5 * size + 1e-12
    first = np.flatnonzero(np.r_[True, np.diff(values) > same])
    last = np.r_[first[1:], len(values)] - 1
    between = (values[last[:-1]] + values[first[1:]]) / 2
    cuts = np.r_[values[0] - same, between, values[-1] + same]
    reached = np.searchsorted(last + 1, np.arange(1, bins) * len(values) / bins)
    heavy = reached[(last - first + 1)[reached] > len(values) / bins]
    return cuts[np.unique(np.r_[0, heavy, reached + 1, len(cuts) - 1])]


def one_hot(codes: Ints, bins: int) -> Sums:
    """A column per bin; rows with a negative code are in none."""
    columns = np.zeros((len(codes), bins), dtype=np.float32)
    there = np.flatnonzero(codes >= 0)
    columns[there, codes[there]] = 1
    return columns


def merged(counts: Ints, bins: int = CLASS_BINS) -> Ints:
    """Bin of each category, neighbours joined until a bin has enough rows.

    Each category is taken in turn until the bin is full, without looking ahead: bins chosen by
    their counts would be those overestimated by chance.
    """
    wanted = max(MIN_BIN_ROWS, int(counts.sum()) / bins)
    codes = np.zeros(len(counts), dtype=np.int64)
    held, code = 0, 0
    for place, count in enumerate(counts.tolist()):
        codes[place] = code
        held += count
        if held >= wanted:
            held, code = 0, code + 1
    if 0 < held < wanted and code:  # what is left over joins the last bin
        codes[codes == code] = code - 1
    return codes


# -- signals ------------------------------------------------------------------------------


def _numeric(
    monitor: str,
    family: str,
    name: str,
    values: Callable[[Rows], Floats],
    reference: Rows,
    bins: int = NUMERIC_BINS,
) -> Signal:
    edges = numeric_edges(values(reference), bins)

    def columns(rows: Rows) -> Sums:
        found = values(rows)
        codes = np.where(np.isfinite(found), np.searchsorted(edges, found), -1)
        return one_hot(codes, len(edges) + 1)

    return Signal(
        monitor=monitor,
        family=family,
        name=name,
        columns=columns,
        distance=kolmogorov_smirnov,
    )


def _mean(family: str, name: str, values: Callable[[Rows], Floats]) -> Signal:
    def columns(rows: Rows) -> Sums:
        found = values(rows).astype(np.float32)
        return np.stack([found, np.ones_like(found)], axis=1)

    return Signal(
        monitor=TARGET_DRIFT, family=family, name=name, columns=columns, distance=mean_difference
    )


def _feature(index: int) -> Callable[[Rows], Floats]:
    return lambda rows: rows.features[:, index]


def _class_bins(tree: Tree, places: Ints, reference: Rows) -> tuple[Ints, int]:
    """Bin of every class, given the class it stands for in a signal (-1: one that ends above)."""
    ranks = np.where(places < 0, -1, tree.order[places])
    kinds, codes = np.unique(ranks, return_inverse=True)
    counts = np.bincount(codes[reference.classes], minlength=len(kinds))
    bins = merged(counts)
    return bins[codes], int(bins.max()) + 1


def _level(tree: Tree, level: int, reference: Rows) -> Signal:
    bins, count = _class_bins(tree, tree.ancestors[:, level], reference)
    return Signal(
        monitor=TARGET_DRIFT,
        family="predictions",
        name=f"level {level + 1}",
        columns=lambda rows: one_hot(bins[rows.classes], count),
        distance=total_variation,
    )


def _within(tree: Tree, node: int, reference: Rows) -> Signal:
    level = int(tree.levels[node])
    inside = tree.ancestors[:, level] == node
    below = np.where(inside, tree.ancestors[:, min(level + 1, tree.depth - 1)], -1)
    there = inside[reference.classes]
    bins, count = _class_bins(tree, below, reference.take(there))
    codes = np.where(inside, bins, -1)

    def columns(rows: Rows) -> Sums:
        ones = np.ones((len(rows), 1), dtype=np.float32)
        return np.concatenate([one_hot(codes[rows.classes], count), ones], axis=1)

    return Signal(
        monitor=TARGET_DRIFT,
        family="predictions",
        name=f"within {tree.labels[node]}",
        columns=columns,
        distance=within_node,
        least=int(np.ceil(NODE_ROWS / there.mean() - 1e-9)),
    )


def watched_nodes(tree: Tree, reference: Rows, window: int) -> Ints:
    """Inner nodes with two children or more and enough rows, most visited first."""
    visits = np.zeros(len(tree.paths))
    for level in range(tree.depth):
        there = tree.ancestors[reference.classes, level]
        np.add.at(visits, there[there >= 0], 1)
    children = np.bincount(tree.parents[tree.parents >= 0], minlength=len(visits))
    expected = visits / max(len(reference), 1) * window
    fit = np.flatnonzero((children >= 2) & (expected >= NODE_ROWS))
    return fit[np.argsort(-expected[fit], kind="stable")][:NODES]


def build_signals(tree: Tree, reference: Rows, settings: Settings) -> list[Signal]:
    """Everything that the chosen monitors watch."""
    signals = []
    if DATA_DRIFT in settings.monitors:
        count = reference.features.shape[1]
        bins = max(4, min(NUMERIC_BINS, FEATURE_BINS // max(count, 1)))
        signals += [
            _numeric(DATA_DRIFT, "features", str(index), _feature(index), reference, bins)
            for index in range(count)
        ]
        if np.isfinite(reference.length).any():
            signals.append(
                _numeric(DATA_DRIFT, "length", "length", lambda rows: rows.length, reference)
            )
    if TARGET_DRIFT in settings.monitors:
        ends: Floats = tree.inner.astype(np.float64)
        signals += [_level(tree, level, reference) for level in range(tree.depth)]
        nodes = watched_nodes(tree, reference, settings.window_size)
        signals += [_within(tree, int(node), reference) for node in nodes]
        signals += [
            _numeric(
                TARGET_DRIFT, "confidence", "confidence", lambda rows: rows.confidence, reference
            ),
            _mean("confidence", "stopped_early", lambda rows: ends[rows.classes]),
            _mean("confidence", "estimated_accuracy", lambda rows: rows.confidence),
        ]
    return signals


# -- thresholds ---------------------------------------------------------------------------


def _drawn(rng: np.random.Generator, shares: Floats, rows: int) -> Sums:
    """How often each row is among `rows` drawn, per resample; `shares` (resamples, rows of it)."""
    resamples, of = shares.shape
    ends = np.cumsum(shares, axis=1)
    ends /= ends[:, -1:]
    picks = rng.random((resamples, rows))
    found = [
        np.searchsorted(own, pick, side="right") for own, pick in zip(ends, picks, strict=True)
    ]
    flat = np.minimum(np.stack(found), of - 1) + np.arange(resamples)[:, None] * of
    counts = np.bincount(flat.ravel(), minlength=resamples * of)
    return counts.reshape(resamples, of).astype(np.float32)


def _distances(signals: Sequence[Signal], cuts: Ints, window: Sums, reference: Sums) -> Floats:
    """Distance per signal, given the sums of all signals' columns; shape (resamples, signals)."""
    pairs = zip(
        signals, np.split(window, cuts, axis=1), np.split(reference, cuts, axis=1), strict=True
    )
    return np.stack([signal.distance(left, right) for signal, left, right in pairs], axis=1)


def _null_chunks(
    columns: Sums, signals: Sequence[Signal], cuts: Ints, sizes: Sequence[int], resamples: int
) -> Iterator[dict[int, Floats]]:
    """Distances of windows drawn like the reference from it: per size (chunk, signals)."""
    rng = np.random.default_rng(0)
    reference = columns.sum(axis=0, keepdims=True)
    for start in range(0, resamples, CHUNK):
        # What traffic may be like, given the reference: its rows, in shares as unsure as it is
        # large (the Bayesian bootstrap, Rubin 1981).
        shares = rng.standard_exponential((min(CHUNK, resamples - start), len(columns)))
        window, held = np.zeros((len(shares), columns.shape[1]), dtype=np.float32), 0
        far = {}
        for size in sizes:  # each window holds the next smaller one
            window = window + _drawn(rng, shares, size - held) @ columns
            held = size
            far[size] = _distances(signals, cuts, window, reference)
        yield far


def thresholds(null: Floats, families: Sequence[tuple[str, str]], rate: float) -> Floats:
    """Distance per signal that all of a family stay below in all but `rate` of the rows.

    Parameters
    ----------
    null
        Distances by chance; shape (resamples, signals).
    families
        Family per signal.
    rate
        Share of windows in which any signal of a family may be beyond its threshold.
    """
    scales = np.maximum(np.quantile(null, SCALE_LEVEL, axis=0), 1e-9)
    found = np.empty(null.shape[1])
    place = min(int(np.ceil((len(null) + 1) * (1 - rate))) - 1, len(null) - 1)
    for family in set(families):
        own = np.array([other == family for other in families])
        worst = np.sort((null[:, own] / scales[own]).max(axis=1))
        found[own] = scales[own] * worst[place]
    return found


class Detector:
    """Compares rows with a reference, at thresholds learned from that reference.

    Parameters
    ----------
    tree
        The classes.
    reference
        Rows answered by the same model, as traffic should be.
    settings
        The window's size, the rate of false alarms.
    """

    def __init__(
        self, tree: Tree, reference: Rows, settings: Settings, resamples: int = RESAMPLES
    ) -> None:
        limit = min(max(REFERENCE_ROWS, 4 * settings.window_size), MOST_REFERENCE_ROWS)
        if len(reference) > limit:
            chosen = np.random.default_rng(0).choice(len(reference), limit, replace=False)
            reference = reference.take(np.sort(chosen))
        self.rows = len(reference)
        self.sizes = settings.sizes()
        self.resamples = resamples
        self.signals = build_signals(tree, reference, settings)
        self.families = [(signal.monitor, signal.family) for signal in self.signals]
        self.rate = settings.false_alarm_rate / max(1, len(set(self.families)))
        self._reference = reference
        self._sums = [signal.columns(reference).sum(0, keepdims=True) for signal in self.signals]
        self._thresholds: dict[int, Floats] = {}

    def learn(self) -> None:
        """Learn the thresholds (seconds); `compare` needs them."""
        if self._thresholds or not self.signals:
            return
        columns = np.concatenate([s.columns(self._reference) for s in self.signals], axis=1)
        cuts = np.cumsum([sums.shape[1] for sums in self._sums])[:-1]
        chunks = list(_null_chunks(columns, self.signals, cuts, self.sizes, self.resamples))
        learned = {}
        for size in self.sizes:
            null = np.concatenate([chunk[size] for chunk in chunks])
            hidden = np.array([signal.least > size for signal in self.signals])
            null[:, hidden] = 0
            # Chance also explains a few rows of what the reference happens not to hold.
            floor = UNSEEN * (1 / size + 1 / self.rows)
            found = np.maximum(thresholds(null, self.families, self.rate), floor)
            learned[size] = np.where(hidden, np.inf, found)
        self._thresholds = learned

    def nothing(self) -> list[Finding]:
        """Every signal at 0, before there is anything to compare."""
        return [
            Finding(monitor=signal.monitor, family=signal.family, signal=signal.name)
            for signal in self.signals
        ]

    def compare(self, rows: Rows) -> list[Finding]:
        """Compare the newest rows, as many as the largest size that they reach.

        Parameters
        ----------
        rows
            Oldest first.

        Returns
        -------
        list of Finding
            One per signal; a signal whose rows are too few is at 0.
        """
        known = rows.take(np.isfinite(rows.length))
        return [
            self._finding(place, known if signal.family == "length" else rows)
            for place, signal in enumerate(self.signals)
        ]

    def _finding(self, place: int, rows: Rows) -> Finding:
        signal = self.signals[place]
        size = max((size for size in self.sizes if size <= len(rows)), default=0)
        if not size or signal.least > size:
            return Finding(monitor=signal.monitor, family=signal.family, signal=signal.name)
        newest = rows.take(slice(len(rows) - size, None))
        sums = signal.columns(newest).sum(axis=0, keepdims=True)
        return Finding(
            monitor=signal.monitor,
            family=signal.family,
            signal=signal.name,
            distance=float(signal.distance(sums, self._sums[place])[0]),
            threshold=float(self._thresholds[size][place]),
        )
