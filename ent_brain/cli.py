"""Annotate recordings with words and emotions, and show models and evaluations."""

import argparse
import difflib
import errno
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from speechbrain.utils.data_utils import batch_pad_right
from tqdm import tqdm

from ent_brain import versions
from ent_brain.annotation import Annotation
from ent_brain.audio import STDIN, scan_part
from ent_brain.errors import InputError, exit_on_input_error, first_names
from ent_brain.export import OPEN_ENGLISH, find_model
from ent_brain.formats import FORMATS, describe_formats
from ent_brain.inference import PRECISIONS, WORDS, EmotionTransducer
from ent_brain.live import CHUNK, Listener, listen_to, microphone, standard_input
from ent_brain.manifest import check_id
from ent_brain.page import Utterance, write_recordings, write_report
from ent_brain.processes import gather, rank_and_count, take_turns
from ent_brain.recordings import find_recordings
from ent_brain.segments import SEGMENT_DECODINGS
from ent_brain.speakers import join_channels, name_speakers, read_rttm, turns_of
from ent_brain.transcripts import check_passages, find_transcript, read_table, read_transcript
from ent_brain.windows import read_windows

INDEX = "recordings.jsonl"
"""In the output folder: a line for each recording that was annotated, with its file, the formats
that were written, and its stamp."""

PAGE_FORMAT, RECORDINGS_PAGE = "html", "recordings.html"
"""Format of a page for all recordings of a call, and its name in the output folder."""

STAMP = ("audio", "model", "settings")
"""Keys of a stamp. The first two are digests. Results with another stamp are out of date."""

MODEL_SUFFIXES = {".yaml", ".ckpt", ".json", ".safetensors"}
"""Files of an exported model that its results depend on."""

OWN_WORDS = {"words": "own", "language": "en"}
"""Options of the commands that never write Whisper's words."""

LATE = 2.0
"""Seconds of waiting sound from which on ``listen`` says that it does not keep up."""

BATCH_SECONDS = 60.0
"""Seconds of recordings that are heard together, the padding of the shorter ones included."""

ANNOTATE = """\
Annotate recordings with their words, the times of the words, and emotions.

FILES can be sound or video files of any sample rate and length (wav, flac, mp3, m4a, mp4, ...),
folders with such files, manifests of a recipe (.json, with --data_root), or - for a sound file on
standard input.

With --out, the command writes a file for each recording and format. The file has the recording's
name in its folder or manifest, plus the extension if two names would otherwise be the same.
Existing results are kept if the recording, the model and the settings are the same. Without --out,
the command prints the results, by default as one line of JSON for each recording. The format html
is one page for all recordings, made from their JSON.

By default, channels are mixed. --channel each annotates every channel alone, and the result has
the speakers channel1, channel2 and so on. --speakers reads the turns of the speakers from an RTTM
file, as pyannote writes it, and adds the speaker to words and segments.
"""

ALIGN = """\
Find the times and emotions of the words of known transcripts.

FILES are the same as for `ent-brain annotate`. The transcript of NAME.wav is NAME.lab, NAME.txt or
NAME.TextGrid in the same folder, as for the Montreal Forced Aligner. If a TextGrid has several
tiers, each is a speaker. Each interval is an utterance, and its words are aligned within the
interval. In a tier `words`, each interval is a word, which keeps its times. With --table, the
transcripts are in a CSV or TSV table with a column for the file and a column for the text.

The words keep their case and punctuation. A note names words that the model's tokens cannot spell,
and words that the recording may lack.
"""

ALIGN_EXAMPLES = """\
examples:
  ent-brain align recordings/ --model MODEL --out aligned --format textgrid,json
  ent-brain align recordings/ --table data.csv --model MODEL --out aligned
"""

LISTEN = """\
Transcribe the microphone. Each word is a line of JSON with its times, its emotion and the emotion's
probability. The usual delay after the end of the word is at most 1.5 s plus the computing time. On
a computer that is too slow for the model, the delay grows, and a note says so. Ctrl-C prints the
last words and ends the command. With --out, it also writes the result to files. The microphone
needs pip install 'ent_brain[listen]'.
"""

