"""`synthfactory reader-study`: a page that gives nothing away, its key, and what makes none."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import os
import re
import shutil
import stat
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import source_making as making
from cli_checks import check_refusal, snapshot
from PIL import Image
from reader_making import key_of, study, write_real
from running import run

from synthfactory.run.reader_choice import choose_real, match, quotas_of, wrong_labels
from synthfactory.shards.reader import iter_tiles


@pytest.fixture
def here(read_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return read_set


def images(page: str) -> list[bytes]:
    return [base64.b64decode(found) for found in re.findall(r'src="data:image/png;base64,([A-Za-z0-9+/=]+)"', page)]


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture)


def chunks(data: bytes) -> list[bytes]:
    found, at = [], 8
    while at < len(data):
        found.append(data[at + 4 : at + 8])
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return found


def test_the_page_shows_as_many_of_each_kind_and_says_nowhere_which_is_which(here: Path) -> None:
    before = snapshot(here)
    ended = study(here, "-n", 40)
    assert ended.code == 0, ended.err
    assert snapshot(here) == before
    for name in ("reader-study.html", "reader-study.key.json"):
        assert stat.S_IMODE(Path(name).stat().st_mode) == 0o600
    assert sorted(path.name for path in Path().iterdir()) == ["reader-study.html", "reader-study.key.json"]
    page, key = Path("reader-study.html").read_text(), key_of()
    assert key["page"]["sha256"] == hashlib.sha256(page.encode()).hexdigest()
    tiles = key["tiles"]
    sides = [
        Counter((each["class"], each["shown"]) for each in tiles if each["real"] is side) for side in (True, False)
    ]
    assert sides[0] == sides[1], "labels, true and shown, give no kind away"
    assert Counter(each["class"] for each in tiles) == {"alpha": 20, "beta": 20}
    assert sum(each["class"] != each["shown"] for each in tiles) == 10
    real = [each for each in tiles if each["real"]]
    assert len({each["owner"] for each in real}) == 19, "all nine patients of beta, one of them twice"

    # Pixels are those of the tiles; what holds them is alike for all.
    drawn = {key: image for key, image, _ in iter_tiles(str(here / "out"))}
    found = images(page)
    for each, data in zip(tiles, found, strict=True):
        true = pixels(Path(each["name"]).read_bytes()) if each["real"] else drawn[each["name"]]
        assert np.array_equal(pixels(data), true)
    assert len({each["name"] for each in tiles}) == 40
    assert len({(len(data), tuple(chunks(data))) for data in found}) == 1
    assert set(chunks(found[0])) == {b"IHDR", b"IDAT", b"IEND"}
    words = re.sub(r"base64,[^\"]*", "", page)
    secrets = ["PAT-", "real-0", "tiny-", str(here), "owner", "sha256", *(each["name"] for each in tiles)]
    assert not [word for word in secrets if word in words]
    assert re.findall(r"<figure[^>]*>", words) == [f'<figure data-tile="{number}" hidden>' for number in range(1, 41)]
    assert [*re.findall(r"Label shown: <strong>([^<]*)<", page)] == [each["shown"] for each in tiles]

    # What readers and whoever runs it must know.
    flat = " ".join(words.split())
    assert "INTERNAL: not to be published" in flat and "10 of the 40 labels are wrong on purpose" in flat
    assert "INTERNAL: the page shows tiles of real patients" in " ".join(ended.out.split())
    assert "left out: only-drawn: the set alone has it" in ended.out
    assert "left out: only-real: only real tiles have it" in ended.out
    assert "20 real tiles of 19 patients\n" in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80


class Checked(HTMLParser):
    """Whether elements close in order, and what is fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.ids, self.fetched, self.labels = list[str](), Counter[str](), list[str](), list[str | None]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids.update([given["id"]] if given.get("id") else [])
        self.labels += [given.get(name) for name in ("for", "aria-labelledby") if name in given]
        self.fetched += [str(given[name]) for name in ("src", "href", "action", "srcset", "data") if name in given]
        assert tag != "textarea" or "readonly" in given
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_html_that_fetches_nothing_and_class_names_are_inert(tmp_path: Path) -> None:
    from synthfactory.report.reader import Sheet, png_base64, reader_page

    png, name = png_base64(making.picture(1)), '<img src=x onerror="alert(1)">&'
    page = reader_page(Sheet([(png, name), (png, "b")], 32, 0.5, [name, "b"], 1, "tile"))[0].decode()
    checked = Checked()
    checked.feed(page)
    assert checked.open == []
    assert max(checked.ids.values()) == 1
    assert set(checked.labels) <= checked.ids.keys()
    assert len(checked.fetched) == 2 and all(place.startswith("data:image/png;base64,") for place in checked.fetched)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page.replace(png, ""))
    assert "default-src 'none'" in page and "<img src=x" not in page


