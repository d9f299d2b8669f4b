"""The conditions of a spec: opens whichever source `embeddings` names, screens it, and says what stands behind each class.

No torch: tiles are listed and screened here, and embedded later by a callable (prepare.Prepared.with_embedded).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from synthfactory.embeddings.arrays import open_array
from synthfactory.embeddings.bank import Bank
from synthfactory.embeddings.checks import members_of_cohort, training_cohort
from synthfactory.embeddings.hdf5 import open_features
from synthfactory.embeddings.indexing import build_bank, left_empty
from synthfactory.embeddings.parquet import load_bank
from synthfactory.embeddings.places import local
from synthfactory.embeddings.rows import Coded
from synthfactory.embeddings.screening import Limits, failing, limits_of
from synthfactory.embeddings.sites import SlideSites
from synthfactory.embeddings.tile_shards import scan_shards
from synthfactory.embeddings.tiles import TileFolder, read_tile, scan_tiles
from synthfactory.model.encoder import EncoderFolder
from synthfactory.plan.plan import ClassSummary
from synthfactory.plan.recipe import ModelFacts
from synthfactory.screen.artefacts import SCORES, condition_scores
from synthfactory.spec.embeddings import Embeddings
from synthfactory.spec.errors import InputError
from synthfactory.spec.places import cache_folder, is_url
from synthfactory.spec.schema import Spec

UNCONDITIONAL = "unconditional"
LOOKED_AT = 8  # tiles that a plan decodes


@dataclass(frozen=True)
class Conditions:
    """A source that was opened: a bank, or tiles still to be embedded, or neither where tiles are drawn without conditions.

    `cohort` says whether patients of the published model's training set are among them: some, none or unknown.
    """

    bank: Bank | None
    tiles: TileFolder | None
    summaries: dict[str, ClassSummary]
    cohort: str = "unknown"
    warnings: tuple[str, ...] = ()


def scratch_cache(lineage: str) -> Path:
    """Where embeddings are cached and large banks indexed: in LINEAGE where that is a local folder, else in the user's cache."""
    return (cache_folder() if is_url(lineage) else local(lineage)) / "embeddings"


def open_conditions(spec: Spec, facts: ModelFacts, encoder: EncoderFolder | None = None) -> Conditions:
    """Opens and checks the source; a bank's preprocessing is compared with that of `encoder`, where it is at hand.

    InputError names the place in the spec, the file, what is wrong, and what would be right."""
    try:
        source = spec.embeddings
        if source.unconditional:
            nothing = ClassSummary(0, 0, 0, 0, (UNCONDITIONAL,))
            return Conditions(None, None, dict.fromkeys(spec.classes, nothing))
        if source.tiles is not None or source.shards is not None:
            return _of_tiles(spec, source, facts)
        return _of_bank(spec, *_bank(spec, source, facts, encoder))
    except InputError as error:
        raise placed(spec, error) from None


def _bank(
    spec: Spec, source: Embeddings, facts: ModelFacts, encoder: EncoderFolder | None
) -> tuple[Bank, tuple[str, ...], bool]:
    """(the bank, warnings, whether some of it is of synthetic tiles)."""
    classes, limits, cache = list(spec.classes), limits_of(source.screen), scratch_cache(spec.lineage)
    declared = None
    if source.encoder is not None:
        declared = {"id": source.encoder.id, "sha256": source.encoder.sha256 or "", "token": source.encoder.token}
    if source.bank is not None:
        bank = load_bank(
            source.bank,
            width=facts.condition_width,
            encoder=facts.encoder,
            classes=classes,
            declared=declared,
            mpp=source.mpp,
            limits=limits,
            cache=cache,
            extent=facts.tile_size_px,
            check_preprocessing=None if encoder is None else encoder.check_preprocessing,
        )
        return bank, bank.warnings, False
    assert source.labels is not None
    if source.arrays is not None:
        rows = open_array(
            source.arrays,
            source.labels,
            width=facts.condition_width,
            model_encoder=facts.encoder,
            declared=declared,
            token=source.token,
            label_level=source.label_level,
            mpp=source.mpp,
            classes=classes,
            extent=facts.tile_size_px,
        )
        bank = build_bank(rows, classes, limits=limits, cache=cache)
        return bank, bank.warnings, False
    assert source.hdf5 is not None
    rows, warnings = open_features(
        source.hdf5,
        source.labels,
        width=facts.condition_width,
        model_encoder=facts.encoder,
        declared=declared,
        token=source.token,
        label_level=source.label_level,
        mpp=source.mpp,
        tile_size_px=facts.tile_size_px,
        classes=classes,
    )
    bank = build_bank(rows, classes, limits=limits, cache=cache)
    return bank, (*warnings, *bank.warnings), rows.synthetic


def _of_bank(spec: Spec, bank: Bank, warnings: tuple[str, ...], synthetic: bool) -> Conditions:
    cohort = training_cohort(bank.groups.patients, bank.groups.slides)
    if synthetic and cohort == "none":
        cohort = "unknown"
    return Conditions(bank, None, bank_summaries(bank, spec.classes), cohort, warnings)


