"""`privacy`: what stands between real tiles' embeddings and the conditions of drawn ones."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from synthfactory.spec.places import is_url
from synthfactory.spec.sampler import FrozenModel
from synthfactory.spec.source import Problems

OF_MIX = ("k", "max_weight")
OF_DP = (
    "epsilon", "delta", "population", "classes_per_patient", "cohort", "cap", "ledger", "release", "projection", "label_level",
)  # fmt: skip
DEFAULTS = {"k": 5, "max_weight": 0.4, "delta": 1e-6, "classes_per_patient": 1}
SEEDS = ("seed", "noise_seed", "random_seed", "random_state")


class Privacy(FrozenModel):
    """The mechanism and its numbers; the unit of protection is the patient. What belongs to another mechanism is refused."""

    mechanism: Literal["none", "mix", "dp"] = Field(
        default="none",
        description="none: a real tile's embedding as it is, unprotected. mix: blends of k patients' tiles, not a privacy guarantee. "
        "dp: conditions drawn from one release under (epsilon, delta)-differential privacy.",
        examples=["dp"],
    )
    max_tiles_per_patient: int | None = Field(
        default=None, ge=1, description="none, mix: most tiles of a class that one patient may be in.", examples=[100]
    )
    k: int | None = Field(default=None, ge=2, le=100, description="mix: patients in a blend. Default 5.", examples=[5])
    max_weight: float | None = Field(
        default=None, gt=0, lt=1, description="mix: largest weight of a tile in a blend. Default 0.4.", examples=[0.4]
    )
    epsilon: float | None = Field(
        default=None, ge=1e-3, le=100, description="dp: for adding or removing one patient.", examples=[1.0]
    )
    delta: float | None = Field(
        default=None, ge=1e-18, lt=1, description="dp: at most 1 / (10 patients). Default 1e-6.", examples=[1e-6]
    )
    population: dict[str, Annotated[int, Field(ge=1, le=10**9)]] | None = Field(
        default=None,
        description="dp: patients of each class, as declared in public: noise is judged by these, never by the bank's own numbers.",
        examples=[{"tumour": 400, "stroma": 600}],
    )
    classes_per_patient: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="dp: of how many classes a patient has tiles, as declared in public: who has more counts less in each. Default 1.",
        examples=[3],
    )
    cohort: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9][a-z0-9-]{0,47}$",
        description="dp: name under which the ledger keeps these patients' releases; it is published.",
        examples=["lung-2026"],
    )
    cap: float | None = Field(
        default=None, ge=1e-3, le=1000, description="dp: most epsilon of all the cohort's releases together. Default: epsilon.",
        examples=[3.0],
    )  # fmt: skip
    ledger: str | None = Field(
        default=None,
        description="dp: absolute path or URL of the ledger; never published, and kept as long as any set that rests on it.",
        examples=["/secure/ledger"],
    )
    release: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="dp: which release of an equal request (cohort, classes, epsilon, delta, projection); the next number makes, and "
        "charges, another. Default: the latest, or a first.",
        examples=[2],
    )
    projection: str | None = Field(
        default=None,
        description="dp: projection file of declared public provenance (`synthfactory privacy fit`). Default: the model's own.",
        examples=["projection.safetensors"],
    )
    label_level: Literal["slide", "region", "tile"] | None = Field(
        default=None,
        description="dp: level of the labels, declared: what tiles state must not depend on rows.",
        examples=["tile"],
    )

    @model_validator(mode="before")
    @classmethod
    def _unseeded(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"mechanism": data}
        for name in SEEDS if isinstance(data, dict) else ():
            if name in data:
                what = "has no place here: the noise is the system's own, drawn once; noise of a known seed could be taken off again"
                raise Problems([(name, what)])
        return data

    @model_validator(mode="after")
    def _fits(self) -> Privacy:
        found = []
        for names, mechanism in ((OF_MIX, "mix"), (OF_DP, "dp")):
            if self.mechanism != mechanism:
                what = f"goes with mechanism: {mechanism}; this is {self.mechanism}"
                found += [(name, what) for name in names if getattr(self, name) is not None]
        if self.mechanism == "dp":
            found += self._dp_faults()
        if self.mechanism == "mix" and self.value("max_weight") * self.value("k") < 1:
            found.append(
                ("max_weight", f"{self.value('k')} weights of at most {self.value('max_weight'):g} do not reach 1; raise either")
            )  # fmt: skip
        if found:
            raise Problems(found)
        return self

    def _dp_faults(self) -> list[tuple[str, str]]:
        found = []
        needed = {
            "epsilon": "1.0",
            "population": "{tumour: 400, stroma: 600}",
            "cohort": "lung-2026",
            "ledger": "/secure/ledger",
            "label_level": "tile",
        }
        for name, example in needed.items():
            if getattr(self, name) is None:
                found.append((name, f"is missing; mechanism dp needs it, for example {name}: {example}"))
        if self.max_tiles_per_patient is not None:
            found.append(
                ("max_tiles_per_patient", "goes with mechanisms none and mix; under dp no tile is any patient's")
            )
        patients = sum((self.population or {}).values())
        if patients and self.value("delta") > 1 / (10 * patients):
            most = 1 / (10 * patients)
            what = f"{self.value('delta'):g} is too large for {patients:,} patients; at most 1 / (10 patients) = {most:.3g}"
            found.append(("delta", what))
        if self.ledger is not None and not (is_url(self.ledger) or self.ledger.startswith(("/", "~/"))):
            what = f"'{self.ledger}' would be another ledger, with a budget of its own, in every folder; write an absolute path or a URL"
            found.append(("ledger", what))
        if None not in (self.cap, self.epsilon) and self.cap < self.epsilon:  # type: ignore[operator]
            found.append(("cap", f"{self.cap:g} is below epsilon = {self.epsilon:g}, which this set alone spends"))
        return found

    def value(self, name: str) -> Any:
        """A field, or its default."""
        given = getattr(self, name)
        return DEFAULTS.get(name, self.epsilon if name == "cap" else None) if given is None else given

    def settled(self) -> dict[str, Any]:
        """What the recipe says: everything of the mechanism that decides conditions, defaults written out."""
        names = {"mix": OF_MIX, "dp": ("epsilon", "delta", "population", "cohort", "label_level"), "none": ()}
        return {"mechanism": self.mechanism, **{name: self.value(name) for name in names[self.mechanism]}}
