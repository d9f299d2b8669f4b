"""Checks that every source of embeddings shares: encoder, resolution, and cohorts that a published model was trained on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from synthfactory.embeddings.bank import MPP, MPP_TOLERANCE
from synthfactory.embeddings.rows import known
from synthfactory.spec.errors import InputError
from synthfactory.spec.hubname import repo_of
from synthfactory.spec.text import shown

_TCGA = re.compile(r"(?<![A-Za-z0-9])TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?![A-Za-z0-9])", re.IGNORECASE)
# under which files name their encoder: TRIDENT writes `encoder`, others the rest
ENCODER_NAMES = (
    "encoder", "patch_encoder", "encoder_name", "patch_encoder_name", "model_name", "feature_extractor", "extractor",
)  # fmt: skip
FIRST_768 = "first_768"
CLASS_AND_MEAN = "cls+mean"  # TRIDENT: 1536 values, the class token first
# other tools' words for the same thing
TOKENS = {"cls": "class", "cls_token": "class", "class_token": "class", "cls_mean": CLASS_AND_MEAN}

Encoder = Mapping[str, str]


def agreed_encoder(
    named: Encoder | None, declared: Encoder | None, model: Encoder | None, where: str
) -> dict[str, str]:
    """Who made the embeddings: {id, sha256, token}, as the file (`named`) or else the spec (`declared`) says, each as far as it does.

    InputError where neither says it, both disagree, or it is not the `model`'s encoder and token (None: any encoder will do). Ids are
    compared as repositories, however they are spelled. Where only an id is declared, the sha256 is the model's own, provided that the
    ids agree; a model that only names its encoder is compared by id.
    """
    said = {**(declared or {}), **{key: text for key, text in (named or {}).items() if text}}
    if not said.get("id"):
        raise InputError(
            f"{where}: does not name its encoder; write for example "
            f"encoder: {{id: {shown(model['id']) if model else 'NAME'}, token: class}} under embeddings"
        )
    for key in ("id", "sha256"):
        one, other = (named or {}).get(key), (declared or {}).get(key)
        if one and other and (repo_of(one) != repo_of(other) if key == "id" else one != other):
            raise InputError(
                f"{where}: says that its encoder's {key} is '{shown(one)}', but embeddings.encoder.{key} is "
                f"'{shown(other)}'; leave embeddings.encoder out where the file names its encoder"
            )
    token = _agreed_token((named or {}).get("token"), (declared or {}).get("token"), where)
    if model is None:
        return {"id": repo_of(said["id"]), "sha256": said.get("sha256") or "", "token": token}
    same = repo_of(said["id"]) == repo_of(model["id"])
    sha256 = said.get("sha256") or (model["sha256"] if same else "")
    if sha256 != model["sha256"] if model["sha256"] else not same:
        by = f"{shown(said['id'])} ({shown(sha256[:12])})" if sha256 else shown(said["id"])
        wanted = f"{model['id']} ({model['sha256'][:12]})" if model["sha256"] else model["id"]
        raise InputError(
            f"{where}: was made with encoder {by}, but the model is conditioned on {wanted}; embed the tiles again with the model's encoder"
        )
    wanted = model.get("token", "class")
    if token != wanted and not (token == FIRST_768 and wanted == "class"):
        right = f"write token: {FIRST_768} where 768 of 1536 values are it, else " if token == CLASS_AND_MEAN else ""
        raise InputError(
            f"{where}: holds the encoder's token '{shown(token)}', but the model is conditioned on token "
            f"'{shown(wanted)}'; {right}embed the tiles again with that token"
        )
    return {"id": model["id"] if same else said["id"], "sha256": sha256, "token": token}


def stated_encoder(texts: Mapping[str, Sequence[str]], where: str) -> dict[str, str]:
    """What a file's own words (name -> texts under it, from wherever in the file) say of its encoder, as `named` above.

    {} where they say nothing. InputError where they name two.
    """
    found: dict[str, str] = {}
    for key, names in (("id", ENCODER_NAMES), ("sha256", ("encoder_sha256",)), ("token", ("token",))):
        first = ""
        for name in names:
            for text in filter(None, map(known, texts.get(name, ()))):
                if key in found and repo_of(found[key]) != repo_of(text):
                    raise InputError(
                        f"{where}: says {first}: '{shown(found[key])}' and {name}: '{shown(text)}'; keep the one that is true"
                    )
                if key not in found:
                    found[key], first = text, name
    return found


def _agreed_token(named: str | None, asked: str | None, where: str) -> str:
    """The token that vectors hold once they are read. A file's word stands, unless the spec asks for the first half of class and mean."""
    found = TOKENS.get(named, named) if named else None
    if asked != FIRST_768:
        return found or TOKENS.get(asked or "", asked) or "class"
    if found not in (None, FIRST_768, CLASS_AND_MEAN):
        raise InputError(
            f"{where}: says that its values are the encoder's token '{shown(str(named))}', but embeddings.token is {FIRST_768}; "
            f"that takes the first half of class token and mean ('{CLASS_AND_MEAN}'), so leave it out or correct the file"
        )
    return FIRST_768


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
            f"{where}: does not say how many um a pixel has{hint}; if its tiles are at {MPP} um/px, write that into a column or field mpp "
            f"there, or say mpp: {MPP} under embeddings (--mpp {MPP} of `embed` and `pack`)"
        )
    check_mpp(found, where)


def check_fraction(value: float, name: str, where: str) -> None:
    """InputError where a share is neither from 0 to 1 nor NaN (unknown): per cent, say, would pass every screen."""
    if value < 0.0 or value > 1.0:
        raise InputError(f"{where}: {name} is {value:g}; a share from 0 to 1 is needed (40 % is 0.4)")


_WHOLE_TCGA = re.compile(_TCGA.pattern + r"[0-9A-Z-]*", re.IGNORECASE)  # of the slide, not of the patient alone


def training_cohort(*columns: Sequence[str | None]) -> str:
    """'some' where a patient or slide id is a TCGA barcode (CytoSyn was trained on TCGA), 'none' where every row (of these columns) states
    an id and none of them is, else 'unknown'.
    """
    rows, stated = 0, 0
    for ids in zip(*columns, strict=True):
        if member_of_cohort(*ids):
            return "some"
        rows, stated = rows + 1, stated + any(ids)
    return "none" if rows and stated == rows else "unknown"


def slide_with_barcode(slide: str | None, patient: str | None, file: str | None) -> str | None:
    """The slide's name; with the TCGA barcode in the name of the tile's file, where neither slide nor patient says it: else nobody would
    know whose the tile is, once it lies in a bank or a tar under another name.
    """
    code = None if file is None else _WHOLE_TCGA.search(file)
    if code is None or member_of_cohort(slide, patient):
        return slide
    return f"{slide} {code[0].upper()}" if slide else code[0].upper()


def member_of_cohort(*ids: str | None) -> str | None:
    """The patient's TCGA barcode where one of these ids of a row holds one, else None."""
    found = next((match for text in ids if text and (match := _TCGA.search(text))), None)
    return found[0].upper() if found else None


def members_of_cohort(*columns: Sequence[str | None]) -> list[str | None]:
    """`member_of_cohort` of each row of these columns: patients, slides, names of files, as far as a source has them."""
    return [member_of_cohort(*ids) for ids in zip(*columns, strict=True)]
