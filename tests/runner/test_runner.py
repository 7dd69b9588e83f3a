"""The runner: who asks gets his own answer, whatever else is asked at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.runner_models import Failing, FragileOpener, Recorder
from tests.support.tiny import tiny_rows, write_tiny_dataset
from utils.common.config import build_config
from utils.common.errors import UserError
from utils.common.paths import Layout
from utils.runner import (
    DEFAULT_SIGNATURES,
    Runner,
    RunnerClosed,
    Signature,
    WorkerDied,
    opener,
)
from utils.runner.batches import cut_result, joined, joined_results, kind_of, size_of
from utils.runner.calls import Batch, Call, Line, Part
from utils.runner.dispatch import Costs, Dispatcher, Gaps

PATIENCE = 60.0
METHODS = ("double", "turned", "added", "short", "picky")


def runner_of(model: Any, **values: Any) -> Runner:
    signatures = values.pop("signatures", {name: Signature() for name in METHODS})
    return Runner("test", lambda: model, signatures=signatures, **values)


class Caller:
    """A call in a thread of its own."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._result: Any = None
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive(), "the call hangs"
        if self._error:
            raise self._error
        return self._result


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def waiting(runner: Runner) -> int:
    return sum(queue.rows for queue in runner._opened()._dispatcher._queues.values())


@contextlib.contextmanager
def held(model: Recorder, first: Callable[[], Any]) -> Iterator[Caller]:
    """Inside, the model is at work on a first call; what is asked piles up."""
    before = len(model.given)
    model.gate.clear()
    caller = Caller(first)
    until(lambda: len(model.given) > before)
    yield caller
    model.gate.set()


# -- signatures ---------------------------------------------------------------------------


def test_a_signature_is_what_it_was_as_json() -> None:
    for signature in (Signature(), Signature(batchable=False), Signature(batch_dim=(1, 0))):
        assert Signature.from_dict(signature.to_dict()) == signature
    assert Signature.from_dict({}) == Signature()
    assert Signature(batch_dim=(1, 0)).to_dict() == {"batchable": True, "batch_dim": [1, 0]}
    assert set(DEFAULT_SIGNATURES) == {"predict", "classify", "__call__"}


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"batch_dim": -1}, "batch_dim -1"),
        ({"batch_dim": [0, 1, 2]}, "batch_dim (0, 1, 2)"),
        ({"batch_dim": "0"}, "batch_dim '0'"),
        ({"batch_dim": True}, "batch_dim True"),
        ({"batchable": "no"}, "batchable 'no'"),
        ({"batchdim": 1}, "Did you mean 'batch_dim'"),
        ([], "an object such as"),
    ],
)
def test_what_is_no_signature_is_refused(values: Any, part: str) -> None:
    with pytest.raises(UserError) as caught:
        Signature.from_dict(values)
    assert part in caught.value.message


@pytest.mark.parametrize(
    "values",
    [{"max_batch_size": 0}, {"max_batch_size": 1.5}, {"max_latency_ms": -1}, {"workers": -1},
     {"max_latency_ms": float("nan")}, {"signatures": {"close": Signature()}},
     {"signatures": {"name": Signature()}}],
)  # fmt: skip
def test_options_that_cannot_be_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        runner_of(Recorder(), **values)


# -- along a dimension --------------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_what_was_joined_is_cut_apart_again(dim: int, rng: np.random.Generator) -> None:
    shapes = [[2, 3, 4] for _ in range(3)]
    for size, shape in enumerate(shapes):
        shape[dim] = size + 1
    arrays = [rng.integers(9, size=shape) for shape in shapes]
    for values in (arrays, [array.tolist() for array in arrays]):
        assert len({kind_of(value, dim) for value in values}) == 1
        whole, start = joined(values, dim), 0
        assert np.array_equal(whole, np.concatenate(arrays, axis=dim))
        for value in values:
            size = size_of(value, dim)
            part = cut_result(whole, start, start + size, dim)
            assert type(part) is type(value)
            assert np.array_equal(part, value)
            start += size
    pairs = [(array, {"x": 1}) for array in arrays]
    assert np.array_equal(joined_results([(a,) for a, _ in pairs], dim)[0], joined(arrays, dim))


