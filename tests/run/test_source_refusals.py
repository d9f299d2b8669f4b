# ruff: noqa: E501 - a case is a line
"""What is wrong with a source of conditions: status 2, one message at file:line:column, nothing written; hostile files included."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import source_making as making
from cli_checks import check_refusal, snapshot
from running import run

MakeSpec = Callable[..., Path]
Source = Callable[[Path], dict[str, Any]]


class Case(NamedTuple):
    """The spec's `embeddings` made below a folder, the spec path of the message, its words."""

    source: Source
    path: str
    words: str


def hdf5(change: Callable[[Path], object] = lambda folder: None, **more: Any) -> Source:
    """Features as TRIDENT writes them, changed; `more` replaces keys of the spec (None: left out)."""

    def make(folder: Path) -> dict[str, Any]:
        given = making.write_source("hdf5", folder)
        change(Path(given["hdf5"]))
        return {key: value for key, value in {**given, **more}.items() if value is not None}

    return make


def one_file(change: Callable[[h5py.File], object]) -> Callable[[Path], object]:
    def changed(folder: Path) -> None:
        with h5py.File(folder / "SLIDE-beta-1.h5", "r+") as file:
            change(file)

    return changed


def instead(name: str, value: Any) -> Callable[[Path], object]:
    def change(file: h5py.File) -> None:
        del file[name]
        if value is not None:
            file[name] = value

    return one_file(change)


def attribute(name: str, value: Any) -> Callable[[Path], object]:
    return one_file(lambda file: file["coords"].attrs.__setitem__(name, value))


def outside(file: h5py.File) -> None:
    file.create_dataset("far", (4, 16), "f4", external=[("/etc/hostname", 0, 256)])
    del file["features"]
    file["features"] = file["far"]


def unwritten(file: h5py.File) -> None:
    del file["features"]
    file.create_dataset("features", (1 << 42, 16), "f4", chunks=(1024, 16))


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4, 16), "f4")
    layout[:] = h5py.VirtualSource("SLIDE-beta-0.h5", "features", (4, 16))
    del file["features"]
    file.create_virtual_dataset("features", layout)


def array(kind: str, change: Callable[[Path], object] = lambda path: None, **more: Any) -> Source:
    def make(folder: Path) -> dict[str, Any]:
        given = making.write_source(kind, folder)
        change(Path(given["arrays"]))
        asked = {**given, **{key: _below(folder, value) for key, value in more.items()}}
        return {key: value for key, value in asked.items() if value is not None}

    return make


def _below(folder: Path, value: Any) -> Any:
    return value.replace("PLACE", str(folder)) if isinstance(value, str) else value


def saved(values: np.ndarray) -> Callable[[Path], object]:
    return lambda path: np.save(path, values, allow_pickle=True)


def rows_csv(*lines: str, kind: str = "npy") -> Source:
    def make(folder: Path) -> dict[str, Any]:
        given = making.write_source(kind, folder)
        Path(given["labels"]).write_text("\n".join(lines) + "\n")
        return given

    return make


def header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")


def offsets(path: Path) -> None:
    text = json.dumps({"embedding": {"dtype": "F32", "shape": [24, 16], "data_offsets": [0, 8]}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))


def half_type(path: Path) -> None:
    text = json.dumps({"embedding": {"dtype": "BF16", "shape": [24, 16], "data_offsets": [0, 768]}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(768))


def npz(**more: Any) -> Source:
    return array("npz", lambda path: np.savez(path, embedding=making.vectors(), **more))


def another_array(path: Path) -> None:
    np.save(path.with_name("features-2.npy"), making.vectors())


def no_name(path: Path) -> None:
    np.savez(path, one=np.zeros((2, 2)), two=np.zeros((2, 2)))


def tars(change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]], **more: Any) -> Source:
    def make(folder: Path) -> dict[str, Any]:
        path = making.write_tar(folder / "real.tar", change(making.tile_members()))
        return {"shards": path, **more}

    return make


