"""What a service logs: where it failed, never what it was asked."""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Iterator

from utils.common.errors import UserError

BOOT_ERROR = 3
"""Status at which gunicorn gives up, where it starts a worker of another one again for ever."""

log = logging.getLogger("bentoml.service")  # the servers of a bundle show the loggers of bentoml


def log_failure(what: str, error: Exception) -> None:
    """Log where it happened but not the error's message, which may quote the text."""
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s failed with %s:\n%s", what, type(error).__name__, where)


@contextlib.contextmanager
def ending_in_one_line() -> Iterator[None]:
    """Let a user's mistake end the process with its line alone."""
    try:
        yield
    except UserError as error:
        log.error("%s", error.message)
        raise SystemExit(BOOT_ERROR) from None


def _drop(record: logging.LogRecord) -> bool:
    return False


def keep_texts_out_of_logs() -> None:
    """Stop BentoML from logging requests and answers, and close its `/feedback`, which logs too.

    As released, each goes to the console and to prediction.log and feedback.log at INFO. A filter
    survives a later configuration of the loggers; a level would not.
    """
    from bentoml.configuration.containers import BentoMLContainer

    for name in ("bentoml.prediction", "bentoml.feedback"):
        logging.getLogger(name).addFilter(_drop)
    BentoMLContainer.config.bento_server.feedback.enabled.set(False)
