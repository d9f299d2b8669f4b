"""RUN/metrics.jsonl, one line per look, and the same for TensorBoard where it is wanted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from synthfactory.shards.beside import beside
from synthfactory.spec.errors import InputError
from synthfactory.spec.json_text import read_json


class Metrics:
    """The log of one call, which goes on after step `first`: lines of later steps are taken out, for those are done again."""

    def __init__(self, run: Path, first: int, *, board: bool = False) -> None:
        self._path = run / "metrics.jsonl"
        self.seconds_before = _shortened(self._path, first)
        self._board = _writer(run / "tensorboard", first) if board else None

    def note(self, line: dict[str, float]) -> None:
        """Appends a line with `step` and figures. InputError where it cannot be written."""
        rounded = {name: float(f"{value:.7g}") if isinstance(value, float) else value for name, value in line.items()}
        try:
            with open(self._path, "a") as log:
                log.write(json.dumps(rounded) + "\n")
        except OSError as error:
            raise InputError(
                f"{self._path}: step {line['step']} cannot be noted: {error.strerror or error}; make room and run the same command: it "
                "goes on from the last checkpoint"
            ) from None
        if self._board is not None:
            for name, value in rounded.items():
                if name != "step":
                    self._board.add_scalar(name, value, int(line["step"]))
            self._board.flush()

    def close(self) -> None:
        """Ends TensorBoard's file."""
        if self._board is not None:
            self._board.close()


def last_line(run: Path) -> dict[str, Any]:
    """The last whole line of RUN/metrics.jsonl, {} where there is none: who was killed as it logged leaves half a line."""
    return next(_whole(reversed(_texts(run / "metrics.jsonl"))), {})


def _texts(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines() if log.exists() else []


def _whole(texts: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Lines that are whole, parsed."""
    for text in texts:
        try:
            line = read_json(text)
            int(line["step"]), float(line["seconds"])
        except (ValueError, TypeError, KeyError):  # cut off
            continue
        yield line


def check_board() -> None:
    """InputError where TensorBoard is not installed, before anything begins."""
    if find_spec("tensorboard") is None:
        raise _no_board("it is not installed")


def _no_board(why: object) -> InputError:
    return InputError(
        f"tensorboard: cannot be imported ({why}); pip install 'synthfactory[tensorboard]', or write tensorboard: false"
    )


def _writer(folder: Path, first: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise _no_board(error) from None
    return SummaryWriter(str(folder), purge_step=first + 1 if first else 0)


def _shortened(log: Path, step: int) -> float:
    """Takes lines of steps after the checkpoint out of the log, all of them where there is none: what stands before the first step is
    looked at again as well. Returns the seconds that the rest took.
    """
    if not log.exists():
        return 0.0
    lines = [line for line in _whole(_texts(log)) if step and line["step"] <= step]
    with beside(log) as new:
        new.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return float(lines[-1]["seconds"]) if lines else 0.0
