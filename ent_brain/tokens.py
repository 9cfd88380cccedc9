"""Tokens: normalisation of transcripts, and their conversion to character or SentencePiece ids."""

import re
import unicodedata
from collections import Counter
from functools import cache
from itertools import dropwhile
from pathlib import Path

import sentencepiece
from speechbrain.utils.checkpoints import mark_as_transfer, register_checkpoint_hooks

from ent_brain.errors import InputError
from ent_brain.files import whole_or_nothing

BLANK, UNKNOWN = 0, 1
"""Ids of ``<blank>`` and ``<unk>`` in every token set; ``<sos/eos>`` is always the last id."""

SPACE = "SPACE"
WORD_START = "\u2581"
"""Prefix of a word's first piece in SentencePiece."""
CHARACTERS = ("<blank>", "<unk>", SPACE, *"ETAONIHSRDLUMWCFGYPBVK'XJQZ", "<sos/eos>")

SHOWN_CHARACTERS = 10
"""Number of unknown characters that a report lists; it counts the others."""

CHARACTERS_HEADING = (
    "# Characters of the tokens, in the order of their ids: one a line, name, count"
)
"""First line of the file that ``learn_characters`` writes."""

_PUNCTUATION = re.compile(r"[\[\].,?!\-:;\"\s]+")


def normalize_transcript(text):
    """Convert a transcript to upper case, with single spaces for punctuation and white space.

    Apostrophes stay; the characters ``[ ] . , ? ! - : ; "`` are removed.

    Arguments
    ---------
    text : str

    Returns
    -------
    str
        Empty if the text has only punctuation.

    Example
    -------
    >>> normalize_transcript("Well--I don't know...  [LAUGHTER]")
    "WELL I DON'T KNOW LAUGHTER"
    """
    return _PUNCTUATION.sub(" ", text.upper()).strip()


_APOSTROPHES = dict.fromkeys(
    map(ord, "`\u00b4\u0384\u02bb\u02bc\u02bd\u055a\u05f3\u1fbd\u1fbf‘’‛"), "'"
)
"""Letters and signs that people type for an apostrophe, including Armenian, Hebrew and Greek ones.
The prime is not included, because it stands for feet and minutes."""

_JOINERS = "\u200c\u200d"
_JOINER_RUN = re.compile(f"[{_JOINERS}]+")
_VIRAMA = 9
"""Combining class of the sign that removes a consonant's vowel in the scripts of India."""

_INVISIBLE = {
    *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x3164, 0xFFA0),
    *range(0xFE00, 0xFE10),
    *range(0xE0100, 0xE01F0),
}
"""Marks and letters that Unicode lists as ignorable: variation selectors and fillers."""


def normalize_unicode(text):
    """Write a transcript of any language in upper case, without punctuation and symbols.

    Compatibility forms become usual ones (NFKC). Letters become upper case by Unicode's rules: ß
    and ẞ become SS, ς becomes Σ, and the Turkish i and ı both become I. All apostrophes become
    ``'``, which stays next to a letter, mark or digit. Each run of other punctuation, symbols and
    white space becomes one space. Combining marks and digits stay. Format characters are removed,
    except joiners that change the word: after a virama, and in Persian between letters.

    Arguments
    ---------
    text : str

    Returns
    -------
    str
        The same for canonically equivalent texts; normalising it again changes nothing. Empty
        if the text has only punctuation.

    Example
    -------
    >>> normalize_unicode("„Don’t“, sagte er – naïve Straße!")
    "DON'T SAGTE ER NAÏVE STRASSE"
    """
    text = "".join(map(_without_format, text))
    # NFKC would turn some apostrophes into a space and a mark, so they are replaced after NFD.
    text = unicodedata.normalize("NFD", text).translate(_APOSTROPHES)
    text = unicodedata.normalize("NFKD", text).upper().replace("ẞ", "SS")
    text = _JOINER_RUN.sub(_needed_joiner, text)
    text = "".join(map(_without_punctuation, unicodedata.normalize("NFKC", text)))
    text = re.sub("''+", " ", text)  # quotation marks
    # A mark without a letter is the rest of a symbol.
    words = ("".join(dropwhile(_is_mark, word)) for word in text.split())
    return " ".join(word for word in words if word.strip("'"))


@cache
def _without_format(character):
    format_character = unicodedata.category(character) == "Cf" and character not in _JOINERS
    return "" if format_character or ord(character) in _INVISIBLE else character


@cache
def _without_punctuation(character):
    character = character.translate(_APOSTROPHES)  # NFKD can create new ones
    kind = unicodedata.category(character)
    return " " if character != "'" and (kind[0] in "PSZ" or kind in ("Cc", "Cs")) else character


