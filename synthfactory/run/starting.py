"""A source of embeddings -> the text of a first spec, complete and commented: every label a class, nothing that a plan would refuse.

What the source itself says (labels, patients, encoder) is read off it; what it does not say is asked for, and never guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from synthfactory.embeddings.counts import read_counts
from synthfactory.embeddings.packed import is_packed
from synthfactory.embeddings.parquet import encoder_named
from synthfactory.embeddings.places import expand, is_pattern, listed, local
from synthfactory.embeddings.tile_shards import scan_shards
from synthfactory.embeddings.tiles import TileFolder, scan_tiles
from synthfactory.run.prepare import prepare
from synthfactory.shards.store import open_store
from synthfactory.spec.errors import InputError
from synthfactory.spec.hubname import repo_of
from synthfactory.spec.load import parse_spec
from synthfactory.spec.model import model_named
from synthfactory.spec.names import new_name_problem, slug
from synthfactory.spec.places import is_url
from synthfactory.spec.source import Source
from synthfactory.spec.text import counted, shown

FEATURES, ARRAYS = (".h5", ".hdf5"), (".npy", ".npz", ".safetensors")
PIXELS = ("tiles", "shards")  # sources that a model's encoder embeds
INVENTED = "phantom-"
SHARDS, MIN_SHARD, MAX_SHARD = 16, 16, 1000  # a small set should keep several workers busy as well
SAMPLER = "sampler: {method: ode, solver: heun, steps: 10, guidance: {scale: 1.5}}"
PIPELINE = (
    "sampler: {method: pipeline, steps: 250, guidance: {scale: 2.5, low: 0.0, high: 0.75}} # CytoSyn's own solver"
)


@dataclass(frozen=True)
class Asked:
    """What the command line says beside the source; None where it does not."""

    labels: str | None = None
    metadata: str | None = None
    model: str | None = None
    encoder: str | None = None
    label_level: str | None = None
    token: str | None = None
    mpp: float | None = None
    tiles_per_class: int = 100


@dataclass(frozen=True)
class Label:
    """A label of the source: its rows (tiles, or slides where `unit` says so) and their known patients, None where none is named."""

    rows: int
    patients: int | None
    unit: str = "real tile"

    def __str__(self) -> str:
        of = "patients unknown" if self.patients is None else f"of {counted(self.patients, 'patient')}"
        return f"{counted(self.rows, self.unit)} {of}"


@dataclass(frozen=True)
class Draft:
    """A spec's text, its classes, and whether model and source were opened and fit one another (else `plan` will say)."""

    text: str
    classes: Mapping[str, Label]
    checked: bool


def draft(source: str, target: str, asked: Asked) -> Draft:
    """The spec to be written to `target`. InputError for what cannot be a source, for what must be said beside it and is not, and, where
    the model is on this machine, for all that a plan would refuse.
    """
    kind, asked = _kind(source, asked)
    labels = _labels(kind, source, asked)
    classes = {name: label for name, label in labels.items() if new_name_problem(name) is None}
    keys = Counter(map(slug, classes))
    classes = {name: label for name, label in classes.items() if keys[slug(name)] == 1}
    if not classes:
        raise InputError(f"{source}: holds no label that can be a class; {new_name_problem(next(iter(labels)))}")
    model = asked.model or _model(kind, source, classes, asked)
    text = _text(kind, source, target, model, classes, sorted(set(labels) - set(classes)), asked)
    spec = parse_spec(text, target).with_source(Source())  # a file that does not stand yet has no lines
    here = model_named(model).hub is None
    if here:
        prepare(spec)
    return Draft(text, classes, here)


def _kind(source: str, asked: Asked) -> tuple[str, Asked]:
    """(the key under `embeddings`, what is asked with what lies beside the source). InputError for an option missing or not read."""
    name = source.lower()
    if name.endswith(".parquet"):
        kind = "bank"
    elif name.endswith(".csv"):
        raise InputError(
            f"{source}: a CSV is no source of a spec; embed its tiles once: synthfactory embed {source} bank.parquet"
        )
    elif name.endswith(ARRAYS):
        kind = "arrays"
    elif name.endswith(FEATURES) or _holds_features(source):
        kind = "hdf5"
    elif name.endswith(".tar") or is_pattern(source) or is_packed(source):
        kind = "shards"
    else:
        kind = "tiles"
        if not is_url(source) and not local(source).is_dir():
            raise InputError(
                f"{source}: no such folder; name class folders of tiles, a bank (.parquet), tars, features (.h5) or an array (.npy)"
            )
    if kind == "tiles" and asked.metadata is None and open_store(source, reading=True).size("tiles.csv") is not None:
        asked = replace(asked, metadata=f"{source.rstrip('/')}/tiles.csv")
    if kind in ("hdf5", "arrays") and asked.labels is None:
        line = "slide (slide_id, label, patient_id)" if kind == "hdf5" else "row, in order (label, patient_id)"
        raise InputError(f"--labels: is missing; name the CSV that has a line for each {line}")
    if kind == "tiles" and asked.label_level is None:
        raise InputError(
            "--label-level: is missing; say what the class folders' labels were given to: slide, region or tile"
        )
    unread = {
        "labels": kind not in ("hdf5", "arrays"),
        "metadata": kind != "tiles",
        "encoder": kind in PIXELS,
        "token": kind not in ("hdf5", "arrays"),
        "label_level": kind == "bank",
    }
    for key, off in unread.items():
        if off and getattr(asked, key) is not None:
            raise InputError(f"--{key.replace('_', '-')}: is not read beside {source}; leave it out")
    return kind, asked


