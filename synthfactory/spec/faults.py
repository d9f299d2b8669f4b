"""What is wrong with values, in words: pydantic's errors of any model -> one line each at file:line:column, with what would be right."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from synthfactory.spec.errors import InputError
from synthfactory.spec.plain_yaml import printable
from synthfactory.spec.source import Problems, Source

MAX_SHOWN = 10

Model = TypeVar("Model", bound=BaseModel)


def checked(model: type[Model], values: Mapping[str, Any], source: Source, kind: str) -> Model:
    """The values as a `model`; InputError lists every fault, one line each: file:line:column: path: what, what instead."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = sorted(
            faults_of(model, error), key=lambda fault: source.position(fault[0])
        )  # as they stand in the file
        lines = [f"{source.locate(path)}: {printable(path, kind)}: {message}" for path, message in faults]
    shown = list(dict.fromkeys(lines))
    more = [f"and {len(shown) - MAX_SHOWN} more"] if len(shown) > MAX_SHOWN else []
    raise InputError("\n".join([*shown[:MAX_SHOWN], *more]))


def faults_of(root: type[BaseModel], error: ValidationError) -> list[tuple[str, str]]:
    """Each fault as (dotted path in `root`, what is wrong and what would be right)."""
    found: list[tuple[str, str]] = []
    for detail in error.errors():
        loc = [str(part) for part in detail["loc"]]
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, Problems):
            found.extend((".".join([*loc, *filter(None, [path])]), message) for path, message in cause.found)
        else:
            found.append((".".join(loc), _worded(root, detail, loc)))
    return found


def _model_at(root: type[BaseModel], loc: list[str]) -> type[BaseModel] | None:
    """The model whose fields stand at a location, for suggestions."""
    model = root
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
        if position < len(loc) and loc[position].isdigit():
            position += 1  # the number of an entry of a list
    return model


def _kinds(annotation: Any) -> list[Any]:
    arguments = getattr(annotation, "__args__", ())
    return [annotation] if not arguments else [kind for argument in arguments for kind in _kinds(argument)]


def _example(root: type[BaseModel], loc: list[str]) -> str:
    """'; for example steps: 10', from the schema's own example; '' where it has none."""
    model = _model_at(root, loc[:-1]) if loc else None
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


def _worded(root: type[BaseModel], detail: ErrorDetails, loc: list[str]) -> str:
    kind, context, shown = detail["type"], detail.get("ctx", {}), _shown(detail.get("input"))
    if kind == "extra_forbidden":
        model = _model_at(root, loc[:-1])
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
    if kind == "string_pattern_mismatch" and loc[-1] == "name":
        return f"{shown} does not fit; use 1 to 48 of a-z, 0-9 and '-', beginning with a letter or digit"
    if kind == "value_error":
        return str(context.get("error", detail["msg"]))
    wordings = {
        "missing": "is missing",
        "int_type": f"{shown} is no whole number",
        "int_from_float": f"{shown} is no whole number",
        "int_parsing": f"{shown} is no whole number",
        "float_type": f"{shown} is no number",
        "float_parsing": f"{shown} is no number",
        "finite_number": f"{shown} is not finite; write a number",
        "bool_type": f"{shown} is neither true nor false",
        "bool_parsing": f"{shown} is neither true nor false",
        "string_type": f"{shown} is no text; put it in quotes if it should be",
        "dict_type": f"{shown} is no mapping of fields",
        "model_type": f"{shown} is no mapping of fields",
        "model_attributes_type": f"{shown} is no mapping of fields",
        "too_short": "is empty; at least one entry is needed",
        "string_too_short": "is empty",
        "string_pattern_mismatch": f"{shown} does not fit",
        "greater_than_equal": f"{shown} is too small; at least {context.get('ge')}",
        "greater_than": f"{shown} is too small; it must be above {context.get('gt')}",
        "less_than_equal": f"{shown} is too large; at most {context.get('le')}",
        "less_than": f"{shown} is too large; it must be below {context.get('lt')}",
    }
    return wordings.get(kind, f"{shown}: {detail['msg']}") + _example(root, loc)
