"""The form of spec.lock.yaml. A set may come from anyone, so a lock is checked whole before any part of it is used or printed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from synthfactory.spec.bags import Bags
from synthfactory.spec.names import class_name_problem
from synthfactory.spec.sampler import FrozenModel, Sampler
from synthfactory.spec.sections import Screen


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds characters that cannot be printed")
    return text


def _class_name(text: str) -> str:
    problem = class_name_problem(text)
    if problem:
        raise ValueError(problem)
    return text


def _named(terms: dict[str, Any]) -> dict[str, Any]:
    if terms and not isinstance(terms.get("name"), str):
        raise ValueError("has no name")
    return terms


Text = Annotated[str, Field(max_length=500), AfterValidator(_printable)]
ClassName = Annotated[str, AfterValidator(_class_name)]
SetName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,47}$")]
Sha256 = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_printable)]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
EncoderLicence = Annotated[dict[Text, Any], AfterValidator(_named)]  # {}: the encoder is the model's own


class _ModelName(FrozenModel):
    id: Text
    revision: Text
    sha256: Sha256


class _Model(_ModelName):
    tile_size_px: Positive
    resolution_mpp: Annotated[float, Field(gt=0)]
    licence: dict[Text, Any]
    domain: Text | None
    source: Text
    backend: Literal["native", "official"]
    noise: Literal["start and streams", "start", "streams", "none"]


class _Terms(FrozenModel):
    accepted: list[Text]
    sharing: Literal["local", "allowed", "permitted"]
    permission: dict[Text, Text] | None


class _Unprotected(FrozenModel):
    mechanism: Literal["none"]


class _Mix(FrozenModel):
    mechanism: Literal["mix"]
    k: Annotated[int, Field(ge=2)]
    max_weight: Fraction


class _Released(FrozenModel):
    mechanism: Literal["dp"]
    epsilon: Annotated[float, Field(gt=0)]
    delta: Fraction
    population: dict[ClassName, Positive]
    cohort: SetName
    label_level: Literal["slide", "region", "tile"]
    release_sha256: Sha256
    projection_sha256: Sha256
    provenance: Text


class _Recipe(FrozenModel):
    name: SetName
    model: _ModelName
    conditions_version: int
    seed_kind: Literal["secret", "integer"]
    privacy: Annotated[_Unprotected | _Mix | _Released, Field(discriminator="mechanism")]
    sampler: Sampler
    class_samplers: dict[ClassName, Sampler]
    class_banks: dict[ClassName, Text]
    screen: Screen
    format: Literal["png", "webp", "jpeg"]
    bags: Bags | None = None

    @model_serializer(mode="wrap")
    def _without_bags(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = handler(self)
        if self.bags is None:  # sets without bags say nothing of them, as before there were any
            del found["bags"]
        return found


class _Class(FrozenModel):
    name: ClassName
    class_index: Annotated[int, Field(ge=0)]


class _Execution(FrozenModel):
    batch_size: Positive
    dtype: Literal["float32", "bfloat16", "float16"]
    threads: Positive
    compile: bool | None
    strict: bool


class Lock(FrozenModel):
    """What `plan.lock.build_lock` writes. ValueError (pydantic's) where something is missing, foreign or of another kind."""

    format: Text
    name: SetName
    recipe_sha256: Sha256
    recipe: _Recipe
    model: _Model
    encoder: dict[Text, Text]
    encoder_licence: EncoderLicence
    terms: _Terms
    label_levels: list[Literal["slide", "region", "tile", "unconditional"]]
    training_cohort: Literal["some", "none", "unknown"]
    classes: Annotated[list[_Class], Field(min_length=1)]
    execution: _Execution
    withdrawals: Annotated[int, Field(ge=0)] = 0  # how often tiles were taken back for a patient and drawn anew

    @model_serializer(mode="wrap")
    def _without_withdrawals(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = handler(self)
        if not self.withdrawals:  # as locks were before it was counted
            del found["withdrawals"]
        return found

    @model_validator(mode="after")
    def _agrees(self) -> Lock:
        names = [entry.name for entry in self.classes]
        if [entry.class_index for entry in self.classes] != list(range(len(names))) or len(set(names)) < len(names):
            raise ValueError("class indices are not 0, 1, 2, ...")
        if any(getattr(self.recipe.model, key) != getattr(self.model, key) for key in ("id", "revision", "sha256")):
            raise ValueError("the recipe's model is another")
        if set(names) - self.recipe.class_banks.keys():
            raise ValueError("a class has no bank")
        return self