def bank_summaries(bank: Bank, classes: Iterable[str]) -> dict[str, ClassSummary]:
    """What stands behind each class of a bank, from its groups alone."""
    found: dict[str, ClassSummary] = {}
    for name in classes:
        members, groups = bank.groups.of_label(name), bank.groups
        low, high = bank.span(name)
        sizes = {g: int(groups.starts[g + 1] - groups.starts[g]) for g in members}
        codes = members_of_cohort(*([names[g] for g in members] for names in (groups.patients, groups.slides)))
        barcodes = {g: code for g, code in zip(members, codes, strict=True) if code is not None}
        found[name] = ClassSummary(
            rows=high - low,
            patients=len(bank.patients_of(name)[0]),
            slides=len({groups.slides[g] for g in members} - {None}),
            sites=len({groups.sites[g] for g in members} - {None}) if groups.sites else 0,
            unknown_rows=sum(size for g, size in sizes.items() if groups.patients[g] is None),
            label_levels=bank.classes[name].levels,
            dropped=dict(bank.dropped.get(name, {})),
            cohort_rows=sum(sizes[g] for g in barcodes),
            cohort_patients=len(set(barcodes.values())),
        )
    return found


def _of_tiles(spec: Spec, source: Embeddings, facts: ModelFacts) -> Conditions:
    classes = list(spec.classes)
    if source.shards is not None:
        tiles = scan_shards(source.shards, source.label_level, classes, source.mpp)
    else:
        assert source.tiles is not None
        assert source.label_level is not None
        tiles = scan_tiles(source.tiles, source.metadata, source.label_level, classes, source.mpp)
    _look(tiles, facts.tile_size_px)
    tiles, dropped = screened(tiles, limits_of(source.screen), facts.tile_size_px)
    return Conditions(None, tiles, _tile_summaries(tiles, classes, dropped), tile_cohort(tiles), tiles.warnings)


def _look(tiles: TileFolder, size_px: int) -> None:
    """InputError where one of some tiles all over is no image of the model's size: a plan says what all would be refused for."""
    read, count = tiles.reader(), len(tiles.files)
    for row in np.unique(np.linspace(0, count - 1, min(count, LOOKED_AT)).astype(int)).tolist():
        read_tile(tiles, read, row, size_px)


def tile_cohort(tiles: TileFolder) -> str:
    """As `training_cohort`; names of files are looked at too, where they are barcodes."""
    return "some" if any(tiles.members()) else training_cohort(tiles.patient_ids, tiles.slide_ids)


def screened(tiles: TileFolder, limits: Limits, size_px: int) -> tuple[TileFolder, dict[str, Counter[str]]]:
    """(the tiles that condition screens leave, class -> screen -> tiles it took). Reads every tile where pixels are looked at."""
    if not limits:
        return tiles, {}
    scores = {"tumour_fraction": np.asarray(tiles.tumour_fractions, np.float64)}
    if any(limit.score in SCORES for limit in limits.values()):
        read = tiles.reader()
        each = [condition_scores(read_tile(tiles, read, row, size_px)[1][None]) for row in range(len(tiles.files))]
        scores.update({name: np.array([found[name][0] for found in each]) for name in SCORES})
    kept, dropped = np.ones(len(tiles.files), bool), dict[str, Counter[str]]()
    for name, fails in failing(scores, limits):
        for row in np.flatnonzero(fails).tolist():
            dropped.setdefault(tiles.labels[row], Counter())[name] += 1
        kept &= ~fails
    before = Counter(tiles.labels)
    for label, lost in dropped.items():
        if sum(lost.values()) == before[label]:
            raise left_empty(label, before[label], lost)
    return tiles.take(np.flatnonzero(kept).tolist()), dropped


def _tile_summaries(
    tiles: TileFolder, classes: Iterable[str], dropped: Mapping[str, Mapping[str, int]]
) -> dict[str, ClassSummary]:
    columns, members = np.asarray(tiles.labels, dtype=np.str_), tiles.members()
    found: dict[str, ClassSummary] = {}
    for name in classes:
        rows: list[int] = np.flatnonzero(columns == name).tolist()
        codes = [members[row] for row in rows]
        found[name] = ClassSummary(
            rows=len(rows),
            patients=len({tiles.patient_ids[row] or "" for row in rows}),
            slides=len({tiles.slide_ids[row] for row in rows} - {None}),
            sites=_sites(tiles, rows),
            unknown_rows=sum(tiles.patient_ids[row] is None for row in rows),
            label_levels=tuple(sorted({tiles.label_levels[row] for row in rows})),
            dropped=dict(dropped.get(name, {})),
            cohort_rows=sum(code is not None for code in codes),
            cohort_patients=len(set(codes) - {None}),
        )
    return found


def _sites(tiles: TileFolder, rows: Sequence[int]) -> int:
    """As a bank of these tiles would count them."""
    if tiles.sites is None:
        return 0
    groups = [(tiles.labels[row], tiles.patient_ids[row] or "", tiles.slide_ids[row] or "") for row in rows]
    found = SlideSites()
    found.note(np.arange(len(rows)), groups, Coded.of([tiles.sites[row] for row in rows]))
    return len(set(found.of(groups)) - {None})


def placed(spec: Spec, error: InputError) -> InputError:
    """A source's error, with the place in the spec in front."""
    text = str(error)
    for name in spec.classes:
        if text.startswith(f"classes.{name}: "):
            return spec.error(f"classes.{name}", text.removeprefix(f"classes.{name}: "))
    source = spec.embeddings
    beside = next((key for key in ("metadata", "labels") if text.startswith(f"{getattr(source, key)}:")), None)
    return spec.error(f"embeddings.{beside or source.source}", text)
