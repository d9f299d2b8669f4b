"""Opens the store at a place: a local folder, or any fsspec URL that can create exclusively."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import BinaryIO

from synthfactory.shards.base import SPECIAL, NotAFileError, Store, is_temporary
from synthfactory.shards.local import LocalStore, open_file
from synthfactory.shards.remote import RemoteStore
from synthfactory.spec.errors import InputError
from synthfactory.spec.places import is_url

__all__ = ["LocalStore", "RemoteStore", "Store", "is_temporary", "open_source", "open_store"]


def open_store(place: str, *, reading: bool = False) -> Store:
    """The store at a local folder or fsspec URL; nothing is created. `reading`: nothing will ever be written through it.

    InputError where the URL is unknown, a package is missing, the bucket does not exist, or the credentials are refused.
    """
    if is_url(place):
        return RemoteStore(place, reading=reading)
    return LocalStore(place.partition("://")[2] if "://" in place else place)


def open_source(place: str) -> contextlib.AbstractContextManager[BinaryIO]:
    """One file for reading, by local path (~ allowed) or fsspec URL. OSError where it cannot be read; InputError as `open_store`."""
    if not is_url(place):
        path = Path(os.path.expanduser(place.partition("://")[2] if "://" in place else place))
        if path.is_dir():
            return open(path, "rb")  # raises what callers know
        try:
            return open_file(path, through_links=True)
        except NotAFileError:
            raise NotAFileError(f"it is {SPECIAL}") from None  # callers name the place
    parent, _, name = place.rpartition("/")
    if parent.endswith((":", "/")) or not name:
        raise InputError(f"{place}: names no file; write for example s3://bucket/folder/file")
    return open_store(parent, reading=True).open(name)
