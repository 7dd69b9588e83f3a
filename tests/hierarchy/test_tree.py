"""The class tree."""

from __future__ import annotations

import json
import time

import numpy as np
import pyarrow as pa
import pytest

from tests.support.tiny import PATHS, columns_of, random_tree
from utils.common.errors import UserError
from utils.hierarchy.tree import Hierarchy, label_of


def brute_force_paths(columns: list[list[str | None]]) -> list[tuple[str, ...]]:
    return [tuple(name for name in row if name is not None) for row in zip(*columns, strict=True)]


def test_classes_are_paths_not_names() -> None:
    hierarchy, codes = Hierarchy.from_paths(columns_of(list(PATHS)))
    labels = {hierarchy.label(node) for node in range(hierarchy.class_count)}
    assert {"Beauty > Equate", "Health > Equate"} <= labels
    assert {"Beauty > Equate > Soap", "Health > Equate > Soap"} <= labels
    assert len(labels) == hierarchy.class_count == 3 + 4 + 4
    assert [hierarchy.path(node) for node in hierarchy.end_classes(codes)] == list(PATHS)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_parents_ancestors_children_agree_with_brute_force(seed: int, depth: int) -> None:
    # trap: level-local parents used as global ones are right for two levels, wrong from the third
    hierarchy, codes = random_tree(np.random.default_rng(seed), depth)
    every = {hierarchy.path(node): node for node in range(hierarchy.class_count)}
    assert len(every) == hierarchy.class_count
    for path, node in every.items():
        parent = every[path[:-1]] if len(path) > 1 else -1
        assert hierarchy.parents_global[node] == parent
        assert hierarchy.ancestors(node).tolist() == [
            every[path[:k]] for k in range(1, len(path) + 1)
        ]
        inner = [other for other in every if other[:-1] == path]
        assert sorted(hierarchy.path(child) for child in hierarchy.children(node)) == sorted(inner)
        assert hierarchy.child_counts[node] == len(inner)
        local = node - hierarchy.level_offsets[len(path) - 1]
        assert hierarchy.path_codes[node, len(path) - 1] == local
    assert sorted(hierarchy.leaves) == [
        n for n in range(hierarchy.class_count) if not len(hierarchy.children(n))
    ]
    assert set(hierarchy.terminals) == set(hierarchy.leaves) | set(hierarchy.end_classes(codes))
    assert hierarchy.check_codes(codes) is None


@pytest.mark.parametrize("seed", range(5))
def test_full_depth_lets_every_row_reach_the_last_level(seed: int) -> None:
    hierarchy, codes = random_tree(np.random.default_rng(seed), 4)
    tree = hierarchy.full_depth()
    extended = tree.extend_codes(codes, hierarchy)
    assert (extended >= 0).all()
    assert (np.where(codes >= 0, extended, -1) == codes).all(), "real codes keep their numbers"
    assert tree.check_codes(extended) is None
    assert len(tree.ending) == tree.level_sizes[-1] == len(hierarchy.terminals)
    assert sorted(tree.ending) == sorted(hierarchy.terminals)
    assert (tree.ending[tree.last_codes(codes, hierarchy)] == hierarchy.end_classes(codes)).all()
    assert len(tree.leaves) == tree.level_sizes[-1]
    assert tree.pseudo.sum() == tree.class_count - hierarchy.class_count
    for level, size in enumerate(hierarchy.level_sizes):
        assert not tree.pseudo[tree.level_slice(level)][:size].any()
        assert tree.pseudo[tree.level_slice(level)][size:].all()


def test_uniform_depth_needs_no_pseudo_classes() -> None:
    hierarchy, _ = Hierarchy.from_paths([["a", "a", "b"], ["x", "y", "x"]])
    tree = hierarchy.full_depth()
    assert tree.class_count == hierarchy.class_count
    assert not tree.pseudo.any()


def test_file_round_trip_hides_pseudo_classes(tmp_path) -> None:
    hierarchy, _ = Hierarchy.from_paths(columns_of(list(PATHS)))
    hierarchy.save(tmp_path / "hierarchy.json")
    again = Hierarchy.load(tmp_path / "hierarchy.json")
    assert again.to_dict() == hierarchy.to_dict()
    assert (again.terminal == hierarchy.terminal).all()
    values = json.loads((tmp_path / "hierarchy.json").read_text())
    assert values["level_offsets"] == [0, 3, 7, 11]
    assert values["parent_of"][0] == [0, 1, 2]
    assert "" not in values["classes"]
    assert "M" not in values
    assert "R" not in values


def test_reads_upstreams_file() -> None:
    values = {
        "classes": ["a", "b", "x", "y", "z"],
        "level_sizes": [2, 3],
        "level_offsets": [0, 2, 5],
        "parent_of": [[0, 1], [0, 0, 1]],
        "M": [[1, 0], [0, 1]],
        "R": [[[1]]],
    }
    hierarchy = Hierarchy.from_dict(values)
    assert [hierarchy.label(node) for node in hierarchy.terminals] == ["a > x", "a > y", "b > z"]


