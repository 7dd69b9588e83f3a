"""The folder that docker-compose runs: complete, valid, with a secret that stays one."""

import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

import export
import train
from models import MODELS
from utils.common.errors import UserError
from utils.common.paths import PROJECT_ROOT, Layout
from utils.export import deployment
from utils.export.dashboard import ALERTS, DATASOURCE, dashboard_json, panel_queries, panels
from utils.export.deployment import (
    API_TOKEN,
    MONITOR_TOKEN,
    PASSWORD,
    VERSIONS,
    prediction_yaml,
    settings_with_secrets,
    value_of,
)

pytest.importorskip("ktt_bentoml_compat", reason="pip install ./packages/bentoml-py311")
MODEL = "tfidf_hsgd"
RULES = PROJECT_ROOT / "templates" / "deployment" / "prometheus" / "rules"


@pytest.fixture
def trained(layout: Layout, tiny: str) -> Layout:
    """A project with a trained model that has no reference set."""
    result = CliRunner().invoke(train.main, ["-m", MODEL, "-d", tiny])
    assert result.exit_code == 0, result.output
    return layout


def run(*arguments: str) -> Any:
    return CliRunner().invoke(export.main, ["-m", MODEL, "-d", "tiny", *arguments])


def exported(layout: Layout, *arguments: str) -> Path:
    result = run("--monitoring", *arguments)
    assert result.exit_code == 0, result.output
    return layout.bundle(MODEL, "tiny")


def compose(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "docker-compose.yaml").read_text())
    return found


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_system_is_complete_and_its_secret_is_kept(trained: Layout) -> None:
    folder = exported(trained)
    for file in (
        "docker-compose.yaml",
        "grafana/provisioning/dashboards/dashboard.json",
        "grafana/provisioning/dashboards/dashboard.yml",
        "grafana/provisioning/datasources/datasource.yml",
        "prometheus/prometheus.yaml",
        "inference/bentoml.yml",
        "inference/Dockerfile",
        "monitoring/Dockerfile",
        "monitoring/references.parquet",
        "monitoring/evidently.yaml",
        "monitoring/hierarchy.json",
        "alertmanager/alertmanager.yaml",
    ):
        assert (folder / file).is_file(), file
    settings = folder / ".env"
    assert mode(settings) == 0o600
    password = _password(settings)
    held = [value_of(settings.read_text(), name) for name in SECRETS]
    assert password in held
    others = [path for path in folder.rglob("*") if path.is_file() and path != settings]
    contents = [path.read_bytes() for path in others]
    assert not [secret for secret in held for content in contents if secret.encode() in content]

    settings.write_text(settings.read_text().replace("#KTT_PORT=5000", "KTT_PORT=6000"))
    (folder / "alertmanager" / "alertmanager.yaml").write_text("route: {receiver: mine}\n")
    (folder / "docker-compose.override.yaml").write_text("services: {}\n")
    (folder / "prometheus-local.yaml").write_text("# mine\n")
    (folder / "prometheus" / "rules" / "left.yaml").write_text("groups: []\n")
    result = run("--monitoring")
    assert result.exit_code == 0, result.output
    assert password not in result.output
    assert (_password(settings), mode(settings)) == (password, 0o600)
    assert "KTT_PORT=6000" in settings.read_text()
    assert "mine" in (folder / "alertmanager" / "alertmanager.yaml").read_text()
    assert (folder / "docker-compose.override.yaml").is_file()
    assert (folder / "prometheus-local.yaml").read_text() == "# mine\n"
    assert not (folder / "prometheus" / "rules" / "left.yaml").exists()


def _password(settings: Path) -> str:
    found = re.search(r"^KTT_GRAFANA_PASSWORD=(\S+)$", settings.read_text(), re.MULTILINE)
    assert found
    return found[1]


SECRETS = (PASSWORD, API_TOKEN, MONITOR_TOKEN)


