"""Training rows in one Parquet file: rows that came from elsewhere, to be selected and trained on like our own.

An artifact's parts are vouched for by a manifest; such a file is vouched for by nobody, so everything that is wrong with
it is the giver's mistake and names the file and the row. The row type is in the schema's metadata, under the name that
`row_tables.schema_of` puts there.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fusion.errors import ArtifactError, InputError
from fusion.row_tables import from_table, schema_of, to_table
from fusion.rows import TRAINING_ROWS

BATCH_ROWS = 1024
"""Rows that are decoded at once."""

_TYPES = {row_type.__name__: row_type for row_type in TRAINING_ROWS}


def row_type_of(path: Path) -> type:
    """Return the row type of a file of training rows. Reads the footer only.

    Raises:
        InputError: not a readable Parquet file, or not of a training row type.
    """
    return _type_of(_open(path), path)


def count_rows(path: Path) -> int:
    """Return the number of rows of a file. Raises InputError as `row_type_of` does."""
    return _open(path).metadata.num_rows


def read_rows(path: Path) -> Iterator[Any]:
    """Yield the rows of a file in its order.

    Raises:
        InputError: as `row_type_of`; rows of another version of the row type; a row that cannot be, by its place.
    """
    file = _open(path)
    row_type = _type_of(file, path)
    place = 0
    try:
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            batch.validate(full=True)  # a foreign file may hold text that is not UTF-8
            for row in from_table(pa.Table.from_batches([batch]), row_type):
                yield row
                place += 1
    except ArtifactError as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}; import the data set again") from None
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read from row {place} on: {_first_line(error)}; import it again") from None
    except (TypeError, ValueError) as error:  # a row's own invariant; a null where the row has none
        raise InputError(f"{path}:{place}: {_first_line(error)}; mend it, or import the data set again") from None


class RowFile:
    """Writes a file of training rows of one type, some at a time, to a path that the caller makes final."""

    def __init__(self, path: Path, row_type: type) -> None:
        self.path, self.row_type, self.num_rows = path, row_type, 0
        self._writer = pq.ParquetWriter(path, schema_of(row_type), compression="zstd")

    def write(self, rows: Iterable[Any]) -> None:
        table = to_table(rows, self.row_type)
        self._writer.write_table(table)
        self.num_rows += table.num_rows

    def close(self) -> None:
        self._writer.close()


def _open(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise InputError(f"{path} is not a file; name the rows.parquet that `fuseline import` wrote")
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: names of columns that are no text
        raise InputError(f"{path} is not a readable Parquet file: {_first_line(error)}") from None


def _type_of(file: pq.ParquetFile, path: Path) -> type:
    name = (file.schema_arrow.metadata or {}).get(b"row_type", b"").decode("utf-8", "replace")
    if name not in _TYPES:
        raise InputError(
            f"{path} holds no training rows: its schema names {name or 'no row type'}; name the rows.parquet that "
            "`fuseline import` wrote"
        )
    return _TYPES[name]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
