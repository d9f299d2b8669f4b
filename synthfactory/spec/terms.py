"""The terms of a spec: which licences are accepted, and with whom the set may be shared."""

from __future__ import annotations

import re
from datetime import date
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from synthfactory.spec.sampler import FrozenModel
from synthfactory.spec.source import Problems
from synthfactory.spec.text import shown


def _plain(name: str) -> str:
    """CC BY-NC-ND 4.0 and cc-by-nc-nd-4.0 are one licence."""
    return re.sub(r"[^a-z0-9./]", "", name.lower())


class Permission(FrozenModel):
    """A permission that somebody gave in writing; the document itself stays with you."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    given_by: str = Field(
        alias="from", min_length=1, max_length=200, description="Who gave it.", examples=["Owkin, data office"]
    )
    date: str = Field(
        description="Its date, YYYY-MM-DD.",
        examples=["2026-11-23"],
        json_schema_extra={"pattern": r"^\d{4}-\d{2}-\d{2}$", "format": "date"},
    )
    document_sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="sha256 of the document, 64 hex digits (sha256sum FILE).",
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    )

    @field_validator("date")
    @classmethod
    def _day(cls, value: str) -> str:
        try:
            if date.fromisoformat(value).isoformat() == value:  # Python 3.11 reads other forms as well
                return value
        except ValueError:
            pass
        raise ValueError(f"'{shown(value)}' is no date; write YYYY-MM-DD, for example date: 2026-11-23")


class Terms(FrozenModel):
    """Accepted licences, and sharing. What is made with a model, or from embeddings of an encoder, follows the terms of both."""

    accept: list[str] = Field(
        default=[],
        description="Licences that you have read and accepted, by name (or OWNER/REPO); needed for each gated model or encoder.",
        examples=[["CC-BY-NC-ND-4.0"]],
    )
    sharing: Literal["local", "permitted"] = Field(
        default="local",
        description="local = as far as the licences themselves allow, else not at all (default); permitted = a permission allows it.",
        examples=["local"],
    )
    permission: Permission | None = Field(
        default=None,
        description="The permission behind sharing: permitted; it is stated in lock and card.",
        examples=[{"from": "Owkin, data office", "date": "2026-11-23", "document_sha256": "9f86...0a08"}],
    )

    @field_validator("accept")
    @classmethod
    def _texts(cls, value: list[str]) -> list[str]:
        for name in value:
            if not name.strip() or len(name) > 200 or not name.isprintable():
                raise ValueError("holds an empty or unprintable name; write for example [CC-BY-NC-ND-4.0]")
        return value

    @model_validator(mode="after")
    def _together(self) -> Terms:
        if self.sharing == "permitted" and self.permission is None:
            raise Problems(
                [("permission", "is missing; sharing: permitted needs from, date and document_sha256 of a permission")]
            )
        if self.sharing == "local" and self.permission is not None:
            raise Problems([("permission", "goes with sharing: permitted; leave it out, or say so")])
        return self

    def accepts(self, licence: str, repo: str) -> bool:
        """Whether a licence, by its name or by the repository that carries it, is accepted."""
        return {_plain(licence), _plain(repo)} & {_plain(name) for name in self.accept} != set()

    def settled(self, model: dict[str, Any], encoder: dict[str, Any]) -> dict[str, Any]:
        """What lock, tiles and card state: accepted licences, the permission, and `sharing`: permitted, allowed (by the licences
        of model and encoder themselves) or local.
        """
        own = all(
            licence.get("sharing") == "allowed" for licence in (model, encoder or model)
        )  # {}: the encoder is the model's
        return {
            "accepted": sorted(self.accept),
            "sharing": "permitted" if self.sharing == "permitted" else "allowed" if own else "local",
            "permission": None if self.permission is None else self.permission.model_dump(by_alias=True),
        }