EXAMPLES = """\
examples:
  ent-brain annotate speech.wav --model demo/ent/pretrained
  ent-brain annotate recordings/ --model MODEL --out said --format json,textgrid,webvtt
  ent-brain annotate call.wav --model MODEL --out said --channel each
  ent-brain annotate calls/ --model MODEL --out said --format html --channel each
  curl URL | ent-brain annotate - --model MODEL --format webvtt
  torchrun --nproc_per_node 4 -m ent_brain.cli annotate recordings/ --model MODEL --out said
"""


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
    parser.add_argument("--version", action="version", version=versions())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    look = {"formatter_class": argparse.RawDescriptionHelpFormatter}

    command = commands.add_parser(
        "annotate",
        help="find words, their times and emotions in recordings",
        description=ANNOTATE,
        epilog=f"formats:\n{_describe_formats()}\n\n{EXAMPLES}",
        **look,
    )
    _add_annotate(command)
    _add_words_options(command)

    command = commands.add_parser(
        "align",
        help="find times and emotions of known words",
        description=ALIGN,
        epilog=f"formats:\n{_describe_formats()}\n\n{ALIGN_EXAMPLES}",
        **look,
    )
    command.add_argument("--table", type=Path, metavar="CSV", help="table with the transcripts")
    _add_annotate(command)
    command.set_defaults(run=align, **OWN_WORDS)

    command = commands.add_parser(
        "app",
        help="use a model in the browser, with files or the microphone",
        description="Use a model in the browser. Needs pip install 'ent_brain[app]'.",
    )
    _add_model_options(command)
    _add_words_options(command)
    command.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, only this computer)",
    )
    command.add_argument("--port", type=int, default=7860, help="port to listen on (default: 7860)")
    command.add_argument(
        "--minutes", type=float, default=60, help="longest recording in minutes (default: 60)"
    )
    command.add_argument(
        "--megabytes", type=float, default=500, help="largest file in MB (default: 500)"
    )
    command.set_defaults(run=app)

    command = commands.add_parser(
        "listen",
        help="transcribe the microphone while you speak",
        description=LISTEN,
    )
    command.add_argument(
        "source", nargs="?", choices=[STDIN], help="read raw 16 kHz s16le audio from standard input"
    )
    _add_model_options(command)
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="write the result to this folder at the end"
    )
    command.add_argument(
        "--format",
        default="json",
        metavar="LIST",
        help="formats of annotate, separated by commas (default: json)",
    )
    command.add_argument("--name", default="live", help="name of the files (default: live)")
    command.set_defaults(run=listen, **OWN_WORDS)

    command = commands.add_parser(
        "report",
        help="write the page of an evaluation again",
        description="Write report.html, an interactive page, from the results of a training.",
    )
    command.add_argument("folder", type=Path, help="output folder of a training")
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    command.set_defaults(run=report)

    command = commands.add_parser(
        "demo",
        help="train and test a small model on synthetic speech",
        description="Run `make demo` in a clone of the repository. This takes some minutes.",
    )
    command.set_defaults(run=demo)
    return parser


def _add_model_options(command):
    """Add the options that say which model is loaded."""
    command.add_argument(
        "--model",
        default=OPEN_ENGLISH,
        help="folder `pretrained` of a training, or name on the hub (default: the English model in "
        "the package, CC BY-NC-SA 4.0)",
    )
    command.add_argument("--revision", help="branch, tag or commit of a model on the hub")
    command.add_argument(
        "--trust",
        action="store_true",
        help="load a model that the checks refuse, such as one with a front end of your own. Its "
        "YAML can then run any program on this computer, so read it first (default: refuse it)",
    )
    command.add_argument(
        "--ssl",
        metavar="FOLDER",
        help="folder with openai/whisper-base, or with its encoder, which the model in the package "
        "needs (default: download it at first use)",
    )
    command.add_argument("--device", help="cpu, cuda or cuda:1 (default: the first GPU, if any)")
    command.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="precision of the encoder; bf16 is faster if the GPU or CPU has instructions for it, "
        "and otherwise much slower (default: fp32)",
    )


def _add_words_options(command):
    """Add the options that say whose words are written."""
    command.add_argument(
        "--words",
        choices=WORDS,
        help="own: the model's words; whisper: the words of Whisper's decoder, which needs the "
        "whole Whisper (default: whisper if the whole Whisper is available, otherwise own)",
    )
    command.add_argument(
        "--language",
        default="en",
        metavar="CODE",
        help="language of Whisper's decoder (default: en)",
    )


def _load_model(options, **settings):
    chosen = {"device": options.device, "precision": options.precision}
    settings["run_opts"] = {name: value for name, value in chosen.items() if value is not None}
    return EmotionTransducer.from_hparams(
        options.model,
        revision=options.revision,
        trust=options.trust,
        ssl=options.ssl,
        words=options.words,
        language=options.language,
        **settings,
    )


