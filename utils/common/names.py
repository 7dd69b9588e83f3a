"""One spelling for names that look the same: what cannot be seen does not tell classes apart.

Only the standard library is imported, as every bundle holds a copy of this module.
"""

from __future__ import annotations

import re
import unicodedata

from utils.common.normalise import normalise

# Characters without a shape of their own: Unicode's Default_Ignorable_Code_Point and the other
# format characters, control characters that are no white space, and variation selectors.
# Not here are the joiners (below), Mongolian's selectors and Hangul's fillers where a letter
# needs them, and the format characters that are drawn (U+0600 to U+0605, U+06DD, …).
_UNSEEN = (
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u034f\u061c\u17b4\u17b5\u200b\u200e\u200f"
    "\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff0-\ufffb\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_UNSEEN_OR_FLAG = re.compile(
    "(\U0001f3f4[\U000e0020-\U000e007e]{1,32}\U000e007f)"  # the flag of England, of Scotland, …
    rf"|[{_UNSEEN}]+|(?<![\u1807\u1820-\u18aa])[\u180b-\u180f]+"
    r"|\u115f(?![\u1160-\u11a7])|(?<![\u1100-\u115f])\u1160"
)
# Drawn as nothing but room: fillers of Hangul and the empty Braille pattern.
_BLANK = re.compile("[\u2800\u3164\uffa0]")
_JOINERS = re.compile("[\u200c\u200d]+")
_JOINER = "\u200d"
# Letters (and marks) of the scripts that are written joined: Arabic, Syriac, N'Ko, Mandaic,
# Mongolian, Phags-pa, Rohingya, Adlam; and the Arabic letters that never join the next one.
_CURSIVE = re.compile(
    "[\u0620\u0622-\u065f\u066e-\u0673\u0675-\u06d3\u06d5-\u06dc\u06df-\u06ef\u06fa-\u06ff"
    "\u0710-\u077f\u07ca-\u07f5\u0840-\u085b\u0860-\u086a\u0870-\u088e\u08a0-\u08e1"
    "\u08e3-\u08ff\u1807\u180a-\u180f\u1820-\u18aa\ua840-\ua871"
    "\U00010d00-\U00010d23\U0001e900-\U0001e94b]"
)
_LAST_OF_WORD = re.compile(
    "[\u0622-\u0625\u0627\u0629\u062f-\u0632\u0648\u0671-\u0673\u0675-\u0677\u0688-\u0699"
    "\u06c0\u06c3-\u06cb\u06cd\u06cf\u06d2\u06d3\u06d5\u06ee\u06ef]"
)
_VIRAMA = 9  # canonical combining class of the signs that join letters in Indic scripts


def tidy_name(name: str) -> str:
    """Bring a class name to one spelling of all those that look the same.

    Characters that cannot be seen go (zero-width characters, byte-order marks, soft hyphens,
    direction marks, variation selectors, control characters); Unicode is composed (NFC); white
    space of any kind and length becomes one space, and none at the ends. Joiners stay where
    they change what is drawn: in scripts that join their letters, and within emoji.
    """
    name = visible(name)
    return " ".join((name if name.isascii() else normalise("NFC", name)).split())


def visible(text: str) -> str:
    """Take out what cannot be seen; spaces other than ASCII's become plain ones."""
    if text.isascii() and text.isprintable():
        return text
    text = _UNSEEN_OR_FLAG.sub(lambda match: match[1] or "", text)
    text = _JOINERS.sub(_needed_joiner, text)
    return "".join(
        " " if char > "\x7f" and char.isspace() else char for char in _BLANK.sub(" ", text)
    )


def _needed_joiner(match: re.Match[str]) -> str:
    """Keep one of a run of joiners if it changes how its neighbours are drawn."""
    text, joiner = match.string, match[0][0]
    before, after = (
        text[max(match.start() - 1, 0) : match.start()],
        text[match.end() : match.end() + 1],
    )
    if _VIRAMA in (_combining(before), _combining(after)):
        return joiner
    joined = [
        bool(_CURSIVE.match(before) and not _LAST_OF_WORD.match(before)),
        bool(_CURSIVE.match(after)),
    ]
    if joiner != _JOINER:
        return joiner if all(joined) else ""  # keeps apart what would join
    return joiner if any(joined) != all(joined) or _is_emoji(before, after) else ""


def _combining(char: str) -> int:
    return unicodedata.combining(char) if char else 0


def _is_emoji(before: str, after: str) -> bool:
    if not (before and after):
        return False
    return (
        unicodedata.category(before) in ("So", "Sk")  # Sk: the modifiers of skin colour
        and unicodedata.category(after) == "So"
    )