@cache
def _is_mark(character):
    return character in _JOINERS or unicodedata.category(character)[0] == "M"


def _needed_joiner(run):
    """Return the first joiner of a run if the word needs it there, else an empty text."""
    joiner, start, end = run[0][0], run.start(), run.end()
    before, after = run.string[max(start - 1, 0) : start], run.string[end : end + 1]
    after_virama = before and unicodedata.combining(before) == _VIRAMA
    if joiner == "\u200d":
        return joiner if after_virama else ""
    # Bidirectional classes: AL is an Arabic letter, NSM a mark, which may belong to one.
    arabic = before and unicodedata.bidirectional(before) in ("AL", "NSM")
    arabic = arabic and after and unicodedata.bidirectional(after) == "AL"
    return joiner if after.isalpha() and (after_virama or arabic) else ""


NORMALIZATIONS = {"published": normalize_transcript, "unicode": normalize_unicode}
"""Normalisations by their names in recipes and exports."""


class _Tokens:
    """Base class of token sets.

    Arguments
    ---------
    normalization : str
        Normalisation of the training transcripts, a key of ``NORMALIZATIONS``.
    """

    def __init__(self, normalization):
        if normalization not in NORMALIZATIONS:
            choices = " or ".join(NORMALIZATIONS)
            raise InputError(f"normalization: {normalization!r}: choose {choices}")
        self.normalization = normalization

    def normalize(self, text):
        """Normalise a text (str) for ``encode``."""
        return NORMALIZATIONS[self.normalization](text)

    def words(self, ids):
        """Words of token ids and where they stand: (text, first, end) with the end excluded.

        A space, alone or before letters, starts another word. A word starts at its first letter.
        """
        words = []
        for place, text in enumerate(map(self.text, ids)):
            if not words or text.startswith(" "):
                words.append(["", place, place])
            word = words[-1]
            if not word[0]:
                word[1] = place
            word[0] += text.removeprefix(" ")
            word[2] = place + 1
        return [tuple(word) for word in words if word[0]]

    def decode(self, ids):
        """Transcript (str) of token ids. ``<unk>`` is written out, because it is an error."""
        return " ".join(word for word, _, _ in self.words(ids))


class _Characters(_Tokens):
    """One token per character: ``<blank>``, ``<unk>``, space, the characters, ``<sos/eos>``."""

    def __init__(self, characters, normalization):
        super().__init__(normalization)
        self._set(characters)

    def _set(self, characters):
        self._names = (*CHARACTERS[:3], *characters, CHARACTERS[-1])
        self._ids = {name: index for index, name in enumerate(self._names)}

    def __len__(self):
        return len(self._names)

    def encode(self, transcript):
        """Token ids (list[int]) of a normalised transcript."""
        return [
            self._ids.get(SPACE if character == " " else character, UNKNOWN)
            for character in transcript
        ]

    def text(self, index):
        """Text (str) of a token id; a space starts a word."""
        return " " if self._names[index] == SPACE else self._names[index]

    def unknown(self, transcript):
        """Characters (str) of a normalised transcript that become ``<unk>``."""
        ids = self.encode(transcript)
        return "".join(c for c, i in zip(transcript, ids, strict=True) if i == UNKNOWN)


class CharTokens(_Characters):
    """The 31 characters of the paper.

    Arguments
    ---------
    normalization : str
        A key of ``NORMALIZATIONS``.

    Example
    -------
    >>> tokens = CharTokens()
    >>> len(tokens), tokens.encode("TEA TEA")
    (31, [4, 3, 5, 2, 4, 3, 5])
    >>> tokens.decode([4, 3, 5])
    'TEA'
    """

    def __init__(self, normalization="published"):
        super().__init__(CHARACTERS[3:-1], normalization)


@register_checkpoint_hooks
class CharacterTokens(_Characters):
    """The characters of a text in any language, normalised by ``normalize_unicode``.

    A character is one code point; a combining mark counts as a character.

    Arguments
    ---------
    characters : iterable of str
        Characters in the order of their ids; omitted if ``load`` reads them later.

    Example
    -------
    >>> tokens = CharacterTokens("ÄB")
    >>> len(tokens), tokens.encode(tokens.normalize("„Bä!“"))
    (6, [4, 3])
    """

    def __init__(self, characters=()):
        super().__init__(characters, "unicode")

    @mark_as_transfer  # so that SpeechBrain's Pretrainer loads it
    def load(self, path):
        """Load the characters from a file of ``learn_characters``.

        Arguments
        ---------
        path : str or Path

        Raises
        ------
        InputError
            If the file is not such a list. The message names the line.
        """
        self._set(_read_characters(Path(path)))

    def save(self, path):
        """Write the characters to a file atomically.

        The file is UTF-8 text: a comment, then a line for each character with its Unicode name.

        Arguments
        ---------
        path : str or Path
        """
        lines = [CHARACTERS_HEADING]
        for character in self._names[3:-1]:
            lines.append(f"{character}\t{unicodedata.name(character, f'U+{ord(character):04X}')}")
        with whole_or_nothing(path) as partial:
            partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


