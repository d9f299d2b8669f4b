"""OUT/croissant.json: the set as Croissant 1.0 (JSON-LD, https://docs.mlcommons.org/croissant/docs/croissant-spec.html).

Every tar and parquet is a FileObject with its sha256; images are a FileSet inside the tars, the public tables a FileSet of parquets.
One RecordSet joins both by key. No publication date, creator or address: whoever publishes the set knows them, the build does not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from synthfactory.report.facts import (
    MIME,
    Facts,
    bags,
    cohort,
    gather,
    image_format,
    is_unconditional,
    label_meaning,
    privacy,
    terms,
    version,
)
from synthfactory.shards.commit import Commit

CONFORMS_TO = "http://mlcommons.org/croissant/1.0"
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
IMAGES, TABLES, TILES, CLASSES = "tile-images", "tile-tables", "tiles", "classes"
SPDX = {
    "apache-2.0",
    "mit",
    "cc0-1.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "cc-by-nc-nd-4.0",
}


def croissant_json(
    lock: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]], commits: Mapping[int, Commit]
) -> bytes:
    """The metadata of a set, complete or not: a pure function of its arguments, sorted and indented."""
    facts = gather(lock, rounds, commits)
    _, extension = image_format(lock)
    sharing = terms(lock)[1]
    values = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": str(lock["name"]),
        "description": _description(lock, facts, sharing=sharing),
        "license": _licence(lock),
        "version": version(lock, rounds),
        "keywords": ["synthetic", "histopathology", "H&E", "diffusion model", "webdataset"],
        "rai:dataCollection": f"Drawn by {lock['model']['id']}, a diffusion model, by synthfactory.",
        "rai:personalSensitiveInformation": f"Privacy mechanism: {lock['recipe']['privacy']['mechanism']}: {privacy(lock)}.",
        "rai:dataLimitations": f"Never for diagnosis. {label_meaning(lock)}. Conditions from CytoSyn's training set: {cohort(lock)}.",
        "distribution": _distribution(lock, commits),
        "recordSet": [*_tiles(extension, lock, has_files=bool(commits)), _classes(facts)],
    }
    return json.dumps(values, indent=1, sort_keys=True).encode() + b"\n"


def _description(lock: Mapping[str, Any], facts: Facts, *, sharing: bool) -> str:
    model = lock["model"]
    classes = f"{len(facts.classes)} class{'es' * (len(facts.classes) != 1)}"
    words = [
        f"{facts.made} synthetic H&E tiles of {classes}, {model['tile_size_px']} x {model['tile_size_px']} px "
        f"at {model['resolution_mpp']} um/px, drawn by {model['id']} (revision {model['revision']}).",
        "Every tile is synthetic: never a diagnosis, never a patient's record.",
        f"Privacy mechanism: {lock['recipe']['privacy']['mechanism']}: {privacy(lock)}.",
    ]
    if facts.made != facts.asked:
        words.append(
            f"{facts.asked} were asked for; {facts.shortfall} of them no attempt gave, {facts.pending} are to be drawn."
        )
    if not sharing:
        words.append("Local use: the terms of model and encoder are not recorded to allow sharing.")
    elif lock["terms"]["sharing"] == "permitted":
        words.append("Whoever built the set states that a permission, which its card names, allows sharing it.")
    return " ".join(words)


def _licence(lock: Mapping[str, Any]) -> str:
    """A licence's URL where nothing but the model's own terms holds, else in words what comes together."""
    licence, encoder = terms(lock)[0], lock.get("encoder_licence") or {}
    if is_unconditional(lock) and not encoder and licence.lower() in SPDX:
        return f"https://spdx.org/licenses/{licence}"
    parts = [f"{licence} (model)"]
    if encoder:
        parts.append(f"{encoder.get('name') or 'not stated'} (encoder)")
    if not is_unconditional(lock):
        parts.append("the terms of the real tiles behind the conditions")
    return " and ".join(parts) if len(parts) < 3 else f"{parts[0]}, {parts[1]} and {parts[2]}"


def _file(described: Mapping[str, Any], encoding: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": described["name"],
        "name": described["name"],
        "contentUrl": described["name"],
        "contentSize": f"{described['bytes']} B",
        "encodingFormat": encoding,
        "sha256": described["sha256"],
    }


def _distribution(lock: Mapping[str, Any], commits: Mapping[int, Commit]) -> list[dict[str, Any]]:
    bodies = [commit.body for _, commit in sorted(commits.items())]
    if not bodies:
        return []
    kind, extension = image_format(lock)
    tables = {
        "@type": "cr:FileSet",
        "@id": TABLES,
        "name": TABLES,
        "description": "One row per tile.",
        "encodingFormat": "application/x-parquet",
        "includes": "shards/*.parquet",
    }
    images = {
        "@type": "cr:FileSet",
        "@id": IMAGES,
        "name": IMAGES,
        "description": f"KEY.{extension} of every tile; KEY.json stands beside it.",
        "containedIn": [{"@id": body["tar"]["name"]} for body in bodies],
        "encodingFormat": MIME.get(kind, f"image/{kind}"),
        "includes": f"*.{extension}",
    }
    tars = [_file(body["tar"], "application/x-tar") for body in bodies]
    parquets = [_file(body["parquet"], "application/x-parquet") for body in bodies]
    return [*tars, *parquets, images, tables]


def _tiles(extension: str, lock: Mapping[str, Any], *, has_files: bool) -> list[dict[str, Any]]:
    if not has_files:
        return []
    grouping, meaning = bags(lock), label_meaning(lock)
    stem = f"^(?:.*/)?([^/.]+)(?:\\.{re.escape(extension)})?$"  # readers may apply it twice: keys hold no dot
    columns = (
        ("label", "sc:Text", f"Class; {meaning}."),
        (
            "label_level",
            "sc:Text",
            "What that label was given to: slide, region or tile; unconditional where there was no condition.",
        ),
        ("class_index", "sc:Integer", "Number of the class, from 0."),
        *((("bag_id", "sc:Text", f"Bag of the tile: {grouping}."),) if grouping else ()),
    )
    key = {
        **_field("key", "sc:Text", "Name of the tile, unique in the set."),
        "source": {"fileSet": {"@id": IMAGES}, "extract": {"fileProperty": "filename"}, "transform": {"regex": stem}},
        "references": {"fileSet": {"@id": TABLES}, "extract": {"column": "key"}},
    }
    image = {
        **_field("image", "sc:ImageObject", "The tile, 8-bit RGB."),
        "source": {"fileSet": {"@id": IMAGES}, "extract": {"fileProperty": "content"}},
    }
    rest = [
        {**_field(name, kind, words), "source": {"fileSet": {"@id": TABLES}, "extract": {"column": name}}}
        for name, kind, words in columns
    ]
    return [
        {
            "@type": "cr:RecordSet",
            "@id": TILES,
            "name": TILES,
            "description": "One record per synthetic tile.",
            "key": {"@id": f"{TILES}/key"},
            "field": [key, image, *rest],
        }
    ]


def _field(name: str, kind: str, description: str, record_set: str = TILES) -> dict[str, Any]:
    identity = f"{record_set}/{name}"
    return {"@type": "cr:Field", "@id": identity, "name": identity, "dataType": kind, "description": description}


def _classes(facts: Facts) -> dict[str, Any]:
    """The classes as inline data, so that a reader knows those with no tile yet."""
    return {
        "@type": "cr:RecordSet",
        "@id": CLASSES,
        "name": CLASSES,
        "description": "The classes, and how many tiles there are of each.",
        "key": {"@id": f"{CLASSES}/label"},
        "field": [
            _field("label", "sc:Text", "Name of the class.", CLASSES),
            _field("class_index", "sc:Integer", "Its number, from 0.", CLASSES),
            _field("tiles", "sc:Integer", "Tiles of it in this set.", CLASSES),
        ],
        "data": [
            {f"{CLASSES}/label": item.name, f"{CLASSES}/class_index": item.class_index, f"{CLASSES}/tiles": item.made}
            for item in facts.classes
        ],
    }
