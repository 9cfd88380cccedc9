"""Transcripts as token ids: normalisation, characters and SentencePiece pieces, one interface."""

import re

import sentencepiece

from ent_brain.errors import InputError
from ent_brain.files import whole_or_nothing

BLANK, UNKNOWN = 0, 1
"""Ids of ``<blank>`` and ``<unk>`` in every token set; ``<sos/eos>`` is always the last id."""

SPACE = "SPACE"
WORD_START = "\u2581"
"""What SentencePiece writes before the first piece of a word."""
CHARACTERS = ("<blank>", "<unk>", SPACE, *"ETAONIHSRDLUMWCFGYPBVK'XJQZ", "<sos/eos>")

_PUNCTUATION = re.compile(r"[\[\].,?!\-:;\"\s]+")


def normalize_transcript(text):
    """Upper-case a transcript and squeeze punctuation and white space to single spaces.

    Apostrophes stay; the characters ``[ ] . , ? ! - : ; "`` go.

    Arguments
    ---------
    text : str

    Returns
    -------
    str
        Empty where nothing but punctuation was there.

    Example
    -------
    >>> normalize_transcript("Well--I don't know...  [LAUGHTER]")
    "WELL I DON'T KNOW LAUGHTER"
    """
    return _PUNCTUATION.sub(" ", text.upper()).strip()


def _words(pieces, boundary):
    """Join pieces to words; the boundary, alone or before a piece, starts another word.

    A word begins at its first letter: a boundary that stands alone is no part of it.
    """
    words = []
    for index, piece in enumerate(pieces):
        text = piece.removeprefix(boundary)
        if not words or piece.startswith(boundary):
            words.append([text, index, index + 1])
        else:
            if not words[-1][0]:
                words[-1][1] = index
            words[-1][0] += text
            words[-1][2] = index + 1
    return [tuple(word) for word in words if word[0]]


class CharTokens:
    """The 31 characters of the paper.

    Example
    -------
    >>> tokens = CharTokens()
    >>> len(tokens), tokens.encode("TEA TEA")
    (31, [4, 3, 5, 2, 4, 3, 5])
    >>> tokens.decode([4, 3, 5])
    'TEA'
    """

    def __init__(self):
        self._ids = {character: index for index, character in enumerate(CHARACTERS)}

    def __len__(self):
        return len(CHARACTERS)

    def encode(self, transcript):
        """Token ids (list[int]) of a normalised transcript."""
        return [
            self._ids.get(SPACE if character == " " else character, UNKNOWN)
            for character in transcript
        ]

    def decode(self, ids):
        """Transcript (str) of token ids; ``<unk>`` is written out, as it counts as an error."""
        return " ".join(word for word, _, _ in self.words(ids))

    def words(self, ids):
        """Words of token ids and where they stand: (text, first, end) with the end excluded."""
        return _words([" " if CHARACTERS[i] == SPACE else CHARACTERS[i] for i in ids], " ")


class SentencePieceTokens:
    """Byte-pair pieces of a SentencePiece model.

    Ids: ``<blank>`` 0, ``<unk>`` 1, the pieces, and ``<sos/eos>`` last.

    Arguments
    ---------
    processor : sentencepiece.SentencePieceProcessor
        Of a model that ``train_sentencepiece`` wrote; it may be loaded later.
    """

    def __init__(self, processor):
        self.processor = processor

    def __len__(self):
        return self.processor.vocab_size() + 1

    def encode(self, transcript):
        """Token ids (list[int]) of a normalised transcript."""
        return self.processor.encode(transcript)

    def decode(self, ids):
        """Transcript (str) of token ids; ``<unk>`` is written out, as it counts as an error."""
        return " ".join(word for word, _, _ in self.words(ids))

    def words(self, ids):
        """Words of token ids and where they stand: (text, first, end) with the end excluded."""
        end = len(self) - 1
        return _words(
            ["<sos/eos>" if i == end else self.processor.id_to_piece(i) for i in ids], WORD_START
        )


def train_sentencepiece(transcripts, model_file, vocab_size=5000):
    """Train byte-pair pieces on normalised transcripts and write the model whole or not at all.

    Arguments
    ---------
    transcripts : iterable of str
        Training transcripts only: a test transcript must not reach the tokens.
    model_file : str or Path
    vocab_size : int
        Number of tokens, ``<blank>``, ``<unk>`` and ``<sos/eos>`` included.

    Returns
    -------
    SentencePieceTokens

    Raises
    ------
    InputError
        If the transcripts hold fewer different pieces, or more characters, than the vocabulary.
    """
    try:
        with whole_or_nothing(model_file) as partial, partial.open("wb") as writer:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(transcripts),
                model_writer=writer,
                model_type="bpe",
                vocab_size=vocab_size - 1,  # <sos/eos> is ours, after the last piece
                character_coverage=1.0,
                pad_id=BLANK,
                pad_piece="<blank>",
                unk_id=UNKNOWN,
                bos_id=-1,
                eos_id=-1,
                minloglevel=2,
            )
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        # Its numbers are without <sos/eos>; the first of two is that of the characters.
        if most := re.search(r"set it to a value <= (\d+)", reason):
            reason = f"they give {int(most[1]) + 1} at most"
        elif least := re.search(r"required_chars\. \d+ vs (\d+)", reason):
            reason = f"their characters alone are {int(least[1]) + 1}"
        raise InputError(
            f"{model_file}: {vocab_size} tokens cannot be learnt from these transcripts "
            f"({reason}): change vocab_size"
        ) from error
    return load_sentencepiece(model_file)


def load_sentencepiece(model_file):
    """Load a model that ``train_sentencepiece`` wrote.

    Arguments
    ---------
    model_file : str or Path

    Returns
    -------
    SentencePieceTokens

    Raises
    ------
    InputError
        If the file is not a SentencePiece model, or one with other ids for blank and unknown.
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
    return SentencePieceTokens(processor)
