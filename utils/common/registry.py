"""The one place below the models that reaches up to them.

Nothing in `utils` imports `models`: whoever needs a model is handed its class. The store and the
worker processes of a runner have nobody above them who could do that, so they find the registry by
its name when they run, as one finds a plug-in.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

REGISTRY = "models"


def model_class(name: str) -> Any:
    """The class of a registered model: `models.model_class`, imported now.

    Raises
    ------
    UserError
        There is no such model.
    """
    return import_module(REGISTRY).model_class(name)


def model_names() -> list[str]:
    """The registered models, without importing one."""
    return list(import_module(REGISTRY).MODELS)
