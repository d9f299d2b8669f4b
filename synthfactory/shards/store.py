"""Opens the store at a place: a local folder, or any fsspec URL that can create exclusively."""

from __future__ import annotations

from synthfactory.shards.base import Store, is_temporary
from synthfactory.shards.local import LocalStore
from synthfactory.shards.remote import RemoteStore
from synthfactory.spec.places import is_url

__all__ = ["LocalStore", "RemoteStore", "Store", "is_temporary", "open_store"]


def open_store(place: str) -> Store:
    """The store at a local folder or fsspec URL; nothing is created.

    InputError where the URL is unknown, a package is missing, the bucket does not exist, or the credentials are refused.
    """
    if is_url(place):
        return RemoteStore(place)
    return LocalStore(place.partition("://")[2] if "://" in place else place)