def _describe_formats():
    page = f"  {PAGE_FORMAT:<12}{RECORDINGS_PAGE:<17}one page of all recordings, with a player"
    return f"{describe_formats()}\n{page}"


def _add_annotate(command):
    """Add the options of ``annotate``, which other commands have, too."""
    command.add_argument("files", nargs="+", metavar="FILES", help="files, folders, manifests or -")
    _add_model_options(command)
    command.add_argument("--out", type=Path, metavar="DIR", help="write the results to this folder")
    command.add_argument(
        "--format",
        default="json",
        metavar="LIST",
        help="formats from the list below, separated by commas (default: json)",
    )
    command.add_argument(
        "--channel", metavar="N", help="number of a channel from 1, or `each` (default: mix all)"
    )
    command.add_argument(
        "--segment_decoding",
        choices=SEGMENT_DECODINGS,
        help="decoding of emotion segments from frames (default: the model's own)",
    )
    command.add_argument(
        "--segment_seconds", type=float, help="shortest segment, or window of median, in seconds"
    )
    command.add_argument(
        "--speakers", metavar="RTTM", help="file with the turns of the speakers in each recording"
    )
    again = command.add_mutually_exclusive_group()
    again.add_argument(
        "--keep", action="store_true", help="keep all existing results, even if out of date"
    )
    again.add_argument("--overwrite", action="store_true", help="replace all existing results")
    command.add_argument("--data_root", help="folder that replaces {data_root} in manifests")
    command.add_argument(
        "--quiet", action="store_true", help="no progress bar; notes and errors remain"
    )
    command.set_defaults(run=annotate)


def align(options):
    """Annotate recordings whose words are known; status as ``annotate``."""
    if options.channel == "each":
        raise InputError("--channel: align cannot use each. Give the number of one channel.")
    table = None if options.table is None else read_table(options.table)

    def prepare(recording):
        if table is not None:
            passages = table.get(recording.path.resolve())
            if passages is None:
                raise InputError(f"{recording.path}: no text in {options.table}. Add a row.")
            return recording._replace(passages=passages)
        path = find_transcript(recording.path)
        folder = options.out or Path(os.devnull)
        if (folder / f"{recording.name}.TextGrid").resolve() == path.resolve():
            raise InputError(f"{path}: the result would replace it. Name another --out.")
        return recording._replace(passages=read_transcript(path))

    return annotate(options, prepare)


def annotate(options, *preparations):
    """Annotate recordings; status 1 where one of them could not be.

    A preparation completes a recording, and raises ``InputError`` where it cannot.
    """
    formats, channel = _formats(options.format), _channel(options.channel)
    if options.speakers is not None:
        if channel == "each":
            raise InputError("--speakers: --channel each names the speakers. Leave one out.")
        turns = read_rttm(options.speakers)

        def add_turns(recording):
            return recording._replace(turns=turns_of(recording.name, turns, options.speakers))

        preparations = *preparations, add_turns
    if options.out is None and len(formats) > 1:
        raise InputError("--format: several formats need a folder. Give --out.")
    has_page = PAGE_FORMAT in formats
    if options.out is None and has_page:
        raise InputError(f"--format: {PAGE_FORMAT} needs a folder for the page. Give --out.")
    if has_page:  # the page is made of the recordings' JSON
        formats = list(dict.fromkeys(["json", *formats]))
        formats.remove(PAGE_FORMAT)
    with tempfile.TemporaryDirectory() as scratch:
        recordings = find_recordings(options.files, options.data_root, Path(scratch))
        rank, processes = rank_and_count()
        there, failed = _part_missing(recordings, rank)
        recordings = [each._replace(channel=channel) for each in there[rank::processes]]
        found = len(recordings) + len(failed)
        for prepare in preparations:
            recordings, unprepared = _prepare_each(recordings, prepare)
            failed += unprepared
        model = _load_model(options, overrides=_segment_settings(options))
        if options.out is not None:
            recordings = _not_done(options, recordings, formats, model)
            if recordings:  # a folder with all results may be read-only
                _make_folder(options.out)
        done = 0
        try:
            with tqdm(total=len(recordings), unit="file", disable=options.quiet) as bar:
                for recording, annotation, problem in annotate_all(model, recordings):
                    bar.update()
                    for note in annotation.notes if annotation else ():
                        tqdm.write(f"note: {recording.label}: {note}", file=sys.stderr)
                    if not problem and options.out is None:
                        _say(annotation, formats[0])
                    elif not problem:
                        problem = _write(options.out, recording, annotation, formats)
                    if problem:
                        failed.append(recording.label)
                        tqdm.write(f"error: {problem}", file=sys.stderr)
                    else:
                        done += 1
        except KeyboardInterrupt:
            rest = ". Run the same command again for the others." if options.out else ""
            message = f"{done} of {len(recordings)} recordings were annotated{rest}"
            raise KeyboardInterrupt(message) from None
        found, failed = _of_all_processes(found, failed)
        if has_page and not rank:
            _write_page(options, [each._replace(channel=channel) for each in there])
    if failed and not rank:
        raise InputError(
            f"{len(failed)} of {found} recordings failed: {first_names(failed)}. See the errors "
            f"above.{' The others are done.' if len(failed) < found else ''}"
        )
    return 1 if failed else 0


