"""Where tiles were taken: the site of each slide, from what their rows say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from synthfactory.embeddings.rows import Coded, known
from synthfactory.spec.errors import InputError
from synthfactory.spec.text import shown

SEVERAL = ""  # tiles of no known slide may be of several sites


@dataclass
class SlideSites:
    """(patient, slide) -> site, '' for unknown ones of each. Rows that state no site say nothing of their slide."""

    found: dict[tuple[str, str], str] = field(default_factory=dict)

    def note(self, of_row: np.ndarray, slides: Sequence[tuple[str, str]], sites: Coded, where: str) -> None:
        """Takes a piece of a source: row i is of slides[of_row[i]]. InputError, naming `where`, for a slide of two sites."""
        width = len(sites.names)
        for pair in np.unique(of_row.astype(np.int64) * width + sites.codes).tolist():
            slide, site = slides[pair // width], known(sites.names[pair % width])
            if site is None:
                continue
            before = self.found.setdefault(slide, site)
            if before in (site, SEVERAL):
                continue
            if slide[1]:
                raise InputError(
                    f"{where}: slide {shown(slide[1])} has tiles of site '{shown(before)}' and of site '{shown(site)}'; a slide is of "
                    "one site, so correct column 'site'"
                )
            self.found[slide] = SEVERAL

    def of(self, slides: Sequence[tuple[str, str]]) -> tuple[str | None, ...]:
        """The site of each; () where none is known."""
        found = tuple(self.found.get(slide) or None for slide in slides)
        return found if any(found) else ()
