"""Who works on batches: this process, or one that was started for it."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, Protocol

from utils.common.errors import UserError
from utils.runner.batches import Arguments
from utils.runner.calls import WorkerDied
from utils.runner.methods import invoke

if TYPE_CHECKING:
    from utils.runner.text_model import About

log = logging.getLogger(__name__)

START_PATIENCE = 600.0  # seconds for a worker to load its model
END_PATIENCE = 2.0  # seconds for a worker to end by itself
PULSE = 1.0  # seconds between two looks at an idle worker


class Engine(Protocol):
    """Works on one batch at a time."""

    @property
    def pulse(self) -> float | None:
        """Seconds after which `revive` is to be called if there is nothing to do; None: never."""
        ...

    def call(self, method: str, arguments: Arguments) -> Any:
        """Call a method of the model."""
        ...

    def revive(self) -> bool:
        """Make sure that it works, before a call; True if it had to be mended."""
        ...

    def close(self) -> None:
        """End it; by whoever calls it."""
        ...

    def kill(self) -> None:
        """End it amid its work, if that can be done; from any thread."""
        ...


class LocalEngine:
    """The model in this process.

    Parameters
    ----------
    model
        What has the methods.
    """

    pulse = None

    def __init__(self, model: Any) -> None:
        self._model = model

    def call(self, method: str, arguments: Arguments) -> Any:
        """Call a method of the model."""
        return invoke(self._model, method, arguments)

    def revive(self) -> bool:
        """Do nothing."""
        return False

    def close(self) -> None:
        """Let go of the model."""
        self._model = None

    def kill(self) -> None:
        """Do nothing: a thread cannot be ended."""


class ProcessEngine:
    """The model in a process of its own, which is started again when it ends.

    Parameters
    ----------
    name
        The runner's.
    open_source
        Loads the model, there.
    methods
        What will be called.
    threads
        That the model shall use.
    """

    pulse = PULSE

    def __init__(
        self, name: str, open_source: Callable[[], Any], methods: list[str], threads: int
    ) -> None:
        self._name, self._open_source = name, open_source
        self._methods, self._threads = methods, threads
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self._ready = self._ended = False
        self.about: About | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, if there is one."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process, without waiting for it.

        Raises
        ------
        UserError
            What loads the model cannot be sent to a process.
        """
        from utils.runner.worker import work

        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=work,
            args=(theirs, self._open_source, self._name, self._methods, self._threads),
            name=f"runner {self._name}",
            daemon=True,
        )
        try:
            process.start()
        except AssertionError as error:  # "daemonic processes are not allowed to have children"
            ours.close()
            raise UserError(
                f"No worker of {self._name} can be started here: {error}. Take workers=0."
            ) from error
        except (TypeError, AttributeError, ValueError) as error:
            ours.close()
            raise _not_sendable(self._name, error) from error
        except Exception as error:
            ours.close()
            if type(error).__name__ == "PicklingError":
                raise _not_sendable(self._name, error) from error
            raise
        finally:
            theirs.close()  # else its end would not be seen
        self._process, self._connection, self._ready = process, ours, False

    def wait(self) -> None:
        """Wait until the process has loaded the model.

        Raises
        ------
        WorkerDied
            It ended instead.
        Exception
            What it met there.
        """
        try:
            answer = self._receive(START_PATIENCE)
        except WorkerDied as error:
            code = self._process.exitcode if self._process else None
            self._discard()
            raise WorkerDied(
                f"A worker of {self._name} ended while it started (exit status {code}). A script "
                'that starts workers does so under `if __name__ == "__main__":`.'
            ) from error
        if isinstance(answer, BaseException):
            self._discard()
            raise answer
        self.about, self._ready = answer, True

    def call(self, method: str, arguments: Arguments) -> Any:
        """Call a method of the model.

        Raises
        ------
        WorkerDied
            The process ended meanwhile.
        """
        if not self._connection:
            raise self._died()
        try:
            self._connection.send((method, arguments))
        except OSError as error:
            raise self._died() from error
        answer = self._receive(None)
        if isinstance(answer, BaseException):
            raise answer
        return answer[0]

    def revive(self) -> bool:
        """Start the process if there is none."""
        if self._ended:
            raise WorkerDied(f"The workers of {self._name} have ended.")
        if self._ready and self._process and self._process.is_alive():
            return False
        self._discard()
        log.warning("A worker of %s is started again", self._name)
        self.start()
        self.wait()
        return True

    def close(self) -> None:
        """End the process when it has nothing to do."""
        self._ended = True
        self._discard()

    def kill(self) -> None:
        """End the process now; who waits for it gets a `WorkerDied`."""
        self._ended = True
        if process := self._process:
            process.kill()

    def _receive(self, patience: float | None) -> Any:
        assert self._connection
        try:
            if not self._connection.poll(patience):
                raise UserError(
                    f"A worker of {self._name} has not loaded its model in {patience:.0f} s."
                )
            return self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error

    def _died(self) -> WorkerDied:
        self._ready = False
        if self._process:
            self._process.join(END_PATIENCE)
        code = self._process.exitcode if self._process else None
        return WorkerDied(f"A worker of {self._name} ended at work (exit status {code}).")

    def _discard(self) -> None:
        process, connection = self._process, self._connection
        self._process, self._connection, self._ready = None, None, False
        if connection:
            connection.close()  # which it takes for the end
        if process:
            _end(process)


def _end(process: BaseProcess) -> None:
    process.join(END_PATIENCE)
    if process.is_alive():
        process.kill()
        process.join(END_PATIENCE)


def _not_sendable(name: str, error: Exception) -> UserError:
    return UserError(
        f"What opens the model of {name} cannot be sent to a worker process: {error}. Give a "
        "function of a module, or utils.runner.opener(…)."
    )
