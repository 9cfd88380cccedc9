"""Level of speech. Recordings are brought to one level, so that their gain changes no result."""

import torch

STEP = 0.02
"""Seconds over which power is measured."""

MARGIN = 15.9
"""Difference in dB between the level of active speech and the threshold of activity (P.56)."""


def step_powers(wav, sample_rate):
    """Mean power of each 20 ms of samples [S], float64 [S / 20 ms], rounded up."""
    step = round(STEP * sample_rate)
    padded = torch.nn.functional.pad(wav, (0, -len(wav) % step))
    return padded.view(-1, step).double().square().mean(1)


def step_means(wav, sample_rate):
    """Mean of each 20 ms of samples [S], float64 [S / 20 ms], rounded up."""
    step = round(STEP * sample_rate)
    return torch.nn.functional.pad(wav, (0, -len(wav) % step)).view(-1, step).double().mean(1)


def active_level(powers):
    """Measure the level of the active speech in a recording, without its pauses.

    The method follows ITU-T P.56, method B, with steps of 20 ms instead of its envelope. Steps are
    active if they exceed a threshold that lies 15.9 dB below the mean power of the active steps.
    The highest such threshold is used, so that long faint noise does not become active.

    Arguments
    ---------
    powers : Tensor
        [N] from ``step_powers``.

    Returns
    -------
    float
        dB of full scale; -inf for silence.

    Example
    -------
    >>> tone = 0.1 * torch.sin(torch.arange(16000) * 0.3)
    >>> round(active_level(step_powers(tone, 16000)), 1)
    -23.0
    >>> with_pause = torch.cat((torch.zeros(16000), tone))
    >>> round(active_level(step_powers(with_pause, 16000)), 1)
    -23.0
    """
    loudest_first = powers.sort(descending=True).values
    levels = 10 * (loudest_first.cumsum(0) / torch.arange(1, len(powers) + 1)).log10()
    # The first step that is this far below the mean of all louder ones is not active.
    quiet = levels - 10 * loudest_first.log10() >= MARGIN
    last = int(quiet.nonzero()[0]) - 1 if quiet.any() else -1
    return float(levels[last])


def gain(powers, level):
    """Factor that brings active speech to a level in dB of full scale; 1 for silence."""
    measured = active_level(powers)
    return 1.0 if measured == -torch.inf else 10 ** ((level - measured) / 20)


def bring_to_level(wav, sample_rate, level):
    """Scale samples [S] so that active speech has a level in dB of full scale; None: unchanged."""
    return wav if level is None else wav * gain(step_powers(wav, sample_rate), level)
