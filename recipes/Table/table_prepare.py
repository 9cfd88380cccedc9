"""Prepare any corpus that a table describes: one row per utterance, one manifest per split.

A table is CSV or TSV (``.csv``, ``.tsv``), JSON lines (``.jsonl``), or a JSON object of utterances
by ID (``.json``: SpeechBrain's format, and the manifests of this package). The header line of CSV
and TSV determines the delimiter. A table is UTF-8. ``COLUMNS`` lists the names of its columns.
Required are the sound file and a transcript or an emotion. An empty cell means "not known".

Times are in seconds, with a decimal point or comma. Two forms of SpeechBrain and of our manifests
use samples. A ``wav`` of the form ``{"file": path, "start": first, "stop": end}`` has the file's
rate. ``intervals`` with transcripts have 16 kHz.
"""

import csv
import json
import os
import random
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import soundfile
from speechbrain.utils.logger import get_logger

from ent_brain.audio import DURATION_TOLERANCE, UNREADABLE
from ent_brain.emotions import EmotionSet
from ent_brain.errors import InputError, raise_problems
from ent_brain.manifest import (
    DATA_ROOT,
    SAMPLE_RATE,
    Interval,
    Utterance,
    check_utterances,
    is_seconds,
    read_entries,
    save_manifests,
)
from ent_brain.segments import Segment
from ent_brain.tokens import normalize_transcript
from ent_brain.transcripts import FILE_COLUMN, TEXT_COLUMN, column_key

logger = get_logger(__name__)

COLUMNS = {
    "ID": "id, utt_id, utt, utterance, utterance_id, name",
    "wav": FILE_COLUMN,
    "start": "start",
    "stop": "stop, end",
    "duration": "duration, length",
    "transcript": TEXT_COLUMN,
    "emotion": "emotion, emo, label",
    "speaker": "speaker, spk_id, spk, client_id, speaker_id",
    "split": "split, set, subset, partition",
    "intervals": "intervals, segments",
}
"""Names of each column. Case does not matter, and a space or hyphen equals an underscore."""

SPLITS = {
    "train": "train, training",
    "valid": "valid, validation, val, dev, development",
    "test": "test, testing, eval, evaluation",
}
"""Names of each split in a table, in any case."""

UNKNOWN_SPEAKER = "unknown"
"""Speaker in the manifests if the table names none."""

MICROSECONDS = 10**6
"""Sample rate in Hz for durations from the table; exact enough for files of any rate."""

MOST_DRAWS = 200
"""Upper limit of the random orders tried to find a balanced split."""

ASSIGNMENTS = 200_000
"""Upper limit of the speakers or recordings in all tried orders together. It limits the time."""


@dataclass(frozen=True, slots=True)
class Row:
    """One utterance of the table. Unknown fields are None."""

    where: str  # line or ID, for errors
    id: str | None
    wav: Path  # absolute
    start: float | None  # seconds; None: the utterance is the whole file
    duration: float | None  # seconds; None: to the end of the file
    transcript: str | None  # as written
    emotion: str | None  # as written
    speaker: str | None
    split: str | None  # train, valid or test
    intervals: tuple[Interval, ...] | None  # emotion as written; transcript or None

    @property
    def labels(self):
        """All emotion labels of the row, as written (list[str])."""
        labels = [] if self.emotion is None else [self.emotion]
        return labels + [interval.emotion for interval in self.intervals or ()]


@dataclass(frozen=True)
class Prepared:
    """Result of ``prepare_table``."""

    manifests: dict  # split to Path
    data_root: Path  # folder for which {data_root} in the manifests stands
    emotions: EmotionSet | None  # None if no row has an emotion
    summary: str  # several lines of text


