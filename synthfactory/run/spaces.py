"""Feature spaces of an evaluation, and embedding many tiles in several of them at once, kept so that nothing is embedded twice.

What is kept is one file for each space and piece of 128 tiles, under a name made of the space and the content of every tile.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from synthfactory.evaluate import texture
from synthfactory.model.encoder import EncoderFolder
from synthfactory.model.weights import load_encoder
from synthfactory.run.audit_tiles import BATCH, Embed, Tick, in_batches
from synthfactory.shards.beside import beside
from synthfactory.spec.errors import InputError
from synthfactory.spec.json_text import read_json

PIECE = 128
MEASURES = 10  # raised whenever figures are computed otherwise: what was kept before is then not taken
Item = tuple[bytes, Callable[[], np.ndarray]]  # digest of a tile's content, and what reads its pixels uint8 (H, H, 3)


@dataclass(frozen=True)
class Space:
    """Where tiles are compared: an encoder, or descriptors that nobody trained. `identity` changes with what it computes."""

    name: str
    sha256: str
    identity: str
    embed: Embed
    independent: bool  # of what conditions the set
    note: str

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        return {"name": self.name, "sha256": self.sha256, "independent": self.independent, "note": self.note}


def texture_space() -> Space:
    """The descriptors of stain and texture."""
    note = "descriptors of stain and texture, computed and not learned"
    return Space(texture.ID, "", texture.ID, texture.textures, True, note)


def encoder_space(folder: EncoderFolder, independent: bool) -> Space:
    """Of an encoder; loads its weights."""
    note = (
        "not the encoder that conditions the set's model"
        if independent
        else "the encoder that conditions the set's model"
    )
    identity = hashlib.sha256(
        json.dumps([folder.sha256, folder.preprocessing], sort_keys=True, default=str).encode()
    ).hexdigest()
    return Space(folder.id, folder.sha256, identity, load_encoder(folder).embed, independent, note)


def embedded_in(
    items: Iterable[Item], spaces: Sequence[Space], kept: Path, tick: Tick = lambda count: None
) -> dict[str, np.ndarray]:
    """Embeddings float32 (N, E) of all tiles in each space, by its name. What `kept` holds is not computed again.

    InputError where an encoder gives values that are no numbers.
    """
    found: dict[str, list[np.ndarray]] = {space.name: [] for space in spaces}
    for piece in _pieces(items):
        content = b"".join(digest for digest, _ in piece)
        images: np.ndarray | None = None
        for space in spaces:
            name = hashlib.sha256(json.dumps([space.identity, BATCH]).encode() + content).hexdigest()
            place = kept / f"{name}.f4"
            vectors = _kept(place, len(piece))
            if vectors is None:
                images = np.stack([read() for _, read in piece]) if images is None else images
                vectors = _computed(images, space)
                data = np.ascontiguousarray(vectors, "<f4").tobytes()
                _put(place, hashlib.sha256(data).digest() + data)
            found[space.name].append(vectors)
        tick(len(piece))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _pieces(items: Iterable[Item]) -> Iterator[list[Item]]:
    rest = iter(items)
    while piece := list(islice(rest, PIECE)):
        yield piece


def _computed(images: np.ndarray, space: Space) -> np.ndarray:
    vectors = np.concatenate(list(in_batches(iter(images), space.embed, lambda count: None)))
    if not np.isfinite(vectors).all():
        raise InputError(f"{space.name}: gives NaN or infinity for a tile; its weights are damaged")
    return vectors


def _put(place: Path, data: bytes) -> None:
    """Whole or not at all, also where two evaluations write into one folder. The folder is its owner's alone."""
    place.parent.mkdir(mode=0o700, exist_ok=True)
    with beside(place, shared=True) as new:
        new.write_bytes(data)


def _kept(place: Path, rows: int) -> np.ndarray | None:
    """What was computed earlier; None where it is not there, or damaged."""
    try:
        data = place.read_bytes()
    except OSError:
        return None
    if len(data) <= 32 or hashlib.sha256(data[32:]).digest() != data[:32] or (len(data) - 32) % (4 * rows):
        return None
    return np.frombuffer(data, "<f4", offset=32).reshape(rows, -1).astype(np.float32)


class Kept:
    """Figures that were computed already, by what they were computed from. Lies beside the report, and is as internal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: is no folder, and what is computed would be kept there; move it")

    def once(self, what: str, key: Sequence[str], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """`make()`, or what it gave for the same key in an earlier call."""
        name = hashlib.sha256(json.dumps([MEASURES, what, *key]).encode()).hexdigest()[:32]
        place = self.folder / f"{name}.json"
        try:
            digest, _, text = place.read_text().partition("\n")
            if hashlib.sha256(text.encode()).hexdigest() == digest:
                return dict(read_json(text))
        except (OSError, ValueError):
            pass
        text = json.dumps(make(), allow_nan=False)
        _put(place, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode())
        return dict(read_json(text))


def digest_of(*arrays: np.ndarray) -> str:
    """Of what is in arrays, for `Kept`."""
    digest = hashlib.sha256()
    for array in arrays:
        whole = np.ascontiguousarray(array)
        digest.update(f"{whole.dtype}{whole.shape}".encode())
        digest.update(whole.tobytes())
    return digest.hexdigest()
