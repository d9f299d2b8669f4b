"""From what `synthfactory evaluate` was asked for to a written report: sides, spaces, codecs, and what was not measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from synthfactory.evaluate import texture
from synthfactory.evaluate.utility import Augmented
from synthfactory.model.encoder import open_encoder
from synthfactory.run.audit_setup import Steps, check_whole, fitting_encoder
from synthfactory.run.audit_tiles import report_place, write_report
from synthfactory.run.auditing import lock_sha256
from synthfactory.run.codecs import Pool, check_codecs, codec_study
from synthfactory.run.contamination import mark, of_training_set
from synthfactory.run.eval_tiles import (
    Behind,
    DrawnSide,
    RealSide,
    augmentation,
    augmented_items,
    check_content,
    check_unseen,
    drawn_items,
    drawn_side,
    lossy,
    mixed,
    open_real,
    patients_behind,
)
from synthfactory.run.evaluating import (
    Sides,
    fidelity_figures,
    shortcut_figures,
    site_figures,
)
from synthfactory.run.prepare import Standing, read_standing
from synthfactory.run.spaces import Kept, Space, embedded_in, encoder_space, texture_space
from synthfactory.run.worth import cnn_figures, utility_figures
from synthfactory.shards.manifest import LOCK
from synthfactory.spec.errors import InputError
from synthfactory.spec.text import shown, without_secrets

FORMAT = "synthfactory-evaluation/1"
INTERNAL = "Derived from real data, and covered by no epsilon: internal, never part of a set."
AUGMENTED = 3000  # tiles turned and stained anew, at most
TEXTURE = "texture"


@dataclass(frozen=True)
class Asked:
    """The command's arguments. `encoders` are further ones, beside the set's own; `codecs` such as png, jpeg95."""

    out: str
    real: str
    unseen: str | None = None
    encoders: tuple[str, ...] = ()
    model: str | None = None
    lineage: str | None = None
    seeds: int = 3
    cnn: bool = False
    codecs: tuple[str, ...] = ()
    mixed_codecs: bool = False
    public: str | None = None
    report: str = "evaluation.json"


def evaluated(asked: Asked, say: Callable[[str], None]) -> dict[str, Any]:
    """The report, written to its place. InputError for what cannot be compared, before anything is embedded."""
    place = report_place(asked.report, asked.out, form=FORMAT)
    public = (
        None
        if asked.public is None
        else report_place(asked.public, asked.out, "--public", "what rests on real data", form=FORMAT)
    )
    if public is not None and public.resolve() == place.resolve():
        raise InputError(f"--public {asked.public}: is the internal report itself; name another file")
    check_codecs(asked.codecs)
    standing = read_standing(asked.out)
    lock = standing.lock
    if lock is None:
        raise InputError(f"{asked.out}: holds no set (no {LOCK}); name the output.path of a build")
    own = fitting_encoder(lock, asked.out, None, None, asked.model)
    size_px = own.image_size_px
    check_whole(asked.out, standing)
    real = open_real(asked.real, "--real", own)
    unseen = None if asked.unseen is None else open_real(asked.unseen, "--unseen", own)
    _check_apart(real, unseen)
    if asked.cnn and any(side is not None and side.tiles is None for side in (real, unseen)):
        raise InputError("--cnn: learns from pixels, and a bank has none; name sources with pixels")
    _check_codecs(asked, lock, [side for side in (real, unseen) if side is not None])
    behind = None if asked.lineage is None else patients_behind(asked.lineage, standing.commits)
    if behind is not None and unseen is not None:
        check_unseen(unseen, behind)
    spaces = _spaces(asked, own, size_px, pixels=all(side is None or side.tiles is not None for side in (real, unseen)))
    kept = Kept(place.with_name(f"{place.name}.parts"))
    steps = Steps(say)
    try:
        sides, drawn = _embedded(asked, standing, real, unseen, behind, spaces, size_px, kept, steps)
        by_space = {
            space.name: {
                "space": space.to_json(),
                "fidelity": fidelity_figures(sides[space.name], kept, steps.begin),
                "utility": utility_figures(sides[space.name], kept, steps.begin, asked.seeds),
                "told_apart": shortcut_figures(sides[space.name], kept, steps.begin),
            }
            for space in spaces
        }
        cnn: dict[str, Any] = {}
        if asked.cnn:
            read = partial(_images, asked.out, standing, {"real": real, "unseen": unseen}, size_px)
            cnn = cnn_figures(sides[spaces[0].name], read, kept, steps.begin, asked.seeds)
        codecs: dict[str, Any] = {}
        if asked.codecs and any(side is not None and side.tiles is None for side in (unseen or real, real)):
            codecs = {"why": "a bank has no pixels that could be saved anew"}
        elif asked.codecs:
            pool = Pool(
                sides,
                spaces,
                lambda: drawn_items(asked.out, standing.store, size_px, []),
                lambda: (unseen or real).items(size_px),
            )
            codecs = codec_study(pool, asked.codecs, kept, steps.begin)
    finally:
        steps.close()
    any_side = sides[spaces[0].name]
    found: dict[str, Any] = {
        "format": FORMAT,
        "internal": INTERNAL,
        "set": {
            "place": without_secrets(asked.out), "name": lock["name"],
            "lock_sha256": lock_sha256(standing.store.read(LOCK, through_links=True)),
            "tiles": len(drawn.keys), "codec": set_codec(lock),
            "tiles_rest_on": drawn.groups_are, "rest_on_others": _others(drawn, real),
        },
        "real": _described(real), "unseen": None if unseen is None else _described(unseen),
        "resized": "no tile was resized, none re-encoded" + (" but in the study of codecs" if codecs else ""),
        "contaminated": _contaminated(lock, [side for side in (real, unseen) if side is not None]),
        "sites": site_figures(any_side, any_side.real.classes),
        "spaces": by_space,
        "cnn": cnn,
        "codecs": codecs,
    }  # fmt: skip
    mark(found)
    found["not_measured"] = _not_measured(
        found, asked, bank=real.tiles is None, blends=lock["recipe"]["privacy"]["mechanism"] == "mix"
    )
    write_report(place, found)
    if public is not None:
        write_report(public, public_part(found))
    return found


def _spaces(asked: Asked, own: Any, size_px: int, *, pixels: bool) -> list[Space]:
    if not pixels:
        if asked.encoders:
            raise InputError(
                "--encoder: a bank holds the embeddings of one encoder; name sources with pixels to look with others"
            )
        return [encoder_space(own, independent=False)]
    spaces = [encoder_space(own, independent=False)]
    if size_px >= texture.LEAST_PX:
        spaces.append(texture_space())
    for name in asked.encoders:
        if name == TEXTURE:
            continue
        folder = open_encoder(name, None)
        if folder.image_size_px != size_px:
            raise InputError(
                f"--encoder {name}: takes {folder.image_size_px} px, tiles have {size_px} px; no tile is resized"
            )
        if folder.sha256 in [space.identity for space in spaces]:
            continue
        if folder.id in [space.name for space in spaces]:
            raise InputError(
                f"--encoder {name}: calls itself {folder.id}, as another one does whose weights differ; give it a name of its own"
            )
        spaces.append(encoder_space(folder, independent=True))
    return spaces


def _check_apart(real: RealSide, unseen: RealSide | None) -> None:
    if unseen is None:
        return
    shared = set(unseen.patients.tolist()) & set(real.patients.tolist())
    if shared:
        raise InputError(
            f"--unseen: {unseen.place}: {len(shared):,} of its patients stand in {real.place} too; what they test would have been learned "
            "from them, so take them out of one of the two"
        )


def _check_codecs(asked: Asked, lock: Mapping[str, Any], sides: Sequence[RealSide]) -> None:
    """Lossless beside lossy is refused, also within one side: what an encoder sees of JPEG is then taken for tissue."""
    drawn_lossy = set_codec(lock) == "jpeg"
    for side in sides:
        if mixed(side.codecs) and not asked.mixed_codecs:
            raise InputError(
                f"{side.option}: {side.place} is {' and '.join(side.codecs)}; figures would measure the codecs as well, so take tiles of "
                "one, or add --mixed-codecs and read them so"
            )
        if side.codecs and lossy(side.codecs) != drawn_lossy and not asked.mixed_codecs:
            kinds = [
                f"{asked.out} is {'lossy' if drawn_lossy else 'lossless'} ({set_codec(lock)})",
                f"{side.place} is {', '.join(side.codecs)}",
            ]
            raise InputError(
                f"{side.option}: {' and '.join(kinds)}; figures would measure the codec as well, so build and compare in one, or add "
                "--mixed-codecs and read them so"
            )


def set_codec(lock: Mapping[str, Any]) -> str:
    """png, webp or jpeg, as the recipe has it."""
    return str(lock["recipe"]["format"])


def _embedded(
    asked: Asked,
    standing: Standing,
    real: RealSide,
    unseen: RealSide | None,
    behind: Behind | None,
    spaces: Sequence[Space],
    size_px: int,
    kept: Kept,
    steps: Steps,
) -> tuple[dict[str, Sides], DrawnSide]:
    """The three sides in every space."""
    names = " and ".join(space.name for space in spaces)
    count = sum(commit.tiles for commit in standing.commits.values())
    seen: list[tuple[str, str]] = []
    tick = steps.begin(f"{asked.out}: {count:,} tiles in {names}", count)
    of_drawn = embedded_in(drawn_items(asked.out, standing.store, size_px, seen), spaces, kept.folder, tick)
    drawn = drawn_side(seen, behind)
    of_real = _real_in(real, spaces, size_px, kept.folder, steps)
    of_unseen = None if unseen is None else _real_in(unseen, spaces, size_px, kept.folder, steps)
    if unseen is not None and of_unseen is not None:
        check_content(real, unseen, of_real[spaces[0].name], of_unseen[spaces[0].name])
    plan, more = np.zeros((0, 2), np.int64), None
    if unseen is not None and real.tiles is not None:
        plan = augmentation(real.classes, AUGMENTED)
        if len(plan):
            tick = steps.begin(f"--real: {len(plan):,} tiles turned and stained anew, for the baselines", len(plan))
            more = embedded_in(augmented_items(real, plan, size_px), spaces, kept.folder, tick)
    sites = None
    if real.sites is not None:
        of_others = () if unseen is None or unseen.sites is None else unseen.sites
        one, other = (np.array([site or "" for site in each], np.str_) for each in (real.sites, of_others))
        sites = (one, other)
    found = {}
    for space in spaces:
        found[space.name] = Sides(
            drawn.in_space(of_drawn[space.name]),
            real.in_space(of_real[space.name]),
            None if unseen is None or of_unseen is None else unseen.in_space(of_unseen[space.name]),
            None if more is None else Augmented(more[space.name], plan[:, 0]),
            sites,
            drawn.sources,
        )
    return found, drawn


def _real_in(side: RealSide, spaces: Sequence[Space], size_px: int, kept: Path, steps: Steps) -> dict[str, np.ndarray]:
    if side.vectors is not None:
        return {spaces[0].name: np.asarray(side.vectors, np.float32)}
    count = len(side.classes)
    tick = steps.begin(f"{side.option}: {count:,} tiles in {' and '.join(space.name for space in spaces)}", count)
    return embedded_in(side.items(size_px), spaces, kept, tick)


def _images(
    out: str, standing: Standing, sides: Mapping[str, RealSide | None], size_px: int, name: str, rows: np.ndarray
) -> np.ndarray:
    """uint8 (n, H, W, 3) of these rows of a side."""
    side = sides.get(name)
    items = drawn_items(out, standing.store, size_px, []) if side is None else side.items(size_px)
    wanted = set(rows.tolist())
    return np.stack([read() for row, (_, read) in enumerate(items) if row in wanted])


def _described(side: RealSide) -> dict[str, Any]:
    return {
        "place": without_secrets(side.place),
        "tiles": len(side.classes),
        "patients": len(np.unique(side.patients)),
        "sites": None if side.sites is None else len(set(side.sites) - {None}),
        "tiles_without_site": len(side.classes) if side.sites is None else side.sites.count(None),
        "codecs": list(side.codecs) or ["not known: embeddings alone"],
    }


def _contaminated(lock: Mapping[str, Any], sides: Sequence[RealSide]) -> dict[str, Any] | None:
    """Which sides hold tiles of the model's training set, and how many; None where none does."""
    counts = {side.option: of_training_set(lock, side.members) for side in sides}
    return {option: count for option, count in counts.items() if count is not None} or None


