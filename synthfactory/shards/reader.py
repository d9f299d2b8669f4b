"""Reads the tiles of an OUT: committed shards only, in order, trusting nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from synthfactory.shards.commit import list_commits
from synthfactory.shards.store import Store
from synthfactory.shards.tarfmt import decode_image, samples


def iter_tiles(store: Store) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
    """(key, uint8 (H, W, 3), record) of every committed tile; DamagedShardError where a shard is not whole."""
    for commit in list_commits(store).values():
        with store.open(commit.objects[0]) as handle:
            for key, image, record in samples(handle):
                yield key, decode_image(image), json.loads(record)
