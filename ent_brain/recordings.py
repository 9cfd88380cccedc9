"""Recordings on the command line: files, folders, manifests and standard input."""

import os
import shutil
import sys
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from ent_brain.audio import ENDINGS, OTHER_ENDINGS, STDIN
from ent_brain.errors import InputError
from ent_brain.manifest import DATA_ROOT, check_id, is_seconds, path_inside, read_entries
from ent_brain.processes import rank_and_count


class Recording(NamedTuple):
    """A sound file, and the name that its annotation gets."""

    name: str
    path: Path
    is_stdin: bool = False
    """Whether ``path`` is a copy of standard input."""
    channel: int | str | None = None
    """From 1 on; ``each`` for all, each alone; None for the mix of all."""
    passages: tuple | None = None
    """What is said (``transcripts.Passage``), if the words are known."""
    turns: tuple | None = None
    """Who speaks when (``speakers.Turn``), if that is known."""
    part: tuple[float, float] | None = None
    """Start and duration in s, if the file holds more than the recording."""
    stamp: dict | None = None
    """What its results depend on, by the keys of ``cli.STAMP``."""
    stale: tuple[str, ...] = ()
    """Other formats of its results that are there and out of date."""

    @property
    def source(self):
        """Its file in the index (str)."""
        return STDIN if self.is_stdin else str(self.path.resolve())

    @property
    def label(self):
        """Its name in messages (str)."""
        return "standard input" if self.is_stdin else str(self.path)


def find_recordings(files, data_root, scratch):
    """Find the recordings of the command line.

    Arguments
    ---------
    files : list[str]
        Sound files, folders, manifests, and ``-`` for standard input.
    data_root : str or None
        What ``{data_root}`` stands for in manifests.
    scratch : Path
        Folder that takes what comes from standard input.

    Returns
    -------
    list[Recording]
        Sorted by name within each folder and manifest.

    Raises
    ------
    InputError
        If there is none, a file is missing, or two would have one name.
    """
    recordings = []
    for text in files:
        path = Path(text)
        if text == STDIN:
            with (scratch / "stdin").open("wb") as copy:
                shutil.copyfileobj(sys.stdin.buffer, copy)
            recordings.append(Recording("stdin", scratch / "stdin", is_stdin=True))
        elif path.is_dir():
            media = {*ENDINGS, *OTHER_ENDINGS}
            inside = [p for p in path.rglob("*") if p.suffix.lower() in media and p.is_file()]
            # Some corpora hold macOS's companions of files, which are named like them.
            inside = sorted(p for p in inside if not p.name.startswith("._"))
            _report_left_out(path, inside)
            inside = [p for p in inside if p.suffix.lower() in ENDINGS]
            recordings += [Recording(str(p.relative_to(path).with_suffix("")), p) for p in inside]
        elif not path.is_file():
            raise InputError(f"{path}: no such file or folder: check the path")
        elif path.suffix == ".json":
            recordings += _of_manifest(path, data_root)
        else:
            recordings.append(Recording(path.stem, path))
    if not recordings:
        raise InputError(f"{', '.join(files)}: no recordings there: name files or their folder")
    recordings = list(dict.fromkeys(recordings))
    uses = Counter(recording.name for recording in recordings)
    recordings = [
        each._replace(name=each.name + each.path.suffix) if uses[each.name] > 1 else each
        for each in recordings
    ]
    for name, group in groupby(sorted(recordings), key=lambda recording: recording.name):
        paths = [recording.path for recording in group]
        if len(paths) > 1:
            raise InputError(
                f"{paths[0]} and {paths[1]}: both would be {name!r}: name the folder that holds "
                "both, or give them in two calls, each with its --out"
            )
    return recordings


def _report_left_out(folder, files):
    """Say once how many files of a folder may be media but are not taken."""
    endings = Counter(p.suffix.lower() for p in files if p.suffix.lower() in OTHER_ENDINGS)
    if endings and not rank_and_count()[0]:
        counts = ", ".join(f"{count} {ending}" for ending, count in sorted(endings.items()))
        print(
            f"note: {folder}: left out, but perhaps sound or video: {counts}",
            file=sys.stderr,
        )


def _of_manifest(path, data_root):
    entries = read_entries(path, "name a manifest of a recipe, or sound files")
    if data_root is None:
        raise InputError(f"{path}: tells files in {DATA_ROOT}: say where that is by --data_root")
    recordings = []
    for name, entry in sorted(entries.items()):
        try:
            file_name = name.replace(os.sep, "_")
            check_id(file_name)
            wav = path_inside(entry.get("wav"), DATA_ROOT, data_root)
            recordings.append(Recording(file_name, wav, part=_part(entry)))
        except InputError as error:
            raise InputError(f"{path}: {name}: {error}: correct it") from error
    return recordings


def _part(entry):
    """Start and duration of a manifest's entry; None if it is the whole file."""
    if "start" not in entry:
        return None
    start, duration = entry["start"], entry.get("duration")
    if not (is_seconds(start) and start >= 0 and is_seconds(duration) and duration > 0):
        raise InputError(f"start {start!r}, duration {duration!r}: not both in seconds")
    return start, duration