def _others(drawn: DrawnSide, real: RealSide) -> int | None:
    """Tiles of the set that rest on somebody who is not in the cohort: what is gained may then be due to more patients."""
    if drawn.sources is None:
        return None
    known = set(real.patients.tolist())
    return sum(not each <= known for each in drawn.sources)


def _not_measured(found: Mapping[str, Any], asked: Asked, *, bank: bool, blends: bool) -> list[str]:
    """What a reader must not take for looked at."""
    lines = []
    if asked.unseen is None:
        lines.append("utility, and distances to patients that the set has not seen: needs --unseen")
    elif bank:
        lines.append(
            "the baseline 'oversampled, stained anew': --real is a bank, and without pixels nothing can be stained; the best free arm is "
            "the best of the others"
        )
    if len(found["spaces"]) == 1:
        lines.append("a second feature space: a bank holds the embeddings of one encoder alone")
    if asked.lineage is None:
        lines.append(
            "whom drawn tiles rest on: without --lineage each counts by itself, so where several rest on one patient the kernel distance "
            "of drawn tiles is too high (real tiles of one patient are not compared with each other), and intervals are too narrow; their "
            "recall is not given; nobody knows whether unseen patients are unseen"
        )
    elif blends:
        lines.append(
            "that tiles share patients besides the one with most weight, in intervals (too narrow where blends are of few patients), "
            "precision and recall; kernel distances leave out pairs of tiles that share anybody"
        )
    if found["set"]["rest_on_others"]:
        lines.append(
            f"what is due to more patients: {found['set']['rest_on_others']:,} tiles of the set rest on somebody who is not in --real"
        )
    left = sorted({name for space in found["spaces"].values() for name in space["fidelity"].get("left_out", ())})
    if left:
        lines.append(f"classes that not all sides have: {', '.join(shown(name) for name in left[:12])}")
    lines.append(
        "what tiles went through before (PNG made of JPEG slides), and how this cohort and set might have come out otherwise"
    )
    if not asked.codecs:
        lines.append("what a codec does to these figures: --codecs png,jpeg95,jpeg75")
    return [*lines, "whether a pathologist can tell: `synthfactory reader-study`"]