@pytest.mark.parametrize(
    "change",
    [
        {"level_sizes": [2, 2]},
        {"parent_of": [[0, 1]]},
        {"parent_of": [[0, 1], [0, 0, 2]]},
        {"parent_of": [[0, 1], [0, 0, -1]]},
        {"parent_of": [[0, 1], [0, 0, "x"]]},
        {"classes": ["a", "b", "x", "y", 3]},
        {"level_sizes": "ab"},
        {"terminal_inner": [99]},
        {"level_sizes": ["2", "3"]},
        {"level_sizes": [2.0, 3.0]},
        {"level_sizes": [True, 4]},
        {"level_sizes": [6, -1]},
        {"level_sizes": [10**30, 3]},
        {"level_sizes": [5, 0]},
        {"level_sizes": {"2": 3}},
        {"parent_of": [[0, 1], [0, 0, 1.5]]},
        {"parent_of": [[0, 1], [0, 0, "1"]]},
        {"parent_of": [[0, 1], [0, 0, True]]},
        {"parent_of": [[0, 1], [0, 0, None]]},
        {"parent_of": [[0, 1], [0, 0, [1]]]},
        {"parent_of": [[0, 1], [0, 0, 2**40]]},
        {"parent_of": [[0, 1], [0, 0, 10**30]]},
        {"parent_of": [[0, 1], "001"]},
        {"parent_of": {"0": [0, 1], "1": [0, 0, 1]}},
        {"terminal_inner": [-1]},
        {"terminal_inner": [2**70]},
        {"terminal_inner": [0.5]},
        {"terminal_inner": ["0"]},
        {"terminal_inner": 0},
        {"terminal_inner": {"0": 1}},
        {"classes": "abxyz"},
        {"classes": {"a": 1, "b": 1, "x": 1, "y": 1, "z": 1}},
        {"classes": ["a", "a", "x", "y", "z"]},
        {"classes": ["a", "b", "x", "x", "z"]},
        {"classes": ["a", "b", "x", "y", "z\nq"]},
        {"classes": ["a", "b", "x", "y", "z\r"]},
        {"classes": ["a", "b", "x", "y\x00", "z"]},
        {"classes": ["a\x85", "b", "x", "y", "z"]},
        {"classes": ["a", "b\u2028c", "x", "y", "z"]},
        {"classes": ["a", "b", "\ud800", "y", "z"]},
        {"classes": ["a", "b", "x\udfff", "y", "z"]},
        {"classes": ["a", "b", "", "y", "z"]},
        {"classes": ["a", "b", " ", "y", "z"]},
        {"classes": ["a", "b", None, "y", "z"]},
    ],
)
def test_refuses_what_is_no_hierarchy(change: dict) -> None:
    values = {
        "classes": ["a", "b", "x", "y", "z"],
        "level_sizes": [2, 3],
        "parent_of": [[0, 1], [0, 0, 1]],
    }
    assert Hierarchy.from_dict(values).class_count == 5
    with pytest.raises(UserError, match=r"hierarchy\.json is no hierarchy") as caught:
        Hierarchy.from_dict(values | change)
    assert caught.value.message.encode().isascii()


def test_a_chain_as_deep_as_its_classes_are_many_is_refused() -> None:
    depth = 3_000  # whose paths have depth * depth codes
    values = {
        "classes": ["a"] * depth,
        "level_sizes": [1] * depth,
        "parent_of": [[0]] * depth,
    }
    with pytest.raises(UserError, match="at most 64 levels"):
        Hierarchy.from_dict(values)
    allowed = {key: value[:64] for key, value in values.items()}
    assert Hierarchy.from_dict(allowed).full_depth().depth == 64


def test_equal_names_under_two_parents_are_two_classes() -> None:
    values = {"classes": ["a", "b", "x", "x"], "level_sizes": [2, 2], "parent_of": [[0, 1], [0, 1]]}
    assert Hierarchy.from_dict(values).label(3) == "b > x"


@pytest.mark.parametrize("values", [None, 3, [], "x", {}])
def test_refuses_other_json(values: object) -> None:
    with pytest.raises(UserError, match="no hierarchy"):
        Hierarchy.from_dict(values)


def test_a_gap_in_a_path_is_refused() -> None:
    with pytest.raises(ValueError, match="gap"):
        Hierarchy.from_paths([["a", "a"], [None, "x"], ["q", "q"]])
    with pytest.raises(ValueError, match="gap"):
        Hierarchy.from_paths([["a", None], ["x", None]])


def test_wrong_codes_are_found() -> None:
    hierarchy, codes = Hierarchy.from_paths([["a", "a", "b"], ["x", "y", "x"]])
    assert hierarchy.check_codes(codes) is None
    for wrong in ([1, 0], [0, -1], [0, 3], [2, 0], [-1, -1], [-1, 0]):
        changed = codes.copy()
        changed[1] = wrong
        assert hierarchy.check_codes(changed) == 1, wrong


def test_labels_are_unique_whatever_the_names() -> None:
    paths = [("a > b",), ("a", "b"), ("a >", "b"), ("a", "> b"), ("a\\", "b"), ("a\\ > b",)]
    assert len({label_of(path) for path in paths}) == len(paths)


def test_ten_thousand_classes_from_a_million_rows_take_seconds(rng: np.random.Generator) -> None:
    rows = 1_000_000
    columns = [pa.array(rng.integers(0, n, rows).astype(str)) for n in (20, 25, 19)]
    start = time.process_time()  # not of whatever else runs here
    hierarchy, codes = Hierarchy.from_paths(columns)
    tree = hierarchy.full_depth()
    tree.extend_codes(codes, hierarchy)
    assert hierarchy.class_count == 20 + 500 + 9500
    assert time.process_time() - start < 20
    assert len(json.dumps(hierarchy.to_dict())) < 1_000_000, "nothing quadratic is written"
