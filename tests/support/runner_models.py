"""Models for tests of the runner: at the top of a module, so that worker processes find them."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.common.errors import UserError


@dataclass
class Recorder:
    """Doubles rows, and notes what it was given; may be held up."""

    seconds: float = 0.0
    """Per batch."""
    given: list[Any] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    busy: int = 0
    most_busy: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    def _work(self, rows: Any) -> Any:
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        self.given.append(rows)
        time.sleep(self.seconds)
        assert self.gate.wait(120)
        self.busy -= 1
        return rows

    def double(self, rows: Any) -> Any:
        rows = self._work(rows)
        return rows * 2 if isinstance(rows, np.ndarray) else [2 * row for row in rows]

    def turned(self, rows: Any) -> Any:
        return self._work(rows).T

    def added(self, left: Any, right: Any = None) -> Any:
        return {"sum": self._work(left) + right, "left": left}

    def short(self, rows: Any) -> Any:
        return self._work(rows)[:-1]

    def picky(self, rows: Any) -> Any:
        rows = self._work(rows)
        if any(row < 0 for row in rows):
            raise ArithmeticError("negative")
        return rows


class TwoWords(Exception):
    """Cannot be made from its own arguments: unpickling it fails."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


class Fragile:
    """A model that can be told to end its process."""

    def __init__(self, marks: Path) -> None:
        self.marks = marks

    def echo(self, rows: list[str]) -> list[tuple[str, int]]:
        for row in rows:
            kind, _, rest = row.partition(" ")
            mark = self.marks / (rest or "mark")
            if kind == "die" or (kind == "once" and not mark.exists()):
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "sleep":
                mark.touch()
                time.sleep(300)
            if kind == "odd":
                raise TwoWords("odd", "error")
            if kind == "wrong":
                raise ValueError("wrong row")
        return [(row, os.getpid()) for row in rows]

    def threads(self, rows: list[str]) -> list[str]:
        return [os.environ["KTT_THREADS"] for _ in rows]


@dataclass(frozen=True)
class FragileOpener:
    marks: Path

    def __call__(self) -> Fragile:
        return Fragile(self.marks)


@dataclass(frozen=True)
class Failing:
    kind: str

    def __call__(self) -> Any:
        if self.kind == "user":
            raise UserError("There are no weights here.")
        if self.kind == "odd":
            raise TwoWords("odd", "error")
        os._exit(3)
