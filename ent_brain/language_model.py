"""Language model: how probable words are after one another, for the beam search."""

import math
from collections import defaultdict
from functools import cache, cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from pocketsphinx import Config, LogMath, NGramModel, get_model_path, set_loglevel

from ent_brain.errors import InputError
from ent_brain.tokens import BLANK, UNKNOWN

UNKNOWN_SHARE = 1e-4
"""Probability that a word is not in the vocabulary. Its letters are then equally probable."""

LETTERS = 28
"""Number of equally probable letters: a to z, the apostrophe, and the end of the word."""

LONGEST_WORD = 60
"""Letters of a word that are counted; the probability of a longer word would be 0 in float64."""

HISTORY = 2
"""Words that a trigram sees before the next one."""

START, END = "<s>", "</s>"
"""Marks of the start and the end of a sentence in the trigram."""

BEGINNINGS, STATES = 2**15, 2**12
"""Beginnings of words, and states, whose scores are remembered: some MB, however long a recording
is."""


class EnglishTrigram:
    """The trigram of 72,000 English words that comes with pocketsphinx.

    Attributes
    ----------
    words : frozenset[str]
        The vocabulary in lower case.
    beginnings : dict[str, float]
        Probability of all words that begin with some letters, without history.
    """

    def __init__(self):
        set_loglevel("ERROR")
        folder = Path(get_model_path()) / "en-us"
        self._log_math = LogMath()
        self._model = NGramModel(Config(), self._log_math, str(folder / "en-us.lm.bin"))
        dictionary = (folder / "cmudict-en-us.dict").read_text(encoding="utf-8")
        pronounced = {line.split()[0].partition("(")[0] for line in dictionary.splitlines()}
        probabilities = {word: math.exp(self.log_prob(word, ())) for word in pronounced}
        known = {word: share for word, share in probabilities.items() if share > 0}
        total = sum(known.values())
        self.words = frozenset(known)
        beginnings = defaultdict(float)
        for word, share in known.items():
            for end in range(len(word) + 1):
                beginnings[word[:end]] += share / total
        self.beginnings = dict(beginnings)

    def log_prob(self, word, history):
        """Log-probability in nats of a word after others (tuple[str]), the last one first."""
        return self._log_math.log_to_ln(self._model.prob([word, *history]))

    def follow(self, word, history):
        """Log-probability of a word after others, if a sentence may end between them.

        Returns it in nats, and the history (tuple[str]) of the next word. This history is that of
        the more probable case.
        """
        log_prob = self.log_prob(word, history)
        if not history:
            return log_prob, (word,)
        anew = self.log_prob(END, history) + self.log_prob(word, (START,))
        before = history if log_prob >= anew else (START,)
        return float(np.logaddexp(log_prob, anew)), (word, *before)[:HISTORY]


@cache
def _english():
    return EnglishTrigram()


class WordFusion:
    """Shallow fusion of the transducer with a trigram of English words.

    The beam search adds to a token's log-probability in the transducer ``weight`` times that in the
    trigram. Within a word, it is the probability of all words that begin so, without history. At
    the end of the word, it is corrected to the word's own probability after the two words before
    it. A sentence may end between any two words. A word that is not in the vocabulary may be
    spelled, at a cost for each letter.

    Arguments
    ---------
    weight : float
        Weight of the trigram. 0: the search does without it.
    letter_bonus : float
        Nats that each letter adds. Without it, words that the trigram does not expect are lost.
    prior_weight : float
        Weight of the transducer's internal language model, which is subtracted: what its predictor
        expects without hearing anything, learnt from few texts.

    Source: shallow fusion as in Hannun et al. 2014 (arXiv 1408.2873), with the look-ahead of
    Ortmanns et al. (ICSLP 1996), and the correction of Zeyer et al. (Interspeech 2021).
    """

    def __init__(self, weight, letter_bonus, prior_weight=0.0):
        for name, value in (("weight", weight), ("prior_weight", prior_weight)):
            if not (value >= 0 and math.isfinite(value)):
                raise InputError(f"language_model: {name} {value}: give a number, 0 or more")
        if not math.isfinite(letter_bonus):
            raise InputError(f"language_model: letter_bonus {letter_bonus}: give a number")
        self.settings = {
            "weight": weight,
            "letter_bonus": letter_bonus,
            "prior_weight": prior_weight,
        }
        """Arguments that make this object again."""
        self._scorer = None

    def scorer(self, tokens):
        """Scores of these tokens for ``decoding.search``: TokenScorer, or None if weight is 0."""
        if self._scorer is None or self._scorer.tokens is not tokens:
            self._scorer = TokenScorer(tokens, **self.settings) if self.settings["weight"] else None
        return self._scorer


