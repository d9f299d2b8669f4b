"""Paths and URLs of a spec: does one place lie inside another? (pure: relative paths count from the working directory)."""

from __future__ import annotations

import os.path
import posixpath
import re
from collections.abc import Callable
from pathlib import Path

MAX_NAME_BYTES, MAX_LENGTH = 200, 3000  # file systems allow 255 and 4,096; our own files come below


def is_url(place: str) -> bool:
    """True for fsspec URLs other than file://, such as s3://bucket/folder."""
    return "://" in place and not place.startswith(("file://", "local://"))


def cache_folder() -> Path:
    """Where downloads and embeddings are kept on this machine: $SYNTHFACTORY_CACHE, or ~/.cache/synthfactory."""
    return Path(os.path.expanduser(os.environ.get("SYNTHFACTORY_CACHE") or "~/.cache/synthfactory"))


def place_problem(place: str) -> str | None:
    """What is wrong with a path or URL as such, or None."""
    if not place.strip() or place != place.strip():
        return "is empty or has spaces at an end; write a folder or an fsspec URL such as s3://bucket/folder"
    if not place.isprintable():
        return "holds a control or invisible character; use printable ones only"
    if any(len(part.encode(errors="replace")) > MAX_NAME_BYTES for part in place.split("/")) or len(place) > MAX_LENGTH:
        return f"is too long; at most {MAX_NAME_BYTES} bytes between two '/', and {MAX_LENGTH:,} characters in all"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/(?!/)", place):
        scheme = place.partition(":")[0]
        return f"has one '/' where a URL has two, so it would be a folder of that name here; write {scheme}://... or a path"
    if is_url(place) and ".." in place.split("/"):
        return "has '..' inside a URL; object stores take it literally, so write the path without it"
    return None


def canonical(place: str, resolve: Callable[[str], str] = os.path.abspath) -> str:
    """One way of writing a place, which still opens it."""
    if is_url(place):
        scheme, _, rest = place.rpartition("://")
        return f"{scheme}://{posixpath.normpath('/' + rest).strip('/')}"
    return resolve(os.path.expanduser(place.partition("://")[2] if "://" in place else place))


def _parts(place: str, resolve: Callable[[str], str]) -> tuple[str, ...]:
    if is_url(place):
        scheme, _, rest = place.rpartition("::")[2].partition("://")
        return (scheme.lower(), *posixpath.normpath("/" + rest).strip("/").split("/"))
    local = place.partition("://")[2] if "://" in place else place
    return ("file", *resolve(os.path.expanduser(local)).strip(os.sep).split(os.sep))


def lies_inside(inner: str, outer: str, resolve: Callable[[str], str] = os.path.abspath) -> bool:
    """True where `inner` is `outer` or below it; `resolve` may be os.path.realpath to see through links on this machine."""
    inner_parts, outer_parts = _parts(inner, resolve), _parts(outer, resolve)
    outer_parts = tuple(part for part in outer_parts if part)
    return inner_parts[: len(outer_parts)] == outer_parts


def nested(one: str, other: str, resolve: Callable[[str], str] = os.path.abspath) -> bool:
    """True where either place is, or lies inside, the other."""
    return lies_inside(one, other, resolve) or lies_inside(other, one, resolve)
