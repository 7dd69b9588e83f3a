"""What happens to a system under steady load when its parts go away, and when its texts change."""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.drift import with_typos
from tests.support.deployed import OUTAGES, Deployed, deployed, outage, why_not
from tests.support.steady import NO_ANSWER, Outcome, Steady, Texts, quantile
from utils.common.paths import Layout
from utils.hierarchy.dataset import load_dataset
from utils.serving.monitor_client import Settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
log = logging.getLogger(__name__)
RATE, CONNECTIONS = 40, 8
PHASE = 8  # seconds
RECOVERS_WITHIN = 120  # the longest pause between two attempts to send rows is 30 s


@pytest.fixture(scope="module")
def texts(shop: Layout) -> list[str]:
    """Those of the reference set."""
    return load_dataset(shop, "shop").test.texts


@pytest.fixture(scope="module")
def system(
    system_of: dict[str, tuple[Path, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployed]:
    if reason := why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("deployed") / "resilience"
    shutil.copytree(system_of["tfidf_hsgd"][0], folder)
    shorten_durations(folder / "prometheus")
    with deployed(folder, period=2) as running:
        running.wait_until_ready(RECOVERS_WITHIN)
        yield running


def shorten_durations(prometheus: Path) -> None:
    """Let alerts fire soon. Only durations are changed: not what is measured, nor any bound."""
    rules, settings = prometheus / "rules" / "alerts.yaml", prometheus / "prometheus.yaml"
    text, count = re.subn(r"(?m)^( +for:) .*$", r"\1 5s", rules.read_text())
    assert count > 5
    rules.write_text(text)
    text, count = re.subn(
        r"(scrape|evaluation)_interval: 5s", r"\1_interval: 1s", settings.read_text()
    )
    assert count == 2
    settings.write_text(text.replace("scrape_timeout: 4s", "scrape_timeout: 1s"))


def load_on(system: Deployed, texts: Sequence[str], rate: float = RATE) -> Steady:
    address = f"http://127.0.0.1:{system.ports['inference']}"
    return Steady(address, Texts(texts), rate=rate, connections=CONNECTIONS, headers=system.headers)


def phase(load: Steady, seconds: float = PHASE) -> list[Outcome]:
    """The outcomes of some seconds."""
    start = time.monotonic()
    time.sleep(seconds)
    end = time.monotonic()
    time.sleep(0.5)  # for those that are being answered
    return load.between(start, end)


def rows(system: Deployed, outcome: str) -> int:
    return int(system.metric("inference", "ktt_monitor_rows_total", outcome=outcome))


def queued(system: Deployed) -> int:
    return int(system.metric("inference", "ktt_monitor_queue_rows"))


def answered(system: Deployed) -> int:
    return int(system.metric("inference", "ktt_answers_total"))


def received(system: Deployed) -> int:
    return int(system.metric("monitoring", "ktt_rows_received_total"))


def window_rows(system: Deployed) -> int:
    return int(system.metric("monitoring", "ktt_window_rows"))


def calculations(system: Deployed) -> int:
    return int(system.metric("monitoring", "ktt_calculations_total"))


def test_predictions_do_not_notice_that_the_monitor_is_away(
    system: Deployed, texts: list[str]
) -> None:
    compared: dict[str, tuple[list[Outcome], ...]] = {}
    with load_on(system, texts) as load:
        phase(load, 3)
        after = phase(load)
        for how in OUTAGES:
            before = after
            with outage(system, "monitoring", how):
                time.sleep(1)  # for a batch that is under way
                sent = rows(system, "sent")
                during = phase(load)
                assert rows(system, "sent") == sent, how  # it was really away
                assert queued(system) > len(during) / 2, how
            system.wait_for(lambda: queued(system) <= 3 * RATE, RECOVERS_WITHIN)
            after = phase(load, 4)
            compared[how] = before, during, after
    assert {outcome.status for outcome in load.outcomes} == {200}
    for how, phases in compared.items():
        assert_not_slowed(how, *phases)
    system.wait_for(lambda: queued(system) == 0, RECOVERS_WITHIN)
    assert answered(system) == len(load.outcomes) == rows(system, "sent")
    assert rows(system, "dropped") == rows(system, "refused") == 0
    system.wait_for(lambda: window_rows(system) == 500, RECOVERS_WITHIN)


def assert_not_slowed(
    how: str, before: list[Outcome], during: list[Outcome], after: list[Outcome]
) -> None:
    """Compare the times of requests with those just before and just after an outage.

    Machines that run tests are noisy (benchmarks/outages.py measures with care), but a pause of
    such a machine meets few requests. One that waits for the monitor waits until its time-out.
    """
    for share, waits in ((0.5, 0.05), (0.9, 0.2), (0.99, 0.5)):
        usual = max(quantile(before, share), quantile(after, share))
        found = quantile(during, share)
        log.info("%s: %.0f %% within %.4f s, else %.4f s", how, 100 * share, found, usual)
        assert found <= 2 * usual + waits * Settings().timeout, (how, share, found, usual)


def test_a_killed_monitor_has_its_window_again(system: Deployed, texts: list[str]) -> None:
    if window_rows(system) < 500:
        send(system, texts, 500)
    with load_on(system, texts):
        time.sleep(3)
        system.run.kill("monitoring")
        before = rows(system, "sent")
        system.wait_for(lambda: system.ready("monitoring"), RECOVERS_WITHIN)
        system.wait_for(lambda: rows(system, "sent") > before, RECOVERS_WITHIN)
        system.wait_for(lambda: calculations(system) > 0, RECOVERS_WITHIN)
        assert window_rows(system) == 500


def test_prometheus_forgets_nothing_when_it_starts_again(system: Deployed) -> None:
    names = ["ktt_window_rows", "ktt_answers_total", "ktt:requests:rate5m"]
    system.wait_for(lambda: all(system.query(name) for name in names), RECOVERS_WITHIN)
    now = time.time()
    # what comes after it is there: so is all that came until then
    newer = [f"min(timestamp({name})) > {now}" for name in names]
    system.wait_for(lambda: all(system.query(expr) for expr in newer), RECOVERS_WITHIN)
    held = [at(system, name, now) for name in names]
    assert all(held)
    system.run.stop("prometheus")
    system.run.start("prometheus")
    system.wait_for(lambda: system.ready("prometheus"), RECOVERS_WITHIN)
    assert [at(system, name, now) for name in names] == held
    system.wait_for(lambda: system.value('min(up{job!="prometheus"})') == 1, RECOVERS_WITHIN)
    groups = system.prometheus("rules")["groups"]
    assert len([rule for group in groups for rule in group["rules"]]) > 10


def at(system: Deployed, expr: str, when: float) -> object:
    return system.prometheus("query", query=expr, time=str(when))["result"]


def test_killed_inference_comes_back(system: Deployed, texts: list[str]) -> None:
    got = received(system)
    with load_on(system, texts) as load:
        assert {outcome.status for outcome in phase(load, 2)} == {200}
        system.run.kill("inference")
        killed = time.monotonic()
        system.wait_for(lambda: system.ready("inference"), RECOVERS_WITHIN)
        back = time.monotonic()
        assert {outcome.status for outcome in load.between(killed, back)} <= {200, NO_ANSWER}
        assert {outcome.status for outcome in phase(load, 5)} == {200}
        system.wait_for(lambda: received(system) > got, RECOVERS_WITHIN)
    assert {outcome.status for outcome in load.between(back, time.monotonic())} == {200}


FOREIGN = ["what is my balance", "transfer money to savings", "block my card please"]


def changed(kind: str, shop: Layout) -> list[str]:
    """Texts as they do not come in the reference set."""
    split = load_dataset(shop, "shop").test
    if kind == "foreign":
        return FOREIGN
    if kind == "typos":
        rng = np.random.default_rng(0)
        return [with_typos(text, rng) for text in split.texts]
    return [text for text, codes in zip(split.texts, split.codes, strict=True) if codes[0] == 0]


@pytest.mark.parametrize(
    ("kind", "alerts"),
    [
        ("foreign", {"KTTInputDrift", "KTTPredictionDrift"}),
        ("one subtree", {"KTTPredictionDrift"}),
        ("typos", {"KTTInputDrift", "KTTConfidenceDrift"}),
    ],
)
def test_texts_that_change_raise_an_alert_for_as_long(
    system: Deployed, shop: Layout, texts: list[str], kind: str, alerts: set[str]
) -> None:
    settle(system, texts)
    window, before = int(system.metric("monitoring", "ktt_window_size")), received(system)
    send(system, changed(kind, shop), window)
    system.wait_for(lambda: alerts <= system.firing(), RECOVERS_WITHIN)
    assert window <= received(system) - before <= 2 * window
    settle(system, texts)


def settle(system: Deployed, texts: Sequence[str]) -> None:
    """Let the window be one of usual texts again, and the alerts be over."""
    window = int(system.metric("monitoring", "ktt_window_size"))
    for _ in range(3):  # two windows of a hundred are an alarm by chance
        if drifts(system):
            send(system, texts, window)
            done = calculations(system) + 2  # one of them may have begun before
            system.wait_for(lambda done=done: calculations(system) >= done, RECOVERS_WITHIN)
    assert not drifts(system), system.query("ktt_drift_ratio > 1")
    system.wait_for(
        lambda: not any(name.endswith("Drift") for name in system.firing()), RECOVERS_WITHIN
    )


def send(system: Deployed, texts: Sequence[str], count: int) -> None:
    """Let the monitor have so many rows."""
    wanted = received(system) + count
    with load_on(system, texts, rate=200) as load:
        system.wait_for(lambda: len(load.outcomes) >= count, 120)
    system.wait_for(lambda: received(system) >= wanted, RECOVERS_WITHIN)


def drifts(system: Deployed) -> bool:
    return system.metric("monitoring", "ktt_drift_detected") > 0
