"""`balance`: tiles of each class from what real tiles there are, instead of counts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from synthfactory.spec.places import place_problem
from synthfactory.spec.sampler import FrozenModel
from synthfactory.spec.source import Problems
from synthfactory.spec.text import shown

PARAMETERS = {"temperature": "temperature", "effective_number": "beta"}
BUILT_IN = ("bank", "tcga")
FILES = (".csv", ".parquet")
MAX_REAL = 10**12


def _against_problems(value: Any) -> list[tuple[str, str]]:
    """(path below `against`, fault); the type alone would name every form that it is not."""
    if isinstance(value, str):
        if value in BUILT_IN:
            return []
        if not value.lower().endswith(FILES):
            return [("", f"'{value}' is neither bank nor tcga, no .csv or .parquet file, and no {{class: count}}")]
        problem = place_problem(value)
        return [("", f"'{value}' {problem}")] if problem else []
    if not isinstance(value, dict) or not value:
        return [("", "says no counts; write bank, tcga, the name of a .csv or .parquet file, or {class: count}")]
    return [
        (str(name), f"{repr(count)[:40]} is no whole number from 1 to {MAX_REAL:,}")
        for name, count in value.items()
        if not (type(count) is int and 1 <= count <= MAX_REAL)
    ]


def _parameter(kind: str, value: Any) -> dict[str, Any]:
    """Of a short form, as the long one has it; what is wrong with it is said of the name that was written."""
    name = PARAMETERS[kind]
    if name != kind and not (type(value) in (int, float) and 0 <= value < 1):
        raise Problems([(kind, f"{repr(value)[:40]} is no number from 0 to below 1; for example {kind}: 0.999")])
    return {name: value}


def _without(data: dict[str, Any], left_out: str) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name != left_out}


def _counted(counts: dict[str, Any]) -> str:
    """The counts as `classes` would have them, the first three."""
    first = [f"{shown(str(name))}: {count}" for name, count in list(counts.items())[:3]]
    return f"classes: {{{', '.join([*first, '...'] if len(counts) > 3 else first)}}}"


class Balance(FrozenModel):
    """How `total` is shared out over the classes; in YAML a bare name is short for {kind: it}, {temperature: T} for kind and T,
    {effective_number: beta} for kind and beta.
    """

    kind: Literal["uniform", "proportional", "temperature", "effective_number", "top_up"] = Field(
        description="uniform: alike. proportional: as the real ones. temperature: n^(1/T), between both. effective_number: "
        "(1 - beta^n) / (1 - beta). top_up: so that real and synthetic together are alike.",
        examples=["uniform"],
    )
    temperature: float | None = Field(default=None, ge=1, le=1e6, description="temperature: T.", examples=[2.0])
    beta: float | None = Field(default=None, ge=0, lt=1, description="effective_number: beta.", examples=[0.999])
    against: str | dict[str, Annotated[int, Field(ge=1, le=MAX_REAL)]] = Field(
        default="bank",
        description="Where real counts come from: the bank's rows, {class: count}, tcga (cases of TCGA's studies, by their codes), or a "
        ".csv or .parquet (path or URL) of label and count (patients, if known), or of a row a tile, slide or case: label (patient_id, "
        "if known).",
        examples=["bank", "tcga", "cohort.csv", {"tumour": 4000, "stroma": 60}],
    )
    even_fraction: bool = Field(
        default=True,
        description="top_up: one synthetic fraction in every class, by taking fewer real tiles of the common ones; false tops up the rare "
        "ones alone, and 'synthetic' then means 'rare'.",
        examples=[False],
    )

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"kind": data}
        if not isinstance(data, dict) or "kind" in data:
            return data
        named = [kind for kind in PARAMETERS if kind in data]
        if len(named) > 1 or ("effective_number" in named and "beta" in data):
            both = " and ".join(name for name in (*PARAMETERS, "beta") if name in data)
            raise Problems([("", f"says {both}; keep one of them")])
        if named:
            return {"kind": named[0], **_parameter(named[0], data[named[0]]), **_without(data, named[0])}
        if data.keys() - cls.model_fields.keys() and all(type(count) is int for count in data.values()):
            raise Problems(
                [("", f"says counts, and needs none then: leave balance and total out, and write {_counted(data)}")]
            )
        return data

    @field_validator("against", mode="before")
    @classmethod
    def _counts(cls, value: Any) -> Any:
        found = _against_problems(value)
        if found:
            raise Problems(found)
        return value

    @model_validator(mode="after")
    def _fits(self) -> Balance:
        found = []
        for kind, name in PARAMETERS.items():
            given = getattr(self, name) is not None
            if given and self.kind != kind:
                found.append((name, f"goes with kind: {kind}; this is {self.kind}"))
            if not given and self.kind == kind:
                found.append(
                    (
                        name,
                        f"is missing; kind {kind} needs it, for example {name}: {2.0 if name == 'temperature' else 0.999}",
                    )
                )
        if not self.even_fraction and self.kind != "top_up":
            found.append(("even_fraction", f"goes with kind: top_up; this is {self.kind}"))
        if self.kind == "top_up" and self.against == "tcga":
            found.append(
                ("against", "tcga counts cases, and top_up adds tiles to tiles; write {class: count} or a file")
            )
        if found:
            raise Problems(found)
        return self

    @property
    def file(self) -> str | None:
        """Path or URL of the file of real counts; None where they come from elsewhere."""
        return self.against if isinstance(self.against, str) and self.against not in BUILT_IN else None

    @property
    def parameter(self) -> float | None:
        """T or beta."""
        return self.temperature if self.kind == "temperature" else self.beta
