"""Texts to token ids for encoders: the same code at train and at serve time, free of torch."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from utils.common.errors import UserError
from utils.common.ragged import padded
from utils.neural.tokenizer_cost import check_cost

Tokens = NDArray[np.int64]

CHARACTERS_PER_TOKEN = 200
"""Texts are cut to this many characters per token first, so that ten megabytes cost no more than
a page; ordinary words have about five."""
CHUNK = 4096
MOST_TOKENS = 1 << 16
STDERR = 2
_stderr = threading.Lock()  # one thread at a time puts another file in its place
LARGEST_ID = 2**31 - 1
TRIED = ["", "a", "ꙮ", "猫", "⸻"]
"""Texts that any tokenizer takes, with characters that few have a token for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenRows:
    """The token ids of some texts, without padding.

    Parameters
    ----------
    ids
        All ids, text after text; shape (tokens,).
    starts
        Where each text begins, and the end; shape (rows + 1,).
    pad_id
        Id that fills short rows up.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    pad_id: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, rows: slice) -> TokenRows:
        """Consecutive rows."""
        first, end, _ = rows.indices(len(self))
        starts = self.starts[first : end + 1]
        ids = self.ids[starts[0] : starts[-1]]
        return TokenRows(ids=ids, starts=starts - starts[0], pad_id=self.pad_id)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens per text; shape (rows,)."""
        return np.diff(self.starts)

    def padded(self, rows: NDArray[np.int64]) -> tuple[Tokens, Tokens]:
        """Ids and attention mask of some rows, padded to the longest of them.

        Returns
        -------
        ids, mask
            Shapes (rows, longest), int64.
        """
        ids = padded(self.ids, self.starts, rows, self.pad_id).astype(np.int64)
        mask = np.arange(ids.shape[1]) < self.lengths[rows, None]
        return ids, mask.astype(np.int64)

    def inputs(self, rows: NDArray[np.int64]) -> dict[str, Tokens]:
        """The same by the names of a graph's inputs."""
        ids, mask = self.padded(rows)
        return {"input_ids": ids, "attention_mask": mask}

    def batches(self, size: int) -> Iterator[NDArray[np.int64]]:
        """Rows in batches of similar length, longest first, so that little is padded."""
        order = np.argsort(-self.lengths, kind="stable")
        for start in range(0, len(order), size):
            yield order[start : start + size]


class TextTokenizer:
    """A tokenizer.json with a maximal length.

    Parameters
    ----------
    definition
        Content of a tokenizer.json; truncation and padding set there are not used.
    max_len
        Tokens per text at most, special ones counted.
    pad_id
        Id that fills short rows up.

    Raises
    ------
    UserError
        The definition is none, or lets a single word cost minutes or gigabytes.
    """

    def __init__(self, definition: str, max_len: int, pad_id: int) -> None:
        if not 0 < max_len <= MOST_TOKENS:
            raise UserError(f"max_len = {max_len} is none of 1 to {MOST_TOKENS:,} tokens.")
        with _refused(), _without_stderr():
            self._tokenizer = Tokenizer.from_str(definition)
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(max_len)
            check_cost(self._tokenizer)
            tried = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(TRIED)]
            ids = [self._tokenizer.get_vocab().values(), *tried]  # special ones in the latter only
            self.largest_id = max(chain.from_iterable(ids), default=0)
            if self.largest_id > LARGEST_ID:
                raise ValueError(f"it has an id of {self.largest_id}")
        self.definition = definition
        self.max_len = max_len
        self.pad_id = pad_id

    def to_json(self) -> str:
        """Content of a tokenizer.json that cuts texts as this does, and pads none."""
        return str(self._tokenizer.to_str(pretty=False))

    def edge_rows(self) -> TokenRows:
        """A row of the greatest length, of the largest id but for one that fills rows up."""
        ids = np.full(self.max_len, self.largest_id, dtype=np.int32)
        ids[-1] = self.pad_id
        return TokenRows(ids=ids, starts=np.array([0, len(ids)]), pad_id=self.pad_id)

    def words(self) -> list[str]:
        """Whatever it has a token for, in the order of their ids."""
        vocabulary = self._tokenizer.get_vocab()
        return sorted(vocabulary, key=vocabulary.__getitem__)

    def __call__(self, texts: Sequence[str]) -> TokenRows:
        """Tokenise texts, with the special tokens and truncation."""
        parts: list[NDArray[np.int32]] = []
        lengths: list[int] = []
        for start in range(0, len(texts), CHUNK):
            # A text without any token still needs one for the encoder to look at.
            found = [e.ids or [self.pad_id] for e in self._encode(texts[start : start + CHUNK])]
            lengths.extend(map(len, found))
            parts.append(np.fromiter(chain.from_iterable(found), np.int32))
        ids = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
        starts = np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))])
        return TokenRows(ids=ids, starts=starts, pad_id=self.pad_id)

    def _encode(self, texts: Sequence[str]) -> list[Encoding]:
        limit = self.max_len * CHARACTERS_PER_TOKEN
        cut = [text[:limit] for text in texts]
        with _refused():
            try:
                return self._tokenizer.encode_batch_fast(cut)
            except (TypeError, UnicodeError):
                # JSON can carry halves of surrogate pairs, which are no characters.
                whole = [text.encode("utf-8", "replace").decode() for text in cut]
                return self._tokenizer.encode_batch_fast(whole)


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Drop what is written to standard error: Rust code that panics does so by itself."""
    with _stderr, ExitStack() as stack:
        with suppress(OSError):  # it is closed
            kept = os.dup(STDERR)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, STDERR)
            with Path(os.devnull).open("wb") as nothing:
                os.dup2(nothing.fileno(), STDERR)
        yield


@contextmanager
def _refused() -> Iterator[None]:
    """Turn whatever the library meets in a tokenizer.json into the user's error.

    It raises nothing narrower than `Exception`, and where its Rust code panics not even that.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, UserError):
            raise
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"The encoder's tokenizer.json is damaged: {error}.") from error
