"""What a codec does to figures of fidelity: real and drawn tiles saved anew, and compared with real ones as they are."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from synthfactory.evaluate.fidelity import Tiles, frechet, halved, kernel_distance, same_mix, standardise
from synthfactory.run.audit_tiles import Begin
from synthfactory.run.eval_tiles import RealSide, drawn_items
from synthfactory.run.spaces import Item, Kept, Space, embedded_in
from synthfactory.shards.base import Store
from synthfactory.spec.errors import InputError

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
    """uint8 (H, W, 3) as it reads after being saved; png changes nothing. JPEG with its usual 4:2:0 colour."""
    match = _CODEC.fullmatch(codec)
    assert match is not None
    if match[1] is None:
        return tile
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(tile)).save(
        buffer, "JPEG" if codec.startswith("jpeg") else "WEBP", quality=int(match[1])
    )
    with Image.open(buffer) as picture:
        return np.asarray(picture.convert("RGB"))


def codec_study(
    out: str,
    store: Store,
    real: RealSide,
    spaces: Sequence[Space],
    codecs: Sequence[str],
    size_px: int,
    kept: Kept,
    begin: Begin,
    drawn_count: int,
) -> dict[str, Any]:
    """Of each codec and space: kernel and Frechet distance to real tiles as they are, of drawn tiles saved anew, and of other
    patients' real tiles saved anew. What a codec alone does is the difference to `png`.
    """
    if real.tiles is None:
        return {"why": f"{real.place}: a bank has no pixels that could be saved anew"}
    names = list(dict.fromkeys(["png", *codecs]))
    found: dict[str, Any] = {space.name: {} for space in spaces}
    as_is: dict[str, np.ndarray] = {}
    for codec in names:
        seen: list[tuple[str, str]] = []
        tick = begin(f"{codec}: drawn and real tiles saved anew", drawn_count + len(real.classes))
        of_drawn = embedded_in(_anew(drawn_items(out, store, size_px, seen), codec), spaces, kept.folder, tick)
        of_real = embedded_in(_anew(real.items(size_px), codec), spaces, kept.folder, tick)
        as_is = as_is or of_real
        labels = np.array([label for _, label in seen], np.str_)
        for space in spaces:
            drawn = Tiles(of_drawn[space.name], labels, np.arange(len(labels)))
            one, _ = halved(real.in_space(as_is[space.name]))
            _, other = halved(real.in_space(of_real[space.name]))
            rows = same_mix([one, drawn, other], most_each=max(1, MOST // len(np.unique(labels))))
            a, d, r = standardise(*(side.of(at) for side, at in zip((one, drawn, other), rows, strict=True)))
            found[space.name][codec] = {"tiles": len(a), "drawn": _apart(d, a), "real": _apart(r, a)}
    return found


def _apart(side: Tiles, reference: Tiles) -> dict[str, Any]:
    value, interval = kernel_distance(side, reference)
    return {"kernel": value, "kernel_95": interval, "frechet": frechet(side, reference)["value"]}


def _anew(items: Iterator[Item], codec: str) -> Iterator[Item]:
    for digest, read in items:
        if codec == "png":
            yield digest, read
        else:
            yield hashlib.sha256(codec.encode() + digest).digest(), partial(_saved, read, codec)


def _saved(read: Callable[[], np.ndarray], codec: str) -> np.ndarray:
    return saved_as(read(), codec)
