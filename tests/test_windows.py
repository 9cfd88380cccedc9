import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ent_brain.annotation import Heard
from ent_brain.audio import resample, scan_audio
from ent_brain.windows import Window, cut, in_batches, join, read_windows

RATE, FRAME = 1000, 40
FRAME_DURATION = FRAME / RATE


def recording(tmp_path, runs, rate=RATE):
    """Write noise in runs of (seconds, loudness)."""
    generator = np.random.default_rng(0)
    wav = np.concatenate(
        [loudness * generator.uniform(-1, 1, round(seconds * rate)) for seconds, loudness in runs]
    )
    soundfile.write(tmp_path / "a.wav", wav, rate, subtype="FLOAT")
    return tmp_path / "a.wav", torch.from_numpy(wav).float()


def windows_of(path, longest):
    return list(read_windows(path, RATE, longest, FRAME))


def test_a_short_recording_is_one_window(tmp_path):
    path, wav = recording(tmp_path, [(3.9, 0.5)])
    [window] = windows_of(path, 4.0)
    assert window.start == 0
    torch.testing.assert_close(window.wav, wav)
    assert scan_audio(path).seconds == 3.9


def test_windows_part_in_the_pauses_and_nothing_is_heard_twice(tmp_path):
    path, wav = recording(tmp_path, [(1.8, 0.5), (0.4, 0.0)] * 20)
    windows = windows_of(path, 4.0)
    assert len(windows) >= 20
    torch.testing.assert_close(torch.cat([window.wav for window in windows]), wav)
    for window in windows:
        assert window.start % FRAME == 0
        assert len(window.wav) <= 4.0 * RATE
    for window in windows[1:]:
        into_period = window.start / RATE % 2.2
        assert 1.8 <= into_period <= 2.2 or into_period == 0


def test_without_pauses_windows_overlap_and_cover_all(tmp_path):
    path, wav = recording(tmp_path, [(33.0, 0.5)])
    windows = windows_of(path, 4.0)
    reached = 0
    for window in windows:
        assert window.start <= reached, "a gap"
        torch.testing.assert_close(window.wav, wav[window.start : window.start + len(window.wav)])
        reached = window.start + len(window.wav)
    assert reached == len(wav)
    overlaps = [a.start + len(a.wav) - b.start for a, b in zip(windows, windows[1:], strict=False)]
    assert min(overlaps) >= 0.25 * 4.0 * RATE


@pytest.mark.parametrize("rate", [800, 1500, 4410, 4411])
def test_other_rates_are_resampled_as_in_one_piece(tmp_path, rate):
    path, wav = recording(tmp_path, [(1.8, 0.5), (0.4, 0.0)] * 12, rate)
    heard = torch.cat([window.wav for window in windows_of(path, 4.0)])
    whole = torch.from_numpy(resample(wav.numpy(), rate, RATE))
    torch.testing.assert_close(heard, whole, rtol=0, atol=1e-3)


@st.composite
def spoken(draw):
    """Words with times, and the words in windows of 4 s that overlap by 1.2 s."""
    gaps = draw(st.lists(st.floats(0.0, 0.5), min_size=1, max_size=60))
    lengths = draw(st.lists(st.floats(0.1, 0.6), min_size=len(gaps), max_size=len(gaps)))
    words, clock = [], 0.0
    for index, (gap, length) in enumerate(zip(gaps, lengths, strict=True)):
        word = "ABC"[index % 3] * draw(st.integers(1, 2))
        words.append((word, clock + gap, clock + gap + length))
        clock += gap + length
    return words, clock


@given(spoken())
def test_words_of_overlapping_windows_are_joined_without_loss_or_double(case):
    """A window contains all words that lie completely within it, and no others."""
    words, seconds = case
    total = round(seconds * RATE)
    spans = [(0, min(4000, total))]
    while spans[-1][1] < total:
        start = spans[-1][0] + 2800
        spans.append((start, min(start + 4000, total)))
    whole = joined(spans, "k", words)
    assert [text for text, _, _ in whole.words] == [text for text, _, _ in words]
    for (_, a, b), (_, c, d) in zip(whole.words, words, strict=True):
        assert (a, b) == pytest.approx((c, d), abs=0.01)
    assert whole.seconds == total / RATE
    torch.testing.assert_close(whole.utterance_log_probs.exp().sum(), torch.tensor(1.0))