def prepare_table(
    table,
    save_folder,
    emotions=None,
    neutral=None,
    label_map=None,
    normalize=normalize_transcript,
    seed=42,
    valid_share=0.1,
    test_share=0.1,
    data_folder=None,
):
    """Write the manifests of the corpus that a table describes, and log a summary of it.

    A table without the column ``split`` is split here: by speaker if it has at least 3 speakers,
    otherwise by recording. The split depends on the seed and the rows, not on their order.

    Arguments
    ---------
    table : str or Path
    save_folder : str or Path
        Folder of the manifests.
    emotions : sequence of str, optional
        Ordered labels. If None, all labels of the table, sorted by name. Labels that differ only in
        case, spaces or Unicode form are merged.
    neutral : str, optional
        Neutral label. If ``emotions`` is also None, the label ``neutral`` if it exists.
    label_map : dict[str, str], optional
        Emotion of each label in the table. Rows with other labels are skipped and counted.
    normalize : callable
        The recipe's normalisation of transcripts.
    seed : int
        Seed of a drawn split.
    valid_share, test_share : float
        Target shares of ``valid`` and ``test`` in a drawn split.
    data_folder : str or Path, optional
        Folder of relative paths; the table's folder if None.

    Returns
    -------
    Prepared

    Raises
    ------
    InputError
        If the table, its audio or an argument is wrong. Nothing is written then.

    Example
    -------
    >>> prepare_table("data.csv", "save").emotions.names  # doctest: +SKIP
    ('angry', 'happy', 'neutral', 'sad')
    """
    table = Path(table)
    folder = _absolute(table.parent if data_folder is None else data_folder)
    remedy = f"correct {table}, nothing was written"
    rows, ignored = read_table(table, folder)
    emotions, names, notes = _choose_labels(table, rows, emotions, neutral, label_map, remedy)
    rows = [row for row in rows if all(names[label] is not None for label in row.labels)]
    if not rows:
        raise InputError(f"{table}: label_map names no label of it: add some, as angry: angry")
    data_root = _data_root({row.wav for row in rows}, folder)
    rows = _name_rows(rows, data_root, remedy)
    if any(row.split for row in rows):
        splits, split_notes = _check_splits(rows, remedy)
    else:
        splits, split_notes = _draw_splits(
            table, rows, names, data_root, seed, valid_share, test_share
        )
    if ignored:
        notes.append(f"Ignored columns: {', '.join(ignored)}.")
    # Sorted by file, because the check caches files, so that each file is checked once.
    drafts = [_draft(row, names, normalize) for row in sorted(rows, key=lambda row: row.wav)]
    checked = check_utterances(
        drafts, f"{table} (data_folder {folder})", emotions=emotions, normalize=normalize
    )
    members = {split: [] for split in SPLITS}
    for utterance in checked:
        members[splits[utterance.id]].append(utterance)
    summary = _summarize(table, members, emotions, [*split_notes, *notes])
    logger.info(summary)
    return Prepared(save_manifests(save_folder, members, data_root), data_root, emotions, summary)


def read_table(path, folder=None):
    """Read a table.

    Arguments
    ---------
    path : str or Path
        Path of the table; its extension determines the format.
    folder : str or Path, optional
        Folder of relative paths and of ``{data_root}``; the table's folder if None.

    Returns
    -------
    tuple[list[Row], list[str]]
        The rows in their order, and the names of the ignored columns.

    Raises
    ------
    InputError
        If the table cannot be read, is empty, lacks a column, or has two columns with the same
        meaning. Also if fields are wrong; the message names their rows.
    """
    path = Path(path)
    folder = _absolute(path.parent if folder is None else folder)
    if path.suffix.lower() not in READERS:
        raise InputError(
            f"{path}: not a table that can be read: give CSV (.csv), TSV (.tsv), JSON lines "
            "(.jsonl) or JSON (.json)"
        )
    locate = lru_cache(maxsize=None)(lambda text: _absolute(folder / text))  # rows share files
    rows, problems, seen = [], [], {}
    for where, fields in READERS[path.suffix.lower()](path):
        values, used = {}, {}
        for name, value in fields:
            if name not in seen:
                seen[name] = _column(name)
            column = seen[name]
            if column is None:
                continue
            if column in values:
                raise InputError(
                    f"{path}: {where}: columns {used[column]} and {name} both mean {column}: "
                    "rename one of them"
                )
            values[column], used[column] = value, name
        try:
            rows.append(_read_row(where, values, locate))
        except InputError as error:
            problems.append(f"{where}: {error}")
    if not rows and not problems:
        raise InputError(f"{path}: no rows: give a header and one row for each utterance")
    _check_columns(path, seen)
    raise_problems(problems, f"correct {path}, nothing was written")
    return rows, [name for name, column in seen.items() if column is None and name.strip()]


