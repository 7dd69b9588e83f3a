"""The run that the options of a command name: by model and dataset, or by tag."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from utils.common.errors import UserError, unknown

if TYPE_CHECKING:
    from utils.common.paths import Layout


def chosen(
    layout: Layout, tag: str | None, model: str | None, dataset: str | None, time: str | None
) -> tuple[str, str, str | None]:
    """The model, dataset and time of a run that options name in one of two ways.

    Raises
    ------
    UserError
        In both; or the tag leads nowhere.
    """
    if tag is None:
        if model is None or dataset is None:
            missing = "'-m' / '--model'" if model is None else "'-d' / '--dataset'"
            raise click.UsageError(f"Missing option {missing} (or '--tag').")
        return model, dataset, time
    if model or dataset or time:
        raise UserError(f"--tag {tag} says which run it is: leave out -m, -d and the time.")
    from utils.store import Store

    entry = Store(layout).get(tag)
    return entry.model, entry.dataset, entry.version


def opened(
    options: dict[str, Any], models: Iterable[str]
) -> tuple[Layout, tuple[str, str, str | None]]:
    """The project, and the model, dataset and time that a command's options name.

    They are taken out of the options, which stay otherwise as they are.

    Raises
    ------
    UserError
        They name no run, or files cannot be fetched as they say.
    """
    from utils.common import dvc
    from utils.common.paths import Layout

    layout = Layout(fetch=options["dvc"] is not False)
    dvc.check(layout.root, options["dvc"])
    given = [options.pop(name) for name in ("tag", "model", "dataset", "time")]
    model, dataset, time = chosen(layout, *given)
    if model not in models:
        raise unknown("model", model, models)
    return layout, (model, dataset, time)