def test_what_cannot_be_joined_is_of_different_kinds() -> None:
    array = np.zeros((2, 3))
    others = [array.astype("f4"), np.zeros((2, 4)), np.zeros(2), array.tolist()]
    assert not {kind_of(array, 0)} & {kind_of(other, 0) for other in others}
    assert kind_of(array, 0) == kind_of(np.ones((7, 3)), 0)
    assert kind_of([[1], [2]], 1) != kind_of([[1]], 1)


def test_calls_meet_in_one_batch_as_the_signature_says() -> None:
    """The two examples of seed 004."""
    first = [[1, 2], [3, 4]]
    examples = (
        (0, [[5, 6]], [[1, 2], [3, 4], [5, 6]]),
        (1, [[5], [6]], [[1, 2, 5], [3, 4, 6]]),
    )
    for dim, second, together in examples:
        model = Recorder()
        with runner_of(model, signatures={"double": Signature(batch_dim=dim)}) as runner:
            with held(model, lambda: runner.double.run(np.zeros((2, 2), dtype=int))):
                calls = []
                for count, rows in enumerate((first, second)):
                    calls.append(Caller(lambda r=rows: runner.double.run(np.array(r))))
                    until(lambda: waiting(runner) > 2 * count)  # noqa: B023
            results = [call.result() for call in calls]
        assert [part.tolist() for part in model.given[1:]] == [together]
        for rows, result in zip((first, second), results, strict=True):
            assert result.tolist() == (2 * np.array(rows)).tolist()


def test_input_and_output_may_have_different_dimensions() -> None:
    model = Recorder()
    with runner_of(model, signatures={"turned": Signature(batch_dim=(1, 0))}) as runner:
        with held(model, lambda: runner.turned.run(np.zeros((3, 1)))):
            arrays = [np.arange(3 * n).reshape(3, n) for n in (2, 1, 4)]
            calls = [Caller(lambda a=array: runner.turned.run(a)) for array in arrays]
            until(lambda: waiting(runner) == 7)
        for call, array in zip(calls, arrays, strict=True):
            assert np.array_equal(call.result(), array.T)
    assert [part.shape for part in model.given] == [(3, 1), (3, 7)]


def test_several_arguments_and_results_go_together() -> None:
    model = Recorder()
    with runner_of(model) as runner:
        with held(model, lambda: runner.added.run(np.zeros(1), right=np.zeros(1))):
            calls = [
                Caller(lambda n=n: runner.added.run(np.full(n, n), right=np.full(n, 10)))
                for n in (1, 2, 3)
            ]
            until(lambda: waiting(runner) == 6)
        for n, call in zip((1, 2, 3), calls, strict=True):
            found = call.result()
            assert found["sum"].tolist() == [n + 10] * n
            assert found["left"].tolist() == [n] * n
        with pytest.raises(ValueError, match="equally many rows"):
            runner.added.run(np.zeros(2), right=np.zeros(3))
    assert len(model.given) == 2


def test_arrays_of_other_kinds_are_not_mixed() -> None:
    model = Recorder()
    with runner_of(model) as runner:
        values = [np.ones(2), np.ones((1, 3)), [1, 2], np.ones(1, dtype=np.int8), np.full(1, 7.0)]
        with held(model, lambda: runner.double.run([0])):
            calls = [Caller(lambda v=value: runner.double.run(v)) for value in values]
            until(lambda: waiting(runner) == 7)
        for call, value in zip(calls, values, strict=True):
            found = call.result()
            assert type(found) is type(value)
            assert np.array_equal(found, np.multiply(value, 2))
            assert getattr(found, "dtype", 0) == getattr(value, "dtype", 0)
    assert len(model.given) == 5  # the two of float64 together


