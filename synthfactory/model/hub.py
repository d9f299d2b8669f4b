"""Repositories of the Hugging Face Hub, pinned: one commit, a list of its files by blob id, and those files fetched and checked.

A pin is asked for once and kept in the user's cache, so that a commit works offline afterwards. What is fetched lies in the Hub
client's own cache, and is compared with the pin before anything reads it: LFS files by sha256, others by git's blob id. No token is
read, kept, or shown here: the client takes it from HF_TOKEN or its own file, on the machine where it runs. No torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    get_token,
    hf_hub_url,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

from synthfactory.shards.beside import beside
from synthfactory.spec.errors import InputError
from synthfactory.spec.hubname import HubName, is_commit
from synthfactory.spec.json_text import read_json
from synthfactory.spec.places import cache_folder
from synthfactory.spec.text import shown

SUFFIXES = (
    ".json",
    ".py",
    ".safetensors",
    ".txt",
)  # what a model is made of; pictures, notebooks and pickles stay there
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
TIMEOUT_SEC = 20.0
MAX_PIN_BYTES = 1 << 24
# Whatever HTTP library the installed client uses: its errors are the bases of the client's own.
# ValueError: a token or an address that no header can carry; an answer that is no JSON, as a proxy's page is none.
TROUBLE: tuple[type[BaseException], ...] = (OSError, ValueError, *HfHubHTTPError.__bases__)


@dataclass(frozen=True)
class Blob:
    """A file's identity: `kind` is sha256 (of the content) or git (sha1 of git's header and the content)."""

    bytes: int
    kind: str
    digest: str


@dataclass(frozen=True)
class Pin:
    """A repository at one commit: its files by blob id, what its card says of the licence, and whether access must be asked for."""

    repo: str
    commit: str
    gated: bool
    licence: str | None
    files: Mapping[str, Blob] = field(repr=False)

    @property
    def page(self) -> str:
        """Where a person reads its terms and asks for access."""
        return f"https://huggingface.co/{self.repo}"

    def named(self, *suffixes: str) -> list[str]:
        """The files with these endings, in order."""
        return sorted(path for path in self.files if path.endswith(suffixes))

    def identity(self, paths: Iterable[str]) -> str:
        """sha256 (hex) over repository, commit and the blob ids of these files."""
        listed = {path: f"{self.files[path].kind}:{self.files[path].digest}" for path in sorted(paths)}
        head = {"format": "synthfactory-hub/1", "repo": self.repo, "commit": self.commit, "files": listed}
        return hashlib.sha256(json.dumps(head, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def endpoint() -> str:
    """Address of the Hub: HF_ENDPOINT, or huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or constants._HF_DEFAULT_ENDPOINT).rstrip("/")


def shown_endpoint() -> str:
    """The same as messages may show it: without what stands before an '@', which may be a password."""
    return shown(re.sub(r"(^|//)[^/]*@", r"\1", endpoint()), 200)


def hub_cache() -> Path:
    """The Hub client's cache on this machine: HF_HUB_CACHE, HF_HOME/hub, or its default."""
    if os.environ.get("HF_HUB_CACHE"):
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    home = os.environ.get("HF_HOME")
    return Path(home).expanduser() / "hub" if home else Path(constants.HF_HUB_CACHE)


def pin(name: HubName) -> Pin:
    """The repository at the commit that `name` means now; a commit that was pinned before is read from the cache, without the Hub.

    InputError where there is no such repository or revision, where access is refused, and where the Hub cannot be reached.
    """
    if is_commit(name.revision):
        kept = _read_pin(name.repo, name.revision)
        if kept is not None:
            return kept
    try:
        found = HfApi(endpoint=endpoint()).model_info(
            name.repo, revision=name.revision, files_metadata=True, timeout=TIMEOUT_SEC
        )
    except TROUBLE as error:
        refuse(name, error)
    commit = str(found.sha)
    if is_commit(name.revision) and commit != name.revision:
        raise InputError(
            f"{name.repo}: '{name.revision}' is a branch or tag that is named like a commit, and may move; it is {commit} now; name "
            "that commit"
        )
    if not is_commit(commit):
        raise InputError(f"{name.repo}: the Hub names no commit for revision '{name.revision}'; try again later")
    card = found.card_data
    stated = (card.get("license_name") if card.get("license") == "other" else card.get("license")) if card else None
    made = Pin(name.repo, commit, bool(found.gated), str(stated) if stated else None, _blobs(found.siblings or []))
    _write_pin(made)
    return made


def _blobs(siblings: Iterable[Any]) -> dict[str, Blob]:
    found = {}
    for entry in siblings:
        path = PurePosixPath(entry.rfilename)
        if path.is_absolute() or ".." in path.parts or not entry.rfilename.isprintable():
            continue
        if entry.lfs is not None:
            found[entry.rfilename] = Blob(int(entry.lfs.size), "sha256", str(entry.lfs.sha256))
        elif entry.blob_id is not None:
            found[entry.rfilename] = Blob(int(entry.size or 0), "git", str(entry.blob_id))
    return found


