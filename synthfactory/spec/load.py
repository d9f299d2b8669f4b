"""YAML file -> Spec, with every fault at file:line:column. Reads plain data only: no aliases, no tags, no second document.

YAML 1.1 turns yes, on and 1:30 into booleans and numbers; here a plain scalar is a number, true, false or null in the way that
YAML 1.2 and JSON see it, and text otherwise.
"""

from __future__ import annotations

import codecs
import difflib
import json
import os
import re
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from yaml.reader import ReaderError

from synthfactory.spec.errors import InputError
from synthfactory.spec.schema import Spec
from synthfactory.spec.source import Problems, Source

MAX_BYTES = 1 << 20
MAX_NODES = 100_000
MAX_DEPTH = 20
MAX_SHOWN = 10

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


def _printable(path: str) -> str:
    """A spec path for a message of one line: no control characters, not endless."""
    shown = path if path.isprintable() else repr(path)[1:-1]
    return (shown if len(shown) <= 200 else f"{shown[:197]}...") or "spec"


class _Reader:
    """Turns YAML events into plain values, in one pass that stops at the first thing a spec may not hold, and remembers where
    each spec path stands."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.positions: dict[str, tuple[int, int]] = {}
        self._nodes = 0
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=yaml.SafeLoader)

    def document(self) -> Any:
        """The value of the one document."""
        next(self._events)  # the stream's start
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            raise InputError(f"{self.file}:1:1: spec: is empty; `synthfactory schema` prints what a spec holds")
        found = self._value(next(self._events), "", 0)
        next(self._events)  # the document's end
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            raise self._fail(event, "", "a second document begins here; a spec is one, so remove the line with ---")
        return found

    def _fail(self, event: yaml.Event, path: str, message: str) -> InputError:
        line, column = _start(event)
        return InputError(f"{self.file}:{line}:{column}: {_printable(path)}: {message}")

    def _place(self, path: str, event: yaml.Event) -> None:
        if path:
            self.positions.setdefault(path, _start(event))

    def _check(self, event: yaml.Event, path: str) -> None:
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise self._fail(event, path, "anchors and aliases are not allowed; write the value out")
        if getattr(event, "tag", None) is not None:
            shown = str(getattr(event, "tag", "")).replace("tag:yaml.org,2002:", "!!")
            raise self._fail(event, path, f"tag {shown} is not allowed; a spec is plain data, so leave the tag out")
        if isinstance(event, yaml.ScalarEvent) and any("\ud800" <= character <= "\udfff" for character in event.value):
            raise self._fail(event, path, "holds half a character (a lone surrogate); write the character itself")

    def _value(self, event: yaml.Event, path: str, depth: int) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES or depth > MAX_DEPTH:
            raise self._fail(
                event, path, f"is too much: a spec has at most {MAX_NODES:,} entries, nested at most {MAX_DEPTH} deep"
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


def _read(text: str, file: str) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The document's value and the places of its fields."""
    for number, line in enumerate(text.splitlines(), start=1):
        indent = line[: len(line) - len(line.lstrip())]
        if "\t" in indent and line.strip():
            raise InputError(
                f"{file}:{number}:{indent.index(chr(9)) + 1}: spec: a tab indents this line; YAML wants spaces"
            )
    reader = _Reader(text, file)
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
    raise InputError(f"{file}:{place}: spec: {problem}")


def load_spec(path: str | os.PathLike[str]) -> Spec:
    """Reads and checks a spec file; InputError lists every fault, one line each: file:line:column: spec path: what, what instead."""
    file = os.fspath(path)
    try:
        with open(file, "rb") as handle:
            data = handle.read(MAX_BYTES + 1)  # no more, should the file be huge or endless
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; name a spec such as specs/demo.yaml") from None
    except IsADirectoryError:
        raise InputError(f"{file}: is a folder; name a spec such as specs/demo.yaml") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    if len(data) > MAX_BYTES:
        raise InputError(f"{file}:1:1: spec: is too large; a spec has at most {MAX_BYTES:,} bytes")
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start].decode()
        place = f"{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
        raise InputError(f"{file}:{place}: spec: is not UTF-8; save it as UTF-8") from None
    return parse_spec(text, file)


