import functools
import itertools
import math
from collections import Counter

import oracles
import pytest
import torch
from oracles import NodeReader, PlainModel

from ent_brain import decoding
from ent_brain.alignment import align
from ent_brain.decoding import LOOK_AHEAD, beam_search, greedy_search, judge_events
from ent_brain.emotions import PUBLISHED
from ent_brain.language_model import LETTERS, UNKNOWN_SHARE, EnglishTrigram, TokenScorer
from ent_brain.model import ENT, FENT, ShortPredictor
from ent_brain.recognizer import Recognizer
from ent_brain.segments import SegmentDecoder
from ent_brain.tokens import CharacterTokens, CharTokens

FRAME_LENS = torch.tensor([40, 7, 1, 25, 40])
MODELS = pytest.mark.parametrize("model_class", [ENT, FENT])
SYMBOLS = pytest.mark.parametrize("max_symbols", [1, 3, 32])
TALKATIVE = {ENT: (50, 1.0), FENT: (0, 2.0)}
"""Seed and blank bias of random models that stay silent at most frames, and that emit one token,
several, or more than is allowed at others."""


def random_model(model_class, vocab_size=7, **options):
    seed, blank_bias = TALKATIVE[model_class]
    sizes = {"encoder_dim": 6, "embedding_dim": 4, "predictor_dim": 8, "joint_dim": 8}
    model = model_class(vocab_size, feature_dim=5, feature_layers=2, **sizes, **options).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
        for predictor in model.predictors:
            predictor.embedding.weight.mul_(3)
        for index, joint in enumerate(model.token_joints):
            joint.output.bias.zero_()
            if index == 0:
                joint.output.bias[0] = blank_bias
    return model


def random_features():
    return torch.randn(5, 40, 2, 5, generator=torch.Generator().manual_seed(1))


def utterances(features):
    return [features[row, :length] for row, length in enumerate(FRAME_LENS.tolist())]


@functools.cache
def decoded(model_class, max_symbols):
    """Decode a whole batch, and each utterance with the reference."""
    model, features = random_model(model_class), random_features()
    plain = PlainModel(model)
    references = [oracles.greedy(plain, each, max_symbols) for each in utterances(features)]
    return greedy_search(model, features, FRAME_LENS, max_symbols), references


def assert_same(ours, theirs):
    assert (ours.tokens, ours.frames) == (theirs.tokens, theirs.frames)
    assert ours.score == pytest.approx(theirs.score, rel=1e-5)
    for name in ("emotion_log_probs", "utterance_log_probs"):
        mine, expected = getattr(ours, name), getattr(theirs, name)
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5)


@MODELS
@SYMBOLS
def test_batched_search_follows_the_rule_frame_by_frame_and_symbol_by_symbol(
    model_class, max_symbols
):
    for ours, expected in zip(*decoded(model_class, max_symbols), strict=True):
        assert ours.tokens == expected.tokens
        assert ours.frames == expected.frames
        assert ours.score == pytest.approx(expected.score, rel=1e-5)


@MODELS
@SYMBOLS
def test_what_is_searched_holds_every_kind_of_step(model_class, max_symbols):
    # Of the case above: else it would show little.
    _, references = decoded(model_class, max_symbols)
    counts = [
        [Counter(reference.frames)[t] for t in range(frames)]
        for reference, frames in zip(references, FRAME_LENS.tolist(), strict=True)
    ]
    assert any(0 in each for each in counts)  # a frame is left by its blank
    assert any(max_symbols in each for each in counts)  # and another because it is full
    assert len({token for reference in references for token in reference.tokens}) > 1
    if max_symbols > 1:
        assert any(set(each) & set(range(2, max_symbols)) for each in counts)  # several, then blank
        silences = "|".join("".join(".#"[count > 0] for count in each) for each in counts)
        assert "." * (LOOK_AHEAD + 1) + "#" in silences  # a token after more than one window


