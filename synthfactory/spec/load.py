"""YAML file -> Spec, with every fault at file:line:column."""

from __future__ import annotations

import os

from synthfactory.spec.faults import checked
from synthfactory.spec.plain_yaml import MAX_BYTES, Kind, parse_text, read_text
from synthfactory.spec.schema import Spec

__all__ = ["MAX_BYTES", "load_spec", "parse_spec"]

SPEC = Kind("spec", "specs/demo.yaml", "`synthfactory schema` prints what a spec holds", "name: and model:")


def load_spec(path: str | os.PathLike[str]) -> Spec:
    """Reads and checks a spec file; InputError lists every fault, one line each: file:line:column: spec path: what, what instead."""
    return parse_spec(*read_text(path, SPEC))


def parse_spec(text: str, file: str) -> Spec:
    """As `load_spec`, from text; `file` is named in messages."""
    values, source = parse_text(text, file, SPEC)
    return checked(Spec, values, source, SPEC.name).with_source(source)
