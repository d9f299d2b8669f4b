"""The built-in table of TCGA's studies."""

from __future__ import annotations

import json

from synthfactory.plan.tcga import TABLE, near, source, studies, study_of


def test_every_study_is_there_with_its_cases_and_their_source() -> None:
    found = studies()
    assert len(found) == 33 and "LAML" in found
    assert sum(study.cases for study in found.values()) == 11_315
    assert (found["BRCA"].cases, found["CHOL"].cases, found["CHOL"].name) == (1098, 51, "Cholangiocarcinoma")
    said = json.loads(TABLE.read_bytes())
    for part in ("source", "names"):
        assert said[part]["title"] and said[part]["url"].startswith("https://") and said[part]["retrieved"]
    assert said["source"]["url"] in source()


def test_codes_are_known_however_they_are_written() -> None:
    assert study_of("TCGA-ACC") == study_of("acc") == study_of("tcga-Acc") == studies()["ACC"]
    assert study_of("TCGA") is None and study_of("") is None and study_of("ACC-TCGA") is None
    assert {study.code for study in near("COADREAD")} >= {"COAD", "READ"}
    assert near("cholangiocarcinomas")[0].code == "CHOL" and near("TCGA-BRAC")[0].code == "BRCA"
