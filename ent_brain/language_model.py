"""Language model: how probable words are after one another, for the beam search."""

import math
from bisect import bisect_left
from functools import cache, cached_property
from itertools import accumulate
from pathlib import Path

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


class EnglishTrigram:
    """The trigram of 72,000 English words that comes with pocketsphinx.

    Attributes
    ----------
    words : list[str]
        The vocabulary in lower case, sorted.
    cumulative : list[float]
        Probability of all words before each index, without history. The words that begin with the
        same letters are neighbours, so two look-ups give the probability of a word's beginning.
    """

    def __init__(self):
        set_loglevel("ERROR")
        folder = Path(get_model_path()) / "en-us"
        self._log_math = LogMath()
        self._model = NGramModel(Config(), self._log_math, str(folder / "en-us.lm.bin"))
        dictionary = (folder / "cmudict-en-us.dict").read_text(encoding="utf-8")
        pronounced = {line.split()[0].partition("(")[0] for line in dictionary.splitlines()}
        probabilities = {word: math.exp(self.log_prob(word, ())) for word in sorted(pronounced)}
        known = {word: share for word, share in probabilities.items() if share > 0}
        total = sum(known.values())
        self.words = list(known)
        self.cumulative = [0.0, *accumulate(share / total for share in known.values())]

    def log_prob(self, word, history):
        """Log-probability in nats of a word after others (tuple[str]), the last one first."""
        return self._log_math.log_to_ln(self._model.prob([word, *history]))

    def __contains__(self, word):
        index = bisect_left(self.words, word)
        return index < len(self.words) and self.words[index] == word

    def beginning(self, letters):
        """Probability of the words that begin with these letters, without history."""
        first = bisect_left(self.words, letters)
        end = bisect_left(self.words, letters + "\U0010ffff", first)
        return self.cumulative[end] - self.cumulative[first]


@cache
def _english():
    return EnglishTrigram()


class WordFusion:
    """Shallow fusion of the transducer with a trigram of English words.

    The beam search adds to a token's log-probability in the transducer ``weight`` times that in the
    trigram. Within a word, it is the probability of all words that begin so, without history. At
    the end of the word, it is corrected to the word's own probability after the two words before
    it. A word that is not in the vocabulary may be spelled, at a cost for each letter.

    Arguments
    ---------
    weight : float
        Weight of the trigram. 0: the search does without it.
    word_bonus : float
        Nats that each finished word adds, because the trigram prefers few words.

    Source: shallow fusion as in Hannun et al. 2014 (arXiv 1408.2873), with the look-ahead of
    Ortmanns et al. (ICSLP 1996).
    """

    def __init__(self, weight, word_bonus):
        if not (weight >= 0 and math.isfinite(weight)):
            raise InputError(f"language_model: weight {weight}: give a number, 0 or more")
        if not math.isfinite(word_bonus):
            raise InputError(f"language_model: word_bonus {word_bonus}: give a number")
        self.settings = {"weight": weight, "word_bonus": word_bonus}
        """Arguments that make this object again."""

    def scorer(self, tokens):
        """Scores of these tokens for ``decoding.search``: TokenScorer, or None if weight is 0."""
        return TokenScorer(tokens, **self.settings) if self.settings["weight"] else None


class TokenScorer:
    """Scores of the next token after the words and letters before it.

    A state is the last words, the last one first, and the letters of the unfinished word.

    Arguments
    ---------
    tokens : CharTokens, CharacterTokens or SentencePieceTokens
    weight, word_bonus : float
        As for ``WordFusion``.

    Example
    -------
    >>> from ent_brain.tokens import CharTokens
    >>> tokens = CharTokens()
    >>> scorer = TokenScorer(tokens, weight=0.5, word_bonus=0.0)
    >>> state = scorer.start
    >>> for token in tokens.encode("GOOD MORN"):
    ...     state = scorer.advance(state, token)
    >>> state
    (('good',), 'morn')
    >>> gains = scorer.gains(state)
    >>> max("AEIOU", key=lambda letter: gains[tokens.encode(letter)])
    'I'
    """

    start = (), ""

    def __init__(self, tokens, weight, word_bonus):
        self.weight, self.word_bonus = weight, word_bonus
        texts = [tokens.text(index).lower() for index in range(len(tokens))]
        self.texts = [
            None if index in (BLANK, UNKNOWN, len(texts) - 1) else text
            for index, text in enumerate(texts)
        ]
        self.starts_word = torch.tensor([bool(text) and text[0] == " " for text in self.texts])
        self._gains, self._spellings = {}, {}

    @cached_property
    def ngram(self):
        """The trigram (EnglishTrigram). Greedy search does not need it, and never loads it."""
        return _english()

    def gains(self, state):
        """Nats [V] that each next token adds to the score; 0 for blank."""
        if state not in self._gains:
            self._gains[state] = self._spelling(state[1]) + self.starts_word * self.end(state)
        return self._gains[state]

    def _spelling(self, letters):
        """Nats [V] for the letters of each next token, without the end of the word before it."""
        if letters not in self._spellings:
            before = self._log_beginning(letters)
            row = [
                0.0
                if text is None
                else self._log_beginning(text[1:])
                if text[0] == " "
                else self._log_beginning(letters + text) - before
                for text in self.texts
            ]
            self._spellings[letters] = self.weight * torch.tensor(row)
        return self._spellings[letters]

    def advance(self, state, token):
        """Return the state after a token (int)."""
        words, letters = state
        text = self.texts[token]
        if text is None:
            return state
        if text[0] != " ":
            return words, letters + text
        if letters:
            words = (letters, *words)[:HISTORY] if letters in self.ngram else ()
        return words, text[1:]

    def end(self, state):
        """Nats (float) that the end of the unfinished word adds; 0.0 if there is none."""
        words, letters = state
        if not letters:
            return 0.0
        if letters in self.ngram:
            log_prob = math.log1p(-UNKNOWN_SHARE) + self.ngram.log_prob(letters, words)
        else:
            log_prob = math.log(_spelled(len(letters) + 1))
        return self.weight * (log_prob - self._log_beginning(letters)) + self.word_bonus

    def _log_beginning(self, letters):
        known = (1 - UNKNOWN_SHARE) * self.ngram.beginning(letters)
        return math.log(known + _spelled(len(letters)))


def _spelled(letters):
    """Probability of a word outside the vocabulary that begins with so many given letters."""
    return UNKNOWN_SHARE * LETTERS ** -min(letters, LONGEST_WORD)
