"""Terms of models and encoders: what their names say, and which repositories of the Hub are known to carry which."""

from __future__ import annotations

from typing import Any

from synthfactory.spec.hubname import repo_of

NOT_STATED = "not stated"
# Identifiers as the Hub's cards write them -> the usual name, and whether the licence itself allows sharing what the model made.
_OPEN = {
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    "bsd-3-clause": "BSD-3-Clause",
    "cc0-1.0": "CC0-1.0",
    "cc-by-4.0": "CC-BY-4.0",
}
_NO_DERIVATIVES = {"name": "CC-BY-NC-ND-4.0", "sharing": "local", "use": "academic, non-commercial"}
KNOWN: dict[str, dict[str, Any]] = {
    "Owkin-Bioptimus/CytoSyn": _NO_DERIVATIVES,
    "bioptimus/H0-mini": {**_NO_DERIVATIVES, "people": "attempts to re-identify anyone are forbidden"},
}


def known_licence(repo: str) -> dict[str, Any]:
    """Terms of a repository that is known here to be gated; {} for any other."""
    return dict(KNOWN.get(repo_of(repo), {}))


def licence_of(repo: str, stated: str | None) -> dict[str, Any]:
    """Terms {name, sharing, ...} of a Hub repository; `stated` is what its card says, None where it says nothing.

    `sharing` is `allowed` only where the licence by itself allows it; else `local`.
    """
    if repo_of(repo) in KNOWN:
        return known_licence(repo)
    if stated is None:
        return {"name": NOT_STATED, "sharing": "local"}
    plain = stated.strip().lower()
    if plain in _OPEN:
        return {"name": _OPEN[plain], "sharing": "allowed"}
    return {"name": stated.strip().upper() if plain.startswith("cc-") else stated.strip()[:100], "sharing": "local"}
