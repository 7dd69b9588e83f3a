"""Tables fit the width that there is, with whole words and with all of their content."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
import unicodedata
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import store as store_command
from models import MODELS, model_class
from tests.contract.test_models import quick
from tests.support.stores import FakeModel
from tests.support.tiny import write_tiny_dataset
from tests.support.tiny_encoder import tiny_encoder
from utils.common import cli
from utils.common.paths import PROJECT_ROOT, Layout
from utils.common.text_table import cell_width, lay_out, wrapped
from utils.store import Store
from utils.training import run

WIDTHS = range(40, 201, 20)
WORDS = (
    "Kitchen", "&", "家庭用品", "गृह", "Überzüge", "a", "für", "drills/bits", "women's",
    "e\u0301tage", "42", "electronics-and-more", "👟", "คอมพิวเตอร์",
)  # fmt: skip


def cells(text: str) -> int:
    """How wide a terminal shows a text, by the Unicode tables alone."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    marks = sum(unicodedata.category(letter) in ("Mn", "Me") for letter in text)
    return len(text) + wide - marks


def name(rng: np.random.Generator, most: int) -> str:
    return " ".join(rng.choice(WORDS, size=rng.integers(1, most)))


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_off_or_broken_and_nothing_overflows(width: int) -> None:
    rng = np.random.default_rng(width)
    for size in (1, 3, 7):
        heads = ["", *(name(rng, 4) for _ in range(size))]
        rows = [
            [name(rng, 9), *(rng.choice([name(rng, 9), f"{rng.random():.4f}", ""], size))]
            for _ in range(4)
        ]
        found = lay_out(heads, rows, width)
        lines = [*found.heads, *found.lines]
        assert max(map(cells, lines)) <= width
        printed = " ".join(lines).split()
        words = " ".join(cell for row in rows for cell in row).split()
        assert sorted(set(words) - set(printed)) == []
        for word in set(words):
            assert printed.count(word) >= words.count(word)


@pytest.mark.parametrize("word", ["x" * 500, "長" * 200, "db_bhcn_shop:2026-01-01T00:00:00" * 9])
def test_a_word_that_is_too_long_is_broken_and_not_lost(word: str) -> None:
    for table in ([["1", word]], [[word, "1"]]):
        found = lay_out(["a", "b"], table, 40)
        assert max(map(cells, found.lines)) <= 40
        left = re.sub(r"[\s1ab]", "", "".join(found.lines))
        assert left == re.sub(r"[\s1ab]", "", word)


def test_words_of_a_tag_stay_together_where_it_is_broken() -> None:
    assert wrapped("db_bhcn_shop:2026-01-01T00:00:00", 20) == [
        "db_bhcn_shop:2026-",
        "01-01T00:00:00",
    ]


def test_without_a_bound_every_row_is_a_line() -> None:
    rows = [["a", "x" * 300], ["b c", "y"]]
    found = lay_out(["one", "two"], rows, None)
    assert found.heads == ["one  two"]
    assert found.lines == ["a    " + "x" * 300, "b c  y"]


def test_names_cannot_steer_the_terminal() -> None:
    found = lay_out(["a", "b"], [["x\x1b[2J\u202ey\nz", "\ud83d\u00a0می\u200cخواهم"]], 80)
    assert found.lines == ["x?[2J?y z  ? می\u200cخواهم"]


@pytest.mark.parametrize("word", [*WORDS, "❤️", "ﬀ"])
def test_widths_are_those_of_a_terminal(word: str) -> None:
    if word != "❤️":  # terminals differ there
        assert cell_width(word) == cells(word)


