"""YAML text -> plain values and where each field stands. Plain data only: no aliases, no tags, no second document.

YAML 1.1 turns yes, on and 1:30 into booleans and numbers; here a plain scalar is a number, true, false or null in the way that
YAML 1.2 and JSON see it, and text otherwise.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.reader import ReaderError

from synthfactory.spec.errors import InputError
from synthfactory.spec.source import Source

MAX_BYTES = 1 << 20
MAX_NODES = 100_000
MAX_DEPTH = 20


@dataclass(frozen=True)
class Kind:
    """What a YAML file is called in messages ('spec'), a file to name as an example, where to read on, and fields that it begins with."""

    name: str
    example: str
    empty: str
    begins: str


_INTEGER = re.compile(r"[-+]?[0-9][0-9_]*")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?")
_CONSTANTS = {
    "true": True,
    "True": True,
    "false": False,
    "False": False,
    "null": None,
    "Null": None,
    "~": None,
    "": None,
}
_NOT_FINITE = {".nan": float("nan"), ".inf": float("inf"), "+.inf": float("inf"), "-.inf": float("-inf")}


def _start(event: yaml.Event) -> tuple[int, int]:
    """Line and column of an event, from 1."""
    assert event.start_mark is not None
    return event.start_mark.line + 1, event.start_mark.column + 1


def printable(path: str, kind: str) -> str:
    """A path of fields for a message of one line: no control characters, not endless; `kind` where it is empty."""
    shown = path if path.isprintable() else repr(path)[1:-1]
    return (shown if len(shown) <= 200 else f"{shown[:197]}...") or kind


class _Reader:
    """Turns YAML events into plain values, in one pass that stops at the first thing a spec may not hold, and remembers where
    each spec path stands."""

    def __init__(self, text: str, file: str, kind: Kind) -> None:
        self.file, self.kind = file, kind
        self.positions: dict[str, tuple[int, int]] = {}
        self._nodes = 0
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=yaml.SafeLoader)

    def document(self) -> Any:
        """The value of the one document."""
        next(self._events)  # the stream's start
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            raise InputError(f"{self.file}:1:1: {self.kind.name}: is empty; {self.kind.empty}")
        found = self._value(next(self._events), "", 0)
        next(self._events)  # the document's end
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            raise self._fail(
                event, "", f"a second document begins here; a {self.kind.name} is one, so remove the line with ---"
            )
        return found

    def _fail(self, event: yaml.Event, path: str, message: str) -> InputError:
        line, column = _start(event)
        return InputError(f"{self.file}:{line}:{column}: {printable(path, self.kind.name)}: {message}")

    def _place(self, path: str, event: yaml.Event) -> None:
        if path:
            self.positions.setdefault(path, _start(event))

    def _check(self, event: yaml.Event, path: str) -> None:
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise self._fail(event, path, "anchors and aliases are not allowed; write the value out")
        if getattr(event, "tag", None) is not None:
            shown = str(getattr(event, "tag", "")).replace("tag:yaml.org,2002:", "!!")
            raise self._fail(
                event, path, f"tag {shown} is not allowed; a {self.kind.name} is plain data, so leave the tag out"
            )
        if isinstance(event, yaml.ScalarEvent) and any("\ud800" <= character <= "\udfff" for character in event.value):
            raise self._fail(event, path, "holds half a character (a lone surrogate); write the character itself")

    def _value(self, event: yaml.Event, path: str, depth: int) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES or depth > MAX_DEPTH:
            raise self._fail(
                event,
                path,
                f"is too much: a {self.kind.name} has at most {MAX_NODES:,} entries, nested at most {MAX_DEPTH} deep",
            )
        self._check(event, path)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(path, depth)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(item := next(self._events), yaml.SequenceEndEvent):
                items.append(self._value(item, f"{path}.{len(items)}", depth + 1))
            return items
        assert isinstance(event, yaml.ScalarEvent)
        self._place(path, event)
        return self._scalar(event, path)

    def _mapping(self, path: str, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            self._check(event, path)
            if not isinstance(event, yaml.ScalarEvent):
                raise self._fail(event, path, "a key must be a word, not a list or mapping")
            key = event.value
            below = f"{path}.{key}" if path else key
            if key == "<<":
                raise self._fail(event, path, "merge keys (<<) are not allowed; write the fields out")
            if key in found:
                raise self._fail(event, below, "stands there twice; keep one")
            value = next(self._events)
            if not isinstance(value, yaml.ScalarEvent):
                self._place(below, event)
            found[key] = self._value(value, below, depth + 1)
        return found

    def _scalar(self, event: yaml.ScalarEvent, path: str) -> Any:
        text = event.value
        if event.style is not None:
            return text
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if text.lower() in _NOT_FINITE:
            return _NOT_FINITE[text.lower()]
        try:
            if _INTEGER.fullmatch(text):
                return int(text.replace("_", ""))
            if _FLOAT.fullmatch(text):
                return float(text.replace("_", ""))
        except ValueError:  # an integer of thousands of digits
            raise self._fail(
                event, path, f"a number of {len(text):,} digits is too large; write a smaller one"
            ) from None
        return text


def parse_text(text: str, file: str, kind: Kind) -> tuple[dict[str, Any], Source]:
    """The mapping that a text holds, and where its fields stand; InputError at file:line:column. `file` is named in messages."""
    values, positions = _read(text, file, kind)
    if not isinstance(values, dict):
        raise InputError(
            f"{file}:1:1: {kind.name}: is no mapping; a {kind.name} starts with fields such as {kind.begins}"
        )
    return values, Source(file, positions)


def _read(text: str, file: str, kind: Kind) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The document's value and the places of its fields."""
    for number, line in enumerate(text.splitlines(), start=1):
        indent = line[: len(line) - len(line.lstrip())]
        if "\t" in indent and line.strip():
            raise InputError(
                f"{file}:{number}:{indent.index(chr(9)) + 1}: {kind.name}: a tab indents this line; YAML wants spaces"
            )
    reader = _Reader(text, file, kind)
    try:
        return reader.document(), reader.positions
    except InputError:
        raise
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        place = f"{at.line + 1}:{at.column + 1}" if at else "1:1"
        problem = f"is no YAML: {error.problem or error.context}; look at indentation, brackets and quotes here"
    except ReaderError as error:
        before = text[: error.position]
        place = f"{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
        problem = f"holds a control character (#x{ord(text[error.position]):04x}); take it out"
    except (OverflowError, ValueError):  # PyYAML on "\UFFFFFFFF" or a %YAML line of thousands of digits
        place, problem = "1:1", "is no YAML: it holds an escape or a %YAML line that is out of range; write it plainly"
    raise InputError(f"{file}:{place}: {kind.name}: {problem}")


def read_text(path: str | os.PathLike[str], kind: Kind) -> tuple[str, str]:
    """(text, the file's name for messages) of a YAML file; InputError where it cannot be read, is too large, or is not UTF-8."""
    file = os.fspath(path)
    try:
        with open(file, "rb") as handle:
            data = handle.read(MAX_BYTES + 1)  # no more, should the file be huge or endless
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; name a {kind.name} such as {kind.example}") from None
    except IsADirectoryError:
        raise InputError(f"{file}: is a folder; name a {kind.name} such as {kind.example}") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    if len(data) > MAX_BYTES:
        raise InputError(f"{file}:1:1: {kind.name}: is too large; a {kind.name} has at most {MAX_BYTES:,} bytes")
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start].decode()
        place = f"{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
        raise InputError(f"{file}:{place}: {kind.name}: is not UTF-8; save it as UTF-8") from None
    return text, file
