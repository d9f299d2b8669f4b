"""A folder of objects, on disk or behind any fsspec URL, with the two writes that the commit protocol rests on.

`put` replaces whole objects (for names that contain their content's hash, where a second writer writes the same). `create` is
exclusive: of two writers one wins, and a lost reply is told from a lost race by reading back.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from synthfactory.spec.errors import InputError
from synthfactory.spec.places import is_url

TEMPORARY = ".tmp-"
ATTEMPTS = 6
FIRST_PAUSE_SEC = 0.2


def _checked(path: str) -> str:
    parts = path.split("/")
    if not path or path.startswith("/") or any(part in ("", ".", "..") for part in parts) or "\0" in path:
        raise ValueError(f"'{path}' is no relative path inside a store")
    return path


class Store(ABC):
    """Objects by relative POSIX path."""

    place: str

    @abstractmethod
    def read(self, path: str) -> bytes:
        """The whole object; FileNotFoundError where there is none."""

    @abstractmethod
    def open(self, path: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """The object as a readable file; FileNotFoundError where there is none."""

    @abstractmethod
    def size(self, path: str) -> int | None:
        """Bytes, or None where there is no such object."""

    @abstractmethod
    def put(self, path: str, content: bytes | Path) -> None:
        """Writes a whole object (bytes, or a local file) and checks its size; nobody ever sees a part of it under this name."""

    @abstractmethod
    def create(self, path: str, content: bytes) -> bool:
        """Writes only where there is nothing. True: the object holds `content` now (ours, or equal). False: it holds something else."""

    @abstractmethod
    def entries(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """(path, bytes) of every object below a folder ('' = all), never from a cache, in no order; temporary files included."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Removes an object; nothing where there is none."""

    @abstractmethod
    def sweep(self) -> int:
        """Removes what interrupted writes left behind (temporary files, open uploads); returns how many."""

    def exists(self) -> bool:
        """Whether anything lies here."""
        return next(iter(self.entries()), None) is not None

    def move_out(self, path: str, other: Store, other_path: str) -> None:
        """Copies an object to another store, then removes it here."""
        other.put(other_path, self.read(path))
        self.delete(path)