LAWS = {
    "k-1": lambda samples, frame: max(0, (samples - 5 * frame // 4) // frame + 1),  # SSL models
    "k": lambda samples, frame: -(-samples // frame),
    "k+1": lambda samples, frame: samples // frame + 1,  # log-mel energies
}
"""Number of rows of a recording or a window, from its samples and the samples per frame."""


def joined(spans, law, words=(), frame=FRAME, rate=RATE):
    """Result of ``join`` for a model whose row and label at frame t of the recording are t."""
    results = []
    for start, end in spans:
        own = [
            (text, a - start / rate, b - start / rate)
            for text, a, b in words
            if start / rate <= a and b <= end / rate + 1e-3
        ]
        rows = torch.arange(LAWS[law](end - start, frame)) + start // frame
        quarters = torch.full((4,), 0.25).log()
        results.append(Heard((end - start) / rate, own, rows[:, None], rows.tolist(), quarters))
    return join(spans, results, rate, frame, LAWS[law](spans[-1][1], frame))


def frames_of(whole):
    """Frame of the recording from which each joined row comes."""
    frames = whole.frame_log_probs[:, 0].tolist()
    assert whole.labels == frames
    return frames


@st.composite
def cuts(draw):
    """Windows that start at a frame and cover a recording, cut in pauses or overlapping."""
    frame = draw(st.sampled_from([4, 20, 320]))
    end, spans = 0, []
    for _ in range(draw(st.integers(2, 12))):
        overlap = draw(st.integers(0, 12)) * draw(st.booleans())
        start = max(0, end - overlap, spans[-1][0] // frame + 1 if spans else 0)
        end = max(end, start + 1) + draw(st.integers(1, 40))
        spans.append((start * frame, end * frame))
    spans[-1] = spans[-1][0], spans[-1][1] - draw(st.integers(0, frame - 1))
    return frame, spans


@given(cuts(), st.sampled_from(list(LAWS)))
def test_every_frame_has_the_row_that_one_pass_over_the_whole_would_give(case, law):
    frame, spans = case
    frames = frames_of(joined(spans, law, frame=frame, rate=50 * frame))
    there = {
        start // frame + row for start, end in spans for row in range(LAWS[law](end - start, frame))
    }
    assert frames == [t if t in there else t - 1 for t in range(LAWS[law](spans[-1][1], frame))]
    missing = set(range(len(frames))) - there
    assert len(missing) <= (len(spans) - 1) * (law == "k-1")


def test_an_hour_in_windows_of_8_s_keeps_every_row_of_an_ssl_model_in_its_place():
    spans = [(start, start + 8 * 16000) for start in range(0, 3600 * 16000, 8 * 16000)]
    frames = frames_of(joined(spans, "k-1", frame=320, rate=16000))
    assert len(frames) == 179_999  # one pass: (3600 * 16000 - 400) // 320 + 1
    assert max(t - row for t, row in enumerate(frames)) == 1
    assert sum(t != row for t, row in enumerate(frames)) == 449  # the last frame before each cut
    assert frames_of(joined(spans, "k", frame=320, rate=16000)) == list(range(180_000))
    assert frames_of(joined(spans, "k+1", frame=320, rate=16000)) == list(range(180_001))


@pytest.mark.parametrize("law", LAWS)
def test_a_short_window_in_an_overlap_doubles_neither_frames_nor_words(law):
    spans = [(0, 18000), (12600, 14000), (14000, 32000)]
    words = [(str(i), i * 0.5 + 0.1, i * 0.5 + 0.4) for i in range(64)]
    whole = joined(spans, law, words)
    frames = frames_of(whole)
    assert len(frames) == {"k-1": 799, "k": 800, "k+1": 801}[law]
    assert all(row in (t, t - (law == "k-1" and t == 349)) for t, row in enumerate(frames))
    assert [text for text, _, _ in whole.words] == [text for text, _, _ in words]


@pytest.mark.parametrize("seconds", [2.0, 5.2, 10.0, 12.3, 20.0])
def test_overlaps_of_an_odd_number_of_frames_lose_no_row_and_double_none(seconds):
    """Windows of ten seconds overlap by 75 frames of 40 ms, which is an odd number."""
    most = round(seconds * RATE) // FRAME * FRAME
    step = round(most * 0.7) // FRAME * FRAME
    spans = [(i * step, i * step + most) for i in range(286)]
    for law in LAWS:
        frames = frames_of(joined(spans, law))
        assert frames == list(range(LAWS[law](spans[-1][1], FRAME)))


@settings(max_examples=300, deadline=None)
@given(
    gaps=st.lists(st.tuples(st.integers(1, 900), st.integers(1, 9000)), min_size=1, max_size=8),
    block=st.integers(1, 5000),
    frame=st.sampled_from([160, 320, 640]),
    longest=st.sampled_from([0.25, 1.0, 100.0]),
)
def test_the_windows_of_stretches_hold_what_the_recording_has_there(gaps, block, frame, longest):
    stretches, at = [], 0
    for gap, length in gaps:
        stretches.append((at + gap - 1, at + gap - 1 + length))
        at += gap + length
    recording = torch.arange(at + 500.0)
    covered = torch.zeros(len(recording), dtype=torch.bool)
    for start, wav in cut(recording.split(block), stretches, 16000, longest, frame):
        assert start % frame == 0
        assert torch.equal(wav, recording[start : start + len(wav)])
        covered[start : start + len(wav)] = True
    before = 0
    for first, last in stretches:
        lost = (~covered[first:last]).nonzero()[:, 0] + first
        # A frame that the stretch before has begun is not heard again.
        assert all(sample // frame == before // frame for sample in lost.tolist())
        before = last


def test_a_single_window_in_the_middle_keeps_its_place():
    rows = torch.arange(5)[:, None]
    heard = Heard(0.2, [("A", 0.08, 0.12)], rows, [0, 1, 2, 3, 4], torch.full((4,), 0.25).log())
    whole = join([(400, 600)], [heard], RATE, FRAME, 20)
    assert whole.words == [("A", pytest.approx(0.48), pytest.approx(0.52))]
    assert frames_of(whole) == [0] * 10 + [0, 1, 2, 3, 4] + [4] * 5
    torch.testing.assert_close(whole.utterance_log_probs, heard.utterance_log_probs)


@given(st.lists(st.integers(1, 12)), st.integers(1, 30))
def test_a_batch_has_as_many_windows_as_fit_and_at_least_one(lengths, samples):
    windows = [Window(0, torch.zeros(length)) for length in lengths]
    batches = list(in_batches(iter(windows), samples))
    assert [window for batch in batches for window in batch] == windows
    for index, batch in enumerate(batches):
        sizes = [len(window.wav) for window in batch]
        assert len(batch) == 1 or len(batch) * max(sizes) <= samples
        for following in batches[index + 1 : index + 2]:
            more = [*sizes, len(following[0].wav)]
            assert len(more) * max(more) > samples, "the next window would have fitted"


def test_no_window_ends_within_the_one_before(tmp_path):
    """The speaker gets louder, so speech in the first window is quiet in the second one."""
    path, wav = recording(tmp_path, [(2.9, 0.02), (0.3, 0.0015), (0.8, 0.02), (9.0, 0.9)])
    windows = windows_of(path, 4.0)
    ends = [window.start + len(window.wav) for window in windows]
    assert ends == sorted(set(ends))
    assert ends[-1] == len(wav)


def test_windows_without_emotions_have_words():
    windows = [Heard(2.0, [("A", 0.5, 1.0)], None, None, None)] * 2
    whole = join([(0, 2000), (2000, 4000)], windows, RATE, FRAME, 100)
    assert whole == Heard(4.0, [("A", 0.5, 1.0), ("A", 2.5, 3.0)], None, None, None)