def test_what_is_not_batchable_is_called_alone_and_one_at_a_time() -> None:
    model = Recorder(seconds=0.005)
    with runner_of(model, signatures={"double": Signature(batchable=False)}) as runner:
        values: list[Any] = [np.ones((300, 2)), np.float64(3), *([n] for n in range(10))]
        calls = [Caller(lambda v=value: runner.double.run(v)) for value in values[2:]]
        assert runner.double.run(values[0]).shape == (300, 2)
        with pytest.raises(TypeError):
            runner.double.run(5)  # the model's own error: nothing is asked of arguments
        assert [call.result() for call in calls] == [[2 * n] for n in range(10)]
    assert model.most_busy == 1
    assert len(model.given) == 12


# -- batches ------------------------------------------------------------------------------


def test_callers_get_their_own_answers_and_no_batch_is_too_large() -> None:
    model = Recorder(seconds=0.001)
    with runner_of(model, max_batch_size=16) as runner:

        def ask(number: int) -> None:
            rng = np.random.default_rng(number)
            for _ in range(12):
                rows = rng.integers(1_000_000, size=rng.integers(1, 5)).tolist()
                assert runner.double.run(rows) == [2 * row for row in rows]

        callers = [Caller(lambda n=number: ask(n)) for number in range(64)]
        for caller in callers:
            caller.result()
        counts = runner.counts
    sizes = [len(rows) for rows in model.given]
    assert max(sizes) <= 16
    assert counts.calls == 64 * 12
    assert counts.batches == len(sizes) < counts.calls / 2
    assert counts.rows == sum(sizes)
    assert counts.largest_batch == max(sizes)
    assert model.most_busy == 1


def test_tasks_and_threads_at_the_same_time() -> None:
    model = Recorder(seconds=0.001)

    async def ask(number: int) -> None:
        for turn in range(8):
            rows = [1000 * number + turn]
            assert await runner.double.async_run(rows) == [2 * rows[0]]

    async def ask_all() -> None:
        await asyncio.gather(*(ask(number) for number in range(64)))

    def in_thread(number: int) -> None:
        for turn in range(8):
            assert runner.double.run([-number - turn]) == [-2 * (number + turn)]

    with runner_of(model) as runner:
        callers = [Caller(lambda n=number: in_thread(n)) for number in range(20)]
        asyncio.run(ask_all())
        for caller in callers:
            caller.result()
        assert runner.counts.calls == 84 * 8
        assert runner.counts.batches < 84 * 4


def test_a_call_stays_together_and_a_long_one_is_split() -> None:
    model = Recorder()
    with runner_of(model, max_batch_size=10) as runner:
        with held(model, lambda: runner.double.run([0])):
            wanted = [[n * 100 + k for k in range(size)] for n, size in enumerate((6, 6, 4, 27, 3))]
            calls = []
            for count, rows in enumerate(wanted):
                calls.append(Caller(lambda r=rows: runner.double.run(r)))
                until(lambda: waiting(runner) == sum(map(len, wanted[: count + 1])))  # noqa: B023
        for call, rows in zip(calls, wanted, strict=True):
            assert call.result() == [2 * row for row in rows]
    assert [len(rows) for rows in model.given] == [1, 6, 10, 10, 10, 10]
    assert model.given[1] == wanted[0]


def test_nothing_is_answered_with_nothing() -> None:
    with runner_of(Recorder()) as runner:
        assert runner.double.run([]) == []
        assert runner.double.run(np.zeros((0, 3))).shape == (0, 3)


def test_a_lone_caller_does_not_wait_for_others() -> None:
    with runner_of(Recorder(seconds=0.002), max_latency_ms=2000 * PATIENCE) as runner:
        for n in range(100):
            runner.double.run([n])
            assert runner.counts.longest_wait < PATIENCE


