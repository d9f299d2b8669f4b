"""`synthfactory reader-study`: a page that gives nothing away, its key, what readers' answers come to, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import stat
import subprocess
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import source_making as making
from cli_checks import check_refusal, snapshot
from PIL import Image
from running import Ended, run, write_spec
from tinymodel import make_bank_file, make_tiny_model

from synthfactory.run.reader_study import match, quotas_of
from synthfactory.shards.reader import iter_tiles

HEADER = "tile,real_or_synthetic,label_right,seconds,reader,page"


def write_real(folder: Path, patients: dict[str, int], tiles: int = 2, **more: Any) -> Path:
    """Class folders with a tiles.csv: so many patients of each class, each with so many tiles of 32 px."""
    rows = []
    for label, count in patients.items():
        for number in range(count * tiles):
            path = folder / label / f"real-{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(making.png(making.picture(1000 * len(label) + number)))
            rows.append(
                {"tile": f"{label}/{path.name}", "patient_id": f"PAT-{label}-{number // tiles}", "mpp": 0.5, **more}
            )
    making.write_csv(folder / "tiles.csv", rows)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set of alpha 20, beta 13, only-drawn 2 in out, and real tiles of alpha, beta and only-real in real."""
    folder = tmp_path_factory.mktemp("read")
    make_tiny_model(folder / "model")
    classes = {"alpha": 4, "beta": 3, "only-drawn": 3}
    bank = make_bank_file(folder / "bank.parquet", folder / "model", classes)
    counts = {"alpha": 20, "beta": 13, "only-drawn": 2}
    embeddings = {"bank": str(bank)}
    spec = write_spec(folder / "spec.yaml", model=str(folder / "model"), embeddings=embeddings, classes=counts)
    assert run("build", spec, "--local").code == 0
    write_real(folder / "real", {"alpha": 16, "beta": 9, "only-real": 2})
    return folder


@pytest.fixture
def here(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return built


def study(folder: Path, *more: object, out: Path | None = None, real: object = None) -> Ended:
    return run("reader-study", out or folder / "out", "--real", real or folder / "real", *more)


def key_of(name: str = "reader-study") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f"{name}.key.json").read_text())
    return found


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
        and "note: JPEG files are on one side only" in flat
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


# Answers


def write_answers(path: str, lines: Sequence[Sequence[object]], header: str = HEADER) -> str:
    Path(path).write_text("\n".join([header, *(",".join(map(str, line)) for line in lines)]) + "\n")
    return path


def answered(key: dict[str, Any], reader: str, right: float = 1.0, seed: int = 0) -> list[list[object]]:
    """A reader who calls that share of tiles what they are, and sees every wrong label."""
    known = np.random.default_rng(seed).random(len(key["tiles"])) < right
    return [
        [each["tile"], "real" if each["real"] == sees else "synthetic",
         "yes" if each["class"] == each["shown"] else "no", 2.5, reader, key["page"]["id"]]
        for each, sees in zip(key["tiles"], known.tolist(), strict=True)
    ]  # fmt: skip


@pytest.fixture
def sheet(here: Path) -> dict[str, Any]:
    assert study(here, "-n", 40, "--seed", 1).code == 0
    return key_of()


def score(*files: str, more: Sequence[object] = ()) -> Ended:
    options = [part for name in files for part in ("--score", name)]
    return run("reader-study", *options, "--key", "reader-study.key.json", *more)


