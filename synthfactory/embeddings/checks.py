"""Checks that every source of embeddings shares: encoder, resolution, and cohorts that a published model was trained on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from synthfactory.embeddings.bank import MPP, MPP_TOLERANCE
from synthfactory.spec.errors import InputError
from synthfactory.spec.text import shown

_TCGA = re.compile(r"(?<![A-Za-z0-9])TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?![A-Za-z0-9])", re.IGNORECASE)
FIRST_768 = "first_768"
TOKENS = {"cls": "class", "cls_token": "class", "class_token": "class"}  # other tools' words for the same thing

Encoder = Mapping[str, str]


def agreed_encoder(
    named: Encoder | None, declared: Encoder | None, model: Encoder | None, where: str
) -> dict[str, str]:
    """Who made the embeddings: {id, sha256, token}, as the file (`named`) or else the spec (`declared`) says.

    InputError where neither says it, both disagree, or it is not the `model`'s encoder and token (None: any encoder will do). Where
    only an id is declared, the sha256 is the model's own, provided that the ids agree; a model that only names its encoder is
    compared by id.
    """
    if named is None and declared is None:
        raise InputError(
            f"{where}: does not name its encoder; write for example "
            f"encoder: {{id: {shown(model['id']) if model else 'NAME'}, token: class}} under embeddings"
        )
    said = {**(declared or {}), **(named or {})}
    for key in ("id", "sha256", "token"):
        if (
            named
            and declared
            and named.get(key)
            and declared.get(key)
            and _plain(key, named[key]) != _plain(key, declared[key])
        ):
            raise InputError(
                f"{where}: says that its encoder's {key} is '{shown(named[key])}', but embeddings.encoder.{key} is "
                f"'{shown(declared[key])}'; leave embeddings.encoder out where the file names its encoder"
            )
    token = _plain("token", said.get("token") or "class")
    if model is None:
        return {"id": said["id"], "sha256": said.get("sha256") or "", "token": token}
    sha256 = said.get("sha256") or (model["sha256"] if said["id"] == model["id"] else "")
    if sha256 != model["sha256"] if model["sha256"] else said["id"] != model["id"]:
        by = f"{shown(said['id'])} ({shown(sha256[:12])})" if sha256 else shown(said["id"])
        wanted = f"{model['id']} ({model['sha256'][:12]})" if model["sha256"] else model["id"]
        raise InputError(
            f"{where}: was made with encoder {by}, but the model is conditioned on {wanted}; embed the tiles again with the model's encoder"
        )
    wanted = model.get("token", "class")
    if token != wanted and not (token == FIRST_768 and wanted == "class"):
        raise InputError(
            f"{where}: holds the encoder's token '{shown(token)}', but the model is conditioned on token "
            f"'{shown(wanted)}'; embed the tiles again with that token"
        )
    return {"id": said["id"], "sha256": sha256, "token": token}


def _plain(key: str, value: str) -> str:
    return TOKENS.get(value, value) if key == "token" else value


def check_width(has: int, width: int, token: str, what: str, where: str) -> None:
    """InputError where the file's vectors (`what`: features, embeddings) are not of the model's width, or 1536 for first_768 of it."""
    if token == FIRST_768:
        if (has, width) != (1536, 768):
            raise InputError(
                f"{where}: {what} have width {has}, the model needs {width}; token: first_768 takes 768 of 1536"
            )
    elif has != width:
        hint = "; if its first 768 are the class token, write token: first_768" if (has, width) == (1536, 768) else ""
        raise InputError(f"{where}: {what} have width {has}; the model needs width {width}{hint}")


def check_mpp(mpp: float, where: str, tile: str = "") -> None:
    """InputError where a resolution (um per pixel) is more than 5 % off 0.5. `tile` says whose it is."""
    if not abs(mpp - MPP) <= MPP * MPP_TOLERANCE:
        raise InputError(
            f"{where}: {tile or 'its tiles'} {'has' if tile else 'have'} mpp {mpp:g}; the model draws at {MPP} +- 5 %, "
            "so embed tiles of that resolution"
        )


def check_mpp_known(mpp: float | None, declared: float | None, where: str, hint: str = "") -> None:
    """InputError where neither the file nor the spec states a resolution, or it is wrong. `hint` is what the file says instead."""
    found = mpp if mpp is not None else declared
    if found is None:
        raise InputError(
            f"{where}: does not say how many um a pixel has{hint}; if its tiles are at {MPP} um/px, write mpp: {MPP} under embeddings"
        )
    check_mpp(found, where)


def training_cohort(ids: Iterable[str | None]) -> str:
    """'some' where a patient or slide id is a TCGA barcode (CytoSyn was trained on TCGA), 'none', or 'unknown' without any id."""
    known = False
    for text in ids:
        if text:
            known = True
            if _TCGA.search(text):
                return "some"
    return "none" if known else "unknown"