FIGURES = dict.fromkeys(run.SHOWN, 0.5) | {"loss": 12.34567}


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120])
@pytest.mark.parametrize("total", [1, 30, 400])
def test_lines_of_epochs_fit(
    width: int, total: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    table = cli.EpochTable()
    table.add(1, total, 1234.5, FIGURES, best=True)
    table.add(total, total, 1.5, FIGURES, best=False)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert f"1/{total}" in lines[-2]
    assert lines[-2].endswith("best")
    assert len({len(line) for line in lines[-2:]} | {len(lines[-2]) - 6}) == 2  # aligned
    if width >= 80 and total < 100:
        assert "f1" in " ".join(lines[:-2]).split()
        assert lines[-1].split().count("0.5000") == len(FIGURES) - 1


@pytest.mark.parametrize("width", WIDTHS)
def test_tables_of_the_commands_fit(
    width: int, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    store = Store(layout)
    tags = []
    for number in range(5):
        model = FakeModel(accuracy=number / 10)
        model.config |= {"kind": name(np.random.default_rng(number), 9)}
        entry = store.save_model(model, name=f"n{number}", labels={"team": "nlp", "stage": "dev"})
        tags.append(str(entry.tag))
    for arguments in (["list"], ["compare", *tags[:2]], ["compare", *tags]):
        done = CliRunner().invoke(store_command.main, arguments)
        assert done.exit_code == 0, done.output
        assert max(map(cells, done.output.splitlines())) <= width
        if len(arguments) != 3:  # of two, the tags are heads of columns
            assert all(tag in done.output for tag in tags)


def test_a_list_without_a_terminal_has_a_line_for_each_model(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    labels = {f"label{number}": "x" * 40 for number in range(9)}
    entry = Store(layout).save_model(FakeModel(), labels=labels)
    lines = CliRunner().invoke(store_command.main, ["list"]).output.splitlines()
    assert lines[2].startswith(str(entry.tag))
    assert all(f"{key}={value}" in lines[2] for key, value in labels.items())


@pytest.mark.parametrize("name", sorted(MODELS))
def test_training_reports_rows_from_the_first_step_on(
    name: str, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is fitted, and up to all of the training rows."""
    dataset = write_tiny_dataset(layout, "tiny", rows=300)
    config = quick(name, tiny_encoder(tmp_path / "encoder"))
    model = model_class(name)(dataset.hierarchy, config)
    seen: list[tuple[int, ...]] = []

    def note(*rows: int) -> None:
        seen.append(rows)

    monkeypatch.setattr("models.model_sklearn.CHUNK", 50)
    list(
        model.fit(dataset.train, dataset.val, epochs=1, seed=0, progress=lambda *x: seen.append(x))
    )
    rows = len(dataset.train)
    assert {total for _, total in seen} == {rows}
    assert seen[-1] == (rows, rows)
    assert 0 < seen[0][0] <= 64


def on_a_terminal(width: int, *command: str, **environment: str) -> str:
    """What a command prints on a terminal."""
    outer, inner = pty.openpty()
    termios.tcsetwinsize(inner, (24, width))
    values = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    with subprocess.Popen(
        [sys.executable, *command], stdin=inner, stdout=inner, stderr=inner, cwd=PROJECT_ROOT,
        env=values | {"TERM": "xterm"} | environment,
    ) as process:  # fmt: skip
        os.close(inner)
        found = b""
        with suppress(OSError):  # the other end is closed
            while part := os.read(outer, 65536):
                found += part
    os.close(outer)
    assert process.returncode == 0, found
    return found.decode()


PROGRESS = """
from utils.common import cli
with cli.progress("Training") as update:
    import time
    time.sleep(0.3)
    update(1500, 20000)
    time.sleep(0.3)
"""


def test_progress_shows_rows_and_nothing_where_none_is_known() -> None:
    shown = on_a_terminal(80, "-c", PROGRESS)
    assert "Training" in shown
    assert "1,500/20,000 rows" in shown
    assert "?" not in re.sub(r"\x1b\[\?\d+[hl]", "", shown)


@pytest.mark.parametrize("width", [40, 80])
def test_a_list_fits_a_terminal(layout: Layout, width: int) -> None:
    entry = Store(layout).save_model(FakeModel(), labels={"owner": "somebody", "team": "nlp"})
    shown = on_a_terminal(width, "store.py", "list", KTT_ROOT=str(layout.root))
    lines = shown.replace("\r", "").splitlines()
    assert max(map(len, lines)) <= width
    assert any(str(entry.tag) in line for line in lines)


COMMANDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "adapt": ((), ("flat",), ("sql",), ("demo",)),
    "train": ((),), "evaluate": ((),), "export": ((),), "predict": ((),),
    "store": tuple(
        (name,) if name else ()
        for name in ("", "list", "get", "compare", "delete", "label", "alias", "export", "import",
                     "push", "pull")
    ),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_80_columns(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main: Any = __import__(command).main
    for group in COMMANDS[command]:
        done = CliRunner().invoke(main, [*group, "--help"])
        assert done.exit_code == 0
        long = [line for line in done.output.splitlines() if len(line) > 80]
        assert long == []
