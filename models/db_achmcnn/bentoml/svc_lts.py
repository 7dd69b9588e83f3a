"""The service of DB_AC_HMCNN."""

from __future__ import annotations

from utils.serving.service import TextClassifierService


class DB_AC_HMCNN(TextClassifierService):
    """Answers texts with what DB_AC_HMCNN has learned."""