def fetched(pinned: Pin, paths: Iterable[str]) -> Path:
    """The snapshot's folder with these files in it, fetched where the cache lacks them, each compared with its blob id.

    InputError where one cannot be fetched, or is not what the pin says; then nothing of it has been read.
    """
    wanted = sorted(paths)
    found = {path: _cached(pinned, path) for path in wanted}
    if None in found.values():
        _download(pinned, [path for path, place in found.items() if place is None])
        found = {path: _cached(pinned, path) for path in wanted}
    root = hub_cache() / f"models--{pinned.repo.replace('/', '--')}" / "snapshots" / pinned.commit
    for path, place in found.items():
        if place is None:
            raise InputError(
                f"{pinned.repo}: {path} could not be fetched from {shown_endpoint()}; run the command again"
            )
        _check(pinned, path, place)
    return root


def access(pinned: Pin) -> None:
    """InputError where the repository's files may not be read here: asks the Hub, whatever the cache holds.

    It asks for weights: the Hub shows a gated repository's card and the like to all.
    """
    paths = pinned.named(".safetensors", *PICKLES) or list(pinned.files)
    if not paths:
        return
    largest = max(paths, key=lambda path: pinned.files[path].bytes)
    url = hf_hub_url(pinned.repo, largest, revision=pinned.commit, endpoint=endpoint())
    try:
        get_hf_file_metadata(url, timeout=TIMEOUT_SEC)
    except TROUBLE as error:
        refuse(HubName(pinned.repo, pinned.commit), error)


def _cached(pinned: Pin, path: str) -> Path | None:
    place = try_to_load_from_cache(pinned.repo, path, cache_dir=hub_cache(), revision=pinned.commit)
    return Path(place) if isinstance(place, str) and Path(place).is_file() else None


def _download(pinned: Pin, paths: list[str]) -> None:
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        snapshot_download(
            pinned.repo,
            revision=pinned.commit,
            allow_patterns=paths,
            cache_dir=hub_cache(),
            endpoint=endpoint(),
            etag_timeout=TIMEOUT_SEC,
        )
    except TROUBLE as error:
        refuse(HubName(pinned.repo, pinned.commit), error)


def _check(pinned: Pin, path: str, place: Path) -> None:
    blob = pinned.files[path]
    size = place.stat().st_size
    digest = hashlib.sha256() if blob.kind == "sha256" else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with open(place, "rb") as handle:
        for block in iter(lambda: handle.read(1 << 20), b""):
            digest.update(block)
    if digest.hexdigest() != blob.digest:
        raise InputError(
            f"{place}: is not the {path} of {pinned.repo} at {pinned.commit} ({size:,} bytes, {blob.bytes:,} are right): "
            "damaged, or changed since; nothing of it was read or run. Delete the file, and the next run fetches it again"
        )


def refuse(name: HubName, error: BaseException) -> NoReturn:
    """Raises the InputError that says what the Hub's answer means and what to do next."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, UnicodeError) and not (get_token() or "").isascii():
        raise InputError(
            f"{name.repo}: the token of the Hub that is here holds characters that no token has; log in again with `hf auth login`, or "
            "correct HF_TOKEN"
        ) from None
    if isinstance(error, GatedRepoError):
        ask = f"ask for access at {name.page}"
        if status == 401:
            raise InputError(
                f"{name.repo}: is gated, and no valid token of the Hub is here; {ask}, then log in with `hf auth login` or set HF_TOKEN"
            ) from None
        raise InputError(f"{name.repo}: is gated, and your account has no access yet; {ask}") from None
    if isinstance(error, RepositoryNotFoundError):
        raise InputError(
            f"{name.repo}: the Hub shows no such repository; correct the name, or, if it is not public, log in with "
            "`hf auth login` or set HF_TOKEN"
        ) from None
    if isinstance(error, RevisionNotFoundError):
        raise InputError(
            f"{name.repo}: has no revision '{name.revision}'; see {name.page}/commits/main for those it has"
        ) from None
    if status == 401:
        raise InputError(
            f"{name.repo}: the Hub refuses the token that is here; log in again with `hf auth login`, or correct HF_TOKEN"
        ) from None
    kept = is_commit(name.revision) or isinstance(error, LocalEntryNotFoundError)
    said = f" (status {status})" if status else ""
    raise InputError(
        f"{name.repo}: the Hub ({shown_endpoint()}) cannot be reached{said}, and the cache does not hold "
        f"{'all of this commit' if kept else f'what {name.revision} means'}; connect once"
        + ("" if kept else ", or name a commit of 40 hex digits that was fetched before")
    ) from None


def _pin_path(repo: str, commit: str) -> Path:
    return cache_folder() / "hub" / repo.replace("/", "--") / f"{commit}.json"


def _read_pin(repo: str, commit: str) -> Pin | None:
    """The kept pin; None where there is none, or it is damaged (then it is asked for again)."""
    try:
        with open(_pin_path(repo, commit), "rb") as handle:
            values = read_json(handle.read(MAX_PIN_BYTES))
        files = {
            str(path): Blob(int(entry["bytes"]), str(entry["kind"]), str(entry["digest"]))
            for path, entry in values["files"].items()
        }
        stated = values["licence"]
        return Pin(repo, commit, bool(values["gated"]), None if stated is None else str(stated), files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _write_pin(made: Pin) -> None:
    path = _pin_path(made.repo, made.commit)
    files = {name: vars(blob) for name, blob in sorted(made.files.items())}
    values = {"gated": made.gated, "licence": made.licence, "files": files}
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path, shared=True) as place:
        place.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
