"""Text of unknown origin, made safe to print; and counts in words."""

from __future__ import annotations

import re

MAX_SHOWN = 64
MAX_PATH_SHOWN = 240


def shown(text: str, limit: int = MAX_SHOWN) -> str:
    """Text of unknown origin on one line, safe to print: unprintable characters escaped, cut at `limit`."""
    head = text[: limit + 1]  # escaping what is cut off anyway could take long
    safe = head if head.isprintable() else ascii(head)[1:-1]
    return safe if len(safe) <= limit else safe[: limit - 3] + "..."


def shown_path(path: str) -> str:
    """A path of unknown origin: as `shown`, but long enough for any path of ours."""
    return shown(path, MAX_PATH_SHOWN)


_PASSWORD = re.compile(r"(://[^/?#@:\s]*):[^/?#\s]*@")
# A token in a user's place; in other schemes it names a container.
_USER = re.compile(r"(https?://)[^/?#@:\s]+@", re.IGNORECASE)
_SIGNED = re.compile(
    r"([?&;#](?:[^=&;\s]*(?:token|secret|password|credential|key(?!word))[^=&;\s]*|[^=&;\s]*sig(?:nature)?)=)[^&;\s'\")]+",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """The text with passwords and signatures of URLs taken out, so that they do not end in logs and reports."""
    return _SIGNED.sub(r"\1***", _USER.sub(r"\1***@", _PASSWORD.sub(r"\1:***@", text))) if "://" in text else text


def printable(text: str) -> str:
    """A whole message: its lines stay, whatever else a terminal would obey or cannot print is escaped, and URLs lose their passwords."""
    text = without_secrets(text)
    if text.isprintable():
        return text
    return "\n".join(line if line.isprintable() else "".join(map(_escaped, line)) for line in text.split("\n"))


def _escaped(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 shard, 2 shards."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