def _absolute(path):
    """Return the absolute path without ``..``. Links stay, so manifests and table use one name."""
    return Path(os.path.normpath(Path(path).absolute()))


def _check_columns(path, seen):
    """Refuse a table without the required columns; ``seen`` maps its columns to ours."""
    needs = {"the sound file": ("wav",), "a transcript or an emotion": ("transcript", "emotion")}
    problems = [
        f"no column for {what} (name it {' or '.join(columns)})"
        for what, columns in needs.items()
        if not set(columns) & set(seen.values())
    ]
    raise_problems(problems, f"add it to {path}, whose columns are {', '.join(seen)}")


def _synonyms(columns):
    return {name: column for column, names in columns.items() for name in names.split(", ")}


_COLUMN_OF, _SPLIT_OF = _synonyms(COLUMNS), _synonyms(SPLITS)


def _column(name):
    """Return our name (str) of a table's column; None for unknown columns."""
    return _COLUMN_OF.get(column_key(name))


def _lines(path):
    """Yield the lines of a UTF-8 file with their ends, without a byte order mark."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            for number, line in enumerate(file, 1):
                try:
                    line.encode()
                except UnicodeEncodeError:
                    raise InputError(
                        f"{path}: line {number} is not UTF-8: save the table as UTF-8"
                    ) from None
                yield line
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}: name a table that can be read") from error


def _read_separated(path):
    """Rows of CSV or TSV: (line, (column, field) pairs)."""
    header = next(_lines(path), "")

    def known(delimiter):
        return sum(
            _column(name) is not None
            for name in next(csv.reader([header], delimiter=delimiter), ())
        )

    delimiter = max(",;\t", key=known)
    if delimiter == "\t":
        # In many TSV files (Common Voice), quotation marks do not enclose fields.
        try:
            for _ in _separated(path, delimiter, csv.QUOTE_MINIMAL):
                pass
        except InputError:
            return _separated(path, delimiter, csv.QUOTE_NONE)
    return _separated(path, delimiter, csv.QUOTE_MINIMAL)


def _separated(path, delimiter, quoting):
    reader = csv.reader(_lines(path), delimiter=delimiter, quoting=quoting, strict=True)
    header = None
    while True:
        where = f"line {reader.line_num + 1}"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise InputError(
                f"{path}: {where}: {error}: put the field in quotation marks, "
                "and double those in it"
            ) from error
        if fields is None:
            return
        if not any(fields):  # spreadsheets write such rows at the end
            continue
        if header is None:
            header = fields
        elif len(fields) != len(header):
            raise InputError(
                f"{path}: {where}: {len(fields)} fields for {len(header)} columns: "
                "put fields that contain the delimiter in quotation marks"
            )
        else:
            yield where, zip(header, fields, strict=True)


def _read_json_lines(path):
    """Rows of JSON lines: (line, (key, value) pairs)."""
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            row = json.loads(line)
            if "\\u" in line:  # a lone surrogate cannot be written to a file
                json.dumps(row, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: {where}: not JSON ({error}): correct it") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}: {where}: not a JSON object: write one object in each line")
        yield where, row.items()


def _read_json(path):
    """Rows of a JSON object of utterances by ID: (ID, (key, value) pairs)."""
    remedy = "correct it, or name it .jsonl if it has one object in each line"
    for name, entry in read_entries(path, remedy).items():
        others = [(key, value) for key, value in entry.items() if _column(key) != "ID"]
        yield name, [("ID", name), *others]


READERS = {
    ".csv": _read_separated,
    ".tsv": _read_separated,
    ".jsonl": _read_json_lines,
    ".json": _read_json,
}
"""Reader for each file extension."""


def _read_row(where, values, locate):
    """Check the fields of a row and return it."""
    wav, in_samples = values.get("wav"), {}
    if isinstance(wav, dict):
        wav, in_samples = wav.get("file"), wav
    wav = _text("wav", wav)
    if wav is None:
        raise InputError("no sound file")
    for start in (f"{DATA_ROOT}/", "$data_root/"):  # SpeechBrain's JSON and its CSV
        wav = wav.removeprefix(start)
    wav = locate(wav)
    start, stop, duration = (
        _seconds(name, values.get(name)) for name in ("start", "stop", "duration")
    )
    if in_samples.get("start") is not None or in_samples.get("stop") is not None:
        if start is not None or stop is not None:
            raise InputError("start and stop are in wav and beside it: keep one of them")
        start, stop = (_of_samples(name, in_samples.get(name), wav) for name in ("start", "stop"))
    start, duration = _part(start, stop, duration)
    transcript, emotion = (
        _as_written(name, values.get(name)) for name in ("transcript", "emotion")
    )
    if transcript is None and emotion is None:
        raise InputError("neither transcript nor emotion: fill in one, or remove the row")
    speaker = _text("speaker", values.get("speaker"))
    if speaker is not None:
        speaker = unicodedata.normalize("NFC", speaker)
    split = _text("split", values.get("split"))
    if split is not None and split.casefold() not in _SPLIT_OF:
        raise InputError(f"split {split!r}: use {', '.join(SPLITS)}")
    return Row(
        where,
        _text("ID", values.get("ID")),
        wav,
        start,
        duration,
        transcript,
        emotion,
        None if speaker == UNKNOWN_SPEAKER else speaker,
        _SPLIT_OF[split.casefold()] if split else None,
        _read_intervals(values.get("intervals")),
    )


def _as_written(column, value):
    """Return a field's text; None if it is empty."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"{column} {value!r} is not text")
    text = str(value)
    return None if text.isspace() else text or None


