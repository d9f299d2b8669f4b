"""The sampler of a spec: equation, solver, steps, guidance, and how a class overrides them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from synthfactory.spec.solvers import SOLVERS, Method, Solver
from synthfactory.spec.source import Problems

MAX_STEPS = 10_000


def _steps(value: Any) -> Any:
    if value == "auto" or (type(value) is int and 1 <= value <= MAX_STEPS):
        return value
    if type(value) is int:
        limit = "too small; at least 1" if value < 1 else f"too large; at most {MAX_STEPS:,}"
        raise ValueError(f"{value} is {limit}; for example steps: 10")
    shown = "nothing" if value is None else f"'{value}'" if isinstance(value, str) else json.dumps(value, default=str)
    raise ValueError(
        f"{shown[:60]} is no whole number; for example steps: 10, or auto (as `synthfactory calibrate` found)"
    )


Steps = Annotated[
    int | Literal["auto"],
    BeforeValidator(_steps),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1, "maximum": MAX_STEPS}, {"const": "auto"}]}),
]
UnitFloat = Annotated[float, Field(ge=0.0, le=1.0)]


class FrozenModel(BaseModel):
    """Strict (true is no integer, 1.0 is no integer), frozen, closed, finite."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class Guidance(FrozenModel):
    """Classifier-free guidance: d = d_uncond + scale (d_cond - d_uncond), only at times low <= t <= high (t = 1 is noise)."""

    scale: float = Field(
        default=1.5, ge=1.0, le=100.0, description="Strength; 1 = no guidance. Default 1.5.", examples=[1.5]
    )
    low: UnitFloat = Field(
        0.0, description="Lowest time t in [0, 1] with guidance; t = 0 is the tile. Default 0.", examples=[0.0]
    )
    high: UnitFloat = Field(
        1.0, description="Highest time t in [0, 1] with guidance; t = 1 is noise. Default 1.", examples=[0.75]
    )

    @model_validator(mode="after")
    def _interval(self) -> Guidance:
        if self.low > self.high:
            raise Problems([("low", f"{self.low:g} is above high = {self.high:g}; low <= high is needed")])
        return self


def _solver_problem(method: str, solver: str) -> str | None:
    if solver in SOLVERS[method]:
        return None
    return f"'{solver}' does not go with method {method}; it would be {' or '.join(SOLVERS[method])}"


class Sampler(FrozenModel):
    """How a tile is drawn from noise: the equation, its solver, the number of steps and the guidance."""

    method: Method = Field(
        default="ode",
        description="ode (deterministic given the noise), sde, or pipeline (backend official: its own solver). Default ode.",
        examples=["ode"],
    )
    solver: Solver = Field(
        default="heun",
        description="For ode: heun (default), euler or ab2. For sde: euler_maruyama (default) or stochastic_heun.",
        examples=["heun"],
    )
    steps: Steps = Field(
        default=25,
        description="Solver steps per tile, or auto: the fewest that the model's own calibration allows. Default 25.",
        examples=[10, "auto"],
    )
    guidance: Guidance = Field(
        default=Guidance(), description="Guidance strength and interval.", examples=[{"scale": 1.5}]
    )

    @model_validator(mode="before")
    @classmethod
    def _default_solver(cls, data: Any) -> Any:
        if isinstance(data, dict) and "solver" not in data and data.get("method") in tuple(SOLVERS):
            return {**data, "solver": SOLVERS[data["method"]][0]}
        return data

    @model_validator(mode="after")
    def _combination(self) -> Sampler:
        problem = _solver_problem(self.method, self.solver)
        if problem:
            raise Problems([("solver", problem)])
        if self.method == "sde" and self.steps == 1:
            raise Problems([("steps", "method sde needs 2 or more: one to draw, and the noise-free last one")])
        return self

    @property
    def num_steps(self) -> int:
        """The steps as a number; a spec's `auto` has become one before anything is planned."""
        assert self.steps != "auto"
        return self.steps


class GuidanceOverride(FrozenModel):
    """Guidance fields of one class that differ from the spec's."""

    scale: float | None = Field(
        default=None, ge=1.0, le=100.0, description="As sampler.guidance.scale.", examples=[2.0]
    )
    low: UnitFloat | None = Field(default=None, description="As sampler.guidance.low.", examples=[0.0])
    high: UnitFloat | None = Field(default=None, description="As sampler.guidance.high.", examples=[0.75])


class SamplerOverride(FrozenModel):
    """Sampler fields of one class that differ from the spec's; what is left out is inherited."""

    method: Method | None = Field(default=None, description="As sampler.method.", examples=["sde"])
    solver: Solver | None = Field(default=None, description="As sampler.solver.", examples=["euler_maruyama"])
    steps: Steps | None = Field(default=None, description="As sampler.steps.", examples=[20])
    guidance: GuidanceOverride | None = Field(
        default=None, description="As sampler.guidance, in part.", examples=[{"scale": 2.0}]
    )


def merged_sampler(base: Sampler, override: SamplerOverride) -> Sampler:
    """`base` with the fields that `override` sets; a changed method without a solver takes that method's default solver.

    Raises pydantic.ValidationError where the merged fields do not go together.
    """
    changed = override.model_dump(exclude_none=True)
    inherited = base.model_dump()
    if changed.get("method", base.method) != base.method:
        inherited.pop("solver")
    guidance = {**inherited["guidance"], **changed.pop("guidance", {})}
    return Sampler.model_validate({**inherited, **changed, "guidance": guidance})
