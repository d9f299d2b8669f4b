"""What a codec does to figures of fidelity: real and drawn tiles saved anew, and compared with real ones as they are."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from synthfactory.evaluate.fidelity import (
    LEAST_GROUPS,
    Tiles,
    frechet,
    halved,
    same_mix,
    standard_space,
)
from synthfactory.evaluate.intervals import UnmeasurableError
from synthfactory.evaluate.kernel import kernel_distance
from synthfactory.evaluate.planted import saved_anew
from synthfactory.run.audit_tiles import Begin
from synthfactory.run.evaluating import FEW, Sides
from synthfactory.run.spaces import Item, Kept, Space, embedded_in
from synthfactory.spec.errors import InputError
from synthfactory.spec.text import counted

LOSSLESS = "png"  # of which nothing need be saved anew
MOST = 2000  # tiles of each side
_CODEC = re.compile(r"png|(?:jpeg|webp)(\d{1,3})")


def check_codecs(codecs: Sequence[str]) -> None:
    """InputError where one is neither png nor jpeg or webp with a quality from 1 to 100."""
    for codec in codecs:
        match = _CODEC.fullmatch(codec)
        if match is None or (match[1] is not None and not 1 <= int(match[1]) <= 100):
            raise InputError(
                f"--codecs: '{codec}' is none; write for example png,jpeg95,jpeg75 (qualities from 1 to 100)"
            )


def saved_as(tile: np.ndarray, codec: str) -> np.ndarray:
    """uint8 (H, W, 3) as it reads after being saved lossily. JPEG with its usual 4:2:0 colour."""
    match = _CODEC.fullmatch(codec)
    assert match is not None and match[1] is not None
    return saved_anew(tile, "JPEG" if codec.startswith("jpeg") else "WEBP", quality=int(match[1]))


@dataclass(frozen=True)
class Pool:
    """What the study is made of: all sides by space, and what reads the tiles of drawn ones and of the real side that is compared."""

    sides: Mapping[str, Sides]
    spaces: Sequence[Space]
    drawn: Callable[[], Iterator[Item]]
    real: Callable[[], Iterator[Item]]


def codec_study(pool: Pool, codecs: Sequence[str], kept: Kept, begin: Begin) -> dict[str, Any]:
    """Of each codec and space: kernel and Frechet distance to real tiles as they are, of drawn tiles saved anew, and of other
    patients' real tiles saved anew. What a codec alone does is the difference to `png`.

    The scale of a space is that of all sides as they are, for every codec: else a side's figures would change with what another is saved
    as.
    """
    any_side = pool.sides[pool.spaces[0].name]
    chosen = _rows(any_side)
    if isinstance(chosen, str):
        return {"why": chosen}
    as_is, of_drawn, of_real = chosen
    found: dict[str, Any] = {space.name: {} for space in pool.spaces}
    into, reference = {}, {}
    for space in pool.spaces:
        sides = pool.sides[space.name]
        a = _real(sides).of(as_is)
        into[space.name] = standard_space([a, _real(sides).of(of_real)], sides.drawn.of(of_drawn))
        reference[space.name] = into[space.name](a)
    for codec in dict.fromkeys([LOSSLESS, *codecs]):
        drawn: dict[str, np.ndarray] = {}
        real: dict[str, np.ndarray] = {}
        if codec != LOSSLESS:
            tick = begin(f"{codec}: {len(of_drawn):,} drawn and as many real tiles saved anew", 2 * len(of_drawn))
            drawn = embedded_in(_anew(_some(pool.drawn(), of_drawn), codec), pool.spaces, kept.folder, tick)
            real = embedded_in(_anew(_some(pool.real(), of_real), codec), pool.spaces, kept.folder, tick)
        for space in pool.spaces:
            sides = pool.sides[space.name]
            d, r = sides.drawn.of(of_drawn), _real(sides).of(of_real)
            d, r = (
                into[space.name](replace(side, embeddings=again.get(space.name, side.embeddings)))
                for side, again in ((d, drawn), (r, real))
            )
            a = reference[space.name]
            found[space.name][codec] = {"tiles": len(a), "drawn": _apart(d, a), "real": _apart(r, a)}
    return found


def _real(sides: Sides) -> Tiles:
    return sides.real if sides.unseen is None else sides.unseen


def _rows(sides: Sides) -> tuple[np.ndarray, np.ndarray, np.ndarray] | str:
    """(rows of the real side that stay as they are, of the drawn side, of its other patients), one mix, in order; or why not."""
    numbered = [replace(side, embeddings=np.arange(len(side))[:, None]) for side in (_real(sides), sides.drawn)]
    one, other = halved(numbered[0])
    drawn = numbered[1]
    if sides.unseen is None:
        if sides.sources is None:
            return "needs --unseen or --lineage: the set may rest on the very patients that it would be compared with"
        held = set(one.groups.astype(str).tolist())
        drawn = drawn.of(np.flatnonzero([behind.isdisjoint(held) for behind in sides.sources]))
    parts = [one, drawn, other]
    classes = max(1, len(set.intersection(*(set(part.classes.tolist()) for part in parts))))
    rows = same_mix(parts, most_each=max(1, MOST // classes))
    groups = min(len(np.unique(part.groups[at])) for part, at in zip((one, other), (rows[0], rows[2]), strict=True))
    if groups < LEAST_GROUPS:
        return f"not measurable with n = {groups} patients in a half; {LEAST_GROUPS} are needed"
    first, second, third = (np.sort(part.embeddings[at, 0]) for part, at in zip(parts, rows, strict=True))
    return first, second, third


def _some(items: Iterator[Item], rows: np.ndarray) -> Iterator[Item]:
    wanted = set(rows.tolist())
    return (item for row, item in enumerate(items) if row in wanted)


def _apart(side: Tiles, reference: Tiles) -> dict[str, Any]:
    groups = len(np.unique(side.groups))
    if groups < FEW:
        why = f"not measurable with n = {counted(groups, 'patient')}; {FEW} are needed"
        return {"kernel": None, "kernel_95": None, "frechet": None, "why": why}
    try:
        value, interval = kernel_distance(side, reference)
    except UnmeasurableError as error:
        return {"kernel": None, "kernel_95": None, "frechet": None, "why": str(error)}
    return {"kernel": value, "kernel_95": interval, "frechet": frechet(side, reference, spread=False)["value"]}


def _anew(items: Iterator[Item], codec: str) -> Iterator[Item]:
    for digest, read in items:
        yield hashlib.sha256(codec.encode() + digest).digest(), partial(_saved, read, codec)


def _saved(read: Callable[[], np.ndarray], codec: str) -> np.ndarray:
    return saved_as(read(), codec)
