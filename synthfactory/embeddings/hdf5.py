"""Features as TRIDENT and CLAM write them: one HDF5 file per slide with `features` (n, E) and `coords` (n, 2), labels in a CSV.

A file may come from anyone: links that lead out of it, virtual and external data are refused, and nothing but these two arrays and
their attributes is read, a piece at a time. h5py is an optional dependency (extra `hdf5`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from synthfactory.embeddings.bank import MPP
from synthfactory.embeddings.bombs import MOST_UNPACKED
from synthfactory.embeddings.checks import ENCODER_NAMES, agreed_encoder, check_mpp_known, check_width, stated_encoder
from synthfactory.embeddings.columns import pieces
from synthfactory.embeddings.places import expand, identity, is_pattern, listed, local
from synthfactory.embeddings.rows import Coded, Rows, RowSource, known
from synthfactory.embeddings.table import line_label, line_level, number, read_lines
from synthfactory.shards.store import open_source
from synthfactory.spec.errors import InputError
from synthfactory.spec.places import is_url
from synthfactory.spec.text import shown

SUFFIXES = (".h5", ".hdf5")
CASE = "case_id"
MPP_NAMES = ("mpp", "target_mpp", "patch_mpp")
MAX_CHUNK_BYTES = 1 << 28
WHAT = "embeddings.labels names a CSV with slide_id, label and, where known, patient_id and site of each slide"


@dataclass(frozen=True)
class _Slide:
    """A line of the CSV."""

    label: str
    level: str
    patient: str | None
    tumour_fraction: float
    site: str | None
    has_case: bool = False  # and no patient: CLAM's lists name cases, which may be patients


@dataclass(frozen=True)
class _File:
    """A slide's file as far as it was looked at: rows, and the side of a tile in the unit of its coords (NaN: not stated)."""

    path: str
    slide: str
    rows: int
    extent: float


def open_features(
    places: str | Sequence[str],
    labels: str,
    *,
    width: int,
    model_encoder: Mapping[str, str] | None,
    declared: Mapping[str, str] | None,
    token: str,
    label_level: str | None,
    mpp: float | None,
    tile_size_px: int,
    classes: Sequence[str] | None,
) -> tuple[RowSource, tuple[str, ...]]:
    """(the source, warnings). Files are folders, paths, URLs or patterns; a file is a slide by its name without the ending.

    Raises InputError, naming the file, for: h5py not installed, no HDF5, no features, another width, links out of the file, an encoder
    or mpp that neither file nor spec states or that do not fit, patches of another size, no line in the CSV for any file, two files of
    one slide that hold the same.
    """
    files = _files(places)
    slides = _slides(labels, label_level)
    found: list[_File] = []
    drawn = 0
    encoders: list[dict[str, str]] = []
    for path in files:
        slide = path.rpartition("/")[2].rpartition(".")[0]
        if slide not in slides or (classes is not None and slides[slide].label not in classes):
            continue
        with _opened(path) as handle:
            features, coords, said = _looked_at(handle, path)
            rows, has = features.shape[-2], features.shape[-1]
            check_width(has, width, token, "features", path)
            _check_patch(said, tile_size_px, path)
            check_mpp_known(_number(said, MPP_NAMES), mpp, path, _magnification(said))
            encoders.append(
                agreed_encoder(_encoder(handle, path), {**(declared or {}), "token": token}, model_encoder, path)
            )
            found.append(_File(path, slide, rows, _extent(said) if coords is not None else np.nan))
            drawn += bool(np.any(said.get("synthetic", False)))
    _check_found(files, slides, found, labels, classes)
    _check_twice(found)
    other = next((number for number, encoder in enumerate(encoders) if encoder != encoders[0]), None)
    if other is not None:
        raise InputError(f"{found[other].path}: names another encoder than {found[0].path}; a bank has one")
    starts = np.concatenate([[0], np.cumsum([file.rows for file in found])])

    def name_of(row: int) -> str:
        at = int(np.searchsorted(starts, row, side="right")) - 1
        return f"row {row - starts[at]} of {found[at].path}"

    without = sum(path.rpartition("/")[2].rpartition(".")[0] not in slides for path in files)
    warnings: tuple[str, ...] = (
        (f"{labels}: has no line for {without:,} of {len(files):,} files; they are left out",) if without else ()
    )
    if any(slides[file.slide].has_case for file in found):
        warnings += (
            f"{labels}: column '{CASE}' is not read; where cases are patients, call it patient_id, or nobody is known",
        )
    if drawn:
        warnings += (
            f"{drawn:,} of {len(found):,} files are features of synthetic tiles: whom these rest on is not known here, nor their terms; "
            "say both wherever what is drawn from them is described",
        )
    where = places if isinstance(places, str) else f"{places[0]} and more"
    source = RowSource(
        where,
        encoders[0],
        width,
        lambda with_vectors: _rows(found, slides, starts, width, with_vectors),
        name_of,
        # what decides rows
        [*identity([file.path for file in found]), *identity([labels]), {"label_level": label_level, "mpp": mpp}],
        1.0,
        "the CSV for",
        drawn > 0,
    )
    return source, warnings


