"""Annotate recordings, show an evaluation, run the demo: the command line ``ent-brain``."""

import argparse
import difflib
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from ent_brain.annotation import FORMATS
from ent_brain.audio import ENDINGS
from ent_brain.errors import InputError, exit_on_input_error
from ent_brain.inference import EmotionTransducer
from ent_brain.manifest import DATA_ROOT, check_id, path_inside, read_entries
from ent_brain.page import write_report
from ent_brain.settings import check_device
from ent_brain.windows import count_seconds, read_windows

STDIN = "-"

INDEX = "recordings.jsonl"
"""In the output folder: a line for each recording that is done, with the file that it was."""

BATCH_SECONDS = 60.0
"""Seconds of recordings that are heard together, the padding of the shorter ones included."""

ANNOTATE = """\
Write down what is said in recordings, when, and with which emotion.

FILES are sound files of any rate and length (wav, flac, mp3, ogg, ...), folders, which are
searched for them, manifests of a recipe (.json, with --data_root), or - for a sound file on
standard input.

With --out each recording becomes one file a format there, under the name that it has in its folder
or manifest, and with its ending where only that tells two apart; what is there already is not made
again. Without --out the text goes to standard output: a line of JSON each.
"""

EXAMPLES = """\
examples:
  ent-brain annotate speech.wav --model demo/ent/pretrained
  ent-brain annotate recordings/ --model MODEL --out said --format json,textgrid,webvtt
  ffmpeg -i talk.mp4 -f wav - | ent-brain annotate - --model MODEL --format webvtt
  torchrun --nproc_per_node 4 -m ent_brain.cli annotate recordings/ --model MODEL --out said
"""


class Recording(NamedTuple):
    """A sound file, and the name that its annotation gets."""

    name: str
    path: Path

    @property
    def source(self):
        """What the index says of it (str)."""
        return STDIN if self.name == "stdin" else str(self.path.resolve())


@exit_on_input_error
def main(arguments=None):
    """Run ``ent-brain``; the exit status is 0 where all went well, 1 where not."""
    options = _parser().parse_args(arguments)
    try:
        sys.exit(options.run(options))
    except BrokenPipeError:  # who reads the output, as head does, wants no more of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _parser():
    parser = argparse.ArgumentParser(prog="ent-brain", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    look = {"formatter_class": argparse.RawDescriptionHelpFormatter}

    command = commands.add_parser(
        "annotate",
        help="words, emotions and their times of recordings",
        description=ANNOTATE,
        epilog=EXAMPLES,
        **look,
    )
    command.add_argument("files", nargs="+", metavar="FILES", help="files, folders, manifests or -")
    command.add_argument(
        "--model", required=True, help="folder that training left as `pretrained`, or hub name"
    )
    command.add_argument("--revision", help="of a model on the hub: branch, tag or commit")
    command.add_argument("--out", type=Path, metavar="DIR", help="where the files are written")
    command.add_argument(
        "--format", default="json", metavar="LIST", help=f"some of {', '.join(FORMATS)} (json)"
    )
    command.add_argument("--data_root", help="what {data_root} stands for in manifests")
    command.add_argument("--device", help="cpu, cuda or cuda:1; the first GPU where there is one")
    command.add_argument("--quiet", action="store_true", help="no progress bar; errors are told")
    command.set_defaults(run=annotate)

    command = commands.add_parser(
        "report",
        help="make an evaluation's page again",
        description="Write report.html, a page to look at and listen to, from what training left.",
    )
    command.add_argument("folder", type=Path, help="output folder of a training")
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    command.set_defaults(run=report)

    command = commands.add_parser(
        "demo",
        help="train and score a small model on synthetic speech",
        description="Run `make demo` in a clone of the repository: some minutes.",
    )
    command.set_defaults(run=demo)
    return parser


def annotate(options):
    """Annotate recordings; status 1 where one of them could not be."""
    formats = _formats(options.format)
    if options.out is None and len(formats) > 1:
        raise InputError("--format: several formats need --out, a folder to write them to")
    with tempfile.TemporaryDirectory() as scratch:
        recordings = find_recordings(options.files, options.data_root, Path(scratch))
        found = len(recordings)
        rank, processes = (int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1)))
        recordings = recordings[rank::processes]
        if options.out is not None:
            _make_folder(options.out)
            recordings = _not_done(options.out, recordings, formats)
        check_device(options.device)
        device = {} if options.device is None else {"run_opts": {"device": options.device}}
        model = EmotionTransducer.from_hparams(options.model, revision=options.revision, **device)
        failed = 0
        with tqdm(total=len(recordings), unit="file", disable=options.quiet) as bar:
            for recording, annotation, problem in annotate_all(model, recordings):
                bar.update()
                if not problem and options.out is None:
                    _say(annotation, formats[0])
                elif not problem:
                    problem = _write(options.out, recording, annotation, formats)
                if problem:
                    failed += 1
                    tqdm.write(f"error: {problem}", file=sys.stderr)
    failed = _of_all_processes(failed)
    if failed and not rank:
        raise InputError(f"{failed} of {found} recordings failed: see above; the rest is done")
    return 1 if failed else 0


