from itertools import groupby, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ent_brain.emotions import PUBLISHED
from ent_brain.errors import InputError
from ent_brain.segments import (
    ROUNDING,
    SEGMENT_DECODINGS,
    Segment,
    SegmentDecoder,
    end_at,
    fill_neutral,
    segments_from_frames,
)

labels = st.lists(st.integers(0, 3), min_size=1, max_size=200)
frame_durations = st.sampled_from([0.02, 0.01, 0.1, 1 / 3])


@given(labels, frame_durations)
def test_segments_give_the_frames_back(labels, frame_duration):
    segments = segments_from_frames(labels, frame_duration, PUBLISHED)
    for index, label in enumerate(labels):
        middle = (index + 0.5) * frame_duration
        covering = [s for s in segments if s.start <= middle < s.end]
        assert [s.emotion for s in covering] == [PUBLISHED.names[label]]


@given(labels, frame_durations)
def test_segments_of_frames_are_gapless_and_alternate(labels, frame_duration):
    segments = segments_from_frames(labels, frame_duration, PUBLISHED)
    assert segments[0].start == 0
    assert segments[-1].end == len(labels) * frame_duration
    for before, after in zip(segments, segments[1:], strict=False):
        assert before.end == after.start
        assert before.emotion != after.emotion


def test_times_do_not_drift():
    segments = segments_from_frames([0, 1] * 50_000, 0.1, PUBLISHED)
    assert segments[-1] == Segment(99_999 * 0.1, 100_000 * 0.1, "angry")


def test_no_frames_are_no_segments():
    assert segments_from_frames([], 0.02, PUBLISHED) == []


@given(labels, frame_durations, st.floats(0, 5))
def test_filling_restores_what_only_the_emotional_segments_tell(labels, frame_duration, silence):
    segments = segments_from_frames(labels, frame_duration, PUBLISHED)
    duration = segments[-1].end + silence
    emotional = [s for s in segments if s.emotion != "neutral"]
    cover = fill_neutral(emotional, duration, PUBLISHED)
    assert [s for s in cover if s.emotion != "neutral"] == emotional
    assert cover[0].start == 0
    assert cover[-1].end == duration
    assert all(a.end == b.start for a, b in zip(cover, cover[1:], strict=False))
    assert all(s.start < s.end for s in cover)
    assert fill_neutral(cover, duration, PUBLISHED) == cover


def test_nothing_emotional_is_all_neutral():
    assert fill_neutral([], 2.5, PUBLISHED) == [Segment(0.0, 2.5, "neutral")]


def test_a_rounded_end_is_cut_at_the_duration():
    cover = fill_neutral([Segment(1.0, 3.0 + ROUNDING / 2, "sad")], 3.0, PUBLISHED)
    assert cover == [Segment(0.0, 1.0, "neutral"), Segment(1.0, 3.0, "sad")]


@pytest.mark.parametrize(
    "segments",
    [
        [Segment(1, 2, "sad"), Segment(1.5, 3, "happy")],
        [Segment(2, 3, "sad"), Segment(0, 1, "happy")],
        [Segment(-0.1, 1, "sad")],
        [Segment(1, 1, "sad")],
        [Segment(2, 1, "sad")],
        [Segment(3, 4.2, "sad")],
        [Segment(4.01, 4.02, "sad")],
        [Segment(float("nan"), 2, "sad")],
        [Segment(1, float("nan"), "sad")],
        [Segment(1, 2, "hap")],
    ],
)
def test_segments_that_cannot_be_are_refused(segments):
    with pytest.raises(InputError, match="segment"):
        fill_neutral(segments, 4.0, PUBLISHED)


@pytest.mark.parametrize("duration", [0, -1.0, float("nan")])
def test_a_recording_has_a_duration(duration):
    with pytest.raises(InputError, match="duration"):
        fill_neutral([], duration, PUBLISHED)


@given(labels, frame_durations, st.floats(0.01, 1.5))
def test_segments_end_where_the_recording_ends(labels, frame_duration, share):
    duration = max(share * len(labels) * frame_duration, 1e-3)
    segments = segments_from_frames(labels, frame_duration, PUBLISHED)
    ended = end_at(segments, duration)
    assert ended[-1].end == duration
    assert all(segment.start < segment.end for segment in ended)
    assert [s.emotion for s in ended] == [s.emotion for s in segments if s.start < duration]


