"""Tokens and stems in any script."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest

from utils.linear.text import boundary_ngrams, stem, stemmers, token_stream, tokens

WORDS = {
    "English": ("Red shoes, size 42!", ["red", "shoes", "size", "42"]),
    "Polish": ("Żółta łódź; gęś", ["żółta", "łódź", "gęś"]),
    "German": ("Süße Äpfel-Größe", ["süße", "äpfel", "größe"]),
    "Greek": ("Ωραία παπούτσια", ["ωραία", "παπούτσια"]),
    "Russian": ("Красные туфли", ["красные", "туфли"]),
    "Arabic with vowel marks": ("كِتَابٌ جديد", ["كِتَابٌ", "جديد"]),
    "Hebrew with points": ("שָׁלוֹם עולם", ["שָׁלוֹם", "עולם"]),
    "Hindi": ("हिन्दी में किताबें", ["हिन्दी", "में", "किताबें"]),
    "Tamil": ("தமிழ் புத்தகம்", ["தமிழ்", "புத்தகம்"]),
    "Bengali": ("বাংলা ভাষা", ["বাংলা", "ভাষা"]),
    "Persian with joiner": ("می\u200cخواهم برو", ["می\u200cخواهم", "برو"]),
    "Korean": ("빨간 신발", ["빨간", "신발"]),
    "Chinese": ("红色 鞋子,42码", ["红", "色", "鞋", "子", "42", "码"]),
    "Japanese": ("赤い靴", ["赤", "い", "靴"]),
    "Thai": ("ที่นี่", ["ที่", "นี่"]),
    "mixed": ("iPhone 手机 Größe", ["iphone", "手", "机", "größe"]),
    "snake case": ("alt_atheism __x__", ["alt", "atheism", "x"]),
    "full width": ("ＡＢＣ１２", ["abc12"]),
    "soft hyphen": ("Schuh\u00adgröße", ["schuhgröße"]),
    "nothing": (" \t\n--- !!! ", []),
}


@pytest.mark.parametrize(("text", "expected"), WORDS.values(), ids=WORDS.keys())
def test_words_of_every_script_are_kept(text: str, expected: list[str]) -> None:
    assert tokens(text) == [unicodedata.normalize("NFKC", word) for word in expected]


def test_no_letter_or_digit_is_lost() -> None:
    every = [
        chr(code) for code in range(0x20, 0x30000) if unicodedata.category(chr(code))[0] in "LN"
    ]
    lost = [char for char in every if not tokens(f"a {char} b")[1:-1]]
    # Some normalise to a spacing mark or symbol, a letter to nothing else.
    assert len(lost) < 30, lost


def test_decomposed_and_composed_text_are_the_same() -> None:
    text = "Żółta łódź क़ Å"
    assert tokens(unicodedata.normalize("NFD", text)) == tokens(unicodedata.normalize("NFC", text))


def test_stems() -> None:
    assert stem(["shoes", "running", "running"], "english") == ["shoe", "run", "run"]
    assert stem(["Schuhe"], "none") == ["Schuhe"]
    assert stem(["туфли", "туфля"], "russian")[0] == stem(["туфля"], "russian")[0]
    assert stem([], "english") == []
    assert {"none", "english", "polish", "hindi", "arabic"} <= set(stemmers())


def test_every_stemmer_keeps_every_script() -> None:
    words = [word for _, expected in WORDS.values() for word in expected]
    for language in stemmers():
        assert all(stem(words, language)), language


def test_stems_are_found_once_per_distinct_word(monkeypatch: pytest.MonkeyPatch) -> None:
    from utils.linear import tfidf

    asked: list[int] = []

    def counting(words: list[str], language: str) -> list[str]:
        asked.append(len(words))
        return stem(words, language)

    monkeypatch.setattr(tfidf, "stem", counting)
    tfidf.TfidfFeatures.learn(["red shoes red shoes"] * 500, tfidf.TfidfSettings())
    assert asked == [2]


def test_token_stream_keeps_order_and_rows() -> None:
    stream = token_stream(["b a b", "", "!", "a c"])
    assert stream.words == ["b", "a", "c"]
    np.testing.assert_array_equal(stream.ids, [0, 1, 0, 1, 2])
    np.testing.assert_array_equal(stream.rows, [0, 0, 0, 3, 3])
    assert stream.row_count == 4


def test_boundary_ngrams() -> None:
    assert boundary_ngrams("ab", 2, 3) == [" a", "ab", "b ", " ab", "ab "]
    assert boundary_ngrams("ab", 5, 9) == []
