"""TF-IDF features of texts: the same code at train and at serve time, without scikit-learn.

A feature is a run of one or more stems, or a character n-gram within a word. Words are counted
once per distinct word and looked up in whole columns: nothing here loops over occurrences.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from utils.common.config import checked_values, key
from utils.common.files import atomic_path
from utils.common.ragged import padded
from utils.linear.text import TokenStream, boundary_ngrams, stem, stemmers, token_stream

Arrays = dict[str, NDArray[Any]]
Counts: TypeAlias = sp.csr_matrix


@dataclass(frozen=True, kw_only=True)
class TfidfSettings:
    """What counts as a feature; docs/tfidf.md tells how the defaults were chosen."""

    stemmer: str = key("english", choices=stemmers(), note="Snowball language, or none")
    word_ngrams: int = key(2, low=1, high=5, note="longest run of stems that is one feature")
    char_ngrams: int = key(0, low=0, high=8, note="longest n-gram within a word, 0 for none")
    char_ngrams_from: int = key(2, low=1, high=8, note="shortest n-gram within a word")
    min_df: int = key(1, low=1, note="a feature stands in at least so many training texts")
    max_features: int = key(500_000, low=1, note="min_df is raised until no more remain")
    sublinear_tf: bool = key(True, note="count a feature 1 + log(count) times")


def _count(rows: NDArray[np.int32], columns: NDArray[Any], shape: tuple[int, int]) -> Counts:
    """Count (row, column) pairs; the columns of each row come out sorted."""
    ones = np.ones(len(rows), dtype=np.float32)
    starts = np.zeros(shape[0] + 1, dtype=np.int64)
    np.cumsum(np.bincount(rows, minlength=shape[0]), out=starts[1:])
    # Tokens come row after row, so the pairs already are a CSR matrix, only with repeats.
    counts = sp.csr_matrix((ones, columns.astype(np.int32), starts), shape=shape)
    counts.sum_duplicates()
    return counts


def _document_frequency(counts: Counts) -> NDArray[np.int64]:
    return np.bincount(counts.indices, minlength=counts.shape[1])


def _find(keys: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the places of values in a sorted array, -1 for the unknown."""
    if not len(keys):
        return np.full(len(wanted), -1, dtype=np.int64)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, places, -1)


def _pack(strings: Sequence[str]) -> NDArray[np.uint8]:
    return np.frombuffer("\n".join(strings).encode(), dtype=np.uint8).copy()


def _unpack(packed: NDArray[np.uint8]) -> list[str]:
    return packed.tobytes().decode().split("\n") if len(packed) else []


class WordVocabulary:
    """Runs of stems. A run of n is keyed by (its first n-1, its last), both as numbers.

    Parameters
    ----------
    words : sorted stems.
    runs : for n = 2, 3, … the sorted keys: index of the run of n-1 times the number of words,
        plus the index of the last word. A run's first n-1 words are always a known run.
    """

    def __init__(self, words: list[str], runs: list[NDArray[np.int64]]) -> None:
        self.words = words
        self.runs = runs
        self._index = {word: place for place, word in enumerate(words)}

    def __len__(self) -> int:
        return len(self.words) + sum(map(len, self.runs))

    @classmethod
    def learn(
        cls, stream: TokenStream, language: str, longest: int, min_df: int
    ) -> tuple[WordVocabulary, Counts]:
        """Collect what stands in at least `min_df` rows, and count it.

        Returns
        -------
        vocabulary
        counts : (rows, features)
        """
        stems = stem(stream.words, language)
        words = sorted(set(stems) - {""})
        every = cls(words, [])
        ids = every._word_ids(stems, stream)
        kept = _document_frequency(every._count(ids, stream.rows, len(words), stream)) >= min_df
        vocabulary = cls([word for word, keep in zip(words, kept, strict=True) if keep], [])
        here = vocabulary._word_ids(stems, stream)
        blocks = [vocabulary._count(here, stream.rows, len(vocabulary.words), stream)]
        for keys in vocabulary._run_keys(here, stream.rows, longest):
            there = keys >= 0
            known, places = np.unique(keys[there], return_inverse=True)
            counts = _count(stream.rows[: len(keys)][there], places, (stream.row_count, len(known)))
            frequent = _document_frequency(counts) >= min_df
            vocabulary.runs.append(known[frequent])
            blocks.append(counts[:, np.flatnonzero(frequent)])
        return vocabulary, sp.hstack(blocks, format="csr")

    def _word_ids(self, stems: Sequence[str], stream: TokenStream) -> NDArray[np.int64]:
        table = np.fromiter((self._index.get(s, -1) for s in stems), np.int64, len(stems))
        return table[stream.ids] if len(stems) else np.zeros(0, dtype=np.int64)

    def _run_keys(
        self, ids: NDArray[np.int64], rows: NDArray[np.int32], longest: int
    ) -> Iterable[NDArray[np.int64]]:
        """Yield for n = 2 … `longest` the key at every token, -1 where no run can start.

        The consumer may add `runs[n - 2]` before it asks for the next.
        """
        before = ids
        for n in range(2, longest + 1):
            last = max(len(ids) - n + 1, 0)
            first, final = before[:last], ids[n - 1 :]
            fits = (first >= 0) & (final >= 0) & (rows[:last] == rows[n - 1 :])
            keys = np.where(fits, first * len(self.words) + final, -1)
            yield keys
            before = np.where(keys >= 0, _find(self.runs[n - 2], keys), -1)

    @staticmethod
    def _count(
        places: NDArray[np.int64], rows: NDArray[np.int32], size: int, stream: TokenStream
    ) -> Counts:
        there = places >= 0
        return _count(rows[: len(places)][there], places[there], (stream.row_count, size))

    def count(self, stream: TokenStream, language: str) -> Counts:
        """Count the known runs; shape (rows, features)."""
        ids = self._word_ids(stem(stream.words, language), stream)
        blocks = [self._count(ids, stream.rows, len(self.words), stream)]
        for n, keys in enumerate(self._run_keys(ids, stream.rows, len(self.runs) + 1), start=2):
            known = self.runs[n - 2]
            places = np.where(keys >= 0, _find(known, keys), -1)
            blocks.append(self._count(places, stream.rows, len(known), stream))
        return sp.hstack(blocks, format="csr")