class TokenScorer:
    """Scores of the next token after the words and letters before it.

    A state is the last words, the last one first, and the letters of the unfinished word.

    Arguments
    ---------
    tokens : CharTokens, CharacterTokens or SentencePieceTokens
    weight, letter_bonus, prior_weight : float
        As for ``WordFusion``.

    Example
    -------
    >>> from ent_brain.tokens import CharTokens
    >>> tokens = CharTokens()
    >>> scorer = TokenScorer(tokens, weight=0.5, letter_bonus=0.0)
    >>> state = scorer.start
    >>> for token in tokens.encode("GOOD MORN"):
    ...     state = scorer.advance(state, token)
    >>> state
    (('good',), 'morn')
    >>> [gains] = scorer.gains([state])
    >>> max("AEIOU", key=lambda letter: gains[tokens.encode(letter)])
    'I'
    """

    start = (), ""

    def __init__(self, tokens, weight, letter_bonus, prior_weight=0.0):
        self.tokens, self.weight, self.prior_weight = tokens, weight, prior_weight
        texts = [tokens.text(index).lower() for index in range(len(tokens))]
        self.texts = [
            None if index in (BLANK, UNKNOWN, len(texts) - 1) else text
            for index, text in enumerate(texts)
        ]
        self.starts_word = np.array([bool(text) and text[0] == " " for text in self.texts])
        letters = [len((text or "").strip()) for text in self.texts]
        self.bonuses = letter_bonus * np.array(letters, dtype=np.float32)
        self.end = lru_cache(STATES)(self._end)
        self._spelling = lru_cache(BEGINNINGS)(self._spell)
        self._follow = lru_cache(STATES)(lambda *state: self.ngram.follow(*state))

    @cached_property
    def ngram(self):
        """The trigram (EnglishTrigram). Greedy search does not need it, and never loads it."""
        return _english()

    def gains(self, states):
        """Nats [N, V] that each next token adds to the scores of N states; 0 for blank."""
        known = self.ngram.beginnings
        # All beginnings that no word has go on alike.
        rows = [letters if letters in known else "?" * len(letters) for _, letters in states]
        spelled = np.stack([self._spelling(letters) for letters in rows])
        ends = np.array([self.end(state) for state in states], dtype=np.float32)
        return torch.from_numpy(spelled + self.starts_word * ends[:, None])

    def _spell(self, letters):
        """Nats [V] for the letters of each next token, without the end of the word before it."""
        before = self._log_beginning(letters)
        row = [
            0.0
            if text is None
            else self._log_beginning(text[1:])
            if text[0] == " "
            else self._log_beginning(letters + text) - before
            for text in self.texts
        ]
        return self.weight * np.array(row, dtype=np.float32) + self.bonuses

    def advance(self, state, token):
        """Return the state after a token (int)."""
        words, letters = state
        text = self.texts[token]
        if text is None:
            return state
        if text[0] != " ":
            return words, letters + text
        if letters:
            words = self._follow(letters, words)[1] if letters in self.ngram.words else ()
        return words, text[1:]

    def _end(self, state):
        """Nats (float) that the end of the unfinished word adds; 0.0 if there is none."""
        words, letters = state
        if not letters:
            return 0.0
        if letters in self.ngram.words:
            log_prob = math.log1p(-UNKNOWN_SHARE) + self._follow(letters, words)[0]
        else:
            log_prob = math.log(_spelled(len(letters) + 1))
        return self.weight * (log_prob - self._log_beginning(letters))

    def _log_beginning(self, letters):
        known = (1 - UNKNOWN_SHARE) * self.ngram.beginnings.get(letters, 0.0)
        return math.log(known + _spelled(len(letters)))


def _spelled(letters):
    """Probability of a word outside the vocabulary that begins with so many given letters."""
    return UNKNOWN_SHARE * LETTERS ** -min(letters, LONGEST_WORD)
