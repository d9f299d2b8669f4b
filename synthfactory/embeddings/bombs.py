"""Files that claim far more than they hold: a few kilobytes of them would else fill a disk or the memory."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from synthfactory.spec.errors import InputError

MOST_UNPACKED = 2000  # bytes from one: more than floats are ever compressed, by what HDF5 and parquet have
MAX_TEXT = 1 << 16  # bytes of a label, an id or a file's name


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds text, plain or as a dictionary, or nothing at all."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def check_packing(found: pq.FileMetaData, width: int, path: str) -> None:
    """InputError where a file claims more embeddings than can be in it: a few kilobytes could fill the disk with their index."""
    kept = 0
    for group in map(found.row_group, range(found.num_row_groups)):
        columns = map(group.column, range(group.num_columns))
        kept += sum(
            each.total_compressed_size for each in columns if each.path_in_schema.partition(".")[0] == "embedding"
        )
    if found.num_rows * width * 4 > MOST_UNPACKED * max(kept, 4096):
        raise InputError(
            f"{path}: claims {found.num_rows:,} embeddings of width {width}, and holds {kept:,} bytes of them; write the bank again"
        )


def used(column: pa.DictionaryArray) -> pa.DictionaryArray:
    """The same rows with the texts alone that they name: readers hand on all that a row group has named so far, with every piece of it."""
    there = pc.unique(column.indices.drop_null())
    if len(there) == len(column.dictionary):
        return column
    return pa.DictionaryArray.from_arrays(pc.index_in(column.indices, there), column.dictionary.take(there))


def check_texts(batch: pa.RecordBatch, path: str) -> None:
    """InputError for a text that is longer than any label, id or name of a file: it may stand there once and be named by every row."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        texts = used(column).dictionary if pa.types.is_dictionary(column.type) else column
        if is_text(texts.type) and not pa.types.is_null(texts.type):
            longest = pc.max(pc.binary_length(texts)).as_py() if len(texts) else 0
            if (longest or 0) > MAX_TEXT:
                raise InputError(
                    f"{path}: column '{name}' holds a text of {longest:,} bytes; at most {MAX_TEXT:,} make sense there"
                )
