"""Detection of speech in recordings, and of its bandwidth, with silero-vad's model."""

import warnings
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import conv1d, interpolate, pad

from ent_brain.manifest import SAMPLE_RATE

STEP, CONTEXT = 512, 64
"""Samples in a step of silero-vad, and samples before the step that the model also takes."""

STEPS_AT_ONCE = 313
"""Number of steps (10 s) that are brought to one level and computed together."""

OCTAVE = 2
"""Factor by which a recording is slowed down to be heard a second time, an octave lower. silero-vad
misses most of some shouts and high voices, but finds them then."""

LASTING = 9
"""Number of steps (0.3 s) for the median of the power, so that a click is not the loudest sound."""

LEVEL, FAINTEST = -25.0, -140.0
"""Levels in dB of full scale. The loudest sound of some 20 s is brought to the first. Sound below
the second counts as silence."""

STARTS, LASTS = 0.5, 0.35
"""Probability at which a speech region starts, and probability above which it continues."""

MARGIN = 0.1
"""Time in seconds at both ends of a region that may also contain speech. Regions do not include it,
because pauses are compared by their length."""

BREAK = 0.5
"""Time in seconds between two regions up to which the frames between them count as speech."""

AROUND = 1.0
"""Time in seconds before and after speech that the model also hears."""

BAND_FLOOR = -50.0
"""Level in dB, relative to the strongest frequency of speech, below which a frequency counts as
empty. Measured above 6 kHz: speech on wideband -46 to -11, and of a rate of 8 kHz -65 to -46."""

NARROW = 6000.0
"""Bandwidth of speech in Hz below which a wideband model recognises words worse."""