class CharVocabulary:
    """Character n-grams within words.

    Each distinct word is cut once; a text's counts are the sparse product of its word counts
    with the words' n-gram counts.
    """

    def __init__(self, grams: list[str], shortest: int, longest: int) -> None:
        self.grams = grams
        self.shortest, self.longest = shortest, longest
        self._index = {gram: place for place, gram in enumerate(grams)}

    def __len__(self) -> int:
        return len(self.grams)

    @classmethod
    def learn(
        cls, stream: TokenStream, shortest: int, longest: int, min_df: int
    ) -> tuple[CharVocabulary, Counts]:
        """Collect what stands in at least `min_df` rows, and count it."""
        index: defaultdict[str, int] = defaultdict(count().__next__)
        cut = _cut(stream.words, shortest, longest, index.__getitem__)
        cut.resize(len(stream.words), len(index))
        counts = _bag(stream) @ cut
        kept = np.flatnonzero(_document_frequency(counts) >= min_df)
        grams = list(index)
        order = kept[np.argsort(np.array([grams[place] for place in kept], dtype=object))]
        counts = counts[:, order]
        counts.sort_indices()
        return cls([grams[place] for place in order], shortest, longest), counts

    def count(self, stream: TokenStream) -> Counts:
        """Count the known n-grams; shape (rows, features)."""
        unknown = len(self.grams)
        cut = _cut(
            stream.words,
            self.shortest,
            self.longest,
            lambda gram: self._index.get(gram, unknown),
        )
        cut.resize(len(stream.words), unknown + 1)
        counts = (_bag(stream) @ cut)[:, :unknown]
        counts.sort_indices()
        return counts


def _bag(stream: TokenStream) -> Counts:
    return _count(stream.rows, stream.ids, (stream.row_count, len(stream.words)))


def _cut(words: list[str], shortest: int, longest: int, place: Callable[[str], int]) -> Counts:
    places, ends = array("i"), array("q", [0])
    for word in words:
        # A word of one character says nothing that the word itself does not.
        grams = boundary_ngrams(word, shortest, longest) if len(word) > 1 else []
        places.extend(map(place, grams))
        ends.append(len(places))
    columns = np.asarray(places, dtype=np.int32)
    ones = np.ones(len(columns), dtype=np.float32)
    width = int(columns.max()) + 1 if len(columns) else 1
    cut = sp.csr_matrix((ones, columns, np.asarray(ends)), shape=(len(words), width))
    cut.sum_duplicates()
    return cut


@dataclass(frozen=True, kw_only=True, eq=False)
class TfidfRows:
    """Feature rows as a graph takes them."""

    matrix: sp.csr_matrix

    def __len__(self) -> int:
        return int(self.matrix.shape[0])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Features per text; shape (rows,)."""
        return np.diff(self.matrix.indptr).astype(np.int64)

    def inputs(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Ids and values of some rows' features, padded with a feature of no weight."""
        starts, width = self.matrix.indptr, self.matrix.shape[1]
        ids = padded(self.matrix.indices, starts, rows, width)
        values = padded(self.matrix.data, starts, rows, 0)
        if not ids.shape[1]:  # no text has any
            ids, values = np.full((len(rows), 1), width), np.zeros((len(rows), 1), np.float32)
        return {"feature_ids": ids.astype(np.int64), "feature_values": values}