def tars_of(**record: Any) -> Source:
    return lambda folder: {"shards": making.write_tar(folder / "real.tar", making.tile_members(**record))}


def no_tar(folder: Path) -> dict[str, Any]:
    folder.mkdir()
    (folder / "real.tar").write_bytes(b"this is no tar" * 100)
    return {"shards": str(folder / "real.tar")}


def bank_without_mpp(folder: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq

    from synthfactory.embeddings.indexing import make_bank
    from synthfactory.embeddings.parquet import METADATA_KEY, write_bank

    folder.mkdir()
    path = folder / "bank.parquet"
    levels, labels = ["tile"] * 24, [label for _, label, _ in making.slides() for _ in range(4)]
    write_bank(
        str(path),
        make_bank(making.vectors(), labels, levels, [None] * 24, [None] * 24, {"id": "e", "sha256": "x"}, "here"),
    )
    table = pq.read_table(path)
    kept = json.loads(table.schema.metadata[METADATA_KEY])
    del kept["mpp"], kept["encoder"]
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(kept)}), path)
    return {"bank": str(path), "encoder": making.ENCODER}


def tiles_without_mpp(folder: Path) -> dict[str, Any]:
    given = making.write_tiles(folder / "tiles")
    return {key: value for key, value in given.items() if key != "metadata"}


def tiles_of_another_size(folder: Path) -> dict[str, Any]:
    given = making.write_tiles(folder / "tiles")
    for path in (folder / "tiles").glob("*/*.png"):
        path.write_bytes(making.png(making.picture(1, 48)))
    return given


