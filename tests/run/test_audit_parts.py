"""Parts of an audit on their own: its mechanism, its products, its table, its sources."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from running import run
from tinymodel import make_tiny_model

from synthfactory.evaluate.audit import Real
from synthfactory.evaluate.neighbours import nearest
from synthfactory.model.encoder import open_encoder
from synthfactory.model.weights import load_encoder
from synthfactory.phantom import CLASSES, cohort_tiles
from synthfactory.phantom.cohort import write_folder
from synthfactory.report.audit import render
from synthfactory.run import audit_setup, products
from synthfactory.run.audit_setup import Asked, mechanism_of
from synthfactory.run.audit_tiles import Source, open_source
from synthfactory.run.auditing import Mechanism
from synthfactory.run.people import NOBODY
from synthfactory.spec.errors import InputError


def test_a_mechanism_is_read_from_the_lock_and_may_not_be_contradicted() -> None:
    asked = Asked("OUT", "a", "b")
    assert mechanism_of({"recipe": {}}, asked) == Mechanism("none")
    stated = {"recipe": {"privacy": {"mechanism": "dp", "epsilon": 3.0, "delta": 1e-6, "more": 1}}}
    assert mechanism_of(stated, asked) == Mechanism("dp", 3.0, 1e-6)
    assert mechanism_of({"recipe": {"privacy": {"mechanism": "mix"}}}, asked) == Mechanism("mix")
    assert mechanism_of(stated, Asked("OUT", "a", "b", mechanism="dp", epsilon=3.0)) == Mechanism("dp", 3.0, 1e-6)
    for more, words in (({"epsilon": 2.0}, "says 3; leave"), ({"delta": 1e-5}, "says 1e-06; leave")):
        with pytest.raises(InputError, match=words):
            mechanism_of(stated, Asked("OUT", "a", "b", mechanism="dp", **more))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="says dp; leave the option out"):
        mechanism_of(stated, Asked("OUT", "a", "b", mechanism="none"))


def test_coarse_products_give_the_same_neighbours() -> None:
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    queries, references = (random.standard_normal((n, 40)).astype(np.float32) for n in (60, 500))
    coarse = products.bfloat16_product(torch.device("cpu"))
    for given in ((queries, references), (1 + 0.001 * queries, 1 + 0.001 * references)):
        rows, distances = nearest(*given, 5, product=coarse)
        wanted, apart = nearest(*given, 5)
        assert np.array_equal(rows, wanted)
        assert np.array_equal(distances, apart)


def test_a_table_fits_80_columns_whatever_is_in_it() -> None:
    gone = {"value": None, "why": "not measurable with n = 3; more are needed"}
    found = {
        "set": {"name": "t", "tiles": 10**9, "lock_sha256": "0" * 64}, "internal": "Names. An audit that finds nothing proves nothing.",
        "members": {"tiles": 10**8, "patients": 10**6, "of_the_set": {"patients": 10**6, "found": 10**6}},
        "holdout": {"tiles": 10**8, "patients": 10**6},
        "encoder": {"id": "e", "note": "n"}, "controls": {"planted copies": {"passed": None, "why": "w"}}, "copies": {"rate": gone},
        "nearer_to_members": gone, "ratio_to_second": gone, "membership": gone, "epsilon": gone, "not_measured": ["x"],
    }  # fmt: skip
    lines = render(found)
    assert any("not measurable with n = 3" in line for line in lines)
    assert lines[-1] == "An audit that finds nothing proves nothing."


def test_a_tile_of_which_nobody_is_known_is_no_patient_behind_the_set(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = {"a": Counter({NOBODY: 3, "p1": 2}), "b": Counter({"p2": 1})}
    monkeypatch.setattr(audit_setup, "check_rests", lambda standing: None)
    monkeypatch.setattr(audit_setup, "resting", lambda standing, lineage: tiles)
    real = Real(np.eye(4, dtype=np.float32), np.array(["P1", "p2", "p2", "p3"]), np.array(["a", "a", "b", "a"]))
    others = Source("others", Real(real.embeddings[:1], np.array(["p4"]), np.array(["a"])))
    rows, counts = audit_setup._behind(None, "lineage", Source("bank", real), others)  # type: ignore[arg-type]
    assert counts == {"patients": 2, "found": 2, "tiles_of_nobody": 3}
    assert rows.tolist() == [0, 2], "class by class"


def test_folders_tars_and_packed_sets_are_one_source(tmp_path: Path) -> None:
    """Phantom tiles of 224 px, by the built-in encoder: the same tiles, patients and pixels however they come."""
    list(write_folder(tmp_path / "folder", cohort_tiles("heldout", dict.fromkeys(CLASSES[:2], 3))))
    ended = run(
        "pack",
        tmp_path / "folder",
        tmp_path / "packed",
        "--metadata",
        tmp_path / "folder/tiles.csv",
        "--label-level",
        "tile",
    )
    assert ended.code == 0, ended.err
    encoder = open_encoder("phantom")
    vit = load_encoder(encoder)
    found = [
        open_source(str(tmp_path / name), "--members", encoder, vit.embed, lambda what, total: lambda count: None)
        for name in ("folder", "packed")
    ]
    one, other = (
        sorted(zip(each.real.patients, each.real.classes, each.real.embeddings.round(3).tolist(), strict=True))
        for each in found
    )
    assert one == other
    assert all(each.pixels is not None and each.pixels(0).shape == (224, 224, 3) for each in found)
    tiny = open_encoder(str(make_tiny_model(tmp_path / "model")))
    with pytest.raises(InputError, match=r"--members: .* is 224 x 224 px; tiles are 32 x 32 px"):
        open_source(
            str(tmp_path / "folder"),
            "--members",
            tiny,
            load_encoder(tiny).embed,
            lambda what, total: lambda count: None,
        )
