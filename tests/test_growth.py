"""What a client, a text or a name can make slow costs no more than its length.

Each step is driven with up to 1 MB of its worst input: four times as much may cost six times as
much. Sizes grow step by step, so that a step whose cost explodes fails early.
"""

from __future__ import annotations

import gzip
import itertools
import json
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from utils.common.dvc import pipeline_stage
from utils.common.names import tidy_name
from utils.common.normalise import MOST_MARKS, normalise
from utils.linear.text import stem, stemmers, tokens
from utils.linear.tfidf import TfidfFeatures, TfidfSettings
from utils.neural.tokenizer import TextTokenizer
from utils.serving.feedback import KnownPaths, feedback_of
from utils.serving.requests import MAX_BYTES, Refusal, decode_body, text_of

MEGABYTE = 1_000_000
NOISE = 0.03  # seconds; below that nothing is compared
GROWTH = 6


def assert_linear(work: Callable[[Any], Any], make: Callable[[int], Any], most: int) -> None:
    """Four times the size costs at most six times as much, up to a size."""
    before = float("inf")
    for size in (most // 64, most // 16, most // 4, most):
        value, limit = make(size), GROWTH * max(before, NOISE)
        took = _seconds(work, value)
        for _ in range(3):  # other work on the machine has its share
            took = took if took <= limit else min(took, _seconds(work, value))
        assert took <= limit, f"{size}: {before:.3f} s, then {took:.3f} s"
        before = took


def _seconds(work: Callable[[Any], Any], value: Any) -> float:
    start = time.process_time()
    work(value)
    return time.process_time() - start


def repeated(unit: str) -> Callable[[int], str]:
    return lambda size: "a" + unit * (size // len(unit))


def in_halves(first: str, second: str) -> Callable[[int], str]:
    return lambda size: "a" + first * (size // 2) + second * (size // 2)


MARKS = {
    "out of order": in_halves("\u0301", "\u0323"),
    "in turns": repeated("\u0301\u0323"),
    "three classes": repeated("\u0345\u0301\u0334"),
    "voicing marks that are letters": in_halves("\uff9e", "\u0334"),
    "marks of several marks": in_halves("\u0344", "\u0323"),
    "marks of class 0": in_halves("\u0f73", "\u0f71"),
    "beyond the first plane": in_halves("\U0001d165", "\u0334"),
    "between joiners": repeated("\u0301\u200d\u0323"),
    "after each letter": repeated("a" + "\u0301\u0323" * 40),
}
TEXTS = MARKS | {
    "words of one character": repeated("a "),
    "one word": repeated("b"),
    "one word of Greek": repeated("Σ"),
    "letters that grow": repeated("İ"),
    "phrases in a character": repeated("\ufdfa"),
    "squared words": repeated("\u3316"),
    "fractions": repeated("½"),
    "jamo": repeated("\u1112\u1161\u11ab"),
    "Han": repeated("红"),
    "soft hyphens": repeated("\xad"),
    "joiners": repeated("a\u200d"),
    "spaces": repeated("\u3000"),
    "underscores": repeated("é_"),
}


@pytest.mark.parametrize("case", MARKS)
@pytest.mark.parametrize("form", ["NFC", "NFKC"])
def test_normalising(form: Any, case: str) -> None:
    assert_linear(lambda text: normalise(form, text), MARKS[case], MEGABYTE)


@pytest.mark.parametrize("case", MARKS)
def test_tidying_a_name(case: str) -> None:
    assert_linear(tidy_name, MARKS[case], MEGABYTE)


@pytest.mark.parametrize("case", TEXTS)
def test_cutting_a_text_into_words(case: str) -> None:
    assert_linear(tokens, TEXTS[case], MEGABYTE)


@pytest.mark.parametrize("characters", [0, 5])
def test_features_of_a_text(characters: int) -> None:
    settings = TfidfSettings(char_ngrams=characters)
    features, _ = TfidfFeatures.learn(["a b c", "é b", "abc bcd"], settings)
    for case in ("out of order", "words of one character", "one word", "phrases in a character"):
        assert_linear(lambda text: features.transform([text]), TEXTS[case], MEGABYTE // 4)


@pytest.mark.parametrize("letter", ["a", "ing", "и", "த", "ம்", "é", "ö", "ـ", "ğ", "ü"])
def test_the_stem_of_a_word(letter: str) -> None:
    words = repeated(letter)
    for language in stemmers():
        assert_linear(lambda word: stem([word], language), words, MEGABYTE)  # noqa: B023


BYTES: dict[str, Callable[[int], bytes]] = {
    "letters": lambda size: b"a" * size,
    "zeros": bytes,
    "no UTF-8": lambda size: b"\xff" * size,
    "two halves": lambda size: b"a" * (size // 2) + b"-" + b"b" * (size // 2),
    "brackets": lambda size: b"[" * size,
    "objects": lambda size: b'{"a":' * (size // 5),
    "digits": lambda size: b'{"text": ' + b"1" * size + b"}",
    "decimals": lambda size: b'{"text": 0.' + b"1" * size + b"}",
    "exponent": lambda size: b'{"text": 1e' + b"9" * size + b"}",
    "numbers": lambda size: b"[" + b"9" * 4300 + (b"," + b"9" * 4300) * (size // 4301) + b"]",
    "keys": lambda size: json.dumps({str(i): i for i in range(size // 12)}).encode(),
    "escapes": lambda size: b'{"text": "' + b"\\ud800" * (size // 6) + b'"}',
    "marks": lambda size: json.dumps({"text": MARKS["out of order"](size // 6)}).encode(),
}


@pytest.mark.parametrize("output", ["${a}", "a/"])
def test_outputs_of_a_pipeline(output: str, tmp_path: Path) -> None:
    def stage(size: int) -> None:
        names = f"    outs: ['{output * (size // 4)}']"
        lines = ["vars:", f"- a: {'x' * size}", "stages:", "  s:", names]
        (tmp_path / "dvc.yaml").write_text("\n".join(lines))
        pipeline_stage(tmp_path, tmp_path / "datasets" / "shop")

    assert_linear(stage, lambda size: size, 200_000)


def refused(body: bytes, *headers: str | None) -> None:
    try:
        text_of(decode_body(body, *headers))
    except Refusal:
        return


@pytest.mark.parametrize("case", BYTES)
def test_reading_a_body(case: str) -> None:
    for charset in ("utf-8", "utf-16", "punycode"):
        header = f"application/json; charset={charset}"
        assert_linear(lambda body: refused(body, header), BYTES[case], MEGABYTE)  # noqa: B023


@pytest.mark.parametrize(
    "member", [b"", b"0", b"0" * 100_000, np.random.default_rng(1).bytes(5000)], ids=len
)
def test_unpacking_a_body(member: bytes) -> None:
    packed = gzip.compress(member)
    assert_linear(
        lambda body: refused(body, None, "gzip"),
        lambda size: packed * (size // len(packed)),
        MEGABYTE,
    )


@pytest.mark.parametrize("unit", ["; charset=", ";", " ", '; charset="', ";charset", '"', "; a=b"])
def test_reading_the_content_type(unit: str) -> None:
    assert_linear(lambda header: refused(b"{}", header), repeated(unit), MEGABYTE)


def feedback(path: list[str]) -> str:
    return json.dumps({"request_id": "0f" * 16, "path": path})


def no_such_class(document: str, known: KnownPaths) -> None:
    with pytest.raises(Refusal):
        feedback_of(document, known)


@pytest.mark.parametrize("case", [*MARKS, "one word", "spaces"])
def test_feedback_for_a_long_name(case: str) -> None:
    known = KnownPaths({("Home", f"Class {i}") for i in range(500)})
    documents = lambda size: feedback(["Home", TEXTS[case](size // 6)])  # noqa: E731
    assert_linear(lambda document: no_such_class(document, known), documents, MEGABYTE)


@pytest.mark.parametrize("alike", [True, False])
def test_feedback_in_a_tree_of_many_classes(alike: bool) -> None:
    def known(size: int) -> KnownPaths:
        return KnownPaths({("Home", f"{'a' * 100 * alike}{i}") for i in range(size)})

    wrong = feedback(["Home", "a" * 100_000])
    assert_linear(lambda paths: no_such_class(wrong, paths), known, 10_000)


@pytest.mark.parametrize("case", [*MARKS, "one word", "Han", "phrases in a character"])
def test_tokens_of_a_text(case: str) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    pieces = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##a": 2}, unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer()
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = TextTokenizer(pieces.to_str(), 512, 0)
    assert_linear(lambda text: tokenizer([text]), TEXTS[case], MEGABYTE)


def test_bounds_leave_ordinary_texts_as_they_are() -> None:
    rng = np.random.default_rng(7)
    letters = [chr(code) for code in range(0x20, 0x2FFF) if unicodedata.category(chr(code)) != "Cn"]
    for text in map("".join, rng.choice(letters, (500, 60)).tolist()):
        runs = [len(list(run)) for starts, run in itertools.groupby(text, _starts) if not starts]
        assert max(runs, default=0) <= MOST_MARKS
        for form in ("NFC", "NFKC"):
            assert normalise(form, text) == unicodedata.normalize(form, text)  # type: ignore[arg-type]


def _starts(char: str) -> bool:
    return unicodedata.combining(unicodedata.normalize("NFKD", char)[0]) == 0


def test_every_mark_of_unicode_is_bounded() -> None:
    """Whatever a run is made of, in any form: what is left of it is short."""
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    marks = [char for char in characters if not _starts(char)]
    assert len(marks) > 800
    for mark in marks:
        left = unicodedata.normalize("NFKD", normalise("NFKC", "a" + mark * 1000))
        assert len(left) <= 1 + 4 * MOST_MARKS, hex(ord(mark))


def test_no_other_character_becomes_a_phrase() -> None:
    """Those that become more than four characters are limited, each."""
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    long = [char for char in characters if len(unicodedata.normalize("NFKC", char)) > 4]
    assert "\ufdfa" in long
    few, many = 1_000, 30_000
    for char in long:
        assert len("".join(tokens(char * many))) < len("".join(tokens(char * few))) * many / few / 2


def test_marks_that_are_kept_still_tell_words_apart() -> None:
    plain, marked = tokens("resume"), tokens("re\u0301sume\u0301")
    assert plain != marked == tokens("résumé")
    assert tokens("a" + "\u0301\u0323" * 15 + " b")[1] == "b"


def test_a_long_word_is_its_own_stem_beside_others() -> None:
    long = "a" * 10_000 + "ing"
    assert stem(["running", long, "shoes"], "english") == ["run", long, "shoe"]


def test_packed_bodies_stop_at_the_limit() -> None:
    body = gzip.compress(bytes(1000)) * (MAX_BYTES // 1000 + 1)
    with pytest.raises(Refusal) as found:
        decode_body(body, None, "gzip")
    assert found.value.status == 413


def test_a_tokenizer_that_looks_at_endless_words_is_refused() -> None:
    from tokenizers import Tokenizer, models

    from utils.common.errors import UserError

    for longest in (100, 200, 201, 10**9):
        pieces = models.WordPiece({"[UNK]": 0}, unk_token="[UNK]", max_input_chars_per_word=longest)
        definition = Tokenizer(pieces).to_str()
        if longest <= 200:
            TextTokenizer(definition, 16, 0)
        else:
            with pytest.raises(UserError, match=f"max_input_chars_per_word to {longest}"):
                TextTokenizer(definition, 16, 0)
