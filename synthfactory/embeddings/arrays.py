"""One array of embeddings beside a CSV of labels: .npy, .npz or .safetensors, read as a stream, from disk or behind a URL.

Only the header is parsed (never a pickle), and only as many bytes as the CSV has rows are read, a piece at a time.
"""

from __future__ import annotations

import contextlib
import io
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from tokenize import TokenError
from typing import Any, BinaryIO, cast

import numpy as np

from synthfactory.embeddings.checks import ENCODER_NAMES, agreed_encoder, check_mpp_known, check_width, stated_encoder
from synthfactory.embeddings.columns import CHUNK_BYTES
from synthfactory.embeddings.places import expand_one, identity
from synthfactory.embeddings.rows import Coded, Rows, RowSource, known
from synthfactory.embeddings.table import Line, line_label, line_level, line_mpp, number, read_lines
from synthfactory.shards.store import open_source
from synthfactory.spec.errors import InputError
from synthfactory.spec.json_text import read_json
from synthfactory.spec.text import shown

ENDINGS = (".npy", ".npz", ".safetensors")
NAMES = ("embedding", "embeddings", "features")
SAID = (*ENCODER_NAMES, "encoder_sha256", "token", "mpp")
FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
MAX_HEADER_BYTES = 1 << 20
MAX_SAID_BYTES = 1 << 12
TEXT_ROWS = 1 << 16
WHAT = "embeddings.labels names a CSV with label, patient_id, slide_id, site of each row of the array, in its order"


@dataclass(frozen=True)
class _Array:
    """What the header says: dtype, (n, width), and metadata in words (of safetensors, and single values in .npz)."""

    dtype: np.dtype[Any]
    shape: tuple[int, int]
    said: Mapping[str, str]


def open_array(
    path: str,
    labels: str,
    *,
    width: int,
    model_encoder: Mapping[str, str] | None,
    declared: Mapping[str, str] | None,
    token: str,
    label_level: str | None,
    mpp: float | None,
    classes: Sequence[str] | None,
    extent: float,
) -> RowSource:
    """The source. Raises InputError, naming the file, for: no such form, a pattern of several files, an array that is no float (n, width),
    pickled objects, a CSV of another length, an encoder or mpp that neither file nor spec states or that do not fit.
    """
    path = expand_one(path, "an array of embeddings")
    with _stream(path) as (array, _):
        check_width(array.shape[1], width, token, "embeddings", path)
        named = stated_encoder({name: (text,) for name, text in array.said.items()}, path)
        encoder = agreed_encoder(named, {**(declared or {}), "token": token}, model_encoder, path)
        stated = array.said.get("mpp")
        with contextlib.suppress(ValueError):
            mpp = mpp if stated is None else float(stated)
    next(read_lines(labels, ("label",), WHAT), None)  # is it there at all?
    source = _Source(path, labels, width, array.shape[0], label_level, mpp, classes)
    known_by = [*identity([path, labels]), {"label_level": label_level, "mpp": mpp}]  # what decides rows
    return RowSource(path, encoder, width, source.rows, "row {}".format, known_by, extent, f"{labels} beside")


