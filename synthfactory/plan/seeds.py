"""Keys of randomness, by keyed blake2b with a purpose each, so that the streams cannot meet.

An integer seed gives keys that anyone can repeat: no secrecy, on purpose. A secret is 2 x 128 bits from the operating system.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Keys:
    """Two 16-byte keys: of the candidates' noise, and of the choice of conditions. Never printed."""

    noise: bytes = field(repr=False)
    conditions: bytes = field(repr=False)

    def to_json(self) -> dict[str, str]:
        """Hex, for LINEAGE/secret.json."""
        return {"noise": self.noise.hex(), "conditions": self.conditions.hex()}

    @classmethod
    def from_json(cls, values: dict[str, str]) -> Keys:
        """The inverse; ValueError where a key is not 16 bytes of hex."""
        made = cls(bytes.fromhex(values["noise"]), bytes.fromhex(values["conditions"]))
        if len(made.noise) != 16 or len(made.conditions) != 16:
            raise ValueError("keys must be 16 bytes")
        return made


def _derived(seed: int, person: bytes) -> bytes:
    return hashlib.blake2b(seed.to_bytes(17, "big"), digest_size=16, person=person).digest()


def keys_from_seed(seed: int) -> Keys:
    """Both keys from an integer 0 <= seed < 2**128."""
    return Keys(_derived(seed, b"sf-seed-noise"), _derived(seed, b"sf-seed-cond"))


def new_secret() -> Keys:
    """Two fresh random keys."""
    return Keys(os.urandom(16), os.urandom(16))


def noise_key(keys: Keys, class_name: str, index: int, attempt: int) -> tuple[int, int]:
    """Philox key (two uint64) of a candidate's noise: from class name, index and attempt alone, so that recipes can be compared."""
    text = f"{index}:{attempt}:{class_name}".encode()
    digest = hashlib.blake2b(text, digest_size=16, key=keys.noise, person=b"sf-noise").digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")
