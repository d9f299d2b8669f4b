"""Builds of the miniature repository: what their specs share, and new commits of it. Fixtures are in conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hubserver import Repo
from minirepo import FORM
from running import Ended

CYTOSYN = "Owkin-Bioptimus/CytoSyn"
TERMS = {"accept": ["CC-BY-NC-ND-4.0"]}
SMALL = {
    "classes": {"alpha": 5, "beta": 4},
    "sampler": {"method": "pipeline", "steps": 2},
    "execution": {"batch_size": 4},
}
Build = Callable[..., Ended]


def official(repo: Repo, **changes: Any) -> dict[str, Any]:
    return {"name": "cytosyn", "revision": repo.refs["main"], "trust_remote_code": True, "pipeline": FORM, **changes}


def swapped(repo: Repo, path: str, content: bytes) -> dict[str, Any]:
    repo.commit({**repo.commits[repo.refs["main"]], path: content})
    return {}


def without(repo: Repo, *paths: str) -> dict[str, Any]:
    repo.commit({path: content for path, content in repo.commits[repo.refs["main"]].items() if path not in paths})
    return {}