def learn_characters(transcripts, path):
    """Collect the characters of normalised transcripts, and write them in the format of ``save``.

    They are sorted by frequency, then by code point.

    Arguments
    ---------
    transcripts : iterable of str
        Only training transcripts, because tokens must not depend on test transcripts.
    path : str or Path

    Returns
    -------
    CharacterTokens

    Raises
    ------
    InputError
        If the transcripts have no character.
    """
    counts = Counter(character for transcript in transcripts for character in transcript)
    del counts[" "]
    if not counts:
        raise InputError(f"{path}: no transcript has a character to learn: check the training set")
    tokens = CharacterTokens(sorted(counts, key=lambda c: (-counts[c], c)))
    tokens.save(path)
    return tokens


def load_characters(path):
    """Make the tokens (CharacterTokens) of a file of ``learn_characters``, as ``load`` reads it."""
    tokens = CharacterTokens()
    tokens.load(path)
    return tokens


def _read_characters(path):
    """Read characters (list[str]) from a file of ``learn_characters`` and check them."""

    def refuse(number, problem):
        return InputError(f"{path}: line {number}: {problem}: correct it, or learn them again")

    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: no list of characters: learn one first") from error
    except UnicodeDecodeError as error:
        raise refuse(content.count(b"\n", 0, error.start) + 1, "not UTF-8") from error
    heading, *lines = text.removesuffix("\n").split("\n")
    if not heading.startswith("#"):
        raise refuse(1, f"does not start with # as {CHARACTERS_HEADING!r} does")
    if not lines:
        raise refuse(2, "no character")
    found = {}
    for number, line in enumerate(lines, start=2):
        character = line.rstrip("\r").partition("\t")[0]
        if len(character) != 1:
            raise refuse(number, f"{character[:20]!r}: not one code point")
        if character.isspace() or unicodedata.category(character) == "Cc":
            raise refuse(number, f"{character!r}: a space or a control character")
        if character in found:
            raise refuse(number, f"{character!r}: as in line {found[character]}")
        found[character] = number
    return list(found)


class SentencePieceTokens(_Tokens):
    """Byte-pair pieces of a SentencePiece model.

    Ids: ``<blank>`` 0, ``<unk>`` 1, the pieces, and ``<sos/eos>`` last.

    Arguments
    ---------
    processor : sentencepiece.SentencePieceProcessor
        Processor of a model from ``train_sentencepiece``; it may be loaded later.
    normalization : str
        Normalisation of the model's training transcripts, a key of ``NORMALIZATIONS``.
    """

    def __init__(self, processor, normalization="published"):
        super().__init__(normalization)
        self.processor = processor

    def __len__(self):
        return self.processor.vocab_size() + 1

    def encode(self, transcript):
        """Token ids (list[int]) of a normalised transcript."""
        return self.processor.encode(transcript)

    def text(self, index):
        """Text (str) of a token id; a space starts a word."""
        if index == len(self) - 1:
            return CHARACTERS[-1]
        return self.processor.id_to_piece(index).replace(WORD_START, " ")

    def unknown(self, transcript):
        """Characters (str) of a normalised transcript that become ``<unk>``."""
        pieces = self.processor.encode(transcript, out_type=str)
        ids = self.encode(transcript)
        unknown = (piece for piece, i in zip(pieces, ids, strict=True) if i == UNKNOWN)
        return "".join(unknown).replace(WORD_START, "")


_TRAINING = {
    "published": {},
    "unicode": {"normalization_rule_name": "identity", "max_sentence_length": 2**20},
}
"""SentencePiece's settings by normalisation. Its default rule replaces the joiner inside Persian
words by a space, and its default length silently skips transcripts of more than 4,192 bytes."""


