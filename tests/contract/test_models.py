"""What every registered model owes: each check runs over each of them."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import MODELS, model_class
from models.model import REFERENCE_ENDS
from tests.support.tiny import PATHS, tiny_rows, write_rows, write_tiny_dataset
from tests.support.tiny_encoder import tiny_encoder
from utils.common.checkpoints import read_checkpoint
from utils.common.config import build_config, load_config
from utils.common.errors import UserError
from utils.common.paths import PROJECT_ROOT, Layout
from utils.hierarchy.confidence import LevelMap
from utils.hierarchy.dataset import Dataset, Split
from utils.hierarchy.metrics import evaluate
from utils.hierarchy.tree import Hierarchy
from utils.inference.classifier import Classifier
from utils.inference.pipeline import Source
from utils.runner import DEFAULT_SIGNATURES, Runner
from utils.serving.monitor_client import rows_body

ODD_TEXTS = ["", " ", "wash", "żółć 猫 🙂", "\x00\x01", "x" * 5000, "play kids plastic", "١٢٣ नमस्ते"]

# The tiny encoder's weights are random: features of a frozen one tell nothing.
LEARNING: dict[str, Any] = {
    "epochs": 8, "encoder_lr": 3e-3, "classifier_lr": 3e-3, "frozen": False, "dropout": 0.2
}  # fmt: skip
NAMES_TAKEN = ("targets", "0", "1", "predicted", "confidence", "length")
LEVELS = (LevelMap(a=0.6, c=1.4, b=0.5), LevelMap(a=1.2, c=0.3, b=-0.2), LevelMap(a=0.9, b=0.1))
SIGMOIDS_ALONE = {"db_achmcnn", "db_ahmcnf"}  # without a softmax it takes more steps


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_tiny_dataset(Layout(tmp_path_factory.mktemp("contract")), "tiny")


def quick(name: str, encoder: Path, **values: Any) -> Any:
    """A configuration that trains in a second or two."""
    if name.startswith("db_"):
        values = {"encoder": str(encoder), "max_len": 16, "epochs": 2} | values
    else:
        values = {key: value for key, value in values.items() if key != "epochs"}
    return build_config(model_class(name).Config, values, name)


def train(name: str, dataset: Dataset, config: Any, seed: int = 0) -> Any:
    model = model_class(name)(dataset.hierarchy, config)
    for epoch in model.fit(dataset.train, dataset.val, epochs=None, seed=seed):
        model.info |= {"epoch": epoch.number, "epochs": epoch.total}
    depth = model.tree.depth
    # maps of levels as a larger validation split gives them: all that follows must follow them
    model.calibration = replace(model.calibration, levels=(LEVELS * depth)[:depth])
    return model


@pytest.fixture(scope="session", params=sorted(MODELS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def trained(name: str, dataset: Dataset, encoder: Path) -> Any:
    return train(name, dataset, quick(name, encoder))


def scores_of(model: Any, texts: list[str]) -> np.ndarray:
    return np.concatenate([scores for scores, _ in model.score_batches(texts)])


def test_name_and_configuration(name: str) -> None:
    cls = model_class(name)
    assert cls.name == name
    config = load_config(cls.Config, PROJECT_ROOT / "hyperparameters.json", name)
    assert config.display_name
    with pytest.raises(UserError, match="unknown key 'learning_rat'"):
        build_config(cls.Config, {"learning_rat": 1}, name)


def test_same_seed_same_scores_another_seed_others(
    name: str, trained: Any, dataset: Dataset, encoder: Path
) -> None:
    texts = dataset.test.texts
    again = train(name, dataset, quick(name, encoder))
    other = train(name, dataset, quick(name, encoder), seed=1)
    assert (scores_of(again, texts) == scores_of(trained, texts)).all()
    assert again.calibration == trained.calibration
    assert not np.allclose(scores_of(other, texts), scores_of(trained, texts), atol=1e-6)


def test_scores_have_one_of_the_two_shapes_and_are_finite(trained: Any) -> None:
    scores, features = zip(*trained.score_batches(ODD_TEXTS), strict=True)
    tree = trained.tree
    assert {part.shape[1] for part in scores} <= {tree.class_count, tree.level_sizes[-1]}
    assert np.isfinite(np.concatenate(scores)).all()
    assert np.isfinite(np.concatenate(features)).all()
    assert sum(map(len, scores)) == len(ODD_TEXTS)


def test_every_answer_is_a_path_where_rows_may_end(trained: Any, dataset: Dataset) -> None:
    found = trained.predict([*ODD_TEXTS, *dataset.test.texts])
    assert trained.hierarchy.check_codes(found.codes) is None
    assert "" not in {name for node in found.ends for name in trained.hierarchy.path(node)}
    assert ((found.confidence > 0) & (found.confidence <= 1)).all()
    assert len(trained.predict([])) == 0


def test_a_rows_answer_depends_on_its_text_alone(trained: Any, dataset: Dataset) -> None:
    texts = [*ODD_TEXTS, *dataset.test.texts]
    whole = scores_of(trained, texts)
    np.testing.assert_allclose(whole[::-1], scores_of(trained, texts[::-1]), atol=2e-5)
    for row in (0, 3, 9):
        np.testing.assert_allclose(whole[row], scores_of(trained, [texts[row]])[0], atol=2e-5)


def test_save_and_load_give_equal_scores_and_keep_no_place(
    name: str, trained: Any, dataset: Dataset, encoder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "best.pt"
    trained.save(path)
    again = model_class(name).from_checkpoint(path)
    texts = [*ODD_TEXTS, *dataset.test.texts]
    assert (scores_of(again, texts) == scores_of(trained, texts)).all()
    assert again.calibration == trained.calibration
    assert again.calibration.levels
    assert again.hierarchy.to_dict() == trained.hierarchy.to_dict()
    content = path.read_bytes()
    for place in (str(tmp_path), str(PROJECT_ROOT), str(encoder.parent), "cuda:0"):
        assert place.encode() not in content, place
    fresh = model_class(name)(trained.hierarchy, again.config)
    fresh.load(path)
    assert (scores_of(fresh, texts) == scores_of(trained, texts)).all()


def other_tree() -> dict[str, Any]:
    hierarchy, _ = Hierarchy.from_paths([["a", "b"]])
    return hierarchy.to_dict()


def test_numbers_in_a_checkpoint_cannot_lead_astray(
    name: str, trained: Any, tmp_path: Path
) -> None:
    """Indices that point outside would be followed into foreign memory by compiled code."""
    from utils.common.checkpoints import write_checkpoint

    path = tmp_path / "best.pt"
    trained.save(path)
    arrays, meta = read_checkpoint(path)
    for array in [key for key, value in arrays.items() if value.dtype.kind == "i"]:
        for wrong in (-100_000, 10**8):
            changed = {**arrays, array: np.full_like(arrays[array], wrong)}
            write_checkpoint(path, changed, meta)
            if array.endswith("indices"):
                with pytest.raises(UserError):
                    model_class(name).from_checkpoint(path)
            else:  # wrong answers at worst
                with contextlib.suppress(UserError):
                    model_class(name).from_checkpoint(path).predict(ODD_TEXTS)


def test_checkpoints_of_others_and_damaged_ones_are_refused(
    name: str, trained: Any, tmp_path: Path
) -> None:
    from utils.common.checkpoints import write_checkpoint

    path = tmp_path / "best.pt"
    trained.save(path)
    arrays, meta = read_checkpoint(path)
    other = model_class(next(n for n in sorted(MODELS) if n != name))
    with pytest.raises(UserError, match="not of"):
        other.from_checkpoint(path)
    changes: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, meta),
        (arrays, {**meta, "state": {}}),
        (arrays, {**meta, "hierarchy": {}}),
        (arrays, {**meta, "hierarchy": other_tree()}),
        *[(arrays, {**meta, "temperature": value}) for value in (0, -1, float("nan"), "x")],
        *[(arrays, {**meta, "calibration": value}) for value in ("x", [[1, 1, 0]], [[1]] * 3)],
        (arrays, {k: v for k, v in meta.items() if k != "config"}),
    ]
    for changed_arrays, changed_meta in changes:
        write_checkpoint(path, changed_arrays, changed_meta)
        with pytest.raises(UserError) as caught:
            model_class(name).from_checkpoint(path)
        assert "\n" not in caught.value.message


def test_going_on_after_an_epoch_equals_never_having_stopped(
    name: str, dataset: Dataset, encoder: Path, tmp_path: Path
) -> None:
    cls = model_class(name)
    if not cls.resumable:
        pytest.skip("trains in one go")
    config = quick(name, encoder, epochs=3)
    whole = train(name, dataset, config)
    model = cls(dataset.hierarchy, config)
    for epoch in model.fit(dataset.train, dataset.val, epochs=None, seed=0):
        model.save(tmp_path / f"{epoch.number}.pt")
        if epoch.number == 1:
            break
    again = cls.from_checkpoint(tmp_path / "1.pt", resumable=True)
    numbers = [e.number for e in again.fit(dataset.train, dataset.val, epochs=None, seed=0)]
    assert numbers == [2, 3]
    texts = dataset.test.texts
    assert (scores_of(again, texts) == scores_of(whole, texts)).all()


def test_the_exported_classifier_answers_like_the_model(
    trained: Any, dataset: Dataset, tmp_path: Path
) -> None:
    trained.export_classifier(tmp_path / "classifier")
    classifier = Classifier.load(tmp_path / "classifier")
    texts = [*ODD_TEXTS, *dataset.test.texts, *dataset.train.texts]
    found = trained.predict(texts)
    answers = classifier.answer(texts)
    for row, answer in enumerate(answers):
        assert answer.path == trained.hierarchy.path(int(found.ends[row])), texts[row]
        assert answer.confidence == pytest.approx(float(found.confidence[row]), abs=1e-3)
        assert [name for name, _ in answer.levels] == list(answer.path)
        sure = found.level_probs[row, : len(answer.path)]
        np.testing.assert_allclose([prob for _, prob in answer.levels], sure, atol=1e-3)
        assert answer.alternatives[0] == (answer.path, answer.confidence)
    assert (
        json.loads((tmp_path / "classifier" / "manifest.json").read_text())["model"] == trained.name
    )


def test_a_runner_answers_like_the_model(name: str, trained: Any, dataset: Dataset) -> None:
    source = Source(
        hierarchy=trained.hierarchy, tree=trained.tree, calibration=trained.calibration,
        encode=trained.encode, run=trained.run, checkpoint="", description="",
    )  # fmt: skip
    split = dataset.test
    found = trained.test(split)
    paths = [trained.hierarchy.path(int(end)) for end in found.ends]
    with Runner(name, lambda: source, signatures=DEFAULT_SIGNATURES, max_batch_size=8) as runner:
        assert runner.predict.run(split.texts) == paths
        assert [runner.predict.run(text) for text in split.texts[:5]] == paths[:5]
        answers = runner.classify.run(split.texts)
        assert [answer.path for answer in answers] == paths
        confidence = [answer.confidence for answer in answers]
        np.testing.assert_allclose(confidence, found.confidence, atol=1e-4)
        np.testing.assert_allclose(
            runner.run(split.texts), scores_of(trained, split.texts), atol=2e-5
        )
        assert len(runner.predict.run(ODD_TEXTS)) == len(ODD_TEXTS)


def test_the_reference_set_has_its_columns(trained: Any, dataset: Dataset) -> None:
    table = trained.gen_reference_set(dataset.test)
    labels = trained.score_columns()
    features = [column for column in table.column_names[1:] if column.isdigit()]
    assert table.column_names == ["targets", *features, *labels, *REFERENCE_ENDS]
    assert features == [str(k) for k in range(len(features))]
    assert len(features) >= 1
    wanted = [" > ".join(PATHS[k]) for k in range(len(PATHS))]
    assert sorted(labels) == sorted(wanted)
    assert set(table["targets"].to_pylist()) <= set(wanted)
    probs = np.stack([table[label].to_numpy() for label in labels], axis=1)
    assert (probs.sum(axis=1) <= 1 + 1e-4).all()
    np.testing.assert_allclose(probs.max(axis=1), table["confidence"].to_numpy(), atol=1e-6)
    found = trained.test(dataset.test)
    answers = [trained.hierarchy.label(node) for node in found.ends]
    assert table["predicted"].to_pylist() == answers
    assert answers != table["targets"].to_pylist()  # else this would not tell them apart
    np.testing.assert_allclose(table["confidence"].to_numpy(), found.confidence, atol=1e-6)
    assert table["length"].to_pylist() == [len(text) for text in dataset.test.texts]


def test_rows_for_the_monitor_are_those_of_the_reference_set(
    trained: Any, dataset: Dataset, tmp_path: Path
) -> None:
    trained.export_classifier(tmp_path / "classifier", monitoring=True)
    classifier = Classifier.load(tmp_path / "classifier")
    assert classifier.service.monitoring
    table = trained.gen_reference_set(dataset.test)
    texts, scores = dataset.test.texts, trained.score_columns()
    answers, observed = classifier.observe(texts)
    names = [f"{row:032x}" for row in range(len(texts))]
    rows = [(observed, row, name) for row, name in enumerate(names)]
    body = json.loads(rows_body(rows, [json.dumps(label) for label in classifier.labels]))
    sent = dict(zip(body["columns"], zip(*body["data"], strict=True), strict=True))
    assert list(sent["targets"]) == table["predicted"].to_pylist()
    assert list(sent["length"]) == table["length"].to_pylist()
    assert list(sent["id"]) == names
    features = [column for column in table.column_names if column.isdecimal()]
    assert body["columns"] == ["targets", *features, "confidence", "length", "scores", "id"]
    for column in (*features, "confidence"):
        np.testing.assert_allclose(sent[column], table[column].to_numpy(), atol=1e-3)
    for row, best in enumerate(sent["scores"]):
        assert len(best) == min(5, len(scores))
        wanted = [table[scores[code]][row].as_py() for code, _ in best]
        np.testing.assert_allclose([prob for _, prob in best], wanted, atol=1e-3)
    ends = [trained.hierarchy.child_counts[node] > 0 for node in trained.test(dataset.test).ends]
    assert observed.stopped_early.tolist() == ends
    assert answers == classifier.answer(texts)


def test_classes_may_be_called_like_other_columns(name: str, layout: Layout, encoder: Path) -> None:
    paths = [(word,) for word in (*NAMES_TAKEN, "x") for _ in range(14)]
    texts = [f"{path[0]} text {row}" for row, path in enumerate(paths)]
    dataset = write_rows(layout, "odd", texts, paths)
    model = train(name, dataset, quick(name, encoder, epochs=1))
    table = model.gen_reference_set(dataset.test)
    assert len(set(table.column_names)) == len(table.column_names)
    scores = table.column_names[-len(NAMES_TAKEN) - 4 : -3]
    assert scores == [*(f"> {word}" for word in sorted(NAMES_TAKEN)), "x"]
    assert set(table["targets"].to_pylist()) == {*NAMES_TAKEN, "x"}


@pytest.mark.parametrize(
    "paths",
    [
        [("only", leaf) for leaf in "abc"],
        [(root, "x", root) for root in "abc"],
        [("a",), ("a", "b"), ("a", "b", "c", "d", "e"), ("f", "b")],
        [("a",), ("b",)],
    ],
    ids=["one root", "single children", "five levels", "one level"],
)
def test_odd_trees(name: str, paths: list[tuple[str, ...]], layout: Layout, encoder: Path) -> None:
    rows = [path for path in paths for _ in range(14)]
    texts = [f"{' '.join(path)} wash {row}" for row, path in enumerate(rows)]
    dataset = write_rows(layout, "odd", texts, rows)
    model = train(name, dataset, quick(name, encoder, epochs=1))
    found = model.test(dataset.test)
    assert model.hierarchy.check_codes(found.codes) is None
    assert all(np.isfinite(value) for value in evaluate(found, dataset.test.codes).values())


def test_no_validation_rows(name: str, dataset: Dataset, encoder: Path) -> None:
    nothing = Split(texts=[], codes=dataset.val.codes[:0])
    model = model_class(name)(dataset.hierarchy, quick(name, encoder, epochs=1))
    epochs = list(model.fit(dataset.train, nothing, epochs=None, seed=0))
    assert epochs[-1].is_best
    assert model.calibration.temperature > 0


def test_learns_what_can_be_learned(name: str, layout: Layout, encoder: Path) -> None:
    dataset = write_rows(layout, "more", *tiny_rows(700))
    values = LEARNING if name.startswith("db_") else {}
    if name in SIGMOIDS_ALONE:
        values = values | {"epochs": 10, "train_minibatch_size": 8, "encoder_lr": 1e-3}
    model = train(name, dataset, quick(name, encoder, **values))
    figures = evaluate(model.test(dataset.test), dataset.test.codes)
    assert figures["leaf_accuracy"] > 0.9
    assert figures["coherence"] == 1.0


def test_the_folder_is_complete(name: str) -> None:
    folder = PROJECT_ROOT / "models" / name
    for file in ("__init__.py", f"{name}.py", "bentoml/__init__.py", "bentoml/svc_lts.py"):
        assert (folder / file).is_file(), file