def test_a_reader_who_sees_everything_and_one_who_guesses(sheet: dict[str, Any], here: Path) -> None:
    sees = write_answers("sees.csv", answered(sheet, "Ann"))
    ended = score(sees, more=["--report", "r.json"])
    assert ended.code == 0, ended.err
    assert max(map(len, ended.out.splitlines())) <= 80
    assert stat.S_IMODE(Path("r.json").stat().st_mode) == 0o600
    (ann,) = json.loads(Path("r.json").read_text())["readers"]
    assert ann["right"]["value"] == 1.0
    assert 0.9 < ann["right"]["interval_95"][0] < 0.912, "a little below that of 40 tiles, since two are of one patient"
    assert ann["caught"]["value"] == 1.0 and ann["caught"]["n"] == 10
    assert ann["label_right_real"]["n"] == 15
    assert ann["caught_real"]["why"].startswith("not measurable with n = 5; 10 answered tiles")
    assert ann["by_class"].keys() == {"alpha", "beta"}
    assert "Told apart: the interval lies above guessing" in ended.out
    assert "page reader-study.html: is the one of this key" in ended.out

    guesses = [[*line[:2], "yes", *line[3:]] for line in answered(sheet, "Bob", 0.5, seed=3)]
    guesses[4][1:4] = ["", "", ""]
    ended = score(sees, write_answers("guesses.csv", guesses), more=["--report", "both.json"])
    assert ended.code == 0, ended.err
    both = json.loads(Path("both.json").read_text())
    bob = both["readers"][1]
    low, high = bob["right"]["interval_95"]
    assert low < 0.5 < high
    flat = " ".join(ended.out.split())
    assert "The interval includes 50 %, which is no proof" in flat and f"up to {high:.1%} right fits" in flat
    assert "wrong ones may pass as often as right ones" in flat
    assert (bob["unanswered"], bob["labels_unanswered"]) == (1, 1)
    assert both["together"]["right"]["n"] == 79
    assert "Cohen's kappa" in ended.out and both["agreement"]["called"]["value"] < 0.5
    assert max(map(len, ended.out.splitlines())) <= 80


def test_what_no_page_wrote_is_named_by_file_and_line(sheet: dict[str, Any], here: Path, tmp_path: Path) -> None:
    good = answered(sheet, "Ann")
    other = [[*line[:5], "0123456789abcdef"] for line in good]

    def bad(name: str, line: int, column: int, value: object) -> str:
        lines = [list(each) for each in good]
        lines[line - 2][column] = value
        return write_answers(f"{name}.csv", lines)

    (tmp_path / "huge.csv").write_bytes(b"1," * (3 << 20))
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "quote.csv").write_text(f'{HEADER}\n1,"real"x,yes,1,Ann,{sheet["page"]["id"]}\n')
    (tmp_path / "empty.csv").write_text("")
    write_answers("fine.csv", good)
    before = snapshot(tmp_path)
    refusals = [
        (bad("tile", 7, 0, 41), "tile.csv:7: there is no tile '41'; the page has tiles 1 to 40"),
        (bad("minus", 7, 0, -1), "minus.csv:7: there is no tile '-1'"),
        (bad("digits", 7, 0, "9" * 5000), "digits.csv:7: there is no tile '999"),
        (bad("twice", 9, 0, 3), "twice.csv:9: tile 3 stands in line 4 too"),
        (bad("word", 5, 1, "maybe\x1b[31m"), "word.csv:5: real_or_synthetic 'maybe\\x1b[31m' is no answer; synthetic, real"),
        (bad("label", 5, 2, "perhaps"), "label.csv:5: label_right 'perhaps' is no answer; no, yes, cannot say"),
        (bad("time", 5, 3, "nan"), "time.csv:5: seconds 'nan' is no time"),
        (bad("late", 5, 3, "-2"), "late.csv:5: seconds '-2' is no time"),
        (bad("two", 8, 4, "Bob"), "two.csv:8: is of reader 'Bob', and lines before are of 'Ann'"),
        (bad("more", 6, 5, f"{sheet['page']['id']},x"), "more.csv:6: has 7 values, but the header has 6"),
        (write_answers("other.csv", other), "other.csv:2: is of page '0123456789abcdef', but the key is of page"),
        (write_answers("head.csv", good, "tile,answer"), "head.csv:1: the header is not tile,real_or_synthetic"),
        (write_answers("semi.csv", good, HEADER.replace(",", ";")), "separated by ';'"),
        (write_answers("none.csv", []), "none.csv:1: holds no answer"),
        ("huge.csv", "huge.csv: has over 4 MB"), ("bytes.csv", "bytes.csv: is no CSV in UTF-8"),
        ("quote.csv", "quote.csv:2: is no CSV"), ("empty.csv", "empty.csv:1: the header is not"),
        ("absent.csv", "absent.csv: no such file"), ("/dev/zero", "/dev/zero: no such file"), (".", "no such file"),
    ]  # fmt: skip
    for name, words in refusals:
        check_refusal(score(name, more=["--report", "r.json"]), words)
    shutil.copy("fine.csv", "again.csv")
    check_refusal(score("fine.csv", "again.csv"), "again.csv: is of reader 'Ann', and so is fine.csv")
    check_refusal(score("fine.csv", more=["--report", here / "out" / "r.json"]), "lies in the set")
    assert not Path("r.json").exists() and before.keys() <= snapshot(tmp_path).keys()


