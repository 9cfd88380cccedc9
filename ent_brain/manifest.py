"""Manifests: one JSON file per split with the audio and the labels of each utterance.

``{id: {"wav": "{data_root}/a.wav", "duration": seconds, "transcript": text, "emotion": name,
"speaker": id, "segments": [{"emotion": name, "start": seconds, "end": seconds}]}}``, SpeechBrain's
format. An unknown ``transcript`` or ``emotion`` is null. An utterance that is a part of its file
also has ``start`` (seconds).

``segments`` is present only if the times of the emotions are known. It lists the emotional
segments; the rest is neutral. If the words of each segment are also known, ``intervals`` replaces
it: ``[{"emotion": name, "start": sample, "end": sample, "transcript": text}]`` at 16 kHz. Intervals
include the neutral ones. Each starts at the end of the one before.
"""

import json
import os
import random
from collections import Counter, defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from speechbrain.utils.logger import get_logger

from ent_brain.audio import DURATION_TOLERANCE, check_audio
from ent_brain.emotions import PUBLISHED
from ent_brain.errors import InputError, raise_problems
from ent_brain.files import read_text, whole_or_nothing
from ent_brain.segments import Segment, fill_neutral
from ent_brain.tokens import normalize_transcript

SAMPLE_RATE = 16000
"""Sample rate in Hz that every front end expects."""

DATA_ROOT = "{data_root}"
"""Placeholder in a manifest for the folder of its audio."""

MOST_SECONDS = 1e9
"""Upper limit of times in seconds. It excludes NaN, Infinity and absurd values, which Python's JSON
reader accepts."""

KEYS = ("wav", "duration", "transcript", "emotion", "speaker")
"""Required keys of a manifest's entries."""

MOST_ID_BYTES = 200
"""Upper limit of an id's length in bytes. File systems allow names of 255 bytes, and some of our
names add a digest or an ending to the id."""

logger = get_logger(__name__)


class Interval(NamedTuple):
    """A stretch of one emotion and the words in it; ``start`` and ``end`` in samples at 16 kHz."""

    start: int
    end: int
    emotion: str  # a name of the recipe's label set
    transcript: str  # normalised


@dataclass(frozen=True)
class Utterance:
    """A corpus's utterance; ``check_utterances`` adds the properties of its audio file."""

    id: str
    wav: Path  # inside the corpus's folder
    transcript: str | None  # None if the corpus has none
    emotion: str | None  # a name of the recipe's label set; None if the corpus has none
    speaker: str
    segments: tuple[Segment, ...] | None = None  # None if not known
    samples: int | None = None  # at ``sample_rate``; None: to the end of the file
    sample_rate: int = SAMPLE_RATE
    intervals: tuple[Interval, ...] | None = None  # without gaps; None if not known
    start: float | None = None  # seconds, if the utterance is a part of its file

    @property
    def duration(self):
        """Duration in seconds (float)."""
        return self.samples / self.sample_rate

    def entry(self, data_root):
        """Build the utterance's entry (dict) in a manifest of the corpus at ``data_root``."""
        wav = f"{DATA_ROOT}/" + self.wav.relative_to(data_root).as_posix()
        values = (wav, self.duration, self.transcript, self.emotion, self.speaker)
        entry = dict(zip(KEYS, values, strict=True))
        if self.start is not None:
            entry["start"] = self.start
        if self.intervals is not None:
            entry["intervals"] = [interval._asdict() for interval in self.intervals]
        elif self.segments is not None:
            entry["segments"] = [segment._asdict() for segment in self.segments]
        return entry