def parse_spec(text: str, file: str) -> Spec:
    """As `load_spec`, from text; `file` is named in messages."""
    values, positions = _read(text, file)
    if not isinstance(values, dict):
        raise InputError(f"{file}:1:1: spec: is no mapping; a spec starts with fields such as name: and model:")
    source = Source(file, positions)
    try:
        return Spec.model_validate(values).with_source(source)
    except ValidationError as error:
        faults = sorted(_faults(error), key=lambda fault: source.position(fault[0]))  # as they stand in the file
        lines = [_line(source, path, message) for path, message in faults]
    shown = list(dict.fromkeys(lines))
    more = [f"and {len(shown) - MAX_SHOWN} more"] if len(shown) > MAX_SHOWN else []
    raise InputError("\n".join([*shown[:MAX_SHOWN], *more]))


def _line(source: Source, path: str, message: str) -> str:
    return f"{source.locate(path)}: {_printable(path)}: {message}"


def _faults(error: ValidationError) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for detail in error.errors():
        loc = [str(part) for part in detail["loc"]]
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, Problems):
            found.extend((".".join([*loc, *filter(None, [path])]), message) for path, message in cause.found)
        else:
            found.append((".".join(loc), _worded(detail, loc)))
    return found


def _model_at(loc: list[str]) -> type[BaseModel] | None:
    """The model whose fields stand at a location, for suggestions."""
    model: type[BaseModel] = Spec
    position = 0
    while position < len(loc):
        field = model.model_fields.get(loc[position])
        if field is None:
            return None
        if loc[position] == "classes":
            position += 1  # skip the class's own name
        kinds = [kind for kind in _kinds(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not kinds:
            return None
        model = kinds[0]
        position += 1
    return model


def _kinds(annotation: Any) -> list[Any]:
    arguments = getattr(annotation, "__args__", ())
    return [annotation] if not arguments else [kind for argument in arguments for kind in _kinds(argument)]


def _example(loc: list[str]) -> str:
    """'; for example steps: 10', from the schema's own example; '' where it has none."""
    model = _model_at(loc[:-1]) if loc else None
    field = model.model_fields.get(loc[-1]) if model else None
    if field is None or not field.examples:
        return ""
    first = field.examples[0]
    return f"; for example {loc[-1]}: {first if isinstance(first, str) else json.dumps(first)}"


def _shown(given: Any) -> str:
    """A value as YAML has it, cut to 60 characters."""
    if given is None or isinstance(given, bool):
        return {None: "null (nothing)", True: "true", False: "false"}[given]
    text = repr(given)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _worded(detail: ErrorDetails, loc: list[str]) -> str:
    kind, context, shown = detail["type"], detail.get("ctx", {}), _shown(detail.get("input"))
    if kind == "extra_forbidden":
        model = _model_at(loc[:-1])
        names = list(model.model_fields) if model else []
        close = difflib.get_close_matches(loc[-1], names, 1)
        if close:
            return f"unknown field; is '{close[0]}' meant?"
        return f"unknown field; known here: {', '.join(names)}" if names else "unknown field"
    if kind == "literal_error":
        allowed = str(context.get("expected", ""))
        words = allowed.replace("'", "").replace(" or ", ", ").split(", ")
        close = difflib.get_close_matches(str(detail.get("input")), words, 1)
        return f"{shown} is not {allowed}" + (f"; is {close[0]} meant?" if close else "")
    if kind == "string_pattern_mismatch":
        return f"{shown} does not fit; use 1 to 48 of a-z, 0-9 and '-', beginning with a letter or digit"
    if kind == "value_error":
        return str(context.get("error", detail["msg"]))
    wordings = {
        "missing": "is missing",
        "int_type": f"{shown} is no whole number",
        "int_from_float": f"{shown} is no whole number",
        "float_type": f"{shown} is no number",
        "finite_number": f"{shown} is not finite; write a number",
        "bool_type": f"{shown} is neither true nor false",
        "string_type": f"{shown} is no text; put it in quotes if it should be",
        "dict_type": f"{shown} is no mapping of fields",
        "model_type": f"{shown} is no mapping of fields",
        "model_attributes_type": f"{shown} is no mapping of fields",
        "too_short": "is empty; at least one entry is needed",
        "string_too_short": "is empty",
        "greater_than_equal": f"{shown} is too small; at least {context.get('ge')}",
        "greater_than": f"{shown} is too small; it must be above {context.get('gt')}",
        "less_than_equal": f"{shown} is too large; at most {context.get('le')}",
        "less_than": f"{shown} is too large; it must be below {context.get('lt')}",
    }
    return wordings.get(kind, f"{shown}: {detail['msg']}") + _example(loc)
