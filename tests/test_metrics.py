import io
import string

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speechbrain.utils.EDER import EDER

from ent_brain.decoding import Hypothesis
from ent_brain.emotions import PUBLISHED
from ent_brain.errors import InputError
from ent_brain.metrics import (
    EmotionDiarizationStats,
    EmotionStats,
    TransducerStats,
    WordErrorStats,
)
from ent_brain.segments import Segment, SegmentDecoder
from ent_brain.tokens import CharTokens

FRAME = 0.02
pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)


def written(stats):
    stream = io.StringIO()
    stats.write_stats(stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    "stats",
    [EmotionStats(PUBLISHED), WordErrorStats(), EmotionDiarizationStats(PUBLISHED, FRAME)],
    ids=lambda stats: type(stats).__name__,
)
def test_nothing_appended_is_an_error_that_says_so(stats):
    for ask in (stats.summarize, lambda: written(stats)):
        with pytest.raises(ValueError, match="no utterance was appended"):
            ask()


# --- emotions of utterances


@given(pairs, st.integers(1, 60))
def test_accuracies_are_those_counted_by_hand(pairs, split):
    stats = EmotionStats(PUBLISHED)
    for part in (pairs[:split], pairs[split:]):
        predictions = torch.tensor([p for p, _ in part], dtype=torch.int64)
        stats.append([f"u{i}" for i in range(len(part))], predictions, [t for _, t in part])
    recalls = []
    for emotion in range(4):
        mine = [p for p, t in pairs if t == emotion]
        if mine:
            recalls.append(mine.count(emotion) / len(mine))
    summary = stats.summarize()
    assert summary["WA"] == pytest.approx(100 * sum(p == t for p, t in pairs) / len(pairs))
    assert summary["UA"] == pytest.approx(100 * sum(recalls) / len(recalls))
    for target, prediction in np.ndindex(4, 4):
        assert summary["confusion"][target, prediction] == pairs.count((prediction, target))
    assert stats.summarize("UA") == summary["UA"]


def test_emotion_report_shows_counts_recalls_and_errors():
    stats = EmotionStats(PUBLISHED)
    stats.append(["Ses01F_a", "Ses01F_b", "c"], [0, 2, 1], [0, 1, 1])
    text = written(stats)
    assert "WA 66.67 %, UA 75.00 %, utterances: 3" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["angry", "0", "1", "1", "0", "50.0", "%"] in lines
    assert ["sad", "0", "0", "0", "0", "-"] in lines
    assert lines[-3] == ["*", "angry", "sad", "Ses01F_b"]


def test_trackers_refuse_columns_of_different_lengths_and_keep_nothing_of_them():
    emotions, words, times = (
        EmotionStats(PUBLISHED),
        WordErrorStats(),
        EmotionDiarizationStats(PUBLISHED, FRAME),
    )
    with pytest.raises(ValueError):
        emotions.append(["a", "b"], [0], [0])
    with pytest.raises(ValueError):
        words.append(["a", "b"], ["A"], ["A"])
    with pytest.raises(ValueError):
        times.append(["a", "b"], [[0]], [[]], [1.0])
    for stats in (emotions, words, times):
        with pytest.raises(ValueError, match="no utterance"):
            stats.summarize()


def test_clear_forgets():
    stats = EmotionStats(PUBLISHED)
    stats.append(["a"], [0], [1])
    stats.clear()
    stats.append(["b"], [1], [1])
    assert stats.summarize("WA") == 100


# --- words


def test_error_rates_of_cases_counted_by_hand():
    stats = WordErrorStats()
    stats.append(["a"], ["THE HAT SAT ON"], ["THE CAT SAT"])  # 1 substitution, 1 insertion; 1, 3
    stats.append(["b", "c"], ["", "YES"], ["DOG", "YES"])  # 1 deletion; 3
    assert stats.summarize() == pytest.approx({"WER": 100 * 3 / 5, "CER": 100 * 7 / 17})


def levenshtein(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (x != y)))
    return row[-1]


sentences = st.lists(st.text(string.ascii_uppercase[:3], min_size=1, max_size=3), max_size=6).map(
    " ".join
)


@given(st.lists(st.tuples(sentences, sentences), min_size=1, max_size=8))
def test_error_rates_are_edit_distances(utterances):
    utterances.append(("A", "A"))  # rates need a reference word somewhere
    hypotheses, references = zip(*utterances, strict=True)
    stats = WordErrorStats()
    stats.append([str(i) for i in range(len(utterances))], hypotheses, references)
    words = sum(levenshtein(r.split(), h.split()) for h, r in utterances)
    characters = sum(levenshtein(r, h) for h, r in utterances)
    assert stats.summarize("WER") == pytest.approx(
        100 * words / sum(len(r.split()) for r in references)
    )
    assert stats.summarize("CER") == pytest.approx(100 * characters / sum(map(len, references)))


def test_word_report_aligns_every_utterance_the_worst_first():
    stats = WordErrorStats()
    stats.append(["good", "bad"], ["A B", ""], ["A B", "DOG"])
    assert written(stats) == (
        "WER 33.33 %, CER 50.00 %, utterances: 2\n"
        "\nbad: 100.00 %\nREF: DOG\nHYP: ***\n       D\n"
        "\ngood: 0.00 %\nREF: A B\nHYP: A B\n"
    )


# --- emotions in time


@st.composite
def utterances(draw):
    """Frames, sorted segments in whole milliseconds, duration in milliseconds."""
    duration = draw(st.integers(1, 1500))
    cuts = draw(st.lists(st.integers(0, duration), unique=True, max_size=9).map(sorted))
    segments = [
        (start, end, draw(st.integers(0, 2)))
        for start, end in zip(cuts[::2], cuts[1::2], strict=False)
    ]
    # More frames than the duration holds and fewer; also runs, which merge.
    frames = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 20)), max_size=10))
    return [label for label, count in frames for _ in range(count)], segments, duration


