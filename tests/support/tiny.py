"""Small trees and datasets for tests, made by seed."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from utils.common.paths import Layout
from utils.hierarchy.dataset import Dataset, load_dataset, write_dataset
from utils.hierarchy.tree import Hierarchy, Ints

PATHS = (
    ("Beauty", "Equate", "Soap"),
    ("Beauty", "Equate", "Cream"),
    ("Beauty", "Brushes"),
    ("Health", "Equate", "Soap"),
    ("Health", "Equate"),
    ("Health", "Vitamins", "Iron"),
    ("Toys",),
)
"""Ragged, with equal names under two parents, and rows that end at an inner class."""

WORDS = {
    "Beauty": "pretty skin shine",
    "Health": "doctor body daily",
    "Toys": "play kids plastic",
    "Equate": "cheap store brand",
    "Brushes": "bristle handle wood",
    "Vitamins": "pill bottle dose",
    "Soap": "wash foam hands",
    "Cream": "smooth jar face",
    "Iron": "metal blood energy",
}


def tiny_rows(rows: int, seed: int = 0) -> tuple[list[str], list[tuple[str, ...]]]:
    """Texts that their paths can be told from, and the paths."""
    rng = np.random.default_rng(seed)
    texts, paths = [], []
    for row in range(rows):
        path = PATHS[row % len(PATHS)]
        words = [word for name in path for word in WORDS[name].split()]
        picked = rng.choice(words, size=min(len(words), 5), replace=False)
        texts.append(" ".join([*picked, str(rng.integers(1000))]))
        paths.append(path)
    return texts, paths


def columns_of(paths: list[tuple[str, ...]]) -> list[list[str | None]]:
    """Level columns of paths, null beyond a path's end."""
    depth = max(map(len, paths))
    return [
        [path[level] if level < len(path) else None for path in paths] for level in range(depth)
    ]


def write_rows(
    layout: Layout, name: str, texts: list[str], paths: list[tuple[str, ...]]
) -> Dataset:
    """Write a dataset whose rows go to the splits in turn: 5 train, 1 val, 1 test of each path."""
    hierarchy, codes = Hierarchy.from_paths(columns_of(paths))
    lists = [[int(code) for code in row if code >= 0] for row in codes]
    seen: dict[tuple[str, ...], int] = {}
    places: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for row, path in enumerate(paths):
        turn = seen[path] = seen.get(path, -1) + 1
        places[{5: "val", 6: "test"}.get(turn % 7, "train")].append(row)
    splits = {
        split: pa.table(
            {
                "name": pa.array([texts[row] for row in rows], pa.string()),
                "codes": pa.array([lists[row] for row in rows], pa.list_(pa.int32())),
            }
        )
        for split, rows in places.items()
    }
    write_dataset(layout, name, hierarchy, splits, {})
    return load_dataset(layout, name)


def write_tiny_dataset(layout: Layout, name: str, rows: int = 147, seed: int = 0) -> Dataset:
    """Write the ragged three-level dataset."""
    return write_rows(layout, name, *tiny_rows(rows, seed))


def random_tree(
    rng: np.random.Generator, depth: int = 3, roots: int = 3, rows: int = 200
) -> tuple[Hierarchy, Ints]:
    """A random ragged tree with repeated names, and rows over it."""
    paths = []
    for _ in range(rows):
        length = int(rng.integers(1, depth + 1))
        names = [f"n{rng.integers(roots)}", *(f"n{rng.integers(4)}" for _ in range(length - 1))]
        paths.append(tuple(names))
    return Hierarchy.from_paths(columns_of(paths))