def test_the_order_follows_from_what_readers_do_not_know(here: Path, tmp_path: Path) -> None:
    for name, more in (("a", ["--seed", 7]), ("b", ["--seed", 7]), ("c", ["--seed", 8]), ("d", []), ("e", [])):
        assert study(here, "-n", 20, "-o", f"{name}.html", *more).code == 0
    pages = {name: Path(f"{name}.html").read_bytes() for name in "abcde"}
    assert pages["a"] == pages["b"]
    assert len(set(pages.values())) == 4
    shutil.copytree(here / "real", tmp_path / "other")
    listing = tmp_path / "other" / "tiles.csv"
    listing.write_text(listing.read_text().replace("PAT-", "SUB-"))
    assert study(here, "-n", 20, "-o", "f.html", "--seed", 7, real=tmp_path / "other").code == 0
    assert Path("f.html").read_bytes() != pages["a"], "else whoever guesses the seed has the order"
    orders = [[each["real"] for each in key_of(name)["tiles"]] for name in "acdef"]
    assert len({tuple(order) for order in orders}) == 5


def test_as_many_patients_as_can_be_are_shown_once_each() -> None:
    owners = {"a": [1, 2], "b": [1, 2, 3, 4], "c": [2]}  # greedy a: 1, 2 would leave c none
    found = match({"a": 1, "b": 2, "c": 1}, owners)
    assert Counter(found.values()) == {"a": 1, "b": 2, "c": 1} and found[2] == "c"
    assert all(owner in owners[label] for owner, label in found.items())
    assert quotas_of(10, {"a": 2, "b": 9, "c": 9, "d": 0}) == {"a": 2, "b": 4, "c": 4}
    assert quotas_of(10, {"a": 2, "b": 3}) == {"a": 2, "b": 3}


def test_whom_a_study_shows_does_not_depend_on_how_many_tiles_they_have() -> None:
    """Four patients of 40 tiles and eight of one: two of twelve are shown, those of many tiles a third of the time."""
    patients = [f"p{number // 40}" for number in range(160)] + [f"q{number}" for number in range(8)]
    tiles: Any = SimpleNamespace(patient_ids=patients, slide_ids=[None] * 168, labels=["a"] * 168)
    large = 0
    for seed in range(200):
        rows, _ = choose_real(seed.to_bytes(16, "big"), tiles, {"a": 2}, lambda row: str(row).encode())
        large += sum(row < 160 for row in rows)
    assert 95 < large < 172, "400 are shown; by tiles it would be nearly all"


def test_one_class_and_unknown_patients_and_jpeg_are_said(here: Path, tmp_path: Path) -> None:
    real = write_real(tmp_path / "some", {"alpha": 8}, patient_id="")
    for path in (real / "alpha").iterdir():
        Image.open(path).save(path, "JPEG")
    ended = study(here, "-n", 60, real=real)
    assert ended.code == 0, ended.err
    flat = " ".join(ended.out.split())
    assert "reader-study.html: 32 tiles, 16 real and 16 synthetic, of 1 class;" in flat
    assert (
        "16 of 16 real tiles name no patient" in flat
        and "16 patients" not in flat
        and "note: files are JPEG, PNG; what a lossy codec leaves may tell the sides apart" in flat
    )
    assert "60 tiles were asked for" in flat and "no label is wrong on purpose" in flat
    assert "No label is wrong on purpose" in Path("reader-study.html").read_text()
    assert all(each["class"] == each["shown"] for each in key_of()["tiles"])