def public_part(found: Mapping[str, Any]) -> dict[str, Any]:
    """Figures without places, names of sites, or numbers of patients of a class; for those who decide to publish it."""
    spaces = {}
    for name, space in found["spaces"].items():
        fidelity = {
            key: value
            for key, value in space["fidelity"].items()
            if key.startswith(("kernel_d", "kernel_r", "frechet", "manifold", "scale"))
        }
        utility = space["utility"]
        if "arms" in utility:
            arms = {
                arm: {"balanced_accuracy": figures["balanced_accuracy"]} for arm, figures in utility["arms"].items()
            }
            utility = {
                "arms": arms,
                "means_over": utility["counted"],
                "left_out_of_means": utility["too_few_in_the_test"],
                "synthetic_over_real": utility["synthetic_over_real"],
                "gain": utility["gain"],
            }
        else:
            utility = {"why": utility["why"]}
        for given, section in ((space["fidelity"], fidelity), (space["utility"], utility)):
            section["contaminated"] = given["contaminated"]
        spaces[name] = _without_reasons({"space": space["space"], "fidelity": fidelity, "utility": utility})
    return {
        "format": f"{FORMAT}-public",
        "note": "Figures computed from real tiles: functions of real data that no mechanism of the set covers. "
        "Published by decision of whoever holds the data.",
        "set": {
            "name": found["set"]["name"],
            "lock_sha256": found["set"]["lock_sha256"],
            "tiles": found["set"]["tiles"],
        },
        "contaminated": found["contaminated"] is not None,
        "spaces": spaces,
        "codecs": {} if "why" in found["codecs"] else _without_reasons(found["codecs"]),
    }


def _without_reasons(found: Any) -> Any:
    """Reasons why there is no figure count patients, or name places."""
    if not isinstance(found, dict):
        return found
    return {key: "not measured" if key == "why" else _without_reasons(value) for key, value in found.items()}
