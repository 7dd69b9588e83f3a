"""Names that look the same are one name."""

from __future__ import annotations

import unicodedata

import pytest

from utils.common.names import tidy_name

UNSEEN = {
    "zero-width space": "\u200b", "byte-order mark": "\ufeff", "soft hyphen": "\xad",
    "word joiner": "\u2060", "left-to-right mark": "\u200e", "right-to-left mark": "\u200f",
    "Arabic letter mark": "\u061c", "embedding": "\u202a", "override": "\u202e",
    "isolate": "\u2066", "grapheme joiner": "\u034f", "invisible times": "\u2062",
    "variation selector 16": "\ufe0f", "variation selector 256": "\U000e01ef",
    "Mongolian vowel separator": "\u180e", "tag": "\U000e0041", "joiner": "\u200d",
    "non-joiner": "\u200c", "annotation": "\ufff9", "Khmer inherent vowel": "\u17b4",
    "shorthand control": "\U0001bca0", "musical control": "\U0001d173", "NUL": "\0",
    "backspace": "\b", "C1 control": "\x90", "Hangul filler": "\u115f",
    "unassigned and ignorable": "\U000e0fff",
}  # fmt: skip
SPACES = [
    "  ", "\t", "\n", "\r\n", "\x0b", "\x1f", "\x85", "\xa0", "\u1680", "\u2002", "\u2007",
    "\u2009", "\u200a", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\u2800", "\u3164",
    " \u200b ",
]  # fmt: skip
DRAWN = {
    "Persian non-joiner": "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "Arabic initial form": "\u0647\u200d",
    "Devanagari half form": "\u0915\u094d\u200d\u0937",
    "Devanagari visible virama": "\u0915\u094d\u200c\u0937",
    "Bengali ra before ya": "\u09b0\u200d\u09cd\u09af",
    "Sinhala conjunct": "\u0dc1\u0dca\u200d\u0dbb\u0dd3",
    "family": "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "astronaut": "\U0001f469\U0001f3fd\u200d\U0001f680",
    "flag of Scotland": "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    "Arabic number sign": "\u0600\u0661",
    "Mongolian selector": "\u1820\u180b",
    "Hangul without initial": "\u115f\u1161",
}


@pytest.mark.parametrize("char", UNSEEN.values(), ids=UNSEEN)
def test_what_cannot_be_seen_goes(char: str) -> None:
    for name in (
        f"{char}Café",
        f"Café{char}",
        f"Ca{char}fé",
        f"Café{char * 3} ",
        f"Cafe{char}\u0301",
    ):
        assert tidy_name(name) == "Café"


@pytest.mark.parametrize("space", SPACES, ids=map(ascii, SPACES))
def test_white_space_is_one_space(space: str) -> None:
    assert tidy_name(f"{space}Tea{space}Pot{space}") == "Tea Pot"


@pytest.mark.parametrize("name", DRAWN.values(), ids=DRAWN)
def test_what_changes_the_drawing_stays(name: str) -> None:
    assert tidy_name(name) == unicodedata.normalize("NFC", name)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("\u06a9\u0627\u0631\u200c\u0647\u0627", "\u06a9\u0627\u0631\u0647\u0627"),
        ("\u0645\u06cc\u200c\u200c\u0631\u0648\u062f", "\u0645\u06cc\u200c\u0631\u0648\u062f"),
        ("\u0645\u06cc\u200b\u200c\u0631\u0648\u062f", "\u0645\u06cc\u200c\u0631\u0648\u062f"),
        ("\u2764\ufe0f Gifts", "\u2764 Gifts"),
        ("\u212b", "\xc5"),
        ("q\u0307\u0323", "q\u0323\u0307"),
    ],
    ids=["after a letter that never joins", "twice", "beside another", "emoji style", "sign",
         "order of marks"],
)  # fmt: skip
def test_two_spellings_of_one_look(name: str, other: str) -> None:
    assert tidy_name(name) == tidy_name(other)


@pytest.mark.parametrize("name", ["Ca fé", "Café", "cafe", "A & B", "naïve", "Ærø", "-", "日本 語"])
def test_tidy_names_stay_as_they_are(name: str) -> None:
    assert tidy_name(name) == name


def test_tidying_twice_changes_nothing() -> None:
    pieces = [*UNSEEN.values(), *SPACES, *DRAWN.values(), "a", "\u0301", "Z"]
    for first in pieces:
        for second in pieces:
            once = tidy_name(f"x{first}{second}y")
            assert tidy_name(once) == once
