"""What a tokenizer.json may cost: a few lines of one can make gigabytes of a letter.

The tokenizers library does as it is told. Whatever makes a text longer multiplies, so the product
of all of it is limited; so are words that a model looks at letter by letter.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import Unigram, WordPiece

from utils.common.errors import UserError

LONGEST_WORD = 200
"""Characters that a model may look at as one word: what that costs grows with their second or
third power."""
MOST_GROWTH = 64
"""Characters that one may become. Unicode's own normalisation makes up to 18 of one."""
_BYTES = 4  # of a character in UTF-8


def check_cost(tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer that makes far more of a text than it is, or words too long to look at.

    Raises
    ------
    UserError
        It does.
    """
    _check_words(tokenizer.model)
    stages = (tokenizer.normalizer, tokenizer.pre_tokenizer)
    # as the library has read them: a file can say one thing in several ways
    steps = [step for stage in stages if stage for step in _steps(json.loads(stage.__getstate__()))]
    if (growth := math.prod(map(_growth, steps))) > MOST_GROWTH:
        raise UserError(
            f"The encoder's tokenizer.json makes up to {min(growth, 10**9):,} characters of one; "
            f"{MOST_GROWTH} at most are taken."
        )


def _check_words(model: Any) -> None:
    if isinstance(model, WordPiece) and model.max_input_chars_per_word > LONGEST_WORD:
        raise UserError(
            "The encoder's tokenizer.json sets max_input_chars_per_word to "
            f"{model.max_input_chars_per_word}; set it to {LONGEST_WORD} at most (BERT's is 100)."
        )
    if isinstance(model, Unigram):
        longest = max(map(len, Tokenizer(model).get_vocab()), default=0)
        if longest > LONGEST_WORD:
            raise UserError(
                f"The encoder's tokenizer.json has a piece of {longest:,} characters; "
                f"{LONGEST_WORD} at most are taken."
            )


def _steps(stage: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A step, or those of a sequence."""
    inner = stage.get("normalizers", stage.get("pretokenizers"))
    if inner is None:
        yield stage
    else:
        for part in inner:
            yield from _steps(part)


def _growth(step: dict[str, Any]) -> int:
    """How many characters a step may make of one."""
    match step:
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": text} if old:
            return max(1, math.ceil(len(text) / len(old)))
        case {"type": "Replace", "content": text} | {"type": "Prepend", "prepend": text}:
            return 1 + len(text)  # also where nothing was
        case {"type": "ByteLevel"}:
            return _BYTES
        case {"type": "Precompiled", "precompiled_charsmap": text}:
            return _longest_piece(text)
    return 1


def _longest_piece(charsmap: str) -> int:
    """Characters of the longest text that sentencepiece's table puts in the place of another.

    The table: four bytes with the size of an index, the index, the texts, each with a zero behind.
    """
    try:
        table = base64.b64decode(charsmap)
    except binascii.Error:
        return 1
    texts = table[4 + int.from_bytes(table[:4], "little") :].split(b"\0")
    return max(1, *(len(text.decode("utf-8", "replace")) for text in texts))
