import math

import pytest
import torch

from ent_brain.errors import InputError
from ent_brain.language_model import EnglishTrigram, TokenScorer, WordFusion
from ent_brain.tokens import CharTokens, train_sentencepiece

TEXT = "THE KING OF ENGLAND"


@pytest.fixture(scope="module")
def ngram():
    return EnglishTrigram()


def total(scorer, ids):
    state, gained = scorer.start, 0.0
    for token in ids:
        gained += float(scorer.gains([state])[0, token])
        state = scorer.advance(state, token)
    return gained + scorer.end(state)


def test_words_are_as_probable_as_the_trigram_says(ngram):
    assert len(ngram.words) > 70_000
    assert "king" in ngram.words
    assert "kinge" not in ngram.words
    assert ngram.log_prob("england", ("of", "king")) > ngram.log_prob("england", ()) + 3
    assert ngram.beginnings[""] == pytest.approx(1.0)
    ending = [word for word in ngram.words if word.startswith("kin")]
    shares = sum(math.exp(ngram.log_prob(word, ())) for word in ending)
    everything = sum(math.exp(ngram.log_prob(word, ())) for word in ngram.words)
    assert ngram.beginnings["kin"] == pytest.approx(shares / everything)


def test_characters_and_pieces_give_a_sentence_the_same_probability(tmp_path):
    model = tmp_path / "bpe"
    pieces = train_sentencepiece([TEXT, "A KINGLY LAND"] * 20, model, 30)
    options = {"weight": 0.5, "letter_bonus": 0.2}
    expected = total(TokenScorer(CharTokens(), **options), CharTokens().encode(TEXT))
    ids = pieces.encode(TEXT)
    assert len(ids) < len(TEXT)
    assert total(TokenScorer(pieces, **options), ids) == pytest.approx(expected, abs=1e-4)


def test_a_sentence_may_end_before_any_word(ngram):
    """The first case is the more probable one for "england", the second for "however"."""
    for word, history, begins in (("england", ("of", "king"), False), ("however", ("door",), True)):
        goes_on = math.exp(ngram.log_prob(word, history))
        anew = math.exp(ngram.log_prob("</s>", history) + ngram.log_prob(word, ("<s>",)))
        log_prob, following = ngram.follow(word, history)
        assert math.exp(log_prob) == pytest.approx(goes_on + anew)
        assert (anew > goes_on) == begins
        assert following == (word, "<s>" if begins else history[0])
    assert ngram.follow("king", ()) == (ngram.log_prob("king", ()), ("king",))


def test_each_letter_has_the_same_bonus():
    tokens = CharTokens()
    ids = tokens.encode(TEXT)
    without, with_bonus = (TokenScorer(tokens, 0.5, letter_bonus=bonus) for bonus in (0.0, 0.2))
    letters = len(TEXT.replace(" ", ""))
    assert total(with_bonus, ids) == pytest.approx(total(without, ids) + 0.2 * letters, abs=1e-4)


@pytest.mark.parametrize("letters", ["", "kin", "qu", "zzz"])
def test_the_next_letters_share_what_is_left(letters):
    scorer = TokenScorer(CharTokens(), weight=1.0, letter_bonus=0.0)
    letter = [text is not None and text != " " for text in scorer.texts]
    share = scorer.gains([((), letters)])[0].exp()[torch.tensor(letter)].sum()
    assert 0.5 < share < 1.0


def test_words_outside_the_vocabulary_can_be_written():
    scorer, tokens = TokenScorer(CharTokens(), weight=1.0, letter_bonus=0.0), CharTokens()
    known, unknown = (total(scorer, tokens.encode(text)) for text in ("KING", "KXNG"))
    assert -40 < unknown < known - 5
    assert total(scorer, tokens.encode("X" * 500)) > -math.inf


def test_weights_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="weight -1: give a number, 0 or more"):
        WordFusion(-1, 0.0)
    with pytest.raises(InputError, match="prior_weight nan: give a number, 0 or more"):
        WordFusion(0.5, 0.0, math.nan)
    with pytest.raises(InputError, match="letter_bonus nan: give a number"):
        WordFusion(0.5, math.nan)
    assert WordFusion(0, 0.0).scorer(CharTokens()) is None


def test_a_recording_uses_what_the_one_before_it_looked_up():
    fusion, tokens = WordFusion(0.5, 0.0), CharTokens()
    assert fusion.scorer(tokens) is fusion.scorer(tokens)
    assert fusion.scorer(CharTokens()).tokens is not tokens