def _prepare_each(recordings, prepare):
    """Recordings as ``prepare`` completes them, and labels of the others, which are reported."""
    prepared, failed = [], []
    for recording in recordings:
        try:
            prepared.append(prepare(recording))
        except InputError as error:
            print(f"error: {_problem(recording, error)}", file=sys.stderr)
            failed.append(recording.label)
    return prepared, failed


def _part_missing(recordings, rank):
    """Recordings with a file, and labels of the others, which the first process reports."""
    # Path.is_file raises where a name is too long.
    is_there = dict(zip(recordings, map(os.path.isfile, [r.path for r in recordings]), strict=True))
    there = [recording for recording in recordings if is_there[recording]]
    missing = [recording.label for recording in recordings if not is_there[recording]]
    if not missing:
        return there, []
    problem = (
        f"{len(missing)} of {len(recordings)} recordings are missing: {first_names(missing)}. "
        "Check --data_root."
    )
    if not there:
        raise InputError(problem)
    if rank:
        return there, []
    print(f"error: {InputError(problem)}", file=sys.stderr)
    return there, missing


def _segment_settings(options):
    """Settings of segments that the command line gives, which replace the model's (dict)."""
    names = ("segment_decoding", "segment_seconds")
    given = {name: getattr(options, name) for name in names}
    seconds = given["segment_seconds"]
    if seconds is not None and not 0 < seconds <= 3600:
        raise InputError(f"--segment_seconds: {seconds}. Give a number above 0, up to 3600.")
    return {name: value for name, value in given.items() if value is not None}


def _channel(text):
    """``--channel``: a number, ``each`` or None."""
    if text in (None, "each"):
        return text
    if not (text.isascii() and text.isdigit() and int(text)):
        raise InputError(f"--channel: {text!r}. Give a number from 1, or each.")
    return int(text)


def _of_all_processes(found, failed):
    """Join torchrun's processes, which it would end as soon as one of them exits with 1."""
    if not torch.distributed.is_torchelastic_launched():
        return found, failed
    torch.distributed.init_process_group("gloo", timeout=timedelta(days=30))
    counts, labels = zip(*gather((found, failed)), strict=True)
    torch.distributed.destroy_process_group()
    return sum(counts), take_turns(labels)


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
    longest, frontend = model.hparams.longest_window, model.mods.frontend
    short = []
    for recording in recordings:
        try:
            if recording.channel == "each":
                yield recording, _annotate_channels(model, recording), None
                continue
            audio = _scan(model, recording, recording.channel, longest)
            check_passages(recording.passages or (), audio.seconds, audio.label)
            if audio.seconds > longest:
                if recording.passages is None:
                    annotation = model.annotate_file(audio, progressbar=False)
                else:
                    annotation = model.align_file(audio, recording.passages, progressbar=False)
                yield recording, _complete(recording, annotation), None
            else:
                short.append((recording, audio))
        except InputError as error:
            yield recording, None, _problem(recording, error)
    short.sort(key=lambda each: (each[1].seconds, each[0].name))
    while short:
        count = max(1, int(BATCH_SECONDS / max(short[-1][1].seconds, 1.0)))
        batch, short = short[-count:], short[:-count]
        read = []
        for recording, audio in batch:
            try:
                [window] = read_windows(
                    audio, frontend.sample_rate, longest + 1.0, frontend.frame_samples
                )
                read.append((recording, audio, window.wav))
            except InputError as error:
                yield recording, None, _problem(recording, error)
        if not read:
            continue
        wavs, lens = batch_pad_right([wav for _, _, wav in read])
        names = [Path(recording.name).name for recording, _, _ in read]
        texts = [recording.passages for recording, _, _ in read]
        if texts[0] is None:
            annotations = model.annotate_batch(wavs, lens, names)
        else:
            annotations = model.align_batch(wavs, texts, lens, names)
        for (recording, audio, _), annotation in zip(read, annotations, strict=True):
            annotation = replace(annotation, notes=audio.notes + annotation.notes)
            yield recording, _complete(recording, annotation), None


