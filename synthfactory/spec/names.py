"""Names that become parts of keys and paths: what a class may be called, and its slug.

A class name must equal the label in the bank, so it may hold spaces, capitals and any script; the slug is what enters keys.
"""

from __future__ import annotations

import re
import unicodedata

MAX_CLASS_NAME = 64


def slug(class_name: str) -> str:
    """Lower-case ASCII letters and digits joined by single '-', dot-free, for keys; may be empty for names in other scripts."""
    ascii_text = unicodedata.normalize("NFKD", class_name).encode("ascii", "ignore").decode("ascii")
    return re.sub(r"[^a-z0-9]+", "-", ascii_text.lower()).strip("-")


def class_name_problem(name: str) -> str | None:
    """What is wrong with one class name, or None: 1 to 64 printable characters, no '/', '\\' or '..', a slug that is not empty."""
    if not name or name != name.strip():
        return "the class name is empty or has spaces at an end; write the bank's label itself"
    if len(name) > MAX_CLASS_NAME:
        return f"the class name has {len(name)} characters; at most {MAX_CLASS_NAME} are allowed"
    if any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") for character in name):
        return "the class name holds a control or invisible character; use printable ones only"
    if "/" in name or "\\" in name or ".." in name or name.startswith("."):
        return "the class name looks like a path; '/', '\\', '..' and a leading '.' are not allowed"
    if not slug(name):
        return "the class name has no ASCII letter or digit to make a key from; add one"
    return None


_OBEYED = re.compile(r"[=@]|[+-].*(?:[!|]|\w\()")  # a call, another sheet or a program; '-ve (ER)' is a label


def new_name_problem(name: str) -> str | None:
    """As `class_name_problem`, of a name that nothing holds yet: no formula either. Sets that stand keep what they were begun with."""
    if problem := class_name_problem(name):
        return problem
    if _OBEYED.match(name):
        return (
            "the class name looks like a formula, which spreadsheets obey in tables of labels; begin it with a letter or digit "
            "('-ve (ER)', with a space before the bracket, is none)"
        )
    return None


def slug_collisions(names: list[str]) -> list[tuple[str, str]]:
    """Pairs (later, earlier) of class names that differ but give the same slug, and so the same keys."""
    seen: dict[str, str] = {}
    pairs = []
    for name in names:
        first = seen.setdefault(slug(name), name)
        if first != name:
            pairs.append((name, first))
    return pairs