class LocalStore(Store):
    """A folder. Files appear whole: written under a temporary name, synced, then renamed (put) or linked (create)."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.root = Path(os.path.abspath(os.path.expanduser(place)))

    def _at(self, path: str) -> Path:
        return self.root / _checked(path)

    def read(self, path: str) -> bytes:
        return self._at(path).read_bytes()

    def open(self, path: str) -> contextlib.AbstractContextManager[BinaryIO]:
        return open(self._at(path), "rb")

    def size(self, path: str) -> int | None:
        try:
            return self._at(path).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _temporary(self, target: Path, content: bytes | Path) -> Path:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
        with open(temporary, "xb") as handle:
            if isinstance(content, Path):
                with open(content, "rb") as source:
                    for block in iter(lambda: source.read(1 << 20), b""):
                        handle.write(block)
            else:
                handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        return temporary

    def put(self, path: str, content: bytes | Path) -> None:
        target = self._at(path)
        temporary = self._temporary(target, content)
        temporary.replace(target)
        _sync_folder(target.parent)

    def create(self, path: str, content: bytes) -> bool:
        target = self._at(path)
        temporary = self._temporary(target, content)
        try:
            os.link(temporary, target)
        except FileExistsError:
            return self.read(path) == content
        except OSError:  # no hard links on this file system: exclusive open, so that a crash may leave a short file for verify to find
            try:
                with open(target, "xb") as handle:
                    handle.write(content)
                    handle.flush()
                    os.fsync(handle.fileno())
            except FileExistsError:
                return self.read(path) == content
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)
        return True

    def entries(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        for folder, _, names in os.walk(self._at(prefix) if prefix else self.root):
            for name in names:
                path = Path(folder) / name
                with contextlib.suppress(FileNotFoundError):
                    yield path.relative_to(self.root).as_posix(), path.lstat().st_size

    def delete(self, path: str) -> None:
        self._at(path).unlink(missing_ok=True)

    def move_out(self, path: str, other: Store, other_path: str) -> None:
        if self._at(path).is_symlink():  # never follow a foreign link to somewhere else
            other.put(other_path + ".link", str(self._at(path).readlink()).encode())
            self.delete(path)
            return
        super().move_out(path, other, other_path)

    def sweep(self) -> int:
        stale = [path for path in self.root.rglob(f"{TEMPORARY}*") if path.is_file()]
        for path in stale:
            path.unlink(missing_ok=True)
        return len(stale)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class RemoteStore(Store):
    """An object store through fsspec. Every call is retried on transient faults; exclusive creation is the store's own (If-None-Match)."""

    def __init__(self, url: str, pause: Callable[[float], None] = time.sleep) -> None:
        self.place = url.rstrip("/")
        self._pause = pause
        try:
            self.fs, root = fsspec.core.url_to_fs(self.place, use_listings_cache=False, skip_instance_cache=True)
        except ImportError as error:
            raise InputError(f"{url}: {error}; install it with pip install 'synthfactory[s3]'") from None
        except ValueError as error:
            raise InputError(
                f"{url}: is no URL that fsspec knows ({error}); write a folder or for example s3://bucket/folder"
            ) from None
        self.root = root.rstrip("/")

    def _at(self, path: str) -> str:
        return f"{self.root}/{_checked(path)}"

    def _tried(self, what: str, call: Callable[[], Any]) -> Any:
        for attempt in range(ATTEMPTS):
            try:
                return call()
            except (FileNotFoundError, FileExistsError):
                raise
            except PermissionError as error:
                raise InputError(
                    f"{self.place}: no permission to {what} ({error}); check the credentials and the bucket's policy"
                ) from None
            except OSError as error:  # includes time-outs and what s3fs makes of 5xx answers
                if attempt + 1 == ATTEMPTS:
                    raise
                del error
                self._pause(FIRST_PAUSE_SEC * 2**attempt)
        raise AssertionError("unreachable")

    def read(self, path: str) -> bytes:
        return bytes(self._tried("read", lambda: self.fs.cat_file(self._at(path))))

    @contextlib.contextmanager
    def _opened(self, path: str) -> Iterator[BinaryIO]:
        handle = self._tried("read", lambda: self.fs.open(self._at(path), "rb"))
        with handle:
            yield handle

    def open(self, path: str) -> contextlib.AbstractContextManager[BinaryIO]:
        return self._opened(path)

    def size(self, path: str) -> int | None:
        try:
            return int(self._tried("read", lambda: self.fs.info(self._at(path), refresh=True))["size"])
        except FileNotFoundError:
            return None

    def _send(self, path: str, content: bytes | Path, mode: str) -> None:
        if isinstance(content, Path):
            self.fs.put_file(str(content), self._at(path), mode=mode)
        else:
            self.fs.pipe_file(self._at(path), content, mode=mode)

    def put(self, path: str, content: bytes | Path) -> None:
        wanted = content.stat().st_size if isinstance(content, Path) else len(content)

        def once() -> None:
            self._send(path, content, "overwrite")
            if self.size(path) != wanted:
                raise OSError(f"{self.place}/{path}: has {self.size(path)} bytes after writing {wanted}")

        self._tried("write", once)

    def create(self, path: str, content: bytes) -> bool:
        for attempt in range(ATTEMPTS):
            try:
                self._send(path, content, "create")
            except FileExistsError:
                pass  # lost the race, or the reply to the first try was lost: reading back tells
            except PermissionError as error:
                raise InputError(
                    f"{self.place}: no permission to write ({error}); check the credentials and the bucket's policy"
                ) from None
            except OSError:
                self._pause(FIRST_PAUSE_SEC * 2**attempt)
            try:
                return self.read(path) == content
            except FileNotFoundError:
                continue  # it never arrived
        raise OSError(f"{self.place}/{path}: could not be written in {ATTEMPTS} tries")

    def entries(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        below = self._at(prefix) if prefix else self.root
        self.fs.invalidate_cache()
        try:
            found = self._tried("list", lambda: self.fs.find(below, detail=True, refresh=True))
        except FileNotFoundError:
            return
        except TypeError:
            found = self._tried("list", lambda: self.fs.find(below, detail=True))
        for path, entry in found.items():
            if path.startswith(self.root + "/") and entry.get("type") == "file":
                yield path[len(self.root) + 1 :], int(entry["size"])

    def delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._tried("delete", lambda: self.fs.rm_file(self._at(path)))

    def open_uploads(self) -> list[dict[str, str]]:
        """Multipart uploads that were begun below this place and neither finished nor aborted (S3 only)."""
        if "s3" not in getattr(self.fs, "protocol", ()):
            return []
        bucket, _, key = self.root.partition("/")
        answer = self._tried("list", lambda: self.fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key))
        return [
            {"Bucket": bucket, "Key": item["Key"], "UploadId": item["UploadId"]} for item in answer.get("Uploads", [])
        ]

    def sweep(self) -> int:
        stale = self.open_uploads()
        for upload in stale:
            with contextlib.suppress(FileNotFoundError):
                self.fs.call_s3("abort_multipart_upload", **upload)
        return len(stale)


def open_store(place: str) -> Store:
    """The store at a local folder or fsspec URL; nothing is created. InputError where the URL is unknown or a package is missing."""
    if is_url(place):
        return RemoteStore(place)
    return LocalStore(place.partition("://")[2] if "://" in place else place)