@pytest.mark.parametrize(("gap", "waits"), [(0.03, False), (0.0001, True)])
def test_a_call_waits_if_calls_come_more_quickly_than_a_batch_costs(
    gap: float, waits: bool
) -> None:
    dispatcher, now = Dispatcher(8, 5.0), 0.0
    line, nobody = Line("double"), Call(1, list)
    for _ in range(50):
        now += gap
        dispatcher.put(line, [Part(nobody, 0, (([1],), {}), 1, now)])
        dispatcher._queues.clear()
        dispatcher.learn(Batch(line, [], 1), 0.02)
    dispatcher.put(line, [Part(nobody, 0, (([1],), {}), 1, now + gap)])
    batch, wait = dispatcher._found(now + gap)
    assert bool(batch) != waits
    if waits:
        assert wait == pytest.approx(0.01, rel=0.1)  # half of a batch's 0.02 s


def test_a_lone_call_after_a_crowd_waits_no_longer_than_a_batch_costs() -> None:
    with runner_of(Recorder(seconds=0.01), max_latency_ms=2000 * PATIENCE) as runner:
        for _ in range(3):
            for caller in [Caller(lambda: runner.double.run([1])) for _ in range(32)]:
                caller.result()
        runner.double.run([1])
        assert runner.counts.longest_wait < PATIENCE


def test_the_longest_wait_and_batch_are_noted() -> None:
    model = Recorder(seconds=0.03)
    with runner_of(model) as runner:
        with held(model, lambda: runner.double.run([0])):
            second = Caller(lambda: runner.double.run([1]))
            until(lambda: waiting(runner) == 1)
            time.sleep(0.03)
        assert second.result() == [2]
        assert min(runner.counts.longest_wait, runner.counts.longest_batch) >= 0.03


class Doorbell:
    """A condition for one thread: remembers whether anybody was to be woken."""

    rung = False

    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...

    def notify(self) -> None:
        self.rung = True


def played(
    latency: float, callers: int, turns: int, batch: float, pause: Callable[[], float]
) -> tuple[list[float], list[int]]:
    """Play callers that ask again after a pause, on a clock of its own: waits and batch sizes."""
    dispatcher = Dispatcher(64, latency)
    bell: Any = Doorbell()
    dispatcher._changed = bell
    line, left = Line("double"), dict.fromkeys(range(callers), turns)
    due = {pause(): caller for caller in left}
    waits: list[float] = []
    sizes: list[int] = []
    now = 0.0

    def arrive(end: float) -> float:
        """Let calls come until then, or until one rings."""
        while due and (first := min(due)) <= end:
            call = Call(1, due.pop(first))  # type: ignore[arg-type]
            dispatcher.put(line, [Part(call, 0, (([1],), {}), 1, first)])
            if bell.rung:
                return first
        return end

    while due or dispatcher._queues:
        found, wait = dispatcher._found(now)
        if found is None:
            dispatcher._idle, bell.rung = 1, False
            now = arrive(max(due) if wait is None else now + wait)
            dispatcher._idle, dispatcher._awaited = 0, None
            continue
        dispatcher._awaited, bell.rung = None, False
        waits += [now - part.since for part in found.parts]
        sizes.append(found.rows)
        now = arrive(now + batch)
        dispatcher.learn(found, batch)
        for part in found.parts:
            caller: Any = part.call._join
            left[caller] -= 1
            if left[caller]:
                due[now + pause()] = caller
    return waits, sizes


@pytest.mark.parametrize("limit", [0.02, 0.002])
def test_no_call_waits_longer_than_its_limit_and_one_batch(
    rng: np.random.Generator, limit: float
) -> None:
    batch = 0.03
    waits, sizes = played(limit, 24, 20, batch, lambda: rng.uniform(0, 0.03))
    assert sum(sizes) == len(waits) == 24 * 20
    assert batch / 2 < max(waits) <= limit + batch + 1e-9
    assert len(sizes) < len(waits) / 3


def test_waiting_for_others_pays_when_calls_come_quickly(rng: np.random.Generator) -> None:
    """Callers that come back in a burst are answered together, not the first of them alone."""
    with_limit, without = (
        np.mean(played(latency, 32, 20, 0.02, lambda: rng.uniform(0, 0.002))[1])
        for latency in (0.05, 0)
    )
    assert without < 17 < 24 < with_limit  # one that is first, then the others


