"""`synthfactory reader-study --score`: what readers' answers come to, what no page wrote, and the page's own script."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_checks import check_refusal, snapshot
from reader_making import key_of, study, write_real
from running import Ended, run

HEADER = "tile,real_or_synthetic,label_right,seconds,reader,page"


@pytest.fixture
def here(read_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return read_set


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


def report_of(*files: str) -> str:
    """The report of these answers, which are scored."""
    Path("of.json").unlink(missing_ok=True)
    ended = score(*files, more=["--report", "of.json"])
    assert ended.code == 0, ended.err
    return Path("of.json").read_text()


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


def test_scores_on_patients_of_the_models_training_set_are_marked(here: Path, tmp_path: Path) -> None:
    real = write_real(tmp_path / "tcga", {"alpha": 16, "beta": 9}, slide_id="TCGA-AB-1234-01Z-00-DX1")
    ended = study(here, "-n", 40, "--seed", 1, real=real)
    assert ended.code == 0, ended.err
    assert "20 real tiles are of 1 patient of TCGA, on which CytoSyn was trained" in " ".join(ended.out.split())
    key = key_of()
    assert key["contaminated"] == {"tiles": 20, "patients": 1}
    assert "TCGA" not in Path("reader-study.html").read_text()
    files = [write_answers(f"{name}.csv", answered(key, name)) for name in ("Ann", "Bob")]
    ended = score(*files, more=["--report", "r.json"])
    assert ended.code == 0, ended.err
    found = json.loads(Path("r.json").read_text())
    assert found["contaminated"] == key["contaminated"]
    assert all(each["contaminated"] is True for each in (*found["readers"], found["together"], found["agreement"]))
    assert "\n* contaminated: CytoSyn was trained on TCGA (20 real tiles, 1 patient)\n" in ended.out
    for words in ("reader Ann* ", "all 2 readers who answered* ", "agreement of readers*, "):
        assert f"\n{words}" in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80
    for wrong in ({"tiles": "many", "patients": 1}, {"tiles": 1}, [], "yes"):
        Path("reader-study.key.json").write_text(json.dumps({**key, "contaminated": wrong}))
        check_refusal(score(*files), "is no key of a reader study")
    earlier = {name: value for name, value in key.items() if name != "contaminated"}
    Path("reader-study.key.json").write_text(json.dumps(earlier))
    assert "contaminated" not in score(*files).out


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
        (write_answers("semi.csv", good, HEADER.replace(",", ";")), "semi.csv:2: has 1 values"),
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


def test_what_a_spreadsheet_made_of_answers_is_read_as_they_were(sheet: dict[str, Any], tmp_path: Path) -> None:
    """By columns' names; separated by semicolons, with decimal commas, numbers of tiles as 1.0 and empty rows behind the last."""
    good = [[*line[:3], "4.5", *line[4:]] for line in answered(sheet, "Ann")]
    write_answers("Ann.csv", good)
    plain = json.loads(report_of("Ann.csv"))
    order = [5, 0, 3, 1, 4, 2]
    header = HEADER.split(",")
    rows = [[line[at] for at in order] for line in good]
    (tmp_path / "moved.csv").write_text(
        "\n".join([",".join(header[at] for at in order), *(",".join(map(str, row)) for row in rows)])
    )
    semi = [[f"{line[0]}.0", *line[1:3], "4,5", *line[4:]] for line in good]
    (tmp_path / "semi.csv").write_text(
        "\ufeff" + "\r\n".join([";".join(header), *(";".join(map(str, row)) for row in semi), ";;;;;", ""])
    )
    for name in ("moved.csv", "semi.csv"):
        found = json.loads(report_of(name))
        assert {**found["readers"][0], "file": ""} == {**plain["readers"][0], "file": ""}, name


def test_who_answered_nothing_and_copies_are_no_readers(sheet: dict[str, Any], tmp_path: Path) -> None:
    lines = answered(sheet, "Ann")
    timed = [[*line[:3], str(number % 7), *line[4:]] for number, line in enumerate(lines)]
    write_answers("Ann.csv", timed)
    write_answers("Zed.csv", [[line[0], "", "", "", "Zed", line[5]] for line in lines])
    ended = score("Ann.csv", "Zed.csv")
    assert ended.code == 0, ended.err
    assert "all 2 readers" not in ended.out and "answered nothing: Zed" in ended.out
    half = [
        [*line[:1], "", "", "0.0" if number % 2 else "", *line[4:]] if number >= 20 else line
        for number, line in enumerate(timed)
    ]
    write_answers("half.csv", half)
    assert json.loads(report_of("half.csv"))["readers"][0]["median_seconds"] > 0, (
        "tiles that were not answered took no time"
    )
    write_answers("copy.csv", [[*line[:4], "Bob", line[5]] for line in timed])
    check_refusal(score("Ann.csv", "copy.csv"), "copy.csv: holds the very answers of Ann.csv")
    for name in ("Cid", "Dan"):
        write_answers(f"{name}.csv", [[*line[:3], "", name, line[5]] for line in lines])
    untimed = " ".join(score("Cid.csv", "Dan.csv", "Zed.csv", "Ann.csv").out.split())
    assert untimed.count("gave the very same answers") == 1 and "note: Cid and Dan gave the very same" in untimed
    write_answers("Zoe1.csv", [[*line[:4], "Zo\u00eb", line[5]] for line in lines])
    write_answers("Zoe2.csv", [[*line[:4], "zoe\u0308", line[5]] for line in lines])
    check_refusal(score("Zoe1.csv", "Zoe2.csv"), "and so is Zoe1.csv")


