"""`bags`: tiles that are published as belonging together, for multiple-instance learning."""

from __future__ import annotations

from pydantic import Field, model_validator

from synthfactory.spec.sampler import FrozenModel
from synthfactory.spec.source import Problems

MAX_SIZE = 1_000_000
ONE_PATIENT = (
    "bags of one patient are the worst case for privacy: all tiles of a bag follow one patient, so that a bag is a stronger handle on that "
    "person than any tile alone, and the grouping itself is published"
)
SEVERAL_PATIENTS = (
    "the grouping itself is published, and the numbers in the keys tell which tiles of a bag follow the same patient: each of these parts "
    "is a stronger handle on a person than any tile alone"
)
ELSEWHERE = {  # mechanism -> why `patients` has no meaning
    "mix": "under mix every condition blends several patients, and tiles of a bag share them where a class has few",
    "dp": "under dp no tile is any patient's, and a bag's tiles share nothing but their class",
    "unconditional": "tiles are drawn without conditions, so there are no patients behind a bag",
}


class Bags(FrozenModel):
    """Slot i of a class belongs to its bag i // size; each tile states its bag_id."""

    size: int = Field(
        ge=2, le=MAX_SIZE, description="Tiles of a bag, 2 and up; the last bag fills as the set grows.", examples=[64]
    )
    patients: int | None = Field(
        default=None,
        ge=1,
        le=MAX_SIZE,
        description="With privacy.mechanism none: patients behind a bag, each with as many tiles (so size is a multiple of it). "
        "Default 1: all tiles of a bag follow one patient, the worst case for privacy.",
        examples=[4],
    )  # fmt: skip

    @model_validator(mode="after")
    def _shares(self) -> Bags:
        if self.size % self.group:
            less = self.size - self.size % self.group
            right = f"{less} or {less + self.group}" if less else str(self.group)
            what = f"{self.group} patients cannot have as many tiles each of a bag of {self.size}; write size: {right}, or other patients"
            raise Problems([("patients", what)])
        return self

    @property
    def group(self) -> int:
        """Patients behind a bag, under mechanism none."""
        return self.patients or 1