def path_inside(text, start, folder):
    """Resolve the path of an audio file in a corpus or a manifest.

    Arguments
    ---------
    text : str
        ``<start>/<path>``.
    start : str
        Placeholder of the folder.
    folder : str or Path

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If the path, as written, leaves the folder. Symbolic links to other places are allowed.

    Example
    -------
    >>> path_inside("{data_root}/a/b.wav", DATA_ROOT, "corpus").as_posix()
    'corpus/a/b.wav'
    >>> path_inside("{data_root}/../b.wav", DATA_ROOT, "corpus")
    Traceback (most recent call last):
    ...
    ent_brain.errors.InputError: wav '{data_root}/../b.wav' is not a path inside {data_root}/
    """
    parts = PurePosixPath(text).parts if isinstance(text, str) else ()
    inside = os.path.normpath("/".join(parts[1:]))
    if len(parts) < 2 or parts[0] != start or inside.split("/")[0] == "..":
        raise InputError(f"wav {text!r} is not a path inside {start}/")
    return Path(folder) / inside


def check_id(name):
    r"""Refuse an utterance's id that is not a valid file name, or would leave the folder.

    Example
    -------
    >>> check_id("Ses01F_impro01_F000")
    >>> check_id("../Ses01F_impro01_F000")
    Traceback (most recent call last):
    ...
    ent_brain.errors.InputError: an id names files: no / \ or NUL, not . or .., 1 to 200 bytes
    """
    fits = 0 < len(os.fsencode(name)) <= MOST_ID_BYTES
    if not fits or name in (".", "..") or set(name) & set("/\\\0"):
        raise InputError(
            f"an id names files: no / \\ or NUL, not . or .., 1 to {MOST_ID_BYTES} bytes"
        )


def check_utterances(
    utterances, data_root, problems=(), emotions=PUBLISHED, normalize=normalize_transcript
):
    """Check utterances against their audio and complete them; report all problems together.

    Arguments
    ---------
    utterances : sequence of Utterance
    data_root : str or Path
        The corpus's folder, named in the report.
    problems : iterable of str
        Problems that the corpus's reader found; they are reported with the others.
    emotions : EmotionSet
    normalize : callable
        The recipe's normalisation of transcripts, from ``tokens.NORMALIZATIONS``.

    Returns
    -------
    list[Utterance]
        With ``samples`` and ``sample_rate`` of the audio, normalised transcripts, and only the
        emotional segments, which end before the audio or with it.

    Raises
    ------
    InputError
        If an id is used twice or is not a valid file name. If audio is missing, unreadable,
        truncated or empty, has NaN or absurd samples, or is not as long as the corpus states. If a
        part of a file exceeds it. If a transcript has no word, an emotion is unknown, or both are
        missing. If an interval is empty or outside the audio. Other sample rates and several
        channels are only logged.

    Example
    -------
    >>> check_utterances([Utterance("a", Path("a.wav"), "Hi!", "sad", "Ann")], "corpus")
    Traceback (most recent call last):
    ...
    ent_brain.errors.InputError: a: no audio file a.wav: correct corpus, nothing was written
    """
    uses = Counter(utterance.id for utterance in utterances)
    problems = [
        *problems,
        *(f"{name}: {n} utterances of this id" for name, n in uses.items() if n > 1),
    ]
    checked = []
    other_rate = several_channels = 0
    check = lru_cache(maxsize=1024)(check_audio)  # one file may contain many utterances
    for utterance in utterances:
        try:
            check_id(utterance.id)
            audio = check(utterance.wav)
            checked.append(_complete(utterance, audio, emotions, normalize))
        except InputError as error:
            problems.append(f"{utterance.id}: {error}")
        else:
            other_rate += audio.samplerate != SAMPLE_RATE
            several_channels += audio.channels > 1
    raise_problems(problems, f"correct {data_root}, nothing was written")
    of_all = f"of {len(checked)} files are not"
    if other_rate:
        logger.info(
            f"{other_rate} {of_all} at {SAMPLE_RATE} Hz and will be resampled when they are read"
        )
    if several_channels:
        logger.info(f"{several_channels} {of_all} mono and will be mixed down when they are read")
    return checked