def test_costs_are_learned() -> None:
    costs = Costs()
    assert costs.fixed == 0
    costs.add(1, 0.02)
    assert costs.fixed == pytest.approx(0.01)  # half of it, as long as all are alike
    rng = np.random.default_rng(0)
    for rows in rng.integers(1, 64, size=100).tolist():
        costs.add(rows, 0.004 + 0.001 * rows + rng.normal(0, 1e-4))
    assert costs.fixed == pytest.approx(0.004, abs=2e-4)
    for rows in rng.integers(1, 64, size=100).tolist():
        costs.add(rows, 0.001 * rows)
    assert costs.fixed == pytest.approx(0, abs=2e-4)


def test_gaps_are_those_inside_bursts() -> None:
    gaps, now = Gaps(0.01), 0.0
    assert gaps.mean == pytest.approx(0.01)
    for _ in range(10):
        now += 0.5
        for _ in range(20):
            now += 1e-5
            gaps.add(now)
    assert gaps.mean < 1e-4


# -- what goes wrong ----------------------------------------------------------------------


def test_an_error_reaches_exactly_the_callers_of_its_batch() -> None:
    model = Recorder()
    with runner_of(model) as runner:
        with held(model, lambda: runner.picky.run([0])) as first:
            calls = [Caller(lambda n=n: runner.picky.run([n])) for n in (1, -2, 3)]
            until(lambda: waiting(runner) == 3)
            lone = Caller(lambda: runner.double.run([4]))
            until(lambda: waiting(runner) == 4)
        assert first.result() == [0]
        assert lone.result() == [8]
        for call in calls:
            with pytest.raises(ArithmeticError, match="negative"):
                call.result()
        assert runner.picky.run([5]) == [5]


def test_a_part_that_fails_fails_its_call() -> None:
    model = Recorder()
    with runner_of(model, max_batch_size=2) as runner:
        with pytest.raises(ArithmeticError):
            runner.picky.run([1, 2, -3, 4, 5, 6])
        until(lambda: not waiting(runner))
        assert [5, 6] not in model.given  # nobody waits for it any more
        assert runner.picky.run([1, 2, 3]) == [1, 2, 3]


def test_a_model_that_loses_rows_is_found_out() -> None:
    with runner_of(Recorder()) as runner, pytest.raises(RuntimeError, match="gave 1 rows for 2"):
        runner.short.run([1, 2])


def test_a_task_that_is_cancelled_leaves_the_others() -> None:
    model = Recorder()

    async def both() -> Any:
        first = asyncio.create_task(runner.double.async_run([1]))
        await asyncio.to_thread(until, lambda: bool(model.given))
        second, third = (asyncio.create_task(runner.double.async_run([n])) for n in (2, 3))
        await asyncio.sleep(0.01)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        model.gate.set()
        return await first, await third

    with runner_of(model) as runner:
        model.gate.clear()
        assert asyncio.run(both()) == ([2], [6])
    assert model.given == [[1], [3]]


def test_names_that_no_signature_has() -> None:
    with runner_of(Recorder()) as runner:
        with pytest.raises(AttributeError, match="Did you mean 'double'"):
            runner.doubel.run([1])
        with pytest.raises(AttributeError, match="__call__"):
            runner.run([1])
    with pytest.raises(UserError, match="no method 'absent'"):
        runner_of(Recorder(), signatures={"absent": Signature()}).init_local()


# -- the end ------------------------------------------------------------------------------


def test_before_and_after_its_life_calls_are_refused() -> None:
    runner = runner_of(Recorder())
    with pytest.raises(RunnerClosed, match="init_local"):
        runner.double.run([1])
    with runner:
        assert runner.init_local() is runner
        assert runner.double.run([1]) == [2]
    with pytest.raises(RunnerClosed):
        runner.double.run([1])
    runner.close()
    with runner:
        assert runner.double.run([2]) == [4]