def _holds_features(source: str) -> bool:
    if is_pattern(source):
        return False
    return bool(listed(source if is_url(source) else str(local(source)), FEATURES))


def _labels(kind: str, source: str, asked: Asked) -> dict[str, Label]:
    """Label -> what stands behind it, in order."""
    if kind == "tiles":
        return _of_tiles(scan_tiles(source, asked.metadata, asked.label_level or "", None, asked.mpp or 0.5))
    if kind == "shards":
        return _of_tiles(scan_shards(source, asked.label_level or "slide", None, asked.mpp or 0.5))
    files = expand(source, "a parquet bank of embeddings") if kind == "bank" else [asked.labels or ""]
    rows, patients = Counter[str](), dict[str, set[str]]()
    for file in files:
        if kind == "bank":
            encoder_named(file)  # so that what is no bank is said to be none
        for name, found in read_counts(file, None).classes.items():
            rows[name] += found.real
            patients.setdefault(name, set()).update(
                set(found.patients) - {""} if isinstance(found.patients, Mapping) else ()
            )
    unit = "slide" if kind == "hdf5" else "real tile"
    return {name: Label(rows[name], len(patients[name]) or None, unit) for name in sorted(rows)}


def _of_tiles(tiles: TileFolder) -> dict[str, Label]:
    rows, patients = Counter(tiles.labels), dict[str, set[str]]()
    for label, patient in zip(tiles.labels, tiles.patient_ids, strict=True):
        patients.setdefault(label, set()).update(() if patient is None else (patient,))
    return {name: Label(rows[name], len(patients[name]) or None) for name in sorted(rows)}


def _model(kind: str, source: str, classes: Mapping[str, Label], asked: Asked) -> str:
    """The model that goes with the source, where that is not in doubt."""
    encoder = asked.encoder
    if kind == "bank":
        encoder = encoder or encoder_named(expand(source, "a parquet bank of embeddings")[0])
    if encoder is not None and repo_of(encoder) == repo_of("h0-mini"):
        return "cytosyn"
    if encoder == "phantom-encoder" or all(name.startswith(INVENTED) for name in classes):
        return "phantom"
    of = f" ({shown(encoder)})" if encoder else ""
    raise InputError(
        f"--model: is missing, and the source{of} does not tell; name the folder of an export (train), cytosyn (for embeddings of "
        "h0-mini: --encoder h0-mini), or phantom (which draws invented tissue, whatever the labels say)"
    )


def _scalar(value: object) -> str:
    return (
        yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000).removesuffix("\n...\n").strip()
    )


def _text(
    kind: str, source: str, target: str, model: str, classes: Mapping[str, Label], others: list[str], asked: Asked
) -> str:
    name = slug(Path(target).name.removesuffix(".yaml").removesuffix(".yml"))[:48].strip("-") or "set"
    hub = model_named(model).hub is not None
    size = min(MAX_SHARD, max(MIN_SHARD, -(-asked.tiles_per_class * len(classes) // SHARDS)))
    lines = [
        f"# Drafted by `synthfactory init`. `synthfactory plan {shown(target)}` says what a build would make, and on whom it rests;",
        "# `synthfactory schema` lists every field with its meaning.",
        f"name: {name} # prefix of every tile's key",
    ]
    if model == "cytosyn":
        lines += [
            "model:",
            "  name: cytosyn",
            "  revision: main # plan says which commit that is: read its code there, and write the commit here",
            "  trust_remote_code: false # true lets the repository's own Python run here, at that commit and no other",
            *(["  encoder: h0-mini # embeds the tiles"] if kind in PIXELS else []),
        ]
    else:
        lines.append(f"model: {_scalar(model)}" + (" # draws invented tissue" if model == "phantom" else ""))
    lines += ["", "classes: # the source's labels, and how many tiles to draw of each"]
    lines += [f"  {_scalar(label)}: {asked.tiles_per_class} # {stands}" for label, stands in classes.items()]
    lines += [f"  # not a class, as it is written: {shown(label)}" for label in others]
    said = {
        kind: source,
        "metadata": asked.metadata,
        "labels": asked.labels,
        "encoder": None if asked.encoder is None else {"id": asked.encoder},
        "label_level": asked.label_level,
        "token": asked.token,
        "mpp": asked.mpp,
    }
    lines += ["", "embeddings:", *(f"  {key}: {_scalar(value)}" for key, value in said.items() if value is not None)]
    lines += [
        "",
        PIPELINE if hub else SAMPLER,
        "privacy: {mechanism: none} # conditions are real tiles' embeddings: treat the set as personal data; or mix, dp (README)",
        "screen: {tissue: {min_fraction: 0.1}, blur: {}} # what is dropped is drawn again",
        "",
        "output: # may be published, as far as terms and patients' consent allow",
        f"  path: out/{name}",
        f"  shard_size: {size} # tiles of a shard, which one worker draws",
        "  format: png",
        f"lineage: out/{name}-lineage # never published: what each tile came from",
        "seed: secret # keys that are kept in lineage alone; an integer makes the set repeatable by anyone",
    ]
    if hub:
        lines += ["", "# terms: {accept: [CC-BY-NC-ND-4.0]} # once you have read the licence of CytoSyn and of H0-mini"]
    return "\n".join(lines) + "\n"
