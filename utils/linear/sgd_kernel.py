"""Stochastic gradient descent for many two-class problems over the same rows, compiled.

Each problem is what scikit-learn's `SGDClassifier` (L2 penalty, 'optimal' learning rate) solves
for one class against the rest, with the same order of rows, the same steps and the same stopping
rule. What differs is the layout: a feature's weights of all classes lie side by side, so that a
row is read once for all of them and the processor's vector units work on several classes at once.
The size of a step depends on the number of steps alone, so the classes share one scale.

Importing this module compiles it (seconds), or reads it from the cache of an earlier import.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

LOSSES = ("modified_huber", "squared_hinge", "hinge", "log_loss", "perceptron")
_HUBER, _SQUARED, _HINGE, _LOG, _PERCEPTRON = range(len(LOSSES))
# Constants of SGDClassifier: sparse rows move the intercept less, slopes and scale are bounded.
_INTERCEPT_RATE = 0.01
_STEEPEST = 1e12
_SMALLEST_SCALE = 1e-6
_PATIENCE = 5
# Weights of so many classes are added up in registers.
LANES = 8
# Places in the array of what the classes share.
_STEPS, _SCALE, _SHARE, _NORM = range(4)


def _compiled(signature: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile now, for one signature; keep the result where a folder can be written to."""

    def compile_(function: Callable[..., Any]) -> Callable[..., Any]:
        options.update(nogil=True, error_model="numpy")
        try:
            return numba.njit(signature, cache=True, **options)(function)
        except RuntimeError:  # neither beside this file nor in the user's cache folder
            return numba.njit(signature, **options)(function)

    return compile_


@_compiled("void(int32[::1], uint32)")
def shuffle(order: Any, seed: Any) -> None:
    """Fisher-Yates by a 32-bit xorshift generator, as scikit-learn orders its rows."""
    mask = np.uint64(0xFFFFFFFF)
    state = np.uint64(max(seed, 1))
    count = len(order)
    for i in range(count - 1):
        state ^= (state << np.uint64(13)) & mask
        state ^= state >> np.uint64(17)
        state ^= (state << np.uint64(5)) & mask
        j = i + np.int64((state & np.uint64(0x7FFFFFFF)) % np.uint64(count - i))
        order[i], order[j] = order[j], order[i]


@_compiled("UniTuple(float64, 2)(int64, float64, float64)", inline="always")
def _loss_and_slope(kind: Any, sign: Any, margin: Any) -> Any:
    """Loss of one class on one row, and its derivative by the margin."""
    agreement = sign * margin
    short = 1.0 - agreement
    loss, slope = 0.0, 0.0
    if kind == _HUBER:
        held = min(max(short, 0.0), 2.0)
        loss, slope = held * (2.0 * short - held), -2.0 * sign * held
    elif kind == _SQUARED:
        held = max(short, 0.0)
        loss, slope = held * held, -2.0 * sign * held
    elif kind == _LOG:
        small = math.exp(-abs(agreement))
        loss = math.log1p(small) + max(-agreement, 0.0)
        slope = -sign * (small if agreement > 0 else 1.0) / (1.0 + small)
    else:
        if kind == _PERCEPTRON:
            short = -agreement
        if short >= 0:
            loss, slope = short, -sign
    return loss, min(max(slope, -_STEEPEST), _STEEPEST)


@_compiled("void(float32[::1], int32[::1], float32[::1], int64, int64, float64[::1])")
def _margins(values: Any, places: Any, state: Any, width: Any, stride: Any, margins: Any) -> None:
    """Sum one row's values times the weights, eight classes at a time."""
    for lane in range(0, width, LANES):
        a = b = c = d = e = f = g = h = 0.0
        for n in range(len(places)):
            at = np.int64(places[n]) * stride + lane
            x = values[n]
            a += x * state[at]
            b += x * state[at + 1]
            c += x * state[at + 2]
            d += x * state[at + 3]
            e += x * state[at + 4]
            f += x * state[at + 5]
            g += x * state[at + 6]
            h += x * state[at + 7]
        margins[lane], margins[lane + 1], margins[lane + 2], margins[lane + 3] = a, b, c, d
        margins[lane + 4], margins[lane + 5], margins[lane + 6], margins[lane + 7] = e, f, g, h