class TfidfFeatures:
    """Turns texts into rows of length one of a sparse float32 matrix."""

    def __init__(
        self,
        settings: TfidfSettings,
        words: WordVocabulary,
        chars: CharVocabulary | None,
        idf: NDArray[np.float32],
    ) -> None:
        self.settings = settings
        self.words, self.chars = words, chars
        self.idf = idf

    @property
    def feature_count(self) -> int:
        """Number of columns."""
        return len(self.idf)

    @classmethod
    def learn(
        cls, texts: Iterable[str], settings: TfidfSettings
    ) -> tuple[TfidfFeatures, sp.csr_matrix]:
        """Collect the vocabulary of training texts.

        Returns
        -------
        features
        matrix : (rows, features), what `transform` gives for the same texts.
        """
        stream = token_stream(texts)
        words, chars, counts = _learn_counts(stream, settings)
        seen = _document_frequency(counts)
        idf = (np.log((1 + stream.row_count) / (1 + seen)) + 1).astype(np.float32)
        features = cls(settings, words, chars, idf)
        return features, features._weigh(counts)

    def transform(self, texts: Iterable[str]) -> sp.csr_matrix:
        """Return the features of texts; a text without any known word is a row of zeros."""
        stream = token_stream(texts)
        counts = self.words.count(stream, self.settings.stemmer)
        if self.chars is not None:
            counts = sp.hstack([counts, self.chars.count(stream)], format="csr")
        return self._weigh(counts)

    def _weigh(self, counts: Counts) -> sp.csr_matrix:
        if self.settings.sublinear_tf:
            counts.data = np.log(counts.data) + np.float32(1)
        counts.data = counts.data * self.idf[counts.indices]
        # Words and characters get equal shares, however many of each a text has.
        starts = np.array([0, len(self.words)]) if self.chars is not None else np.array([0])
        _normalise(counts, starts)
        return counts

    def rows(self, texts: Iterable[str]) -> TfidfRows:
        """The same as rows for a graph."""
        return TfidfRows(matrix=self.transform(texts))

    def __call__(self, texts: Iterable[str]) -> TfidfRows:
        """The same: a front end of a graph."""
        return self.rows(texts)

    def edge_rows(self) -> TfidfRows:
        """A row with the last feature, and one without any, which is padded."""
        last = ([np.float32(1)], ([0], [self.feature_count - 1]))
        return TfidfRows(matrix=sp.csr_matrix(last, shape=(2, self.feature_count)))

    def save(self, path: Path) -> dict[str, Any]:
        """Write the vocabulary to a file; return the settings that `load` needs."""
        from safetensors.numpy import save_file

        arrays, settings = self.state()
        with atomic_path(path) as temporary:
            save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, temporary)
        return settings

    @classmethod
    def load(cls, path: Path, settings: dict[str, Any]) -> TfidfFeatures:
        """Read what `save` wrote."""
        from safetensors.numpy import load_file

        return cls.from_state(load_file(path), settings)

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Return arrays and plain values that `from_state` rebuilds this from."""
        arrays: Arrays = {"idf": self.idf, "words": _pack(self.words.words)}
        for n, keys in enumerate(self.words.runs, start=2):
            arrays[f"runs_{n}"] = keys
        if self.chars is not None:
            arrays["chars"] = _pack(self.chars.grams)
        return arrays, asdict(self.settings)

    @classmethod
    def from_state(cls, arrays: Arrays, meta: dict[str, Any]) -> TfidfFeatures:
        """Rebuild from `state`."""
        settings = TfidfSettings(**checked_values(TfidfSettings, meta, "tfidf"))
        runs = [arrays[f"runs_{n}"] for n in range(2, settings.word_ngrams + 1)]
        chars = None
        if settings.char_ngrams:
            grams = _unpack(arrays["chars"])
            chars = CharVocabulary(grams, settings.char_ngrams_from, settings.char_ngrams)
        words, idf = WordVocabulary(_unpack(arrays["words"]), runs), arrays["idf"]
        if idf.shape != (len(words) + (len(chars.grams) if chars else 0),):
            raise ValueError(f"{idf.shape} weights do not fit its vocabulary")
        return cls(settings, words, chars, idf)


def _learn_counts(
    stream: TokenStream, settings: TfidfSettings
) -> tuple[WordVocabulary, CharVocabulary | None, Counts]:
    """Learn both vocabularies with the smallest frequency bound that keeps the limit."""
    least = settings.min_df
    while True:
        words, counts = WordVocabulary.learn(stream, settings.stemmer, settings.word_ngrams, least)
        chars = None
        if settings.char_ngrams:
            chars, more = CharVocabulary.learn(
                stream, settings.char_ngrams_from, settings.char_ngrams, least
            )
            counts = sp.hstack([counts, more], format="csr")
        if counts.shape[1] <= settings.max_features:
            return words, chars, counts
        seen = np.sort(_document_frequency(counts))[::-1]
        least = int(seen[settings.max_features]) + 1


def _normalise(matrix: sp.csr_matrix, starts: NDArray[np.int64]) -> None:
    """Scale each row's blocks of columns to equal length, and the row to length one."""
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    block = np.searchsorted(starts, matrix.indices, side="right") - 1
    cells = rows * len(starts) + block
    squares = np.bincount(
        cells, weights=matrix.data.astype(np.float64) ** 2, minlength=matrix.shape[0] * len(starts)
    )
    filled = (squares.reshape(-1, len(starts)) > 0).sum(axis=1)
    length = np.sqrt(squares[cells] * filled[rows])
    matrix.data = (matrix.data / length).astype(np.float32)