def _files(places: str | Sequence[str]) -> list[str]:
    found: list[str] = []
    for place in [places] if isinstance(places, str) else places:
        inside = None if is_pattern(place) else listed(place, SUFFIXES)
        if inside is not None and not inside:
            raise InputError(f"{place}: holds no {' or '.join(SUFFIXES)} file; name the folder of the features")
        if inside is None and not is_pattern(place):
            _check_there(place)
        found.extend(expand(place, "HDF5 files of features") if inside is None else inside)
    return found


def _check_there(place: str) -> None:
    try:
        with open_source(place):
            pass
    except OSError as error:
        why = "no such file or folder" if isinstance(error, FileNotFoundError) else str(error.strerror or error)
        raise InputError(f"{place}: {why}; name the HDF5 files of the features, or their folder") from None


def _slides(path: str, label_level: str | None) -> dict[str, _Slide]:
    found: dict[str, _Slide] = {}
    for line in read_lines(path, ("slide_id", "label"), WHAT, (CASE,)):
        slide = line[1].get("slide_id", "")
        for ending in SUFFIXES:
            slide = slide.removesuffix(ending)
        if not slide:
            raise InputError(f"{path}:{line[0]}: names no slide; column 'slide_id' holds the file's name without .h5")
        if slide in found:
            raise InputError(f"{path}:{line[0]}: {shown(slide)} stands there twice; keep one line per slide")
        share = number(line, "tumour_fraction", path)
        found[slide] = _Slide(
            line_label(line, path),
            line_level(line, label_level, path),
            known(line[1].get("patient_id")),
            np.nan if share is None else share,
            known(line[1].get("site")),
            CASE in line[1] and "patient_id" not in line[1],
        )
    return found


def _check_found(
    files: Sequence[str],
    slides: Mapping[str, _Slide],
    found: Sequence[_File],
    labels: str,
    classes: Sequence[str] | None,
) -> None:
    have = {file.slide for file in found}
    for name in classes or ():
        of_class = [slide for slide, line in slides.items() if line.label == name]
        if of_class and not have & set(of_class):
            raise InputError(
                f"{labels}: {len(of_class)} slides have the label '{shown(name)}', but none of the {len(files):,} files is theirs; "
                f"a file is called as its slide_id, such as {shown(of_class[0])}.h5"
            )
    if not found:
        listing = ", ".join(sorted({line.label for line in slides.values()})[:12])
        first = next(iter(classes or ["?"]))
        raise InputError(f"classes.{first}: {labels} has no such label; it has: {listing or 'none'}")


def _check_twice(files: Sequence[_File]) -> None:
    """A slide may be split over files, but the same file in two folders would count every tile twice."""
    first: dict[str, _File] = {}
    for file in files:
        other = first.setdefault(file.slide, file)
        if other is not file and other.rows == file.rows:
            with _opened(other.path) as one, _opened(file.path) as two:
                left, right = _looked_at(one, other.path)[0], _looked_at(two, file.path)[0]
                same = left.shape == right.shape and all(
                    np.array_equal(left[..., low:high, :], right[..., low:high, :])
                    for low, high in pieces(0, file.rows, 4 * left.shape[-1])
                )
            if same:
                raise InputError(f"{file.path}: holds the same rows as {other.path}; name each slide's file once")


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    try:
        import h5py
    except ImportError:
        raise InputError(f"{path}: reading HDF5 needs h5py; install it with pip install 'synthfactory[hdf5]'") from None
    try:
        if is_url(path):
            with open_source(path) as raw, h5py.File(raw, "r") as handle:
                yield handle
        elif local(path).exists() and not local(path).is_file():
            raise InputError(f"{path}: is a folder, pipe or device; name HDF5 files of features")
        else:
            with h5py.File(local(path), "r") as handle:
                yield handle
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; name HDF5 files of features") from None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: is no readable HDF5 file ({shown(str(error))})") from None


def _looked_at(handle: Any, path: str) -> tuple[Any, Any, dict[str, Any]]:
    """(features, coords or None, attributes of both and of the file)."""
    features = _dataset(handle, "features", path)
    if features is None:
        names = ", ".join(shown(name) for name in list(handle)[:8]) or "nothing"
        raise InputError(
            f"{path}: has no 'features'; it holds {names}; name files that an encoder wrote, not those of coordinates"
        )
    shape = features.shape[1:] if len(features.shape) == 3 and features.shape[0] == 1 else features.shape
    if len(shape) != 2 or features.dtype.kind != "f":
        raise InputError(f"{path}: 'features' is {features.dtype} {features.shape}; float (n, width) is needed")
    if shape[0] == 0:
        raise InputError(f"{path}: 'features' has no row; remove the file, or embed the slide again")
    kept = max(int(features.id.get_storage_size()), 4096)
    if features.size * features.dtype.itemsize > MOST_UNPACKED * kept:
        raise InputError(
            f"{path}: 'features' claims {features.shape} numbers, and the file holds {kept:,} bytes of them at most; embed the slide again"
        )
    coords = _dataset(handle, "coords", path)
    if coords is not None and (coords.shape != (shape[0], 2) or coords.dtype.kind not in "iuf"):
        raise InputError(f"{path}: 'coords' is {coords.dtype} {coords.shape}; numbers ({shape[0]}, 2) are needed")
    said: dict[str, Any] = {}
    for holder in (handle, features, coords):
        if holder is not None:
            said.update({str(name): holder.attrs[name] for name in list(holder.attrs)[:64]})
    return features, coords, said