@_compiled(
    "void(float32[::1], int32[::1], float32[::1], int64, int64, float64, float64[::1],"
    " float64[::1], float64[::1])"
)
def _move_all(
    values: Any, places: Any, state: Any, width: Any, stride: Any, share: Any, moves: Any,
    drags: Any, squares: Any,
) -> None:  # fmt: skip
    """Add one row to the weights of all classes."""
    squares[:width] = 0
    for n in range(len(places)):
        at = np.int64(places[n]) * stride
        x = np.float64(values[n])
        row = state[at : at + width]
        for k in range(width):
            new = np.float32(row[k] + x * moves[k])
            row[k] = new
            squares[k] += new * new
        if stride > width:
            means = state[at + width : at + stride]
            for k in range(width):
                means[k] = means[k] + share * x * drags[k]


@_compiled(
    "void(float32[::1], int32[::1], float32[::1], int64, int64, float64, float64[::1],"
    " float64[::1], float64[::1], int32[::1])"
)
def _move_some(
    values: Any, places: Any, state: Any, width: Any, stride: Any, share: Any, moves: Any,
    drags: Any, squares: Any, hot: Any,
) -> None:  # fmt: skip
    """Add one row to the weights of a few classes."""
    for k in hot:
        squares[k] = 0
    for n in range(len(places)):
        at = np.int64(places[n]) * stride
        x = np.float64(values[n])
        for k in hot:
            new = np.float32(state[at + k] + x * moves[k])
            state[at + k] = new
            squares[k] += new * new
            if stride > width:
                state[at + width + k] = state[at + width + k] + share * x * drags[k]


@_compiled("void(float32[::1], int64, int64, float64[::1])")
def _fold(state: Any, width: Any, stride: Any, shared: Any) -> None:
    """Multiply the scale into the weights, and their part of the means into the means."""
    scale, share = np.float32(shared[_SCALE]), np.float32(shared[_SHARE])
    whole = np.float32(1 / shared[_NORM])
    for at in range(0, len(state) - stride + 1, stride):
        for k in range(at, at + width):
            if stride > width:
                state[k + width] = (state[k + width] + share * state[k]) * whole
            state[k] *= scale
    shared[_SCALE], shared[_SHARE], shared[_NORM] = 1.0, 0.0, 1.0


@_compiled("void(float64[::1], float32[::1], int64, int64, float64)")
def _advance(shared: Any, state: Any, width: Any, stride: Any, shrink: Any) -> None:
    shared[_SCALE] *= shrink
    if shared[_SCALE] < _SMALLEST_SCALE:
        _fold(state, width, stride, shared)


@_compiled(
    "int64(int64, int32, int32[::1], int32[::1], float32[::1], float64, float64, float64,"
    " float64, float64, float64[:, ::1], float64[::1], float64[::1], int32[::1])"
)
def _respond(
    kind: Any, label: Any, lanes: Any, positives: Any, boosts: Any, eta: Any, alpha: Any,
    shrink: Any, scale: Any, steps: Any, classes: Any, margins: Any, moves: Any, hot: Any,
) -> Any:  # fmt: skip
    """Work out how each class moves on one row; returns how many do, and lists them in `hot`."""
    moving, part = 0, 1.0 / steps
    for k in lanes:
        own = positives[k] == label
        margin = np.float32(margins[k] * scale) + classes[0, k]
        loss, slope = _loss_and_slope(kind, 1.0 if own else -1.0, margin)
        classes[3, k] += loss + alpha * 0.5 * classes[2, k]
        move = -eta * slope * (boosts[k] if own else np.float32(1))
        classes[0, k] += move * _INTERCEPT_RATE
        classes[1, k] += (classes[0, k] - classes[1, k]) * part
        classes[2, k] *= shrink * shrink
        moves[k] = move
        if move != 0:
            hot[moving] = k
            moving += 1
    return moving


