"""The service of Tfidf_HSGD."""

from __future__ import annotations

from utils.serving.service import TextClassifierService


class Tfidf_HSGD(TextClassifierService):
    """Answers texts with what Tfidf_HSGD has learned."""
