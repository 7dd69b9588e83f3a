"""Parquet, Feather and Arrow files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from utils.tables.arrow_types import named_classes, plain_table
from utils.tables.batches import Batch, Reader, damaged
from utils.tables.source_files import SourceFile

if TYPE_CHECKING:
    import pyarrow as pa


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
            table = pq.read_table(_handle(self._source), columns=list(wanted), partitioning=None)
        except (pa.ArrowException, OSError) as error:
            raise damaged(self._source, "a Parquet file", error) from error
        return _batch(table)


class ArrowReader(Reader):
    """A Feather file (any version), or an Arrow IPC file or stream."""

    def __init__(self, source: SourceFile) -> None:
        import pyarrow as pa
        from pyarrow import feather, ipc

        self._source, contents = source, source.contents()
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
        import pyarrow as pa

        table = self._table.select(list(wanted))
        try:
            table.validate(full=True)  # an offset that points elsewhere would be followed
        except pa.ArrowException as error:
            raise damaged(self._source, "an Arrow or Feather file", error) from error
        return _batch(table)


def _batch(table: pa.Table) -> Batch:
    plain = plain_table(table).replace_schema_metadata(table.schema.metadata)
    named, notes = named_classes(plain)
    return Batch(table=named, notes=notes)


def _handle(source: SourceFile) -> Any:
    return str(source.path) if source.packed is None else BytesIO(source.packed)