def test_secrets_differ_and_a_lost_one_is_added() -> None:
    first, second = settings_with_secrets(""), settings_with_secrets("")
    values = [value_of(text, name) for text in (first, second) for name in SECRETS]
    assert len(set(values)) == len(values)
    assert all(len(value) >= 24 for value in values)
    assert settings_with_secrets(first) == first
    own = settings_with_secrets("KTT_PORT=1\nKTT_GRAFANA_PASSWORD=\n# the end")
    assert own.startswith("KTT_PORT=1\nKTT_GRAFANA_PASSWORD=")
    assert all(len(value_of(own, name)) >= 24 for name in SECRETS)
    assert own.count("KTT_GRAFANA_PASSWORD") == 1
    assert "\n# the end\n" in own


@pytest.mark.parametrize(
    "line", ["{}=mine", "{} = mine", "export {}=mine", "{}='mine'", '{}=\n{}="mine"  # my own']
)
def test_a_token_that_is_there_is_kept(line: str) -> None:
    before = "".join(line.replace("{}", name) + "\n" for name in SECRETS)
    assert settings_with_secrets(before) == before
    assert {value_of(before, name) for name in SECRETS} == {"mine"}


@pytest.mark.parametrize(
    "line", ['{}="mine', "{}='", '{}="mine" yours', '{}="" none', "{}='mine' 'yours'"]
)
def test_a_token_that_docker_compose_would_not_see_is_refused(line: str) -> None:
    before = "".join(line.replace("{}", name) + "\n" for name in SECRETS)
    with pytest.raises(UserError, match=r"In .env the value of KTT_\w+ begins with a quote"):
        settings_with_secrets(before)


def test_settings_that_an_editor_has_marked_are_kept(trained: Layout) -> None:
    settings = exported(trained) / ".env"
    settings.write_text("".join(f"{name}=mine\n" for name in SECRETS), encoding="utf-8-sig")
    assert run("--monitoring").exit_code == 0
    assert {value_of(settings.read_text(), name) for name in SECRETS} == {"mine"}


def test_a_folder_where_the_settings_go_is_refused_and_kept(trained: Layout) -> None:
    folder = exported(trained)
    (folder / ".env").unlink()
    (folder / ".env" / "bin").mkdir(parents=True)
    result = run("--monitoring")
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].endswith(
        "is a folder, and a file of settings goes there. Move it."
    )
    assert (folder / ".env" / "bin").is_dir()


@pytest.mark.parametrize(
    "line", ["{}=", "{}=''", "{}=''#none", '{}=" "', "{}= # none", "#{}=mine", "MY_{}=mine"]
)
def test_what_is_no_token_is_none(line: str) -> None:
    before = "".join(line.replace("{}", name) + "\n" for name in SECRETS)
    assert not any(value_of(before, name) for name in SECRETS)
    after = settings_with_secrets(before)
    assert all(len(value_of(after, name)) >= 24 for name in SECRETS)


def test_port_5000_needs_a_token_unless_the_export_is_told_not_to(trained: Layout) -> None:
    open_ = run("--monitoring", "--no-token")
    settings = trained.bundle(MODEL, "tiny") / ".env"
    assert not value_of(settings.read_text(), API_TOKEN)
    assert value_of(settings.read_text(), MONITOR_TOKEN)
    assert "Port 5000 answers whoever reaches it" in open_.output

    first = run("--monitoring")
    token = value_of(settings.read_text(), API_TOKEN)
    assert len(token) >= 24
    assert mode(settings) == 0o600
    assert "Requests to port 5000 need the KTT_API_TOKEN" in first.output
    for again in (run("--monitoring"), run("--monitoring", "--no-token")):
        assert value_of(settings.read_text(), API_TOKEN) == token
        assert not any(value_of(settings.read_text(), name) in again.output for name in SECRETS)


def test_what_containers_read_can_be_read_by_their_users(trained: Layout) -> None:
    before = os.umask(0o077)
    try:
        folder = exported(trained)
    finally:
        os.umask(before)
    for path in folder.rglob("*"):
        if path.name != ".env":
            wanted = 0o755 if path.is_dir() else 0o644
            assert mode(path) & wanted == wanted, path


