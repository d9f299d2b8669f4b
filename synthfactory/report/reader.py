"""The page of a reader study, HTML that fetches nothing; and what its readers told apart, as text of at most 80 columns."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from synthfactory.report.card import TEMPLATES, environment
from synthfactory.spec.text import counted, shown

Json = Mapping[str, Any]
NAME = 33
FIGURES = {  # a figure -> its line
    "right": "right (50 % is guessing)",
    "synthetic_called_real": "synthetic called real",
    "real_called_synthetic": "real called synthetic",
    "label_right_real": "label called right, real",
    "label_right_synthetic": "label called right, synthetic",
    "label_difference": "  real less synthetic",
    "caught": "wrong labels caught",
    "caught_real": "  of real tiles",
    "caught_synthetic": "  of synthetic tiles",
    "label_told": "right less wrong labels accepted",
}
DIFFERENCES = ("label_difference", "label_told")


@dataclass(frozen=True)
class Sheet:
    """What the page shows: (PNG as base64, label) of each tile in order, and nothing that tells one kind from the other."""

    tiles: Sequence[tuple[str, str]] = field(repr=False)
    size_px: int
    mpp: float
    labels: Sequence[str]
    wrong: int
    level: str = ""  # what labels were given to, '' where unknown


def png_base64(image: np.ndarray) -> str:
    """uint8 (H, W, 3) as a PNG without metadata or compression: its length follows from H and W alone, whatever it shows."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", compress_level=0)
    return base64.b64encode(buffer.getvalue()).decode()


def reader_page(sheet: Sheet) -> tuple[bytes, str]:
    """(the page, its id): a pure function of the sheet; the id is one of what is shown, and stands in every line of answers."""
    page_id = hashlib.sha256(repr((sheet.tiles, sheet.labels)).encode()).hexdigest()[:16]
    text = (
        environment(html=True)
        .get_template("reader-study.html.j2")
        .render(
            page_id=page_id,
            count=len(sheet.tiles),
            size_px=sheet.size_px,
            mpp=f"{sheet.mpp:g}",
            labels=sheet.labels,
            wrong=sheet.wrong,
            level=sheet.level,
            tiles=[{"png": png, "label": label} for png, label in sheet.tiles],
            style=_own("reader-study.css"),
            script=_own("reader-study.js"),
        )
    )
    return text.encode(), page_id


def _own(name: str) -> Markup:
    """A file of ours, as it is: style and script hold nothing of the sheet."""
    return Markup((TEMPLATES / name).read_text().rstrip("\n"))


def render(found: Json) -> list[str]:
    """What was read, all figures with 95 % intervals or the reason why there are none, and what they do not show."""
    tiles, page = found["tiles"], found["page"]
    lines = [
        f"reader study of {shown(found['set']['name'])}: {tiles['real']:,} real and {tiles['synthetic']:,} synthetic tiles, "
        f"{tiles['wrong']:,} with a wrong label on purpose",
        f"page {shown(page['name'])}: {'is the one of this key' if page['compared'] else 'not beside the key, so not compared with it'}",
    ]
    if found["contaminated"] is not None:
        counts = (
            f"{found['contaminated']['tiles']:,} real tiles, {counted(found['contaminated']['patients'], 'patient')}"
        )
        lines.append(f"* contaminated: CytoSyn was trained on TCGA ({counts})")
    for reader in found["readers"]:
        lines += _block(f"reader {shown(reader['reader'], 40)}", reader)
    if found["together"] is not None:
        lines += _block(f"all {counted(found['together']['readers'], 'reader')} who answered", found["together"])
        both, readers = [found["agreement"][name] for name in ("called", "label")], found["together"]["readers"]
        name = "/".join(sorted({"Cohen's" if each["readers"] == 2 else "Fleiss'" for each in both}))
        title = f"agreement of readers{_mark(found['agreement'])}, {name} kappa"
        lines += ["", f"{title:<{NAME + 5}}  value  95 % interval      of"]
        for words, figure in zip(("real or synthetic", "labels"), both, strict=True):
            lines += _line(words, figure, "{:.2f}", NAME + 5, readers)
        lines += _needs(both)
    for one, other in found["alike"]:
        lines += [
            "",
            f"note: {shown(one, 40)} and {shown(other, 40)} gave the very same answers, and no times tell whether they are one person; "
            "if they are, leave one out",
        ]
    if found["answered_nothing"]:
        lines += ["", f"answered nothing: {', '.join(shown(name, 40) for name in found['answered_nothing'])}"]
    return [*lines, "", "50 % is guessing. " + found["internal"]]


def _mark(section: Json) -> str:
    """An asterisk where real tiles of it are of the model's own training set."""
    return "*" if section["contaminated"] else ""


def _block(title: str, found: Json) -> list[str]:
    """A reader's, or everybody's: then a figure that not all have answers to says how many have."""
    readers = found.get("readers", 1)
    lines = ["", f"{title + _mark(found):<{NAME + 5}}  value  95 % interval      of"]
    for name, words in FIGURES.items():
        number = "{:+.1%}" if name in DIFFERENCES else "{:.1%}"
        lines += _line(words, found[name], number, NAME + 5, readers)
    for name, figure in found["by_class"].items():
        lines += _line(f"right, {shown(name, NAME - 7)}", figure, "{:.1%}", NAME + 5, readers)
    lines += _needs([*(found[name] for name in FIGURES), *found["by_class"].values()])
    seconds = "" if found["median_seconds"] is None else f"; {found['median_seconds']:.1f} s a tile (median)"
    return [
        *lines,
        f"unanswered: {found['unanswered']:,} real or synthetic, {found['labels_unanswered']:,} labels; "
        f"{found['cannot_say']:,} times 'cannot say'{seconds}",
        *found["says"],
    ]


def _needs(figures: Sequence[Json]) -> list[str]:
    """What those lack that are not measurable."""
    needs = {str(each["why"]).partition("; ")[2] for each in figures if each["value"] is None}
    return [f"  -: {need}" for need in sorted(needs - {""})]


def _line(words: str, figure: Json, number: str, width: int, readers: int) -> list[str]:
    if figure["value"] is None:
        return [f"{words:<{width - 5}} {'-':>11}  {str(figure['why']).partition('; ')[0]}"]
    low, high = (number.format(end) for end in figure["interval_95"])
    fewer = f", {counted(figure['readers'], 'reader')}" if figure["readers"] < readers else ""
    return [
        f"{words:<{width - 5}} {number.format(figure['value']):>11}  {f'{low} to {high}':<18} {figure['n']:,}{fewer}"
    ]
