"""The files behind one entry of `embeddings`: a path, a URL, a pattern with * or ?, or a list of these."""

from __future__ import annotations

import contextlib
import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from synthfactory.shards.base import temporary_name
from synthfactory.shards.beside import beside
from synthfactory.shards.remote import open_url
from synthfactory.spec.errors import InputError
from synthfactory.spec.places import is_url

WILD = "*?["


def local(place: str) -> Path:
    """A local place as a path; ~ and file:// allowed."""
    return Path(os.path.expanduser(place.partition("://")[2] if "://" in place else place))


def is_pattern(place: str) -> bool:
    """True where a place stands for any number of files."""
    return any(mark in place for mark in WILD) and not (not is_url(place) and local(place).exists())


def expand(places: str | Sequence[str], what: str) -> list[str]:
    """The files in order, patterns replaced by what they match. InputError where a pattern matches none, or a file stands twice."""
    found: list[str] = []
    for place in [places] if isinstance(places, str) else places:
        if not is_pattern(place):
            found.append(place)
            continue
        matches = _matches(place)
        if not matches:
            raise InputError(f"{place}: matches no file; name {what}")
        found.extend(matches)
    doubled = [place for place, count in Counter(found).items() if count > 1]
    if doubled:
        raise InputError(f"{doubled[0]}: stands there twice; name each file once")
    return found


def expand_one(place: str, what: str) -> str:
    """The one file that a place means. InputError where a pattern matches none, or several."""
    found = expand(place, what)
    if len(found) > 1:
        raise InputError(
            f"{place}: matches {len(found)} files, such as {found[0]} and {found[1]}; one is needed here, so name it"
        )
    return found[0]


def listed(place: str, suffixes: Sequence[str]) -> list[str] | None:
    """The files of a folder with one of these endings, in order; None where the place is no folder."""
    if is_url(place):
        system, path = open_url(place)
        if not system.isdir(path):
            return None
        names = [system.unstrip_protocol(entry) for entry in system.ls(path, detail=False)]
    else:
        if not local(place).is_dir():
            return None
        names = [str(entry) for entry in local(place).iterdir()]
    return sorted(
        name for name in names if name.lower().endswith(tuple(suffixes)) and not name.rpartition("/")[2].startswith(".")
    )


def _matches(pattern: str) -> list[str]:
    if not is_url(pattern):
        return sorted(
            path
            for path in glob.glob(str(local(pattern)), recursive=True)  # noqa: PTH207 - patterns may be absolute
            if Path(path).is_file()
        )
    try:
        system, path = open_url(pattern)
    except ValueError:  # such as a password with a slash in it, of which the rest is taken for a port
        raise InputError(
            f"{pattern.partition('://')[0]}://...: is no URL; write / and @ of a password as %2F and %40"
        ) from None
    return sorted(str(system.unstrip_protocol(entry)) for entry in system.glob(path) if system.isfile(entry))


@contextlib.contextmanager
def whole_file(place: str, *, private: bool = False) -> Iterator[BinaryIO]:
    """A new file (path or URL) to write: under its name once the block has ended, and not there at all where it raises.

    Closing finishes a file, even where an exception closes it; so it is written beside, under a name of its own, and moved. `private`: on
    disk, its owner's alone.
    """
    if not is_url(place):
        path = local(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside(path, shared=True) as new:
            mode = 0o600 if private else 0o666  # less the umask
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as handle:
                yield handle
        return
    system, target = open_url(place)
    above, slash, _ = target.rpartition("/")
    waiting = f"{above}{slash}{temporary_name()}"
    try:
        with system.open(waiting, "wb") as handle:
            yield handle
        system.mv(waiting, target)
    except BaseException:
        with contextlib.suppress(Exception):
            system.rm_file(waiting)
        raise


def identity(places: Sequence[str]) -> list[str]:
    """What changes whenever one of these files does: by fsspec from size, times and (in object stores) checksum, not from its bytes."""
    found = []
    for place in places:
        system, path = open_url(place if is_url(place) else str(local(place)))
        found.append(f"{place}:{system.ukey(path)}")
    return found


def make_private(folder: Path) -> list[Path]:
    """Makes a folder for real embeddings; it and its parent, where they are new, are their owner's alone. Returns what was made."""
    made = [step for step in (folder, *folder.parents) if not step.exists()]
    for step in reversed(made):
        step.mkdir(mode=0o700 if step in (folder, folder.parent) else 0o777, exist_ok=True)
    return made


def unmake(made: Sequence[Path]) -> None:
    """Removes folders that `make_private` has made, as far as they are empty."""
    with contextlib.suppress(OSError):
        for step in made:
            step.rmdir()