def _complete(utterance, audio, emotions, normalize):
    """Complete an utterance from its audio, and normalise its transcript."""
    transcript = utterance.transcript
    if transcript is None and utterance.emotion is None:
        raise InputError("neither transcript nor emotion")
    if transcript is not None:
        transcript = normalize(transcript)
        if not transcript:
            raise InputError(f"no word in the transcript {utterance.transcript!r}")
    rate, samples = audio.samplerate, audio.frames
    known = utterance.samples is not None
    if utterance.start is not None:
        samples = _part(utterance, rate, samples)
    elif known and abs(utterance.duration - samples / rate) > DURATION_TOLERANCE:
        raise InputError(
            f"{samples / rate:.2f} s of audio, but the corpus states {utterance.duration:.2f} s"
        )
    if utterance.intervals is not None:
        at_16_khz = round(samples / rate * SAMPLE_RATE)
        check_intervals(utterance.intervals, at_16_khz, transcript, emotions)
    segments = utterance.segments
    return replace(
        utterance,
        transcript=transcript,
        segments=_emotional_segments(utterance.emotion, segments, samples / rate, emotions),
        samples=samples,
        sample_rate=rate,
    )


def _part(utterance, rate, of_file):
    """Count the samples of an utterance that is a part of a file with ``of_file`` samples."""
    first = round(utterance.start * rate)
    samples = of_file - first
    if utterance.samples is not None:
        samples = round(utterance.duration * rate)
    seconds = f"{utterance.start:.2f} to {(first + samples) / rate:.2f} s"
    if utterance.start < 0 or samples < 1:
        raise InputError(f"from {seconds}: it must start at 0 or later and stop after its start")
    beyond = first + samples - of_file
    if beyond > DURATION_TOLERANCE * rate:
        raise InputError(f"from {seconds} of a file of {of_file / rate:.2f} s")
    return min(samples, of_file - first)


def _emotional_segments(emotion, segments, duration, emotions):
    """Check the emotions and the segments; return the emotional segments, cut at the end."""
    for name in (emotion, *(segment.emotion for segment in segments or ())):
        if name is not None:
            emotions.index(name)
    if segments is None:
        return None
    cover = fill_neutral(segments, duration, emotions)
    return tuple(segment for segment in cover if segment.emotion != emotions.neutral)


def check_intervals(intervals, samples, transcript, emotions):
    """Check that intervals cover an utterance and its words, without gaps and in order.

    Arguments
    ---------
    intervals : sequence of Interval
    samples : int
        Number of the utterance's samples at 16 kHz.
    transcript : str
        Normalised transcript of the utterance.
    emotions : EmotionSet

    Raises
    ------
    InputError
        If an interval is empty, has no word or an unknown emotion, leaves a gap, or overlaps
        another. If the intervals' words differ from the transcript.

    Example
    -------
    >>> intervals = [Interval(0, 9, "sad", "HI"), Interval(8, 20, "sad", "YOU")]
    >>> check_intervals(intervals, 20, "HI YOU", PUBLISHED)
    Traceback (most recent call last):
    ...
    ent_brain.errors.InputError: interval of samples 8 to 20 (sad): it must begin at 9 and not be \
empty
    """
    covered = 0
    for start, end, emotion, words in intervals:
        interval = f"interval of samples {start} to {end} ({emotion})"
        if emotion not in emotions.names:
            raise InputError(f"{interval}: unknown emotion, not one of {', '.join(emotions)}")
        if not words:
            raise InputError(f"{interval}: no word in it")
        if start != covered or not start < end:
            raise InputError(f"{interval}: it must begin at {covered} and not be empty")
        covered = end
    if covered != samples:
        raise InputError(f"intervals end at sample {covered}, the utterance at {samples}")
    words = " ".join(interval.transcript for interval in intervals)
    if words != transcript:
        raise InputError(f"the intervals' words {words!r} are not the transcript {transcript!r}")


