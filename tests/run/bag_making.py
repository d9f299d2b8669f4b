"""Sets with bags to look at and to tamper with."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from synthfactory.shards.commit import commit_path, list_commits
from synthfactory.shards.record import TileRecord, public_parquet
from synthfactory.shards.seal import sealed
from synthfactory.shards.store import LocalStore
from synthfactory.shards.tarfmt import samples, write_shard

CLASSES = {"alpha": 12, "beta": 7}
BAGS = {"size": 4, "patients": 2}


def rewritten(out: Path, change: Callable[[dict[str, Any]], None], shard: int = 0, *, table: bool = True) -> None:
    """Changes the records of a shard under checksums and a seal that are right; `table`: the parquet says the same."""
    store = LocalStore(str(out))
    standing = list_commits(store)[shard]
    pairs = []
    for _, image, record in samples(io.BytesIO(store.read(standing.objects[0]))):
        values = json.loads(record)
        change(values)
        pairs.append((TileRecord(**{name: value for name, value in values.items() if name != "synthetic"}), image))
    with tempfile.TemporaryDirectory() as folder:
        made = write_shard(Path(folder) / "shard.tar", pairs)
        tar = made.path.read_bytes()
    bags = any("bag_id" in row for row in made.rows)
    parquet = public_parquet(made.rows, shard, bags=bags) if table else store.read(standing.objects[1])
    body = json.loads(json.dumps(standing.body))
    for kind, path, data in zip(("tar", "parquet"), standing.objects, (tar, parquet), strict=True):
        digest = hashlib.sha256(data).hexdigest()
        body[kind] = {"name": f"shards/{shard:06d}-{digest[:12]}.{kind}", "sha256": digest, "bytes": len(data)}
        store.delete(path)
        store.put(body[kind]["name"], data)
    store.put(commit_path(shard), json.dumps(sealed(body)).encode())
