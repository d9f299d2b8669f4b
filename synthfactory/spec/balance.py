"""`balance`: tiles of each class from what real tiles there are, instead of counts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from synthfactory.spec.sampler import FrozenModel
from synthfactory.spec.source import Problems

PARAMETERS = {"temperature": "temperature", "effective_number": "beta"}


class Balance(FrozenModel):
    """How `total` is shared out over the classes; in YAML a bare name is short for {kind: it}."""

    kind: Literal["uniform", "proportional", "temperature", "effective_number", "top_up"] = Field(
        description="uniform: alike. proportional: as the real ones. temperature: n^(1/T), between both. effective_number: "
        "(1 - beta^n) / (1 - beta). top_up: so that real and synthetic together are alike.",
        examples=["uniform"],
    )
    temperature: float | None = Field(default=None, ge=1, le=1e6, description="temperature: T.", examples=[2.0])
    beta: float | None = Field(default=None, ge=0, lt=1, description="effective_number: beta.", examples=[0.999])
    against: Literal["bank"] | dict[str, Annotated[int, Field(ge=1, le=10**12)]] = Field(
        default="bank",
        description="Where real counts come from: the bank's rows, or {class: count}.",
        examples=["bank"],
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
        return {"kind": data} if isinstance(data, str) else data

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
        if found:
            raise Problems(found)
        return self

    @property
    def parameter(self) -> float | None:
        """T or beta."""
        return self.temperature if self.kind == "temperature" else self.beta
