"""Transcripts as token ids: normalisation, characters and SentencePiece pieces, one interface."""

import re
from pathlib import Path

import sentencepiece

from ent_brain.errors import InputError

BLANK, UNKNOWN = 0, 1
"""Ids of ``<blank>`` and ``<unk>`` in every token set; ``<sos/eos>`` is always the last id."""

SPACE = "SPACE"
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
        return "".join(" " if CHARACTERS[i] == SPACE else CHARACTERS[i] for i in ids)


class SentencePieceTokens:
    """Byte-pair pieces of a SentencePiece model.

    Ids: ``<blank>`` 0, ``<unk>`` 1, the pieces, and ``<sos/eos>`` last.

    Arguments
    ---------
    model_file : str or Path
        As written by ``train_sentencepiece``.

    Raises
    ------
    InputError
        If the file is missing or was not trained with this layout of ids.
    """

    def __init__(self, model_file):
        if not Path(model_file).is_file():
            raise InputError(f"{model_file}: no SentencePiece model: train one first")
        self._model = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
        if self._model.pad_id() != BLANK or self._model.unk_id() != UNKNOWN:
            raise InputError(
                f"{model_file}: <blank> is not 0 or <unk> is not 1: "
                "train the model with ent_brain.tokens.train_sentencepiece"
            )

    def __len__(self):
        return self._model.vocab_size() + 1

    def encode(self, transcript):
        """Token ids (list[int]) of a normalised transcript."""
        return self._model.encode(transcript)

    def decode(self, ids):
        """Transcript (str) of token ids."""
        return self._model.decode(list(ids))


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
        If the transcripts do not hold enough different pieces for the vocabulary.
    """
    model_file = Path(model_file)
    partial = model_file.with_suffix(".partial")
    try:
        with partial.open("wb") as writer:
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
        partial.unlink()
        raise InputError(
            f"{model_file}: {vocab_size} pieces cannot be learnt from these transcripts "
            f"({' '.join(str(error).split())}): lower vocab_size"
        ) from error
    partial.replace(model_file)
    return SentencePieceTokens(model_file)
