"""What load generators send: generated texts, and bodies that deserve a refusal."""

from __future__ import annotations

import random

WORDS = [
    "red",
    "blue",
    "wool",
    "cotton",
    "shirt",
    "phone",
    "card",
    "balance",
    "how",
    "when",
    "late",
    "train",
    "kettle",
    "spare",
]
BAD_BODIES = (
    b"",
    b"{}",
    b"[]",
    b"not json",
    b'{"text": null}',
    b'{"text": 3}',
    b'{"text": ""}',
    b'{"text": "\\ud800"}',
)


def generated_texts(count: int, rng: random.Random) -> list[str]:
    """Texts of 3 to 30 words."""
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, 30))) for _ in range(count)]
