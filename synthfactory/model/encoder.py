"""An encoder apart from any model: what it says of itself before its weights are read (no torch; weights.load_encoder loads it).

Three forms: the encoder part of one of our model folders; a folder with model.safetensors and timm's config.json, as H0-mini is
published; the same as a repository of the Hub (hf://bioptimus/H0-mini@REVISION, short: h0-mini).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from synthfactory.model.files import sha256_of
from synthfactory.model.folder import BUILT_IN, ModelFolder, open_model
from synthfactory.model.hub import Pin, fetched, pin
from synthfactory.model.licence import NOT_STATED, licence_of
from synthfactory.spec.errors import InputError
from synthfactory.spec.hubname import hub_name, is_hub, repo_of
from synthfactory.spec.json_text import read_json

WEIGHTS, CONFIG = "model.safetensors", "config.json"
MAX_CONFIG_BYTES = 1 << 20
TOKEN = "class"
H0_MINI = "bioptimus/H0-mini"
# Input statistics that an encoder of this name must state; others (ImageNet's, say) would shift every embedding unseen.
EXPECTED: dict[str, dict[str, tuple[float, float, float]]] = {
    H0_MINI: {"mean": (0.707223, 0.578729, 0.703617), "std": (0.211883, 0.230117, 0.177517)}
}
TOLERANCE = 1e-5
# The architecture in H0-mini's config.json. DINOv2's own ViT-B/14 is called so too, but has no packed SwiGLU and does not load here.
_H0_MINI_FORM = re.compile(r"vit_base_patch14(_reg4)?_dinov2(\..*)?")


@dataclass(frozen=True)
class EncoderFolder:
    """What an encoder says of itself. `sha256` is that of its weights; `size` holds the ViT's fields where config.json states them.

    `mean` and `std` are those of RGB in [0, 1]; `width` is that of the class token.
    """

    id: str
    revision: str
    weights: Path
    sha256: str
    width: int
    image_size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    token: str = TOKEN
    source: str = ""  # hf://OWNER/REPO@REVISION as asked for; '' where it lies on this machine
    gated: bool = False
    licence: dict[str, Any] = field(default_factory=dict)
    size: dict[str, Any] | None = None  # None: of timm's form, read off the weights themselves
    fetch: Callable[[], None] = field(default=lambda: None, repr=False)

    def facts(self) -> dict[str, str]:
        """What banks and locks state: id, sha256 of the weights, token."""
        return {"id": self.id, "sha256": self.sha256, "token": self.token}

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What happens to pixels in front of it, as a bank may state it."""
        return {"mean": list(self.mean), "std": list(self.std), "image_size_px": self.image_size_px}

    def check(self) -> None:
        """Fetches the weights where they are not here, and compares them with `sha256`; InputError where they differ."""
        self.fetch()
        if not self.weights.is_file():
            raise InputError(f"{self.weights}: is missing; fetch or export the encoder {self.id} again")
        if sha256_of(self.weights) != self.sha256:
            raise InputError(f"{self.weights}: differs from the sha256 that was read before; it is damaged or swapped")

    def check_preprocessing(self, stated: Mapping[str, Any], where: str) -> None:
        """InputError (naming `where`) where embeddings were made with other input statistics or another input size than ours."""
        for key in ("mean", "std"):
            given = stated.get(key)
            if given is not None and not _same(given, getattr(self, key)):
                raise InputError(
                    f"{where}: was embedded with {key} {given}, but {self.id} takes {list(getattr(self, key))}; embed the tiles again"
                )
        size = stated.get("image_size_px")
        if size is not None and size != self.image_size_px:
            raise InputError(
                f"{where}: was embedded at {size} px, but {self.id} takes {self.image_size_px} px; embed the tiles again"
            )


def _same(given: Any, expected: tuple[float, ...]) -> bool:
    return (
        isinstance(given, list | tuple)
        and len(given) == len(expected)
        and all(
            isinstance(one, float | int) and abs(one - other) <= TOLERANCE
            for one, other in zip(given, expected, strict=True)
        )
    )


def open_encoder(name: str, encoder_id: str | None = None, revision: str | None = None) -> EncoderFolder:
    """The encoder that `name` means: h0-mini, hf://OWNER/REPO[@REV], a folder of either form, a built-in model, or a model's URL.

    `encoder_id` is the name under which banks know a folder of timm's form (default: H0-mini where it is of that form, else the
    folder's own name). InputError where there is none, where config.json is not of a known form, and where its input statistics are
    not those expected of that name.
    """
    encoder_id = encoder_id and repo_of(encoder_id)
    if is_hub(name):
        try:
            asked = hub_name(name, revision)
            return _from_hub(pin(asked), encoder_id, f"hf://{asked.repo}@{asked.revision}")
        except ValueError as error:
            raise error if isinstance(error, InputError) else InputError(f"encoder: {error}") from None
    folder = Path(os.path.expanduser(name))
    if name not in BUILT_IN and (folder / WEIGHTS).is_file():
        found = _config(folder / CONFIG, name)
        return _timm(
            encoder_id or _recognised(folder, found),
            "",
            folder / WEIGHTS,
            sha256_of(folder / WEIGHTS),
            found,
            folder / CONFIG,
        )
    try:
        return encoder_of(open_model(name))
    except InputError as error:
        if name not in BUILT_IN and folder.is_dir() and not (folder / CONFIG).exists():
            raise InputError(
                f"encoder: {name}: holds neither {WEIGHTS} (H0-mini as published) nor {CONFIG} of a model folder"
            ) from None
        raise InputError(f"encoder: {str(error).removeprefix('model: ').removeprefix('encoder: ')}") from None


