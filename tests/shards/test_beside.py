"""A file has its name only when whole; where writing it raises nothing of it stays, and what stood there does."""

from __future__ import annotations

from pathlib import Path

import pytest

from synthfactory.shards.beside import beside


@pytest.mark.parametrize("shared", [False, True])
def test_whole_or_as_it_was(tmp_path: Path, shared: bool) -> None:
    path = tmp_path / "figures.npz"
    path.write_text("before")
    with beside(path, shared=shared) as new:
        assert (new.parent, new.suffix) == (tmp_path, ".npz")  # numpy and Pillow go by the suffix
        new.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"

    def fails() -> None:
        with beside(path, shared=shared) as new:
            new.write_text("cut")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fails()
    assert [entry.name for entry in tmp_path.iterdir()] == ["figures.npz"]
    assert path.read_text() == "after"


def test_what_a_killed_writer_left_is_written_over_and_writers_of_a_shared_file_keep_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    (tmp_path / ".tmp-a.json").write_text("left behind by a kill, longer than what comes")
    with beside(path) as new:
        assert not new.exists()
        new.write_text("1")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
    with beside(path, shared=True) as one, beside(path, shared=True) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"


def test_a_name_may_be_as_long_as_the_disk_takes_it(tmp_path: Path) -> None:
    place = tmp_path / f"{'n' * 240}.parquet"
    with beside(place, shared=True) as new:
        new.write_bytes(b"whole")
        assert new.suffix == ".parquet", "some writers go by it"
    assert place.read_bytes() == b"whole" and list(tmp_path.iterdir()) == [place]