def test_what_makes_no_page_is_refused_and_nothing_written(here: Path, tmp_path: Path) -> None:
    small = write_real(tmp_path / "small", {"alpha": 2})
    large = tmp_path / "large"
    making.write_csv(tmp_path / "x.csv", [{"tile": "a.png", "label": "alpha", "label_level": "tile", "mpp": 0.5}] * 1)
    shutil.copytree(here / "real", large)
    for path in (large / "alpha").iterdir():
        path.write_bytes(making.png(making.picture(1, 48)))
    for name in ("damaged", "short"):
        shutil.copytree(here / "out", tmp_path / name)
    for tar in (tmp_path / "damaged" / "shards").glob("*.tar"):
        tar.write_bytes(b"x" * tar.stat().st_size)
    next((tmp_path / "short" / "shards").glob("*.tar")).write_bytes(b"x")
    (tmp_path / "there.html").write_text("")
    (tmp_path / "half.key.json").write_text("")
    before = snapshot(tmp_path)
    inside = here / "out" / "page.html"
    refusals = [
        (study(here, real=here / "bank.parquet"), "holds embeddings and no pixels"),
        (study(here, real=here / "nowhere"), "--real " + str(here / "nowhere") + ": no such file or folder"),
        (study(here, real=here / "out"), "holds neither tiles.csv"),
        (study(here, real=str(here / "out" / "shards" / "*.tar")), "is a synthetic tile"),
        (study(here, real=small), "4 tiles a side of a class that both have, and 5 are needed"),
        (study(here, real=large), "is 48 x 48 px; tiles are 32 x 32 px"),
        (study(here, real=tmp_path / "x.csv"), "1 tile a side"),
        (study(here, out=here / "real"), "so it is no set of synthfactory's"),
        (study(here, out=tmp_path / "nothing"), "holds no set"),
        (study(here, out=tmp_path / "damaged"), "is no tar, or not of the ustar kind; `synthfactory verify"),
        (study(here, out=tmp_path / "short"), "has 1 fault; `synthfactory verify"),
        (study(here, "-o", inside), "lies in the set, and the page is internal"),
        (study(here, "-o", "page.txt"), "-o page.txt: is no local HTML file"),
        (study(here, "-o", "no/page.html"), "name a file in a folder that is there"),
        (study(here, "-o", "there.html"), "there.html is there already"),
        (study(here, "-o", "half.html"), "half.key.json is there already"),
        (run("reader-study", here / "out"), "needs OUT and --real SOURCE"),
        (study(here, "--score", "a.csv", "--key", "k.json"), "OUT: is for making a page"),
        (run("reader-study", "--score", "a.csv"), "--score, --key: go together"),
        (run("reader-study", "--report", "a.json", "--key", "k.json"), "--score, --key: go together"),
    ]
    for ended, words in refusals:
        check_refusal(ended, words)
    assert snapshot(tmp_path) == before
    assert not inside.exists()


def test_neither_file_is_left_where_one_cannot_be_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    link = os.link

    def fails(source: str, target: Path) -> None:
        if Path(target).suffix == ".html":
            raise OSError(28, "No space left on device")
        link(source, target)

    monkeypatch.setattr(os, "link", fails)
    check_refusal(study(here, "-n", 20), "cannot be written (No space left on device)")
    assert list(Path().iterdir()) == []


def test_a_picture_is_shown_once_and_copies_make_no_page(here: Path, tmp_path: Path) -> None:
    """Seen twice, it would be known for real."""
    real = write_real(tmp_path / "copies", {"alpha": 16, "beta": 9})
    for path in (real / "alpha").iterdir():
        if path.name >= "real-014.png":
            path.write_bytes((real / "alpha" / "real-000.png").read_bytes())
    assert study(here, "-n", 32, real=real).code == 0
    page = Path("reader-study.html").read_text()
    assert len({pixels(data).tobytes() for data in images(page)}) == len(images(page))
    refused = study(here, "-n", 60, "-o", "more.html", real=real)
    check_refusal(refused, "alpha has 14 tiles that differ, and 17 are to be shown; the rest are copies")
    assert not Path("more.html").exists()


@pytest.mark.parametrize("options", [{"format": "WEBP", "quality": 60}, {"format": "TIFF", "compression": "jpeg"}])
def test_every_lossy_codec_is_said(here: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    real = write_real(tmp_path / "lossy", {"alpha": 8})
    for path in (real / "alpha").iterdir():
        with Image.open(path) as picture:
            picture.save(path, **options)
    ended = study(here, "-n", 20, real=real)
    assert ended.code == 0, ended.err
    assert "what a lossy codec leaves may tell the sides apart" in " ".join(ended.out.split())


def test_wrong_labels_are_of_all_classes_and_follow_the_secret() -> None:
    names = [f"c{number}" for number in range(10)]
    for each, wrong in ((1, 2), (4, 10), (8, 20)):
        labels = [name for name in names for _ in range(each)]
        found = {
            tuple(at for at, label in enumerate(wrong_labels(bytes([key]), names, labels)) if label != labels[at])
            for key in range(20)
        }
        assert len(found) > 15, "which labels are wrong follows from the secret"
        for places in found:
            of_class = Counter(labels[at] for at in places)
            assert sum(of_class.values()) == wrong
            assert max(of_class.values()) - min(of_class.get(name, 0) for name in names) <= 1


def test_a_disk_without_links_has_its_page_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refused)
    assert study(here, "-n", 20).code == 0
    assert Path("reader-study.html").read_bytes()[:1] == b"<" and key_of()["tiles"]
    assert study(here, "-n", 20).code == 2, "never over a page that is there"
    real, calls = os.fsync, []

    def full(number: int) -> None:
        calls.append(number)
        if len(calls) == 4:  # both are written beside, the key is in its place, and the page is not
            raise OSError(errno.ENOSPC, "full")
        real(number)

    monkeypatch.setattr(os, "fsync", full)
    assert study(here, "-n", 20, "-o", "full.html").code == 2
    assert not list(Path().glob("*full*"))