def _text(column, value):
    """Return a field's text without spaces around it; None if it is empty."""
    text = _as_written(column, value)
    return None if text is None else text.strip()


def _seconds(column, value):
    """Return a field's seconds (float); None if it is empty."""
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value = float(value.replace(",", "."))  # many spreadsheets write 1,5
        except ValueError:
            raise InputError(f"{column} {value!r} is not a number of seconds") from None
    if value is not None and not is_seconds(value):
        raise InputError(f"{column} {value!r} is not a number of seconds")
    return value


def _of_samples(key, value, wav):
    """Convert a sample's index in a file to seconds (float); None stays None."""
    if value is None:
        return None
    if type(value) is not int:
        raise InputError(f"{key} {value!r} in wav is not a number of samples")
    return value / _sample_rate(wav)


@lru_cache(maxsize=1024)
def _sample_rate(wav):
    try:
        return soundfile.info(wav).samplerate
    except (*UNREADABLE, OSError):  # the check of the audio names the file
        return SAMPLE_RATE


def _part(start, stop, duration):
    """Return start and duration in seconds; (None, duration or None) for a whole file."""
    if start is not None and start < 0:
        raise InputError(f"start {start:g} is below 0")
    if duration is not None and duration <= 0:
        raise InputError(f"duration {duration:g} is not above 0")
    if stop is None:
        return start, duration
    start = start or 0.0
    if not stop > start:
        raise InputError(f"stop {stop:g} is not after start {start:g}")
    if duration is not None and abs(stop - start - duration) > DURATION_TOLERANCE:
        raise InputError(
            f"from start {start:g} to stop {stop:g}, but duration {duration:g}: give seconds, and "
            "one of stop and duration"
        )
    return start, stop - start


