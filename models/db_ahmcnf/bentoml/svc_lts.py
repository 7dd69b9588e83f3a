"""The service of DB_AHMCN_F."""

from __future__ import annotations

from utils.serving.service import TextClassifierService


class DB_AHMCN_F(TextClassifierService):
    """Answers texts with what DB_AHMCN_F has learned."""
