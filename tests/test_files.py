"""Atomic writing of files, and removal of partial files."""

import os
import time

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch

from ent_brain.errors import InputError
from ent_brain.files import read_json, sweep, whole_or_nothing

WRITERS = {
    "text": lambda path: path.write_text("a" * 99_999),
    "PyTorch": lambda path: torch.save(torch.zeros(99_999), path),
    "safetensors": lambda path: safetensors.torch.save_file({"a": torch.zeros(99_999)}, path),
    "libsndfile": lambda path: soundfile.write(
        path, np.random.default_rng(0).normal(size=99_999), 16000, format="FLAC"
    ),
}


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


@pytest.mark.parametrize("library", WRITERS)
def test_a_full_disk_is_an_error_of_the_system_that_names_the_file(tmp_path, file_limit, library):
    path = tmp_path / "a"
    path.write_text("old")
    file_limit(10_000)
    with pytest.raises(OSError) as error, whole_or_nothing(path) as partial:
        WRITERS[library](partial)
    assert error.value.filename == str(path)
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    assert path.read_text() == "old"


def test_an_error_of_another_kind_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="shapes"), whole_or_nothing(tmp_path / "a"):
        raise RuntimeError("shapes do not fit")


def test_what_killed_writers_left_is_swept_and_what_is_being_written_is_not(tmp_path):
    own, shared = tmp_path / "save", tmp_path / "features"
    new, old = ".a.json.01234567.partial", ".b.json.01234567.partial"
    long_ago = time.time() - 2 * 3600
    for folder in (own, shared):
        folder.mkdir()
        for name in (new, old, "a.json", ".hidden"):
            (folder / name).touch()
            if name != new:
                os.utime(folder / name, (long_ago, long_ago))
    sweep(tmp_path, [shared])
    assert {path.name for path in own.iterdir()} == {"a.json", ".hidden"}
    assert {path.name for path in shared.iterdir()} == {new, "a.json", ".hidden"}
    sweep(tmp_path / "not there")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'{"a": [1', "JSONDecodeError"),
        (b"\xff", "UnicodeDecodeError"),
        (b"[" * 100_000, "Recursion"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, kind):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_json(path, "write it again")
    assert str(error.value).startswith(f"{path}: damaged ({kind}")
    assert str(error.value).endswith("): write it again")
