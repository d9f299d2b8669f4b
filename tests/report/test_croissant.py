"""Croissant: valid JSON-LD whose every reference resolves, and whose files, columns and keys are those of the set."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from card_making import ROUNDS, lock, make_out

from synthfactory.report.card import croissant_json
from synthfactory.shards.record import PUBLIC_SCHEMA


def read(place: Path) -> dict[str, Any]:
    return dict(json.loads((place / "croissant.json").read_bytes()))


@pytest.fixture(scope="module", params=["png", "webp", "jpeg"])
def out(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp(f"croissant-{request.param}") / "out"
    make_out(place, lock(request.param))
    return place


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from nodes(inner)


def of_kind(values: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    return {node["@id"]: node for node in nodes(values) if node.get("@type") == f"cr:{kind}"}


def test_head_is_that_of_croissant_1_0(out: Path) -> None:
    values = read(out)
    assert values["@type"] == "sc:Dataset"
    assert values["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert (values["name"], values["version"]) == ("t", "1.1.0")  # two rounds
    assert values["license"] == "Apache-2.0 (model) and the terms of the real tiles behind the conditions"
    assert values["@context"]["cr"] == "http://mlcommons.org/croissant/"
    words = values["description"]
    for part in (
        "7 synthetic H&E tiles of 2 classes, 16 x 16 px at 0.5 um/px",
        "never a diagnosis",
        "8 were asked for; 1 of them",
    ):
        assert part in words


def test_every_property_is_a_term_of_the_context(out: Path) -> None:
    values = read(out)
    schema_org = {"@type", "@id", "name", "description", "license", "version", "keywords", "distribution", "contentUrl"}
    schema_org |= {"contentSize", "encodingFormat", "sha256", "containedIn", "@context"}
    used = {key for node in nodes({**values, "@context": {}, "recordSet": []}) for key in node}
    used |= {key for found in values["recordSet"] for node in nodes({**found, "data": []}) for key in node}
    assert {key for key in used if not key.startswith("rai:")} - schema_org <= values["@context"].keys()


def test_every_file_is_there_with_its_checksum(out: Path) -> None:
    files = of_kind(read(out), "FileObject")
    assert set(files) == {str(path.relative_to(out)) for path in (out / "shards").iterdir()}
    for path, described in files.items():
        data = (out / path).read_bytes()
        assert described["sha256"] == hashlib.sha256(data).hexdigest()
        assert described["contentSize"] == f"{len(data)} B"
        assert described["contentUrl"] == path
        assert described["encodingFormat"].endswith("tar" if path.endswith(".tar") else "parquet")


def test_every_reference_resolves_and_no_id_stands_twice(out: Path) -> None:
    values = read(out)
    defined = [node["@id"] for node in nodes({**values, "@context": {}}) if "@type" in node and "@id" in node]
    assert len(defined) == len(set(defined))
    used = {node["@id"] for node in nodes({**values, "@context": {}}) if "@id" in node and "@type" not in node}
    assert used <= set(defined)
    for name, field in of_kind(values, "Field").items():
        assert name.partition("/")[0] in of_kind(values, "RecordSet")
        assert field["dataType"] in ("sc:Text", "sc:Integer", "sc:ImageObject")


def test_tiles_join_images_and_tables_by_key(out: Path) -> None:
    values = read(out)
    fields, sets = of_kind(values, "Field"), of_kind(values, "FileSet")
    assert {"tiles/key", "tiles/image", "tiles/label", "tiles/label_level", "tiles/class_index"} <= set(fields)
    rows: dict[str, str] = {}
    for path in sorted((out / "shards").glob("*.parquet")):
        assert fnmatch(str(path.relative_to(out)), sets["tile-tables"]["includes"])
        rows.update({row["key"]: row["label"] for row in pq.read_table(path).to_pylist()})
    regex = fields["tiles/key"]["source"]["transform"]["regex"]
    found = set()
    for entry in sets["tile-images"]["containedIn"]:
        with tarfile.open(fileobj=io.BytesIO((out / entry["@id"]).read_bytes())) as tar:
            for name in tar.getnames():
                if fnmatch(name, sets["tile-images"]["includes"]):
                    found.add(re.match(regex, name)[1])  # type: ignore[index]
    assert found == set(rows)
    assert fields["tiles/key"]["references"]["extract"]["column"] == "key"
    columns = [field["source"]["extract"].get("column") for field in fields.values() if "source" in field]
    assert set(columns) - {None} <= set(PUBLIC_SCHEMA.names)


@pytest.mark.parametrize("name", ["t-a-00000001.png", "folder/t-a-00000001.png", "t-a-00000001"])
def test_key_pattern_may_be_applied_to_names_paths_and_keys(tmp_path: Path, name: str) -> None:
    commits = make_out(tmp_path / "out", lock())
    values = json.loads(croissant_json(lock(), ROUNDS, commits))
    regex = of_kind(values, "Field")["tiles/key"]["source"]["transform"]["regex"]
    assert re.match(regex, name)[1] == "t-a-00000001"  # type: ignore[index]


def test_classes_stand_inline(out: Path) -> None:
    records = next(item for item in read(out)["recordSet"] if item["@id"] == "classes")
    assert records["data"] == [
        {"classes/label": "A", "classes/class_index": 0, "classes/tiles": 5},
        {"classes/label": "B", "classes/class_index": 1, "classes/tiles": 2},
    ]
    assert set(records["data"][0]) == {field["@id"] for field in records["field"]}


def test_a_set_without_tiles_names_no_files() -> None:
    values = json.loads(croissant_json(lock(), ROUNDS, {}))
    assert values["distribution"] == []
    assert [item["@id"] for item in values["recordSet"]] == ["classes"]
    assert "0 synthetic H&E tiles" in values["description"]


def test_terms_that_are_no_known_licence_stay_words() -> None:
    made = json.loads(croissant_json(lock(licence={"name": "CC BY-NC-ND 4.0", "sharing": "local"}), ROUNDS, {}))
    assert made["license"] == "CC BY-NC-ND 4.0 (model) and the terms of the real tiles behind the conditions"
    assert "Local use" in made["description"]


def test_a_licence_stands_alone_only_where_nothing_else_holds() -> None:
    alone = {**lock(), "label_levels": ["unconditional"]}
    made = json.loads(croissant_json(alone, ROUNDS, {}))
    assert made["license"] == "https://spdx.org/licenses/Apache-2.0"
    both = {**lock(), "encoder_licence": {"name": "CC-BY-NC-ND-4.0", "sharing": "local"}}
    words = json.loads(croissant_json(both, ROUNDS, {}))["license"]
    assert (
        words == "Apache-2.0 (model), CC-BY-NC-ND-4.0 (encoder) and the terms of the real tiles behind the conditions"
    )


@pytest.mark.parametrize(
    ("levels", "mechanism", "words"),
    [
        (["tile"], "none", "label of the conditioning tile"),
        (["tile"], "mix", "label of the tiles that were blended"),
        (["unconditional"], "none", "drawn without conditions"),
    ],
)
def test_what_a_label_says_follows_the_mechanism(tmp_path: Path, levels: list[str], mechanism: str, words: str) -> None:
    values = lock()
    commits = make_out(tmp_path / "out", values)
    privacy = {"mechanism": mechanism, **({"k": 3, "max_weight": 0.5} if mechanism == "mix" else {})}
    values = {**values, "label_levels": levels, "recipe": {**values["recipe"], "privacy": privacy}}
    fields = of_kind(json.loads(croissant_json(values, ROUNDS, commits)), "Field")
    assert words in fields["tiles/label"]["description"]