@_compiled(
    "void(float32[::1], int32[::1], int64[::1], int32[::1], int32[::1], int32[::1], int32[::1],"
    " float32[::1], int64, float64, float32[::1], int64, int64, float64[:, ::1], float64[::1])"
)
def _epoch(
    values: Any, places: Any, starts: Any, labels: Any, order: Any, lanes: Any, positives: Any,
    boosts: Any, kind: Any, alpha: Any, state: Any, width: Any, stride: Any, classes: Any,
    shared: Any,
) -> None:  # fmt: skip
    """Pass once over the rows."""
    margins, squares, moves, drags = (
        np.zeros(width), np.zeros(width), np.zeros(width), np.zeros(width)
    )  # fmt: skip
    hot = np.zeros(width, np.int32)
    first = 1.0 / (math.sqrt(1.0 / math.sqrt(alpha)) * alpha)
    for row in order:
        here, there = values[starts[row] : starts[row + 1]], places[starts[row] : starts[row + 1]]
        _margins(here, there, state, width, stride, margins)
        steps = shared[_STEPS]
        eta = 1.0 / (alpha * (first + steps - 1))
        # In single precision, as scikit-learn has it: round-off can grow while steps are long.
        shrink = np.float64(np.float32(max(0.0, 1.0 - eta * alpha)))
        moving = _respond(
            kind, labels[row], lanes, positives, boosts, eta, alpha, shrink, shared[_SCALE],
            steps, classes, margins, moves, hot,
        )  # fmt: skip
        _advance(shared, state, width, stride, shrink)
        scale, share = shared[_SCALE], shared[_SHARE]
        for k in hot[:moving]:
            move = np.float32(moves[k])
            moves[k], drags[k] = move / np.float32(scale), -move / scale
        if moving * 8 > width:
            _move_all(here, there, state, width, stride, share, moves, drags, squares)
        elif moving:
            _move_some(
                here, there, state, width, stride, share, moves, drags, squares, hot[:moving]
            )
        for k in hot[:moving]:
            classes[2, k] = squares[k] * scale * scale
            drags[k] = 0
        if steps > 1:
            shared[_NORM] /= 1.0 - 1.0 / steps
        shared[_SHARE] += shared[_NORM] * scale / steps
        shared[_STEPS] += 1


@_compiled("boolean(float64[:, ::1], int32[::1], float64, float64)")
def _some_finished(classes: Any, lanes: Any, tol: Any, rows: Any) -> Any:
    """Tell whether a class has not improved for some passes, or has overflown."""
    found = False
    for k in lanes:
        mean = classes[3, k] / rows
        classes[5, k] = classes[5, k] + 1 if mean > classes[4, k] - tol else 0
        classes[4, k] = min(classes[4, k], mean)
        if not math.isfinite(mean):
            classes[5, k] = _PATIENCE
        found |= classes[5, k] >= _PATIENCE
    return found


