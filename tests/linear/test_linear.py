"""TF-IDF features, fitting of many classifiers, the scorer, and the two models made of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import SGDClassifier

from models import model_class
from models.tfidf_hsgd.tfidf_hsgd import classifier_columns, sibling_families
from utils.common.config import config_to_dict
from utils.common.errors import UserError
from utils.hierarchy.dataset import Split
from utils.hierarchy.tree import Hierarchy
from utils.linear import scorer as linear
from utils.linear import sgd
from utils.linear.scorer import POOLED_FEATURES, Paths, TfidfScorer, pool
from utils.linear.sgd import Family, SgdSettings, fit_families
from utils.linear.sgd_kernel import LOSSES, descend
from utils.linear.tfidf import TfidfFeatures, TfidfSettings

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("tfidf_lsgd", "tfidf_hsgd")
# Three levels; equal names under different parents, an only child, rows ending at inner nodes.
PATHS: list[tuple[str, ...]] = [
    ("Health", "Equate", "Pills"),
    ("Health", "Equate", "Drops"),
    ("Health", "Other", "Pills"),
    ("Beauty", "Equate", "Cream"),
    ("Beauty", "Equate", "Drops"),
    ("Beauty", "Equate"),
    ("Beauty", "Other"),
    ("Toys", "Blocks", "Wood"),
    ("Garden",),
]


def make_rows(
    rng: np.random.Generator, rows: int, paths: list[tuple[str, ...]] = PATHS
) -> tuple[Hierarchy, Split]:
    """Texts of words that belong to the nodes of their path, with noise."""
    ends = np.concatenate([np.arange(len(paths)), rng.integers(len(paths), size=rows)])
    texts = []
    for end in ends:
        nodes = [".".join(paths[end][: h + 1]) for h in range(len(paths[end]))]
        known = [f"w{abs(hash_of(node))}x{rng.integers(4)}" for node in nodes for _ in range(3)]
        noise = [f"noise{rng.integers(60)}" for _ in range(4)]
        texts.append(" ".join(rng.permutation([*known, *noise])))
    depth = max(map(len, paths))
    columns = [[paths[e][h] if h < len(paths[e]) else None for e in ends] for h in range(depth)]
    tree, codes = Hierarchy.from_paths(columns)
    return tree, Split(texts=texts, codes=codes)


def hash_of(text: str) -> int:
    """A hash that is the same in every process."""
    return int.from_bytes(text.encode(), "big") % 1_000_003


def trained(name: str, tree: Hierarchy, train: Split, seed: int = 0, **keys: Any) -> Any:
    cls = model_class(name)
    model = cls(tree, cls.Config(**keys))
    list(model.fit(train, train.take(slice(0, 0)), epochs=None, seed=seed))
    return model


# -- features -----------------------------------------------------------------------------


def random_texts(rng: np.random.Generator, rows: int = 60) -> list[str]:
    return [
        " ".join(f"word{n}" for n in rng.integers(30, size=rng.integers(0, 15)))
        for _ in range(rows)
    ]


@pytest.mark.parametrize("min_df", [1, 3])
def test_word_features_equal_scikit_learns(rng: np.random.Generator, min_df: int) -> None:
    texts, more = random_texts(rng), random_texts(rng)
    settings = TfidfSettings(stemmer="none", word_ngrams=3, min_df=min_df)
    features, matrix = TfidfFeatures.learn(texts, settings)
    reference = TfidfVectorizer(ngram_range=(1, 3), min_df=min_df, sublinear_tf=True)
    expected = reference.fit_transform(texts)
    assert matrix.shape == expected.shape
    # Columns are in another order: what counts is which rows are alike.
    np.testing.assert_allclose(
        (matrix @ matrix.T).toarray(), (expected @ expected.T).toarray(), atol=1e-5
    )
    here, there = features.transform(more), reference.transform(more)
    np.testing.assert_allclose(
        (here @ matrix.T).toarray(), (there @ expected.T).toarray(), atol=1e-5
    )


def test_character_features_are_those_within_words() -> None:
    settings = TfidfSettings(stemmer="none", word_ngrams=1, char_ngrams=4, char_ngrams_from=2)
    texts = ["red shoe", "reds shoes red", "blue"]
    features, matrix = TfidfFeatures.learn(texts, settings)
    reference = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    expected = reference.fit_transform(texts)
    assert features.chars is not None
    # scikit-learn adds n-grams of words shorter than n; there are none here.
    assert features.chars.grams == sorted(reference.get_feature_names_out())
    own = matrix[:, len(features.words) :]
    np.testing.assert_allclose(
        (own @ own.T).toarray() * 2, (expected @ expected.T).toarray(), atol=1e-5
    )
    typo = features.transform(["shooes"])
    assert (typo @ matrix.T).toarray()[0, 1] > 0.1  # no word in common, but most characters


@pytest.mark.parametrize("chars", [0, 4])
def test_transform_gives_the_training_matrix(rng: np.random.Generator, chars: int) -> None:
    texts = [*random_texts(rng), "", "!!!"]
    features, matrix = TfidfFeatures.learn(texts, TfidfSettings(min_df=2, char_ngrams=chars))
    assert abs(matrix - features.transform(texts)).max() < 1e-6
    norms = np.sqrt(matrix.multiply(matrix).sum(axis=1)).A1
    np.testing.assert_allclose(norms[norms > 0], 1, rtol=1e-5)
    assert norms[-1] == 0
    assert matrix.dtype == np.float32


def test_max_features_raises_min_df(rng: np.random.Generator) -> None:
    texts = random_texts(rng, 300)
    features, matrix = TfidfFeatures.learn(texts, TfidfSettings(max_features=100))
    assert 20 < features.feature_count <= 100
    assert np.bincount(matrix.indices).min() > 1


# -- fitting ------------------------------------------------------------------------------


def blobs(rng: np.random.Generator, rows: int, classes: int) -> tuple[sp.csr_matrix, np.ndarray]:
    labels = np.concatenate([np.arange(classes), rng.integers(classes, size=rows - classes)])
    dense = rng.random((rows, 3 * classes)) * (rng.random((rows, 3 * classes)) < 0.2)
    dense[np.arange(rows), labels] += 1
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    return sp.csr_matrix(dense.astype(np.float32)), labels


def whole(labels: np.ndarray, classes: int) -> Family:
    return Family(rows=np.arange(len(labels)), labels=labels, columns=np.arange(classes))


@pytest.mark.parametrize("classes", [2, 3, 40, 100])
def test_many_classes_are_fitted_in_chunks(rng: np.random.Generator, classes: int) -> None:
    matrix, labels = blobs(rng, 12 * classes, classes)
    weights, intercepts = fit_families(
        matrix, [whole(labels, classes)], classes, SgdSettings(), seed=0
    )
    scores = matrix @ weights.T.toarray() + intercepts
    assert (scores.argmax(axis=1) == labels).mean() > 0.95
    if classes == 2:
        np.testing.assert_allclose(scores[:, 0], -scores[:, 1], rtol=1e-5)


def test_threads_and_repetition_do_not_change_weights(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix, labels = blobs(rng, 800, 100)
    settings = SgdSettings()
    found = []
    for threads, seed in ((1, 0), (4, 0), (4, 1)):
        monkeypatch.setattr(sgd, "_thread_count", lambda threads=threads: threads)
        found.append(fit_families(matrix, [whole(labels, 100)], 100, settings, seed=seed))
    assert abs(found[0][0] - found[1][0]).max() == 0
    np.testing.assert_array_equal(found[0][1], found[1][1])
    assert abs(found[0][0] - found[2][0]).max() > 0


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_weights_are_exactly_scikit_learns(
    rng: np.random.Generator, loss: str, average: bool
) -> None:
    """Weights and passes, class by class; steps are long enough that round-off would grow."""
    matrix, labels = blobs(rng, 300, 11)
    boosts = np.linspace(1, 3, 11)
    settings = {"loss": loss, "alpha": 1e-4, "max_iter": 200, "tol": 1e-3, "average": average}
    found = descend(matrix, labels, np.arange(11), boosts, seed=7, **settings)
    for label in range(11):
        alone = SGDClassifier(random_state=7, class_weight={-1: 1, 1: boosts[label]}, **settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            alone.fit(matrix, np.where(labels == label, 1, -1))
        assert found.epochs[label] == alone.n_iter_
        scale = abs(alone.coef_).max()
        np.testing.assert_allclose(found.weights[label], alone.coef_[0], atol=1e-6 * scale)
        np.testing.assert_allclose(found.intercepts[label], alone.intercept_[0], rtol=1e-4)


@pytest.mark.parametrize("max_iter", [1, 4, 1000])
@pytest.mark.parametrize("power", [0.0, 1.0])
@pytest.mark.parametrize("classes", [2, 5, 150])
def test_families_are_exactly_scikit_learns(
    rng: np.random.Generator, classes: int, power: float, max_iter: int
) -> None:
    """Two classes are one problem; 150 are several blocks whose classes stop at different times."""
    matrix, labels = blobs(rng, 4 * classes, classes)
    settings = SgdSettings(class_weight_power=power, max_iter=max_iter)
    weights, intercepts = fit_families(matrix, [whole(labels, classes)], classes, settings, seed=3)
    for label in range(1, classes, max(classes // 6, 1)):
        boost = (len(labels) / classes / (labels == label).sum()) ** power
        alone = SGDClassifier(
            loss="modified_huber", average=True, random_state=3, max_iter=max_iter,
            class_weight={-1: 1, 1: boost},
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            alone.fit(matrix, np.where(labels == label, 1, -1))
        scale = abs(alone.coef_).max()
        np.testing.assert_allclose(
            weights[label].toarray()[0], alone.coef_[0], atol=1e-6 * scale, rtol=1e-5
        )
        np.testing.assert_allclose(intercepts[label], alone.intercept_[0], rtol=1e-4)


@pytest.mark.parametrize(
    ("loss", "alpha", "advice"),
    [("squared_hinge", 1e-30, "Raise alpha"), ("modified_huber", 1e300, "Lower alpha")],
)
def test_overflow_is_told(rng: np.random.Generator, loss: str, alpha: float, advice: str) -> None:
    matrix, labels = blobs(rng, 60, 3)
    settings = SgdSettings(loss=loss, alpha=alpha)
    with pytest.raises(UserError, match=advice):
        fit_families(matrix * 1e15, [whole(labels, 3)], 3, settings, seed=0)


def test_the_kernel_compiles_without_a_place_for_its_cache(tmp_path: Path) -> None:
    """In a folder that is no package and cannot hold a cache, and with the cache of a user."""
    shutil.copy(ROOT / "utils" / "linear" / "sgd_kernel.py", tmp_path / "kernel.py")
    (tmp_path / "__pycache__").write_text("in the way")
    (tmp_path / "home").mkdir()
    code = "import kernel; kernel.shuffle(kernel.np.arange(3, dtype='i4'), 1)"
    home = tmp_path / "home"
    for cache in (home, tmp_path / "__pycache__"):
        environment = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(cache)}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path)
    assert list(home.rglob("*.nbi"))


def test_a_class_without_rows_never_wins(rng: np.random.Generator) -> None:
    matrix, labels = blobs(rng, 90, 3)
    family = Family(rows=np.arange(90), labels=labels + 1, columns=np.arange(4))
    weights, intercepts = fit_families(matrix, [family], 4, SgdSettings(), seed=0)
    scores = matrix @ weights.T.toarray() + intercepts
    assert (scores.argmax(axis=1) > 0).all()


def test_only_the_largest_weights_are_kept_when_there_are_too_many(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix, labels = blobs(rng, 400, 40)
    full, _ = fit_families(matrix, [whole(labels, 40)], 40, SgdSettings(), seed=0)
    monkeypatch.setattr(sgd, "_MAX_WEIGHTS", 40 * 10)
    small, _ = fit_families(matrix, [whole(labels, 40)], 40, SgdSettings(), seed=0)
    assert np.diff(small.indptr).max() == 10
    kept = abs(full.toarray())
    kept.sort(axis=1)
    np.testing.assert_allclose(abs(small).sum(axis=1).A1, kept[:, -10:].sum(axis=1), rtol=1e-5)


def test_families_equal_one_classifier_per_node(rng: np.random.Generator) -> None:
    """The trap: global indices of nodes meet level-local codes of labels."""
    ragged, split = make_rows(rng, 400)
    tree = ragged.full_depth()
    codes = tree.extend_codes(split.codes, ragged)
    _, matrix = TfidfFeatures.learn(split.texts, TfidfSettings())
    column = classifier_columns(tree)
    families = list(sibling_families(tree, codes))
    assert {len(family.columns) for family in families} >= {2, 3, 4}
    seen = np.concatenate([family.columns for family in families])
    np.testing.assert_array_equal(np.sort(seen), np.arange(column.max() + 1))
    weights, intercepts = fit_families(matrix, families, len(seen), SgdSettings(), seed=0)
    decisions = matrix @ weights.T.toarray() + intercepts
    for node in [-1, *np.flatnonzero(tree.child_counts > 1)]:
        level = 0 if node < 0 else int(tree.levels[node]) + 1
        classes = codes[:, level] + tree.level_offsets[level]
        children = np.unique(classes[tree.parents_global[classes] == node])
        rows = np.isin(classes, children)
        alone = SGDClassifier(loss="modified_huber", average=True, random_state=0)
        alone.fit(matrix[rows], classes[rows])
        mine = children[decisions[rows][:, column[children]].argmax(axis=1)]
        assert (mine == alone.predict(matrix[rows])).mean() > 0.98
        assert (mine == classes[rows]).mean() > 0.95


# -- models -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_models_learn_ragged_trees_with_repeated_names(rng: np.random.Generator, name: str) -> None:
    tree, split = make_rows(rng, 900)
    model = trained(name, tree, split.take(slice(0, 700)))
    test = split.take(slice(700, None))
    scores, features = model.scorer.score(test.texts)
    assert scores.shape == (len(test), model.tree.level_sizes[-1])
    assert features.shape == (len(test), POOLED_FEATURES)
    assert scores.dtype == features.dtype == np.float32
    truth = model.tree.last_codes(test.codes, tree)
    assert (scores.argmax(axis=1) == truth).mean() > 0.9


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "paths",
    [
        [("A",), ("B",)],
        [("A", "x"), ("A", "y")],
        [("A", "x", "1"), ("A", "x", "2"), ("A", "x", "3")],
        [("A", "only", "1"), ("B", "only", "1"), ("C",)],
        [("A", "b", "c", "d", "e"), ("A", "b"), ("F",)],
    ],
    ids=["one level", "first level of one class", "chain", "only children", "five levels"],
)
def test_odd_trees(rng: np.random.Generator, name: str, paths: list[tuple[str, ...]]) -> None:
    tree, split = make_rows(rng, 200, paths)
    model = trained(name, tree, split)
    scores, _ = model.scorer.score(split.texts)
    truth = model.tree.last_codes(split.codes, tree)
    assert (scores.argmax(axis=1) == truth).mean() > 0.95


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chars", [0, 4])
def test_state_and_files_give_equal_scores(
    rng: np.random.Generator, name: str, chars: int, tmp_path: Path
) -> None:
    tree, split = make_rows(rng, 200)
    scorer = trained(name, tree, split, char_ngrams=chars).scorer
    arrays, meta = scorer.state()
    assert all(array.dtype != object for array in arrays.values())
    again = TfidfScorer.from_state(arrays, json.loads(json.dumps(meta)))
    texts = [*split.texts[:20], "", "entirely unknown", "żółć 鞋子"]
    expected = scorer.score(texts)
    for left, right in zip(expected, again.score(texts), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("name", MODELS)
def test_a_row_does_not_depend_on_its_batch(
    rng: np.random.Generator, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, split = make_rows(rng, 200)
    scorer = trained(name, tree, split).scorer
    texts = [*split.texts[:30], "", "noise1 unknown", " ".join(split.texts)]
    scores, features = scorer.score(texts)
    back, _ = scorer.score(texts[::-1])
    np.testing.assert_array_equal(scores, back[::-1])
    for row, text in enumerate(texts):
        alone, pooled = scorer.score([text])
        np.testing.assert_array_equal(scores[row], alone[0])
        np.testing.assert_array_equal(features[row], pooled[0])
    monkeypatch.setattr(linear, "_MAX_BATCH", 7)
    np.testing.assert_array_equal(scores, scorer.score(texts)[0])


@pytest.mark.parametrize("name", MODELS)
def test_texts_without_a_known_word_score_the_intercepts(
    rng: np.random.Generator, name: str
) -> None:
    tree, split = make_rows(rng, 100)
    scorer = trained(name, tree, split).scorer
    scores, features = scorer.score(["", "   ", "qqq zzz", "😀"])
    assert np.isfinite(scores).all()
    assert (scores == scores[0]).all()
    assert (features == 0).all()
    assert scorer.score([])[0].shape == (0, scores.shape[1])


@pytest.mark.parametrize("name", MODELS)
def test_same_seed_same_model(rng: np.random.Generator, name: str) -> None:
    tree, split = make_rows(rng, 200)
    first, again, other = (trained(name, tree, split, seed=s).scorer for s in (0, 0, 1))
    assert abs(first.weights - again.weights).max() == 0
    assert abs(first.weights - other.weights).max() > 0


def test_training_needs_words(rng: np.random.Generator) -> None:
    tree, split = make_rows(rng, 50)
    with pytest.raises(UserError, match="min_df"):
        trained("tfidf_lsgd", tree, split, min_df=1000)
    with pytest.raises(UserError, match="empty"):
        trained("tfidf_lsgd", tree, split.take(slice(0, 0)))


# -- scores and pooled features -----------------------------------------------------------


def test_pooling_means_groups_of_columns_whatever_the_rows(rng: np.random.Generator) -> None:
    """The trap: groups clipped by the number of rows."""
    matrix = sp.random(3, 1000, density=0.1, format="csr", dtype=np.float32, rng=rng)
    pooled = pool(matrix, 64)
    assert pooled.shape == (3, 64)
    expected = [matrix.toarray()[:, group::64].mean(axis=1) for group in range(64)]
    np.testing.assert_allclose(pooled, np.stack(expected, axis=1), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_feature_rows_are_never_densified(
    rng: np.random.Generator, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, split = make_rows(rng, 200)
    scorer = trained(name, tree, split).scorer
    width = scorer.features.feature_count
    dense = sp.csr_matrix.toarray

    def refuse(matrix: sp.csr_matrix, *args: Any, **kwargs: Any) -> Any:
        assert matrix.shape[1] != width
        return dense(matrix, *args, **kwargs)

    monkeypatch.setattr(sp.csr_matrix, "toarray", refuse)
    monkeypatch.setattr(sp.csr_matrix, "todense", refuse)
    scorer.score(split.texts)


def test_sparse_and_dense_weights_score_alike(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, split = make_rows(rng, 200)
    scorer = trained("tfidf_lsgd", tree, split).scorer
    monkeypatch.setattr(linear, "_DENSE_CELLS", 0)
    sparse = TfidfScorer(scorer.features, scorer.weights, scorer.intercepts)
    assert sp.issparse(sparse._by_feature)
    assert not sp.issparse(scorer._by_feature)
    np.testing.assert_allclose(
        scorer.score(split.texts)[0], sparse.score(split.texts)[0], rtol=1e-4, atol=1e-5
    )


def test_path_scores_are_products_with_none_of_them_as_an_option() -> None:
    """Two families, their columns not side by side; the third path has only the first factor."""
    along = sp.csr_matrix(np.array([[1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 1, 0]], dtype=np.float32))
    paths = Paths(along=along, families=np.array([-1, 5, -1, 5], dtype=np.int32))
    decisions = np.array([[0.5, -3, -0.5, -2], [300, -300, 0, 1]], dtype=np.float32)
    scores = paths.score(decisions)
    none = np.exp(-2)
    top = np.exp(1) / (np.exp(1) + np.exp(-1) + none)
    below = np.array([np.exp(-6), np.exp(-4)]) / (np.exp(-6) + np.exp(-4) + none)
    np.testing.assert_allclose(np.exp(scores[0, :2]), top * below, rtol=1e-4)
    assert np.isfinite(scores).all()


def test_serving_needs_no_scikit_learn(rng: np.random.Generator, tmp_path: Path) -> None:
    tree, split = make_rows(rng, 60)
    trained("tfidf_hsgd", tree, split).export_classifier(tmp_path / "classifier")
    code = (
        "import sys, pathlib; from utils.inference.classifier import Classifier;"
        "Classifier.load(pathlib.Path(sys.argv[1])).answer(['noise1']);"
        "heavy = {'sklearn', 'numba', 'torch', 'tokenizers', 'pandas', 'pyarrow', 'onnx'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path / "classifier")]
    subprocess.run(command, check=True, env=environment)


@pytest.mark.parametrize("name", MODELS)
def test_the_file_of_hyperparameters_spells_out_the_defaults(name: str) -> None:
    block = json.loads((ROOT / "hyperparameters.json").read_text())[name]
    defaults = config_to_dict(model_class(name).Config())
    assert block == {**defaults, "display_name": block["display_name"]}
