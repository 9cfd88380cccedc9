"""Files that are there whole or not at all, and what is left of those that are not."""

import os
import time

import pytest

from ent_brain.files import sweep, whole_or_nothing


def test_a_file_takes_its_place_when_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_or_nothing(path) as partial:
        partial.write_text("new and no m")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    with whole_or_nothing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "new"


def test_what_killed_writers_left_is_swept_and_what_is_being_written_is_not(tmp_path):
    (tmp_path / "save").mkdir()
    left = tmp_path / "save" / ".a.json.01234567.partial"
    kept = [tmp_path / "save" / name for name in (".b.json.01234567.partial", "a.json", ".hidden")]
    for path in (left, *kept):
        path.touch()
    long_ago = time.time() - 2 * 3600
    for path in (left, *kept[1:]):
        os.utime(path, (long_ago, long_ago))
    sweep(tmp_path)
    assert sorted((tmp_path / "save").iterdir()) == sorted(kept)
    sweep(tmp_path / "not there")
