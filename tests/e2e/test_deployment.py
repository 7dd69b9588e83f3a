"""An exported system, deployed as a user does it and asked as a user would.

``KTT_DEPLOY_MODELS=db_bhcn`` takes other models; db_bhcn trains for some minutes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from models import model_class
from models.model import Model
from tests.support.deployed import SERVICES, Containers, Deployed, deployed, settings_of, why_not
from utils.common.checkpoints import find_checkpoint
from utils.common.paths import Layout
from utils.export.dashboard import ALERTS, panel_queries
from utils.hierarchy.dataset import Split, load_dataset

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
MODELS = os.environ.get("KTT_DEPLOY_MODELS", "tfidf_hsgd").split(",")
SECRET = "zebrafish-texts-stay-here"
HEALTHY_WITHIN = 180  # seconds, once the images exist
REQUESTS = 300


@pytest.fixture(scope="module", params=MODELS)
def exported(
    request: pytest.FixtureRequest, shop: Layout, system_of: dict[str, tuple[Path, str]]
) -> tuple[Model, Path, str]:
    """A model, the folder of its system, and what the export printed."""
    folder, printed = system_of[request.param]
    checkpoint = find_checkpoint(shop, request.param, "shop", "best", None)
    return model_class(request.param).from_checkpoint(checkpoint), folder, printed


@pytest.fixture(scope="module")
def system(exported: tuple[Model, Path, str]) -> Iterator[Deployed]:
    if reason := why_not():
        pytest.skip(reason)
    with deployed(exported[1], period=5) as running:
        running.wait_until_ready(HEALTHY_WITHIN)
        yield running


@pytest.fixture(scope="module")
def asked(system: Deployed, exported: tuple[Model, Path, str], shop: Layout) -> Split:
    """Texts that have been asked, two by two on several connections, and scraped since."""
    test = load_dataset(shop, "shop").test
    rows = test.take(np.arange(min(REQUESTS, len(test))))
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda text: system.ask("/predict", {"text": text}), rows.texts))
        system.ask("/classify", {"text": f"a red {SECRET} balance"})
    assert {reply.status for reply in replies} == {200}
    answers = [tuple(reply.json().split("\n")) for reply in replies]
    model = exported[0]
    assert answers == [model.hierarchy.path(node) for node in _ends(model, rows)]
    expected = len(rows) + 1
    system.wait_for(lambda: system.value("sum(ktt_rows_received_total)") >= expected, 120)
    system.wait_for(lambda: system.value("ktt_window_rows") >= 100, 120)
    return rows


def _ends(model: Model, rows: Split) -> list[int]:
    codes = model.test(rows).codes
    return [int(node) for node in model.hierarchy.end_classes(codes)]


def test_it_answers_as_the_model_does(asked: Split) -> None:
    assert len(asked) == REQUESTS


def test_every_panel_of_the_dashboard_has_data(system: Deployed, asked: Split) -> None:
    path = "grafana/provisioning/dashboards/dashboard.json"
    dashboard = json.loads((system.folder / path).read_text())
    queries = panel_queries(dashboard)
    assert len(queries) > 40

    def empty() -> list[str]:
        return [f"{query.title}: {query.expr}" for query in queries if not system.query(query.expr)]

    try:
        system.wait_for(lambda: not empty(), 120)  # rates need two scrapes
    except AssertionError:
        assert empty() == []
        raise
    numbers = [
        float(series["value"][1]) for query in queries for series in system.query(query.expr)
    ]
    assert sum(math.isfinite(number) for number in numbers) > len(queries)


def rules_of(system: Deployed) -> list[dict[str, Any]]:
    groups = system.prometheus("rules")["groups"]
    return [rule for group in groups for rule in group["rules"]]


def health_of_targets(system: Deployed) -> dict[str, str]:
    targets = system.prometheus("targets")["activeTargets"]
    return {target["labels"]["job"]: target["health"] for target in targets}


def test_all_rules_are_loaded_and_nothing_is_wrong(system: Deployed, asked: Split) -> None:
    system.wait_for(  # for a first look at each
        lambda: "unknown" not in {rule["health"] for rule in rules_of(system)}
        | set(health_of_targets(system).values()), 60,
    )  # fmt: skip
    rules = rules_of(system)
    assert {rule["name"] for rule in rules if rule["type"] == "alerting"} == set(ALERTS)
    assert {rule["health"] for rule in rules} == {"ok"}
    assert health_of_targets(system) == dict.fromkeys(SERVICES, "up")
    assert system.firing() == set()


def test_traffic_is_measured(system: Deployed, asked: Split) -> None:
    system.wait_for(
        lambda: system.value('sum(ktt_requests_total{endpoint=~".*predict",status="200"})')
        >= len(asked), 60,
    )  # fmt: skip
    sent = 'sum(ktt_monitor_rows_total{outcome="sent"})'
    system.wait_for(lambda: system.value(sent) >= len(asked) + 1, 60)
    assert system.value(sent) == len(asked) + 1
    assert system.value('sum(ktt_monitor_rows_total{outcome!="sent"})') == 0
    assert system.value("sum(ktt_answers_total)") == len(asked) + 1
    reference = {
        series["metric"]["top"]: float(series["value"][1])
        for series in system.query('ktt_prediction_share{source="reference"}')
    }
    assert math.isclose(sum(reference.values()), 1, abs_tol=1e-6)


def test_no_text_and_no_secret_is_in_logs(
    system: Deployed, asked: Split, exported: tuple[Model, Path, str]
) -> None:
    settings = settings_of(system.folder)
    names = ("KTT_GRAFANA_PASSWORD", "KTT_API_TOKEN", "KTT_MONITOR_TOKEN")
    secrets = [settings[name] for name in names]
    assert not [secret for secret in secrets if secret in exported[2]]
    for service in ("inference", "monitoring", "prometheus"):
        logs = system.run.logs(service)
        assert logs or service == "monitoring"  # which says nothing while all is well
        assert not [secret for secret in secrets if secret in logs]
        assert SECRET not in logs
        assert asked.texts[0] not in logs
        assert "Traceback" not in logs


def test_services_have_no_rights(system: Deployed) -> None:
    if not isinstance(system.run, Containers):
        pytest.skip("needs containers")
    for service in ("inference", "monitoring"):
        status, user = system.run.inside(service, "id -u")
        assert status == 0
        assert int(user) > 0
        status, said = system.run.inside(service, "touch /x ./x")
        assert status, said
        assert "Read-only" in said
        status, said = system.run.inside(service, "grep CapEff /proc/self/status")
        assert said.split()[-1].strip("0") == ""
    status, found = system.run.inside(
        "inference", "python -c 'import importlib.util as u; print(u.find_spec(\"torch\"))'"
    )
    assert (status, found) == (0, "None")


def test_docker_compose_accepts_the_file(system: Deployed) -> None:
    if not isinstance(system.run, Containers):
        pytest.skip("needs docker-compose and an engine")
    printed = system.run.compose("--profile", "alerting", "config")
    assert set(yaml.safe_load(printed)["services"]) >= {"inference", "grafana", "alertmanager"}


def test_a_killed_service_comes_back(system: Deployed, asked: Split) -> None:
    system.run.kill("inference")
    system.wait_for(lambda: not system.ready("inference"), 60)
    system.wait_until_ready(HEALTHY_WITHIN)
    assert system.ask("/predict", {"text": asked.texts[0]}).status == 200