def test_a_key_goes_with_its_page_only(sheet: dict[str, Any], tmp_path: Path) -> None:
    write_answers("fine.csv", answered(sheet, "Ann"))
    place, page = Path("reader-study.key.json"), Path("reader-study.html")
    whole = place.read_text()
    changes: list[dict[str, Any]] = [
        {"format": "x"}, {"tiles": []}, {"tiles": None}, {"page": {}}, {"tiles": sheet["tiles"][1:]},
        {"tiles": [{**each, "real": 1} for each in sheet["tiles"]]}, {"set": {"name": 3, "place": ""}},
    ]  # fmt: skip
    for change in changes:
        place.write_text(json.dumps({**sheet, **change}))
        check_refusal(score("fine.csv"), "is no key of a reader study, or damaged")
    for text in ("", "[" * 100_000, "[]", '{"format": NaN}'):
        place.write_text(text)
        check_refusal(score("fine.csv"), "is no key of a reader study, or damaged")
    place.write_text(whole)
    page.write_bytes(page.read_bytes() + b" ")
    check_refusal(score("fine.csv"), "is not the page that this key was written with")
    page.unlink()
    ended = score("fine.csv")
    assert ended.code == 0 and "not beside the key, so not compared with it" in " ".join(ended.out.split())


NODE = shutil.which("node")


def act(*orders: tuple[str, object], kept: dict[str, str] | None) -> dict[str, Any]:
    """What the page's own script makes of it; `kept` is what the browser has kept, None for one that keeps nothing."""
    assert NODE is not None
    Path("orders.json").write_text(json.dumps({"kept": kept, "act": orders}))
    script = Path(__file__).parent / "reader_page.js"
    done = subprocess.run(
        [NODE, script, "reader-study.html", "orders.json"], capture_output=True, text=True, check=True, timeout=60
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(NODE is None, reason="runs the page's script in node")
def test_answers_by_keyboard_are_kept_saved_and_scored(sheet: dict[str, Any]) -> None:
    first = act(
        ("key", "r"), ("click", "begin"), ("key", "r"), ("wait", 2), ("key", "y"), ("wait", 1), ("hide", True), ("wait", 50),
        ("hide", False), ("wait", 1.25), ("key", "ArrowRight"), ("key", "S"), ("wait", 2), ("click", "download"),
        kept={},
    )  # fmt: skip
    assert first["shown"] == [2] and first["saved"] == [] and first["status"].startswith("Write your name")
    again = act(
        ("type", ' =Ann, "A"\n'), ("click", "begin"), ("key in name", "r"), ("key", "c"), ("key", "n"), ("key", "ArrowRight"),
        ("key", "ArrowLeft"), ("key", "n"), ("key", "q"), ("click", "download"), kept=first["kept"],
    )  # fmt: skip
    assert again["begin"] == "Go on (39 left)" and again["shown"] == [2]
    (saved,) = again["saved"]
    assert saved["name"] == "answers-Ann-A.csv"
    page = sheet["page"]["id"]
    lines = saved["text"].split("\r\n")
    assert lines[:4] == [
        HEADER, f'1,real,yes,4.3,"Ann,  A",{page}', f'2,synthetic,,2.0,"Ann,  A",{page}', f'3,,,0.0,"Ann,  A",{page}',
    ]  # fmt: skip
    assert len(lines) == 42 and "39 of 40 tiles are not answered yet" in again["status"]
    Path("answers.csv").write_text(saved["text"], newline="")
    ended = score("answers.csv")
    assert ended.code == 0, ended.err
    assert "unanswered: 38 real or synthetic, 39 labels" in ended.out
    hostile = {f"synthfactory-reader-study-{page}": json.dumps({"reader": 3, "answers": [{"called": "x"}, None]})}
    assert act(kept=hostile)["begin"] == "", "the button keeps its own word: nothing is taken over"
    assert "keeps nothing" in act(("click", "begin"), ("key", "s"), kept=None)["status"]
    assert act(("click", "begin"), ("key", "s"), ("key", "y"), ("click", "anew"), kept={})["shown"] == []