@MODELS
@SYMBOLS
def test_emotion_of_a_frame_is_the_emotion_joint_as_the_frame_is_left(model_class, max_symbols):
    plain = PlainModel(random_model(model_class))
    hypotheses, references = decoded(model_class, max_symbols)
    for hypothesis, reference, features in zip(
        hypotheses, references, utterances(random_features()), strict=True
    ):
        encoded = plain.encode(features, 0)
        expected = torch.stack(
            [
                plain.emotion_logits([encoded[t]], predicted).log_softmax(0)
                for t, predicted in enumerate(reference.predicted)
            ]
        )
        assert hypothesis.emotion_log_probs.dtype == torch.float32
        torch.testing.assert_close(
            hypothesis.emotion_log_probs, expected.float(), rtol=0, atol=1e-5
        )


@MODELS
def test_without_an_emotion_joint_the_pooled_head_reads_each_frame(model_class):
    model, features = random_model(model_class, emotion_joint=False), random_features()
    plain = PlainModel(model)
    hypotheses = greedy_search(model, features, FRAME_LENS, 3)
    assert any(hypothesis.tokens for hypothesis in hypotheses)
    for hypothesis, each in zip(hypotheses, utterances(features), strict=True):
        encoded = plain.encode(each, 0)
        reference = oracles.greedy(plain, each, 3)
        expected = torch.stack(
            [
                plain.head_logits(encoded[t], predicted[0]).log_softmax(0)
                for t, predicted in enumerate(reference.predicted)
            ]
        )
        torch.testing.assert_close(
            hypothesis.emotion_log_probs, expected.float(), rtol=0, atol=1e-5
        )


@MODELS
@SYMBOLS
def test_emotion_of_an_utterance_is_the_pooled_head_on_the_decoded_tokens(model_class, max_symbols):
    plain = PlainModel(random_model(model_class))
    hypotheses, _ = decoded(model_class, max_symbols)
    for hypothesis, features in zip(hypotheses, utterances(random_features()), strict=True):
        encoded = plain.encode(features, 0).mean(0)
        predicted = plain.predict(hypothesis.tokens, 0).mean(0)
        expected = plain.head_logits(encoded, predicted).log_softmax(0).float()
        torch.testing.assert_close(hypothesis.utterance_log_probs, expected, rtol=0, atol=1e-5)


@MODELS
def test_without_a_pooled_head_the_utterance_has_the_mean_of_its_frames(model_class):
    model = random_model(model_class, pooled_head=False)
    for hypothesis in greedy_search(model, random_features(), FRAME_LENS, 3):
        expected = hypothesis.emotion_log_probs.exp().mean(0)
        torch.testing.assert_close(hypothesis.utterance_log_probs.exp(), expected)
        assert hypothesis.utterance_log_probs.exp().sum().item() == pytest.approx(1, abs=1e-5)


def assert_emotions_without_tokens(hypothesis, plain, features):
    """Its emotions are those of a predictor that has read no token."""
    encoded, predicted = plain.encode(features, 0), plain.predict([], 0)
    expected = [plain.emotion_logits([x], predicted).log_softmax(0) for x in encoded]
    torch.testing.assert_close(
        hypothesis.emotion_log_probs, torch.stack(expected).float(), rtol=0, atol=1e-5
    )
    expected = plain.head_logits(encoded.mean(0), predicted[0]).log_softmax(0)
    torch.testing.assert_close(hypothesis.utterance_log_probs, expected.float(), rtol=0, atol=1e-5)


@MODELS
def test_without_a_token_joint_there_are_no_words_but_emotions(model_class):
    model, features = random_model(model_class, token_joint=False), random_features()
    plain = PlainModel(model)
    hypotheses = greedy_search(model, features, FRAME_LENS)
    for hypothesis, each in zip(hypotheses, utterances(features), strict=True):
        assert (hypothesis.tokens, hypothesis.frames, hypothesis.score) == ([], [], 0.0)
        assert_emotions_without_tokens(hypothesis, plain, each)