def save_manifests(save_folder, splits, data_root):
    """Write one manifest per split atomically; manifests that have not changed are kept.

    Arguments
    ---------
    save_folder : str or Path
        Created if it does not exist.
    splits : dict[str, list[Utterance]]
        Utterances of each split from ``check_utterances``.
    data_root : str or Path
        The folder for which ``{data_root}`` stands.

    Returns
    -------
    dict[str, Path]
        ``<save_folder>/<split>.json`` for each split. The log describes the changes to earlier
        files. A split without utterances raises ``InputError``.

    Example
    -------
    >>> utterance = Utterance("a", Path("corpus/a.wav"), "HI", "sad", "Ann", samples=16000)
    >>> paths = save_manifests(getfixture("tmp_path"), {"train": [utterance]}, "corpus")
    >>> read_manifest(paths["train"])["a"]["wav"]
    '{data_root}/a.wav'
    """
    empty = [f"{split}: no utterance" for split, utterances in splits.items() if not utterances]
    raise_problems(empty, "choose splits that have some each, nothing was written")
    save_folder = Path(save_folder)
    save_folder.mkdir(parents=True, exist_ok=True)
    paths = {split: save_folder / f"{split}.json" for split in splits}
    changed = False
    # Files are renamed only when all are written, so that they all come from one preparation.
    with ExitStack() as stack:
        for split, path in paths.items():
            manifest = {utterance.id: utterance.entry(data_root) for utterance in splits[split]}
            difference = _difference(path, manifest)
            if difference:
                changed = True
                logger.info(f"{path}: {len(manifest)} utterances ({difference})")
                partial = stack.enter_context(whole_or_nothing(path))
                text = json.dumps(dict(sorted(manifest.items())), indent=2, ensure_ascii=False)
                partial.write_text(text + "\n", encoding="utf-8")
    if not changed:
        logger.info(f"manifests in {save_folder} are up to date")
    return paths


def _difference(path, manifest):
    """Describe the changes of a manifest to its file (str); empty if there are none."""
    try:
        previous = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        previous = {}
    both = previous.keys() & manifest.keys()
    counts = {
        "added": len(manifest) - len(both),
        "removed": len(previous) - len(both),
        "changed": sum(previous[name] != manifest[name] for name in both),
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def read_entries(path, remedy):
    """Read a JSON object of objects by id (dict); an ``InputError`` ends with ``remedy``."""
    text = read_text(path, remedy)
    repeated = []

    def unique(pairs):
        # json silently keeps the last of two equal keys, so an utterance would be lost.
        repeated.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return dict(pairs)

    try:
        entries = json.loads(text, object_pairs_hook=unique)
        if "\\u" in text:  # a lone surrogate cannot be written to a file
            json.dumps(entries, ensure_ascii=False).encode()
    except RecursionError as error:
        raise InputError(f"{path}: not JSON (nested too deeply): {remedy}") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}): {remedy}") from error
    if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
        raise InputError(f"{path}: not a JSON object of utterances by id: {remedy}")
    raise_problems([f"{path}: {key} is there more than once" for key in repeated], remedy)
    return entries


def read_manifest(path, emotions=PUBLISHED, normalize=normalize_transcript):
    """Read a manifest (dict[str, dict], ``{data_root}`` not replaced) and check every entry.

    Raises ``InputError`` if the file is missing, is not JSON, or has no utterance, or if an id is
    not a valid file name. Entries must have all keys and audio inside ``{data_root}``. Their
    emotion must be in ``emotions``, their transcript normalised, and their times possible.
    """
    remedy = f"write {path} again with the recipe's preparation"
    entries = read_entries(path, remedy)
    problems = [] if entries else [f"{path}: no utterance"]
    for name, entry in entries.items():
        try:
            check_id(name)
            _check_entry(entry, emotions, normalize)
        except InputError as error:
            problems.append(f"{name}: {error}")
    raise_problems(problems, remedy)
    return entries


