"""The spec as frozen pydantic models: every field with its unit, default and an example; unknown keys are refused.

Checks that span several fields raise `Problems`, which keeps the path of each fault for load.py to turn into file:line:column.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Literal

from pydantic import Field, GetJsonSchemaHandler, PrivateAttr, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from synthfactory.spec.bags import ELSEWHERE, ONE_PATIENT, SEVERAL_PATIENTS, Bags
from synthfactory.spec.balance import Balance
from synthfactory.spec.embeddings import Embeddings
from synthfactory.spec.errors import InputError
from synthfactory.spec.hubname import is_hub
from synthfactory.spec.model import Model
from synthfactory.spec.names import class_name_problem, new_name_problem, slug, slug_collisions
from synthfactory.spec.nesting import Read, nesting_problems
from synthfactory.spec.places import place_problem
from synthfactory.spec.privacy import Privacy
from synthfactory.spec.sampler import FrozenModel, Sampler, SamplerOverride, merged_sampler
from synthfactory.spec.sections import Budget, BudgetOverride, Execution, Output, Screen
from synthfactory.spec.source import Problems, Source
from synthfactory.spec.terms import Terms

MAX_TILES = 10**12
MAX_KEY = 95  # KEY.webp must fit the 100 characters of a plain tar name
INDEX_DIGITS = 12  # of the last tile's index, at most
FRACTIONS_OFF = 2e-6  # thirds cannot be written exactly: three times 0.333333 will do


class ClassSpec(FrozenModel):
    """How many tiles of one class, and what differs in drawing them; in YAML a bare integer is short for {count: it}."""

    count: int | None = Field(default=None, ge=1, le=MAX_TILES, description="Tiles of this class.", examples=[40])
    fraction: float | None = Field(
        default=None, gt=0.0, le=1.0, description="Share of `total`, above 0; all classes sum to 1.", examples=[0.5]
    )
    floor: int | None = Field(
        default=None, ge=0, le=MAX_TILES, description="With `balance`: at least so many tiles.", examples=[50]
    )
    cap: int | None = Field(
        default=None, ge=1, le=MAX_TILES, description="With `balance`: at most so many tiles.", examples=[500]
    )
    sampler: SamplerOverride | None = Field(
        default=None, description="What differs from the spec's sampler for this class.", examples=[{"steps": 20}]
    )
    budget: BudgetOverride | None = Field(
        default=None, description="What differs from the spec's budget for this class.", examples=[{"max_attempts": 12}]
    )

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, data: Any) -> Any:
        if type(data) is float:
            raise ValueError(f"{data:g} is no count; write an integer, or {{fraction: {data:g}}} together with total")
        if data is None or isinstance(data, str | bool | list):
            shown = "nothing" if data is None else json.dumps(data, ensure_ascii=False, default=str)[:60]
            raise ValueError(f"{shown} is no count; write an integer such as 40, or fields such as {{count: 40}}")
        return {"count": data} if type(data) is int else data

    @model_validator(mode="after")
    def _one_size(self) -> ClassSpec:
        if self.count is not None and self.fraction is not None:
            raise ValueError("has both count and fraction; keep one of them")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        full = handler.resolve_ref_schema(handler(core))
        short = {"type": "integer", "minimum": 1, "maximum": MAX_TILES, "description": "Tiles of this class."}
        return {
            "anyOf": [short, full],
            "description": full.pop("description", ""),
            "title": full.pop("title", "ClassSpec"),
        }


class Spec(FrozenModel):
    """A labelled synthetic tile set: which model, which classes, from which embeddings, drawn how, to where."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]{0,47}$",
        description="Prefix of every tile's key: a-z, 0-9 and '-', at most 48.",
        examples=["demo"],
    )
    model: Model = Field(
        description="The model that draws: a name such as phantom or cytosyn, or {name, revision, backend, ...}.",
        examples=["phantom", {"name": "cytosyn", "revision": "v2", "trust_remote_code": True}],
    )
    total: int | None = Field(
        default=None,
        ge=1,
        le=MAX_TILES,
        description="Tiles of all classes; with fractions, or with balance.",
        examples=[120],
    )
    classes: dict[str, ClassSpec] = Field(
        min_length=1,
        description="Class name (the bank's label) to its number of tiles, or to {count or fraction, floor, cap, sampler, budget}.",
        examples=[{"phantom-gland": 40, "phantom-keratin": {"count": 20, "sampler": {"steps": 20}}}],
    )
    balance: Balance | None = Field(
        default=None,
        description="How total is shared out over classes without counts, from what real tiles there are.",
        examples=["uniform", {"kind": "temperature", "temperature": 2.0}],
    )
    bags: Bags | None = Field(
        default=None,
        description="Tiles that belong together, for multiple-instance learning: each states its bag_id. Default: none.",
        examples=[{"size": 64, "patients": 4}],
    )
    embeddings: Embeddings = Field(
        description="Source of the conditioning embeddings.", examples=[{"bank": "bank.parquet"}]
    )
    privacy: Privacy = Field(
        default=Privacy(),
        description="What stands between real tiles' embeddings and the conditions; the unit of protection is the patient.",
        examples=[{"mechanism": "mix", "k": 5}],
    )
    sampler: Sampler = Field(default=Sampler(), description="How tiles are drawn.", examples=[{"steps": 10}])
    screen: Screen = Field(
        default=Screen(), description="Which tiles are kept.", examples=[{"tissue": {"min_fraction": 0.1}}]
    )
    output: Output = Field(description="Where the tile set goes.", examples=[{"path": "out/demo"}])
    lineage: str = Field(
        description="Folder or URL for what must not be published (secret key, bank rows, rejects); apart from output.path.",
        examples=["out/demo-lineage"],
    )
    seed: Annotated[int, Field(ge=0, lt=2**128)] | Literal["secret"] = Field(
        default="secret",
        description="Integer >= 0 (anyone can repeat the set) or secret (default; for banks of real patients).",
        examples=["secret", 20261123],
    )
    budget: Budget = Field(
        default=Budget(),
        description="Limits checked before and during the build.",
        examples=[{"network_calls": 1_000_000}],
    )
    execution: Execution = Field(
        default=Execution(), description="Batch, number format and threads.", examples=[{"batch_size": 16}]
    )

    terms: Terms = Field(
        default=Terms(),
        description="Accepted licences, and sharing.",
        examples=[{"accept": ["CC-BY-NC-ND-4.0"], "sharing": "local"}],
    )

    _source: Source = PrivateAttr(default_factory=Source)

    @field_validator("seed", mode="before")
    @classmethod
    def _seed(cls, value: Any) -> Any:
        if value == "secret" or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**128):
            return value
        raise ValueError("must be an integer from 0 to 2**128 - 1, or the word secret")

    @model_validator(mode="after")
    def _across(self) -> Spec:
        found = [*self._class_problems(), *self._size_problems(), *self._sampler_problems(), *self._place_problems()]
        found = found or [*self._unconditional_problems(), *self._dp_problems(), *self._bag_problems()]
        if found:
            raise Problems(found)
        return self

    def _class_problems(self) -> list[tuple[str, str]]:
        found = [(f"classes.{name}", problem) for name in self.classes if (problem := new_name_problem(name))]
        found += [
            (
                f"classes.{later}",
                f"gives the same keys as class '{earlier}' (case and punctuation do not count); rename one",
            )
            for later, earlier in slug_collisions([name for name in self.classes if not class_name_problem(name)])
        ]
        for name in self.classes:
            over = len(f"{self.name}-{slug(name)}-") + INDEX_DIGITS - MAX_KEY
            if over > 0:
                found.append(
                    (
                        f"classes.{name}",
                        f"is too long beside name: {self.name}; tar names would not hold the keys, so shorten either by {over}",
                    )
                )
        return found

    def _unconditional_problems(self) -> list[tuple[str, str]]:
        if not self.embeddings.unconditional:
            return []
        found = []
        if self.privacy != Privacy():
            found.append(("privacy", "stands between embeddings and conditions, and there are none; leave it out"))
        if len(self.classes) > 1:
            found.append(("classes", "unconditional tiles have no classes; keep one name for all of them"))
        for path, sampler in (
            ("sampler", self.sampler),
            *((f"classes.{n}.sampler", self.sampler_for(n)) for n in self.classes),
        ):
            if sampler.guidance.scale != 1.0:
                found.append(
                    (f"{path}.guidance.scale", "without conditions nothing can guide; write guidance: {scale: 1.0}")
                )
                break
        if self.screen.agreement is not None:
            found.append(("screen.agreement", "compares a tile with its condition, and there is none; leave it out"))
        if self.screen.nearest_real is not None:
            found.append(("screen.nearest_real", "compares tiles with the bank, and there is none; leave it out"))
        return found

    def _dp_problems(self) -> list[tuple[str, str]]:
        if self.privacy.mechanism != "dp":
            return []
        said = (self.privacy.population or {}).keys()
        found = [
            ("privacy.population", f"does not say how many patients {name} has; declare a number for every class")
            for name in self.classes
            if name not in said
        ]
        if self.screen.nearest_real is None:
            return found
        what = "looks at the bank's own tiles, which the epsilon does not cover; leave it out (no condition is any patient's)"
        return [*found, ("screen.nearest_real", what)]

    def _bag_problems(self) -> list[tuple[str, str]]:
        if self.bags is None or self.bags.patients is None or self.bags_follow_patients:
            return []
        kind = "unconditional" if self.embeddings.unconditional else self.privacy.mechanism
        return [("bags.patients", f"goes with mechanism none; {ELSEWHERE[kind]}, so leave it out")]

    def _size_problems(self) -> list[tuple[str, str]]:
        if self.balance is not None:
            return self._balance_problems(self.balance)
        found = []
        for name, item in self.classes.items():
            if item.count is None and item.fraction is None:
                found.append((f"classes.{name}", "has neither count nor fraction; write for example {count: 40}"))
            for bound in ("floor", "cap"):
                if getattr(item, bound) is not None:
                    found.append((f"classes.{name}.{bound}", "goes with balance; the class has a size of its own"))
        return found or self._share_problems()

    def _balance_problems(self, balance: Balance) -> list[tuple[str, str]]:
        found = []
        if self.total is None:
            found.append(("total", "is missing; balance shares it out over the classes, for example total: 6000"))
        for name, item in self.classes.items():
            if item.count is not None or item.fraction is not None:
                found.append(
                    (
                        f"classes.{name}",
                        "has a size of its own, which balance is to find; write {} or its floor and cap",
                    )
                )
            if isinstance(balance.against, dict) and name not in balance.against:
                found.append(("balance.against", f"does not say how many real tiles {name} has"))
        if (balance.against == "bank" or balance.file) and self.privacy.mechanism == "dp":
            what = "real counts are not covered by epsilon, and the set's would tell them; write {class: count} as declared"
            found.append(("balance.against", f"{balance.against}: {what}"))
        if balance.against == "bank" and self.embeddings.unconditional:
            found.append(("balance", "counts the bank's rows, and there is none; leave it out"))
        return found

    def _share_problems(self) -> list[tuple[str, str]]:
        shares = {name: item.fraction for name, item in self.classes.items() if item.fraction is not None}
        if not shares:
            return (
                []
                if self.total is None
                else [("total", "goes with fractions only; the classes have counts, so leave it out")]
            )
        if len(shares) < len(self.classes):
            counted = next(name for name in self.classes if name not in shares)
            return [(f"classes.{counted}", "has a count while other classes have fractions; use one kind for all")]
        found = []
        if self.total is None:
            found.append(
                ("total", "is missing; classes with fractions need the total number of tiles, for example total: 120")
            )
        summed = math.fsum(shares.values())
        if abs(summed - 1.0) > FRACTIONS_OFF:
            found.append(("classes", f"the fractions sum to {summed:.8g}; they must sum to 1"))
        return found

    def _sampler_problems(self) -> list[tuple[str, str]]:
        found = []
        for name, item in self.classes.items():
            if item.sampler is None:
                continue
            try:
                self.sampler_for(name)
            except ValueError as error:  # pydantic's: the merged values do not go together
                for detail in getattr(error, "errors", list)():
                    cause = detail.get("ctx", {}).get("error")
                    below = ".".join(str(part) for part in detail["loc"])
                    for path, message in cause.found if isinstance(cause, Problems) else [("", detail["msg"])]:
                        found.append((".".join(filter(None, ("classes", name, "sampler", below, path))), message))
        return found

    def _place_problems(self) -> list[tuple[str, str]]:
        named = [("output.path", self.output.path), ("lineage", self.lineage)]
        if self.privacy.ledger is not None:
            named.append(("privacy.ledger", self.privacy.ledger))
        found = [(path, problem) for path, place in named if (problem := place_problem(place))]
        return found or self.nesting_problems()

    def nesting_problems(self, **resolve: Any) -> list[tuple[str, str]]:
        """(spec path, fault) of each place that lies inside another where it must not; `resolve` as in places.nested."""
        reads = [
            Read(
                f"embeddings.{key}", place, key == "tiles" or (key.startswith("shards") and not place.endswith(".tar"))
            )
            for key, place in self.embeddings.places()
        ]
        if self.balance is not None and self.balance.file:
            reads.append(Read("balance.against", self.balance.file))
        if self.screen.nearest_real is not None:
            reads.append(Read("screen.nearest_real.holdout", self.screen.nearest_real.holdout))
        if self.privacy.projection is not None:
            reads.append(Read("privacy.projection", self.privacy.projection, is_real=False))
        for key, name in (("model", self.model.name), ("model.encoder", self.model.encoder)):
            if name is not None and not is_hub(name) and "/" in name:  # others are names of what ships
                reads.append(Read(key, name, is_real=False))
        return nesting_problems(self.output.path, self.lineage, self.privacy.ledger, reads, **resolve)

    def sampler_for(self, class_name: str) -> Sampler:
        """The spec's sampler with this class's overrides; a method without a solver takes that method's default solver."""
        override = self.classes[class_name].sampler
        return self.sampler if override is None else merged_sampler(self.sampler, override)

    def max_attempts_for(self, class_name: str) -> int:
        """Draws per tile of this class before it counts as a shortfall."""
        override = self.classes[class_name].budget
        own = None if override is None else override.max_attempts
        return self.budget.max_attempts if own is None else own

    @property
    def bags_follow_patients(self) -> bool:
        """Whether the tiles of a bag are conditioned on the same patients."""
        return self.bags is not None and self.privacy.mechanism == "none" and not self.embeddings.unconditional

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed but should be known before building; one sentence each."""
        found = []
        if self.output.format == "jpeg":
            found.append("output.format: jpeg loses detail and shifts models and metrics; png or webp are lossless")
        if self.bags is not None and self.bags_follow_patients:
            found.append(f"bags: {ONE_PATIENT if self.bags.group == 1 else SEVERAL_PATIENTS}")
        return tuple(found)

    def locate(self, path: str) -> str:
        """'file:line:column' of a dotted spec path (or its nearest written ancestor); '' where the spec came from no file."""
        return self._source.locate(path)

    def error(self, path: str, message: str) -> InputError:
        """An InputError for the caller to raise: 'file:line:column: path: message'. For checks made after loading."""
        return self._source.error(path, message)

    def with_source(self, source: Source) -> Spec:
        """The same spec, knowing where it was written."""
        copy = self.model_copy()
        copy._source = source
        return copy