def as_segments(segments):
    return [Segment(start / 1000, end / 1000, PUBLISHED.names[e]) for start, end, e in segments]


@settings(max_examples=50)
@given(st.lists(utterances(), min_size=1, max_size=3))
def test_eder_is_that_of_a_fine_grid(utterances):
    rates = []
    for frames, segments, duration in utterances:
        wrong = 0
        for millisecond in range(duration):
            truth = 3
            for start, end, emotion in segments:
                if start <= millisecond < end:
                    truth = emotion
            frame = millisecond // 20
            wrong += frame >= len(frames) or frames[frame] != truth
        rates.append(100 * wrong / duration)
    stats = EmotionDiarizationStats(PUBLISHED, FRAME)
    stats.append(
        [str(i) for i in range(len(utterances))],
        [frames for frames, _, _ in utterances],
        [as_segments(segments) for _, segments, _ in utterances],
        [duration / 1000 for _, _, duration in utterances],
    )
    assert stats.summarize("EDER") == pytest.approx(np.mean(rates), abs=1e-6)


@settings(max_examples=200)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=80),
    st.floats(0.05, 2),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 2),
)
def test_eder_is_speechbrain_s(frames, duration, a, b, emotion):
    start, end = sorted((a * duration, b * duration))
    if end - start < 1e-3:
        start, end = 0.0, duration
    theirs = EDER(
        prediction=[PUBLISHED.names[label][0] for label in frames],
        id="u",
        duration=duration,
        emotion=[{"emo": PUBLISHED.names[emotion], "start": start, "end": end}],
        window_length=FRAME,
        stride=FRAME,
    )
    stats = EmotionDiarizationStats(PUBLISHED, FRAME)
    stats.append(["u"], [frames], [[Segment(start, end, PUBLISHED.names[emotion])]], [duration])
    assert stats.summarize("EDER") == pytest.approx(100 * theirs, abs=1e-6)


def test_eder_of_baselines_and_of_nothing():
    reference = [Segment(0.5, 1.5, "sad")]
    expected = {"neutral": 50.0, "spread": 50.0, "nothing": 100.0, "oracle": 0.0}
    predictions = {
        "neutral": [3] * 100,
        "spread": torch.full([100], 2),
        "nothing": [],
        "oracle": [3] * 25 + [2] * 50 + [3] * 25,
    }
    for name, frames in predictions.items():
        stats = EmotionDiarizationStats(PUBLISHED, FRAME)
        stats.append([name], [frames], [reference], [2.0])
        assert stats.summarize("EDER") == pytest.approx(expected[name], abs=1e-9)
        assert " -" not in written(stats).split("predicted")[0]


def test_eder_report_shows_the_worst_first():
    stats = EmotionDiarizationStats(PUBLISHED, 0.5)
    stats.append(["good", "bad"], [[3, 3], []], [[], [Segment(0, 1, "happy")]], [1.0, 1.0])
    assert written(stats) == (
        "EDER 50.00 %, utterances: 2\n"
        "\nbad: 100.00 %\n  reference: 0.00-1.00 happy\n  predicted: -\n"
        "\ngood: 0.00 %\n  reference: 0.00-1.00 neutral\n  predicted: 0.00-1.00 neutral\n"
    )


def test_a_bad_reference_is_refused_by_its_id():
    stats = EmotionDiarizationStats(PUBLISHED, FRAME)
    with pytest.raises(InputError, match="^Ses01: segment"):
        stats.append(["Ses01"], [[3]], [[Segment(2, 1, "sad")]], [3.0])


def test_rates_of_each_utterance_are_those_of_it_alone():
    log_probs = torch.eye(4)[[3, 3, 2, 2]].log_softmax(-1)
    tokens = CharTokens()
    stats = TransducerStats(tokens, SegmentDecoder(PUBLISHED, 0.5))
    for name, text, segments in (
        ("late", "TEA TWO", [Segment(0.5, 2.0, "sad")]),
        ("unknown", "TEA FOR TWO", None),
    ):
        entry = {"transcript": "TEA FOR TWO", "emotion": "sad", "duration": 2.0}
        hypothesis = Hypothesis(tokens.encode(text), [], log_probs, log_probs[2], 0.0)
        stats.append([name], [hypothesis], [{**entry, "segments": segments}])
    assert stats.by_utterance() == {
        "late": {"WER": pytest.approx(100 / 3), "EDER": pytest.approx(25.0)},
        "unknown": {"WER": 0.0},
    }


def test_a_decoder_of_segments_is_scored_beside_each_frame_by_itself():
    probabilities = torch.tensor([[0.1, 0, 0, 0.9], [0.6, 0, 0, 0.4], [0.4, 0, 0, 0.6]])
    log_probs = probabilities.repeat_interleave(2, 0).clamp(min=1e-6).log()
    entry = {"transcript": "", "emotion": "happy", "duration": 3.0}
    entry["segments"] = [Segment(1.0, 3.0, "happy")]
    hypothesis = Hypothesis([], [], log_probs, log_probs[2], 0.0)
    stats = TransducerStats(None, SegmentDecoder(PUBLISHED, 0.5, "lasting_event", 2.0))
    stats.append(["a"], [hypothesis], [entry])
    assert stats.summarize()["EDER"] == pytest.approx(0)
    assert stats.baselines()["each frame by itself"] == pytest.approx(100 / 3)
    plain = TransducerStats(None, SegmentDecoder(PUBLISHED, 0.5))
    plain.append(["a"], [hypothesis], [entry])
    assert set(plain.baselines()) == {"all neutral", "utterance emotion everywhere"}