def _read_intervals(value):
    """Return a field's intervals (tuple), sorted by time; None if it is empty."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        intervals = json.loads(value) if isinstance(value, str) else value
        read = [
            Interval(each["start"], each["end"], each["emotion"], each.get("transcript"))
            for each in intervals
        ]
        fits = all(
            is_seconds(start)
            and is_seconds(end)
            and isinstance(emotion, str)
            and (words is None or (isinstance(words, str) and type(start) is type(end) is int))
            for start, end, emotion, words in read
        )
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        fits = False
    if not fits or len({words is None for *_, words in read}) > 1:
        raise InputError(
            'intervals are not a list as [{"emotion": "sad", "start": 0.5, "end": 1.5}] in JSON'
        )
    return tuple(sorted(read, key=lambda interval: (interval.start, interval.end)))


def _label_key(label):
    """Return the form by which labels are compared: ``angry`` for ``Angry`` and ``angry ``."""
    return unicodedata.normalize("NFC", " ".join(label.split())).casefold()


def _choose_labels(table, rows, emotions, neutral, label_map, remedy):
    """Return the EmotionSet, the emotion of each label as written (None: skipped), and notes."""
    spellings = defaultdict(Counter)
    for row in rows:
        for label in row.labels:
            spellings[_label_key(label)][label] += 1
    notes = [
        f"Spellings merged into one label: {', '.join(sorted(map(repr, forms)))}."
        for forms in spellings.values()
        if len(forms) > 1
    ]
    if label_map is None:
        chosen = {key: _common_name(forms) for key, forms in spellings.items()}
    else:
        mapped = _check_label_map(label_map)
        chosen = {key: mapped.get(key) for key in spellings}
        left_out = Counter(
            next(key for key in map(_label_key, row.labels) if chosen[key] is None)
            for row in rows
            if any(chosen[_label_key(label)] is None for label in row.labels)
        )
        if left_out:
            counts = ", ".join(f"{count} {label}" for label, count in sorted(left_out.items()))
            notes.append(f"Left out, as label_map does not name their label: {counts}.")
    if emotions is None:
        found = sorted({name for name in chosen.values() if name is not None})
        if neutral is None:
            neutral = next((name for name in found if _label_key(name) == "neutral"), None)
        try:
            emotions = EmotionSet(found, neutral) if found else None
        except InputError as error:
            raise InputError(f"{table}: {error}") from None
    else:
        emotions = EmotionSet(emotions, neutral)
        names = {_label_key(name): name for name in emotions}
        unknown = {key for key, name in chosen.items() if name and _label_key(name) not in names}
        problems = [
            f"{row.where}: emotion {label!r} is not one of {', '.join(emotions)}"
            for row in rows
            for label in row.labels
            if _label_key(label) in unknown
        ]
        raise_problems(problems, f"{remedy}; or add it to emotions, or say in label_map what it is")
        chosen = {key: name and names[_label_key(name)] for key, name in chosen.items()}
    emotion_of = {label: chosen[key] for key, forms in spellings.items() for label in forms}
    return emotions, emotion_of, notes


def _common_name(forms):
    """Choose the name of a label that is written in several forms (Counter)."""
    lower = Counter()
    for form, count in forms.items():
        lower[unicodedata.normalize("NFC", " ".join(form.split())).lower()] += count
    return min(lower, key=lambda name: (-lower[name], name))


def _check_label_map(label_map):
    """Check a label map, and return it by the labels' keys."""
    if not isinstance(label_map, dict) or not all(
        isinstance(text, str) for pair in label_map.items() for text in pair
    ):
        raise InputError(f"label_map: {label_map}: give texts, as {{exc: happy, sad: sad}}")
    mapped = {_label_key(label): name for label, name in label_map.items()}
    if len(mapped) < len(label_map):
        raise InputError(f"label_map: {label_map}: one label is there twice: keep one of them")
    return mapped


def _data_root(wavs, folder):
    """Folder (Path) of all files: the given one if it contains them, else their common parent."""
    if all(wav.is_relative_to(folder) for wav in wavs):
        return folder
    return Path(os.path.commonpath([wav.parent for wav in wavs]))


