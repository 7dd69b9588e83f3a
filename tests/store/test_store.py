"""The model store."""

from __future__ import annotations

import datetime
import errno
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

import store as command
from models import MODELS
from tests.support.stores import FakeModel, files_below, fill, tiny_model
from tests.support.tiny import write_tiny_dataset
from utils.common.checkpoints import HIDDEN, find_checkpoint, runs, trained_pairs
from utils.common.errors import UserError
from utils.common.paths import PROJECT_ROOT, Layout
from utils.common.registry import model_class, model_names
from utils.store import Store, parse_tag
from utils.store.info import info_of


@pytest.fixture
def store(layout: Layout) -> Store:
    return Store(layout)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command.main, list(arguments))


def said(*arguments: str) -> str:
    """What a command printed that went well."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def refused(result: Result, *parts: str) -> None:
    """The command failed with status 1 and one line that holds all `parts`."""
    assert result.exit_code == 1, result.output
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1, result.stderr
    assert all(part in lines[0] for part in ("Error: ", *parts)), lines[0]


def test_the_store_finds_the_registry() -> None:
    assert model_names() == list(MODELS)
    assert model_class("tfidf_hsgd").name == "tfidf_hsgd"
    with pytest.raises(UserError, match="Unknown model 'db_bhcm'"):
        model_class("db_bhcm")


# -- tags -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("db_bhcn_shop", ("db_bhcn", "shop", "latest")),
        ("db_bhcn_shop:", ("db_bhcn", "shop", "latest")),
        ("db_bhcn_awx_shop:best", ("db_bhcn_awx", "shop", "best")),
        ("db_bhcn/awx_shop:v1", ("db_bhcn", "awx_shop", "v1")),
        ("tfidf_hsgd_my_data:2026-11-21T09:03", ("tfidf_hsgd", "my_data", "2026-11-21T09:03")),
    ],
)  # fmt: skip
def test_tags(layout: Layout, text: str, parts: tuple[str, str, str]) -> None:
    tag = parse_tag(text, layout)
    assert (tag.model, tag.dataset, tag.version) == parts


def test_a_tag_means_what_is_trained_where_it_has_two_readings(store: Store) -> None:
    class Short(FakeModel):
        name = "db_bhcn"

    entry = store.save_model(Short("awx_shop"))
    assert store.get("db_bhcn_awx_shop").tag == entry.tag

    class Long(FakeModel):
        name = "db_bhcn_awx"

    longer = store.save_model(Long("shop"))
    assert store.get("db_bhcn_awx_shop").tag == longer.tag
    assert store.get("db_bhcn/awx_shop").tag == entry.tag


@pytest.mark.parametrize(
    "text", ["", "shop", "db_bhcn", "db_bhcn_", "nobody/shop", "tfidf_hsgd_../x", "tfidf_hsgd/../x"]
)
def test_what_is_no_tag(layout: Layout, text: str) -> None:
    with pytest.raises(UserError):
        parse_tag(text, layout)


def test_versions(store: Store) -> None:
    first, second, third = fill(store, [0.5, 0.9, 0.7])
    store.alias(second.tag, "production")
    named = store.save_model(FakeModel(accuracy=0.1), name="tried")
    for version, entry in {
        "latest": named, "best": second, "production": second, "tried": named,
        first.version: first, third.version: third,
    }.items():  # fmt: skip
        assert store.get(f"tfidf_hsgd_fake:{version}").tag == entry.tag
    assert store.get("tfidf_hsgd_fake").tag == named.tag
    refused(run("get", "tfidf_hsgd_fake:producton"), "'producton'", "Did you mean 'production'?")
    refused(run("get", "tfidf_hsgd_fake:best", "--by", "leaf_acuracy"), "'leaf_accuracy'")
    refused(run("get", f"tfidf_hsgd_fake:{first.version[:4]}"), "may be any of", third.version)
    refused(run("get", "tfidf_lsgd_fake"), "no weights of tfidf_lsgd", "train.py")


def test_best_follows_the_figure(store: Store) -> None:
    for accuracy, nll in ((0.5, 0.3), (0.9, 0.8)):
        model = FakeModel(accuracy=accuracy)
        model.info["val"]["nll"] = nll
        store.save_model(model, metrics={"leaf_accuracy": 1 - accuracy})
    low, high = store.list()
    assert store.get("tfidf_hsgd_fake:best") == high
    assert store.get("tfidf_hsgd_fake:best", by="nll") == low
    assert store.get("tfidf_hsgd_fake:best", by="test.leaf_accuracy") == low
    assert store.list(sort="nll") == [low, high]
    assert store.list(sort="leaf_accuracy") == [high, low]
    with pytest.raises(UserError, match="figure of the store ''"):
        store.list(sort="")


def test_a_run_of_a_wrong_clock_is_not_the_latest_for_ever(store: Store) -> None:
    (entry,) = fill(store, [0.5])
    for moment in ("2199-01-01T00:00:00", "1970-01-01T00:00:00"):
        FakeModel(accuracy=0.9).save(entry.run.folder / f"best_{moment}.pt")
    assert store.get("tfidf_hsgd_fake").tag == entry.tag
    assert find_checkpoint(store.layout, "tfidf_hsgd", "fake") == entry.path
    assert [one.version[:4] for one in store.list()] == ["2199", "1970", entry.version[:4]]
    (second,) = fill(store, [0.5])
    assert store.get("tfidf_hsgd_fake:latest").tag == second.tag
    tomorrow = (datetime.datetime.now() + datetime.timedelta(hours=14)).isoformat()[:19]
    FakeModel().save(entry.run.folder / f"best_{tomorrow}.pt")  # of another time zone
    assert store.get("tfidf_hsgd_fake").version == tomorrow


def test_epochs_are_those_that_the_command_line_asked_for() -> None:
    facts = {"config": {"epochs": 3, "dropout": 0.1}, "info": {"epochs": 1}}
    assert info_of(facts).hyperparameters == {"epochs": 1, "dropout": 0.1}


# -- saving ---------------------------------------------------------------------------------


def test_what_is_saved_comes_back(store: Store, layout: Layout) -> None:
    model = tiny_model(layout)
    objects: dict[str, Any] = {
        "words": ["a", "ü"], "note": "naïve\n", "table": np.arange(6).reshape(2, 3), "raw": b"\0\1",
    }  # fmt: skip
    entry = store.save_model(
        model, name="first", labels={"team": "nlp"}, metadata={"ticket": 7},
        signatures={"classify": {"batchable": False}}, custom_objects=objects,
        metrics={"leaf_accuracy": 0.75},
    )  # fmt: skip
    (found,) = Store(layout).list()
    assert found == entry == store.get("tfidf_hsgd_tiny:first")
    assert found.info.labels == {"team": "nlp"}
    assert found.info.metadata == {"ticket": 7}
    assert found.info.metrics == {"leaf_accuracy": 0.75}
    assert found.info.validation == model.info["val"]
    assert found.info.hyperparameters["loss"] == "modified_huber"
    assert found.info.seconds == 1.5
    assert found.info.fingerprint == model.info["fingerprint"]
    assert found.info.host
    assert found.info.code["version"]
    assert found.signatures["classify"].batchable is False
    assert set(found.custom_objects) == set(objects)
    np.testing.assert_array_equal(found.custom_objects["table"], objects["table"])
    assert {key: found.custom_objects[key] for key in ("words", "note", "raw")} == {
        key: objects[key] for key in ("words", "note", "raw")
    }
    texts = ["wash foam hands", "play kids"]
    scores = [np.concatenate([s for s, _ in m.score_batches(texts)]) for m in (model, found.load())]
    np.testing.assert_array_equal(*scores)
    assert find_checkpoint(layout, "tfidf_hsgd", "tiny") == found.path


class Dangerous:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (Path("/nowhere"), "x"))


@pytest.mark.parametrize(
    "value", [Dangerous(), {1: "x"}, float("nan"), np.array([Dangerous()]), (1, 2)]
)
def test_objects_that_only_a_pickle_could_hold(store: Store, value: Any) -> None:
    with pytest.raises(UserError, match=r"'thing'.*never pickles"):
        store.save_model(FakeModel(), custom_objects={"thing": value})
    assert store.list() == []
    assert not files_below(store.layout.root)


@pytest.mark.parametrize(
    "values",
    [
        {"name": "latest"}, {"name": "2026-11-21"}, {"name": "../x"}, {"labels": {"a b": "x"}},
        {"labels": {"a": "x\ny"}}, {"labels": {"a": "x,y"}}, {"custom_objects": {"../x": 1}},
        {"signatures": {"predict": {"batch": 1}}}, {"dataset": "../x"},
        {"metadata": {"a": float("nan")}}, {"metadata": {"a": "\ud800"}},
    ],
)  # fmt: skip
def test_what_cannot_be_saved_leaves_nothing(store: Store, values: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        store.save_model(FakeModel(), **values)
    assert not files_below(store.layout.root)


def test_two_runs_never_have_one_name(store: Store) -> None:
    first = store.save_model(FakeModel(), name="v1")
    with pytest.raises(UserError, match=f"'v1' is {first.tag} already"):
        store.save_model(FakeModel(), name="v1")
    store.alias(first.tag, "production")
    with pytest.raises(UserError, match="'production' is"):
        store.save_model(FakeModel(), name="production")
    with pytest.raises(UserError, match="'v1' is the name of"):
        store.alias(first.tag, "v1")
    assert len(store.list()) == 1


def test_runs_from_before_there_was_a_store(store: Store, layout: Layout) -> None:
    folder = layout.weight_dir("tfidf_hsgd", "fake")
    FakeModel(accuracy=0.25).save(folder / "best_2026-01-01T00:00:00.pt")
    facts = {"test": {"leaf_accuracy": 0.5}, "config": {"alpha": 1}, "info": {"seed": 3}}
    (folder / "best_2026-01-01T00:00:01.pt").write_bytes(b"damaged")
    FakeModel(accuracy=0.25).save(folder / "best_2026-01-01T00:00:02.pt")
    (folder / "best_2026-01-01T00:00:02_metrics.json").write_text(json.dumps(facts))
    plain, damaged, measured = store.list()
    assert plain.info.validation == {"leaf_accuracy": 0.25}
    assert "damaged" in damaged.info.problem
    assert (measured.info.metrics, measured.info.seed) == ({"leaf_accuracy": 0.5}, 3)
    result = run("list")
    assert result.exit_code == 0
    assert "3 models" in result.stdout
    assert "damaged" in result.stderr
    assert store.label(plain.tag, {"team": "nlp"}).info.validation == {"leaf_accuracy": 0.25}
    refused(run("label", str(damaged.tag), "a=b"), "damaged")


# -- labels, aliases, deletion --------------------------------------------------------------


def test_labels_filter(store: Store) -> None:
    one, two = fill(store, [0.1, 0.2])
    assert "team=nlp" in said("label", str(one.tag), "team=nlp", "stage=dev")
    said("label", str(two.tag), "team=web=1")
    assert [e.tag for e in store.list(["label=team=nlp"])] == [one.tag]
    assert [e.tag for e in store.list(["label=team=web=1", "model=tfidf_hsgd"])] == [two.tag]
    assert len(store.list(["label=team"])) == 2
    assert store.list(["label=team", "label=stage=prod"]) == []
    assert store.list(["dataset=other"]) == []
    said("label", str(one.tag), "--remove", "stage")
    assert store.get(one.tag).info.labels == {"team": "nlp"}
    refused(run("label", str(one.tag), "--remove", "stag"), "Unknown label 'stag'")
    refused(run("label", str(one.tag), "team"), "key=value")
    refused(run("list", "--filter", "dateset=x"), "Did you mean 'dataset'?")
    refused(run("list", "--sort", "leaf_acuracy"), "Did you mean 'leaf_accuracy'?")
    assert run("label", str(one.tag)).exit_code == 2


def test_an_alias_moves_and_never_dangles(store: Store) -> None:
    one, two = fill(store, [0.1, 0.2])
    tag = "tfidf_hsgd_fake:production"
    assert f"production is {one.tag} now" in said("alias", str(one.tag), "production")
    said("alias", str(two.tag), "production")
    assert store.get(tag).tag == two.tag
    before = files_below(store.layout.root)
    refused(run("delete", tag, "-y"), "'production'", "--with-aliases")
    assert files_below(store.layout.root) == before
    assert "Gone with it: production" in said("delete", tag, "-y", "--with-aliases")
    refused(run("get", tag), "Unknown version")
    said("alias", str(one.tag), "production")
    assert str(one.tag) in said("alias", "--remove", tag)
    refused(run("alias", "--remove", tag), "Unknown alias 'production'")
    refused(run("alias", str(one.tag), "best"), "means something already")
    assert [e.tag for e in store.list()] == [one.tag]
    assert run("alias", str(one.tag)).exit_code == 2


def test_delete_asks_or_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = fill(store, [0.1, 0.2], custom_objects={"a": 1})
    folder = one.run.folder
    (folder / f"best_{one.version}_on_other_test.json").write_text("{}")
    (folder / f"last_{one.version}.pt").write_bytes(b"x")
    (folder / f"best_{one.version}.pt.dvc").write_text("x")
    refused(run("delete", str(one.tag)), str(one.tag), "-y")
    refused(run("delete", "tfidf_hsgd_fake:best", "-y"), "another one tomorrow", str(two.tag))
    assert len(store.list()) == 2
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    assert f"Deleted {one.tag}" in said("delete", str(one.tag), "-y")
    assert all(one.version not in name for name in files_below(store.layout.root))
    assert [e.tag for e in store.list()] == [two.tag]
    assert store.get(two.tag).custom_objects["a"] == 1


def test_what_a_dead_process_left_is_hidden_and_swept(store: Store, layout: Layout) -> None:
    one, two = fill(store, [0.1, 0.2])
    (one.run.folder / f"{HIDDEN}{one.version}").touch()  # died while it came, or went
    assert [e.tag for e in store.list()] == [two.tag]
    assert [r.time for r in runs(layout, "tfidf_hsgd", "fake")] == [two.version]
    three = store.save_model(FakeModel())
    assert [e.tag for e in store.list()] == [two.tag, three.tag]
    assert all(one.version not in name for name in files_below(store.layout.root))
    assert trained_pairs(layout) == [("tfidf_hsgd", "fake")]


# -- commands -------------------------------------------------------------------------------


def test_get_and_compare_show_what_differs(store: Store) -> None:
    one = store.save_model(FakeModel(accuracy=0.25), labels={"team": "nlp"})
    two = store.save_model(FakeModel(accuracy=0.75))
    shown = said("get", str(one.tag))
    assert "leaf_accuracy: 0.25" in shown
    assert "team: nlp" in shown
    assert json.loads(said("get", str(one.tag), "-o", "json"))["validation"] == {
        "leaf_accuracy": 0.25
    }
    assert said("get", "tfidf_hsgd_fake", "-o", "tag").strip() == str(two.tag)
    assert said("get", "tfidf_hsgd_fake", "-o", "path").strip() == str(two.path)
    found = store.compare(one.tag, two.tag)
    assert found.figures["leaf_accuracy"] == (0.25, 0.75)
    assert found.settings == {}
    assert found.origins == {"label team": ("nlp", None)}
    shown = said("compare", str(one.tag), str(two.tag))
    assert all(part in shown for part in ("+0.5000", "label team", "Settings: the same"))
    assert shown.startswith("Dataset: not known")
    text = said("get", str(one.tag))
    assert "\nmetrics: {}  # of the test rows\n" in text
    assert "\nvalidation:  # of the validation rows\n" in text
    (first, _) = json.loads(said("list", "-o", "json"))
    assert (first["tag"], first["labels"]) == (str(one.tag), {"team": "nlp"})


def test_an_empty_store(layout: Layout) -> None:
    for arguments in ([], ["--sort", "leaf_accuracy"]):
        assert said("list", *arguments).startswith("0 models. train.py fills the store")
    assert said("list", "-o", "json").strip() == "[]"
    assert "fits all filters" in said("list", "--filter", "label=x")
    assert not layout.weights.exists()


def compared(
    store: Store, monkeypatch: pytest.MonkeyPatch, *models: FakeModel, **values: Any
) -> str:
    """What `compare` prints of two models on a terminal of 80 columns."""
    one, two = (store.save_model(model, **values) for model in models)
    store.alias(one.tag, "production")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    return click.unstyle(said("compare", "tfidf_hsgd_fake:production", str(two.tag)))


def test_compare_fits_a_terminal(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = FakeModel(accuracy=0.25), FakeModel(accuracy=0.75)
    for model, rows in ((one, 2248), (two, 2250)):
        model.info |= {"rows": {"train": rows}, "fingerprint": "same"}
        model.info["val"]["rows"] = float(rows)
    shown = compared(store, monkeypatch, one, two, metrics={"rows": 3.0})
    lines = shown.splitlines()
    assert lines[0] == "Dataset: the same"
    assert max(map(len, lines)) <= 80
    assert "…" not in shown.replace("test.…", "")
    assert "tfidf_hsgd_fake:" in shown
    assert " production " in shown
    assert [line.split() for line in lines if "rows" in line and "2," in line] == [
        ["rows", "2,248", "2,250", "+2"],
        ["rows", "train", "2,248", "2,250"],
    ]
    assert "{" not in shown
    assert "Where they come from" in shown


def test_compare_tells_of_other_rows_and_settings(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = FakeModel(), FakeModel()
    one.info["fingerprint"], two.info["fingerprint"] = "Q" * 64, "Z" * 64
    one.config |= {"display_name": "One", "layers": {"size": 3}}
    two.config |= {"display_name": "Two", "layers": {"size": 4}}
    shown = compared(store, monkeypatch, one, two)
    assert shown.startswith("Dataset: NOT the same\n")
    assert "Settings that differ" in shown
    assert ["layers", "size", "3", "4"] in [line.split() for line in shown.splitlines()]
    assert "display" not in shown
    assert shown.count("Q") == shown.count("Z") == 64  # folded, not cut


def test_list_says_whose_rows_figures_are_of(store: Store) -> None:
    fill(store, [0.25])
    count, heads, *_ = said("list").splitlines()
    assert count == "1 model"
    assert "val leaf accuracy  test leaf accuracy" in heads
    assert "seconds  val leaf accuracy" in said("list", "--sort", "seconds")


def test_list_marks_runs_of_other_rows(
    store: Store, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_tiny_dataset(layout, "tiny")
    for fingerprint, name in (("x", "old"), (data.fingerprint, "new"), ("", "unknown")):
        model = FakeModel("tiny")
        model.info["fingerprint"] = fingerprint
        store.save_model(model, name=name)
    gone = FakeModel("gone")
    gone.info["fingerprint"] = "x"
    store.save_model(gone, name="without")

    def marked() -> list[str]:
        lines = said("list").splitlines()
        return [line.split()[1] for line in lines if line.endswith("  changed")]

    assert marked() == ["old"]
    listed = json.loads(said("list", "-o", "json"))
    assert {entry["name"]: entry["dataset_changed"] for entry in listed} == {
        "old": True, "new": False, "unknown": None, "without": None,
    }  # fmt: skip
    assert "not trained on what the dataset holds now" in said("list")
    monkeypatch.setattr("utils.store.datasets.MOST_BYTES", 1)  # compared with the newest run
    assert marked() == ["old"]
    monkeypatch.undo()
    store.delete("tfidf_hsgd_tiny:old")
    assert "changed" not in said("list")


# -- what a user may get wrong ------------------------------------------------------------------


def test_delete_wants_to_be_told_which(store: Store) -> None:
    one, two = fill(store, [0.1, 0.2])
    for tag in ("tfidf_hsgd_fake", "tfidf_hsgd_fake:", "tfidf_hsgd/fake"):
        refused(run("delete", str(one.tag), tag, "-y"), repr(tag), str(two.tag))
    assert len(store.list()) == 2
    said("delete", "tfidf_hsgd_fake:latest", "-y")
    assert [entry.tag for entry in store.list()] == [one.tag]


def test_best_without_validation_figures(store: Store) -> None:
    model = FakeModel()
    del model.info["val"]
    store.save_model(model, metrics={"leaf_accuracy": 0.5})
    words = ("No run of", "has figures of validation rows", "test.leaf_accuracy")
    refused(run("get", "tfidf_hsgd_fake:best"), "tfidf_hsgd_fake", *words)
    refused(run("list", "--sort", "leaf_accuracy"), *words)


def test_what_was_meant_is_not_lost_in_a_list(store: Store) -> None:
    model = FakeModel()
    model.info["val"] |= {f"level_{number}_accuracy": 0.5 for number in range(40)}
    store.save_model(model)
    for arguments in (
        ["list", "--sort", "leaf_acuracy"],
        ["get", "tfidf_hsgd_fake:best", "--by", "leaf_acuracy"],
    ):
        result = run(*arguments)
        refused(result, "Did you mean 'leaf_accuracy'?")
        assert "level_1" not in result.stderr
    refused(run("list", "--sort", "qqq"), "level_1_accuracy")


def test_a_near_pair_is_proposed(store: Store) -> None:
    fill(store, [0.5])
    refused(run("get", "tfidf_hsgd_fke"), "Did you mean 'tfidf_hsgd_fake'?", "train.py")


def test_an_alias_says_whence_it_moved(store: Store) -> None:
    one, two = fill(store, [0.1, 0.2])
    assert "it was" not in said("alias", str(one.tag), "production")
    assert "it was" not in said("alias", str(one.tag), "production")
    assert f"(it was {one.version})" in said("alias", str(two.tag), "production")


def test_names_and_labels_that_cannot_be(store: Store) -> None:
    (one,) = fill(store, [0.1])
    refused(run("label", str(one.tag), "team=a", "team=b"), "'team'", "'a'", "'b'")
    assert "team=a" in said("label", str(one.tag), "team=a", "team=a")
    with pytest.raises(UserError, match=r"^Run name 'a b' cannot be used"):
        store.save_model(FakeModel(), name="a b")


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"signatures": {"nope": {}}}, "Unknown method 'nope'"),
        ({"labels": "a"}, "labels 'a' cannot be used"),
        ({"labels": {"a": 1}}, "Label a=1 cannot be stored"),
        ({"metadata": [1]}, "metadata [1]"),
        ({"signatures": "predict"}, "signatures 'predict'"),
        ({"custom_objects": {1: "a"}}, "custom_objects {1: 'a'}"),
        ({"metrics": 0.5}, "metrics 0.5"),
    ],
)  # fmt: skip
def test_save_model_refuses_what_cannot_be_kept(
    store: Store, values: dict[str, Any], part: str
) -> None:
    with pytest.raises(UserError) as caught:
        store.save_model(FakeModel(), **values)
    assert part in caught.value.message
    assert store.list() == []


@pytest.mark.parametrize("model", [3, None, "tfidf_hsgd", FakeModel])
def test_save_model_wants_a_model(store: Store, model: Any) -> None:
    with pytest.raises(UserError, match="Give save_model a trained model"):
        store.save_model(model, "fake")


def test_entries_and_objects_are_shown_short(store: Store) -> None:
    entry = store.save_model(FakeModel(), name="v1", custom_objects={"words": ["a"], "note": "x"})
    assert repr(entry) == f"Entry('{entry.tag}', name='v1')"
    assert repr(entry.custom_objects) == "Objects('note', 'words')"


def test_500_entries_are_listed_within_a_second_and_without_torch(store: Store) -> None:
    (entry,) = fill(store, [0.5])
    entry_text = (entry.run.folder / f"entry_{entry.version}.json").read_text()
    for number in range(1, 500):
        moment = f"2026-01-01T00:{number // 60:02}:{number % 60:02}"
        (entry.run.folder / f"best_{moment}.pt").write_bytes(entry.path.read_bytes())
        (entry.run.folder / f"entry_{moment}.json").write_text(entry_text)
    code = (
        "import sys, store\n"
        "try: store.main(['list'])\n"
        "finally: print(*({'torch', 'numpy', 'pandas', 'sklearn'} & set(sys.modules)), 'loaded')"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT_ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "500 models" in done.stdout
    assert "torch" not in done.stdout.splitlines()[-1]
    # of work, whatever else runs here: 0.4 on an idle machine; benchmarks/store.py measures
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


# -- damage ---------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["tfidf_hsgd/.old", "tfidf_hsgd/my data", ".old/tiny"])
def test_folders_that_no_pair_can_have_do_not_stop_the_list(store: Store, folder: str) -> None:
    entry = fill(store, [0.5])[0]
    odd = store.layout.weights / folder
    odd.mkdir(parents=True)
    (odd / entry.path.name).write_bytes(entry.path.read_bytes())
    assert store.list() == [entry]


@pytest.mark.parametrize(
    "values",
    [
        {"validation": {"leaf_accuracy": 10**400}},
        {"seconds": 10**400},
        {"signatures": {"predict": {"batchable": "yes"}}},
        {"signatures": {"predict": {"bachable": True}}},
    ],
)
def test_a_damaged_entry_says_so_and_how_to_go_on(store: Store, values: Any) -> None:
    entry = fill(store, [0.5])[0]
    file = entry.run.folder / f"entry_{entry.version}.json"
    file.write_text(json.dumps({"format": 1, **values}))
    assert json.loads(run("list", "-o", "json").stdout)[0]["problem"]
    result = run("list", "--sort", "seconds")
    assert result.exit_code == 0
    assert "Remove the file" in result.stderr


def test_a_checkpoint_with_a_figure_that_no_float_holds(store: Store) -> None:
    entry = fill(store, [0.5])[0]
    (entry.run.folder / f"entry_{entry.version}.json").unlink()
    history = [{"seconds": 10**400}]
    entry.run.metrics.write_text(json.dumps({"info": {"history": history}}))
    assert store.get(entry.tag).info.problem


def test_a_checkpoint_that_is_a_link_to_itself_hides_no_other(store: Store) -> None:
    first, second = fill(store, [0.5, 0.9])
    first.path.unlink()
    first.path.symlink_to(first.path)
    assert {entry.version: bool(entry.bytes) for entry in store.list()} == {
        first.version: False, second.version: True
    }  # fmt: skip
    assert run("list").exit_code == 0


@pytest.mark.parametrize("content", ["[]", "nope", '{"a": 1}', '{"\\ud800": "2"}', "[" * 100_000])
def test_damaged_aliases_say_how_to_go_on(store: Store, content: str) -> None:
    high, low = fill(store, [0.9, 0.5])
    store.alias(high.tag, "production")
    other = store.save_model(FakeModel("other"), name="kept")
    (high.run.folder / "aliases.json").write_text(content)
    listed = run("list")
    assert "3 models" in listed.stdout
    assert listed.stderr.startswith(f"Warning: {high.run.folder / 'aliases.json'} is ")
    assert listed.stderr.count("Remove aliases.json and set the aliases again") == 1
    tag = "tfidf_hsgd_fake"
    for given in (
        ("get", f"{tag}:production"), ("delete", f"{low.tag}", "-y"), ("alias", f"{low.tag}", "p"),
        ("delete", f"{low.tag}", "-y", "--with-aliases"), ("alias", f"{tag}:p", "--remove"),
    ):  # fmt: skip
        refused(run(*given), "aliases.json", "Remove aliases.json")
    assert (store.get(f"{tag}:best").tag, store.get(tag).tag) == (high.tag, low.tag)
    assert store.get("tfidf_hsgd_other:kept") == other
    with pytest.raises(UserError, match=r"Remove aliases\.json"):
        store.save_model(FakeModel(), name="v1")
    assert len(store.list()) == 3


def test_a_damaged_entry_keeps_its_figures(store: Store, tmp_path: Path) -> None:
    high, low = fill(store, [0.9, 0.5])
    (high.run.folder / f"entry_{high.version}.json").write_text("{")
    assert store.get("tfidf_hsgd_fake:best").tag == high.tag
    listed = run("list", "--filter", "label=team")
    assert "no model fits" in listed.stdout
    assert f"Warning: {high.tag}: " in listed.stderr
    refused(run("get", "tfidf_hsgd_fake:mine"), "Unknown version", "Remove the file")
    refused(run("export", str(high.tag), str(tmp_path)), "Remove the file")
    assert not list(tmp_path.glob("*.kttmodel"))
    with pytest.raises(UserError, match="Remove the file"):
        store.check_name("tfidf_hsgd", "fake", "first")  # which may be that one's
    said("delete", str(high.tag), "-y")
    assert store.list() == [low]
    store.check_name("tfidf_hsgd", "fake", "first")


def test_nothing_that_a_terminal_obeys_is_printed(store: Store) -> None:
    entry = fill(store, [0.5])[0]
    file = entry.run.folder / f"entry_{entry.version}.json"
    file.write_text(json.dumps({"format": 1, "name": "a\033[31m", "labels": {"b": "\033[2J"}}))
    assert "\033" not in said("list") + said("label", str(entry.tag), "c=1")


def test_a_file_system_without_locks_is_one_line(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = fill(store, [0.5])[0]

    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    for arguments in (("delete", str(entry.tag), "-y"), ("label", str(entry.tag), "a=b")):
        refused(run(*arguments), "No locks available", "KTT_ROOT")
    assert store.list() == [entry]


def test_a_folder_that_cannot_be_written_is_one_line(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = fill(store, [0.5])[0]

    def touch(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "touch", touch)
    refused(run("delete", str(entry.tag), "-y"), "Read-only file system", "writable place")
    assert store.list() == [entry]
