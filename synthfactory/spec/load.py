"""YAML file -> Spec, with every fault at file:line:column. Reads plain data only: no aliases, no tags, no second document.

YAML 1.1 turns yes, on and 1:30 into booleans and numbers; here a plain scalar is a number, true, false or null in the way that
YAML 1.2 and JSON see it, and text otherwise.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

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


class _Reader:
    """Turns composed nodes into plain values and remembers where each spec path stands."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.positions: dict[str, tuple[int, int]] = {}
        self.nodes = 0

    def fail(self, node_or_mark: Any, message: str) -> InputError:
        mark = getattr(node_or_mark, "start_mark", node_or_mark)
        return InputError(f"{self.file}:{mark.line + 1}:{mark.column + 1}: {message}")

    def value(self, node: yaml.Node, path: str, depth: int = 0) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            raise self.fail(node, f"too much: a spec has at most {MAX_NODES} entries, nested at most {MAX_DEPTH} deep")
        if isinstance(node, yaml.MappingNode):
            self._check_tag(node, "map")
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            self._check_tag(node, "seq")
            return [self.value(item, f"{path}.{number}", depth + 1) for number, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        self._place(path, node)
        return self._scalar(node)

    def _check_tag(self, node: yaml.Node, kind: str) -> None:
        if node.tag != f"tag:yaml.org,2002:{kind}":
            raise self.fail(node, f"tag {node.tag} is not allowed; a spec is plain data")

    def _place(self, path: str, node: yaml.Node) -> None:
        if path:
            self.positions.setdefault(path, (node.start_mark.line + 1, node.start_mark.column + 1))

    def _mapping(self, node: yaml.MappingNode, path: str, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.fail(key_node, f"{path or 'spec'}: a key must be a word, not a list or mapping")
            key = key_node.value
            if key == "<<":
                raise self.fail(key_node, f"{path or 'spec'}: merge keys (<<) are not allowed; write the fields out")
            if key in found:
                raise self.fail(key_node, f"{path + '.' if path else ''}{key}: stands there twice; keep one")
            below = f"{path}.{key}" if path else key
            if not isinstance(value_node, yaml.ScalarNode):
                self._place(below, key_node)
            found[key] = self.value(value_node, below, depth + 1)
        return found

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text = node.value
        if node.style is not None:
            return text
        if node.tag not in {
            f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp", "value")
        }:
            raise self.fail(node, f"tag {node.tag} is not allowed; a spec is plain data")
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
            raise self.fail(node, "is no sensible number") from None
        return text


def _composed(text: str, file: str) -> yaml.Node:
    for number, line in enumerate(text.splitlines(), start=1):
        indent = line[: len(line) - len(line.lstrip())]
        if "\t" in indent and line.strip():
            raise InputError(f"{file}:{number}:{indent.index(chr(9)) + 1}: a tab indents this line; YAML wants spaces")
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                mark = event.start_mark
                assert mark is not None
                raise InputError(
                    f"{file}:{mark.line + 1}:{mark.column + 1}: anchors and aliases are not allowed; write the value out"
                )
        documents = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        place = f"{file}:{at.line + 1}:{at.column + 1}" if at else file
        raise InputError(f"{place}: is no YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{file}: is no YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise InputError(f"{file}: is nested too deep; a spec is nested at most {MAX_DEPTH} deep") from None
    if not documents or documents[0] is None:
        raise InputError(f"{file}: is empty; `synthfactory schema` prints what a spec holds")
    if len(documents) > 1:
        raise InputError(f"{file}: holds {len(documents)} documents; a spec is one (remove the line with ---)")
    return documents[0]


def load_spec(path: str | os.PathLike[str]) -> Spec:
    """Reads and checks a spec file; InputError lists every fault, one line each: file:line:column: spec path: what, what instead."""
    file = os.fspath(path)
    try:
        data = Path(file).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; name a spec such as specs/demo.yaml") from None
    except IsADirectoryError:
        raise InputError(f"{file}: is a folder; name a spec such as specs/demo.yaml") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    if len(data) > MAX_BYTES:
        raise InputError(f"{file}: has {len(data):,} bytes; a spec has at most {MAX_BYTES:,}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{file}:{line}: is not UTF-8; save it as UTF-8") from None
    return parse_spec(text, file)


def parse_spec(text: str, file: str) -> Spec:
    """As `load_spec`, from text; `file` is named in messages."""
    reader = _Reader(file)
    root = _composed(text, file)
    values = reader.value(root, "")
    if not isinstance(values, dict):
        raise InputError(f"{file}:1:1: is no mapping; a spec starts with fields such as name: and model:")
    source = Source(file, reader.positions)
    try:
        return Spec.model_validate(values).with_source(source)
    except ValidationError as error:
        lines = [_line(source, path, message) for path, message in _faults(error)]
    shown = list(dict.fromkeys(lines))
    more = [f"and {len(shown) - MAX_SHOWN} more"] if len(shown) > MAX_SHOWN else []
    raise InputError("\n".join([*shown[:MAX_SHOWN], *more]))


def _line(source: Source, path: str, message: str) -> str:
    return f"{source.locate(path)}: {path or 'spec'}: {message}"


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


def _worded(detail: ErrorDetails, loc: list[str]) -> str:
    kind, context, given = detail["type"], detail.get("ctx", {}), detail.get("input")
    shown = repr(given) if len(repr(given)) <= 60 else repr(given)[:57] + "..."
    if kind == "extra_forbidden":
        model = _model_at(loc[:-1])
        names = list(model.model_fields) if model else []
        close = difflib.get_close_matches(loc[-1], names, 1)
        if close:
            return f"unknown field; is '{close[0]}' meant?"
        return f"unknown field; known here: {', '.join(names)}" if names else "unknown field"
    if kind == "missing":
        return "is missing"
    if kind == "literal_error":
        close = difflib.get_close_matches(
            str(given), str(context.get("expected", "")).replace("'", "").split(" or "), 1
        )
        return f"{shown} is not {context.get('expected')}" + (f"; is {close[0]} meant?" if close else "")
    words = {
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
    if kind == "string_pattern_mismatch":
        return f"{shown} does not fit; use 1 to 48 of a-z, 0-9 and '-', beginning with a letter or digit"
    if kind == "value_error":
        return str(context.get("error", detail["msg"]))
    return words.get(kind, f"{shown}: {detail['msg']}")