def test_the_reference_set_beside_the_checkpoint_is_taken(trained: Layout) -> None:
    folder = exported(trained)
    made = pq.read_table(folder / "monitoring" / "references.parquet")
    assert not list(trained.weights.rglob("*_reference.parquet"))
    checkpoint = next(trained.weight_dir(MODEL, "tiny").glob("best_*.pt"))
    beside = checkpoint.with_name(f"{checkpoint.stem}_reference.parquet")
    pq.write_table(made.slice(0, 20), beside)
    shutil.rmtree(trained.dataset("tiny"))
    exported(trained)
    assert pq.read_table(folder / "monitoring" / "references.parquet").num_rows == 20
    config = yaml.safe_load((folder / "monitoring" / "evidently.yaml").read_text())
    assert set(config["prediction"]) < set(made.column_names)
    assert config["service"]["reference_path"] == "./references.parquet"

    pq.write_table(pa.table({"targets": ["a"]}), beside)  # of another time: not enough
    result = run("--monitoring")
    assert result.exit_code == 1
    assert result.output.count("\n") == 2  # what is exported, and the error
    assert "python train.py -m tfidf_hsgd -d tiny -r" in result.output
    assert (folder / "monitoring" / "references.parquet").is_file()

    beside.write_bytes(b"nothing")
    assert "is no reference set" in run("--monitoring").output


