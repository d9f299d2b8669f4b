"""A bank: one embedding per real tile, with label, patient and slide, from a parquet file that names its encoder.

Columns: embedding (list of float), label, label_level (slide | region | tile), and optionally patient_id, slide_id, site, scanner,
mpp, x, y. File metadata `synthfactory` = {"encoder": {"id", "sha256", "token"}, "width": 768}. Rows are sorted on loading (label,
patient, slide, embedding, level), so that the order of the file changes nothing.
"""

from __future__ import annotations

import difflib
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from synthfactory.shards.store import open_source
from synthfactory.spec.errors import InputError

LEVELS = ("slide", "region", "tile")
METADATA_KEY = b"synthfactory"
MPP, MPP_TOLERANCE = 0.5, 0.05
MAX_SHOWN = 64  # characters of a label, an id or an error in a message
TEXT = ("label", "label_level", "patient_id", "slide_id", "site", "scanner")
NUMBERS = ("mpp", "x", "y")
UNKNOWN = {"", "unknown", "na", "n/a", "none", "nan", "not stated"}


@dataclass(frozen=True)
class Bank:
    """Rows of a bank, in canonical order; only those of the classes asked for. None stands for an unknown patient or slide."""

    embeddings: np.ndarray = field(repr=False)  # float32 (N, E)
    labels: tuple[str, ...] = field(repr=False)
    label_levels: tuple[str, ...] = field(repr=False)
    patient_ids: tuple[str | None, ...] = field(repr=False)
    slide_ids: tuple[str | None, ...] = field(repr=False)
    encoder: Mapping[str, str]
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def rows_of(self, class_name: str) -> tuple[list[str], np.ndarray]:
        """(patient of each row, row numbers) of a class. All rows without a patient are one patient, named ''."""
        rows = np.flatnonzero(np.asarray(self.labels, dtype=np.str_) == class_name)
        return [self.patient_ids[row] or "" for row in rows], rows

    def mac(self, key: bytes) -> str:
        """HMAC-SHA256 (hex) over the canonical content: says whether two banks are equal, tells nothing else without the key."""
        digest = hmac.new(key, b"synthfactory-bank-1", hashlib.sha256)
        head = {"encoder": dict(self.encoder), "shape": list(self.embeddings.shape)}
        digest.update(json.dumps(head, sort_keys=True).encode())
        for column in (self.labels, self.label_levels, self.patient_ids, self.slide_ids):
            digest.update(json.dumps(column).encode())
        digest.update(np.ascontiguousarray(self.embeddings, dtype="<f4").tobytes())
        return digest.hexdigest()

    def class_mac(self, key: bytes, class_name: str) -> str:
        """As `mac`, of one class's rows."""
        rows = self.rows_of(class_name)[1]
        return self._taken(rows).mac(key)

    def _taken(self, rows: np.ndarray) -> Bank:
        def pick(column: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(column[row] for row in rows)

        return Bank(
            self.embeddings[rows],
            pick(self.labels),
            pick(self.label_levels),
            pick(self.patient_ids),
            pick(self.slide_ids),
            self.encoder,
            self.warnings,
        )


def make_bank(
    embeddings: np.ndarray,
    labels: Sequence[str],
    label_levels: Sequence[str],
    patient_ids: Sequence[str | None],
    slide_ids: Sequence[str | None],
    encoder: Mapping[str, str],
    where: str,
    *,
    name_of: Callable[[int], str] = "row {}".format,
) -> Bank:
    """A checked bank in canonical order. InputError (naming `where`) for NaN, one embedding under two labels, unknown levels.

    `name_of` says what a row is called in messages (a row of a file, a tile).
    """
    vectors = np.ascontiguousarray(embeddings, np.float32)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise InputError(
            f"{where}: {len(bad)} embeddings hold NaN or infinity, the first in {name_of(int(bad[0]))}; remove them"
        )
    wrong = next((row for row, level in enumerate(label_levels) if level not in LEVELS), None)
    if wrong is not None:
        raise InputError(
            f"{where}: label_level '{shown(label_levels[wrong])}' of {name_of(wrong)} does not exist; "
            "it would be slide, region or tile"
        )
    raw = [row.tobytes() for row in vectors]
    order = sorted(
        range(len(raw)),
        key=lambda i: (labels[i], patient_ids[i] or "", slide_ids[i] or "", raw[i], label_levels[i]),
    )
    first: dict[bytes, int] = {}
    doubled = 0
    for row in order:
        before = first.setdefault(raw[row], row)
        if before != row:
            doubled += 1
            if labels[before] != labels[row]:
                raise InputError(
                    f"{where}: {name_of(before)} and {name_of(row)} hold the same embedding under the labels "
                    f"'{labels[before]}' and '{labels[row]}'; one tile has one label, so remove one of them"
                )
    warnings = (f"{where}: {doubled} rows repeat an embedding",) if doubled else ()

    def sorted_column(column: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(column[row] for row in order)

    return Bank(
        vectors[order],
        sorted_column(labels),
        sorted_column(label_levels),
        sorted_column(patient_ids),
        sorted_column(slide_ids),
        dict(encoder),
        warnings,
    )


def shown(text: str) -> str:
    """Text of unknown origin, safe to print: unprintable characters escaped, cut at 64."""
    safe = text if text.isprintable() else ascii(text)[1:-1]
    return safe if len(safe) <= MAX_SHOWN else safe[: MAX_SHOWN - 3] + "..."


def known(value: Any) -> str | None:
    """A patient or slide id, or None for the many ways of writing 'unknown'."""
    text = "" if value is None else str(value).strip()
    return None if text.lower() in UNKNOWN else text


def _metadata(schema: pa.Schema, where: str) -> dict[str, Any]:
    try:
        values = json.loads((schema.metadata or {})[METADATA_KEY])
        encoder = values["encoder"]
        if not (isinstance(encoder["id"], str) and isinstance(encoder["sha256"], str)):
            raise TypeError
    except (KeyError, ValueError, TypeError, RecursionError):
        raise InputError(
            f'{where}: does not name its encoder; the parquet metadata needs a key "synthfactory" with JSON such as '
            '{"encoder": {"id": "phantom-encoder", "sha256": "...", "token": "class"}}'
        ) from None
    return {"id": encoder["id"], "sha256": encoder["sha256"], "token": str(encoder.get("token", "class"))}


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
    kind = schema.field("embedding").type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not listed or not pa.types.is_floating(kind.value_type):
        raise InputError(f"{where}: column 'embedding' is {kind}; it must be a list of float32")
    for name in TEXT:
        if name in schema.names and not _is_text(schema.field(name).type):
            raise InputError(f"{where}: column '{name}' is {schema.field(name).type}; it must be a string")
    for name in NUMBERS:
        if name in schema.names:
            found = schema.field(name).type
            if not (pa.types.is_floating(found) or pa.types.is_integer(found) or pa.types.is_null(found)):
                raise InputError(f"{where}: column '{name}' is {found}; it must be a number")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def load_bank(path: str, *, width: int, encoder: Mapping[str, str] | None, classes: Sequence[str]) -> Bank:
    """The rows of `classes` from a parquet bank (path or fsspec URL).

    Raises InputError, always naming the file, for: no such file, no parquet, no encoder named or another one (or another token)
    than the model's `encoder`, another width, wrong columns, NaN, an absent label, an mpp more than 5 % off 0.5, one embedding
    under two labels.
    """
    try:
        with open_source(path) as handle:
            return _load(pq.ParquetFile(handle), path, width, encoder, classes)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; name a parquet bank of embeddings") from None
    except IsADirectoryError:
        raise InputError(
            f"{path}: is a folder; a bank is one parquet file (a folder of tiles goes under embeddings.tiles)"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: holds text that is not UTF-8; write the bank again") from None
    except (pa.ArrowException, OSError) as error:  # pyarrow raises both for damaged files
        why = shown(next(iter(str(error).splitlines()), type(error).__name__))
        raise InputError(f"{path}: is no readable parquet file ({why})") from None


def _load(
    file: pq.ParquetFile, path: str, width: int, encoder: Mapping[str, str] | None, classes: Sequence[str]
) -> Bank:
    schema = file.schema_arrow
    _check_columns(schema, path)
    named = _metadata(schema, path)
    if encoder is not None and named["sha256"] != encoder["sha256"]:
        raise InputError(
            f"{path}: was made with encoder {shown(named['id'])} ({shown(named['sha256'][:12])}), but the model is conditioned "
            f"on {encoder['id']} ({encoder['sha256'][:12]}); embed the tiles again with the model's encoder"
        )
    if encoder is not None and named["token"] != encoder.get("token", "class"):
        raise InputError(
            f"{path}: holds the encoder's token '{shown(named['token'])}', but the model is conditioned on token "
            f"'{encoder.get('token', 'class')}'; embed the tiles again with that token"
        )
    if file.metadata.num_rows == 0:
        raise InputError(f"{path}: holds no rows; a bank needs at least one embedding per class")
    wanted, seen = set(classes), set[str]()
    columns = [name for name in ("embedding", *TEXT[:4], "mpp") if name in schema.names]
    vectors: list[np.ndarray] = []
    rows: list[tuple[str, str, str | None, str | None]] = []
    numbers: list[np.ndarray] = []  # of the rows in the file
    start = 0
    for batch in file.iter_batches(batch_size=8192, columns=columns):
        labels = batch.column("label").cast(pa.string()).to_pylist()
        seen.update(label for label in labels if label is not None)
        chosen = np.flatnonzero([label in wanted for label in labels])
        start += len(labels)
        if not len(chosen):
            continue
        numbers.append(chosen + (start - len(labels)))
        part = batch.take(pa.array(chosen))
        vectors.append(_vectors(part.column("embedding"), width, path))
        _check_mpp(part, path)
        text = {name: _strings(part, name) for name in TEXT[:4]}
        rows.extend(
            (str(label), level or "", known(patient), known(slide))
            for label, level, patient, slide in zip(*(text[name] for name in TEXT[:4]), strict=True)
        )
    absent = [name for name in classes if name not in {row[0] for row in rows}]
    if absent:
        close = difflib.get_close_matches(absent[0], sorted(seen), 1)
        listed = ", ".join(map(shown, sorted(seen)[:12])) + (", ..." if len(seen) > 12 else "")
        meant = f"; is '{shown(close[0])}' meant?" if close else ";"
        raise InputError(f"classes.{absent[0]}: the bank {path} has no such label{meant} it has: {listed or 'none'}")
    labels, levels, patients, slides = zip(*rows, strict=True)
    at = np.concatenate(numbers)
    return make_bank(
        np.concatenate(vectors), labels, levels, patients, slides, named, path, name_of=lambda row: f"row {at[row]}"
    )


def _strings(batch: pa.RecordBatch, name: str) -> list[Any]:
    if name not in batch.schema.names:
        return [None] * batch.num_rows
    return list(batch.column(name).cast(pa.string()).to_pylist())


def _vectors(column: pa.Array, width: int, path: str) -> np.ndarray:
    lengths = (
        set(column.value_lengths().to_pylist())
        if not pa.types.is_fixed_size_list(column.type)
        else {column.type.list_size}
    )
    if column.null_count or lengths != {width}:
        found = "missing values" if column.null_count else f"width {', '.join(map(str, sorted(lengths)[:3]))}"
        raise InputError(f"{path}: embeddings have {found}; the model needs width {width} in every row")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinity, which make_bank refuses
        return np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(-1, width)


def _check_mpp(batch: pa.RecordBatch, path: str) -> None:
    if "mpp" not in batch.schema.names:
        return
    for number, mpp in enumerate(batch.column("mpp").to_pylist()):
        if mpp is not None and not abs(mpp - MPP) <= MPP * MPP_TOLERANCE:
            raise InputError(
                f"{path}: a tile of label {batch.column('label')[number].as_py()} has mpp {mpp:g}; the model draws at {MPP} +- 5 %, "
                "so embed tiles of that resolution"
            )


def write_bank(path: str, bank: Bank) -> None:
    """Writes a bank as parquet, embeddings as fixed-size lists of float32; equal banks give equal bytes."""
    width = bank.embeddings.shape[1]
    flat = pa.array(np.ascontiguousarray(bank.embeddings, np.float32).ravel())
    table = pa.table(
        {
            "embedding": pa.FixedSizeListArray.from_arrays(flat, width),
            "label": pa.array(bank.labels, pa.string()),
            "label_level": pa.array(bank.label_levels, pa.string()),
            "patient_id": pa.array(bank.patient_ids, pa.string()),
            "slide_id": pa.array(bank.slide_ids, pa.string()),
        }
    )
    described = json.dumps({"encoder": dict(bank.encoder), "width": width}, sort_keys=True).encode()
    with fsspec.open(path, "wb") as handle:
        pq.write_table(table.replace_schema_metadata({METADATA_KEY: described}), handle, compression="zstd")
