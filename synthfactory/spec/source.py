"""Where each field of a spec was written, so that errors found late still name file:line:column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from synthfactory.spec.errors import InputError


@dataclass(frozen=True)
class Source:
    """The file a spec came from and the 1-based (line, column) of its fields, keyed by dotted spec path.

    A path points at its value where that is a scalar, and at its key where it is a mapping, a list or a class.
    """

    file: str = ""
    positions: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    # Of fields that the command line gives: what is written there.
    options: Mapping[str, str] = field(default_factory=dict)

    def overridden(self, options: Mapping[str, str]) -> Source:
        """The same with these fields, and what lies below them, from the command line."""
        below = tuple(f"{path}." for path in options)
        kept = {path: at for path, at in self.positions.items() if path not in options and not path.startswith(below)}
        return replace(self, positions=kept, options={**self.options, **options})

    def locate(self, path: str) -> str:
        """'file:line:column' of a spec path or of its nearest written ancestor, or the option that gives it; '' for a spec that came
        from no file.
        """
        probe = path
        while probe and probe not in self.positions:
            if probe in self.options:
                return self.options[probe]
            below = [text for option, text in self.options.items() if option.startswith(f"{probe}.")]
            if below:  # a group that stands in no file is there for the option's sake
                return below[0]
            probe = probe.rpartition(".")[0]
        line, column = self.position(path)
        return f"{self.file}:{line}:{column}" if self.file else ""

    def position(self, path: str) -> tuple[int, int]:
        """1-based (line, column) of a spec path or of its nearest written ancestor."""
        probe = path
        while probe and probe not in self.positions:
            probe = probe.rpartition(".")[0]
        return self.positions.get(probe, (1, 1))

    def error(self, path: str, message: str) -> InputError:
        """An InputError (to be raised by the caller) that starts with the place and the spec path."""
        place = self.locate(path)
        return InputError(f"{place}: {path}: {message}" if place else f"{path}: {message}")


class Problems(ValueError):
    """Several faults found by one validator, each with its path relative to the model that was being validated."""

    def __init__(self, found: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{path}: {message}" if path else message for path, message in found))
        self.found = found