def test_a_reference_set_that_is_too_small_is_refused(trained: Layout) -> None:
    folder = exported(trained)
    made = pq.read_table(folder / "monitoring" / "references.parquet")
    checkpoint = next(trained.weight_dir(MODEL, "tiny").glob("best_*.pt"))
    beside = checkpoint.with_name(f"{checkpoint.stem}_reference.parquet")
    pq.write_table(made.slice(0, 19), beside)
    shutil.rmtree(folder)
    result = run("--monitoring")
    assert result.exit_code == 1
    error = result.output.splitlines()[-1]
    assert "20 rows or more, and that of 'tiny' has 19" in error
    assert "--train-ratio" in error
    assert "Start it" not in result.output
    assert not folder.exists()
    pq.write_table(made.slice(0, 20), beside)
    exported(trained)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("evidently.yaml", "service: {window_size: 50, min_reference_size: 100}", "Raise window"),
        ("evidently.yaml", "service: {windowsize: 50}", "unknown key 'windowsize'"),
        ("evidently.yaml", "a: [", "evidently.yaml cannot be read"),
    ],
)
def test_what_the_monitor_would_not_start_with_is_refused(
    file: str, text: str, message: str, trained: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = deployment._write_monitoring

    def write(folder: Path, model: Path, *rest: Any) -> None:
        changed = shutil.copytree(model, trained.root / "changed")
        (changed / file).write_text(text)
        real(folder, changed, *rest)

    monkeypatch.setattr(deployment, "_write_monitoring", write)
    result = run("--monitoring")
    assert result.exit_code == 1
    assert message in result.output.splitlines()[-1]
    assert "would not start" in result.output
    assert not trained.bundle(MODEL, "tiny").exists()


def test_a_dataset_that_changed_since_makes_no_reference_set(trained: Layout) -> None:
    hierarchy = trained.dataset("tiny") / "hierarchy.json"
    hierarchy.write_text(hierarchy.read_text() + "\n")
    result = run("--monitoring")
    assert result.exit_code == 1
    assert "other rows" in result.output
    assert not trained.build.exists()


def test_a_full_disk_for_temporary_files_is_one_line(
    trained: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> None:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.gettempdir", none)
    result = run("--bento")
    assert result.exit_code == 1
    assert result.output.splitlines()[-1] == (
        "Error: No usable temporary directory found in ['/tmp']. Free some space, or set TMPDIR to "
        "a writable folder."
    )


def test_a_failure_leaves_the_system_that_was_there(
    trained: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = exported(trained)
    before = {path: path.stat().st_ino for path in folder.rglob("*")}

    def fail(*_: Any, **__: Any) -> None:
        raise UserError("no more space")

    monkeypatch.setattr("utils.export.deployment._write_secret", fail)
    assert run("--monitoring").exit_code == 1
    assert {path: path.stat().st_ino for path in folder.rglob("*")} == before
    assert [path.name for path in trained.build.iterdir()] == [folder.name]


def test_nothing_but_what_must_be_is_published_and_all_is_locked_down(trained: Layout) -> None:
    services = compose(exported(trained))["services"]
    assert set(services) == {"inference", "monitoring", "prometheus", "grafana", "alertmanager"}
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert "deploy" not in service, name
        assert "depends_on" not in service, name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
        if name != "inference":
            assert all(
                port.startswith(("127.0.0.1:", "${KTT_MONITOR_ADDRESS:-127.0.0.1}:"))
                for port in service["ports"]
            )
        if "image" in service:
            assert service["image"] == f"{service['image'].partition(':')[0]}:{VERSIONS[name]}"
    assert services["alertmanager"]["profiles"] == ["alerting"]
    assert services["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"].startswith(
        "${KTT_GRAFANA_PASSWORD:?"
    )
    assert services["inference"]["environment"]["EVIDENTLY_HOST"] == "monitoring"
    tokens = {
        name: service["environment"][MONITOR_TOKEN]
        for name, service in services.items()
        if MONITOR_TOKEN in service.get("environment", {})
    }
    assert set(tokens) == {"inference", "monitoring"}
    assert len(set(tokens.values())) == 1


def test_what_shows_figures_cannot_reach_the_services(trained: Layout) -> None:
    found = compose(exported(trained))
    networks = {name: set(service["networks"]) for name, service in found["services"].items()}
    assert set.union(*networks.values()) == set(found["networks"])
    assert networks["inference"] & networks["monitoring"]
    assert networks["prometheus"] & networks["monitoring"]
    assert networks["prometheus"] & networks["inference"]
    for name in ("grafana", "alertmanager"):
        assert networks[name] & networks["prometheus"]
        assert not networks[name] & (networks["monitoring"] | networks["inference"])


def test_prometheus_without_containers_has_its_configuration(trained: Layout) -> None:
    folder = exported(trained)
    config = yaml.safe_load((folder / "prometheus-local.yaml").read_text())
    contained = yaml.safe_load((folder / "prometheus" / "prometheus.yaml").read_text())
    assert _targets(config) == {
        "inference": ["localhost:5000"],
        "monitoring": ["localhost:5001"],
        "prometheus": ["localhost:9090"],
    }
    assert _targets(contained) == {
        "inference": ["inference:5000"],
        "monitoring": ["monitoring:5001"],
        "prometheus": ["localhost:9090"],
    }
    (rules,) = config["rule_files"]
    assert {path.name for path in folder.glob(rules)} == {"alerts.yaml", "recording.yaml"}
    (rules,) = contained["rule_files"]
    assert len(list((folder / "prometheus").glob(rules))) == 2


def _targets(config: dict[str, Any]) -> dict[str, list[str]]:
    return {
        job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]
    }


def test_a_torch_bundle_has_a_service_for_a_gpu_and_needs_none(tmp_path: Path) -> None:
    from utils.export.deployment import _write_configuration

    model = PROJECT_ROOT / "models" / MODEL / "bentoml"
    _write_configuration(tmp_path, model, "a_b", gpu=True)
    services = compose(tmp_path)["services"]
    gpu = services["inference-gpu"]
    assert gpu["profiles"] == ["gpu"]
    assert gpu["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert "deploy" not in services["inference"]
    assert "profiles" not in services["inference"]
    published = [port for service in services.values() for port in service["ports"]]
    defaults = [re.findall(r":-(\d+)}:\d+$", port) for port in published]
    assert len({port for (port,) in defaults}) == len(services)
    config = yaml.safe_load((tmp_path / "prometheus" / "prometheus.yaml").read_text())
    jobs = {
        job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]
    }
    assert jobs["inference"] == ["inference:5000", "inference-gpu:5000"]


def test_a_container_is_started_anew_when_what_it_mounts_has_changed(
    trained: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def labels() -> list[str]:
        services = compose(exported(trained))["services"]
        return [services[name]["labels"]["ktt.configuration"] for name in ("prometheus", "grafana")]

    first = labels()
    assert labels() == first
    import utils.export.deployment as module

    templates = trained.root / "templates"
    shutil.copytree(module.TEMPLATES, templates)
    with (templates / "deployment" / "prometheus" / "rules" / "alerts.yaml").open("a") as rules:
        rules.write("# more\n")
    monkeypatch.setattr(module, "TEMPLATES", templates)
    prometheus, grafana = labels()
    assert prometheus != first[0]
    assert grafana == first[1]


def test_a_bundle_alone_over_a_system_says_that_the_rest_is_older(trained: Layout) -> None:
    exported(trained)
    result = run("--bento")
    assert result.exit_code == 0
    assert "--monitoring" in result.output
    assert "its monitor gets nothing" in result.output


@pytest.mark.skipif(not shutil.which("docker-compose"), reason="needs docker-compose")
def test_docker_compose_accepts_it(trained: Layout) -> None:
    folder = exported(trained)
    command = ["docker-compose", "--profile", "alerting", "config"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert _password(folder / ".env") in done.stdout
    (folder / ".env").unlink()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "KTT_GRAFANA_PASSWORD" in done.stderr


def test_score_columns_survive_yaml() -> None:
    names = ["A > B", "yes", "1", "", ": x", "é\x7f\U0001f600\x85", "'", '"', "a\nb", "# c", "- d"]
    text = prediction_yaml(names)
    assert yaml.safe_load(text)["prediction"] == names


# -- Prometheus -----------------------------------------------------------------------------


def alert_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((RULES / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_alerts_say_what_to_do_and_stand_on_the_dashboard() -> None:
    assert sorted(rule["alert"] for rule in alert_rules()) == sorted(ALERTS)
    for rule in alert_rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["for"]
        assert len(rule["annotations"]["description"].split()) > 15


needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool")


def promtool(*arguments: str | Path) -> None:
    command = ["promtool", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_accepts_configuration_and_rules(trained: Layout) -> None:
    folder = exported(trained)
    promtool("check", "config", folder / "prometheus" / "prometheus.yaml")
    promtool("check", "config", folder / "prometheus-local.yaml")


@needs_promtool
def test_alerts_fire_when_they_should() -> None:
    promtool(
        "test", "rules", PROJECT_ROOT / "tests" / "support" / "prometheus" / "alerts_test.yaml"
    )


# -- the dashboard --------------------------------------------------------------------------


def test_the_dashboard_is_whole() -> None:
    dashboard = json.loads(dashboard_json())
    assert "${" not in dashboard_json()
    found = list(panels(dashboard))
    assert len({panel["title"] for panel in found}) == len(found)
    for panel in found:
        assert panel["datasource"]["uid"] == DATASOURCE
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    assert len(panel_queries(dashboard)) == sum(len(panel["targets"]) for panel in found)
    assert not [query for query in panel_queries(dashboard) if "$" in query.expr]


def test_the_dashboard_reads_as_its_schema_says() -> None:
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    document = json.loads(dashboard_json())
    again = json.loads(json.dumps(Dashboard.from_json(document), cls=JSONEncoder))
    assert again == document


@needs_promtool
def test_every_query_of_the_dashboard_is_promql(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": query.expr}
        for number, query in enumerate(panel_queries(json.loads(dashboard_json())))
    ]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", file)


def test_the_data_source_is_the_dashboards() -> None:
    folder = RULES.parents[1] / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "datasource.yml").read_text())[
        "datasources"
    ]
    assert source["uid"] == DATASOURCE
    assert source["url"] == "http://prometheus:9090"


def test_the_dashboard_is_built_for_the_image() -> None:
    pins = (PROJECT_ROOT / "requirements-dev.txt").read_text()
    found = re.search(r"^grafana-foundation-sdk==\d+!(\d+\.\d+)\.", pins, re.MULTILINE)
    assert found
    assert VERSIONS["grafana"].startswith(f"{found[1]}.")


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_models_own_evidently_yaml_is_complete(name: str) -> None:
    path = PROJECT_ROOT / "models" / name / "bentoml" / "evidently.yaml"
    service = yaml.safe_load(path.read_text())["service"]
    assert {"reference_path", "min_reference_size", "use_reference", "moving_reference"} < set(
        service
    )
    assert len(service["monitors"]) == 5