def _recognised(folder: Path, config: Mapping[str, Any]) -> str:
    """The name of a copy of H0-mini's repository, whatever its folder is called; of any other encoder, the folder's own name."""
    own = repo_of(folder.resolve().name)
    return H0_MINI if _H0_MINI_FORM.fullmatch(str(config.get("architecture"))) else own


def encoder_of(folder: ModelFolder) -> EncoderFolder:
    """The encoder part of one of our model folders; InputError where it has none."""
    if not folder.has_encoder:
        raise InputError(
            f"model: {folder.id}: holds no encoder, only the name of one ({folder.encoder['id']}); name that encoder beside the model"
        )
    size = {key: value for key, value in folder.config["encoder"].items() if key != "id"}
    expected = EXPECTED[H0_MINI]  # the defaults of our ViT
    for key in expected:
        _check_published(
            repo_of(folder.encoder["id"]), key, size.get(key, expected[key]), f"{folder.id}: config.json: encoder"
        )
    return EncoderFolder(
        id=folder.encoder["id"],
        revision=folder.revision,
        weights=folder.path / "encoder.safetensors",
        sha256=folder.encoder["sha256"],
        width=int(size.get("width", 768)),
        image_size_px=int(size.get("image_size", folder.tile_size_px)),
        mean=tuple(size.get("mean", expected["mean"])),
        std=tuple(size.get("std", expected["std"])),
        licence=folder.licence,
        size=size,
        fetch=lambda: folder.check_files(("encoder.safetensors",)),
    )


def _check_published(name: str, key: str, given: Any, where: str) -> None:
    """InputError where statistics are not those that an encoder of that name takes; others may take any."""
    expected = EXPECTED.get(name, {}).get(key)
    if expected is not None and not _same(given, expected):
        raise InputError(
            f"encoder: {where}.{key} is {given}, but {name} takes {list(expected)}; this is not the published file "
            "(an encoder of its own needs a name of its own: embed --encoder-id)"
        )


def _from_hub(pinned: Pin, encoder_id: str | None, source: str) -> EncoderFolder:
    for needed in (CONFIG, WEIGHTS):
        if needed not in pinned.files:
            raise InputError(
                f"encoder: {pinned.repo}: has no {needed} at {pinned.commit}; it is no encoder of H0-mini's form"
            )
    if pinned.files[WEIGHTS].kind != "sha256":
        raise InputError(f"encoder: {pinned.repo}: its {WEIGHTS} has no sha256 at the Hub, so it cannot be pinned")
    root = fetched(pinned, [CONFIG])
    found = _config(root / CONFIG, pinned.repo)
    made = _timm(
        encoder_id or pinned.repo, pinned.commit, root / WEIGHTS, pinned.files[WEIGHTS].digest, found, root / CONFIG
    )
    licence = licence_of(pinned.repo, pinned.licence)

    def fetch() -> None:
        fetched(pinned, [WEIGHTS])

    return replace(made, source=source, gated=pinned.gated, licence=licence, fetch=fetch)


def _config(path: Path, name: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as handle:
            found = read_json(handle.read(MAX_CONFIG_BYTES))
    except FileNotFoundError:
        raise InputError(f"encoder: {name}: has no {CONFIG} beside {WEIGHTS}; copy the whole repository") from None
    except (OSError, ValueError):
        raise InputError(f"encoder: {path}: is no readable JSON; fetch it again") from None
    if not isinstance(found, dict):
        raise InputError(f"encoder: {path}: is no JSON object; fetch it again")
    return found


def _timm(
    name: str, revision: str, weights: Path, sha256: str, config: Mapping[str, Any], where: Path
) -> EncoderFolder:
    """From timm's config.json: num_features, and pretrained_cfg with input_size, mean and std."""
    pretrained = config.get("pretrained_cfg")
    if not isinstance(pretrained, dict):
        raise InputError(f"encoder: {where}: has no pretrained_cfg; a config.json of timm's form is needed")
    size, width = pretrained.get("input_size"), config.get("num_features")
    if not (isinstance(size, list) and len(size) == 3 and all(type(side) is int for side in size)):
        raise InputError(f"encoder: {where}: pretrained_cfg.input_size is {size}; [3, 224, 224] would be right")
    if size[0] != 3 or size[1] != size[2]:
        raise InputError(
            f"encoder: {where}: pretrained_cfg.input_size is {size}; three channels of a square are needed"
        )
    if type(width) is not int or width < 1:
        raise InputError(f"encoder: {where}: num_features is {width}; the width of the class token is needed")
    statistics = {}
    for key in ("mean", "std"):
        given = pretrained.get(key)
        if not (isinstance(given, list) and len(given) == 3 and all(type(one) in (float, int) for one in given)):
            raise InputError(f"encoder: {where}: pretrained_cfg.{key} is {given}; three numbers are needed")
        _check_published(name, key, given, f"{where}: pretrained_cfg")
        statistics[key] = tuple(map(float, given))
    return EncoderFolder(
        id=name,
        revision=revision,
        weights=weights,
        sha256=sha256,
        width=width,
        image_size_px=size[1],
        mean=statistics["mean"],
        std=statistics["std"],
        licence={"name": NOT_STATED, "sharing": "local"} if name not in EXPECTED else licence_of(name, None),
    )
