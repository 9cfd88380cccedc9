"""Altered copies of recordings: other rooms, noises, telephone bands and levels.

The name of a copy alone seeds its alterations. A copy is the same in every epoch, process and
training, so its features can be cached.
"""

import hashlib

import torch
from speechbrain.augment.time_domain import pink_noise_like
from speechbrain.processing.signal_processing import reverberate
from torchaudio.functional import (
    highpass_biquad,
    lowpass_biquad,
    mu_law_decoding,
    mu_law_encoding,
    resample,
)

FORMAT = 1
"""Version of the alterations. Raise it whenever copies change, because older features may be
cached."""

REVERBERATED, NOISY, NARROW = 0.4, 0.6, 0.4
"""Shares of the copies that get a room, noise and a telephone band. The three are independent."""

DECAY = (0.15, 0.8)
"""Range of a room's reverberation time (60 dB) in s."""

DIRECT = (-3.0, 12.0)
"""Range of a room's direct-to-reverberant energy ratio in dB."""

NOISE = (5.0, 30.0)
"""Range of the signal-to-noise ratio in dB."""

SLOPES = (0.0, 0.5)
"""Exponents of 1 / frequency in the noise's amplitude: white and pink noise."""

TELEPHONE_RATE = 8000
"""Sample rate of a telephone line in Hz."""

TELEPHONE_BAND = (300.0, 3400.0)
"""Pass band in Hz of half of the telephone copies. The other half has the full band of 8 kHz."""

LEVELS = (-38.0, -14.0)
"""Range of a copy's root mean square in dB of full scale."""

LEAST_POWER = 1e-12
"""Lower bound of a recording's power, so that the level of digital silence is finite."""


def alter(wav, sample_rate, name):
    """Make an altered copy of a recording.

    Arguments
    ---------
    wav : Tensor
        [S] samples from -1 to 1.
    sample_rate : int
        Hz, above 8,000.
    name : str
        The same name gives the same alterations.

    Returns
    -------
    Tensor
        [S] samples from -1 to 1, at the same times.

    Example
    -------
    >>> wav = 0.1 * torch.sin(torch.arange(16000) / 20)
    >>> first, again, second = (alter(wav, 16000, name) for name in ("a 1", "a 1", "a 2"))
    >>> first.shape, torch.equal(first, again), torch.equal(first, second)
    (torch.Size([16000]), True, False)
    """
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        has_room, has_noise, is_narrow = (torch.rand(3) < torch.tensor(_SHARES)).tolist()
        altered = wav[None]
        if has_room:
            room = make_room(_draw(DECAY), _draw(DIRECT), sample_rate)
            altered = reverberate(altered, room)
        if has_noise:
            slope = SLOPES[int(torch.randint(len(SLOPES), ()))]
            altered = add_noise(altered, _draw(NOISE), slope, sample_rate)
        if is_narrow:
            altered = narrow(altered, sample_rate, bool(torch.rand(()) < 0.5))
        gain = 10 ** (_draw(LEVELS) / 20) / _power(altered).sqrt()
        return (altered * gain).clamp(-1, 1)[0]


_SHARES = (REVERBERATED, NOISY, NARROW)


def _draw(limits):
    low, high = limits
    return low + (high - low) * float(torch.rand(()))


def _power(wavs):
    return wavs.square().mean().clamp(min=LEAST_POWER)


def make_room(decay, direct, sample_rate):
    """Draw a room's impulse response: the direct sound, then noise that decays exponentially.

    Arguments
    ---------
    decay : float
        Reverberation time in s: the tail loses 60 dB in it.
    direct : float
        Direct-to-reverberant energy ratio in dB.
    sample_rate : int

    Returns
    -------
    Tensor
        [S]
    """
    time = torch.arange(1, int(decay * sample_rate)) / sample_rate
    tail = torch.randn(len(time)) * 10 ** (-3 * time / decay)
    tail *= 10 ** (-direct / 20) / tail.square().sum().sqrt()
    # The direct sound must be the largest sample: ``reverberate`` aligns by it.
    return torch.cat((torch.ones(1), tail.clamp(-0.99, 0.99)))


def add_noise(wavs, ratio, slope, sample_rate):
    """Add noise to a waveform [1, S] at a signal-to-noise ratio in dB; ``slope`` is of SLOPES."""
    noise = pink_noise_like(wavs, slope, slope, sample_rate)
    scale = (_power(wavs) / _power(noise)).sqrt() * 10 ** (-ratio / 20)
    return wavs + scale * noise


def narrow(wavs, sample_rate, is_filtered):
    """Simulate a telephone line for a waveform [1, S]: 8 kHz, 8-bit mu-law.

    Arguments
    ---------
    wavs : Tensor
    sample_rate : int
    is_filtered : bool
        Whether the line passes only 300 to 3,400 Hz.

    Returns
    -------
    Tensor
        [1, S] at the same sample rate.
    """
    line = resample(wavs, sample_rate, TELEPHONE_RATE)
    if is_filtered:
        low, high = TELEPHONE_BAND
        for _ in range(2):  # 24 dB an octave
            line = highpass_biquad(line, TELEPHONE_RATE, low)
            line = lowpass_biquad(line, TELEPHONE_RATE, high)
    # Full scale, so that the quantisation noise does not depend on the recording's level.
    peak = line.abs().max().clamp(min=LEAST_POWER)
    line = peak * mu_law_decoding(mu_law_encoding(line / peak, 256), 256)
    return resample(line, TELEPHONE_RATE, sample_rate)[:, : wavs.size(1)]
