"""The service of Tfidf_LSGD."""

from __future__ import annotations

from utils.serving.service import TextClassifierService


class Tfidf_LSGD(TextClassifierService):
    """Answers texts with what Tfidf_LSGD has learned."""