def train_sentencepiece(transcripts, model_file, vocab_size=5000, normalization="published"):
    """Train byte-pair pieces on normalised transcripts, and write the model atomically.

    Arguments
    ---------
    transcripts : iterable of str
        Only training transcripts, because tokens must not depend on test transcripts.
    model_file : str or Path
    vocab_size : int
        Number of tokens, including ``<blank>``, ``<unk>`` and ``<sos/eos>``.
    normalization : str
        Normalisation of the transcripts, a key of ``NORMALIZATIONS``.

    Returns
    -------
    SentencePieceTokens

    Raises
    ------
    InputError
        If the transcripts have fewer different pieces, or more characters, than the vocabulary.
    """
    try:
        with whole_or_nothing(model_file) as partial, partial.open("wb") as writer:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(transcripts),
                model_writer=writer,
                model_type="bpe",
                vocab_size=vocab_size - 1,  # we add <sos/eos> after the last piece
                character_coverage=1.0,
                pad_id=BLANK,
                pad_piece="<blank>",
                unk_id=UNKNOWN,
                bos_id=-1,
                eos_id=-1,
                minloglevel=2,
                **_TRAINING[normalization],
            )
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        # The numbers in the message exclude <sos/eos>.
        if most := re.search(r"set it to a value <= (\d+)", reason):
            reason = f"they give {int(most[1]) + 1} at most"
        elif least := re.search(r"required_chars\. \d+ vs (\d+)", reason):
            reason = f"their characters alone are {int(least[1]) + 1}"
        raise InputError(
            f"{model_file}: {vocab_size} tokens cannot be learnt from these transcripts "
            f"({reason}): change vocab_size"
        ) from error
    return load_sentencepiece(model_file, normalization)


def load_sentencepiece(model_file, normalization="published"):
    """Load a model of ``train_sentencepiece``.

    Arguments
    ---------
    model_file : str or Path
    normalization : str
        Normalisation of the model's training transcripts, a key of ``NORMALIZATIONS``.

    Returns
    -------
    SentencePieceTokens

    Raises
    ------
    InputError
        If the file is not a SentencePiece model, or has other ids for blank and unknown.
    """
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    except (OSError, RuntimeError) as error:
        raise InputError(f"{model_file}: not a SentencePiece model: train one first") from error
    if (processor.pad_id(), processor.unk_id()) != (BLANK, UNKNOWN):
        raise InputError(
            f"{model_file}: <blank> is not 0 or <unk> is not 1: "
            "train the model with ent_brain.tokens.train_sentencepiece"
        )
    return SentencePieceTokens(processor, normalization)


def unknown_characters(transcripts, tokens):
    """Count the transcripts with characters that a token set lacks.

    Arguments
    ---------
    transcripts : iterable of str
        Normalised transcripts.
    tokens : CharTokens, CharacterTokens or SentencePieceTokens

    Returns
    -------
    int
        Number of transcripts with at least one ``<unk>``.
    Counter
        Number of occurrences of each character that became ``<unk>``.

    Example
    -------
    >>> unknown_characters(["DON’T", "TÊTE À TÊTE", "TEA"], CharTokens())
    (2, Counter({'Ê': 2, '’': 1, 'À': 1}))
    """
    unknown = [found for found in map(tokens.unknown, transcripts) if found]
    return len(unknown), Counter("".join(unknown))


def describe_unknown(utterances, total, characters, tokens):
    """Describe in one line the utterances with characters that the tokens lack.

    Arguments
    ---------
    utterances : int
        Number of these utterances.
    total : int
        Number of all utterances.
    characters : Counter
        Counts from ``unknown_characters``.
    tokens : CharTokens, CharacterTokens or SentencePieceTokens
        Their kind determines the remedy.

    Returns
    -------
    str
        Empty if there is no such utterance.

    Example
    -------
    >>> describe_unknown(12, 400, Counter("ÉßÉ"), CharTokens())  # doctest: +ELLIPSIS
    '12 of 400 utterances (3.0 %) have characters that the tokens lack: É (2), ß (1): learn ...
    """
    if not utterances:
        return ""
    shown = [f"{_visible(c)} ({n})" for c, n in characters.most_common(SHOWN_CHARACTERS)]
    if others := len(characters) - len(shown):
        shown.append(f"and {others} more")
    if isinstance(tokens, CharTokens):
        remedy = "learn the characters from the text with tokens: characters"
    else:
        remedy = "add training transcripts that have them"
    return (
        f"{utterances} of {total} utterances ({100 * utterances / total:.1f} %) have characters "
        f"that the tokens lack: {', '.join(shown)}: {remedy}, or correct these transcripts"
    )


def _visible(character):
    """Show a mark on a circle, and an invisible character by its code point."""
    if unicodedata.category(character)[0] == "M":
        return f"◌{character}"
    return character if character.isprintable() else f"U+{ord(character):04X}"
