"""A checksum inside what nothing else vouches for (lock, rounds, commits): a flipped byte or a changed word is told from the original.

It guards against accident and careless editing; who rewrites a set on purpose can seal it again, and then tiles contradict the lock.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "seal"


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with a (new) `seal`: the SHA-256 (64 hex digits) of all else as canonical JSON. ValueError where it holds NaN."""
    inner = {name: value for name, value in values.items() if name != SEAL}
    whole = json.dumps(inner, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return {**inner, SEAL: hashlib.sha256(whole.encode()).hexdigest()}


def unsealed(values: Any) -> dict[str, Any]:
    """What was sealed, without the seal. ValueError (or TypeError, RecursionError for what is no JSON) where it is not unchanged."""
    if not isinstance(values, dict):
        raise ValueError("is no mapping")
    if sealed(values)[SEAL] != values.get(SEAL):
        raise ValueError("differs from its seal, so it was changed since it was written")
    return {name: value for name, value in values.items() if name != SEAL}