class Speech(NamedTuple):
    """Properties of the speech in a recording."""

    regions: list[tuple[int, int]]
    """First sample, and sample after the last, at 16 kHz; in order, without overlaps."""
    seconds: float
    """Total duration of the steps with speech; shorter than the regions together."""
    samples: int
    """Length of the recording in samples."""
    spectrum: np.ndarray
    """[129] mean power of the steps with speech, from 0 to 8 kHz; zeros without speech."""

    def spoken_frames(self, count, step):
        """Whether each frame of ``step`` samples has speech or a short break in it ([count])."""
        spoken, margin = np.zeros(count, dtype=bool), round(MARGIN * SAMPLE_RATE)
        before = None
        for first, end in self.regions:
            if before is not None and first - before < BREAK * SAMPLE_RATE:
                first = before
            before = end
            spoken[max(0, first - margin) // step : -(-(end + margin) // step)] = True
        return spoken

    def stretches(self):
        """Regions with ``AROUND`` seconds around them, joined if they touch: (start, end)."""
        around, stretches = round(AROUND * SAMPLE_RATE), []
        for first, end in self.regions:
            first, end = max(0, first - around), min(end + around, self.samples)
            if stretches and first <= stretches[-1][1]:
                first = stretches.pop()[0]
            stretches.append((first, end))
        return stretches


@lru_cache(maxsize=1)
def _weights():
    # The package is not imported, because its import sets the number of torch's threads to 1.
    folder = Path(find_spec("silero_vad").submodule_search_locations[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the wheel's file is TorchScript
        model = torch.jit.load(folder / "data" / "silero_vad.jit", map_location="cpu")._model
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    lstm = torch.nn.LSTM(128, 128, batch_first=True)
    lstm.load_state_dict(
        {f"{key}_l0": weights[f"decoder.rnn.{key}"] for key in torch.nn.LSTMCell(1, 1).state_dict()}
    )
    return weights, lstm.eval()


@torch.no_grad()
def _probabilities(steps, state=None):
    """Probability that each step is speech, the model's state, and the power spectra.

    This runs silero-vad's network on many steps together, some ten times faster than step by step.

    Arguments
    ---------
    steps : Tensor
        [T, CONTEXT + STEP]
    state : tuple of Tensor, optional
        State after the steps before.

    Returns
    -------
    (Tensor, tuple of Tensor, Tensor)
        Probabilities [T], the state, and power spectra [T, 129].
    """
    weights, lstm = _weights()
    hidden = pad(steps, (0, CONTEXT), "reflect")[:, None]
    hidden = conv1d(hidden, weights["stft.forward_basis_buffer"], stride=128)
    power = hidden.unflatten(1, (2, -1)).square().sum(1)
    hidden = power.sqrt()
    for layer, stride in enumerate((1, 2, 2, 1)):
        name = f"encoder.{layer}.reparam_conv"
        bias = weights[f"{name}.bias"]
        hidden = conv1d(hidden, weights[f"{name}.weight"], bias, stride, padding=1).relu()
    hidden, state = lstm(hidden.mT.transpose(0, 1).flatten(0, 1)[None], state)
    logits = conv1d(
        hidden.mT.relu(), weights["decoder.decoder.2.weight"], weights["decoder.decoder.2.bias"]
    )
    return logits.flatten().sigmoid(), state, power.mean(2)


def find_speech(blocks):
    """Find the speech in a recording of any level and offset.

    Arguments
    ---------
    blocks : iterable of Tensor
        The recording's samples at 16 kHz in blocks of any length, float32 [S] on the CPU. Some 10 s
        stay in memory.

    Returns
    -------
    Speech

    Example
    -------
    >>> find_speech([torch.zeros(16000)]).regions
    []
    """
    probabilities, spectrum, before, total = [], np.zeros(129), None, 0
    state = lower_state = None
    context = lower_context = torch.zeros(CONTEXT)
    for wav in _of_equal_length(blocks):
        total += len(wav)
        wav = pad(wav, (0, -len(wav) % STEP))
        steps, context = _cut(wav, context)
        level = _loudest(steps.square().mean(1))
        loudest = max(level, before or level, 10 ** (FAINTEST / 10))
        before = level
        gain = (10 ** (LEVEL / 10) / loudest) ** 0.5
        found, state, power = _probabilities(steps * gain, state)
        lower = interpolate(wav[None, None], scale_factor=OCTAVE, mode="linear")[0, 0]
        steps, lower_context = _cut(lower, lower_context)
        of_lower, lower_state, _ = _probabilities(steps * gain, lower_state)
        found = found.maximum(of_lower.view(-1, OCTAVE).amax(1))
        probabilities.append(found.numpy())
        spectrum += power[found >= STARTS].sum(0).numpy()
    probabilities = np.concatenate(probabilities) if probabilities else np.zeros(0)
    count = int((probabilities >= STARTS).sum())
    regions = _regions(probabilities, total)
    return Speech(regions, count * STEP / SAMPLE_RATE, total, spectrum / max(count, 1))


def highest_frequency(spectrum):
    """Compute the highest frequency (float, Hz) with speech power from ``Speech.spectrum``.

    Example
    -------
    >>> highest_frequency(np.array([1.0] * 65 + [1e-9] * 64))
    4000.0
    """
    used = np.flatnonzero(spectrum > spectrum.max() * 10 ** (BAND_FLOOR / 10))
    return float(used.max(initial=0) * SAMPLE_RATE / 2 / (len(spectrum) - 1))


def _cut(wav, context):
    """Cut samples into steps [T, CONTEXT + STEP] without offset; and the next ``context``."""
    wav = torch.cat((context, wav))
    steps = wav.unfold(0, CONTEXT + STEP, STEP)
    return steps - steps.mean(1, keepdim=True), wav[-CONTEXT:]


def _of_equal_length(blocks, size=STEPS_AT_ONCE * STEP):
    """Yield the samples of blocks in blocks of ``size``; the last one may be shorter."""
    waiting = torch.zeros(0)
    for block in blocks:
        waiting = torch.cat((waiting, block))
        while len(waiting) >= size:
            yield waiting[:size]
            waiting = waiting[size:]
    if len(waiting):
        yield waiting


def _loudest(power):
    """Power of the loudest lasting sound, from the power of steps [T]."""
    edge = LASTING // 2
    power = pad(power[None], (edge, edge), "replicate")[0]
    return float(power.unfold(0, LASTING, 1).median(1).values.max())


def _regions(probabilities, total):
    """Speech regions from the probabilities of steps [T]: a list of (first sample, end)."""
    edges = np.flatnonzero(np.diff([False, *(probabilities >= LASTS), False])).reshape(-1, 2)
    regions = []
    for first, end in edges.tolist():
        if probabilities[first:end].max() < STARTS:
            continue
        regions.append((first * STEP, min(end * STEP, total)))
    return regions
