"""The page of an evaluation or of recordings: one HTML file with text, pictures and sound.

An evaluation writes ``results.json`` and, with ``write_utterances``, the decoded and the reference
labels of every utterance. ``write_report`` makes a page from the two. ``write_recordings`` makes
the page of annotated recordings. A page loads nothing except linked sound files.
"""

import base64
import hashlib
import heapq
import io
import json
import math
import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np
import soundfile
from rapidfuzz.distance import Levenshtein
from speechbrain.utils.logger import get_logger
from tqdm import tqdm

from ent_brain.annotation import Annotation
from ent_brain.audio import read_blocks, scan_audio
from ent_brain.dataio import read_audio
from ent_brain.errors import InputError
from ent_brain.files import check_kinds, read_rows, whole_or_nothing
from ent_brain.manifest import SAMPLE_RATE
from ent_brain.report import cell_text, palette

RESULTS_FILE, UTTERANCES_FILE, PAGE_FILE = "results.json", "utterances.jsonl", "report.html"
"""Files in the folder of an evaluation: the rows of the table, the utterances, and the page."""

EVALUATE_AGAIN = "run the training's command again to repeat the evaluation"

EMBEDDED_BYTES = 16 * 2**20
"""Upper limit of a page's MP3 in bytes, some 50 minutes of speech. Further sound is linked, so that
the page opens quickly. Every browser can play and seek MP3; Chromium cannot seek a short FLAC."""

MOMENTS, MOMENT_SECONDS = 10, 1.0
"""Number of the strongest moments in a summary, and their longest duration in seconds."""

POINTS = 1000
"""Number of points of a waveform's outline and of the probabilities over time. No screen shows
more."""

ASSETS = Path(__file__).with_name("assets")

logger = get_logger(__name__)


@dataclass(frozen=True)
class Utterance:
    """A recording with its annotation and, if known, its reference."""

    annotation: Annotation
    audio: str
    """Path of the sound file."""
    reference: Annotation | None = None
    """Correct text, emotion and segments; unknown ones are empty or None."""
    test_set: str = ""
    rates: dict = field(default_factory=dict)
    """WER and EDER in percent, if they were measured."""
    start: float | None = None
    """Start in seconds, if the recording is a part of the sound file."""
    channel: int | None = None
    """Number of the recording's channel, from 1; None for the mix of all."""

    def __post_init__(self):
        """Refuse fields of the wrong type (``TypeError``) or value (``ValueError``)."""
        check_kinds(
            (Annotation, [self.annotation]),
            (Annotation | None, [self.reference]),
            (str, [self.audio, self.test_set]),
            (dict, [self.rates]),
            (float | int | None, [self.start]),
            (int | None, [self.channel]),
        )
        check_kinds((str, self.rates), (float | int, self.rates.values()))


def write_utterances(utterances, path):
    """Write utterances to a file atomically, one line of JSON each."""
    with whole_or_nothing(path) as partial, partial.open("w", encoding="utf-8") as file:
        for utterance in utterances:
            reference = utterance.reference
            fields = {
                "test_set": utterance.test_set,
                "audio": str(utterance.audio),
                "start": utterance.start,
                "channel": utterance.channel,
                "rates": utterance.rates,
                "reference": None if reference is None else reference.to_dict(),
                "annotation": utterance.annotation.to_dict(),
            }
            file.write(json.dumps(fields, ensure_ascii=False) + "\n")


def read_utterances(path):
    """Yield the utterances from a file of ``write_utterances``; ``InputError`` if it is damaged."""
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                fields = json.loads(line)
                for key in ("annotation", "reference"):
                    if fields[key] is not None:
                        fields[key] = Annotation.from_dict(fields[key])
                utterance = Utterance(**fields)
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                reason = f"damaged ({type(error).__name__})"
                raise InputError(f"{path} line {number}: {reason}: {EVALUATE_AGAIN}") from error
            yield utterance


def write_report(folder, progressbar=True):
    """Write the page of an evaluation.

    Arguments
    ---------
    folder : str or Path
        Folder with ``results.json`` and ``utterances.jsonl``; the page is its ``report.html``.
    progressbar : bool

    Returns
    -------
    Path
        Path of the page.

    Raises
    ------
    InputError
        If the folder lacks one of these files, or if one is damaged.
    """
    folder = Path(folder)
    for name in (RESULTS_FILE, UTTERANCES_FILE):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder / name}: no such file. Name the output folder of a finished evaluation."
            )
    results = read_rows(folder / RESULTS_FILE, ["test set"], EVALUATE_AGAIN)
    title = f"Evaluation of {folder.resolve().name}"
    path = folder / PAGE_FILE
    if not (folder / UTTERANCES_FILE).stat().st_size:
        raise InputError(f"{folder / UTTERANCES_FILE}: no utterance: {EVALUATE_AGAIN}")
    utterances = read_utterances(folder / UTTERANCES_FILE)
    write_page(path, title, results, utterances, progressbar=progressbar)
    return path