@dataclass(frozen=True)
class _Source:
    """Array and CSV, read side by side."""

    path: str
    labels: str
    width: int
    count: int
    label_level: str | None
    mpp: float | None
    classes: Sequence[str] | None

    def rows(self, with_vectors: bool) -> Iterator[Rows]:
        """All rows' texts, or those of the classes asked for with their vectors."""
        lines, start = read_lines(self.labels, ("label",), WHAT), 0
        with _stream(self.path) as (array, handle):
            step = min(TEXT_ROWS, max(1, CHUNK_BYTES // (array.shape[1] * array.dtype.itemsize)))
            while batch := list(islice(lines, step)):
                if start + len(batch) > self.count:
                    raise self._lengths("more")
                rows = self._piece(batch, start)
                if with_vectors:
                    rows = self._with_vectors(rows, _values(handle, array, len(batch), self.path))
                yield rows
                start += len(batch)
        if start < self.count:
            raise self._lengths(f"{start:,}")

    def _lengths(self, found: str) -> InputError:
        return InputError(
            f"{self.labels}: has {found} lines, but {self.path} has {self.count:,} rows; a line of each row is needed"
        )

    def _piece(self, batch: Sequence[Line], start: int) -> Rows:
        path = self.labels
        for line in batch:
            if self.classes is None or line[1].get("label") in self.classes:
                check_mpp_known(line_mpp(line, path), self.mpp, path)

        def floats(name: str) -> np.ndarray:
            found = (number(line, name, path) for line in batch)
            return np.array([np.nan if value is None else value for value in found])

        return Rows(
            np.arange(start, start + len(batch)),
            Coded.of([line_label(line, path) for line in batch]),
            Coded.of([line_level(line, self.label_level, path) for line in batch]),
            Coded.of([known(line[1].get("patient_id")) for line in batch]),
            Coded.of([known(line[1].get("slide_id")) for line in batch]),
            None,
            np.stack([floats("x"), floats("y")], axis=1),
            {"tumour_fraction": floats("tumour_fraction")},
            Coded.of([known(line[1].get("site")) for line in batch]),
        )

    def _with_vectors(self, rows: Rows, vectors: np.ndarray) -> Rows:
        wanted = np.array([self.classes is None or name in self.classes for name in rows.labels.names], bool)
        chosen = np.flatnonzero(wanted[rows.labels.codes])
        taken = rows.take(chosen)
        return Rows(**{**vars(taken), "vectors": vectors[chosen, : self.width]})


@contextlib.contextmanager
def _stream(path: str) -> Iterator[tuple[_Array, BinaryIO]]:
    """(what the header says, a handle that stands at the first value)."""
    ending = next((ending for ending in ENDINGS if path.lower().endswith(ending)), None)
    if ending is None:
        raise InputError(f"{path}: is of no known form; name a file that ends in {', '.join(ENDINGS)}")
    try:
        with open_source(path) as raw:
            if ending == ".safetensors":
                yield _safetensors(raw, path), raw
            elif ending == ".npy":
                yield _npy(raw, path), raw
            else:
                with zipfile.ZipFile(raw) as archive:
                    said = _said_in(archive, path)
                    with archive.open(_member(archive, path)) as inner:
                        handle = cast(BinaryIO, inner)
                        yield replace(_npy(handle, path), said=said), handle
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; name an array of embeddings") from None
    except (
        OSError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        struct.error,
    ) as error:
        raise InputError(f"{path}: is no readable {ending} file ({shown(str(error))})") from None


def _member(archive: zipfile.ZipFile, path: str) -> str:
    names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    return f"{_one_of([name for name in names if name not in SAID], path)}.npy"


def _said_in(archive: zipfile.ZipFile, path: str) -> dict[str, str]:
    """The texts and numbers that lie beside the array: np.savez(path, embedding=..., encoder="h0-mini")."""
    said: dict[str, str] = {}
    for name in SAID:
        if f"{name}.npy" not in archive.namelist():
            continue
        with archive.open(f"{name}.npy") as inner:
            data = inner.read(MAX_SAID_BYTES)
        try:
            value = np.load(io.BytesIO(data), allow_pickle=False)
            if value.size != 1 or value.dtype.kind not in "UfiS":
                raise ValueError(f"{value.dtype} {value.shape}")
        except (
            ValueError,
            TypeError,
            SyntaxError,
            LookupError,
            ArithmeticError,
            TokenError,
            RecursionError,
            MemoryError,
            EOFError,
            AttributeError,
        ) as error:
            raise InputError(
                f"{path}: its '{name}' is no single text or number ({shown(str(error))}); write it as one, or leave it out"
            ) from None
        one = value.reshape(-1)[0]
        said[name] = one.decode(errors="replace") if isinstance(one, bytes) else str(one)
    return said


def _one_of(names: Sequence[str], path: str) -> str:
    found = [name for name in NAMES if name in names] or (list(names) if len(names) == 1 else [])
    if not found:
        listing = ", ".join(map(shown, sorted(names)[:8])) or "nothing"
        raise InputError(f"{path}: holds {listing}; call the array of embeddings 'embedding'")
    return found[0]


def _npy(handle: BinaryIO, path: str) -> _Array:
    try:
        version = np.lib.format.read_magic(handle)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read is None:
            raise ValueError(f"version {version}")
        shape, fortran, dtype = read(handle, max_header_size=10_000)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, UnicodeError, TokenError) as error:
        raise InputError(f"{path}: is no readable numpy array ({shown(str(error))})") from None
    if dtype.hasobject:
        raise InputError(f"{path}: holds pickled objects, which are never read; save the embeddings as one float array")
    if fortran:
        raise InputError(f"{path}: is stored column by column; save it with np.ascontiguousarray")
    return _checked(dtype, shape, {}, path)


def _safetensors(handle: BinaryIO, path: str) -> _Array:
    try:
        size = struct.unpack("<Q", handle.read(8))[0]
        if size > MAX_HEADER_BYTES:
            raise ValueError("its header is too long")
        header = read_json(handle.read(size))
        said = header.pop("__metadata__", {})
        name = _one_of(list(header), path)
        dtype, shape = FLOATS.get(header[name]["dtype"]), tuple(header[name]["shape"])
        first, last = header[name]["data_offsets"]
        if dtype is None:
            raise InputError(f"{path}: '{shown(name)}' is {shown(str(header[name]['dtype']))}; save it as F32")
        found = _checked(np.dtype(dtype), shape, {str(k): str(v) for k, v in said.items()}, path)
        if first < 0 or last - first != math.prod(shape) * found.dtype.itemsize:
            raise ValueError("its offsets do not fit its shape")
        handle.seek(8 + size + first)
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error, OverflowError) as error:
        raise InputError(f"{path}: is no readable safetensors file ({shown(str(error))})") from None
    return found


def _checked(dtype: np.dtype[Any], shape: Any, said: Mapping[str, str], path: str) -> _Array:
    sound = len(shape) == 2 and all(type(side) is int and side > 0 for side in shape)
    if dtype.kind != "f" or dtype.itemsize > 8 or not sound:
        raise InputError(f"{path}: the array is {dtype} {shape}; float (n, width) is needed")
    return _Array(dtype, (shape[0], shape[1]), said)


def _values(handle: BinaryIO, array: _Array, rows: int, path: str) -> np.ndarray:
    """The next rows as float32."""
    wanted = rows * array.shape[1] * array.dtype.itemsize
    data = bytearray()
    while len(data) < wanted:
        part = handle.read(wanted - len(data))
        if not part:
            raise InputError(f"{path}: ends before its last row; it is cut off, so copy it again")
        data += part
    with np.errstate(over="ignore"):
        return np.frombuffer(bytes(data), array.dtype).astype(np.float32).reshape(rows, array.shape[1])