UNNAMED = [(f"{n}.png", making.png(making.picture(n))) for n in range(3)]
CASES = {
    "no folder": Case(hdf5(hdf5="/nowhere/features"), "embeddings.hdf5", "/nowhere/features: no such file or folder"),
    "no file": Case(hdf5(hdf5=["/nowhere/a.h5"]), "embeddings.hdf5", "no such file or folder; name the HDF5 files"),
    "empty folder": Case(hdf5(lambda f: [p.unlink() for p in f.iterdir()]), "embeddings.hdf5", "holds no .h5 or .hdf5 file"),
    "no HDF5": Case(hdf5(lambda f: (f / "SLIDE-beta-1.h5").write_bytes(b"x" * 900)), "embeddings.hdf5", "is no readable HDF5 file"),
    "cut HDF5": Case(
        hdf5(lambda f: (f / "SLIDE-beta-1.h5").write_bytes((f / "SLIDE-beta-1.h5").read_bytes()[:900])),
        "embeddings.hdf5", "is no readable HDF5 file",
    ),
    "no features": Case(hdf5(instead("features", None)), "embeddings.hdf5", "has no 'features'; it holds coords"),
    "features are a group": Case(hdf5(one_file(lambda f: (f.__delitem__("features"), f.create_group("features")))),
                                 "embeddings.hdf5", "'features' is a group"),
    "external link": Case(hdf5(instead("features", h5py.ExternalLink("/etc/passwd", "/x"))), "embeddings.hdf5", "is a link to elsewhere"),
    "soft link": Case(hdf5(instead("features", h5py.SoftLink("/coords"))), "embeddings.hdf5", "is a link to elsewhere"),
    "rows never written": Case(hdf5(one_file(unwritten)), "embeddings.hdf5", "and the file holds 4,096 bytes of them at most"),
    "external data": Case(hdf5(one_file(outside)), "embeddings.hdf5", "lies in other files"),
    "virtual data": Case(hdf5(one_file(virtual)), "embeddings.hdf5", "lies in other files"),
    "integers": Case(hdf5(instead("features", np.zeros((4, 16), int))), "embeddings.hdf5", "float (n, width) is needed"),
    "no rows": Case(hdf5(instead("features", np.zeros((0, 16), "f4"))), "embeddings.hdf5", "'features' has no row"),
    "other width": Case(hdf5(instead("features", np.zeros((4, 32), "f4"))), "embeddings.hdf5", "features have width 32; the model needs width 16"),
    "coords of other length": Case(hdf5(instead("coords", np.zeros((5, 2)))), "embeddings.hdf5", "numbers (4, 2) are needed"),
    "NaN": Case(hdf5(one_file(lambda f: f["features"].__setitem__((2, 3), np.nan))), "embeddings.hdf5", "row 2 of"),
    "patches of another size": Case(hdf5(attribute("patch_size", 256)), "embeddings.hdf5", "its patches are 256 px; the model draws 32 px"),
    "mpp 0.25": Case(hdf5(attribute("mpp", 0.25)), "embeddings.hdf5", "mpp 0.25; the model draws at 0.5 +- 5 %"),
    "20x is no mpp": Case(hdf5(mpp=None), "embeddings.hdf5", "(it says 20x, which scanners understand differently); if its tiles are at"),
    "no encoder": Case(hdf5(encoder=None), "embeddings.hdf5", "does not name its encoder; write for example encoder: {id: tiny-encoder"),
    "encoder of the file": Case(lambda f: {**hdf5(encoder=None)(f), "hdf5": making.write_features(f / "features", encoder="uni2-h")},
                                "embeddings.hdf5", "was made with encoder uni2-h, but the model is conditioned on tiny-encoder"),
    "two encoders": Case(hdf5(attribute("encoder", "uni2-h")), "embeddings.hdf5", "embeddings.encoder.id is 'tiny-encoder'"),
    "a slide twice": Case(lambda f: {**hdf5()(f), "hdf5": [making.write_features(f / "features"), making.write_features(f / "copy")]},
                          "embeddings.hdf5", "copy/SLIDE-alpha-0.h5: holds the same rows as"),
    "encoder under another name": Case(hdf5(attribute("feature_extractor", "uni2-h")), "embeddings.hdf5", "embeddings.encoder.id is 'tiny-encoder'"),
    "two encoders in a file": Case(hdf5(one_file(lambda f: (f.attrs.__setitem__("patch_encoder_name", "uni2-h"),
                                                            f["features"].attrs.__setitem__("encoder", "tiny-encoder")))),
                                   "embeddings.hdf5", "says encoder: 'tiny-encoder' and patch_encoder_name: 'uni2-h'; keep the one"),
    "token of an unnamed encoder": Case(hdf5(attribute("token", "cls+mean")), "embeddings.hdf5", "holds the encoder's token 'cls+mean'"),
    "share of a slide": Case(rows_csv("slide_id,label,tumour_fraction", *(f"{s},{label},40" for s, label, _ in making.slides()), kind="hdf5"),
                             "embeddings.labels", "csv:2: tumour_fraction is 40; a share from 0 to 1"),
    "encoder of the spec": Case(hdf5(encoder={"id": "h0-mini"}), "embeddings.hdf5", "was made with encoder h0-mini, but"),
    "encoder of another hash": Case(hdf5(encoder={"id": "tiny-encoder", "sha256": "0" * 64}), "embeddings.hdf5", "(000000000000)"),
    "no label level": Case(hdf5(label_level=None), "embeddings.labels", "has no column 'label_level'; add it, or write label_level: slide"),
    "first_768 of 16": Case(hdf5(token="first_768"), "embeddings.hdf5", "token: first_768 takes 768 of 1536"),
    "no CSV": Case(hdf5(labels="/nowhere.csv"), "embeddings.labels", "no such file; embeddings.labels names a CSV with slide_id"),
    "no slide is in the CSV": Case(rows_csv("slide_id,label", "S1,alpha", "S2,beta", kind="hdf5"), "embeddings.labels",
                                   "1 slides have the label 'alpha', but none of the 6 files is theirs"),
    "unknown label": Case(rows_csv("slide_id,label", *(f"{s},{label}s" for s, label, _ in making.slides()), kind="hdf5"),
                          "classes.alpha", "has no such label; it has: alphas, betas"),
    "slide twice": Case(rows_csv("slide_id,label", "S1,alpha", "S1.h5,beta", kind="hdf5"), "embeddings.labels", "csv:3: S1 stands there twice"),
    "no column label": Case(rows_csv("slide_id,Label", "S1,alpha", kind="hdf5"), "embeddings.labels", "needs a column 'label' (is 'Label' meant?)"),
    # arrays
    "unknown form": Case(array("npy", arrays="/features.pkl"), "embeddings.arrays", "name a file that ends in .npy, .npz, .safetensors"),
    "pickle": Case(array("npy", saved(np.array([{}] * 24, object))), "embeddings.arrays", "holds pickled objects, which are never read"),
    "one axis": Case(array("npy", saved(np.zeros(24))), "embeddings.arrays", "float (n, width) is needed"),
    "width of an array": Case(array("npy", saved(np.zeros((24, 3)))), "embeddings.arrays", "embeddings have width 3; the model needs width 16"),
    "columns first": Case(array("npy", saved(np.asfortranarray(making.vectors()))), "embeddings.arrays", "is stored column by column"),
    "array too long": Case(array("npy", saved(making.vectors(seed=1).repeat(2, axis=0))), "embeddings.labels",
                           "has 24 lines, but"),
    "array too short": Case(array("npy", saved(making.vectors()[:20])), "embeddings.labels", "has more lines, but"),
    "cut array": Case(array("npy", lambda p: p.write_bytes(p.read_bytes()[:-10])), "embeddings.arrays", "ends before its last row"),
    "NaN in an array": Case(array("npy", saved(np.full((24, 16), np.nan))), "embeddings.arrays", "24 embeddings hold NaN or infinity"),
    "one embedding, two labels": Case(array("npy", saved(np.ones((24, 16)))), "embeddings.arrays", "hold the same embedding under the labels"),
    "no zip": Case(array("npz", lambda p: p.write_bytes(b"PK\3\4 no zip")), "embeddings.arrays", "is no readable .npz file"),
    "npz without a name": Case(array("npz", no_name), "embeddings.arrays", "holds one, two; call the array of embeddings 'embedding'"),
    "encoder of an npz": Case(npz(encoder="uni2-h"), "embeddings.arrays", "encoder's id is 'uni2-h', but embeddings.encoder.id"),
    "patch encoder of an npz": Case(npz(patch_encoder_name=np.array(["uni2-h"])), "embeddings.arrays", "encoder's id is 'uni2-h'"),
    "token of an npz": Case(npz(token="mean"), "embeddings.arrays", "holds the encoder's token 'mean'"),
    "mpp of an npz": Case(npz(mpp=0.25), "embeddings.labels", "mpp 0.25; the model draws"),
    "pickle beside an array": Case(npz(encoder=np.array({}, object)), "embeddings.arrays", "its 'encoder' is no single text or number"),
    "pattern of two arrays": Case(array("npy", another_array, arrays="PLACE/*.npy"), "embeddings.arrays", "matches 2 files, such as"),
    "pattern of no array": Case(array("npy", arrays="/nowhere/*.npy"), "embeddings.arrays", "matches no file; name an array"),
    "no CSV of an array": Case(array("npy", labels="/nowhere.csv"), "embeddings.labels", "no such file; embeddings.labels names a CSV with label"),
    "pattern of CSVs": Case(array("npy", labels="PLACE/*.csv"), "embeddings.labels", "is a pattern, and one CSV is needed"),
    "comma in a text": Case(rows_csv("label,patient_id,slide_id", *["alpha,P,S"] * 11, "alpha,Smith, J,S", *["beta,P,S"] * 12), "embeddings.labels",
                            "csv:13: has 4 values, but the header has 3; put a text that holds a comma in double quotes"),
    "share in per cent": Case(rows_csv("label,tumour_fraction", *["alpha,0.4"] * 12, *["beta,40"] * 12), "embeddings.labels",
                              "csv:14: tumour_fraction is 40; a share from 0 to 1 is needed"),
    "endless share": Case(rows_csv("label,tumour_fraction", *["alpha,inf"] * 24), "embeddings.labels", "csv:2: tumour_fraction is inf"),
    "endless place": Case(rows_csv("label,x", *["alpha,-inf"] * 24), "embeddings.labels", "csv:2: x '-inf' is no number"),
    "endless header": Case(array("safetensors", header), "embeddings.arrays", "its header is too long"),
    "false offsets": Case(array("safetensors", offsets), "embeddings.arrays", "its offsets do not fit its shape"),
    "bfloat16": Case(array("safetensors", half_type), "embeddings.arrays", "'embedding' is BF16; save it as F32"),
    "mpp of a row": Case(rows_csv("label,mpp", *["alpha,0.5"] * 12, *["beta,1.0"] * 12), "embeddings.labels", "csv:14: the tile has mpp 1"),
    "patients by another name": Case(rows_csv("label,Case_ID", *["alpha,P"] * 24), "embeddings.labels", "'Case_ID' is not known; is 'patient_id' meant?"),
    "label by another name": Case(rows_csv("class,label_kind", *["alpha,x"] * 24), "embeddings.labels", "needs a column 'label' (is 'class' meant?)"),
    "label of a row": Case(rows_csv("label", *["alpha"] * 12, *['""'] * 12), "embeddings.labels", "csv:14: has no label"),
    "level of a row": Case(rows_csv("label,label_level", *["alpha,patch"] * 24), "embeddings.labels", "csv:2: label_level 'patch' does not exist"),
    "number of a row": Case(rows_csv("label,x", *["alpha,left"] * 24), "embeddings.labels", "csv:2: x 'left' is no number"),
    # tars of tiles
    "no tar": Case(no_tar, "embeddings.shards", "is no readable tar"),
    "pattern without a match": Case(lambda f: {"shards": "/nowhere/*.tar"}, "embeddings.shards", "matches no file"),
    "tar without tiles": Case(tars(lambda m: [("a.txt", b"x")]), "embeddings.shards", "holds no tiles"),
    "image without JSON": Case(tars(lambda m: UNNAMED), "embeddings.shards", "has an image, but no JSON"),
    "JSON without an image": Case(tars(lambda m: m[1:]), "embeddings.shards", "has a JSON, but no image"),
    "no JSON": Case(tars(lambda m: [("a.png", b""), ("a.json", b"[" * 99999)]), "embeddings.shards", "a.json is no JSON object"),
    "no label in JSON": Case(tars_of(label=None), "embeddings.shards", "its JSON has no 'label'"),
    "label of no class": Case(tars_of(label="gamma"), "classes.alpha", "have no such label; they have: gamma"),
    "no level in JSON": Case(tars_of(label_level=None), "embeddings.shards", "has no label_level; write label_level: tile"),
    "no mpp in JSON": Case(tars_of(mpp=None), "embeddings.shards", "does not say how many um a pixel has"),
    "mpp of JSON": Case(tars_of(mpp=0.25), "embeddings.shards", "mpp 0.25; the model draws"),
    "mpp of 400 digits": Case(tars_of(mpp=10**400), "embeddings.shards", "mpp is beyond all numbers"),
    "endless x": Case(tars_of(x=float("inf")), "embeddings.shards", "tile-000: x is beyond all numbers"),
    "per cent in JSON": Case(tars_of(tumour_fraction=40), "embeddings.shards", "tile-000: tumour_fraction is 40; a share from 0 to 1"),
    "endless share in JSON": Case(tars_of(tumour_fraction=10**400), "embeddings.shards", "tumour_fraction is inf; a share from 0 to 1"),
    "key twice": Case(tars(lambda m: m + m[:2]), "embeddings.shards", "tile-000.png stands there twice; a key has one image"),
    "JSON twice": Case(tars(lambda m: [*m, m[1]]), "embeddings.shards", "tile-000.json stands there twice"),
    "two images of a key": Case(tars(lambda m: [*m, ("tile-003.jpg", b"x")]), "embeddings.shards", "tile-003.png and tile-003.jpg are of one tile"),
    "mpp is a word": Case(tars_of(mpp="20x"), "embeddings.shards", 'mpp "20x" is no number'),
    "synthetic": Case(tars_of(synthetic=True), "embeddings.shards", "is a synthetic tile; conditions come from real ones"),
    # what nobody says
    "bank without mpp": Case(bank_without_mpp, "embeddings.bank", "does not say how many um a pixel has"),
    "pattern of folders": Case(lambda f: {**making.write_source("tiles", f), "tiles": f"{f}/til*"}, "embeddings.tiles", "is a pattern, and one folder"),
    "tiles of another size": Case(tiles_of_another_size, "embeddings.tiles", "is 48 x 48 px; tiles are 32 x 32 px"),
    "tiles without mpp": Case(tiles_without_mpp, "embeddings.tiles", "say mpp: 0.5 under embeddings"),
    # screens
    "screen leaves nothing": Case(
        lambda f: {**making.write_source("tiles", f), "screen": {"blank": 1.0, "blur": 0.9}}, "classes.alpha",
        "embeddings.screen leaves none of its 12 rows (12 bl",
    ),
    "no tumour fractions": Case(
        lambda f: {**making.write_source("tiles", f), "screen": {"min_tumour_fraction": 0.1}}, "classes.alpha", "(12 tumour_fraction)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_source_is_refused(name: str, spec_file: MakeSpec, tmp_path: Path) -> None:
    case = CASES[name]
    spec = spec_file(embeddings=case.source(tmp_path / "real"))
    before = snapshot(tmp_path)
    for command in (["build", spec, "--local"], ["plan", spec]):
        ended = run(*command)
        check_refusal(ended, case.words)
        assert f": {case.path}: " in ended.err
        assert snapshot(tmp_path) == before


WRONG_SPECS = {
    "two sources": ({"bank": "a", "hdf5": "b"}, "it has bank and hdf5"),
    "labels of a bank": ({"bank": "a", "labels": "b"}, "goes with hdf5 or arrays only, not with bank"),
    "hdf5 without labels": ({"hdf5": "a"}, "is missing; name a CSV with label and patient_id of each slide"),
    "pixels of features": ({"hdf5": "a", "labels": "b", "screen": {"pen": 0.1}}, "looks at pixels, and hdf5 has none"),
    "not unconditional": ({"unconditional": False}, "embeddings.unconditional"),
    "screen of nothing": ({"unconditional": True, "screen": {"pen": 0.1}}, "not with unconditional"),
    "no sha256": ({"bank": "a", "encoder": {"id": "e", "sha256": "5"}}, "'5' is no sha256"),
    "list of nothing": ({"bank": []}, "embeddings.bank"),
    "bank is a number": ({"bank": 5}, "embeddings.bank"),
}


@pytest.mark.parametrize("name", WRONG_SPECS)
def test_what_does_not_go_together_is_said(name: str, spec_file: MakeSpec) -> None:
    embeddings, words = WRONG_SPECS[name]
    check_refusal(run("plan", spec_file(embeddings=embeddings)), words)


def test_unconditional_needs_one_class_and_no_guidance(spec_file: MakeSpec) -> None:
    given: dict[str, Any] = {"embeddings": {"unconditional": True}, "sampler": {"guidance": {"scale": 1.0}}}
    check_refusal(run("plan", spec_file(**given)), "unconditional tiles have no classes; keep one name")
    check_refusal(
        run("plan", spec_file(**{**given, "classes": {"a": 1}, "sampler": {}})),
        "nothing can guide; write guidance: {scale: 1.0}",
    )
    screen = {"agreement": {"min": 0.1}}
    check_refusal(
        run("plan", spec_file(**given | {"classes": {"a": 1}, "screen": screen})), "there is none; leave it out"
    )