def test_a_figure_says_how_many_readers_it_rests_on_and_what_is_needed(sheet: dict[str, Any]) -> None:
    """Of three readers Cid called no tile; so two are behind what is called, and their agreement does not end with him."""
    lines = {name: answered(sheet, name, 0.8, seed) for seed, name in enumerate(("Ann", "Bob", "Cid"))}
    for line in lines["Cid"]:
        line[1] = ""
    files = [write_answers(f"{name}.csv", each) for name, each in lines.items()]
    found = json.loads(report_of(*files))
    assert (found["together"]["right"]["readers"], found["together"]["caught"]["readers"]) == (2, 3)
    assert [found["agreement"][name]["readers"] for name in ("called", "label")] == [2, 3]
    assert found["agreement"]["called"]["value"] is not None
    shown = score(*files).out
    together = shown.partition("all 3 readers who answered")[2].splitlines()
    (right,) = [line for line in together if line.startswith("right (50 %")]
    (caught,) = [line for line in together if line.startswith("wrong labels caught")]
    assert right.endswith(" 80, 2 readers") and caught.endswith(" 30")
    assert "agreement of readers, Cohen's/Fleiss' kappa" in shown
    assert "\n  -: 10 answered tiles are needed\n" in shown, "of five wrong labels of real tiles"
    assert max(map(len, shown.splitlines())) <= 80
    alone = score(files[0], files[2]).out
    assert "not measurable with one reader" in alone
    (right,) = [line for line in alone.partition("all 2 readers")[2].splitlines() if line.startswith("right (50 %")]
    assert right.endswith(" 40, 1 reader")


def test_a_key_goes_with_its_page_only(sheet: dict[str, Any], tmp_path: Path) -> None:
    write_answers("fine.csv", answered(sheet, "Ann"))
    place, page = Path("reader-study.key.json"), Path("reader-study.html")
    whole = place.read_text()
    turned = [{**each, "real": not each["real"]} if each["tile"] == 1 else each for each in sheet["tiles"]]
    changes: list[dict[str, Any]] = [
        {"tiles": turned}, {"tiles": [{**each, "real": False} for each in sheet["tiles"]]},
        {"format": "x"}, {"tiles": []}, {"tiles": None}, {"page": {}}, {"tiles": sheet["tiles"][1:]},
        {"tiles": [{**each, "real": 1} for each in sheet["tiles"]]}, {"set": {"name": 3, "place": ""}},
        {"set": {**sheet["set"], "place": "out\0"}},
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
        HEADER, f'1,real,yes,4.3,"Ann,  A",{page}', f'2,synthetic,,2.0,"Ann,  A",{page}', f'3,,,,"Ann,  A",{page}',
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


def test_a_report_replaces_nothing_but_a_report(sheet: dict[str, Any]) -> None:
    """The key is there once: without it no answer can ever be scored."""
    answers, key = write_answers("a.csv", answered(sheet, "ann")), Path("reader-study.key.json")
    before = key.read_bytes()
    check_refusal(score(answers, more=["--report", key]), "is there already and is no report of this kind")
    assert key.read_bytes() == before
    for _ in range(2):  # of the same kind: again
        assert score(answers, more=["--report", "scores.json"]).code == 0


def test_homes_of_nobody_and_numbers_that_are_none_are_one_error(sheet: dict[str, Any]) -> None:
    check_refusal(score("~nosuchuser/a.csv"), "no such file")
    answers = write_answers("a.csv", answered(sheet, "ann"))
    check_refusal(score(answers, more=["--report", "~nosuchuser/r.json"]), "cannot be written")
    key = Path("reader-study.key.json")
    key.write_text(key.read_text().replace('"set": {', '"set": {"z": NaN, ', 1))
    check_refusal(score(answers, more=["--report", "r.json"]), "is no key of a reader study, or damaged")
