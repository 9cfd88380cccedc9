import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from ent_brain.annotation import Heard
from ent_brain.audio import resample
from ent_brain.windows import count_seconds, join, read_windows

RATE, FRAME = 1000, 40
FRAME_DURATION = FRAME / RATE


def recording(tmp_path, runs, rate=RATE):
    """Write runs of (seconds, loudness) of noise."""
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
    assert count_seconds(path) == 3.9


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
    """Words in time, and windows of 4 s that overlap by 1.2 s, as they would be heard."""
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
    """A window hears all words that are whole in it, and nothing of the others."""
    words, seconds = case
    starts, windows = [], []
    start = 0.0
    while True:
        end = min(start + 4.0, seconds)
        heard = [
            (text, a - start, b - start) for text, a, b in words if start <= a and b < end + 1e-6
        ]
        frames = max(1, round((end - start) / FRAME_DURATION))
        rows = torch.full((frames, 4), 0.25).log()
        labels = [int((start / FRAME_DURATION + i) // 50) % 4 for i in range(frames)]
        starts.append(start)
        windows.append(Heard(end - start, heard, rows, labels, rows[0]))
        if end == seconds:
            break
        start += 2.8
    whole = join(starts, windows, FRAME_DURATION)
    assert [text for text, _, _ in whole.words] == [text for text, _, _ in words]
    for (_, a, b), (_, c, d) in zip(whole.words, words, strict=True):
        assert (a, b) == pytest.approx((c, d), abs=0.01)
    assert whole.seconds == pytest.approx(seconds)
    assert len(whole.labels) == len(whole.frame_log_probs)
    assert len(whole.labels) == pytest.approx(seconds / FRAME_DURATION, abs=2)
    expected = [int(i // 50) % 4 for i in range(len(whole.labels))]
    assert np.mean(np.array(whole.labels) == expected) > 0.9
    torch.testing.assert_close(whole.utterance_log_probs.exp().sum(), torch.tensor(1.0))


def test_windows_without_emotions_have_words():
    windows = [Heard(2.0, [("A", 0.5, 1.0)], None, None, None)] * 2
    whole = join([0.0, 2.0], windows, FRAME_DURATION)
    assert whole == Heard(4.0, [("A", 0.5, 1.0), ("A", 2.5, 3.0)], None, None, None)
