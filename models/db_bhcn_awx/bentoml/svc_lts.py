"""The service of DB_BHCN_AWX."""

from __future__ import annotations

from utils.serving.service import TextClassifierService


class DB_BHCN_AWX(TextClassifierService):
    """Answers texts with what DB_BHCN_AWX has learned."""
