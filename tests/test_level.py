"""The level of active speech, and front ends that bring recordings to it."""

import math

import pytest
import torch

from ent_brain.level import active_level, bring_to_level, gain, step_powers

RATE = 16000


def _active_level_by_search(powers):
    """Lower the threshold until it lies 15.9 dB below the mean of the steps that exceed it."""
    level = None
    for threshold in sorted(powers, reverse=True):
        active = [power for power in powers if power >= threshold]
        wider = 10 * math.log10(sum(active) / len(active))
        if wider - 10 * math.log10(threshold) >= 15.9:
            break
        level = wider
    return level


@pytest.mark.parametrize("seed", range(5))
def test_active_level_is_the_definitions(seed):
    generator = torch.Generator().manual_seed(seed)
    powers = 10 ** (torch.rand(300, generator=generator, dtype=torch.float64) * 6 - 7)
    assert active_level(powers) == pytest.approx(_active_level_by_search(powers.tolist()))


def test_pauses_and_faint_noise_change_nothing():
    speech = torch.randn(RATE) * 0.1
    noise = torch.randn(9 * RATE) * 1e-4
    alone = active_level(step_powers(speech, RATE))
    assert active_level(step_powers(torch.cat((noise, speech)), RATE)) == pytest.approx(alone)


@pytest.mark.parametrize("decibels", [-40, -6, 6, 20])
def test_gain_is_undone(decibels):
    wav = torch.randn(RATE + 77) * 0.05
    louder = wav * 10 ** (decibels / 20)
    brought = bring_to_level(louder, RATE, -26.0)
    torch.testing.assert_close(brought, bring_to_level(wav, RATE, -26.0), rtol=1e-5, atol=1e-7)
    assert active_level(step_powers(brought, RATE)) == pytest.approx(-26.0, abs=1e-4)


def test_silence_is_left_as_it_is():
    assert gain(step_powers(torch.zeros(500), RATE), -26.0) == 1.0
