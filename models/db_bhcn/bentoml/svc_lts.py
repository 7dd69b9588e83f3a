"""The service of DB_BHCN."""

from __future__ import annotations

from utils.serving.service import TextClassifierService


class DB_BHCN(TextClassifierService):
    """Answers texts with what DB_BHCN has learned."""