def write_recordings(path, title, recordings, embedded_bytes=EMBEDDED_BYTES, progressbar=False):
    """Write a page of annotated recordings, with a summary and a player.

    The summary has the seconds of each emotion, by speaker if speakers are known. It also has the
    strongest moments: the seconds with the highest sums of an emotion's probability over frames,
    each with its mean probability. Neutral does not count as an emotion.

    Arguments
    ---------
    path, title, embedded_bytes, progressbar
        As for ``write_page``.
    recordings : iterable of Utterance
        Recordings with different names and no references.

    Example
    -------
    >>> write_recordings(getfixture("tmp_path") / "recordings.html", "nothing yet", [])
    """
    summary = _Summary()
    write_page(path, title, [], recordings, embedded_bytes, progressbar, summary)


def write_page(
    path,
    title,
    results,
    utterances,
    embedded_bytes=EMBEDDED_BYTES,
    progressbar=False,
    summary=None,
):
    """Write a page with a table of results and a player of utterances, atomically.

    The page contains audio as MP3 of 16 kHz, up to ``embedded_bytes``. It links the other audio by
    relative path. If a sound file is missing or cannot be read, its utterance has no player. The
    page mentions all of this.

    Arguments
    ---------
    path : str or Path
    title : str
    results : list[dict]
        Rows of the table, as for ``report.results_table``; may be empty.
    utterances : iterable of Utterance
        May be empty. The smallest test set is embedded first, so that it is embedded completely.
    embedded_bytes : int
    progressbar : bool
    summary : _Summary, optional
        Summary for ``write_recordings``.

    Example
    -------
    >>> path = getfixture("tmp_path") / "page.html"
    >>> write_page(path, "a table alone", [{"model": "ENT", "WER": 31.26}], [])
    """
    path = Path(path)
    described, label_sets = [], set()
    for utterance in utterances:
        emotions = _label_set(utterance)
        label_sets |= {emotions} - {None}
        if summary is not None:
            summary.add(utterance)
        described.append((_describe(utterance, emotions), utterance))
    if len(label_sets) > 1:
        sets = " and ".join(sorted(", ".join(emotions) for emotions in label_sets))
        raise InputError(f"{path}: utterances of several label sets ({sets}): make a page of each")
    emotions = next(iter(label_sets), None)
    sizes = Counter(description["set"] for description, _ in described)
    described.sort(key=lambda each: (sizes[each[0]["set"]], each[0]["set"], each[0]["id"]))
    noun = "utterance" if summary is None else "recording"
    player = _asset("wavesurfer/wavesurfer.min.js")
    script = _asset("page.js")
    parts = {
        "title": escape(title),
        "style": _asset("page.css"),
        "script_hashes": f"{_hash(player)} {_hash(script)}",
        "emotions": _json(_looks(emotions) if emotions else []),
        "neutral": _json(emotions and emotions.neutral_index),
        "results": _json(_table(results)),
        "summary": _json(summary and summary.to_dict(emotions)),
        "noun": noun,
        "nouns": f"{noun.capitalize()}s",
        "licence": escape(_asset("wavesurfer/LICENSE")),
        "player": player,
        "script": script,
    }
    before, after = _asset("page.html").split("{{utterances}}")
    left, kinds = embedded_bytes, defaultdict(list)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_or_nothing(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(_filled(before, parts))
        comma = ""
        for description, utterance in tqdm(described, desc=path.name, disable=not progressbar):
            sound = _sound(utterance, path.parent, left)
            kind = "linked" if sound["link"] else "embedded" if sound["audio"] else "missing"
            kinds[kind].append(utterance.audio)
            left = 0 if sound["link"] else left - len(sound["audio"] or b"")
            file.write(comma + _json({**description, **sound}))
            comma = ","
        if silent := kinds["missing"]:
            logger.warning(
                f"{path}: without the sound of {len(silent)} {noun}s. {silent[0]} is missing or "
                "cannot be read."
            )
        parts["audio_note"] = escape(_audio_note(kinds, embedded_bytes, noun))
        file.write(_filled(after, parts))


def _filled(text, parts):
    """Replace ``{{name}}`` in a text by the part of this name."""
    return re.sub(r"{{(\w+)}}", lambda match: parts[match[1]], text)


def _asset(name):
    return (ASSETS / name).read_text(encoding="utf-8")


def _hash(script):
    """Digest of a script for the page's security policy, which blocks all other scripts."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _json(value):
    """Write JSON for an HTML script, so that no part of it ends the script or starts a tag."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_base64)
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _base64(value):
    return base64.b64encode(value).decode()


def _label_set(utterance):
    """Labels of an utterance's model or, if the model has no emotions, of its reference."""
    reference = utterance.reference and utterance.reference.label_set
    return utterance.annotation.label_set or reference


def _looks(emotions):
    """Name, short code, colour and hatching of each emotion, in the order of the indices."""
    looks = zip(palette(emotions).items(), emotions.codes, strict=True)
    return [
        {"name": name, "letter": code, "color": color, "hatch": hatch}
        for (name, (color, hatch)), code in looks
    ]


def _describe(utterance, emotions):
    """Data of an utterance for the page's script, with emotions by index."""
    annotation, reference = utterance.annotation, utterance.reference
    probabilities, together = _overview(annotation.frame_probabilities)
    text = None if reference is None else reference.text
    targets = [] if reference is None else reference.segments
    return {
        "id": annotation.name,
        "set": utterance.test_set,
        "seconds": annotation.duration,
        "target": None if reference is None else _index(emotions, reference.emotion),
        "emotion": _index(emotions, annotation.emotion),
        "probabilities": annotation.probabilities,
        "wer": utterance.rates.get("WER"),
        "eder": utterance.rates.get("EDER"),
        "words": [
            (*word[:3], _index(emotions, word.emotion), word.probability)
            for word in annotation.words
        ],
        "reference": text,
        "pairs": _pairs(text.split(), [w.text for w in annotation.words]) if text else None,
        "segments": _indexed(emotions, annotation.segments),
        "targets": _indexed(emotions, targets) or None,
        "frames": np.round(255 * probabilities).astype(np.uint8).tobytes() or None,
        "frame": together * annotation.frame_duration,
        "notes": annotation.notes,
    }


def _overview(frame_probabilities):
    """Average frames in groups so that at most ``POINTS`` remain: the means and the group size."""
    probabilities = np.asarray(frame_probabilities)
    together = max(1, math.ceil(len(probabilities) / POINTS))
    starts = np.arange(0, len(probabilities), together)
    counts = np.diff(starts, append=len(probabilities))[:, None]
    means = np.add.reduceat(probabilities, starts) / counts if len(starts) else probabilities
    return means, together


def _table(rows):
    """Columns of a table and the texts of its cells."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    texts = [[cell_text(row.get(column)) for column in columns] for row in rows]
    return {"columns": columns, "rows": texts}


def _index(emotions, emotion):
    return None if emotion is None else emotions.index(emotion)


def _indexed(emotions, segments):
    return [(each.start, each.end, emotions.index(each.emotion)) for each in segments]


def _pairs(target, predicted):
    """Columns of a comparison: (target word or None, index of a predicted word or None)."""
    pairs = []
    for _, a, b, c, d in Levenshtein.opcodes(target, predicted):
        words, indices = target[a:b], range(c, d)
        pairs += [
            (words[i] if i < len(words) else None, indices[i] if i < len(indices) else None)
            for i in range(max(len(words), len(indices)))
        ]
    return pairs


def _sound(utterance, folder, left):
    """A recording's outline (``peaks``), and either its sound or a link to its file.

    A part of a file is never linked, because the link would play the whole file. A whole file is
    read block by block, so that an hour needs no more memory than a minute.
    """
    sound = {"peaks": None, "audio": None, "link": None}
    try:
        total, blocks = _open_sound(utterance)
        outline = np.zeros(min(POINTS, total), dtype=np.float32)
        edges = np.linspace(0, total, len(outline), endpoint=False).astype(int)
        stream, done = io.BytesIO(), 0
        mp3 = None
        if left > 0 and "MP3" in soundfile.available_formats():  # some builds lack it
            mp3 = soundfile.SoundFile(stream, "w", SAMPLE_RATE, 1, format="MP3")
        for block in blocks:
            samples = block.numpy()[: total - done]
            if not len(samples):
                break
            first = np.searchsorted(edges, done, "right") - 1
            last = np.searchsorted(edges, done + len(samples))
            starts = np.maximum(edges[first:last] - done, 0)
            loudest = np.maximum.reduceat(np.abs(samples), starts)
            outline[first:last] = np.maximum(outline[first:last], loudest)
            done += len(samples)
            if mp3 is not None and stream.tell() <= left:
                mp3.write(samples)
    except InputError:
        return sound
    if mp3 is not None:
        mp3.close()
        if len(stream.getvalue()) <= left:
            sound["audio"] = stream.getvalue()
    sound["peaks"] = np.round(255 * outline / max(outline.max(), 1e-8)).astype(np.uint8).tobytes()
    if sound["audio"] is None and utterance.start is None:
        relative = Path(os.path.relpath(Path(utterance.audio).resolve(), folder.resolve()))
        sound["link"] = quote(relative.as_posix())
    return sound


def _open_sound(utterance):
    """Number of a recording's samples at ``SAMPLE_RATE``, and its blocks of samples."""
    if utterance.start is not None:
        part = utterance.start, utterance.annotation.duration
        samples = read_audio(utterance.audio, SAMPLE_RATE, *part)
        return len(samples), iter([samples])
    audio = scan_audio(utterance.audio, utterance.channel)
    if audio.lost:
        raise InputError(f"{audio.label}: {'; '.join(audio.notes)}")
    return -(-audio.frames * SAMPLE_RATE // audio.samplerate), read_blocks(audio, SAMPLE_RATE)


class _Summary:
    """Seconds of each emotion and the strongest moments, collected recording by recording."""

    def __init__(self):
        self._seconds = defaultdict(Counter)
        self._moments = []

    def add(self, recording):
        annotation = recording.annotation
        for segment in annotation.segments if not annotation.speakers else ():
            self._seconds["all"][segment.emotion] += segment.end - segment.start
        for speaker in annotation.speakers:
            self._seconds[speaker.name].update(
                dict(zip(annotation.emotions, speaker.seconds, strict=True))
            )
        moments = self._moments + list(_moments(annotation))
        self._moments = heapq.nlargest(MOMENTS, moments, key=lambda moment: moment["strength"])

    def to_dict(self, emotions):
        """Data for the page's script, with emotions by index."""
        if emotions is None:
            return None
        seconds = [
            (name, [self._seconds[name][emotion] for emotion in emotions])
            for name in sorted(self._seconds)
        ]
        moments = [{**each, "emotion": emotions.index(each["emotion"])} for each in self._moments]
        return {"seconds": seconds, "moments": moments}


def _moments(annotation):
    """Yield the strongest moment of each segment with an emotion other than neutral."""
    frame = annotation.frame_duration
    width = max(1, round(MOMENT_SECONDS / frame))
    of_channels = {each.name: each.frame_probabilities for each in annotation.speakers}
    for segment in annotation.segments:
        start, end, emotion = segment[:3]
        rows = of_channels.get(getattr(segment, "speaker", None)) or annotation.frame_probabilities
        if emotion == annotation.neutral:
            continue
        first = round(start / frame)
        last = max(first + 1, round(end / frame))
        values = np.array(rows[first:last])[:, annotation.emotions.index(emotion)]
        if not len(values):
            continue
        # Sums of the frames up to each; a segment shorter than a moment counts as less strong.
        sums = np.convolve(values, np.ones(width))[: len(values)]
        best = int(sums.argmax())
        since = max(start, (first + best + 1 - width) * frame)
        until = min(end, (first + best + 1) * frame)
        yield {
            "id": annotation.name,
            "start": round(since, 4),
            "emotion": emotion,
            "strength": float(sums[best] / width),
            "probability": float(values[max(0, best + 1 - width) : best + 1].mean()),
            "text": " ".join(w.text for w in annotation.words if w.start < until and w.end > since),
        }


def _audio_note(kinds, embedded_bytes, noun):
    """Describe the source of the page's sound: embedded, linked or missing."""
    notes = {
        "embedded": "in this file",
        "linked": f"linked, as the page holds {embedded_bytes / 2**20:.0f} MB of sound at most: it "
        "plays as long as the page and the sound files stay where they are",
        "missing": "missing, as it could not be read when the page was made",
    }
    return " ".join(
        f"The sound of {len(kinds[kind])} {noun}{'s' * (len(kinds[kind]) > 1)} is {note}."
        for kind, note in notes.items()
        if kinds[kind]
    )