def _of_all_processes(failed):
    """Sum over torchrun's processes, which it would end as soon as one of them says it failed."""
    if not torch.distributed.is_torchelastic_launched():
        return failed
    torch.distributed.init_process_group("gloo", timeout=timedelta(days=30))
    total = torch.tensor(failed)
    torch.distributed.all_reduce(total)
    torch.distributed.destroy_process_group()
    return total.item()


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
            (scratch / "stdin").write_bytes(sys.stdin.buffer.read())
            recordings.append(Recording("stdin", scratch / "stdin"))
        elif path.is_dir():
            inside = [p for p in path.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file()]
            # Some corpora hold macOS's companions of files, which are named like them.
            inside = sorted(p for p in inside if not p.name.startswith("._"))
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
            recordings.append(Recording(file_name, wav))
        except InputError as error:
            raise InputError(f"{path}: {name}: {error}: correct it") from error
    return recordings


def annotate_all(model, recordings):
    """Annotate recordings, short ones of like length together.

    Arguments
    ---------
    model : EmotionTransducer
    recordings : list[Recording]

    Yields
    ------
    (Recording, Annotation or None, str or None)
        Each recording as it is done, with what was said or what was wrong with it.
    """
    longest = model.hparams.longest_window
    short = []
    for recording in recordings:
        try:
            seconds = count_seconds(recording.path)
            if seconds > longest:
                annotation = model.annotate_file(recording.path, progressbar=False)
                yield recording, replace(annotation, name=Path(recording.name).name), None
            else:
                short.append((seconds, recording))
        except InputError as error:
            yield recording, None, str(error)
    short.sort()
    while short:
        count = max(1, int(BATCH_SECONDS / max(short[-1][0], 1.0)))
        batch, short = [recording for _, recording in short[-count:]], short[:-count]
        heard = []
        for recording in batch:
            try:
                heard.append((recording, _read(recording.path, model.mods.frontend)))
            except InputError as error:
                yield recording, None, str(error)
        if not heard:
            continue
        lens = torch.tensor([len(wav) for _, wav in heard])
        wavs = torch.nn.utils.rnn.pad_sequence([wav for _, wav in heard], batch_first=True)
        names = [Path(recording.name).name for recording, _ in heard]
        annotations = model.annotate_batch(wavs, lens / lens.max(), names)
        for (recording, _), annotation in zip(heard, annotations, strict=True):
            yield recording, annotation, None


def _read(path, frontend):
    """Waveform [S] of a short recording."""
    whole = count_seconds(path) + 1.0
    [window] = read_windows(path, frontend.sample_rate, whole, frontend.frame_samples)
    return window.wav


def _formats(text):
    formats = [name.strip() for name in text.split(",")]
    for name in formats:
        if name not in FORMATS:
            near = difflib.get_close_matches(name, FORMATS, 1)
            remedy = f"did you mean {near[0]}?" if near else f"use some of {', '.join(FORMATS)}"
            raise InputError(f"--format: unknown format {name!r}: {remedy}")
    return formats


def _make_folder(path):
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written to ({error.strerror}): name another --out"
        ) from error


def _not_done(folder, recordings, formats):
    """Recordings whose annotations are not there; ``InputError`` where those of others are."""
    index = folder / INDEX
    sources = {}
    for line in index.read_bytes().splitlines() if index.is_file() else ():
        # A full disk may have cut a line; whatever else is no line of ours tells nothing.
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            entry = json.loads(line)
            sources[entry["name"]] = entry["source"]
    endings = [FORMATS[name][0] for name in formats]
    left = []
    for recording in recordings:
        known = sources.get(recording.name)
        if known not in (None, recording.source):
            raise InputError(
                f"{recording.path}: {folder} holds {recording.name!r}, made of {known}: name "
                "another --out"
            )
        paths = [folder / f"{recording.name}.{ending}" for ending in endings]
        there = all(map(os.path.exists, paths))  # Path.exists raises where a name is too long
        if known is None or known == STDIN or not there:
            left.append(recording)
    return left


def _write(folder, recording, annotation, formats):
    """Write an annotation, and note in the index that it is there; what was wrong (str or None)."""
    name = Path(recording.name)
    try:
        annotation.write(folder / name.parent, formats, name.name)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return f"{recording.path}: its name has no room for an ending: rename it"
    line = json.dumps({"name": recording.name, "source": recording.source}, ensure_ascii=False)
    with (folder / INDEX).open("a", encoding="utf-8") as index:
        index.write(line + "\n")
    return None


def _say(annotation, format_name):
    text = FORMATS[format_name][1](annotation)
    print(json.dumps(json.loads(text)) if format_name == "json" else text, flush=True)


def report(options):
    """Make the page of an evaluation again."""
    print(write_report(options.folder, progressbar=not options.quiet))
    return 0


def demo(_):
    """Run the repository's demo, which its Makefile defines."""
    repository = Path(__file__).resolve().parents[1]
    if not (repository / "Makefile").is_file() or not (repository / "recipes").is_dir():
        raise InputError(
            f"{repository}: no recipes here: the demo trains one: clone the repository and run "
            "make demo in it"
        )
    if not shutil.which("make"):
        raise InputError("make: is not installed: install it, or do by hand what the Makefile does")
    return subprocess.call(["make", "demo"], cwd=repository)


if __name__ == "__main__":
    main()
