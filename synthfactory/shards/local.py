"""A store in a folder. Files appear whole: written under a temporary name, synced, then renamed (put) or linked (create)."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from synthfactory.shards.base import (
    BLOCK_BYTES,
    FOLDER,
    LINK,
    SPECIAL,
    NotAFileError,
    Store,
    checked,
    free_path,
    is_temporary,
    temporary_name,
)

SWEPT_RETRIES = 5
SETTLE_TRIES = 40
SETTLE_PAUSE_SEC = 0.05
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES}


class LocalStore(Store):
    """A folder, made at the first write."""

    at_once = 16

    def __init__(self, place: str) -> None:
        self.place = place
        self.root = Path(os.path.abspath(os.path.expanduser(place)))

    def _at(self, path: str) -> Path:
        return self.root / checked(path)

    def read(self, path: str, *, through_links: bool = False) -> bytes:
        with open_file(self._at(path), through_links) as handle:
            return handle.read()

    def open(self, path: str) -> contextlib.AbstractContextManager[BinaryIO]:
        return open_file(self._at(path))

    def size(self, path: str) -> int | None:
        try:
            return self._at(path).lstat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _temporary(self, target: Path, content: bytes | Path) -> Path:
        _make_folder(target.parent)
        temporary = target.with_name(temporary_name())
        try:
            with open(temporary, "xb") as handle:
                if isinstance(content, Path):
                    with open(content, "rb") as source:
                        shutil.copyfileobj(source, handle, BLOCK_BYTES)
                else:
                    handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)  # a full disk must not be filled further
            raise
        return temporary

    def put(self, path: str, content: bytes | Path) -> None:
        target = self._at(path)
        wanted = content.stat().st_size if isinstance(content, Path) else len(content)
        for attempt in range(SWEPT_RETRIES):
            temporary = self._temporary(target, content)
            try:
                temporary.replace(target)
                break
            except FileNotFoundError:  # another build took us for dead and swept the temporary file
                if attempt + 1 == SWEPT_RETRIES:
                    raise
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
        _sync_folder(target.parent)
        found = self.size(path)
        if found != wanted:
            raise OSError(f"{target}: has {found} bytes after writing {wanted}")

    def create(self, path: str, content: bytes) -> bool:
        target = self._at(path)
        for _ in range(SWEPT_RETRIES):
            temporary = self._temporary(target, content)
            try:
                os.link(temporary, target)
            except FileExistsError:
                return self._settled(target) == content
            except FileNotFoundError:
                continue  # swept under us
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                return self._create_without_links(temporary, target, content)
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(target.parent)
            return True
        raise OSError(f"{target}: could not be written: something removes our temporary files")

    def _create_without_links(self, temporary: Path, target: Path, content: bytes) -> bool:
        """For file systems without hard links: claim the name with an empty file, then rename over it.

        A crash in between leaves the empty file, never a half one; verification names it and the next build mends it.
        """
        try:
            with open(target, "xb"):
                pass
        except FileExistsError:
            return self._settled(target) == content
        temporary.replace(target)
        _sync_folder(target.parent)
        return True

    def _settled(self, target: Path) -> bytes:
        """The content that another writer gave it; one that is empty may have been claimed this moment."""
        for _ in range(SETTLE_TRIES):
            with contextlib.suppress(FileNotFoundError):
                try:
                    with open_file(target) as handle:
                        content = handle.read()
                except NotAFileError:
                    return b""
                if content:
                    return content
            time.sleep(SETTLE_PAUSE_SEC)
        return b""

    def entries(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        for folder, folders, names in os.walk(self._at(prefix) if prefix else self.root, onerror=_unless_gone):
            links = [
                name for name in folders if (Path(folder) / name).is_symlink()
            ]  # never followed; listed as they are
            for name in (*names, *links):
                path = Path(folder) / name
                with contextlib.suppress(FileNotFoundError):
                    yield path.relative_to(self.root).as_posix(), path.lstat().st_size

    def irregular(self, prefix: str = "") -> dict[str, str]:
        found = {}
        for folder, folders, names in os.walk(self._at(prefix) if prefix else self.root, onerror=_unless_gone):
            for name in (*folders, *names):
                path = Path(folder) / name
                with contextlib.suppress(FileNotFoundError):
                    what = _what(path.lstat().st_mode)
                    if what is not None:
                        found[path.relative_to(self.root).as_posix()] = what
        return found

    def delete(self, path: str) -> None:
        self._at(path).unlink(missing_ok=True)

    def copy_out(self, path: str, other: Store, other_path: str) -> str:
        """As of any store; of a link, a file `.link` that says where it led. ValueError for pipes, sockets and devices."""
        source = self._at(path)
        what = _what(source.lstat().st_mode)
        if what == LINK:
            free = free_path(other, f"{other_path}.link")
            other.put(free, os.fsencode(source.readlink()))
            return free
        if what == FOLDER:
            free = free_path(other, other_path)
            for inner, _ in sorted(self.entries(path)):
                self.copy_out(inner, other, free + inner.removeprefix(path))
            return free
        if what is not None:
            raise ValueError(f"it is {what}")
        return super().copy_out(path, other, other_path)

    def move_out(self, path: str, other: Store, other_path: str) -> str:
        """As of any store; a folder moves with all that it holds."""
        source = self._at(path)
        if _what(source.lstat().st_mode) != FOLDER:
            return super().move_out(path, other, other_path)
        found = self.copy_out(path, other, other_path)
        shutil.rmtree(source)
        return found

    def leftovers(self) -> list[str]:
        return sorted(path for path, _ in self.entries() if is_temporary(path))

    def sweep(self) -> int:
        stale = self.leftovers()
        for path in stale:
            self.delete(path)
        return len(stale)


def _what(mode: int) -> str | None:
    """What is no file, in words; None for a file."""
    if stat.S_ISREG(mode):
        return None
    return LINK if stat.S_ISLNK(mode) else FOLDER if stat.S_ISDIR(mode) else SPECIAL


def open_file(path: Path, through_links: bool = False) -> BinaryIO:
    """A file opened for reading; NotAFileError for all else, before it could block or act, and even where it is swapped meanwhile."""
    what = _what((path.stat() if through_links else path.lstat()).st_mode)
    if what is None:
        try:
            number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | (0 if through_links else os.O_NOFOLLOW))
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            what = LINK
        else:
            what = _what(os.fstat(number).st_mode)
            if what is None:
                return os.fdopen(number, "rb")
            os.close(number)
    raise NotAFileError(f"{path}: is {what}, not a file; put the file itself there")


def _unless_gone(error: OSError) -> None:
    """os.walk ignores errors by itself; a folder that cannot be read must not look empty, or a build would make it all again."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _make_folder(folder: Path) -> None:
    missing = [step for step in (folder, *folder.parents) if not step.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for step in missing:
        _sync_folder(step.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
    finally:
        os.close(handle)
