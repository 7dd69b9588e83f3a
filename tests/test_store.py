"""The model store."""

from __future__ import annotations

import pytest

from models import MODELS
from utils.errors import UserError
from utils.store.registry import model_class, model_names


def test_the_store_finds_the_registry() -> None:
    assert model_names() == list(MODELS)
    assert model_class("tfidf_hsgd").name == "tfidf_hsgd"
    with pytest.raises(UserError, match="Unknown model 'db_bhcm'"):
        model_class("db_bhcm")
