"""The Grafana dashboard, the same for all models: built as code, and its queries listed.

``python -m utils.scaffold --refresh`` writes it into the models' folders; exports copy it from
there, so that only this needs grafana-foundation-sdk.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils.common.errors import UserError

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard, ThresholdsConfig
    from grafana_foundation_sdk.builders.prometheus import Dataquery
    from grafana_foundation_sdk.models.dashboard import DataSourceRef

DATASOURCE = "ktt-prometheus"
UID = "ktt"
ALERTS = (
    "KTTInferenceDown",
    "KTTErrorRate",
    "KTTLatencyHigh",
    "KTTMonitorDown",
    "KTTRowsDropped",
    "KTTMonitorStale",
    "KTTInputDrift",
    "KTTPredictionDrift",
    "KTTConfidenceDrift",
    "KTTAccuracyLow",
)
_COLUMNS = 24  # of Grafana's grid
_GREEN, _AMBER, _RED, _GREY = "green", "orange", "red", "#808080"
_VARIABLES = {"$__rate_interval": "1m", "$__interval": "15s", "$__range": "1h"}


@dataclass(frozen=True, kw_only=True)
class PanelSpec:
    """One panel: what it asks and how it is drawn.

    Parameters
    ----------
    queries
        PromQL by legend; the legend may name labels in double braces.
    kind
        ``lines``, ``stacked``, ``number``, ``states`` (a coloured row per series, values below 1
        green) or ``histogram`` (buckets over time).
    good
        Of a number or state: the value from which on it is not green any more, and red.
    """

    title: str
    queries: Mapping[str, str]
    text: str = ""
    kind: str = "lines"
    unit: str = "short"
    width: int = 8
    height: int = 8
    highest: float | None = None
    good: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class PanelQuery:
    """A query of a panel, ready to be sent to Prometheus."""

    title: str
    ref: str
    expr: str


def _drift(monitor: str, family: str) -> dict[str, str]:
    labels = f'monitor="{monitor}",family="{family}"'
    return {"{{signal}}": f"topk(40, ktt_drift_ratio{{{labels}}})"}


def _sources(metric: str) -> dict[str, str]:
    return {"live": f'{metric}{{source="window"}}', "reference": f'{metric}{{source="reference"}}'}


_SERVICE = (
    PanelSpec(
        title="Requests per second",
        queries={
            "{{endpoint}} {{status}}": (
                "sum by (endpoint, status) (rate(ktt_requests_total[$__rate_interval]))"
            )
        },
        unit="reqps",
        kind="stacked",
        text="By endpoint and HTTP status.",
    ),
    PanelSpec(
        title="Latency",
        queries={
            f"p{percent} {{{{endpoint}}}}": (
                f"histogram_quantile({percent / 100}, sum by (endpoint, le) "
                "(rate(ktt_request_seconds_bucket[$__rate_interval])))"
            )
            for percent in (50, 95, 99)
        },
        unit="s",
        text="As the client sees it, waiting for a batch included.",
    ),
    PanelSpec(
        title="Texts per batch",
        queries={
            "{{endpoint}}": (
                "sum by (endpoint) (rate(ktt_batch_size_sum[$__rate_interval])) / "
                "sum by (endpoint) (rate(ktt_batch_size_count[$__rate_interval]))"
            )
        },
        text="Requests that come together are answered together; more is cheaper.",
    ),
    PanelSpec(
        title="Failed requests",
        queries={"5xx": "ktt:errors:ratio5m"},
        unit="percentunit",
        highest=1,
        text="Share of answers with a status of 500 or above, over five minutes.",
    ),
    PanelSpec(
        title="Rows on their way to the monitor",
        queries={"waiting": "sum(ktt_monitor_queue_rows)"},
        text="Rows in the queue of the inference service.",
    ),
    PanelSpec(
        title="Rows to the monitor per second",
        queries={
            "{{outcome}}": "sum by (outcome) (rate(ktt_monitor_rows_total[$__rate_interval]))"
        },
        unit="cps",
        text="Dropped and refused rows are lost to the monitor; answers are given all the same.",
    ),
)
_PREDICTIONS = (
    PanelSpec(
        title="Answers per second by top-level class",
        queries={"{{top}}": "sum by (top) (rate(ktt_answers_total[$__rate_interval]))"},
        unit="cps",
        kind="stacked",
        width=12,
    ),
    PanelSpec(
        title="Shares of top-level classes: live and reference",
        queries={
            "{{top}} · live": 'ktt_prediction_share{source="window"}',
            "{{top}} · reference": 'ktt_prediction_share{source="reference"}',
        },
        unit="percentunit",
        width=12,
        text="Live: in the monitor's window. Reference: in the test split, same weights.",
    ),
    PanelSpec(
        title="Confidence",
        queries={"{{le}}": "sum by (le) (increase(ktt_confidence_bucket[$__rate_interval]))"},
        kind="histogram",
        width=12,
        text="Calibrated probability of each answer.",
    ),
    PanelSpec(
        title="Mean confidence",
        queries=_sources("ktt_confidence_mean"),
        unit="percentunit",
        highest=1,
        width=6,
    ),
    PanelSpec(
        title="Answers that stop early",
        queries={
            **_sources("ktt_stopped_early_share"),
            "last minutes": (
                "sum(rate(ktt_stopped_early_total[5m])) / sum(rate(ktt_answers_total[5m]))"
            ),
        },
        unit="percentunit",
        width=6,
        text="Share of answers that end at an inner class of the tree.",
    ),
)
_DRIFT_NOTE = (
    "Distance from the reference set as a share of the threshold that was learned from it: "
    "1 and above is drift."
)
_DRIFT = (
    PanelSpec(
        title="Drift found",
        queries={"{{monitor}}: {{family}}": "ktt_drift_detected"},
        kind="states",
        width=12,
        height=6,
        good=(1, 1),
    ),
    PanelSpec(
        title="Share of signals beyond their threshold",
        queries={"{{monitor}}: {{family}}": "ktt_drift_share"},
        unit="percentunit",
        highest=1,
        width=12,
        height=6,
    ),
    PanelSpec(
        title="Feature drift",
        queries=_drift("data_drift", "features"),
        kind="states",
        width=12,
        height=14,
        good=(0.8, 1),
        text=_DRIFT_NOTE,
    ),
    PanelSpec(
        title="Prediction drift",
        queries=_drift("cat_target_drift", "predictions"),
        kind="states",
        width=12,
        height=14,
        good=(0.8, 1),
        text=f"{_DRIFT_NOTE} By level of the tree and within its subtrees.",
    ),
    PanelSpec(
        title="Confidence and length drift",
        queries={
            "{{signal}}": 'ktt_drift_ratio{family=~"confidence|length"}',
        },
        kind="states",
        height=7,
        good=(0.8, 1),
        text=_DRIFT_NOTE,
    ),
    PanelSpec(
        title="Distance and threshold",
        queries={
            "{{signal}}": 'ktt_drift_distance{family!="features"}',
            "{{signal}} · threshold": 'ktt_drift_threshold{family!="features"}',
        },
        height=7,
    ),
    PanelSpec(
        title="Length of the texts",
        queries=_sources("ktt_text_length_mean"),
        height=7,
        text="Mean, in characters.",
    ),
)
_PERFORMANCE = (
    PanelSpec(
        title="Accuracy",
        queries={
            "estimated, live": 'ktt_estimated_accuracy{source="window"}',
            "estimated, reference": 'ktt_estimated_accuracy{source="reference"}',
            "measured on feedback": (
                'ktt_performance{monitor="classification_performance",metric="accuracy"}'
            ),
        },
        unit="percentunit",
        highest=1,
        text="Estimated from calibrated confidence. Measured once true classes came to /feedback.",
    ),
    PanelSpec(
        title="Classes (on feedback)",
        queries={"{{metric}}": 'ktt_performance{monitor="classification_performance"}'},
        highest=1,
    ),
    PanelSpec(
        title="Probabilities (on feedback)",
        queries={
            "{{metric}}": (
                'ktt_performance{monitor=~"prob_classification_performance|regression_performance"}'
            )
        },
        text="How far confidence can be taken at its word.",
    ),
    PanelSpec(
        title="The window",
        queries={
            "rows": "ktt_window_rows",
            "with true class": "ktt_window_labelled_rows",
            "size": "ktt_window_size",
        },
        width=12,
        height=6,
    ),
    PanelSpec(
        title="Age of the last calculation",
        queries={"age": "time() - (ktt_last_calculation_timestamp_seconds > 0)"},
        unit="s",
        width=6,
        height=6,
    ),
    PanelSpec(
        title="Calculation",
        queries={"time taken": "ktt_calculation_seconds"},
        unit="s",
        width=6,
        height=6,
    ),
)
_OVERVIEW = (
    PanelSpec(
        title="Service",
        queries={
            "{{model}} · {{dataset}} · {{runtime}}": (
                "max by (model, dataset, runtime) (ktt_service_info)"
            )
        },
        kind="name",
        width=8,
        height=4,
    ),
    PanelSpec(
        title="Answers per second",
        queries={"": "sum(rate(ktt_answers_total[1m]))"},
        kind="number",
        width=4,
        height=4,
    ),
    PanelSpec(
        title="p99 latency",
        queries={
            "": (
                'max(ktt:request_seconds:p99_5m{endpoint=~".*(predict|classify)"} >= 0) '
                "or vector(0)"
            )
        },
        kind="number",
        unit="s",
        width=4,
        height=4,
        good=(0.5, 1),
    ),
    PanelSpec(
        title="Estimated accuracy",
        queries={"": 'ktt_estimated_accuracy{source="window"}'},
        kind="number",
        unit="percentunit",
        width=4,
        height=4,
    ),
    PanelSpec(
        title="Alerts",
        queries={"": 'count(ALERTS{alertname=~"KTT.*",alertstate="firing"}) or vector(0)'},
        kind="number",
        width=4,
        height=4,
        good=(1, 1),
    ),
)
_ALERTS = (
    PanelSpec(
        title="Alerts over time",
        queries={
            name: f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) or vector(0)'
            for name in ALERTS
        },
        kind="states",
        width=_COLUMNS,
        height=10,
        good=(1, 1),
        text="Green: does not fire. What to do is said in the alert, at :9090/alerts.",
    ),
)
ROWS: Mapping[str, Sequence[PanelSpec]] = {
    "Overview": _OVERVIEW,
    "Service": _SERVICE,
    "Predictions": _PREDICTIONS,
    "Drift": _DRIFT,
    "Performance": _PERFORMANCE,
    "Alerts": _ALERTS,
}


def dashboard_json() -> str:
    """The dashboard as Grafana reads it.

    Raises
    ------
    UserError
        grafana-foundation-sdk is not installed.
    """
    try:
        from grafana_foundation_sdk.cog.encoder import JSONEncoder
    except ImportError as error:
        raise UserError(
            f"The dashboard is built with grafana-foundation-sdk ({error}): "
            "pip install -r requirements-dev.txt."
        ) from error
    built = _dashboard().build()
    return json.dumps(built, cls=JSONEncoder, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _dashboard() -> Dashboard:
    from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

    found = (
        Dashboard("KTT")
        .uid(UID)
        .tags(["ktt"])
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .readonly()
    )
    ids = itertools.count(1)
    for title, specs in ROWS.items():
        found = found.with_row(Row(title).id(next(ids)))
        for spec in specs:
            found = found.with_panel(_panel(spec).id(next(ids)))
    return found


def _panel(spec: PanelSpec) -> Any:
    panel = _DRAWN[spec.kind](spec)
    panel = panel.title(spec.title).datasource(_source()).span(spec.width).height(spec.height)
    if spec.text:
        panel = panel.description(spec.text)
    for place, (legend, expr) in enumerate(spec.queries.items()):
        panel = panel.with_target(_target(spec, chr(ord("A") + place), legend, expr))
    return panel


def _source() -> DataSourceRef:
    from grafana_foundation_sdk.models.dashboard import DataSourceRef

    return DataSourceRef(type_val="prometheus", uid=DATASOURCE)


def _target(spec: PanelSpec, ref: str, legend: str, expr: str) -> Dataquery:
    from grafana_foundation_sdk.builders.prometheus import Dataquery
    from grafana_foundation_sdk.models.prometheus import PromQueryFormat

    target = Dataquery().expr(expr).ref_id(ref).legend_format(legend)
    if spec.kind == "histogram":
        return target.format(PromQueryFormat.HEATMAP)
    return target.instant() if spec.kind in ("number", "name") else target


def _lines(spec: PanelSpec) -> Any:
    from grafana_foundation_sdk.builders.common import StackingConfig, VizTooltipOptions
    from grafana_foundation_sdk.builders.timeseries import Panel
    from grafana_foundation_sdk.models.common import StackingMode, TooltipDisplayMode

    panel = Panel().unit(spec.unit).min(0).line_width(1)
    panel = panel.tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    if spec.highest is not None:
        panel = panel.max(spec.highest)
    if spec.kind == "stacked":
        panel = panel.fill_opacity(40).stacking(StackingConfig().mode(StackingMode.NORMAL))
    return panel


def _number(spec: PanelSpec) -> Any:
    from grafana_foundation_sdk.builders.stat import Panel

    panel = Panel().unit(spec.unit)
    return panel.thresholds(_thresholds(spec.good)) if spec.good else panel


def _name(spec: PanelSpec) -> Any:
    from grafana_foundation_sdk.builders.stat import Panel
    from grafana_foundation_sdk.models.common import BigValueTextMode

    return Panel().text_mode(BigValueTextMode.NAME)


def _states(spec: PanelSpec) -> Any:
    from grafana_foundation_sdk.builders.common import VizLegendOptions
    from grafana_foundation_sdk.builders.statetimeline import Panel
    from grafana_foundation_sdk.models.common import VisibilityMode

    panel = Panel().unit(spec.unit).show_value(VisibilityMode.NEVER).row_height(0.9)
    panel = panel.legend(VizLegendOptions().show_legend(False)).line_width(0).fill_opacity(70)
    return panel.thresholds(_thresholds(spec.good or (1, 1)))


def _histogram(spec: PanelSpec) -> Any:
    from grafana_foundation_sdk.builders.heatmap import HeatmapColorOptions, Panel

    return Panel().color(HeatmapColorOptions().scheme("Blues").steps(32))


_DRAWN = {
    "lines": _lines,
    "stacked": _lines,
    "number": _number,
    "name": _name,
    "states": _states,
    "histogram": _histogram,
}


def _thresholds(good: tuple[float, float]) -> ThresholdsConfig:
    from grafana_foundation_sdk.builders.dashboard import ThresholdsConfig
    from grafana_foundation_sdk.models.dashboard import Threshold, ThresholdsMode

    doubtful, bad = good
    steps = [Threshold(value=None, color=_GREEN)]
    if doubtful < bad:
        steps.append(Threshold(value=doubtful, color=_AMBER))
    steps.append(Threshold(value=bad, color=_RED))
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


# -- reading a dashboard --------------------------------------------------------------------


def panels(dashboard: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every panel of a dashboard, those in rows too, but not the rows."""
    yield from _panels(dashboard.get("panels") or ())


def _panels(entries: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for entry in entries:
        if entry.get("type") == "row":
            yield from _panels(entry.get("panels") or ())
        else:
            yield entry


def panel_queries(dashboard: Mapping[str, Any]) -> list[PanelQuery]:
    """Every query of every panel, with Grafana's variables filled in as it would on one hour."""
    return [
        PanelQuery(title=panel["title"], ref=target["refId"], expr=_filled(target["expr"]))
        for panel in panels(dashboard)
        for target in panel.get("targets") or ()
    ]


def _filled(expr: str) -> str:
    for name, value in _VARIABLES.items():
        expr = expr.replace(name, value)
    return expr