def test_closing_answers_what_waits() -> None:
    model = Recorder()
    runner = runner_of(model, max_batch_size=1).init_local()
    with held(model, lambda: runner.double.run([0])):
        calls = [Caller(lambda n=n: runner.double.run([n])) for n in range(5)]
        until(lambda: waiting(runner) == 5)
        closing = Caller(runner.close)
        until(lambda: runner._team is None)
    closing.result()
    assert [call.result() for call in calls] == [[2 * n] for n in range(5)]


def test_closing_fails_what_a_stuck_model_leaves() -> None:
    model = Recorder()
    runner = runner_of(model).init_local()
    with held(model, lambda: runner.double.run([0])) as first:
        calls = [Caller(lambda n=n: runner.double.run([n])) for n in range(3)]
        until(lambda: waiting(runner) == 3)
        runner.close(0.05)
        assert model.busy  # and was not waited for
        for call in (first, *calls):
            with pytest.raises(RunnerClosed, match="'test' was closed"):
                call.result()


def test_a_with_that_ends_in_an_error_waits_for_nothing() -> None:
    model = Recorder()
    with pytest.raises(KeyError), runner_of(model) as runner, contextlib.ExitStack() as stack:
        first = stack.enter_context(held(model, lambda: runner.double.run([0])))
        stack.pop_all()
        raise KeyError
    with pytest.raises(RunnerClosed):
        first.result()
    model.gate.set()


def test_many_at_the_moment_of_closing_never_hang() -> None:
    for turn in range(10):
        model = Recorder()
        runner = runner_of(model, max_batch_size=4).init_local()

        def ask() -> int:
            for n in itertools.count():
                try:
                    assert runner.double.run([n]) == [2 * n]  # noqa: B023
                except RunnerClosed:
                    break
            return n

        calls = [Caller(ask) for _ in range(8)]
        time.sleep(0.003 * turn)
        runner.close()
        assert all(call.result() >= 0 for call in calls)


def test_no_thread_is_left() -> None:
    before = set(threading.enumerate())
    for _ in range(3):
        with runner_of(Recorder()) as runner:
            runner.double.run([1])
    gc.collect()
    assert set(threading.enumerate()) <= before  # those of earlier tests may have ended


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_is_refused_and_ends() -> None:
    with runner_of(Recorder()) as runner:
        runner.double.run([1])
        child = os.fork()
        if not child:
            code = 1
            signal.alarm(int(PATIENCE))
            try:
                runner.double.run([1])
            except RunnerClosed as error:
                runner.close()
                code = 0 if "forked" in str(error) else 2
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert runner.double.run([2]) == [4]


# -- workers ------------------------------------------------------------------------------

FRAGILE = {"echo": Signature(), "threads": Signature()}


def workers_of(marks: Path, workers: int = 2, **values: Any) -> Runner:
    return Runner("test", FragileOpener(marks), signatures=FRAGILE, workers=workers, **values)


