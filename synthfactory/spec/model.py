"""The model of a spec: which weights, at which revision, run by whose code, beside which encoder."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from synthfactory.spec.errors import InputError
from synthfactory.spec.hubname import HubName, hub_name, is_commit, is_hub, short_problem
from synthfactory.spec.places import place_problem
from synthfactory.spec.sampler import FrozenModel
from synthfactory.spec.source import Problems
from synthfactory.spec.text import shown


class Pipeline(FrozenModel):
    """How a repository's own pipeline is called, and what it draws; the defaults are CytoSyn's. Only with backend: official."""

    embeds: str = Field(
        default="h0_mini_embeds",
        pattern=r"^[a-z_][a-z0-9_]{0,63}$",
        description="Argument that takes the embeddings, float32 (N, width). Default h0_mini_embeds.",
        examples=["h0_mini_embeds"],
    )
    condition_width: int = Field(
        default=768, ge=1, le=65_536, description="Width of an embedding. Default 768.", examples=[768]
    )
    encoder_id: str = Field(
        default="bioptimus/H0-mini",
        min_length=1,
        max_length=200,
        description="Who made the embeddings that condition it. Default bioptimus/H0-mini.",
        examples=["bioptimus/H0-mini"],
    )
    tile_size_px: int = Field(
        default=224, ge=8, le=4096, description="Side of a tile in pixels. Default 224.", examples=[224]
    )
    resolution_mpp: float = Field(
        default=0.5, gt=0.0, le=100.0, description="Micrometres per pixel. Default 0.5.", examples=[0.5]
    )
    latent_channels: int = Field(
        default=4, ge=1, le=64, description="Channels of the noise it starts from. Default 4.", examples=[4]
    )
    latent_size: int = Field(
        default=28, ge=1, le=1024, description="Side of the noise it starts from. Default 28.", examples=[28]
    )


class Model(FrozenModel):
    """The model that draws the tiles; in YAML a bare name is short for {name: it}."""

    name: str = Field(
        min_length=1,
        description="phantom (ships with the package); a folder or URL of our form; hf://OWNER/REPO[@REVISION]; cytosyn "
        "(= hf://Owkin-Bioptimus/CytoSyn).",
        examples=["phantom"],
    )
    revision: str | None = Field(
        default=None,
        description="Branch, tag or commit at the Hub; one that moves is locked by the first build. Default main.",
        examples=["v1"],
    )
    backend: Literal["official", "native"] | None = Field(
        default=None,
        description="official = the repository's own diffusers pipeline; native = our code on weights of our form. "
        "Default: what the repository holds.",
        examples=["native"],
    )
    trust_remote_code: bool = Field(
        default=False,
        description="true = the repository's own Python code may run here, at the commit that revision names (40 hex digits).",
        examples=[True],
    )
    encoder: str | None = Field(
        default=None,
        description="Encoder apart from the model: h0-mini, hf://OWNER/REPO[@REVISION], or a folder with model.safetensors and "
        "config.json. Default: the model's own, or h0-mini where its embeddings are named so.",
        examples=["h0-mini"],
    )
    pipeline: Pipeline | None = Field(
        default=None,
        description="How the repository's pipeline is called; only with backend: official. Default: CytoSyn's.",
        examples=[{"embeds": "h0_mini_embeds"}],
    )

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, data: Any) -> Any:
        if data == "":
            raise ValueError("is empty; for example model: phantom")
        if data is None or isinstance(data, bool | int | float | list):
            shown = "null (nothing)" if data is None else json.dumps(data, default=str)[:60]
            raise ValueError(f"{shown} is no text; for example model: phantom")
        return {"name": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _together(self) -> Model:
        found = self._name_problems()
        if not is_hub(self.name):
            for key in ("revision", "trust_remote_code", "pipeline"):
                if getattr(self, key):
                    found.append(
                        (key, "goes with a repository of the Hub only (hf://OWNER/REPO, cytosyn); leave it out")
                    )
            if self.backend == "official":
                found.append(("backend", "official goes with a repository of the Hub only (hf://OWNER/REPO, cytosyn)"))
        if self.pipeline is not None and self.backend == "native":
            found.append(("pipeline", "goes with backend: official; leave it out"))
        if found:
            raise Problems(found)
        return self

    def _name_problems(self) -> list[tuple[str, str]]:
        found = []
        for key, name in (("name", self.name), ("encoder", self.encoder)):
            if name is None:
                continue
            if is_hub(name):
                try:
                    hub_name(name, self.revision if key == "name" else None)
                except ValueError as error:
                    found.append((key, str(error)))
            elif problem := short_problem(name) or place_problem(name):
                found.append((key, problem))
        return found

    @property
    def hub(self) -> HubName | None:
        """The Hub repository that the name means, with the revision asked for; None for anything else."""
        return hub_name(self.name, self.revision) if is_hub(self.name) else None

    @property
    def encoder_hub(self) -> HubName | None:
        """As `hub`, of the encoder that is named apart."""
        return hub_name(self.encoder) if self.encoder is not None and is_hub(self.encoder) else None

    @property
    def source(self) -> str:
        """hf://OWNER/REPO@REVISION as asked for, which may be published; '' for what lies on this machine or behind a URL."""
        return f"hf://{self.hub.repo}@{self.hub.revision}" if self.hub else ""

    def pinned(self, commit: str | None, encoder: str | None) -> Model:
        """The same at one commit of the Hub, beside the encoder `encoder`: what workers open, wherever main moves meanwhile."""
        changed: dict[str, Any] = {"encoder": encoder}
        if self.hub is not None and commit is not None and is_commit(commit):
            changed.update(name=f"hf://{self.hub.repo}", revision=commit)
        return self.model_copy(update=changed)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        full = handler.resolve_ref_schema(handler(core))
        short = {"type": "string", "minLength": 1, "description": full["properties"]["name"]["description"]}
        return {
            "anyOf": [short, full],
            "description": full.pop("description", ""),
            "title": full.pop("title", "Model"),
        }


def model_named(name: str) -> Model:
    """The model that a bare name means, as at the command line. InputError where no model could have that name."""
    try:
        return Model.model_validate(name)
    except ValidationError as error:
        words = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InputError(f"model: '{shown(name)}': {words.removeprefix('name: ')}") from None
