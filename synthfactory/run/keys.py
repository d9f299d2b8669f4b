"""The keys of a build's randomness: derived from an integer seed, or random and kept in LINEAGE alone."""

from __future__ import annotations

import json
from pathlib import Path

from synthfactory.plan.seeds import Keys, keys_from_seed, new_secret
from synthfactory.shards.store import Store
from synthfactory.spec.errors import InputError
from synthfactory.spec.json_text import read_json
from synthfactory.spec.schema import Spec

SECRET = "secret.json"


def read_keys(spec: Spec, lineage: Store) -> Keys:
    """The build's keys. InputError where the secret of an existing build is missing or damaged."""
    if spec.seed != "secret":
        assert isinstance(spec.seed, int)
        return keys_from_seed(spec.seed)
    try:
        return Keys.from_json(read_json(lineage.read(SECRET)))
    except FileNotFoundError:
        raise spec.error(
            "lineage",
            f"{spec.lineage}/{SECRET} is missing, but {spec.output.path} was begun with it; restore the lineage folder, "
            "or choose a new output (a new secret would draw other tiles)",
        ) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{spec.lineage}/{SECRET}: is damaged; restore the lineage folder from a copy") from None


def make_keys(spec: Spec, lineage: Store) -> Keys:
    """As `read_keys`, for a build that begins: makes the secret first (create-if-absent: of two racing builds the first wins)."""
    if spec.seed == "secret":
        lineage.create(SECRET, json.dumps(new_secret().to_json(), sort_keys=True).encode() + b"\n")
        root = _folder(lineage)
        if root is not None:
            (root / SECRET).chmod(0o600)
    return read_keys(spec, lineage)


def guard(lineage: Store) -> None:
    """Makes a lineage folder that does not exist yet readable to its owner alone; one that exists keeps its permissions."""
    root = _folder(lineage)
    if root is not None and not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        root.mkdir(mode=0o700, exist_ok=True)


def _folder(store: Store) -> Path | None:
    root = getattr(store, "root", None)
    return root if isinstance(root, Path) else None