def _check_entry(entry, emotions, normalize):
    missing = [key for key in KEYS if key not in entry]
    if missing:
        raise InputError(f"no {' and no '.join(missing)}")
    for key in ("wav", "transcript", "emotion", "speaker"):
        may_lack = key in ("transcript", "emotion")
        if not (_is_text(entry[key]) or (may_lack and entry[key] is None)):
            raise InputError(f"{key} {entry[key]!r} is no text")
    path_inside(entry["wav"], DATA_ROOT, "")
    transcript = entry["transcript"]
    if transcript is None and entry["emotion"] is None:
        raise InputError("neither transcript nor emotion")
    if transcript is not None and normalize(transcript) != transcript:
        raise InputError(f"transcript {transcript!r} is not normalised")
    if "start" in entry and not (is_seconds(entry["start"]) and entry["start"] >= 0):
        raise InputError(f"start {entry['start']!r} is not in seconds")
    if not is_seconds(entry["duration"]) or entry["duration"] <= 0:
        raise InputError(f"duration {entry['duration']!r} is not in seconds")
    known = {"start": is_seconds, "end": is_seconds, "emotion": _is_text}
    segments = _read_all(Segment, entry, "segments", known) if "segments" in entry else None
    _emotional_segments(entry["emotion"], segments, entry["duration"], emotions)
    if "intervals" in entry:
        known = {"start": _is_sample, "end": _is_sample, "emotion": _is_text}
        intervals = _read_all(Interval, entry, "intervals", known | {"transcript": _is_text})
        samples = round(entry["duration"] * SAMPLE_RATE)
        check_intervals(intervals, samples, transcript, emotions)


def _read_all(kind, entry, key, known):
    """Read an entry's list of segments or intervals, and check their keys and values."""
    values = entry[key]
    if not isinstance(values, list) or not all(
        isinstance(value, dict)
        and value.keys() == known.keys()
        and all(is_right(value[name]) for name, is_right in known.items())
        for value in values
    ):
        raise InputError(f"{key} are not a list of {', '.join(known)} each")
    return [kind(**value) for value in values]


def is_seconds(value):
    """Whether a value from a JSON file is a number of seconds within ``MOST_SECONDS``."""
    return type(value) in (int, float) and abs(value) < MOST_SECONDS


def _is_sample(value):
    return type(value) is int


def _is_text(value):
    return isinstance(value, str)


def hold_out(utterances, share, seed):
    """Hold out a share of the utterances of every speaker and every emotion.

    The choice depends on the utterances and the seed, not on the order of the list.

    Arguments
    ---------
    utterances : iterable of Utterance
    share : float
        Above 0 and below 1. From each (speaker, emotion) group of n, ``share * n`` are held out,
        rounded up or down so that the total is ``share`` of all, rounded.
    seed : int

    Returns
    -------
    tuple[list[Utterance], list[Utterance]]
        The remaining and the held-out utterances. Another share raises ``InputError``.

    Example
    -------
    >>> utterances = [Utterance(f"u{i}", Path("u.wav"), "HI", "sad", "F") for i in range(10)]
    >>> train, valid = hold_out(utterances, share=0.2, seed=42)
    >>> len(train), len(valid)
    (8, 2)
    """
    if not 0 < share < 1:
        raise InputError(f"valid_share {share}: choose a share above 0 and below 1")
    groups = defaultdict(list)
    for utterance in sorted(utterances, key=lambda utterance: utterance.id):
        groups[utterance.speaker, utterance.emotion].append(utterance)
    stay, held_out = [], []
    seen = 0
    by_name = sorted(groups.items(), key=lambda item: tuple(map(str, item[0])))  # emotion or None
    for (speaker, emotion), group in by_name:
        # Rounding the running total, not each group, keeps the overall share right.
        count = int(share * (seen + len(group)) + 0.5) - int(share * seen + 0.5)
        seen += len(group)
        # Each group has its own generator, so that it does not depend on the other speakers.
        random.Random(f"{seed} {speaker} {emotion}").shuffle(group)
        held_out += group[:count]
        stay += group[count:]
    return stay, held_out
