"""Names of solvers by equation, for command lines that need nothing else of the schema."""

from __future__ import annotations

from typing import Literal

Method = Literal["ode", "sde", "pipeline"]
Solver = Literal["euler", "heun", "ab2", "euler_maruyama", "stochastic_heun", "own"]
SOLVERS: dict[str, tuple[str, ...]] = {  # first = default
    "ode": ("heun", "euler", "ab2"),
    "sde": ("euler_maruyama", "stochastic_heun"),
    "pipeline": ("own",),
}
