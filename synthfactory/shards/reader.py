"""Reads the tiles of an OUT: committed shards only, in order, trusting nothing."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import numpy as np

from synthfactory.shards.base import Store
from synthfactory.shards.commit import list_commits
from synthfactory.shards.record import parse_record
from synthfactory.shards.store import open_store
from synthfactory.shards.tarfmt import DamagedShardError, decode_image, samples
from synthfactory.spec.text import shown

Keep = Callable[[int, Mapping[str, Any]], bool]  # (shard, record) -> whether the tile is asked for


def iter_tiles(
    place: Store | str, shards: Container[int] | None = None, keep: Keep | None = None
) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
    """(key, uint8 (H, W, 3), record) of every committed tile; DamagedShardError, naming the tar, where a shard is not whole.

    Of these `shards` only (None: of all); `keep` is asked of each tile in order, and what it refuses is not decoded.
    """
    store = open_store(place) if isinstance(place, str) else place
    for commit in list_commits(store).values():
        if shards is not None and commit.shard not in shards:
            continue
        path = commit.objects[0]
        count = 0
        try:
            with store.open(path) as handle:
                for key, image, record in samples(handle):
                    values, problem = parse_record(record, key)
                    if problem:
                        raise DamagedShardError(f"{shown(key)}: its record {problem}")
                    count += 1
                    if keep is None or keep(commit.shard, values):
                        yield (
                            key,
                            decode_image(image, (values["width_px"], values["height_px"]), values["format"]),
                            values,
                        )
            if count != commit.tiles:
                raise DamagedShardError(f"holds {count} tiles; its commit says {commit.tiles}")
        except FileNotFoundError:
            raise DamagedShardError(f"{store.place}/{path}: is not there, but its commit is") from None
        except DamagedShardError as error:
            raise DamagedShardError(f"{store.place}/{path}: {error}") from None
