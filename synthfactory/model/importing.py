"""`synthfactory model import`: writes a converted model as a folder of our form, whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from synthfactory.model.config_check import FORMAT, PARTS, config_problem
from synthfactory.model.convert import Converted, Options, convert
from synthfactory.model.files import sha256_of
from synthfactory.model.folder import CONFIG
from synthfactory.model.licence import NOT_STATED
from synthfactory.model.sources import State, read_source
from synthfactory.model.tensors import write_tensors
from synthfactory.spec.errors import InputError

OPTIONS = {"id": "id", "revision": "revision", "resolution_mpp": "mpp", "encoder.id": "encoder-id", "licence.name": "licence"}  # fmt: skip


def import_model(
    name: str,
    target: str,
    options: Options,
    *,
    weights: str = "ema",
    model_id: str | None = None,
    revision: str | None = None,
    encoder_id: str = "bioptimus/H0-mini",
    resolution_mpp: float = 0.5,
    licence: str | None = None,
) -> Iterator[str]:
    """Converts `name` into the folder `target`; yields the report, every tensor on a line. InputError where anything does not fit:
    then nothing was written.
    """
    out = Path(os.path.expanduser(target))
    if os.path.lexists(out):
        raise InputError(f"{target}: is there already; name a folder that is not")
    source = read_source(name, weights=weights)
    stated = source.licence["name"]
    if licence is not None and stated not in (NOT_STATED, licence):
        raise InputError(f"--licence {licence}: {name} is under {stated}, which no option changes; leave --licence out")
    try:
        made = convert(source, options)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    terms = dict(source.licence) if licence is None else {**source.licence, "name": licence}
    if source.gated:
        terms["gated"] = True
    config: dict[str, Any] = {
        "format": FORMAT,
        "id": model_id or source.origin.get("repository") or out.name,
        "revision": revision or source.origin.get("commit") or "1",
        "tile_size_px": made.sit_config.latent_size * made.vae_config.factor,
        "resolution_mpp": resolution_mpp,
        "sit": made.sit_config.model_dump(),
        "vae": made.vae_config.model_dump(),
        "encoder": {"id": encoder_id},
        "licence": terms,
        "imported": {**source.origin, "weights": weights} if Path(name).suffix else source.origin,
    }
    _check_config(config)
    _write(out, made, config)
    yield from _report(made, config, out)


def _check_config(config: dict[str, Any]) -> None:
    """What opening the folder would refuse is refused before it is written; InputError names the option that said it."""
    files = {f"{part}.safetensors": "0" * 64 for part in PARTS[:2]}
    problem = config_problem(json.loads(json.dumps({**config, "files": files})))
    if problem:
        field = problem.partition("'")[2].partition("'")[0]
        said = f"--{OPTIONS[field]}: " if field in OPTIONS else ""
        raise InputError(f"{said}{problem}; nothing was written")


def _write(out: Path, made: Converted, config: dict[str, Any]) -> None:
    temporary = out.with_name(f".tmp-{secrets.token_hex(8)}")
    try:
        temporary.mkdir(parents=True)
        files = {}
        for part, state in (("sit", made.sit), ("vae", made.vae)):
            path = temporary / f"{part}.safetensors"
            write_tensors(dict(sorted(state.items())), path)
            files[path.name] = sha256_of(path)
        (temporary / CONFIG).write_text(json.dumps({**config, "files": files}, indent=1, sort_keys=True) + "\n")
        temporary.rename(out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error}); nothing was kept") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _report(made: Converted, config: dict[str, Any], out: Path) -> Iterator[str]:
    for row in made.rows:
        shape = " x ".join(map(str, row.shape)) or "scalar"
        yield f"{row.ours}  {shape}  {row.what}" + (
            f" (was {row.theirs})" if row.theirs not in ("", row.ours.removeprefix("kl.")) else ""
        )
    kinds = ("as it is", "renamed", "reshaped", "made")
    counts = [f"{sum(row.what.startswith(kind) for row in made.rows)} {kind}" for kind in kinds]
    yield f"{len(made.rows)} tensors: {', '.join(counts)}; none missing, none left over"
    yield f"SiT {_millions(made.sit)}, autoencoder {_millions(made.vae)}; encoder by name only: {config['encoder']['id']}"
    yield f"licence {config['licence']['name']}; keep the folder where the licence allows"
    yield f"{out}: tiles of {config['tile_size_px']} px; compare it with the original: synthfactory model parity"


def _millions(state: State) -> str:
    skipped = ("bn.",)
    return (
        f"{sum(value.numel() for name, value in state.items() if not name.startswith(skipped)) / 1e6:.1f}M parameters"
    )
