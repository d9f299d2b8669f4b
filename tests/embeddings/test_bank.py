"""Banks: the same bank whatever the order of the file, and one clear error for whatever is wrong with it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bank_making import CLASSES, ENCODER, WIDTH, columns, load, rows, small_bank, vectors, write_parquet

from synthfactory.embeddings.bank import Bank
from synthfactory.embeddings.indexing import make_bank
from synthfactory.embeddings.parquet import METADATA_KEY, load_bank, write_bank
from synthfactory.embeddings.rows import Coded
from synthfactory.embeddings.sites import SlideSites
from synthfactory.spec.errors import InputError

KEY = b"k" * 16
EMPTY = {"embedding": pa.list_(pa.float32()), "label": pa.string(), "label_level": pa.string()}


def changed(**other: Any) -> dict[str, Any]:
    return {**columns(), **other}


def test_written_bank_is_read_back_and_equal_banks_give_equal_bytes(tmp_path: Path) -> None:
    bank = small_bank()
    path = tmp_path / "bank.parquet"
    write_bank(str(path), bank)
    read = load(str(path))
    assert rows(read) == rows(bank)
    assert (dict(read.encoder), read.mac(KEY), read.warnings) == (ENCODER, bank.mac(KEY), ())
    assert read.embeddings.dtype == np.float32
    before = path.read_bytes()
    write_bank(str(path), read)
    assert path.read_bytes() == before


def test_order_of_the_file_and_its_row_groups_change_nothing(tmp_path: Path) -> None:
    bank = small_bank(40)
    write_bank(str(tmp_path / "bank.parquet"), bank)
    table = pq.read_table(tmp_path / "bank.parquet")
    expected = rows(load(str(tmp_path / "bank.parquet")))
    for seed in range(3):
        order = list(range(40))
        random.Random(seed).shuffle(order)
        pq.write_table(table.take(order), tmp_path / "other.parquet", row_group_size=7)
        other = load(str(tmp_path / "other.parquet"))
        assert rows(other) == expected
        assert other.mac(KEY) == bank.mac(KEY)


def test_rows_that_differ_in_level_alone_have_one_order_too() -> None:
    twice = np.repeat(vectors(1), 2, axis=0)
    made = [
        make_bank(twice, ["A", "A"], levels, [None] * 2, [None] * 2, ENCODER, "here")
        for levels in (["slide", "tile"], ["tile", "slide"])
    ]
    assert made[0].mac(KEY) == made[1].mac(KEY)
    assert made[0].warnings == ("here: 1 rows repeat an embedding",)


def test_mac_sees_every_column_and_needs_the_key() -> None:
    def bank(**other: Any) -> str:
        values: dict[str, Any] = {
            "embeddings": vectors(2), "labels": ["A", "B"], "label_levels": ["tile"] * 2, "patient_ids": ["P", None],
            "slide_ids": ["S", None], "encoder": ENCODER, "where": "here",
        }  # fmt: skip
        return make_bank(**{**values, **other}).mac(KEY)

    seen = {
        bank(),
        bank(embeddings=vectors(2, seed=1)),
        bank(labels=["A", "C"]),
        bank(label_levels=["tile", "slide"]),
        bank(patient_ids=["P", "Q"]),
        bank(slide_ids=[None, None]),
        bank(encoder={**ENCODER, "sha256": "6" * 64}),
    }
    assert len(seen) == 7
    assert bank() in seen
    assert small_bank().mac(b"other") != small_bank().mac(KEY)


def with_sites(sites: list[str | None], slides: list[str | None] | None = None) -> Bank:
    patients = ["P1", "P1", "P2", "P3"]
    named = ["S1", "S2", "S3", "S4"] if slides is None else slides
    return make_bank(vectors(4), ["fat"] * 4, ["tile"] * 4, patients, named, ENCODER, "here", sites=sites)


def test_sites_of_slides_are_kept(tmp_path: Path) -> None:
    bank = with_sites(["a", "b", " a ", "unknown"])
    write_bank(str(tmp_path / "bank.parquet"), bank)
    read = load(str(tmp_path / "bank.parquet"), ["fat"])
    assert read.sites == bank.sites == ("a", "b", "a", None)
    strata = read.strata_of("fat")
    assert strata is not None and len(set(strata.tolist())) == 3, "of two sites, of one, of no known one"
    alike = with_sites(["a"] * 4)
    assert alike.strata_of("fat") is None and with_sites([None] * 4).groups.sites == ()
    assert with_sites(["a", "a", "b", "a"]).strata_of("fat").tolist() == [0, 1, 0]  # type: ignore[union-attr]
    macs = [each.class_mac(KEY, "fat", True) for each in (bank, alike, with_sites([None] * 4))]
    assert len(set(macs)) == 3 and macs[2] == alike.class_mac(KEY, "fat") == bank.class_mac(KEY, "fat")


def test_a_slide_of_several_sites_has_none() -> None:
    several = with_sites(["a", "b", "a", "a"], ["S1", "S1", "S3", "S4"])
    assert several.sites == (None, None, "a", "a")
    assert several.warnings == ("here: 1 slide has tiles of several sites, and none for that",)
    assert with_sites(["a", "b", "a", None], [None] * 4).sites == (None, None, "a", None)
    assert with_sites(["a", "b", "a", None], [None] * 4).warnings == (
        "here: 1 patient has tiles of several sites that name no slide, and no site for that; give the tiles a slide_id",
    )
    assert with_sites(["a", "a", "a", None], [None] * 4).warnings == ()
    nobody = SlideSites()
    nobody.note(np.array([0, 0, 1, 1]), [("fat", "", ""), ("fat", "P1", "S1")], Coded.of(["a", "b", "a", "b"]))
    assert nobody.warnings("here") == (
        "here: 1 slide has tiles of several sites, and none for that",
        "here: tiles that name neither patient nor slide are of several sites, and count for none",
    )
    assert with_sites(["a", None, "b", "b"], ["S1", "S1", "S3", "S4"]).sites == ("a", "a", "b", "b")


def test_sites_of_a_class_do_not_depend_on_the_others(tmp_path: Path) -> None:
    """Nothing but the label tells their rows apart."""
    both = make_bank(
        vectors(4), CLASSES * 2, ["tile"] * 4, [None] * 4, [None] * 4, ENCODER, "here", sites=["a", "b"] * 2
    )
    write_bank(str(tmp_path / "bank.parquet"), both)
    alone = load(str(tmp_path / "bank.parquet"), ["fat"])
    assert both.sites == ("a", "a", "b", "b") and alone.sites == ("a", "a")
    assert alone.class_mac(KEY, "fat", True) == both.class_mac(KEY, "fat", True)


def test_mac_of_a_class_ignores_the_others(tmp_path: Path) -> None:
    whole, path = small_bank(), str(tmp_path / "bank.parquet")
    write_bank(path, whole)
    alone = load(path, ["gland"])
    assert set(alone.labels) == {"gland"}
    assert alone.class_mac(KEY, "gland") == whole.class_mac(KEY, "gland") != whole.class_mac(KEY, "fat")


def test_rows_without_a_patient_are_one_patient(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "b.parquet", changed(patient_id=["P1", "unknown", " P1 ", None, "N/A", ""], label=["fat"] * 6)
    )
    bank = load(path, ["fat"])
    assert sorted(bank.patient_ids, key=str) == [None, None, None, None, "P1", "P1"]
    patients, starts = bank.patients_of("fat")
    assert (patients, starts.tolist()) == (["", "P1"], [0, 4, 6])
    assert bank.span("fat") == (0, 6)
    assert bank.slide_ids == (None,) * 6
    assert bank.slides_of("fat").tolist() == [0, 4, 6], "one slide a patient where none is known"


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float32(), WIDTH), pa.list_(pa.float16())],
    ids=str,
)
def test_other_writers_list_types_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    wanted = np.round(vectors(6), 1).astype(np.float16)
    path = write_parquet(
        tmp_path / "b.parquet",
        changed(
            embedding=pa.array([list(row.astype(kind.value_type.to_pandas_dtype())) for row in wanted], kind),
            label=pa.array(["fat", "gland"] * 3).dictionary_encode(),
            mpp=[0.5, None, 0.49, 0.51, 0.5, 0.5],
        ),
    )
    found = load(path).embeddings
    np.testing.assert_array_equal(np.sort(found, axis=0), np.sort(wanted.astype(np.float32), axis=0))


@pytest.mark.parametrize(
    ("values", "metadata", "message"),
    [
        (changed(), {**ENCODER, "sha256": "6" * 64}, r"encoder small-encoder \(666666666666\), but .* \(555555555555\)"),
        (changed(), {**ENCODER, "token": "mean"}, "token 'mean', but the model is conditioned on token 'class'"),
        (changed(embedding=[[0.5, 1.5]] * 6), ENCODER, "have width 2; the model needs width 6"),
        (changed(embedding=[[0.5] * WIDTH] * 5 + [None]), ENCODER, "have missing values; the model needs width 6"),
        (changed(embedding=pa.array([[float(i)] * 6 for i in range(5)] + [[0.5] * 5 + [None]], pa.list_(pa.float32()))),
         ENCODER, "NaN or infinity, the first in row 5"),
        (changed(embedding=[[float(row)] * 6 for row in range(4)] + [[1e300] * 6, [np.nan] * 6]), ENCODER,
         "2 embeddings hold NaN or infinity, the first in row 4"),
        (changed(embedding=[[1] * WIDTH] * 6), ENCODER, "must be a list of float32"),
        (changed(embedding=["x"] * 6), ENCODER, "column 'embedding' is string"),
        (changed(label=[1] * 6), ENCODER, "column 'label' is int64; it must be a string"),
        (changed(patient_id=[1] * 6), ENCODER, "column 'patient_id' is int64"),
        (changed(label_level=["tile"] * 5 + ["patch"]), ENCODER, "label_level 'patch' of row 5 does not exist"),
        (changed(label_level=["tile"] * 5 + [None]), ENCODER, "label_level '' of row 5"),
        (changed(mpp=[0.5] * 5 + [0.25]), ENCODER, "label gland has mpp 0.25; the model draws at 0.5"),
        (changed(mpp=[0.5] * 5 + [np.nan]), ENCODER, "has mpp nan"),
        (changed(mpp=[0.5] * 5 + [None]), b'{"encoder": {"id": "small-encoder", "sha256": "%s"}}' % (b"5" * 64),
         "does not say how many um a pixel has in every row"),
        (changed(mpp=pa.nulls(6, pa.float64())), json.dumps({"encoder": ENCODER, "mpp": "0.25"}).encode(), "have mpp 0.25"),
        (changed(), json.dumps({"encoder": ENCODER, "mpp": "0.25"}).encode(), "mpp 0.25; the model draws at 0.5"),
        (changed(), json.dumps({"encoder": ENCODER, "mpp": "20x"}).encode(), "metadata's mpp 20x is no number"),
        (changed(), json.dumps({"encoder": ENCODER, "mpp": 10**400}).encode(), "metadata's mpp 1000.* is no number"),
        (changed(tumour_fraction=[0.5] * 5 + [40.0]), ENCODER, "label gland: tumour_fraction is 40; a share from 0 to 1"),
        (changed(tumour_fraction=[0.5] * 5 + [np.inf]), ENCODER, "tumour_fraction is inf"),
        (changed(mpp=["0.5"] * 6), ENCODER, "column 'mpp' is string; it must be a number"),
        (changed(embedding=[[2.5] * WIDTH] * 6), ENCODER, r"rows? .*under the labels 'fat' and 'gland'"),
        ({key: pa.array([], kind) for key, kind in EMPTY.items()}, ENCODER, "holds no rows"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_bank_is_said(tmp_path: Path, values: dict[str, Any], metadata: Any, message: str) -> None:
    path = write_parquet(tmp_path / "bank.parquet", values, metadata)
    with pytest.raises(InputError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(path)


def test_rows_without_an_mpp_have_that_of_the_file_or_else_of_the_spec(tmp_path: Path) -> None:
    values = changed(mpp=[None, 0.5] * 3, tumour_fraction=[0.0, 1.0, None, 0.5, float("nan"), 0.4])
    said = write_parquet(tmp_path / "said.parquet", values, json.dumps({"encoder": ENCODER, "mpp": "0.5"}).encode())
    assert len(load(said)) == 6
    silent = write_parquet(tmp_path / "silent.parquet", values, json.dumps({"encoder": ENCODER}).encode())
    assert len(load_bank(silent, width=WIDTH, encoder=ENCODER, classes=CLASSES, mpp=0.49)) == 6
    with pytest.raises(InputError, match=r"silent\.parquet: .*mpp 0\.25"):
        load_bank(silent, width=WIDTH, encoder=ENCODER, classes=CLASSES, mpp=0.25)


def test_a_token_without_an_encoder_is_heeded(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "b.parquet", columns(), b'{"encoder": {"token": "mean"}, "mpp": 0.5}')
    with pytest.raises(InputError, match="holds the encoder's token 'mean'"):
        load_bank(path, width=WIDTH, encoder=ENCODER, classes=CLASSES, declared={"id": "small-encoder"})


@pytest.mark.parametrize(
    ("missing", "instead", "hint"),
    [
        ("embedding", "embeddings", r"is 'embeddings' meant\?"),
        ("label", "Label", r"is 'Label' meant\?"),
        ("label_level", "labellevel", r"is 'labellevel' meant\?"),
        ("label_level", "", "no column 'label_level'; embedding, label and label_level are needed"),
        ("embedding", "", "no column 'embedding'; embedding, label and label_level are needed"),
    ],
)
def test_missing_column_with_a_hint(tmp_path: Path, missing: str, instead: str, hint: str) -> None:
    values = columns()
    moved = values.pop(missing)
    path = write_parquet(tmp_path / "bank.parquet", {**values, **({instead: moved} if instead else {})})
    with pytest.raises(InputError, match=hint):
        load(path)


@pytest.mark.parametrize(
    ("ours", "theirs"), [("patient_id", "case_id"), ("patient_id", "Patient"), ("slide_id", "slide")]
)
def test_columns_that_are_known_by_another_name_are_refused(tmp_path: Path, ours: str, theirs: str) -> None:
    path = write_parquet(tmp_path / "bank.parquet", {**columns(), theirs: list("abcdef")})
    with pytest.raises(InputError, match=rf"bank\.parquet: column '{theirs}' is not known; is '{ours}' meant"):
        load(path)


def test_doubled_column_is_refused(tmp_path: Path) -> None:
    values = columns()
    table = pa.Table.from_arrays(
        [values["embedding"], pa.array(values["label"]), pa.array(values["label"]), pa.array(values["label_level"])],
        ["embedding", "label", "label", "label_level"],
    ).replace_schema_metadata({METADATA_KEY: json.dumps({"encoder": ENCODER}).encode()})
    pq.write_table(table, tmp_path / "bank.parquet")
    with pytest.raises(InputError, match="more than one column 'label'"):
        load(str(tmp_path / "bank.parquet"))


def test_absent_label_with_a_suggestion(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "bank.parquet", columns())
    with pytest.raises(InputError, match=r"classes\.glnd: the bank .* is 'gland' meant\? it has: fat, gland$"):
        load(path, ["fat", "glnd"])
    with pytest.raises(InputError, match=r"classes\.xyz: .*label; it has: fat, gland$"):
        load(path, ["xyz"])
    many = write_parquet(tmp_path / "many.parquet", changed(label=["x" * 900, "a\x1b[2J", "b", "b", "b", "b"]))
    with pytest.raises(InputError) as caught:
        load(many, ["gland"])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300
    empty = write_parquet(tmp_path / "empty.parquet", changed(label=pa.nulls(6)))
    with pytest.raises(InputError, match="it has: none"):
        load(empty)


def test_rows_are_numbered_as_in_the_file_not_as_in_the_choice(tmp_path: Path) -> None:
    embedding = vectors(30)
    embedding[21] = np.inf
    path = write_parquet(
        tmp_path / "bank.parquet",
        {"embedding": list(embedding), "label": ["fat"] * 20 + ["gland"] * 10, "label_level": ["tile"] * 30},
    )
    with pytest.raises(InputError, match="the first in row 21;"):
        load(path, ["gland"])
    assert len(load(path, ["fat"])) == 20  # what is not asked for is not looked at


@pytest.mark.parametrize(
    "metadata",
    [
        None, b"", b"\xff\xfe", b"not json", b"[]", b'"x"', b"null", b"{}", b'{"encoder": null}', b'{"encoder": []}', b'{"encoder": "e"}',
        b'{"encoder": {"id": "e"}}', b'{"encoder": {"id": 1, "sha256": "x"}}', b'{"encoder": {"id": "e", "sha256": null}}',
        b"[" * 100_000, b'{"encoder":' * 50_000,
    ],
    ids=range(16),
)  # fmt: skip
def test_bank_that_does_not_name_its_encoder(tmp_path: Path, metadata: bytes | None) -> None:
    path = write_parquet(tmp_path / "bank.parquet", columns(), metadata)
    with pytest.raises(InputError, match="does not name its encoder; the parquet metadata needs a key"):
        load(path)


def test_hostile_encoder_name_is_printed_harmless(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "bank.parquet", columns(), {"id": "\x1b[31m" + "e" * 5000, "sha256": "\n\n"})
    with pytest.raises(InputError, match="was made with encoder") as caught:
        load(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_encoder_may_be_left_open(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "bank.parquet", columns(), {"id": "e", "sha256": "7", "other": [1]})
    bank = load_bank(path, width=WIDTH, encoder=None, classes=CLASSES)
    assert dict(bank.encoder) == {"id": "e", "sha256": "7", "token": "class"}


def _no_file(folder: Path) -> str:
    return str(folder / "absent.parquet")


def _folder(folder: Path) -> str:
    return str(folder)


def _text(folder: Path) -> str:
    (folder / "bank.parquet").write_text("label,embedding\n")
    return str(folder / "bank.parquet")


def _empty(folder: Path) -> str:
    (folder / "bank.parquet").write_bytes(b"")
    return str(folder / "bank.parquet")


def _below_a_file(folder: Path) -> str:
    return f"{_text(folder)}/bank.parquet"


def _protocol(folder: Path) -> str:
    return "nowhere://bank.parquet"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (_no_file, "no such file; name a parquet bank"),
        (_folder, "is a folder; a bank is one parquet file"),
        (_text, "is no readable parquet file"),
        (_empty, "is no readable parquet file"),
        (_below_a_file, "is no readable parquet file"),
        (_protocol, "nowhere"),
    ],
)
def test_what_is_no_bank_at_all(tmp_path: Path, place: Callable[[Path], str], message: str) -> None:
    path = place(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(path)


def test_damaged_files_never_raise_anything_else(tmp_path: Path) -> None:
    path = tmp_path / "bank.parquet"
    write_bank(str(path), small_bank(40))
    data, luck, refused = path.read_bytes(), random.Random(1), 0
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(luck.randint(1, 4)):
            damaged[luck.randrange(len(damaged) - (900 if luck.random() < 0.7 else len(damaged)), len(damaged))] ^= (
                1 << luck.randrange(8)
            )
        path.write_bytes(damaged[: luck.randrange(len(damaged))] if luck.random() < 0.2 else damaged)
        try:
            load(str(path))
        except InputError:
            refused += 1
    assert refused > 200


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    raw = pa.array([b"\xff\xfe"] * 6, pa.binary())
    text = pa.Array.from_buffers(pa.string(), 6, raw.buffers())
    path = write_parquet(tmp_path / "bank.parquet", changed(label=text))
    with pytest.raises(InputError, match="UTF-8"):
        load(path)
