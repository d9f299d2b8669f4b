"""A store behind an fsspec URL. Calls are retried on transient faults; exclusive creation is the object store's own.

On S3 `create` is PutObject with If-None-Match: *. A reply can be lost after the object arrived, so every doubt (exists, conflict,
time-out) is settled by reading back: equal bytes are success.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
import time
from asyncio import TimeoutError as AsyncTimeoutError
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.data import DataFileSystem

from synthfactory.shards.base import Store, checked, is_temporary, temporary_name
from synthfactory.spec.errors import InputError

ATTEMPTS = 6
OPENING_ATTEMPTS = 2
PROBES = 8
READERS = 32  # small objects that are read at once
FIRST_PAUSE_SEC = 0.2
PART_BYTES = 8 << 20  # of a multipart upload: bounds the memory that sending a large tar takes

CREDENTIALS = (("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ("AWS_CONFIG_FILE", "config"))

Result = TypeVar("Result")


def _client_options(scheme: str) -> dict[str, Any]:
    """S3's client must hand over what lies there, even where the store's own checksum says that it is damaged: verification names
    such an object by our own checksums, and a build makes it again. Without this a damaged object could not be read at all.
    """
    if scheme not in ("s3", "s3a"):
        return {}
    try:
        known = importlib.import_module("botocore.config").Config.OPTION_DEFAULTS
    except ImportError:
        return {}  # fsspec says in words what is missing
    if "response_checksum_validation" not in known:
        return {}  # a client of before such checks
    given = fsspec.config.conf.get(scheme, {}).get("config_kwargs", {})
    return {"config_kwargs": {"response_checksum_validation": "when_required", **given}}


_clients: dict[tuple[Any, ...], Any] = {}


def _changed(path: str) -> int:
    """When a file was written last, in ns; 0 where there is none."""
    with contextlib.suppress(OSError):
        return Path(os.path.expanduser(path)).stat().st_mtime_ns
    return 0


def _shared(url: str) -> tuple[Any, str, set[str]]:
    """(file system, path in it, what is known of it) for a store. S3's clients are shared, where nothing that they are made from has
    changed: making one takes 0.2 s and a handshake, and a build opens its stores some fifteen times.
    """
    scheme = url.partition("://")[0]
    options = {"use_listings_cache": False, "skip_instance_cache": True, **_client_options(scheme)}
    if scheme not in ("s3", "s3a"):
        return *open_url(url, **options), set()
    settings = sorted(item for item in os.environ.items() if item[0].startswith(("AWS_", "FSSPEC_")))
    files = (_changed(os.environ.get(name, f"~/.aws/{file}")) for name, file in CREDENTIALS)
    key = (os.getpid(), repr(fsspec.config.conf), *files, *settings)
    if key not in _clients:
        _clients[key] = (open_url(url, **options)[0], set())
    system, known = _clients[key]
    return system, system._strip_protocol(url), known


def open_url(url: str, **options: Any) -> tuple[Any, str]:
    """(file system, path in it) of a local path or fsspec URL. InputError where no such file system can be opened."""
    try:
        system, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        s3 = url.startswith(("s3://", "s3a://"))
        how = "install it (pip install 'synthfactory[s3]')" if s3 else "install the package named above"
        raise InputError(f"{url}: {error}; {how}") from None
    except Exception as error:  # noqa: BLE001 - some forty plugins, which raise what they like of a URL that lacks something
        said = str(error).partition("\n")[0][:200] or type(error).__name__
        raise InputError(
            f"{url}: cannot be opened by fsspec ({said}); write a folder or for example s3://bucket/folder"
        ) from None
    if isinstance(system, DataFileSystem):
        raise InputError(f"{url}: data: URLs hold no files; write a file, a folder or for example s3://bucket/folder")
    return system, str(path)


class RemoteStore(Store):
    """Objects below a URL. `pause` sleeps between tries. InputError where the place cannot be used at all.

    `reading` promises that nothing is written, so that kinds of store without exclusive creation will do.
    """

    def __init__(self, url: str, pause: Callable[[float], None] = time.sleep, *, reading: bool = False) -> None:
        scheme, _, rest = url.partition("://")
        self.place = f"{scheme}://{rest.rstrip('/')}"
        self._pause = pause
        self.fs, root, self._known = _shared(self.place)
        self.root = root.rstrip("/")
        self.at_once = READERS if isinstance(self.fs, AsyncFileSystem) else 1
        protocols = (self.fs.protocol,) if isinstance(self.fs.protocol, str) else self.fs.protocol
        self._is_s3 = "s3" in protocols
        if not reading and "memory" in protocols:
            raise InputError(f"{url}: ends with this process; write a folder or for example s3://bucket/folder")
        reader = getattr(type(self.fs), "_cat_file", None)
        parts = reader is not None and "max_concurrency" in inspect.signature(reader).parameters
        self._whole = {"max_concurrency": 1} if parts else {}  # else newer clients ask for the size first
        # botocore's errors are no OSErrors; it is loaded by now where it is needed at all
        client = sys.modules.get("botocore.exceptions") if self._is_s3 else None
        self._denied: tuple[type[Exception], ...] = (PermissionError,)
        self._faults: tuple[type[Exception], ...] = (OSError, AsyncTimeoutError)
        web = sys.modules.get("aiohttp")  # the client of http:// and of several stores
        if web:
            self._faults += (web.ClientError,)
        if client:
            self._denied += (client.NoCredentialsError, client.PartialCredentialsError, client.ProfileNotFound)
            self._faults += (client.BotoCoreError, client.ClientError)
        writer = getattr(type(self.fs), "_pipe_file", None) or self.fs.pipe_file
        exclusive = writer is not AsyncFileSystem._pipe_file and "mode" in inspect.signature(writer).parameters
        if not reading and not exclusive:
            raise InputError(
                f"{url}: this kind of store offers no exclusive creation; use a folder or s3://bucket/folder"
            )
        if self._is_s3 and self.root not in self._known:
            self._look()
            self._known.add(self.root)

    def _look(self) -> None:
        """One listing, so that a wrong bucket, key or endpoint is said at once and in words."""
        bucket, _, key = self.root.partition("/")
        if not bucket:
            raise InputError(f"{self.place}: names no bucket; write s3://bucket/folder")

        def ask() -> Any:
            return self.fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=f"{key}/" if key else "", MaxKeys=1)

        try:
            self._tried("list it", ask, OPENING_ATTEMPTS)
        except FileNotFoundError:
            raise InputError(f"{self.place}: there is no bucket '{bucket}'; make it, or correct the name") from None
        except OSError as error:
            raise InputError(
                f"{self.place}: cannot be reached ({error}); check the network, AWS_ENDPOINT_URL and the region"
            ) from None

    def _at(self, path: str) -> str:
        return f"{self.root}/{checked(path)}"

    def _refused(self, what: str, error: Exception) -> InputError:
        _clients.clear()  # stores that are opened from now on ask with whatever credentials there are by then
        if isinstance(error, PermissionError):
            return InputError(
                f"{self.place}: no permission to {what} ({error}); check the credentials and the bucket's policy"
            )
        return InputError(
            f"{self.place}: no credentials ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        )

    def _tried(self, what: str, call: Callable[[], Result], attempts: int = ATTEMPTS) -> Result:
        for attempt in range(attempts):
            try:
                return call()
            except (FileNotFoundError, FileExistsError):
                raise
            except self._denied as error:
                raise self._refused(what, error) from None
            except self._faults as error:  # time-outs, lost connections, and what s3fs makes of 5xx answers
                if attempt + 1 == attempts:
                    raise OSError(f"{self.place}: could not {what} in {attempts} tries: {error}") from error
            self._pause(FIRST_PAUSE_SEC * 2**attempt)
        raise AssertionError("unreachable")

    def read(self, path: str, *, through_links: bool = False) -> bytes:
        return bytes(self._tried(f"read {path}", lambda: self.fs.cat_file(self._at(path), **self._whole)))

    def read_each(self, paths: Iterable[str]) -> Iterator[tuple[str, bytes | None]]:
        if self.at_once == 1:
            yield from super().read_each(paths)
            return
        waiting = iter(paths)
        with ThreadPoolExecutor(self.at_once) as pool:
            while some := list(islice(waiting, 16 * self.at_once)):
                yield from zip(some, pool.map(self._there, some), strict=True)

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        def once() -> bytes:
            return bytes(self.fs.cat_file(self._at(path), start=offset, end=offset + length))

        return self._tried(f"read {path}", once)

    @contextlib.contextmanager
    def _opened(self, path: str) -> Iterator[BinaryIO]:
        handle: Any = self._tried(f"read {path}", lambda: self.fs.open(self._at(path), "rb"))
        try:
            with handle:
                yield handle
        except OSError:
            raise
        except self._denied as error:
            raise self._refused(f"read {path}", error) from None
        except self._faults as error:  # of the client's own kind
            raise OSError(f"{self.place}: could not read {path}: {error}") from error

    def open(self, path: str) -> contextlib.AbstractContextManager[BinaryIO]:
        return self._opened(path)

    def size(self, path: str) -> int | None:
        self.fs.invalidate_cache()
        try:
            return int(self._tried(f"look at {path}", lambda: self.fs.info(self._at(path)))["size"])
        except FileNotFoundError:
            return None

    def _send(self, path: str, content: bytes | Path, mode: str) -> None:
        if isinstance(content, Path):
            parts = {"chunksize": PART_BYTES} if self._is_s3 else {}
            self.fs.put_file(str(content), self._at(path), mode=mode, **parts)
        else:
            self.fs.pipe_file(self._at(path), content, mode=mode)

    def put(self, path: str, content: bytes | Path) -> None:
        wanted = content.stat().st_size if isinstance(content, Path) else len(content)

        def once() -> None:
            try:
                self._send(path, content, "overwrite")
            except FileNotFoundError as error:  # another build took us for dead and aborted the upload
                raise OSError(f"the upload of {path} was ended: {error}") from error
            found = self.size(path)
            if found != wanted:
                raise OSError(f"{path} has {found} bytes after writing {wanted}")

        self._tried(f"write {path}", once)

    def create(self, path: str, content: bytes) -> bool:
        bucket = f"{self.root.partition('/')[0]} creates exclusively"
        if bucket not in self._known:
            self._check_exclusive()
            self._known.add(bucket)
        return self._create(path, content)

    def _create(self, path: str, content: bytes) -> bool:
        last: Exception | None = None
        for attempt in range(ATTEMPTS):
            sent = False
            try:
                self._send(path, content, "create")
                sent = True
            except self._denied as error:
                raise self._refused(f"write {path}", error) from None
            except self._faults as error:
                last = error  # lost the race, lost the reply, or never arrived: reading back tells
            try:
                found = self.read(path)
            except FileNotFoundError:
                found = None
            if sent and found is not None and len(found) < len(content) and content.startswith(found):
                last = OSError(f"it has {len(found)} bytes after writing {len(content)}")
                self.delete(path)  # won, but arrived cut: nobody else's, and it would stand in the way for ever
            elif found is not None:
                return found == content
            self._pause(FIRST_PAUSE_SEC * 2**attempt)
        raise OSError(f"{self.place}: could not write {path} in {ATTEMPTS} tries: {last}") from last

    def _check_exclusive(self) -> None:
        """Some S3-compatible servers ignore If-None-Match; on them two builds could both win a shard, so they are refused."""
        for _ in range(PROBES):  # another build's sweep can take a probe away between the two writes; not every time
            probe = temporary_name()
            try:
                if self._create(probe, b"1") and not self._create(probe, b"2"):
                    return
            finally:
                self.delete(probe)
        raise InputError(
            f"{self.place}: this store overwrites where it is told to create only (If-None-Match is ignored); "
            "update the server, or build into a folder"
        )

    def entries(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        below = self._at(prefix) if prefix else self.root
        self.fs.invalidate_cache()
        try:
            found: Any = self._tried("list it", lambda: self.fs.find(below, detail=True))
        except FileNotFoundError:
            return
        start = f"{self.root}/"
        for path, entry in found.items():
            # Names that end in '/' are the empty marks that consoles make for folders.
            if path.startswith(start) and entry.get("type") == "file" and not path.endswith("/"):
                yield path[len(start) :], int(entry["size"])

    def delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._tried(f"delete {path}", lambda: self.fs.rm_file(self._at(path)))

    def open_uploads(self) -> list[dict[str, str]]:
        """Multipart uploads that were begun below this place and neither finished nor aborted (S3 only)."""
        if not self._is_s3:
            return []
        bucket, _, key = self.root.partition("/")
        found: list[dict[str, str]] = []
        asked = {"Bucket": bucket, "Prefix": f"{key}/" if key else ""}
        while True:
            answer = self._s3("list_multipart_uploads", asked)
            for item in answer.get("Uploads", []):
                found.append({"Bucket": bucket, "Key": item["Key"], "UploadId": item["UploadId"]})
            if not answer.get("IsTruncated"):
                return found
            asked |= {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}

    def _s3(self, method: str, arguments: dict[str, str]) -> dict[str, Any]:
        answer: dict[str, Any] = self._tried(method.replace("_", " "), lambda: self.fs.call_s3(method, **arguments))
        return answer

    def leftovers(self) -> list[str]:
        probes = [path for path, _ in self.entries() if is_temporary(path)]
        return sorted([*probes, *(f"unfinished upload of {upload['Key']}" for upload in self.open_uploads())])

    def sweep(self) -> int:
        probes = [path for path, _ in self.entries() if is_temporary(path)]
        for path in probes:
            self.delete(path)
        uploads = self.open_uploads()
        for upload in uploads:
            with contextlib.suppress(FileNotFoundError):
                self._s3("abort_multipart_upload", upload)
        return len(probes) + len(uploads)
