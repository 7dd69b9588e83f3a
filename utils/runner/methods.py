"""The methods of a loaded model, as runners call them in any process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from utils.common.errors import UserError
from utils.runner.batches import Arguments
from utils.runner.signatures import CALL

if TYPE_CHECKING:
    from utils.runner.text_model import About


def model_of(opened: Any) -> Any:
    """What has the methods: a source of answers gets them, anything else has its own."""
    from utils.inference.pipeline import Source
    from utils.runner.text_model import TextModel

    return TextModel(opened) if isinstance(opened, Source) else opened


def about(model: Any) -> About | None:
    """What a classifier of texts is; None for any other model."""
    from utils.runner.text_model import About, TextModel

    return About.of(model.source) if isinstance(model, TextModel) else None


def check_methods(model: Any, name: str, methods: list[str]) -> None:
    """Refuse signatures of methods that a model has not.

    Raises
    ------
    UserError
        There are such.
    """
    for method in methods:
        if not callable(getattr(model, method, None)):
            raise UserError(
                f"The model of {name} has no method {method!r}, which a signature names."
            )


def invoke(model: Any, method: str, arguments: Arguments) -> Any:
    """Call a method."""
    function = model if method == CALL else getattr(model, method)
    return function(*arguments[0], **arguments[1])