@MODELS
def test_without_a_token_joint_a_ctc_head_spells_its_best_path(model_class):
    model = random_model(model_class, token_joint=False, ctc_head=True)
    with torch.no_grad():
        model.ctc_head.bias[0] += 2
    features = random_features()
    plain, head = PlainModel(model), model.ctc_head
    found = beam_search(model, features, FRAME_LENS, beam_size=4)
    ids = []
    for [hypothesis], each in zip(found, utterances(features), strict=True):
        log_probs = [
            torch.nn.functional.linear(x, head.weight.double(), head.bias.double()).log_softmax(0)
            for x in plain.encode(each, 0).double()
        ]
        best = [int(frame.argmax()) for frame in log_probs]
        runs = [(token, len(list(run))) for token, run in itertools.groupby(best)]
        starts = itertools.accumulate((length for _, length in runs), initial=0)
        spelt = [(token, at) for (token, _), at in zip(runs, starts, strict=False) if token]
        assert list(zip(hypothesis.tokens, hypothesis.frames, strict=True)) == spelt
        assert hypothesis.score == pytest.approx(sum(float(f.max()) for f in log_probs), rel=1e-5)
        # Training shows no token to the predictor, so emotions do not depend on them.
        assert_emotions_without_tokens(hypothesis, plain, each)
        ids += hypothesis.tokens
    assert len(set(ids)) > 1
    encoded = model.encode(features, FRAME_LENS)
    best = [hypothesis for [hypothesis] in found]
    assert align(model, encoded, FRAME_LENS, best) == best


@MODELS
def test_without_emotion_parts_there_are_words_but_no_emotions(model_class):
    model = random_model(model_class, emotion_joint=False, pooled_head=False)
    hypotheses = greedy_search(model, random_features(), FRAME_LENS, 3)
    assert any(hypothesis.tokens for hypothesis in hypotheses)
    for hypothesis in hypotheses:
        assert hypothesis.emotion_log_probs is None
        assert hypothesis.utterance_log_probs is None


@MODELS
@SYMBOLS
def test_a_batch_gives_what_one_utterance_at_a_time_gives(model_class, max_symbols):
    model = random_model(model_class)
    hypotheses, _ = decoded(model_class, max_symbols)
    for hypothesis, features in zip(hypotheses, utterances(random_features()), strict=True):
        lens = torch.tensor([len(features)])
        [alone] = greedy_search(model, features[None], lens, max_symbols)
        assert_same(alone, hypothesis)


@MODELS
@SYMBOLS
def test_a_short_predictor_is_searched_as_any_other(model_class, max_symbols):
    model, features = random_model(model_class, predictor_context=2), random_features()
    found = greedy_search(model, features, FRAME_LENS, max_symbols)
    plain = PlainModel(model)
    for ours, each in zip(found, utterances(features), strict=True):
        expected = oracles.greedy(plain, each, max_symbols)
        assert (ours.tokens, ours.frames) == (expected.tokens, expected.frames)
        assert ours.score == pytest.approx(expected.score, rel=1e-5)
    assert any(hypothesis.tokens for hypothesis in found)


@MODELS
def test_padding_of_the_features_changes_nothing(model_class):
    features = random_features()
    for row, frames in enumerate(FRAME_LENS):
        features[row, frames:] = 1e3
    found = greedy_search(random_model(model_class), features, FRAME_LENS, 3)
    for ours, expected in zip(found, decoded(model_class, 3)[0], strict=True):
        assert_same(ours, expected)


@MODELS
@pytest.mark.parametrize(
    ("setting", "value"), [("LOOK_AHEAD", 1), ("LOOK_AHEAD", 64), ("ROUNDS_BETWEEN_CHECKS", 1)]
)
def test_how_the_search_is_cut_into_rounds_changes_nothing(
    model_class, setting, value, monkeypatch
):
    monkeypatch.setattr(decoding, setting, value)
    found = greedy_search(random_model(model_class), random_features(), FRAME_LENS, 3)
    for ours, expected in zip(found, decoded(model_class, 3)[0], strict=True):
        assert_same(ours, expected)


@MODELS
def test_search_keeps_no_graph(model_class):
    model = random_model(model_class)
    [hypothesis] = greedy_search(model, random_features()[:1], FRAME_LENS[:1], 1)
    assert not hypothesis.emotion_log_probs.requires_grad
    assert not hypothesis.utterance_log_probs.requires_grad


