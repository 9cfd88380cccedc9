from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ent_brain.speech import _probabilities, find_speech, highest_frequency

RATE = 16000


@pytest.fixture(scope="module")
def spoken(ravdess):
    """A sentence, 3.5 s, with silence around it."""
    path = sorted(ravdess.rglob("*.flac"))[87]
    return torch.from_numpy(read(path))


def colored(exponent, seconds=10):
    generator = np.random.default_rng(0)
    spectrum = generator.normal(size=(2, seconds * RATE // 2 + 1))
    frequencies = np.maximum(np.arange(spectrum.shape[1]) / seconds, 20)
    return np.fft.irfft((spectrum[0] + 1j * spectrum[1]) * frequencies ** (-exponent / 2))


TIME = np.arange(10 * RATE) / RATE
NO_SPEECH = {
    "silence": 0 * TIME,
    "white": colored(0),
    "pink": colored(1),
    "brown": colored(2),
    "hum": sum(np.sin(2 * np.pi * 50 * k * TIME) / k for k in range(1, 8)),
    "offset": 1 + 0 * TIME,
    "clicks": (np.arange(len(TIME)) % 3777 == 0).astype(float),
    "breathing": colored(1) * np.maximum(0, np.sin(2 * np.pi * 0.3 * TIME)) ** 2,
}


def test_a_shout_is_speech(ravdess):
    paths = list(ravdess.glob("Actor_06/03-01-0[345]-02-*.flac"))  # strong emotions, a high voice
    assert paths
    for path in paths:
        regions = find_speech([torch.from_numpy(read(path))]).regions
        assert sum(end - first for first, end in regions) > 0.9 * RATE
        assert 0.3 < regions[0][0] / RATE < 1.5
        assert regions[-1][1] / RATE > 1.5


def read(path):
    return soundfile.read(path, dtype="float32")[0]


@pytest.mark.parametrize("level", [-60, -40, -20, 0])
@pytest.mark.parametrize("kind", NO_SPEECH)
def test_no_speech_is_found_where_nobody_speaks(kind, level):
    wav = NO_SPEECH[kind] / max(np.abs(NO_SPEECH[kind]).max(), 1e-9) * 10 ** (level / 20)
    assert find_speech([torch.from_numpy(wav).float()]).regions == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_steps_at_once_are_what_silero_vad_gives_step_by_step(spoken):
    data = Path(find_spec("silero_vad").submodule_search_locations[0]) / "data"
    wav = spoken[: len(spoken) // 512 * 512]
    model = torch.jit.load(data / "silero_vad.jit")
    expected = [model(step, RATE).item() for step in wav.split(512)]
    steps = torch.nn.functional.pad(wav, (64, 0)).unfold(0, 576, 512)
    found, _, _ = _probabilities(steps)
    assert max(expected) > 0.9
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("gain", [-40, -20, 6, 20])
def test_level_offset_and_blocks_change_no_region(spoken, gain):
    regions = find_speech([spoken]).regions
    assert 0.5 < sum(end - start for start, end in regions) / RATE < 3.0
    other = (spoken + 0.1) * 10 ** (gain / 20)
    assert find_speech(other.split(777)).regions == regions


def test_the_band_of_speech_is_measured(spoken):
    assert highest_frequency(find_speech([spoken]).spectrum) > 6000
    spectrum = torch.fft.rfft(spoken)
    spectrum[int(len(spectrum) * 3400 / 8000) :] = 0
    narrow = torch.fft.irfft(spectrum, len(spoken))
    assert 3000 < highest_frequency(find_speech([narrow]).spectrum) < 3700