def random_log_probs(frames, seed):
    torch.manual_seed(seed)
    return (2 * torch.randn(frames, 4)).log_softmax(-1)


def lasting(frames, shortest):
    """All labels in which every run has at least ``shortest`` frames, or is the only run."""
    for labels in product(range(4), repeat=frames):
        runs = [len(list(run)) for _, run in groupby(labels)]
        if len(runs) == 1 or min(runs) >= shortest:
            yield labels


def one_event(frames):
    """All labels of the form neutral, one emotion, neutral."""
    for emotion, start, end in product(range(4), range(frames + 1), range(frames + 1)):
        if start <= end:
            yield (*[3] * start, *[emotion] * (end - start), *[3] * (frames - end))


@pytest.mark.parametrize("frames", range(1, 7))
@pytest.mark.parametrize("seed", range(3))
def test_sequences_of_labels_are_the_most_probable_of_all(frames, seed):
    log_probs = random_log_probs(frames, seed)

    def most_probable(sequences):
        return list(max(sequences, key=lambda labels: log_probs[range(frames), labels].sum()))

    assert SegmentDecoder(PUBLISHED, 0.1).labels(log_probs) == most_probable(
        product(range(4), repeat=frames)
    )
    for shortest in (1, 2, 3):
        found = SegmentDecoder(PUBLISHED, 0.1, "min_duration", shortest * 0.1).labels(log_probs)
        assert found == most_probable(lasting(frames, shortest))
        found = SegmentDecoder(PUBLISHED, 0.1, "lasting_event", shortest * 0.1).labels(log_probs)
        assert found == most_probable(
            labels
            for labels in one_event(frames)
            if sum(label != 3 for label in labels) >= min(shortest, frames)
        )
    assert SegmentDecoder(PUBLISHED, 0.1, "single_event").labels(log_probs) == most_probable(
        one_event(frames)
    )


@pytest.mark.parametrize("frames", range(1, 7))
@pytest.mark.parametrize("told", range(3))
def test_an_event_may_be_told_apart_from_when_it_is(frames, told):
    log_probs = random_log_probs(frames, seed=told)
    decoder = SegmentDecoder(PUBLISHED, 0.1, "lasting_event", 0.2)
    events = decoder.events(log_probs)
    assert set(events) == {0, 1, 2}
    for emotion, (start, end) in events.items():
        labels = [3] * start + [emotion] * (end - start) + [3] * (frames - end)
        assert labels == max(
            (
                list(labels)
                for labels in one_event(frames)
                if labels.count(emotion) >= min(2, frames) and set(labels) <= {emotion, 3}
            ),
            key=lambda labels: log_probs[range(frames), labels].sum(),
        )
    of_events = torch.full((4,), -2.0)
    of_events[told], of_events[3] = -1.0, 0.0
    start, end = events[told]
    labels = [3] * start + [told] * (end - start) + [3] * (frames - end)
    assert decoder.labels(log_probs, of_events) == labels
    plain = SegmentDecoder(PUBLISHED, 0.1)
    assert plain.labels(log_probs, of_events) == plain.labels(log_probs)


def test_the_median_forgets_short_runs_and_keeps_borders():
    happy = torch.full((20,), 0.1)
    happy[3], happy[10:] = 0.9, 0.9
    other = torch.full_like(happy, 1e-3)
    log_probs = torch.stack((happy, other, other, 1 - happy), 1).log()
    assert SegmentDecoder(PUBLISHED, 0.1, "median", 0.5).labels(log_probs) == [3] * 10 + [0] * 10


@pytest.mark.parametrize("decoding", SEGMENT_DECODINGS)
def test_no_frames_have_no_emotions(decoding):
    assert SegmentDecoder(PUBLISHED, 0.02, decoding).segments(torch.zeros(0, 4)) == []


def test_an_unknown_segment_decoding_is_refused():
    with pytest.raises(ValueError, match="'mode': use one of argmax, median, min_duration"):
        SegmentDecoder(PUBLISHED, 0.02, "mode")
