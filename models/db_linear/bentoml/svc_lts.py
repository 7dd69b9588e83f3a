"""The service of DB_Linear."""

from __future__ import annotations

from utils.serving.service import TextClassifierService


class DB_Linear(TextClassifierService):
    """Answers texts with what DB_Linear has learned."""