def _name_rows(rows, data_root, remedy):
    """Give an ID to each row without one; refuse repeated IDs.

    The ID is the file's name. If two files have one name, it includes the path inside
    ``data_root``. If the utterance is a part of a file, it includes the start.
    """
    files = {row.wav for row in rows if row.id is None}
    stems = Counter(wav.stem for wav in files)
    base = {
        wav: wav.stem
        if stems[wav.stem] == 1
        else "_".join(wav.relative_to(data_root).with_suffix("").parts)
        for wav in files
    }
    named, first, problems = [], {}, []
    for row in rows:
        if row.id is None:
            part = "" if row.start is None else f"_{row.start:.3f}"
            row = replace(row, id=base[row.wav] + part)
        if row.id in first:
            problems.append(f"{row.where}: {first[row.id]} has the ID {row.id}, too")
        first.setdefault(row.id, row.where)
        named.append(row)
    raise_problems(problems, f"give each row its own ID; {remedy}")
    return named


def _check_splits(rows, remedy):
    """Return the table's split of each ID, and notes for the summary."""
    problems = [
        f"{row.where}: no split: use {', '.join(SPLITS)}" for row in rows if row.split is None
    ]
    counts = Counter(row.split for row in rows)
    problems += [f"{split}: no row of this split" for split in SPLITS if not counts[split]]
    raise_problems(problems, f"{remedy}; or remove the column split, and the splits are drawn")
    first = defaultdict(dict)
    for row in rows:
        if row.speaker is not None:
            first[row.speaker].setdefault(row.split, row.where)
    problems = [
        f"speaker {speaker} is in train ({where['train']}) and in test ({where['test']})"
        for speaker, where in first.items()
        if "train" in where and "test" in where
    ]
    raise_problems(problems, f"give each speaker one split; {remedy}")
    notes = ["Splits: from the table."]
    for other in ("train", "test"):
        shared = sum("valid" in where and other in where for where in first.values())
        if shared:
            notes.append(f"Speakers in both {other} and valid: {shared}.")
    return {row.id: row.split for row in rows}, notes


def _draw_splits(table, rows, names, data_root, seed, valid_share, test_share):
    """Draw the split of each ID; return them and notes for the summary."""
    shares = {"train": 1 - valid_share - test_share, "valid": valid_share, "test": test_share}
    if not all(share > 0 for share in shares.values()):
        raise InputError(
            f"valid_share {valid_share} and test_share {test_share}: choose shares above 0 that "
            "are below 1 together"
        )
    speakers = {row.speaker for row in rows} - {None}
    by_speaker = len(speakers) >= len(SPLITS)
    group_of, groups = {}, defaultdict(Counter)
    for row in rows:
        group = ("recording", row.wav.relative_to(data_root).as_posix())
        if by_speaker and row.speaker is not None:
            group = ("speaker", row.speaker)
        group_of[row.id] = group
        counts = groups[group]
        counts["", "utterances"] += 1
        counts["", "transcripts"] += row.transcript is not None
        if row.emotion is not None:
            counts["emotion", names[row.emotion]] += 1
    if len(groups) < len(SPLITS):
        raise InputError(
            f"{table}: fewer than 3 speakers and fewer than 3 recordings, so that no split can be "
            "drawn: add a column split with train, valid and test"
        )
    drawn = draw_groups(groups, shares, seed)
    aim = ", ".join(f"{split} {share:.0%}" for split, share in shares.items())
    notes = [
        f"Splits: drawn by {'speaker' if by_speaker else 'recording'} with seed {seed}, aiming at "
        f"{aim} of the utterances."
    ]
    unknown = sum(row.speaker is None for row in rows)
    if by_speaker and unknown:
        notes.append(f"Rows without speaker, drawn by recording: {unknown}.")
    elif not by_speaker:
        notes.append(f"Speakers named: {len(speakers)}. A voice can be in several splits.")
    return {name: drawn[group] for name, group in group_of.items()}, notes


