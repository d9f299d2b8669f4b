"""Small specs, models and banks to plan with."""

from __future__ import annotations

from collections.abc import Mapping

from synthfactory.plan.plan import ClassSummary
from synthfactory.plan.recipe import ModelFacts
from synthfactory.plan.rounds import Round, next_round
from synthfactory.spec.load import parse_spec
from synthfactory.spec.schema import Spec

MODEL = ModelFacts("phantom", "1", "a" * 64, 192, {"id": "vit", "sha256": "b" * 64, "token": "class"}, 224, 0.5)


def spec_of(classes: Mapping[str, object], *lines: str) -> Spec:
    """A spec of these classes (YAML flow text or counts), with more or other lines of YAML."""
    given = {line.partition(":")[0]: line for line in lines}
    usual = (
        "name: demo",
        "model: phantom",
        "embeddings: {bank: b}",
        "output: {path: out}",
        "lineage: lineage",
        "seed: 7",
    )
    rest = {line.partition(":")[0]: line for line in usual} | given
    written = "".join(f'  "{name}": {value}\n' for name, value in classes.items())
    return parse_spec(f"classes:\n{written}" + "\n".join(rest.values()) + "\n", "s.yaml")


def summaries(spec: Spec, patients: int = 40, rows: int = 400, unknown_rows: int = 0) -> dict[str, ClassSummary]:
    return {name: ClassSummary(rows, patients, patients, unknown_rows, ("tile",)) for name in spec.classes}


def grow(steps: list[dict[str, int]], shard_size: int) -> list[Round]:
    """The rounds of builds that ask for these counts one after the other."""
    rounds: list[Round] = []
    for counts in steps:
        step = next_round(rounds, counts, shard_size)
        if step:
            rounds.append(step)
    return rounds
