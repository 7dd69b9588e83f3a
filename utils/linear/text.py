"""Texts to tokens, in any script; stems are found once per distinct word."""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count, islice

import numpy as np
from numpy.typing import NDArray

from utils.common.normalise import character_ranges, normalise

NO_STEMMER = "none"
LONGEST_STEMMED = 200
"""Characters of a word; longer ones are their own stem. Several stemmers are quadratic in a word's
length: Tamil's takes a second for 60,000 characters, and minutes for a million."""

# Scripts written without spaces between words: each character (with its marks) is a token, and
# word 2-grams then are the character 2-grams that retrieval systems use for them.
_UNSPACED = (
    "\u0e01-\u0e30\u0e32-\u0e33\u0e40-\u0e46"  # Thai
    "\u0e81-\u0eb0\u0eb2-\u0eb3\u0ebd-\u0ec6\u0edc-\u0edf"  # Lao
    "\u1000-\u102a\u103f\u1050-\u1055"  # Burmese
    "\u1780-\u17b3"  # Khmer
    "\u3005-\u3007\u3041-\u3096\u309d-\u30ff\u31f0-\u31ff"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003347f"  # Han
)
_JOINERS = "\u200c\u200d"
_ASCII_WORD = re.compile(r"[a-z0-9]+")
_PHRASES = re.compile("[\u3300-\u33ff\ufdfa\ufdfb]")
MOST_PHRASES = 10_000
"""Characters of a text that stand for whole words, and become them: one is four words of Arabic, so
that a megabyte of it would be eighteen."""


@cache
def _mark_ranges() -> str:
    """Return every combining mark as ranges of a character class: `\\w` has none of them."""
    marks = [
        code
        for start, stop in ((0x300, 0x1F000), (0xE0100, 0xE01F0))
        for code in range(start, stop)
        if unicodedata.category(chr(code))[0] == "M"
    ]
    return character_ranges(marks)


@cache
def _any_word() -> re.Pattern[str]:
    marks = _mark_ranges() + _JOINERS
    spaced = rf"[^\W_{_UNSPACED}]+"
    return re.compile(rf"[{_UNSPACED}][{marks}]*|{spaced}(?:[{marks}]+[^\W_{_UNSPACED}]*)*")


def tokens(text: str) -> list[str]:
    """Split a text into lower-case words of any script; punctuation and symbols are left out."""
    text = text.lower()
    if text.isascii():
        return _ASCII_WORD.findall(text)
    text = normalise("NFKC", _without_more_phrases(text))
    return _any_word().findall(text.replace("\u00ad", "").lower())


def _without_more_phrases(text: str) -> str:
    more = next(islice(_PHRASES.finditer(text), MOST_PHRASES, None), None)
    if more is None:
        return text
    return text[: more.start()] + _PHRASES.sub(" ", text[more.start() :])


def stem(words: Sequence[str], language: str) -> list[str]:
    """Return the Snowball stem of each word (``none``: the words as they are)."""
    if language == NO_STEMMER:
        return list(words)
    import Stemmer

    stems = list(words)
    short = [place for place, word in enumerate(words) if len(word) <= LONGEST_STEMMED]
    found = Stemmer.Stemmer(language, 0).stemWords([words[place] for place in short])
    for place, stemmed in zip(short, found, strict=True):
        stems[place] = stemmed
    return stems


def stemmers() -> tuple[str, ...]:
    """Return every known language of `stem`."""
    import Stemmer

    return (NO_STEMMER, *Stemmer.algorithms())


@dataclass(frozen=True, kw_only=True)
class TokenStream:
    """All tokens of some texts in order, as ids into their distinct words.

    Attributes
    ----------
    words : the distinct tokens, in order of first appearance.
    ids : (tokens,) int32, index into `words`.
    rows : (tokens,) int32, the text that each token stands in, ascending.
    row_count : number of texts, those without any token included.
    """

    words: list[str]
    ids: NDArray[np.int32]
    rows: NDArray[np.int32]
    row_count: int


def token_stream(texts: Iterable[str]) -> TokenStream:
    """Tokenise texts; everything after this works on distinct words or on whole columns."""
    index: defaultdict[str, int] = defaultdict(count().__next__)
    ids, lengths = array("i"), array("i")
    for text in texts:
        found = tokens(text)
        ids.extend(map(index.__getitem__, found))
        lengths.append(len(found))
    sizes = np.asarray(lengths, dtype=np.int32)
    return TokenStream(
        words=list(index),
        ids=np.asarray(ids, dtype=np.int32),
        rows=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
        row_count=len(sizes),
    )


def boundary_ngrams(word: str, shortest: int, longest: int) -> list[str]:
    """Return the character n-grams of a word between its boundary blanks, with repeats."""
    padded = f" {word} "
    size = len(padded)
    return [
        padded[start : start + n]
        for n in range(shortest, min(longest, size) + 1)
        for start in range(size - n + 1)
    ]