def _scan(model, recording, channel, least=0.0):
    """The sound file of a recording, or its part of the file (``Audio``)."""
    if recording.part is None:
        return model.scan(recording.path, channel, least)
    return scan_part(recording.path, *recording.part, channel)


def _annotate_channels(model, recording):
    """Annotate each channel of a recording alone (``Annotation``)."""
    first = _scan(model, recording, 1)
    others = [_scan(model, recording, number) for number in range(2, first.channels + 1)]
    channels = [model.annotate_file(audio, progressbar=False) for audio in [first, *others]]
    return join_channels(Path(recording.name).name, channels)


def _complete(recording, annotation):
    """An annotation with the recording's name and speakers."""
    annotation = replace(annotation, name=Path(recording.name).name)
    return name_speakers(annotation, recording.turns) if recording.turns else annotation


def _problem(recording, error):
    return str(error).replace(str(recording.path), recording.label)


def _formats(text):
    formats = [name.strip() for name in text.split(",")]
    for name in formats:
        if name not in (known := [*FORMATS, PAGE_FORMAT]):
            near = difflib.get_close_matches(name, known, 1)
            remedy = f"Did you mean {near[0]}?" if near else f"Choose from {', '.join(known)}."
            raise InputError(f"--format: unknown format {name!r}. {remedy}")
    return formats


def _make_folder(path):
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}). Name another --out."
        ) from error