@MODELS
def test_whether_greedy_search_finds_a_token_is_known_without_it(model_class):
    model, features = random_model(model_class), random_features()
    output, answers = model.token_joints[0].output, []
    for _ in range(8):
        encoded = model.encode(features, FRAME_LENS)
        found = decoding.finds_tokens(model, encoded, FRAME_LENS).tolist()
        searched = greedy_search(model, features, FRAME_LENS)
        assert found == [bool(hypothesis.tokens) for hypothesis in searched]
        answers += found
        output.bias.data[0] += 1
    assert {True, False} == set(answers)


@MODELS
@pytest.mark.parametrize(("max_symbols", "frames"), [(1, 4), (2, 3), (3, 2)])
def test_a_beam_that_holds_everything_sums_over_all_paths(
    model_class, max_symbols, frames, monkeypatch
):
    monkeypatch.setattr(decoding, "PRUNING_THRESHOLD", torch.inf)
    model, features = random_model(model_class, vocab_size=3), random_features()[:1, :frames]
    read = NodeReader(PlainModel(model), features[0])
    expected = oracles.every_path(read, frames, max_symbols)
    size = 2 * len(expected)  # room for those that have passed a frame and those still at it
    [found] = beam_search(model, features, torch.tensor([frames]), size, size, max_symbols)
    assert len(found) == len(expected)
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(expected[tuple(hypothesis.tokens)], abs=1e-4)
        assert hypothesis.frames == sorted(hypothesis.frames)
        assert max(Counter(hypothesis.frames).values(), default=0) <= max_symbols
    scores = [hypothesis.score for hypothesis in found]
    assert scores == sorted(scores, reverse=True)


@MODELS
def test_a_search_goes_on_after_tokens_that_are_known(model_class, monkeypatch):
    monkeypatch.setattr(decoding, "PRUNING_THRESHOLD", torch.inf)
    before, first, frames, max_symbols = (2, 1, 2), 2, 4, 2
    model, features = random_model(model_class, vocab_size=3), random_features()[:1, :frames]
    encoded, lens = model.encode(features, torch.tensor([frames])), torch.tensor([frames - first])
    read = NodeReader(PlainModel(model), features[0])
    for end in range(len(before)):
        read(0, before[: end + 1])
    expected = oracles.every_path(
        lambda frame, tokens: read(first + frame, before + tokens), frames - first, max_symbols
    )
    rest = type(encoded)(*(stream[:, first:] for stream in encoded))
    size = 2 * len(expected)
    [found] = decoding.find_paths(model, rest, lens, size, size, max_symbols, before=before)
    assert {tuple(path.tokens) for path in found} == set(expected)
    for path in found:
        assert path.score == pytest.approx(expected[tuple(path.tokens)], abs=1e-4)
    [[greedy]] = decoding.find_paths(model, rest, lens, 1, 1, max_symbols, before=before)
    assert (
        greedy.tokens
        == decoding._beam_paths(model, rest, lens, 1, 1, max_symbols, before=before)[0][0].tokens
    )


@MODELS
@pytest.mark.parametrize("method", ["argmax", "lasting_event"])
def test_going_on_after_nothing_is_recognition(model_class, method):
    model, features = random_model(model_class), random_features()
    decoder = SegmentDecoder(PUBLISHED, 0.02, method, 0.04)
    recognizer = Recognizer(model, decoder, 0.0, 3, 5, None)
    for row, frames in enumerate(FRAME_LENS.tolist()):
        lens = torch.tensor([frames])
        encoded = model.encode(features[row : row + 1, :frames], lens)
        [expected] = recognizer.recognize(encoded, lens)
        assert_same(recognizer.go_on(encoded, lens, [], 0), expected)