def test_workers_share_the_work_and_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KTT_THREADS", raising=False)
    monkeypatch.setenv("KTT_CORES", "6")  # for two workers
    with workers_of(tmp_path, max_batch_size=4) as runner:
        rows = [f"row {n}" for n in range(200)]
        seen: set[int] = set()

        def both_seen() -> bool:
            found = runner.echo.run(rows)
            assert [row for row, _ in found] == rows
            seen.update(pid for _, pid in found)
            return len(seen) == 2

        until(both_seen)
        pids = set(runner._opened().pids())
        assert seen == pids
        assert os.getpid() not in pids
        assert runner.threads.run(["x"]) == ["3"]
        # an idle one is replaced before anybody asks
        victim = min(pids)
        os.kill(victim, signal.SIGKILL)
        until(lambda: runner.counts.restarts == 1)
        assert victim not in runner._opened().pids()
        # what one dies of is tried again, by another
        assert [row for row, _ in runner.echo.run(["once a", "b"])] == ["once a", "b"]
        until(lambda: runner.counts.restarts == 2)
        # twice is enough; others go on
        with pytest.raises(WorkerDied, match=r"ended at work \(exit status -9\)"):
            runner.echo.run(["die c"])
        assert runner.echo.run(["d"])[0][0] == "d"
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_errors_of_workers_reach_their_callers(tmp_path: Path) -> None:
    with workers_of(tmp_path, workers=1) as runner:
        with pytest.raises(ValueError, match="wrong row") as caught:
            runner.echo.run(["wrong"])
        assert "runner_models.py" in caught.value.__notes__[0]
        with pytest.raises(RuntimeError, match="TwoWords: odd error"):
            runner.echo.run(["odd"])
        with pytest.raises(Exception, match="pickle"):
            runner.echo.run([lambda: 1])
        assert runner.echo.run(["fine"])[0][0] == "fine"
        assert runner.counts.restarts == 0
        # a batch that never ends does not keep a runner from closing
        stuck = Caller(lambda: runner.echo.run(["sleep s"]))
        until((tmp_path / "s").exists)
        runner.close(0.05)
        with pytest.raises((RunnerClosed, WorkerDied)):
            stuck.result()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("user", "There are no weights here."),
        ("odd", "TwoWords: odd error"),
        ("exit", r"A worker of test ended while it started \(exit status 3\)"),
    ],
)
def test_what_a_worker_meets_at_its_start_is_told(kind: str, message: str) -> None:
    runner = Runner("test", Failing(kind), signatures=FRAGILE, workers=2)
    with pytest.raises(RuntimeError if kind == "odd" else UserError, match=message) as caught:
        runner.init_local()
    assert "\n" not in str(caught.value)
    with pytest.raises(RunnerClosed):
        runner.echo.run(["x"])


def test_cores_that_are_no_number_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KTT_CORES", "many")
    with pytest.raises(UserError, match="KTT_CORES='many'"):
        workers_of(tmp_path).init_local()


def test_what_cannot_be_sent_to_a_worker_is_refused() -> None:
    runner = Runner("test", lambda: None, signatures=FRAGILE, workers=1)
    with pytest.raises(UserError, match="cannot be sent to a worker process"):
        runner.init_local()


# -- text classifiers ---------------------------------------------------------------------

TEXTS = tiny_rows(40, seed=7)[0]
MODEL = "tfidf_lsgd"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, Any]:
    """A trained linear model, and where it lies."""
    from models import model_class

    layout = Layout(tmp_path_factory.mktemp("project"))
    data = write_tiny_dataset(layout, "tiny")
    cls = model_class(MODEL)
    model = cls(data.hierarchy, build_config(cls.Config, {}, MODEL))
    list(model.fit(data.train, data.val, epochs=None, seed=0))
    model.save(layout.weight_dir(MODEL, "tiny") / "best_2026-01-01T00:00:00.pt")
    return layout, model


def text_runner(trained: tuple[Layout, Any], **values: Any) -> Runner:
    source = opener(trained[0], MODEL, "tiny", None, None)
    return Runner("tiny", source, signatures=DEFAULT_SIGNATURES, **values)


@pytest.mark.parametrize("workers", [0, 1])
def test_texts_are_answered_as_by_the_model(trained: tuple[Layout, Any], workers: int) -> None:
    model, expected = trained[1], trained[1].predict(TEXTS)
    paths = [model.hierarchy.path(int(end)) for end in expected.ends]
    with text_runner(trained, workers=workers, max_batch_size=16) as runner:
        assert runner.predict.run(TEXTS) == paths
        assert runner.predict.run(tuple(TEXTS[:3])) == paths[:3]
        assert runner.predict.run(texts=np.array(TEXTS[:3])) == paths[:3]
        assert runner.predict.run(TEXTS[5]) == paths[5]
        assert asyncio.run(runner.predict.async_run(TEXTS[6])) == paths[6]
        answers = runner.classify.run(TEXTS)
        assert [answer.path for answer in answers] == paths
        np.testing.assert_allclose([a.confidence for a in answers], expected.confidence, atol=1e-6)
        assert runner.classify.run(TEXTS[0]).path == paths[0]
        scores = np.concatenate([scores for scores, _ in model.score_batches(TEXTS)])
        np.testing.assert_allclose(runner.run(TEXTS), scores, atol=1e-6)
        np.testing.assert_allclose(runner.run(TEXTS[0]), scores[0], atol=1e-6)
        assert asyncio.run(runner.async_run(TEXTS[:2])).shape == scores[:2].shape
        assert runner.predict.run([]) == runner.classify.run([]) == []
        assert runner.run([]).shape == (0, scores.shape[1])


