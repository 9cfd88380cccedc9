"""Altered copies, measured with SciPy and by hand."""

import numpy as np
import pytest
import scipy.signal
import torch

from ent_brain.augment import add_noise, alter, make_room, narrow

RATE = 16000


@pytest.fixture
def speech():
    """Three seconds of noise with the rhythm of syllables."""
    torch.manual_seed(3)
    time = torch.arange(3 * RATE) / RATE
    return 0.1 * torch.randn(3 * RATE) * (1 + torch.sin(2 * torch.pi * 4 * time))


def level(samples):
    return 10 * np.log10(np.mean(np.square(np.asarray(samples, dtype=float))))


def share_above(samples, hertz):
    """Share of the power above a frequency in dB."""
    frequencies, power = scipy.signal.welch(np.asarray(samples, dtype=float), RATE, nperseg=1024)
    return 10 * np.log10(power[frequencies > hertz].sum() / power.sum())


def test_a_copy_depends_on_its_name_alone_and_leaves_the_generator_as_it_was(speech):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    copies = [alter(speech, RATE, f"utterance {number}") for number in range(8)]
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    for number, copy in enumerate(copies):
        assert torch.equal(alter(speech, RATE, f"utterance {number}"), copy)
        assert copy.shape == speech.shape
        assert copy.abs().max() <= 1
        assert -38.5 < level(copy) < -13.5
    assert len({tuple(copy[:9].tolist()) for copy in copies}) == 8


def test_copies_are_where_the_recording_is(speech):
    """Neither a room nor a telephone line shifts the words."""
    speech = torch.nn.functional.pad(speech[:RATE], (RATE, RATE))
    for number in range(12):
        copy = alter(speech, RATE, str(number))
        envelopes = [np.convolve(s.abs().numpy(), np.ones(800), "same") for s in (speech, copy)]
        smooth = [e - e.mean() for e in envelopes]
        lag = scipy.signal.correlate(smooth[1], smooth[0]).argmax() - (len(speech) - 1)
        assert abs(lag) < 0.12 * RATE, number


def test_silence_stays_finite():
    assert all(alter(torch.zeros(RATE), RATE, str(n)).isfinite().all() for n in range(10))


def test_a_room_decays_as_it_is_told(speech):
    torch.manual_seed(0)
    room = make_room(0.5, 3.0, RATE).double().numpy()
    assert 10 * np.log10(room[0] ** 2 / np.square(room[1:]).sum()) == pytest.approx(3, abs=0.2)
    # Schroeder's backward integration, from -5 to -25 dB.
    left = 10 * np.log10(np.cumsum(np.square(room[1:])[::-1])[::-1] / np.square(room[1:]).sum())
    seconds = (np.argmax(left < -25) - np.argmax(left < -5)) / RATE
    assert 3 * seconds == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize(("slope", "decibels"), [(0.0, 0), (0.5, 3)])
def test_noise_has_its_level_and_its_colour(speech, slope, decibels):
    torch.manual_seed(0)
    noise = add_noise(speech[None], 10.0, slope, RATE)[0] - speech
    assert level(speech) - level(noise) == pytest.approx(10, abs=0.05)
    frequencies, power = scipy.signal.welch(noise.double().numpy(), RATE, nperseg=4096)
    octaves = [
        10 * np.log10(power[(frequencies >= low) & (frequencies < 2 * low)].mean())
        for low in (500, 1000, 2000)
    ]
    assert np.diff(octaves) == pytest.approx(-decibels, abs=0.7)


def test_a_line_has_the_band_of_a_telephone(speech):
    plain, filtered = (narrow(speech[None], RATE, how)[0] for how in (False, True))
    assert share_above(speech, 4200) > -4
    assert share_above(plain, 4200) < -20
    assert share_above(filtered, 3900) < share_above(plain, 3900)
    tone = torch.sin(2 * torch.pi * 100 * torch.arange(RATE) / RATE)
    assert level(narrow(0.1 * tone[None], RATE, True)[0]) < level(0.1 * tone) - 30
    assert level(narrow(0.1 * tone[None], RATE, False)[0]) == pytest.approx(
        level(0.1 * tone), abs=0.3
    )
