"""Reading intermediate datasets."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.tiny import tiny_rows, write_tiny_dataset
from utils.common.errors import UserError
from utils.common.paths import Layout
from utils.hierarchy.dataset import code_matrix, load_dataset


def test_round_trip(layout: Layout) -> None:
    dataset = write_tiny_dataset(layout, "tiny")
    texts, paths = tiny_rows(147)
    want = dict(zip(texts, paths, strict=True))
    hierarchy = dataset.hierarchy
    assert sum(len(split) for split in dataset.splits().values()) == len(texts)
    for split in dataset.splits().values():
        for text, node in zip(split.texts, hierarchy.end_classes(split.codes), strict=True):
            assert hierarchy.path(node) == want[text]
    assert load_dataset(layout, "tiny").fingerprint == dataset.fingerprint
    assert write_tiny_dataset(layout, "other", seed=1).fingerprint != dataset.fingerprint


def no_text(rows: int) -> pa.Array:
    """Strings by their type, of bytes that are none."""
    halves = pa.array([b"\xed\xa0\x80"] * rows, pa.binary())
    return pa.Array.from_buffers(pa.string(), rows, halves.buffers())


def test_missing_and_damaged_datasets_are_one_line(layout: Layout) -> None:
    write_tiny_dataset(layout, "tiny")
    with pytest.raises(
        UserError,
        match="'tinny'. Did you mean 'tiny'.*adapt.py flat.*py sql tinny or adapt.py demo tinny",
    ):
        load_dataset(layout, "tinny")
    path = layout.dataset("tiny") / "val.parquet"
    table = pq.read_table(path)
    damages = {
        "not parquet": lambda: path.write_bytes(b"x" * 100),
        "no codes": lambda: pq.write_table(table.drop_columns("codes"), path),
        "codes of other trees": lambda: pq.write_table(
            table.set_column(1, "codes", pa.array([[2, 2, 2]] * len(table))), path
        ),
        "too deep": lambda: pq.write_table(
            table.set_column(1, "codes", pa.array([[0, 0, 0, 0]] * len(table))), path
        ),
        "no path": lambda: pq.write_table(
            table.set_column(1, "codes", pa.array([[]] * len(table), pa.list_(pa.int32()))), path
        ),
        "null text": lambda: pq.write_table(
            table.set_column(0, "name", pa.nulls(len(table), pa.string())), path
        ),
        "not UTF-8": lambda: pq.write_table(table.set_column(0, "name", no_text(len(table))), path),
        "absent": path.unlink,
        "a folder": lambda: pq.write_to_dataset(table, path),
    }
    for name, damage in damages.items():
        damage()
        with pytest.raises(UserError) as caught:
            load_dataset(layout, "tiny")
        assert "\n" not in caught.value.message, name


def test_ragged_lists_become_a_padded_matrix() -> None:
    lists = pa.array([[1, 2], [3], [4, 5, 6]], pa.list_(pa.int32()))
    assert code_matrix(lists, 3).tolist() == [[1, 2, -1], [3, -1, -1], [4, 5, 6]]
    assert code_matrix(lists[1:], 3).tolist() == [[3, -1, -1], [4, 5, 6]]
    assert code_matrix(lists[:0], 3).shape == (0, 3)
    holes = pa.array([[0, None], None, [None, 1]], pa.list_(pa.int32()))
    assert code_matrix(holes, 2).tolist() == [[0, -1], [-1, -1], [-1, 1]]  # and no warning


def test_taking_rows_keeps_texts_and_codes_together(layout: Layout) -> None:
    train = write_tiny_dataset(layout, "tiny").train
    part = train.take(np.array([5, 0]))
    assert part.texts == [train.texts[5], train.texts[0]]
    assert (part.codes == train.codes[[5, 0]]).all()