@MODELS
def test_a_language_model_adds_the_probability_of_the_words(model_class, monkeypatch):
    monkeypatch.setattr(decoding, "PRUNING_THRESHOLD", torch.inf)
    tokens, frames, max_symbols = CharacterTokens("AT"), 2, 2
    model = random_model(model_class, vocab_size=len(tokens))
    features, lens = random_features()[:1, :frames], torch.tensor([frames])
    read = NodeReader(PlainModel(model), features[0])
    paths = oracles.every_path(read, frames, max_symbols)
    scorer = TokenScorer(tokens, 0.7, letter_bonus=0.3, prior_weight=0.4)
    ngram = EnglishTrigram()
    plain, streams = PlainModel(model), (0, -1)
    mean = [plain.encode(features[0], stream).mean(0) for stream in streams]
    size = 2 * len(paths)
    encoded = model.encode(features, lens)
    [found] = decoding.search(model, encoded, lens, size, size, max_symbols, scorer)
    assert len(found) == len(paths)
    written = set()
    for hypothesis in found:
        expected, before = paths[tuple(hypothesis.tokens)], ()
        known = (index for index in hypothesis.tokens if index not in (1, len(tokens) - 1))
        for word in tokens.decode(known).lower().split():
            if word in ngram.words:  # "tat" is not
                log_prob, before = ngram.follow(word, before)
                log_prob += math.log(1 - UNKNOWN_SHARE)
            else:
                log_prob = math.log(UNKNOWN_SHARE) - (len(word) + 1) * math.log(LETTERS)
                before = ()
            expected += 0.7 * log_prob + 0.3 * len(word)
            written.add(word)
        predicted = [plain.predict(hypothesis.tokens, stream) for stream in streams]
        for index, token in enumerate(hypothesis.tokens):
            prior = plain.token_logits(mean, [each[index] for each in predicted])[1:].log_softmax(
                -1
            )
            expected -= 0.4 * float(prior[token - 1])
        assert hypothesis.score == pytest.approx(expected, abs=1e-4)
    assert {"a", "at", "t", "tat", "ta"} <= written


def test_a_language_model_that_says_nothing_changes_no_hypothesis():
    model, features = random_model(ENT, vocab_size=31), random_features()
    encoded = model.encode(features, FRAME_LENS)
    silent = TokenScorer(CharTokens(), weight=0.0, letter_bonus=0.0)
    fused = decoding.search(model, encoded, FRAME_LENS, 4, 2, language_model=silent)
    for ours, alone in zip(fused, decoding.search(model, encoded, FRAME_LENS, 4, 2), strict=True):
        for each, expected in zip(ours, alone, strict=True):
            assert_same(each, expected)


@MODELS
@SYMBOLS
@pytest.mark.parametrize("beam_size", [2, 3, 5])
@pytest.mark.parametrize("threshold", [1.0, 6.0, torch.inf])
def test_a_narrow_beam_keeps_what_dictionaries_keep(
    model_class, max_symbols, beam_size, threshold, monkeypatch
):
    monkeypatch.setattr(decoding, "PRUNING_THRESHOLD", threshold)
    model, features = random_model(model_class), random_features()
    found = beam_search(model, features, FRAME_LENS, beam_size, beam_size, max_symbols)
    for hypotheses, each in zip(found, utterances(features), strict=True):
        read = NodeReader(PlainModel(model), each)
        expected = oracles.beam(read, len(each), beam_size, max_symbols, threshold)
        scores = {tuple(hypothesis.tokens): hypothesis.score for hypothesis in hypotheses}
        assert len(scores) == len(hypotheses)
        assert scores == pytest.approx(expected, rel=1e-5, abs=1e-4)


@MODELS
@SYMBOLS
def test_a_beam_reads_each_context_of_a_short_predictor_once(model_class, max_symbols, monkeypatch):
    model, features = random_model(model_class, predictor_context=2), random_features()
    seen, read = [], ShortPredictor.read
    monkeypatch.setattr(
        ShortPredictor,
        "read",
        lambda self, tokens, state: seen.append(tokens) or read(self, tokens, state),
    )
    found = beam_search(model, features, FRAME_LENS, 4, 4, max_symbols)
    paths = [path for paths in found for path in paths]
    contexts = {(0, *path.tokens)[at : at + 2] for path in paths for at in range(len(path.tokens))}
    emitted = sum(len(path.tokens) for path in paths)
    steps = sum(tokens.numel() for tokens in seen if tokens.size(1) == 1) / len(model.predictors)
    assert len(contexts) < emitted / 2
    assert len(contexts) <= steps <= 6 * 7  # the token before the last is blank or one of six
    monkeypatch.undo()
    for hypotheses, each in zip(found, utterances(features), strict=True):
        reader = NodeReader(PlainModel(model), each)
        expected = oracles.beam(reader, len(each), 4, max_symbols, decoding.PRUNING_THRESHOLD)
        scores = {tuple(hypothesis.tokens): hypothesis.score for hypothesis in hypotheses}
        assert scores == pytest.approx(expected, rel=1e-5, abs=1e-4)