def _digest_model(folder):
    """SHA-256 of what an exported model's results depend on (str)."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in MODEL_SUFFIXES and path.is_file():
            digest.update(f"{path.relative_to(folder)} {_digest(path)}\n".encode())
    return digest.hexdigest()


def _digest(path):
    """SHA-256 of a file (str); None if it cannot be read."""
    try:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        return digest.hexdigest()
    except OSError:
        return None


def _not_done(options, recordings, formats, model):
    """Recordings to annotate, with their stamps: all whose results are not there or out of date.

    ``InputError`` if the folder has results of another recording under one of the names.
    """
    folder = options.out
    index = folder / INDEX
    model_digest = _digest_model(find_model(options.model, revision=options.revision))
    sources, stamps = {}, {}
    for line in index.read_bytes().splitlines() if index.is_file() else ():
        # A full disk may have cut a line; whatever else is no line of ours tells nothing.
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            entry = json.loads(line)
            sources[entry["name"]] = entry["source"]
            stamp = {key: entry.get(key) for key in STAMP}
            stamps |= {(entry["name"], name): stamp for name in entry.get("formats", ())}
    left = []
    for recording in recordings:
        known = sources.get(recording.name)
        if known not in (None, recording.source):
            raise InputError(
                f"{recording.path}: {folder} already has {recording.name!r}, a result of {known}. "
                "Name another --out."
            )
        settings = {"channel": recording.channel, **_segment_settings(options)}
        if model.whisper is not None:
            settings |= {"words": "whisper", "language": options.language}
        if options.precision != "fp32":
            settings["precision"] = options.precision
        if recording.part is not None:
            settings["part"] = list(recording.part)
        for key, value in (("transcript", recording.passages), ("turns", recording.turns)):
            if value is not None:
                settings[key] = hashlib.sha256(repr(value).encode()).hexdigest()
        values = _digest(recording.path), model_digest, settings
        stamp = dict(zip(STAMP, values, strict=True))
        paths = {name: folder / f"{recording.name}.{FORMATS[name][0]}" for name in FORMATS}
        # Path.exists raises where a name is too long.
        there = known is not None and all(map(os.path.exists, map(paths.get, formats)))
        current = all(stamps.get((recording.name, name)) == stamp for name in formats)
        if options.overwrite or not there or not (options.keep or current):
            stale = tuple(
                name
                for name, path in paths.items()
                if name not in formats
                and not options.keep
                and stamps.get((recording.name, name), stamp) != stamp
                and path.exists()
            )
            left.append(recording._replace(stamp=stamp, stale=stale))
    return left


def _write(folder, recording, annotation, formats):
    """Write an annotation, and note in the index that it is there; what was wrong (str or None)."""
    name, formats = Path(recording.name), [*formats, *recording.stale]
    try:
        annotation.write(folder / name.parent, formats, name.name)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return f"{recording.label}: the name is too long. Rename the file."
    entry = {"name": recording.name, "source": recording.source, "formats": formats}
    line = json.dumps(entry | recording.stamp, ensure_ascii=False)
    with (folder / INDEX).open("a", encoding="utf-8") as index:
        index.write(line + "\n")
    return None


def _write_page(options, recordings):
    """Write the page of the recordings that have been annotated, now or before."""
    folder = options.out
    paths = [folder / f"{recording.name}.json" for recording in recordings]
    there = map(os.path.exists, paths)  # Path.exists raises where a name is too long
    utterances = (
        Utterance(
            replace(_read_annotation(path), name=recording.name),
            str(recording.path),
            start=None if recording.part is None else recording.part[0],
            channel=None if recording.channel == "each" else recording.channel,
        )
        for recording, path, is_there in zip(recordings, paths, there, strict=True)
        if is_there
    )
    page = folder / RECORDINGS_PAGE
    write_recordings(page, _title(options.files), utterances, progressbar=not options.quiet)
    print(page)


def _title(files):
    """Title of the page of recordings (str), with the name of the only folder or file, if any."""
    if len(files) > 1 or files == [STDIN]:
        return "Recordings"
    path = Path(files[0])
    if path.is_dir():
        return f"Recordings in {path.resolve().name}"
    return f"Recordings in {path.name}" if path.suffix == ".json" else path.stem


def _read_annotation(path):
    try:
        return Annotation.from_json(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"damaged ({type(error).__name__})"
        raise InputError(f"{path}: {reason}. Give --overwrite to write it again.") from error


def _say(annotation, format_name):
    text = FORMATS[format_name][1](annotation)
    print(json.dumps(json.loads(text)) if format_name == "json" else text, flush=True)


def app(options):
    """Show a model in the browser until Ctrl-C."""
    try:
        from ent_brain.app import check_port, serve
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name}: is not installed. Run pip install 'ent_brain[app]'."
        ) from error
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # which removes temporary files
    check_port(options.host, options.port)
    print("Loading the model ...", file=sys.stderr, flush=True)
    limits = options.minutes, options.megabytes
    served, *_ = serve(
        _load_model(options), options.host, options.port, *limits, prevent_thread_lock=True
    )
    print(f"http://{options.host}:{options.port}", "Ctrl-C ends it.", flush=True)
    served.get_blocks().block_thread()
    return 0


def listen(options):
    """Print words while they are spoken, until Ctrl-C or the end of standard input."""
    formats = _formats(options.format)
    if PAGE_FORMAT in formats:
        raise InputError(f"--format: {PAGE_FORMAT}: is for annotate. Name other formats.")
    check_id(options.name)
    if options.out is not None:
        _make_folder(options.out)
    listener = Listener(_load_model(options))
    with ExitStack() as stack:
        if options.source == STDIN:
            chunks, allowed = standard_input(listener.sample_rate), math.inf
        else:
            chunks, allowed = stack.enter_context(microphone(listener.sample_rate)), LATE
        print("listening, Ctrl-C ends it", file=sys.stderr)
        for words in listen_to(chunks, listener):
            for word in words:
                print(json.dumps(word._asdict(), ensure_ascii=False), flush=True)
            waiting = CHUNK * chunks.qsize()
            if waiting > allowed:
                print(
                    f"note: {waiting:.0f} s late, and nothing is lost: this computer is too slow "
                    "for the model",
                    file=sys.stderr,
                )
                allowed = 2 * waiting
    if options.out is not None:
        listener.annotate(options.name).write(options.out, formats)
    return 0


def report(options):
    """Make the page of an evaluation again."""
    print(write_report(options.folder, progressbar=not options.quiet))
    return 0


def demo(_):
    """Run the repository's demo, which its Makefile defines."""
    repository = Path(__file__).resolve().parents[1]
    if not (repository / "Makefile").is_file() or not (repository / "recipes").is_dir():
        raise InputError(
            f"{repository}: no recipes, and the demo trains one. Clone the repository and run make "
            "demo in it."
        )
    if not shutil.which("make"):
        raise InputError("make: is not installed. Install it, or run the commands of the Makefile.")
    return subprocess.call(["make", "demo"], cwd=repository)


if __name__ == "__main__":
    main()
