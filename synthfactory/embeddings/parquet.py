"""Banks in parquet: one embedding per real tile, with label, patient and slide, from files that name their encoder.

Columns: embedding (list of float), label, label_level (slide | region | tile), and optionally patient_id, slide_id, site, scanner,
mpp, x, y (pixels of the tile's own resolution), tumour_fraction, and scores of condition screens. File metadata `synthfactory` =
{"encoder": {"id", "sha256", "token"}, "width": 768, "mpp": 0.5}.
"""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from synthfactory.embeddings.bank import MPP, MPP_TOLERANCE, Bank
from synthfactory.embeddings.bombs import check_packing, check_texts, is_text, used
from synthfactory.embeddings.checks import (
    agreed_encoder,
    check_fraction,
    check_mpp,
    check_mpp_known,
    member_of_cohort,
    slide_with_barcode,
)
from synthfactory.embeddings.indexing import build_bank
from synthfactory.embeddings.places import expand, identity, whole_file
from synthfactory.embeddings.rows import Coded, Rows, RowSource
from synthfactory.embeddings.screening import Limits
from synthfactory.embeddings.table import check_names
from synthfactory.shards.store import open_source
from synthfactory.spec.errors import InputError
from synthfactory.spec.json_text import read_json
from synthfactory.spec.text import shown

METADATA_KEY = b"synthfactory"
TEXT = ("label", "label_level", "patient_id", "slide_id", "site", "scanner")
SCORES = ("tumour_fraction", "tissue", "pen", "fold", "sharpness")
NUMBERS = ("mpp", "x", "y", *SCORES)
TEXT_ROWS, BATCH_ROWS, BATCH_BYTES = 1 << 18, 1 << 15, 16 << 20


def load_bank(
    places: str | Sequence[str],
    *,
    width: int,
    encoder: Mapping[str, str] | None,
    classes: Sequence[str] | None,
    declared: Mapping[str, str] | None = None,
    mpp: float | None = None,
    limits: Limits | None = None,
    cache: Path | None = None,
    extent: float = 224.0,
    check_preprocessing: Callable[[Mapping[str, Any], str], None] | None = None,
) -> Bank:
    """The rows of `classes` (None: all) from parquet files: paths, fsspec URLs, patterns.

    `encoder` is the model's (None: any); `declared` and `mpp` are what the spec says where the files do not (a row without an mpp has the
    file's, else the spec's); `check_preprocessing` gets what a file says of the pixels' preparation, and its name.

    Raises InputError, always naming the file, for: no such file, no parquet, no encoder named or another one (or another token) than
    the model's, another width, wrong columns, NaN, an absent label, an mpp that nobody states or more than 5 % off 0.5, a
    tumour_fraction outside 0 to 1, one embedding under two labels, a screen without its column.
    """
    files = expand(places, "a parquet bank of embeddings")
    source = _Files(files, width, classes, tuple({limit.score for limit in (limits or {}).values()}), mpp)
    named = [source.check(file, encoder, declared, check_preprocessing) for file in files]
    other = next((number for number, found in enumerate(named) if found != named[0]), None)
    if other is not None:
        raise InputError(f"{files[other]}: names another encoder or token than {files[0]}; a bank has one")
    return build_bank(
        RowSource(
            files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more",
            named[0],
            width,
            source.rows,
            source.name_of,
            [*identity(files), {"mpp": mpp}],  # what decides rows
            extent,
        ),
        classes,
        limits=limits,
        cache=cache,
    )