def draw_groups(groups, shares, seed):
    """Assign each group of utterances to a split, so that the splits have about their shares.

    Groups are assigned in random order. Each goes to the split where it lowers the chi-square
    distance between the counts and their targets most. The best of several orders is used.

    Arguments
    ---------
    groups : dict[tuple, Counter]
        Counts of each group: utterances, and those of each label. There must be at least as many
        groups as splits; every split gets one.
    shares : dict[str, float]
        Share of each split, above 0.
    seed : int

    Returns
    -------
    dict[tuple, str]
        Split of each group.

    Example
    -------
    >>> groups = {("speaker", name): Counter(utterances=10) for name in "abcdefghij"}
    >>> drawn = draw_groups(groups, {"train": 0.8, "valid": 0.1, "test": 0.1}, seed=42)
    >>> sorted(Counter(drawn.values()).items())
    [('test', 1), ('train', 8), ('valid', 1)]
    """
    total = sum(groups.values(), Counter())
    targets = {split: {key: share * total[key] for key in total} for split, share in shares.items()}
    # Sorted, so that the order of rows cannot change sums of floats and thereby the split.
    counts = {group: sorted((+groups[group]).items()) for group in sorted(groups)}
    best, least = None, float("inf")
    for attempt in range(min(MOST_DRAWS, max(1, ASSIGNMENTS // len(groups)))):
        order = list(counts)
        random.Random(f"{seed} {attempt}").shuffle(order)
        have = {split: Counter() for split in shares}
        drawn, distance = {}, 0.0
        for index, group in enumerate(order):
            empty = [split for split in shares if not have[split]]
            choices = empty if len(order) - index == len(empty) else shares
            change, split = min(
                (
                    sum(
                        n * (n + 2 * (have[split][key] - targets[split][key])) / targets[split][key]
                        for key, n in counts[group]
                    ),
                    split,
                )
                for split in choices
            )
            distance += change
            have[split].update(dict(counts[group]))
            drawn[group] = split
        if distance < least:
            best, least = drawn, distance
    return best


def _draft(row, names, normalize):
    """Convert a row to an utterance, without checking its audio."""
    segments = intervals = None
    if row.intervals and row.intervals[0].transcript is not None:
        intervals = tuple(
            Interval(start, end, names[emotion], normalize(words))
            for start, end, emotion, words in row.intervals
        )
    elif row.intervals is not None:
        segments = tuple(
            Segment(start, end, names[emotion]) for start, end, emotion, _ in row.intervals
        )
    return Utterance(
        row.id,
        row.wav,
        row.transcript,
        None if row.emotion is None else names[row.emotion],
        row.speaker or UNKNOWN_SPEAKER,
        segments=segments,
        samples=None if row.duration is None else round(row.duration * MICROSECONDS),
        sample_rate=MICROSECONDS,
        intervals=intervals,
        start=row.start,
    )


def _summarize(table, members, emotions, notes):
    """Make the summary (str): a table of counts with a column for each split, and the notes."""
    lines = [("", *members, "all")]
    columns = [*members.values(), [utterance for each in members.values() for utterance in each]]

    def line(title, count):
        lines.append((title, *(str(count(utterances)) for utterances in columns)))

    line("utterances", len)
    line("hours", lambda utterances: f"{sum(u.duration for u in utterances) / 3600:.2f}")
    line("speakers", lambda utterances: len({u.speaker for u in utterances} - {UNKNOWN_SPEAKER}))
    line(
        "without speaker", lambda utterances: sum(u.speaker == UNKNOWN_SPEAKER for u in utterances)
    )
    line("without transcript", lambda utterances: sum(u.transcript is None for u in utterances))
    line("without emotion", lambda utterances: sum(u.emotion is None for u in utterances))
    for name in emotions or ():
        line(name, lambda utterances, name=name: sum(u.emotion == name for u in utterances))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join([title.ljust(widths[0]), *map(str.rjust, numbers, widths[1:])])
        for title, *numbers in lines
    ]
    return "\n".join([f"{table}:", *text, *notes])