def _dataset(handle: Any, name: str, path: str) -> Any:
    """A dataset that lies in this file as plain data; None where there is none of that name."""
    import h5py

    link = handle.get(name, getlink=True)
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink):
        raise InputError(
            f"{path}: '{name}' is a link to elsewhere; a file of features holds its own data, so copy them into it"
        )
    found = handle[name]
    if not isinstance(found, h5py.Dataset):
        raise InputError(f"{path}: '{name}' is a group; an array is needed")
    if found.is_virtual or found.external:
        raise InputError(
            f"{path}: '{name}' lies in other files; a file of features holds its own data, so copy them into it"
        )
    if found.chunks and int(np.prod(found.chunks, dtype=np.float64)) * found.dtype.itemsize > MAX_CHUNK_BYTES:
        raise InputError(f"{path}: '{name}' has chunks of over 256 MB; write it with smaller ones")
    return found


def _check_patch(said: Mapping[str, Any], tile_size_px: int, path: str) -> None:
    size = _number(said, ("patch_size",))
    if size is not None and size != tile_size_px:
        raise InputError(
            f"{path}: its patches are {size:g} px; the model draws {tile_size_px} px at {MPP} um/px, so cut and embed the slide "
            "at that size (a patch resized for the encoder has another mpp)"
        )


def _number(said: Mapping[str, Any], names: Sequence[str]) -> float | None:
    for name in names:
        with contextlib.suppress(TypeError, ValueError, KeyError):
            return float(said[name])
    return None


def _encoder(handle: Any, path: str) -> dict[str, str]:
    """What the file, its features or its coords say of the encoder; they may say it twice, but not two things."""
    texts: dict[str, list[str]] = {}
    for holder in (handle, handle.get("features"), handle.get("coords")):
        for name in (*ENCODER_NAMES, "encoder_sha256", "token"):
            value = None if holder is None else holder.attrs.get(name)
            value = value.reshape(-1)[0] if isinstance(value, np.ndarray) and value.size == 1 else value
            value = value.decode(errors="replace") if isinstance(value, bytes) else value
            if isinstance(value, str):
                texts.setdefault(name, []).append(value)
    return stated_encoder(texts, path)


def _magnification(said: Mapping[str, Any]) -> str:
    """What a file says instead of an mpp."""
    stated = _number(said, ("target_magnification", "magnification"))
    if stated is None:
        return ""
    return f" (it says {stated:g}x, which scanners understand differently)"


def _extent(said: Mapping[str, Any]) -> float:
    """Side of a tile in the unit of coords, which is level 0: stated by TRIDENT, patch_size x downsample of CLAM."""
    stated = _number(said, ("patch_size_level0",))
    if stated is None:
        size = _number(said, ("patch_size",))
        scale = said.get("downsample", 1.0)
        with contextlib.suppress(TypeError, ValueError, IndexError):
            stated = None if size is None else size * float(np.ravel(scale)[0])
    return stated if stated is not None and np.isfinite(stated) and stated > 0 else np.nan


def _rows(
    files: Sequence[_File], slides: Mapping[str, _Slide], starts: np.ndarray, width: int, with_vectors: bool
) -> Iterator[Rows]:
    for file, start in zip(files, starts, strict=False):
        line = slides[file.slide]
        if not with_vectors:
            yield _piece(line, file.slide, np.arange(start, start + file.rows), None, None)
            continue
        with _opened(file.path) as handle:
            features, coords, _ = _looked_at(handle, file.path)
            deep = len(features.shape) == 3
            if features.shape[-2] != file.rows or features.shape[-1] < width:
                raise InputError(
                    f"{file.path}: changed while it was read; run the command again once nothing writes to it"
                )
            for low, high in pieces(0, file.rows, 4 * features.shape[-1]):
                with np.errstate(over="ignore"):
                    block = features[0, low:high, :width] if deep else features[low:high, :width]
                    vectors = np.asarray(block, np.float32)
                places = None if coords is None else np.asarray(coords[low:high], np.float64) / file.extent
                yield _piece(line, file.slide, np.arange(start + low, start + high), vectors, places)


def _piece(
    line: _Slide, slide: str, numbers: np.ndarray, vectors: np.ndarray | None, places: np.ndarray | None
) -> Rows:
    count = len(numbers)
    return Rows(
        numbers,
        Coded.all(line.label, count),
        Coded.all(line.level, count),
        Coded.all(line.patient, count),
        Coded.all(slide, count),
        vectors,
        places,
        {"tumour_fraction": np.full(count, line.tumour_fraction)},
        Coded.all(line.site, count),
    )
