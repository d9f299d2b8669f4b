"""The other end of bench_child.py: processes to ask, the model and bank they work with, and the specs they are given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from synthfactory.embeddings.indexing import make_bank
from synthfactory.embeddings.parquet import write_bank
from synthfactory.model.folder import open_model
from synthfactory.spec.errors import InputError

PHANTOM_BANK = Path(__file__).parents[2] / "specs" / "phantom-bank.parquet"
EVERYTHING = {"tissue": {"min_fraction": 0.0}, "blur": {"min_sharpness": 0.0}, "agreement": {"min": -1.0, "max": 1.0}}


class Child:
    """A process of the benchmark; a context manager, so that none is left behind."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process has ended
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("bench_child.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},  # Ray on loopback alone
            text=True,
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()  # it ends by itself; Ray is shut down on the way
        if kind is not None:
            self._process.terminate()
        try:
            self._process.wait(60)
        finally:
            self._process.kill()  # nothing, where it has ended
            self._process.stdout.close()
            self._errors.close()

    def send(self, **asked: Any) -> None:
        """A line to the process."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The next line from it. RuntimeError with what it said last where it ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait(60)
            self._errors.seek(0)
            raise RuntimeError(f"a process of the benchmark ended:\n{self._errors.read()[-4000:].decode()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def build(self, spec: Path, workers: int | None = None) -> dict[str, Any]:
        """A build from start to end."""
        self.send(build=str(spec), workers=workers)
        self.answer()
        self.send(go=True)
        return self.answer()


def side_by_side(children: list[Child], specs: list[Path]) -> list[dict[str, Any]]:
    """A --local build in each child, begun together once all hold the model."""
    for child, spec in zip(children, specs, strict=True):
        child.send(build=str(spec), workers=None)
    for child in children:
        child.answer()
    for child in children:
        child.send(go=True)
    return [child.answer() for child in children]


def random_bank(path: Path, model: str, classes: int = 6, patients: int = 8) -> Path:
    """A bank of random vectors for any model: three tiles of each patient."""
    folder = open_model(model)
    rows = [
        (f"class-{number}", f"{number}-{patient}")
        for number in range(classes)
        for patient in range(patients)
        for _ in range(3)
    ]
    vectors = np.random.default_rng(0).standard_normal((len(rows), folder.condition_width)).astype(np.float32)
    labels, ids = [label for label, _ in rows], [patient for _, patient in rows]
    write_bank(str(path), make_bank(vectors, labels, ["tile"] * len(rows), ids, ids, folder.encoder, str(path)))
    return path


class Workshop:
    """Writes specs for one model and one bank below a scratch folder; every spec has an output of its own."""

    def __init__(self, scratch: Path, model: str, sampler: dict[str, Any]) -> None:
        self._scratch, self._model, self._sampler = scratch, model, sampler
        open_model(model)  # says what is wrong with the model, if anything is
        self._bank = PHANTOM_BANK if model == "phantom" else random_bank(scratch / "bank.parquet", model)
        if not self._bank.is_file():
            raise InputError(f"{self._bank} is missing; run `make phantom-bank`")
        self._classes = sorted(set(pq.read_table(self._bank, columns=["label"])["label"].to_pylist()))
        self._made = 0

    @property
    def num_classes(self) -> int:
        """Classes of the bank."""
        return len(self._classes)

    def spec(self, tiles: int, shard_size: int, image_format: str = "png", **changes: Any) -> Path:
        """A spec of `tiles` tiles, spread evenly over the bank's classes. All screens look, none drops anything."""
        self._made += 1
        place = self._scratch / f"build-{self._made}"
        share, left = divmod(tiles, len(self._classes))
        counts = {name: share + (number < left) for number, name in enumerate(self._classes)}
        values = {
            "name": "bench",
            "model": self._model,
            "classes": {name: count for name, count in counts.items() if count},
            "embeddings": {"bank": str(self._bank)},
            "sampler": self._sampler,
            "screen": EVERYTHING,
            "output": {"path": f"{place}/out", "shard_size": shard_size, "format": image_format},
            "lineage": f"{place}/lineage",
            "seed": self._made,
            **changes,
        }
        path = self._scratch / f"build-{self._made}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path
