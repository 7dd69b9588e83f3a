"""The registry: one line per model, imported only when asked for.

A model's folder, its module and its block in hyperparameters.json have the registry's name.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from utils.common.errors import unknown

if TYPE_CHECKING:
    from models.model import Model

# Read when torch is imported. Threads that wait for each other by spinning make training ten
# times slower as soon as another process wants a core.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

MODELS: dict[str, str] = {
    "db_achmcnn": "models.db_achmcnn.db_achmcnn:DB_AC_HMCNN",
    "db_ahmcnf": "models.db_ahmcnf.db_ahmcnf:DB_AHMCN_F",
    "db_bhcn": "models.db_bhcn.db_bhcn:DB_BHCN",
    "db_bhcn_awx": "models.db_bhcn_awx.db_bhcn_awx:DB_BHCN_AWX",
    "db_linear": "models.db_linear.db_linear:DB_Linear",
    "tfidf_hsgd": "models.tfidf_hsgd.tfidf_hsgd:Tfidf_HSGD",
    "tfidf_lsgd": "models.tfidf_lsgd.tfidf_lsgd:Tfidf_LSGD",
}


def model_class(name: str) -> type[Model]:
    """The class of a registered model.

    Raises
    ------
    UserError
        There is no such model.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    module, _, attribute = MODELS[name].partition(":")
    found: type[Model] = getattr(import_module(module), attribute)
    return found
