"""Puts the rows of a bank in order and finds embeddings that repeat, in bounded memory whatever the number of rows.

Inside a group (label, patient, slide) the order is that of the embedding's bytes, then of the level. A group too large to be sorted
at once is first split by values that are sampled from it, through scratch files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from synthfactory.embeddings.columns import Column, pieces

SORT_BYTES = 64 << 20
SAMPLE = 2048
_MIX = np.uint64(0x9E3779B97F4A7C15)
_PAIR = np.dtype([("hash", "<u8"), ("row", "<i8")])


def _keys(vectors: np.ndarray) -> np.ndarray:
    """The rows as byte strings of one length, which numpy orders as Python orders bytes."""
    flat = np.ascontiguousarray(vectors, "<f4")
    return flat.view(f"S{4 * flat.shape[1]}")[:, 0]


def sort_groups(columns: Mapping[str, Column], starts: np.ndarray, scratch: Path | None) -> None:
    """Sorts the rows inside each group, starts[g] to starts[g + 1], of all columns together (`embeddings` and `levels` among them)."""
    row_bytes = sum(column.row_bytes for column in columns.values())
    most = max(1, SORT_BYTES // row_bytes)
    group, last = 0, len(starts) - 1
    while group < last:
        end = max(group + 1, int(np.searchsorted(starts, starts[group] + most, side="right")) - 1)
        low, high = int(starts[group]), int(starts[end])
        if high - low > most:  # one group alone
            _sort_large(columns, low, high, most, scratch)
        else:
            _sort_at_once(columns, low, high, np.repeat(np.arange(group, end), np.diff(starts[group : end + 1])))
        group = end


def _sort_at_once(columns: Mapping[str, Column], low: int, high: int, groups: np.ndarray) -> None:
    order = np.lexsort((columns["levels"].part(low, high), _keys(columns["embeddings"].part(low, high)), groups))
    if (order[1:] > order[:-1]).all():
        return
    for column in columns.values():
        column.put(slice(low, high), column.part(low, high)[order])


def _sort_large(columns: Mapping[str, Column], low: int, high: int, most: int, scratch: Path | None) -> None:
    """Splits [low, high) at values of a sample: part 2k lies between two of them, part 2k + 1 equals one."""
    vectors = columns["embeddings"]
    at = np.unique(np.linspace(low, high - 1, SAMPLE).astype(np.int64))
    sample = np.unique(_keys(vectors.take(at)))
    cuts = sample[:: max(1, len(sample) * most // (2 * (high - low)))]
    parts = 2 * len(cuts) + 1
    counts = np.zeros(parts, np.int64)
    for start, end in pieces(low, high, vectors.row_bytes):
        counts += np.bincount(_parts(vectors.part(start, end), cuts), minlength=parts)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    filled = offsets[:-1].copy()
    with tempfile.TemporaryDirectory(prefix=".tmp-sort-", dir=scratch) as folder:
        moved = {
            name: Column.create(
                None if scratch is None else Path(folder), name, column.dtype.str, (high - low, *column.shape[1:])
            )
            for name, column in columns.items()
        }
        for start, end in pieces(low, high, vectors.row_bytes):
            part = _parts(vectors.part(start, end), cuts)
            order, places = placed(part, filled)
            for name, column in columns.items():
                moved[name].put(places, column.part(start, end)[order])
        for name, column in columns.items():
            for start, end in pieces(low, high, column.row_bytes):
                column.put(slice(start, end), moved[name].part(start - low, end - low))
    for number in range(parts):
        begin, stop = low + int(offsets[number]), low + int(offsets[number + 1])
        if number % 2:  # one embedding, repeated: only the level can differ, and it has three values
            levels = columns["levels"]
            levels.put(slice(begin, stop), np.sort(levels.part(begin, stop)))
        elif stop - begin > most:
            _sort_large(columns, begin, stop, most, scratch)
        elif stop > begin:
            _sort_at_once(columns, begin, stop, np.zeros(stop - begin, np.int8))


def _parts(vectors: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    keys = _keys(vectors)
    return np.searchsorted(cuts, keys, side="left") + np.searchsorted(cuts, keys, side="right")


def placed(groups: np.ndarray, filled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(order, places): row order[i] of a piece goes to places[i], the next free one of its group. Advances `filled`."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    present, first, counts = np.unique(ordered, return_index=True, return_counts=True)
    rank = np.arange(len(ordered)) - np.repeat(first, counts)
    places = filled[ordered] + rank
    filled[present] += counts
    return order, places


def repeats(vectors: Column, label_starts: np.ndarray, scratch: Path | None) -> tuple[int, tuple[int, int] | None]:
    """(how many rows repeat the embedding of an earlier one, the first such pair of rows under two labels or None).

    Rows are compared where their 64-bit hashes agree. Hashes are spread over files, so that only a part is sorted at a time.
    """
    total = 2 * len(vectors) * _PAIR.itemsize
    bits = 0 if scratch is None else max(0, (total // SORT_BYTES).bit_length())
    count, conflict = 0, None
    with tempfile.TemporaryDirectory(prefix=".tmp-hash-", dir=scratch) as folder:
        files = [Path(folder) / f"{number}" for number in range(1 << bits)] if bits else []
        held = []
        for start, end in pieces(0, len(vectors), vectors.row_bytes):
            pairs = np.empty(end - start, _PAIR)
            pairs["hash"], pairs["row"] = _hashes(vectors.part(start, end)), np.arange(start, end)
            if not files:
                held.append(pairs)
                continue
            bucket = (pairs["hash"] >> np.uint64(64 - bits)).astype(np.int64)
            pairs = pairs[np.argsort(bucket, kind="stable")]
            ends = np.cumsum(np.bincount(bucket, minlength=len(files)))
            for file, first, last in zip(files, (0, *ends[:-1]), ends, strict=True):
                with open(file, "ab") as handle:
                    handle.write(pairs[first:last].tobytes())
        for pairs in (np.fromfile(file, _PAIR) for file in files) if files else [np.concatenate(held)]:
            found, pair = _repeats(vectors, pairs, label_starts)
            count += found
            if pair is not None and (conflict is None or pair[1] < conflict[1]):
                conflict = pair
    return count, conflict


def _hashes(vectors: np.ndarray) -> np.ndarray:
    words = np.ascontiguousarray(vectors, "<f4").view("<u4")
    found = np.zeros(len(words), np.uint64)
    with np.errstate(over="ignore"):
        for column in range(words.shape[1]):
            found = (found ^ words[:, column]) * _MIX
            found ^= found >> np.uint64(29)
    return found


def _repeats(vectors: Column, pairs: np.ndarray, label_starts: np.ndarray) -> tuple[int, tuple[int, int] | None]:
    pairs = pairs[np.lexsort((pairs["row"], pairs["hash"]))]
    if len(pairs) < 2:
        return 0, None
    is_first = np.concatenate([[True], pairs["hash"][1:] != pairs["hash"][:-1]])
    first_of = np.maximum.accumulate(np.where(is_first, np.arange(len(pairs)), 0))
    later = np.flatnonzero(~is_first)
    one, two = pairs["row"][first_of[later]], pairs["row"][later]
    count, conflict = 0, None
    for start, end in pieces(0, len(later), 2 * vectors.row_bytes + 1):
        a, b = one[start:end], two[start:end]
        same = (vectors.take(a).view("<u4") == vectors.take(b).view("<u4")).all(axis=1)
        count += int(same.sum())
        labels_a = np.searchsorted(label_starts, a, side="right")
        labels_b = np.searchsorted(label_starts, b, side="right")
        wrong = np.flatnonzero(same & (labels_a != labels_b))
        if len(wrong):
            worst = wrong[np.argmin(b[wrong])]
            if conflict is None or b[worst] < conflict[1]:
                conflict = (int(a[worst]), int(b[worst]))
    return count, conflict