def test_what_is_no_text_fails_alone(trained: tuple[Layout, Any]) -> None:
    with text_runner(trained) as runner:
        wrong: list[Any] = [None, 5, b"x", {"a": 1}, ["a", None], [1], [["a"]]]
        calls = [Caller(lambda w=value: runner.predict.run(w)) for value in wrong]
        good = [Caller(lambda t=text: runner.predict.run(t)) for text in TEXTS]
        for call in calls:
            with pytest.raises(TypeError, match="takes a text or a sequence of texts"):
                call.result()
        with pytest.raises(TypeError, match="takes one argument"):
            runner.predict.run("a", "b")
        with pytest.raises(TypeError, match="item 1 is NoneType"):
            asyncio.run(runner.predict.async_run(["a", None]))
        assert all(call.result() for call in good)
        assert runner.counts.calls == len(TEXTS)


def test_64_callers_get_their_own_answers(trained: tuple[Layout, Any]) -> None:
    model = trained[1]
    truth = [model.hierarchy.path(int(end)) for end in model.predict(TEXTS).ends]
    wanted = dict(zip(TEXTS, truth, strict=True))
    assert len(set(truth)) > 3

    def ask(number: int) -> None:
        rng = np.random.default_rng(number)
        for _ in range(10):
            texts = [TEXTS[k] for k in rng.integers(len(TEXTS), size=rng.integers(1, 4))]
            assert runner.predict.run(texts) == [wanted[text] for text in texts]
            assert runner.classify.run(texts[0]).path == wanted[texts[0]]

    async def ask_as_task(number: int) -> None:
        for k in range(10):
            text = TEXTS[(number + k) % len(TEXTS)]
            assert await runner.predict.async_run(text) == wanted[text]

    async def all_tasks() -> None:
        await asyncio.gather(*(ask_as_task(number) for number in range(64)))

    with text_runner(trained, max_batch_size=32) as runner:
        callers = [Caller(lambda n=number: ask(n)) for number in range(64)]
        asyncio.run(all_tasks())
        for caller in callers:
            caller.result()
        assert runner.counts.largest_batch <= 32
        assert runner.counts.calls == 64 * 30


def test_its_source_is_for_those_who_make_batches_themselves(trained: tuple[Layout, Any]) -> None:
    for workers in (0, 1):
        with text_runner(trained, workers=workers, max_batch_size=16) as runner:
            source = runner.source
            scores, _ = source.run(source.encode(TEXTS))
            np.testing.assert_allclose(scores, runner.run(TEXTS), atol=1e-6)
            assert source.checkpoint == "best_2026-01-01T00:00:00.pt"
            assert source.tree.class_count == trained[1].tree.class_count
            assert source.description.startswith("checkpoint best_")
    with runner_of(Recorder()) as other, pytest.raises(UserError, match="no text classifier"):
        _ = other.source


def test_what_is_not_trained_is_one_line(trained: tuple[Layout, Any]) -> None:
    for workers in (0, 1):
        source = opener(trained[0], MODEL, "absent")
        runner = Runner("x", source, signatures=DEFAULT_SIGNATURES, workers=workers)
        with pytest.raises(UserError, match="There are no weights of"):
            runner.init_local()


def test_a_signature_is_known_without_numpy(tmp_path: Path) -> None:
    """The store lists signatures; it is to be quick."""
    import subprocess

    from utils.common.paths import PROJECT_ROOT

    code = (
        f"import sys; sys.path.insert(0, {str(PROJECT_ROOT)!r}); import utils.runner\n"
        "print([m for m in ('numpy', 'torch', 'pyarrow', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_workers_in_a_process_that_may_have_no_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="not allowed to have children. Take workers=0"):
        runner_of(Recorder(), workers=1).init_local()