@_compiled(
    "int64(float32[::1], int32[::1], int64[::1], int32[::1], int32[::1], int32[::1], int32[::1],"
    " float32[::1], int64, float64, float64, uint32, int64, float32[::1], int64, int64,"
    " float64[:, ::1], float64[::1])"
)
def _passes(
    values: Any, places: Any, starts: Any, labels: Any, order: Any, lanes: Any, positives: Any,
    boosts: Any, kind: Any, alpha: Any, tol: Any, seed: Any, most: Any, state: Any, width: Any,
    stride: Any, classes: Any, shared: Any,
) -> Any:  # fmt: skip
    """Pass over the rows until a class is finished, `most` times at most; returns how often."""
    for number in range(most):
        shuffle(order, seed)
        classes[3] = 0
        _epoch(
            values, places, starts, labels, order, lanes, positives, boosts, kind, alpha, state,
            width, stride, classes, shared,
        )  # fmt: skip
        if _some_finished(classes, lanes, tol, float(len(labels))):
            return number + 1
    return most


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Results of `descend`.

    Attributes
    ----------
    weights : (classes, features) float32.
    intercepts : (classes,)
    epochs : (classes,) passes over the rows; -1 where the numbers overflowed.
    """

    weights: NDArray[np.float32]
    intercepts: NDArray[np.float64]
    epochs: NDArray[np.int64]


def descend(
    matrix: sp.csr_matrix,
    labels: NDArray[Any],
    positives: NDArray[Any],
    boosts: NDArray[Any],
    *,
    loss: str,
    alpha: float,
    max_iter: int,
    tol: float,
    average: bool,
    seed: int,
) -> Fitted:
    """Fit each class of `positives` against the rest.

    Parameters
    ----------
    matrix : (rows, features) float32.
    labels : (rows,) class of each row.
    positives, boosts : (classes,) a class, and what its own rows weigh.
    average : answer with the mean of the weights over all steps.
    seed : what `SGDClassifier` calls random_state.
    """
    features, parts, count = matrix.shape[1], 2 if average else 1, len(positives)
    rows = (
        matrix.data, matrix.indices.astype(np.int32, copy=False), matrix.indptr.astype(np.int64),
        labels.astype(np.int32), np.arange(len(labels), dtype=np.int32),
    )  # fmt: skip
    learning = (LOSSES.index(loss), alpha, tol, _shuffle_seed(seed))
    result = Fitted(
        weights=np.empty((count, features), dtype=np.float32),
        intercepts=np.empty(count),
        epochs=np.empty(count, dtype=np.int64),
    )
    slots, lanes = np.arange(count), np.arange(count, dtype=np.int32)
    state = np.zeros((features, parts, _padded(count)), dtype=np.float32)
    # Of each class: intercept, its mean, squared norm, objective, best objective, stale passes.
    classes = np.zeros((6, count))
    classes[4] = np.inf
    shared = np.array([1.0, 1.0, 0.0, 1.0])
    epoch = 0
    while len(lanes):
        width = state.shape[2]
        epoch += _passes(
            *rows, lanes, positives[slots].astype(np.int32), boosts[slots].astype(np.float32),
            *learning, max_iter - epoch, state.reshape(-1), width, width * parts, classes, shared,
        )  # fmt: skip
        done = (classes[5, lanes] >= _PATIENCE) | (epoch == max_iter)
        ended, lanes = lanes[done], lanes[~done]
        result.weights[slots[ended]] = _answer(state[:, :, ended], shared).T
        result.intercepts[slots[ended]] = classes[parts - 1, ended]
        overflown = ~np.isfinite(classes[3, ended])
        result.epochs[slots[ended]] = np.where(overflown, -1, epoch)
        if len(lanes) and _padded(len(lanes)) < width:
            state, classes = _close_ranks(state, lanes), np.ascontiguousarray(classes[:, lanes])
            slots, lanes = slots[lanes], np.arange(len(lanes), dtype=np.int32)
    return result


def _padded(count: int) -> int:
    return -(-count // LANES) * LANES


def _answer(state: NDArray[np.float32], shared: NDArray[np.float64]) -> NDArray[np.float32]:
    """Weights (or their means) as they would be if learning stopped now; (features, classes)."""
    if state.shape[1] == 1:
        return state[:, 0] * np.float32(shared[_SCALE])
    sums = state[:, 1] + np.float32(shared[_SHARE]) * state[:, 0]
    return sums * np.float32(1 / shared[_NORM])


def _close_ranks(state: NDArray[np.float32], lanes: NDArray[np.int32]) -> NDArray[np.float32]:
    """Keep some lanes, side by side."""
    kept = np.zeros((*state.shape[:2], _padded(len(lanes))), dtype=np.float32)
    kept[:, :, : len(lanes)] = state[:, :, lanes]
    return kept


def _shuffle_seed(seed: int) -> int:
    """What `SGDClassifier` shuffles by: the second number of a generator."""
    random = np.random.RandomState(seed)
    random.randint(1, 2**31 - 1)
    return int(random.randint(2**31 - 1))
