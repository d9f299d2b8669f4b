"""Where tiles were taken: the site of each slide, from what its rows say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from synthfactory.embeddings.rows import Coded, known

Group = tuple[str, str, str]  # label, patient, slide; '' is unknown
SEVERAL = ""


@dataclass
class SlideSites:
    """The site of each group of rows, so that what one class rests on does not depend on which others are asked for.

    Rows that state no site say nothing of their group; a group whose rows state several has none.
    """

    found: dict[Group, str] = field(default_factory=dict)

    def note(self, of_row: np.ndarray, groups: Sequence[Group], sites: Coded) -> None:
        """Takes a piece of a source: row i is of groups[of_row[i]]."""
        width = len(sites.names)
        for pair in np.unique(of_row.astype(np.int64) * width + sites.codes).tolist():
            site = known(sites.names[pair % width])
            if site is not None and self.found.setdefault(groups[pair // width], site) != site:
                self.found[groups[pair // width]] = SEVERAL

    def of(self, groups: Sequence[Group]) -> tuple[str | None, ...]:
        """The site of each; () where none is known."""
        found = tuple(self.found.get(group) or None for group in groups)
        return found if any(found) else ()

    def warnings(self, where: str) -> tuple[str, ...]:
        """What to say of slides whose tiles are of several sites, and of patients whose tiles name no slide and are so too."""
        torn = {group[1:] for group, site in self.found.items() if site == SEVERAL}
        slides, patients = sum(bool(slide) for _, slide in torn), sum(bool(who) and not slide for who, slide in torn)
        says = []
        if slides:
            says.append(
                f"{slides:,} slide{'s have' if slides > 1 else ' has'} tiles of several sites, and none for that"
            )
        if patients:
            who = "patients have" if patients > 1 else "patient has"
            says.append(
                f"{patients:,} {who} tiles of several sites that name no slide, and no site for that; give the tiles a slide_id"
            )
        if ("", "") in torn:
            says.append("tiles that name neither patient nor slide are of several sites, and count for none")
        return tuple(f"{where}: {text}" for text in says)
