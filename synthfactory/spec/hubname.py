"""Names of repositories on the Hugging Face Hub as specs write them: hf://OWNER/REPO[@REVISION], and short names for two of them."""

from __future__ import annotations

import re
from dataclasses import dataclass

SCHEME = "hf://"
SHORT = {"cytosyn": "Owkin-Bioptimus/CytoSyn", "h0-mini": "bioptimus/H0-mini"}
DEFAULT_REVISION = "main"
RIGHT = "write hf://OWNER/REPO or hf://OWNER/REPO@REVISION"

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_NAME = re.compile(rf"({_PART}/{_PART})(?:@(.*))?")
_REVISION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,198}[A-Za-z0-9])?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PREFIX = re.compile(r"(?:hf://|hf[-_]hub:|https://huggingface\.co/)")


def _folded(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).lower()


_SPELLED = {_folded(name): repo for short, repo in SHORT.items() for name in (short, repo)}


def repo_of(name: str) -> str:
    """One spelling of a name: hf://OWNER/REPO@REV, hf-hub:OWNER/REPO and the short names, as tools spell them (h0_mini, h0mini), are
    OWNER/REPO; any other name stays as it is.
    """
    body, found = _PREFIX.subn("", name.strip(), count=1)
    plain = body.partition("@")[0]
    return _SPELLED.get(_folded(plain), plain if found else body)


def is_hub(name: str) -> bool:
    """Whether a name means a repository of the Hub: hf://... or one of the short names."""
    return name.startswith(SCHEME) or name in SHORT


def short_problem(name: str) -> str | None:
    """What is wrong with a short name that carries a revision (cytosyn@v1), or None: only whole names carry one."""
    head, mark, revision = name.partition("@")
    if not mark or head not in SHORT:
        return None
    return f"a short name carries no revision; write {SCHEME}{SHORT[head]}@{revision}"


def is_commit(revision: str) -> bool:
    """Whether a revision is a whole commit id (40 hex digits): it never moves, as branches and tags may."""
    return _COMMIT.fullmatch(revision) is not None


def revision_problem(revision: str) -> str | None:
    """What is wrong with a branch, tag or commit, or None."""
    if _REVISION.fullmatch(revision) and ".." not in revision:
        return None
    return "is no revision; write a branch, a tag, or a commit of 40 hex digits"


@dataclass(frozen=True)
class HubName:
    """A repository and the revision that was asked for: a branch, a tag or a commit."""

    repo: str
    revision: str

    @property
    def page(self) -> str:
        """Where a person reads its terms and asks for access."""
        return f"https://huggingface.co/{self.repo}"


def hub_name(name: str, revision: str | None = None) -> HubName:
    """The repository that `name` means; `revision` stands for one that the name does not carry (default main).

    ValueError where the name is none, or both name a revision.
    """
    body = SHORT.get(name) or name.removeprefix(SCHEME)
    match = _NAME.fullmatch(body)
    if match is None or ".." in match[1] or "--" in match[1]:
        raise ValueError(f"'{name}' is no repository of the Hub; {RIGHT}")
    found = match[2]
    if found is not None and revision is not None and found != revision:
        raise ValueError(f"'{name}' and revision: {revision} name two revisions; keep one of them")
    asked = found if found is not None else revision if revision is not None else DEFAULT_REVISION
    problem = revision_problem(asked)
    if problem:
        raise ValueError(f"'{asked}' {problem}")
    return HubName(match[1], asked)