@contextlib.contextmanager
def opened(path: str, what: str = "a parquet bank of embeddings") -> Iterator[pq.ParquetFile]:
    """One file, its texts read as dictionaries; what pyarrow and the disk raise becomes InputError. `what` says what is asked for."""
    try:
        with open_source(path) as handle:
            file = pq.ParquetFile(handle)
            texts = [field.name for field in file.schema_arrow if field.name in (*TEXT, "tile") and is_text(field.type)]
            # Buffered reading of what a batch needs; else pyarrow holds a whole column of a row group, which may be gigabytes.
            yield pq.ParquetFile(
                handle, metadata=file.metadata, read_dictionary=texts, buffer_size=1 << 20, pre_buffer=False
            )
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; name {what}") from None
    except IsADirectoryError:
        raise InputError(
            f"{path}: is a folder; a bank is one parquet file or a pattern such as {path.rstrip('/')}/*.parquet "
            "(a folder of tiles goes under embeddings.tiles)"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: holds text that is not UTF-8; write the bank again") from None
    except (pa.ArrowException, OSError) as error:  # pyarrow raises both for damaged files
        why = shown(next(iter(str(error).splitlines()), type(error).__name__))
        raise InputError(f"{path}: is no readable parquet file ({why})") from None


def encoder_named(path: str) -> str | None:
    """The id of the encoder that a bank names; None where it names none. InputError where it is no parquet."""
    with opened(path) as file:
        return (_metadata(file.schema_arrow, path, needed=False)[0] or {}).get("id")


class _Files:
    """The files of one bank as a source of rows; row numbers count through all of them."""

    def __init__(
        self, files: Sequence[str], width: int, classes: Sequence[str] | None, scores: Sequence[str], mpp: float | None
    ) -> None:
        self._files, self._width, self._classes, self._scores, self._mpp = files, width, classes, scores, mpp
        self._starts: list[int] = [0]
        self._stated: dict[str, float | None] = {}  # mpp that a file states for all its rows

    def check(
        self,
        path: str,
        model: Mapping[str, str] | None,
        declared: Mapping[str, str] | None,
        check_preprocessing: Callable[[Mapping[str, Any], str], None] | None,
    ) -> dict[str, str]:
        """Checks what a file says of itself, and notes its number of rows; returns its encoder."""
        with opened(path) as file:
            schema = file.schema_arrow
            _check_columns(schema, path)
            named, mpp, prepared = _metadata(schema, path, needed=declared is None)
            if check_preprocessing is not None:
                check_preprocessing(prepared, path)
            found = agreed_encoder(named, declared, model, path)
            self._stated[path] = mpp
            if "mpp" not in schema.names:
                check_mpp_known(mpp, self._mpp, path)
            for name in self._scores:
                if name not in schema.names:
                    raise InputError(
                        f"{path}: has no column '{name}', which embeddings.screen looks at; `synthfactory embed` writes the scores of "
                        "tiles, tumour_fraction is yours to give"
                    )
            if file.metadata.num_rows == 0 and len(self._files) == 1:
                raise InputError(f"{path}: holds no rows; a bank needs at least one embedding per class")
            check_packing(file.metadata, self._width, path)
            self._starts.append(self._starts[-1] + file.metadata.num_rows)
            return found

    def name_of(self, number: int) -> str:
        """What a row is called in messages."""
        at = int(np.searchsorted(self._starts, number, side="right")) - 1
        text = f"row {number - self._starts[at]}"
        return text if len(self._files) == 1 else f"{text} of {self._files[at]}"

    def rows(self, with_vectors: bool) -> Iterator[Rows]:
        """All rows' texts, or the vectors of the classes asked for, in pieces."""
        for path, start in zip(self._files, self._starts, strict=False):
            with opened(path) as file:
                names = file.schema_arrow.names
                wanted = {
                    *(TEXT[:4] if with_vectors else TEXT[:5]),  # sites are of the first pass
                    "mpp",
                    "tile",
                    "tumour_fraction",
                    *self._scores,
                    *(("embedding", "x", "y") if with_vectors else ()),
                }
                size = min(BATCH_ROWS, max(256, BATCH_BYTES // (4 * self._width))) if with_vectors else TEXT_ROWS
                for batch in file.iter_batches(batch_size=size, columns=[name for name in wanted if name in names]):
                    yield self._piece(batch, start, path, with_vectors)
                    start += batch.num_rows

    def _piece(self, batch: pa.RecordBatch, start: int, path: str, with_vectors: bool) -> Rows:
        check_texts(batch, path)
        numbers = np.arange(start, start + batch.num_rows)
        labels = coded(batch, "label")
        wanted = np.array([self._classes is None or name in self._classes for name in labels.names], bool)
        chosen = np.flatnonzero(wanted[labels.codes])
        part = batch if len(chosen) == batch.num_rows else batch.take(pa.array(chosen))
        if not with_vectors:
            self._check_numbers(part, path)
        if with_vectors and len(chosen) < batch.num_rows:
            batch, numbers, labels = part, numbers[chosen], labels.take(chosen)
        return Rows(
            numbers,
            labels,
            coded(batch, "label_level"),
            coded(batch, "patient_id"),
            _slides(batch),
            _vectors(batch.column("embedding"), self._width, path) if with_vectors else None,
            _places(batch) if with_vectors else None,
            {name: _numbers(batch, name) for name in self._scores},
            coded(batch, "site") if "site" in batch.schema.names else None,
        )

    def _check_numbers(self, batch: pa.RecordBatch, path: str) -> None:
        """InputError for an mpp or a tumour_fraction that cannot be. Nulls of the mpp stand for what the file, or else the spec, says."""
        if "mpp" in batch.schema.names:
            column, values = batch.column("mpp"), _numbers(batch, "mpp")
            if column.null_count:
                check_mpp_known(self._stated[path], self._mpp, path, " in every row")
            stated = np.asarray(column.is_valid().to_numpy(zero_copy_only=False), bool)
            for row in np.flatnonzero(stated & ~(np.abs(values - MPP) <= MPP * MPP_TOLERANCE))[:1].tolist():
                check_mpp(float(values[row]), path, _tile(batch, row))
        if "tumour_fraction" in batch.schema.names:
            values = _numbers(batch, "tumour_fraction")
            for row in np.flatnonzero((values < 0.0) | (values > 1.0))[:1].tolist():
                check_fraction(float(values[row]), "tumour_fraction", f"{path}: {_tile(batch, row)}")


def _tile(batch: pa.RecordBatch, row: int) -> str:
    return f"a tile of label {shown(str(batch.column('label')[row].as_py()))}"


def coded(batch: pa.RecordBatch, name: str) -> Coded:
    """A column of text; None in every row where the batch has none."""
    if name not in batch.schema.names:
        return Coded.all(None, batch.num_rows)
    column = batch.column(name)
    column = used(column) if pa.types.is_dictionary(column.type) else column.cast(pa.string()).dictionary_encode()
    names = column.dictionary.cast(pa.string()).to_pylist()
    codes = column.indices.cast(pa.int64()).fill_null(len(names)).to_numpy(zero_copy_only=False)
    return Coded(codes, (*names, None))


def _slides(batch: pa.RecordBatch) -> Coded:
    """Slides, by `slide_with_barcode` where the batch has names of files (as `synthfactory embed` writes them)."""
    slides = coded(batch, "slide_id")
    if "tile" not in batch.schema.names:
        return slides
    files = batch.column("tile")
    files = used(files) if pa.types.is_dictionary(files.type) else files.cast(pa.string()).dictionary_encode()
    likely = pc.match_substring(files.dictionary.cast(pa.string()), "tcga-", ignore_case=True)
    hinted = pc.fill_null(likely.take(files.indices), False)
    patients = coded(batch, "patient_id")
    said = [
        np.array([member_of_cohort(name) is not None for name in ids.names], bool)[ids.codes]
        for ids in (slides, patients)
    ]
    rows = np.flatnonzero(hinted.to_numpy(zero_copy_only=False) & ~said[0] & ~said[1])
    if not len(rows):
        return slides
    names = [slides.at(row) for row in range(len(slides.codes))]
    for row in map(int, rows):
        names[row] = slide_with_barcode(names[row], patients.at(row), files[row].as_py())
    found = pa.array(names, pa.string()).dictionary_encode()
    return Coded(
        found.indices.cast(pa.int64()).fill_null(len(found.dictionary)).to_numpy(zero_copy_only=False),
        (*found.dictionary.to_pylist(), None),
    )


def _numbers(batch: pa.RecordBatch, name: str) -> np.ndarray:
    return np.asarray(batch.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)


def _places(batch: pa.RecordBatch) -> np.ndarray | None:
    if not {"x", "y"} <= set(batch.schema.names):
        return None
    return np.stack([_numbers(batch, "x"), _numbers(batch, "y")], axis=1)


def _vectors(column: pa.Array, width: int, path: str) -> np.ndarray:
    fixed = pa.types.is_fixed_size_list(column.type)
    lengths = {column.type.list_size} if fixed else set(pc.unique(column.value_lengths()).to_pylist())
    if column.null_count or not lengths <= {width}:
        found = "missing values" if column.null_count else f"width {', '.join(map(str, sorted(lengths)[:3]))}"
        raise InputError(f"{path}: embeddings have {found}; the model needs width {width} in every row")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinity, which is refused later
        return np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(-1, width)


def _metadata(
    schema: pa.Schema, where: str, *, needed: bool
) -> tuple[dict[str, str] | None, float | None, dict[str, Any]]:
    """(encoder, mpp, preprocessing) as the file's metadata say; of the encoder what there is, unless it is `needed` whole."""
    values = None
    with contextlib.suppress(KeyError, ValueError):
        values = read_json((schema.metadata or {})[METADATA_KEY])
    values = values if isinstance(values, dict) else {}
    encoder, prepared = (
        value if isinstance(value := values.get(key), dict) else {} for key in ("encoder", "preprocessing")
    )
    mpp = _stated_mpp(values.get("mpp"), where)
    said = {key: encoder[key] for key in ("id", "sha256", "token") if isinstance(encoder.get(key), str)}
    if needed and not {"id", "sha256"} <= set(said):
        raise InputError(
            f'{where}: does not name its encoder; the parquet metadata needs a key "synthfactory" with JSON such as '
            '{"encoder": {"id": "phantom-encoder", "sha256": "...", "token": "class"}}, '
            "or embeddings.encoder in the spec says who it was"
        )
    return said or None, mpp, prepared


def _stated_mpp(value: Any, where: str) -> float | None:
    """The mpp of a file's metadata, a number or the text of one; InputError for anything else."""
    if value is None:
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        return float(value)
    except (ValueError, OverflowError):
        raise InputError(
            f'{where}: its metadata\'s mpp {shown(str(value)[:80])} is no number; write for example "mpp": {MPP}'
        ) from None


def _check_columns(schema: pa.Schema, where: str) -> None:
    for name in ("embedding", "label", "label_level"):
        if name not in schema.names:
            others = [other for other in schema.names if other not in ("embedding", *TEXT, *NUMBERS)]
            close = difflib.get_close_matches(name, [other.lower() for other in others], 1)
            meant = [other for other in others if close and other.lower() == close[0]]
            hint = f" (is '{shown(meant[0])}' meant?)" if meant else ""
            raise InputError(f"{where}: has no column '{name}'{hint}; embedding, label and label_level are needed")
    doubled = [name for name in ("embedding", *TEXT, *NUMBERS) if schema.names.count(name) > 1]
    if doubled:
        raise InputError(f"{where}: has more than one column '{doubled[0]}'; keep one of them")
    check_names(schema.names, where, (*TEXT, "mpp", "tumour_fraction"))  # case_id would else pass for patients unknown
    kind = schema.field("embedding").type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not listed or not pa.types.is_floating(kind.value_type):
        raise InputError(f"{where}: column 'embedding' is {kind}; it must be a list of float32")
    for name in TEXT:
        if name in schema.names and not is_text(schema.field(name).type):
            raise InputError(f"{where}: column '{name}' is {schema.field(name).type}; it must be a string")
    for name in NUMBERS:
        if name in schema.names:
            found = schema.field(name).type
            if not (pa.types.is_floating(found) or pa.types.is_integer(found) or pa.types.is_null(found)):
                raise InputError(f"{where}: column '{name}' is {found}; it must be a number")


def write_bank(path: str, bank: Bank) -> None:
    """Writes a bank as parquet, embeddings as fixed-size lists of float32; equal banks give equal bytes."""
    write_table(
        path,
        bank.embeddings,
        {
            "label": pa.array(bank.labels, pa.string()),
            "label_level": pa.array(bank.label_levels, pa.string()),
            "patient_id": pa.array(bank.patient_ids, pa.string()),
            "slide_id": pa.array(bank.slide_ids, pa.string()),
            **({"site": pa.array(bank.sites, pa.string())} if bank.groups.sites else {}),
        },
        {"encoder": dict(bank.encoder)},
    )


def write_table(path: str, embeddings: np.ndarray, columns: Mapping[str, Any], described: Mapping[str, Any]) -> None:
    """Writes rows as a parquet bank (path or fsspec URL) at 0.5 um/px; `described` holds at least `encoder` and goes into the metadata."""
    width = embeddings.shape[1]
    flat = pa.array(np.ascontiguousarray(embeddings, np.float32).ravel())
    table = pa.table({"embedding": pa.FixedSizeListArray.from_arrays(flat, width), **columns})
    metadata = json.dumps({"mpp": MPP, **described, "width": width}, sort_keys=True).encode()
    with whole_file(path) as handle:
        pq.write_table(table.replace_schema_metadata({METADATA_KEY: metadata}), handle, compression="zstd")
