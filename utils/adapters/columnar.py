"""Parquet, Feather and Arrow files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

from utils.adapters.reading import Batch, Reader, damaged
from utils.adapters.sources import SourceFile


class ParquetReader(Reader):
    """A Parquet file; only the wanted columns are read."""

    def __init__(self, source: SourceFile) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._source = source
        try:
            self.columns = tuple(pq.read_schema(_handle(source)).names)
        except (pa.ArrowException, OSError) as error:
            raise damaged(source, "a Parquet file", error) from error

    def read(self, wanted: Sequence[str]) -> Batch:
        """Read the wanted columns."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return Batch(table=pq.read_table(_handle(self._source), columns=list(wanted)))
        except (pa.ArrowException, OSError) as error:
            raise damaged(self._source, "a Parquet file", error) from error


class ArrowReader(Reader):
    """A Feather file (any version), or an Arrow IPC file or stream."""

    def __init__(self, source: SourceFile) -> None:
        import pyarrow as pa
        from pyarrow import feather, ipc

        contents = source.contents()
        old_feather: Any = feather.read_table
        attempts: tuple[Callable[[], Any], ...] = (
            lambda: ipc.RecordBatchFileReader(pa.py_buffer(contents)).read_all(),
            lambda: ipc.RecordBatchStreamReader(pa.py_buffer(contents)).read_all(),
            lambda: old_feather(pa.BufferReader(contents)),
        )
        for attempt in attempts:
            try:
                self._table = attempt()
                self.columns = tuple(self._table.column_names)
                return
            except (pa.ArrowException, OSError) as error:
                failure: Exception = error
        raise damaged(source, "an Arrow or Feather file", failure)

    def read(self, wanted: Sequence[str]) -> Batch:
        """Pick the wanted columns."""
        return Batch(table=self._table.select(list(wanted)))


def _handle(source: SourceFile) -> Any:
    return str(source.path) if source.packed is None else BytesIO(source.packed)
