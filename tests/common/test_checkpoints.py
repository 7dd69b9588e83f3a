"""Checkpoint files: whole, safe, found."""

from __future__ import annotations

import datetime
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from utils.common.checkpoints import (
    find_checkpoint,
    new_run,
    read_checkpoint,
    runs,
    trained_pairs,
    write_checkpoint,
)
from utils.common.errors import UserError
from utils.common.paths import Layout


def some_arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "weights": rng.normal(size=(3, 4)).astype(np.float32),
        "words": np.frombuffer("zażółć".encode(), dtype=np.uint8),
        "transposed": rng.normal(size=(3, 4)).T,
        "training/step": np.array(3, dtype=np.int64),
        "empty": np.zeros((0, 5), dtype=np.float32),
    }


def test_round_trip(tmp_path: Path, rng: np.random.Generator) -> None:
    arrays, meta = some_arrays(rng), {"model": "x", "nested": {"ü": [1, 2.5, None]}}
    write_checkpoint(tmp_path / "a.pt", arrays, meta)
    found, again = read_checkpoint(tmp_path / "a.pt", training=True)
    assert again == meta
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    light, _ = read_checkpoint(tmp_path / "a.pt")
    assert found.keys() - light.keys() == {"training/step"}


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_a_checkpoint_that_would_execute_code_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "executed"
    (tmp_path / "a.pt").write_bytes(pickle.dumps(Bomb(target)))
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:  # what torch.save writes
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb(target)))
        archive.writestr("archive/version", "3")
    for name in ("a.pt", "b.pt"):
        with pytest.raises(UserError, match="damaged or no KTT checkpoint"):
            read_checkpoint(tmp_path / name)
    assert not target.exists()


def test_damaged_and_foreign_files_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    from safetensors.numpy import save_file

    write_checkpoint(tmp_path / "good.pt", some_arrays(rng), {"model": "x"})
    good = (tmp_path / "good.pt").read_bytes()
    save_file({"a": np.zeros(3)}, tmp_path / "foreign.pt")
    save_file(
        {"a": np.zeros(3)}, tmp_path / "odd.pt", metadata={"format": "ktt-checkpoint", "meta": "[3"}
    )
    contents = {
        "empty": b"", "text": b"hello", "cut": good[: len(good) // 2], "head": good[:100],
        "huge header": (2**60).to_bytes(8, "little") + good[8:], "longer": good + b"x",
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / f"{name}.pt").write_bytes(content)
    for name in (*contents, "foreign", "odd"):
        with pytest.raises(UserError) as caught:
            read_checkpoint(tmp_path / f"{name}.pt")
        assert "\n" not in caught.value.message
    with pytest.raises(UserError, match="There is no checkpoint"):
        read_checkpoint(tmp_path / "none.pt")
    with pytest.raises(UserError):
        read_checkpoint(tmp_path)


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_the_newest_or_the_named_run_is_found(layout: Layout) -> None:
    folder = layout.weight_dir("m", "d")
    for name in (
        "best_2026-01-01T00:00:00.pt", "last_2026-01-01T00:00:00.pt", "last_2026-03-01T00:00:00.pt",
        "best_2026-02-01T00:00:00.pt", "best_2026-02-01T00:00:00_metrics.json", "notes.txt",
        "best_2026-02-01T00:00:00_reference.parquet", ".tmp-best_2027-01-01T00:00:00.pt",
        "best_tomorrow.pt", "best_2027-99-01T00:00:00.pt", "best_٢٠٢٧-01-01T00:00:00.pt",
    ):  # fmt: skip
        touch(folder / name)
    assert [run.time for run in runs(layout, "m", "d")] == [
        f"2026-0{k}-01T00:00:00" for k in (1, 2, 3)
    ]
    assert find_checkpoint(layout, "m", "d").name == "best_2026-02-01T00:00:00.pt"
    assert find_checkpoint(layout, "m", "d", "last").name == "last_2026-03-01T00:00:00.pt"
    assert find_checkpoint(layout, "m", "d", time="2026-01").name == "best_2026-01-01T00:00:00.pt"
    assert trained_pairs(layout) == [("m", "d")]
    with pytest.raises(UserError, match="of 2025.* Its runs: 2026-01-01T00:00:00, "):
        find_checkpoint(layout, "m", "d", time="2025")
    with pytest.raises(UserError, match="python train.py -m m -d other"):
        find_checkpoint(layout, "m", "other")


def test_two_runs_in_one_second_have_two_names(layout: Layout) -> None:
    layout.weight_dir("m", "d").mkdir(parents=True)
    with new_run(layout, "m", "d") as first:
        touch(first.best)
        with new_run(layout, "m", "d") as second, new_run(layout, "m", "d") as third:
            assert len({first.time, second.time, third.time}) == 3
    assert new_run_time(layout) not in {first.time}
    assert [path.name for path in first.folder.iterdir()] == [first.best.name]


def new_run_time(layout: Layout) -> str:
    with new_run(layout, "m", "d") as run:
        return run.time


def test_a_time_that_there_is_not_stands_in_no_way(layout: Layout) -> None:
    soon = datetime.datetime.now() + datetime.timedelta(minutes=2)
    touch(layout.weight_dir("m", "d") / f"best_{soon:%Y-%m-%dT%H:%M}:75.pt")
    assert new_run_time(layout) < soon.isoformat()


@pytest.mark.parametrize("place", ["/dev/zero", "/dev/null", "pipe"])
def test_what_may_never_end_is_not_read(tmp_path: Path, place: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "model.pt").symlink_to(tmp_path / place)
    with pytest.raises(UserError, match=r"model\.pt is a device or a pipe"):
        read_checkpoint(tmp_path / "model.pt")


def test_a_new_run_is_the_newest_and_has_a_time_of_its_own(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    folder = layout.weight_dir("m", "d")
    folder.mkdir(parents=True)
    times = []
    for ending in ("best_{}.pt", ".gone-{}", "last_{}.pt", "best_{}.pt.dvc"):
        with new_run(layout, "m", "d") as run, new_run(layout, "m", "d") as beside:
            assert run.time < beside.time
            (folder / ending.format(beside.time)).touch()
        times += [run.time, beside.time]
        for path in folder.glob(f"*{times[0]}*"):
            path.unlink()  # a hole, which is not filled
    assert times == sorted(set(times))
    assert not list(folder.glob(".tmp*"))