@MODELS
@SYMBOLS
def test_a_beam_of_one_is_the_greedy_search(model_class, max_symbols):
    model = random_model(model_class)
    greedy, _ = decoded(model_class, max_symbols)
    encoded = model.encode(random_features(), FRAME_LENS)
    with torch.no_grad():
        paths = decoding._beam_paths(model, encoded, FRAME_LENS, 1, 1, max_symbols)
    for [path], expected in zip(paths, greedy, strict=True):
        assert (path.tokens, path.frames) == (expected.tokens, expected.frames)
        assert path.score == pytest.approx(expected.score, rel=1e-5)


@MODELS
@SYMBOLS
def test_a_beam_is_never_worse_than_greedy_and_sometimes_better(model_class, max_symbols):
    greedy, _ = decoded(model_class, max_symbols)
    found = beam_search(
        random_model(model_class), random_features(), FRAME_LENS, 4, max_symbols=max_symbols
    )
    gains = [best.score - one.score for [best], one in zip(found, greedy, strict=True)]
    assert min(gains) > -1e-4
    assert max(gains) > 0.1


@MODELS
def test_beam_search_of_a_batch_gives_what_one_utterance_at_a_time_gives(model_class):
    model, features = random_model(model_class), random_features()
    found = beam_search(model, features, FRAME_LENS, 3, 2, 3)
    for hypotheses, each in zip(found, utterances(features), strict=True):
        [alone] = beam_search(model, each[None], torch.tensor([len(each)]), 3, 2, 3)
        for ours, expected in zip(alone, hypotheses, strict=True):
            assert_same(ours, expected)


def test_beam_search_ends_though_blank_is_never_likely():
    model = random_model(ENT)
    with torch.no_grad():
        model.token_joints[0].output.bias[0] = -1e4
    [[best]] = beam_search(model, random_features()[:1], torch.tensor([5]), 4, max_symbols=3)
    assert best.frames == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]


def test_more_hypotheses_than_the_beam_holds_are_refused():
    with pytest.raises(ValueError, match="n_best 5: not from 1 to beam_size 4"):
        beam_search(random_model(ENT), random_features(), FRAME_LENS, 4, 5)


# --- events


@MODELS
@torch.no_grad()
def test_the_pooled_head_judges_each_event_by_all_of_it(model_class):
    model, features = random_model(model_class), random_features()
    decoder = SegmentDecoder(PUBLISHED, 0.1, "lasting_event", 0.5)
    found = greedy_search(model, features, FRAME_LENS)
    judged = judge_events(model, model.encode(features, FRAME_LENS), found, decoder)
    for heard, before, after in zip(utterances(features), found, judged, strict=True):
        encoded = model.encode(heard[None], torch.tensor([len(heard)])).emotion[0]
        tokens = torch.tensor([before.tokens], dtype=torch.long)
        predicted = model.predict(tokens, torch.tensor([tokens.size(1)])).emotion[0]
        for emotion, (start, end) in decoder.events(before.emotion_log_probs).items():
            c = sum(frame < start for frame in before.frames)
            d = sum(frame < end for frame in before.frames)
            d = len(predicted) if end == len(heard) else max(c + 1, d)
            logits = model.pooled_head(encoded[start:end].mean(0), predicted[c:d].mean(0))
            expected = float(logits.log_softmax(-1)[emotion])
            assert float(after.event_log_probs[emotion]) == pytest.approx(expected, rel=1e-4)
        assert after.event_log_probs[PUBLISHED.neutral_index] == -torch.inf


def test_nothing_is_judged_without_a_head_or_an_event_to_judge():
    features = random_features()
    for options, method in (({"pooled_head": False}, "lasting_event"), ({}, "single_event")):
        model = random_model(ENT, **options)
        found = greedy_search(model, features, FRAME_LENS)
        encoded = model.encode(features, FRAME_LENS)
        assert judge_events(model, encoded, found, SegmentDecoder(PUBLISHED, 0.1, method)) is found
