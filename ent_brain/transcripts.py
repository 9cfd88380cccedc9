"""Transcripts of recordings: their files, and their words as tokens."""

import csv
from typing import NamedTuple

from pympi.Praat import TextGrid

from ent_brain.errors import InputError
from ent_brain.files import read_text
from ent_brain.spoken import spoken_form

FILE_COLUMN = "wav, file, path, filename, file_name, audio"
TEXT_COLUMN = "transcript, wrd, words, text, sentence, transcription"
"""Names of two columns of a table. Case does not matter, and a space or hyphen equals an
underscore."""

ENDINGS = (".lab", ".txt", ".TextGrid")
"""Of a transcript beside its recording. If there are several, the first counts."""

WORDS_TIER = "words"
"""Name of a TextGrid's tier whose intervals are single words. The Montreal aligner names the tier
of one of several speakers ``speaker - words``."""

INTERVALS = "IntervalTier"


class Passage(NamedTuple):
    """Words that are known to be in a stretch of a recording."""

    text: str
    start: float = 0.0
    """Seconds."""
    end: float | None = None
    """Seconds; None for the end of the recording."""
    speaker: str | None = None
    is_word: bool = False
    """Whether the text is one word from ``start`` to ``end``."""


class Spelling(NamedTuple):
    """A text in the tokens of a model."""

    tokens: list
    words: list
    """(text as written, first token, end) of each word. A word that the tokens cannot spell at all
    has none, so its end is its first."""
    unspelled: list
    """Words (str) with characters that the tokens lack."""


def find_transcript(recording):
    """Find the transcript beside a recording: the same name with one of ``ENDINGS``.

    Arguments
    ---------
    recording : Path

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If there is none.
    """
    for ending in ENDINGS:
        if (path := recording.with_suffix(ending)).is_file():
            return path
    raise InputError(
        f"{recording}: no transcript beside it. Write {recording.with_suffix('.txt').name}, or "
        "name a --table."
    )


def read_transcript(path):
    """Read a transcript: a text, or a TextGrid with an interval for each utterance or word.

    If a TextGrid has several tiers, each is a speaker. If there are tiers of words, they alone
    count; their words keep the times that they have.

    Arguments
    ---------
    path : Path

    Returns
    -------
    tuple[Passage, ...]
        By their start.

    Raises
    ------
    InputError
        If the file cannot be read, or has no text.
    """
    if path.suffix == ".TextGrid":
        passages = _read_textgrid(path)
    else:
        passages = [Passage(read_text(path, "give a transcript in UTF-8"))]
    passages = tuple(passage for passage in passages if passage.text.strip())
    if not passages:
        raise InputError(f"{path}: has no words. Write what is said in the recording.")
    return passages


def _read_textgrid(path):
    content = path.read_bytes()
    codec = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        tiers = [
            tier for tier in TextGrid(path, codec=codec).get_tiers() if tier.tier_type == INTERVALS
        ]
        words = [tier for tier in tiers if tier.name.split(" - ")[-1] == WORDS_TIER]
        passages = [
            Passage(
                " ".join(text.split()),
                start,
                end,
                tier.name.removesuffix(WORDS_TIER).removesuffix(" - ") or None,
                bool(words),
            )
            for tier in words or tiers
            for start, end, text in tier.get_intervals()
        ]
        if any(not 0 <= each.start < each.end for each in passages):
            raise ValueError("an interval does not end after its start")
    except Exception as error:  # pympi has no kind of its own for a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: not a TextGrid ({reason}). Save it again with Praat.") from error
    if len(words or tiers) == 1:
        passages = [passage._replace(speaker=None) for passage in passages]
    return sorted(passages, key=lambda passage: passage.start)


def check_passages(passages, seconds, label):
    """Refuse passages that are not within a recording.

    Arguments
    ---------
    passages : sequence of Passage
    seconds : float
        Duration of the recording.
    label : str
        Its name for the message.

    Raises
    ------
    InputError
        If a passage starts after the end. One may end after it.
    """
    for passage in passages:
        end = seconds if passage.end is None else min(passage.end, seconds)
        if not 0 <= passage.start < end:
            raise InputError(
                f"{label}: its transcript has words at {passage.start} s, but the recording ends "
                f"at {seconds:.3f} s. Give the transcript of this recording."
            )


def read_table(path):
    """Read the transcripts of a table in CSV or TSV with a header.

    Arguments
    ---------
    path : Path

    Returns
    -------
    dict[Path, tuple[Passage]]
        By the absolute path of the recording. Relative ones are in the table's folder.

    Raises
    ------
    InputError
        If the table cannot be read, lacks one of the two columns, or has a recording twice.
    """
    lines = read_text(path, "name a table in UTF-8").splitlines(keepends=True)
    header = lines[0] if lines else ""
    delimiter = max(",;\t", key=header.count)
    rows = csv.DictReader(lines, delimiter=delimiter)
    names = {column_key(name): name for name in rows.fieldnames or ()}
    columns = []
    for known in (FILE_COLUMN, TEXT_COLUMN):
        column = next((names[name] for name in known.split(", ") if name in names), None)
        if column is None:
            raise InputError(f"{path}: no column {known.replace(', ', ' or ')}. Add it.")
        columns.append(column)
    found = {}
    for row in rows:
        name, text = (row[column] or "" for column in columns)
        recording = (path.parent / name).resolve()
        if recording in found:
            raise InputError(f"{path}: {name}: in two rows. Give its whole transcript in one.")
        if text.strip():
            found[recording] = (Passage(text),)
    return found


def column_key(name):
    """Normalise the name of a table's column.

    Example
    -------
    >>> column_key("File-Name")
    'file_name'
    """
    return "_".join(name.replace("-", " ").casefold().split())


def spell(text, tokens, language="en"):
    """Write a text in the tokens of a model, word by word, by its spoken form.

    Characters that the tokens lack are left out. What has no spoken form, such as a dash, is joined
    to the word before it.

    Arguments
    ---------
    text : str
        With any case and punctuation.
    tokens : CharTokens, CharacterTokens or SentencePieceTokens
    language : str
        Its code, for numbers and abbreviations (``spoken.spoken_form``).

    Returns
    -------
    Spelling

    Example
    -------
    >>> from ent_brain.tokens import CharTokens
    >>> spell("Tea – at 5!", CharTokens()).words
    [('Tea –', 0, 3), ('at', 4, 6), ('5!', 7, 11)]
    """
    ids, words, unspelled, before = [], [], [], ""
    for word in text.split():
        spoken = tokens.normalize(spoken_form(word, language))
        if not any(map(str.isalnum, spoken)):
            if words:
                words[-1] = (f"{words[-1][0]} {word}", *words[-1][1:])
            else:
                before += f"{word} "
            continue
        if lacking := tokens.unknown(spoken):
            unspelled.append(word)
            spoken = " ".join(spoken.translate(dict.fromkeys(map(ord, lacking))).split())
        first = end = len(ids)
        if spoken:
            if ids:
                ids += tokens.encode(" ")  # pieces have their boundary in them
            own = tokens.encode(spoken)
            parts = tokens.words(own)
            first, end = len(ids) + parts[0][1], len(ids) + parts[-1][2]
            ids += own
        words.append((before + word, first, end))
        before = ""
    return Spelling(ids, words, unspelled)
