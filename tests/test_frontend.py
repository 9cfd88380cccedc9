import copy
import os
import socket
import subprocess
import sys
from importlib import import_module

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ent_brain.frontend import SSL_MODELS, FbankFrontend, SSLFrontend

KINDS = ("wav2vec2", "hubert", "wavlm")
SPEC_AUGMENT = {
    "mask_time_prob": 0.08,
    "mask_time_length": 15,
    "mask_feature_prob": 0.05,
    "mask_feature_length": 12,
}


def padded(*lengths, seed=0):
    """Noise of these sample counts as a batch, with SpeechBrain's relative lengths."""
    generator = torch.Generator().manual_seed(seed)
    alone = [torch.randn(length, generator=generator) / 10 for length in lengths]
    wavs = nn.utils.rnn.pad_sequence(alone, batch_first=True)
    return wavs, torch.tensor(lengths) / max(lengths)


def alone(wavs, wav_lens):
    """Each utterance of a batch as a batch of its own, without padding."""
    for wav, length in zip(wavs, wav_lens, strict=True):
        yield wav[None, : round(float(length) * wavs.size(1))], torch.ones(1)


# --- log-mel energies


def test_log_mel_energies_wait_for_no_import_of_transformers():
    program = "import ent_brain.frontend, sys; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


@given(st.integers(1, 40000), st.sampled_from([0.02, 0.04]))
def test_fbank_frames_are_known_before_they_are_computed(samples, frame_duration):
    frontend = FbankFrontend(frame_duration).eval()
    features, frame_lens = frontend(torch.zeros(1, samples), torch.ones(1))
    hops = 1 + samples // 160
    frames = (hops + 1) // 2 if frame_duration == 0.02 else (hops + 3) // 4
    assert frontend.count_frames(samples) == frames
    assert frame_lens.tolist() == [frames]
    assert features.shape == (1, frames, 1, frontend.feature_dim)


@pytest.mark.parametrize(("frame_duration", "dim"), [(0.02, 160), (0.04, 320)])
def test_fbank_tells_its_shape(frame_duration, dim):
    frontend = FbankFrontend(frame_duration)
    assert frontend.frame_duration == frame_duration
    assert (frontend.feature_dim, frontend.feature_layers) == (dim, 1)
    assert frontend.sample_rate == 16000


@pytest.mark.parametrize("frame_duration", [0.02, 0.04])
def test_fbank_counts_many_lengths_at_once(frame_duration):
    frontend = FbankFrontend(frame_duration)
    samples = torch.arange(1, 5000)
    assert frontend.count_frames(samples).tolist() == [frontend.count_frames(n) for n in samples]


@pytest.mark.parametrize("frame_duration", [0.02, 0.04])
def test_a_batch_changes_no_fbank_feature(frame_duration):
    frontend = FbankFrontend(frame_duration).train()
    wavs, wav_lens = padded(16000, 11701, 3200, 160)
    frontend(wavs, wav_lens)  # so that mean and deviation are not 0 and 1
    frontend.eval()
    batched, frame_lens = frontend(wavs, wav_lens)
    for row, utterance in enumerate(alone(wavs, wav_lens)):
        features, [frames] = frontend(*utterance)
        assert frame_lens[row] == frames
        # Not always bit by bit: a product of few rows takes another kernel.
        torch.testing.assert_close(batched[row, :frames], features[0], rtol=0, atol=1e-5)


def test_fbank_statistics_are_those_of_all_valid_frames_of_training():
    frontend = FbankFrontend().train()
    raw = copy.deepcopy(frontend.fbank)
    valid = []
    for seed in range(3):
        wavs, wav_lens = padded(16000, 9000, 4321, seed=seed)
        wavs *= 10**seed
        frontend(wavs, wav_lens)
        for wav, _ in alone(wavs, wav_lens):
            mels = raw(wav)[0]
            valid.append(mels - mels.mean(0) + mels.mean())  # the level without the spectrum
    valid = torch.cat(valid)
    assert frontend.count == len(valid)
    torch.testing.assert_close(frontend.mean, valid.mean(0), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(frontend.deviation, valid.std(0, correction=0), rtol=1e-3, atol=1e-3)


def test_each_mel_band_of_an_utterance_is_normalised_where_asked():
    frontend = FbankFrontend(0.04, normalize_utterances=True).eval()
    lengths = (16000, 9000)
    features, _ = frontend(*padded(*lengths))
    for row, samples in zip(features, lengths, strict=True):
        mels = row.reshape(-1, 80)[: samples // 160 + 1]
        torch.testing.assert_close(mels.mean(0), torch.zeros(80), rtol=0, atol=1e-4)
        torch.testing.assert_close(mels.std(0, correction=0), torch.ones(80), rtol=1e-3, atol=0)
    silence, _ = frontend(torch.zeros(1, 16000), torch.ones(1))
    assert silence.isfinite().all()


def _train_on_one_rank(rank, folder):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    frontend = FbankFrontend().train()
    for step in range(2):
        frontend(*padded(16000, 9000 + 1000 * rank, seed=2 * step + rank))
    torch.save(frontend.state_dict(), folder / f"{rank}.ckpt")
    torch.distributed.destroy_process_group()


def test_fbank_statistics_are_those_of_all_processes(tmp_path):
    torch.multiprocessing.spawn(_train_on_one_rank, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.ckpt") for rank in (0, 1))
    assert all(torch.equal(first[name], value) for name, value in second.items())
    alone = FbankFrontend().train()
    for seed in range(4):
        alone(*padded(16000, 9000 + 1000 * (seed % 2), seed=seed))
    assert first["count"] == alone.count
    for name in ("mean", "deviation"):
        torch.testing.assert_close(first[name], alone.state_dict()[name], rtol=1e-4, atol=1e-4)


def test_fbank_statistics_are_still_in_evaluation_and_travel_in_the_checkpoint():
    frontend = FbankFrontend().train()
    frontend(*padded(16000, 9000))
    state = copy.deepcopy(frontend.state_dict())
    frontend.eval()
    expected, _ = frontend(*padded(8000, seed=1))
    assert all(torch.equal(state[key], value) for key, value in frontend.state_dict().items())
    other = FbankFrontend().eval()
    other.load_state_dict(state)
    assert torch.equal(other(*padded(8000, seed=1))[0], expected)


class Silence(nn.Module):
    def forward(self, mels):
        return torch.zeros_like(mels)


def test_fbank_augments_in_training_alone():
    frontend, plain = FbankFrontend(augment=[Silence()]), FbankFrontend()
    batch = padded(16000, 9000)
    assert frontend.train()(*batch)[0].abs().max() == 0
    plain.train()(*batch)
    expected = plain.eval()(*batch)[0]
    assert expected.abs().max() > 0
    assert torch.equal(frontend.eval()(*batch)[0], expected)


@pytest.mark.parametrize("frame_duration", [0, -0.02, 0.005, 0.025, 0.0201])
def test_fbank_frames_are_whole_tens_of_milliseconds(frame_duration):
    with pytest.raises(ValueError, match="not a whole number of 10 ms"):
        FbankFrontend(frame_duration)


# --- self-supervised models


@pytest.fixture(scope="module")
def load_ssl(tiny_ssl, tmp_path_factory):
    def load(kind, **options):
        folder = tiny_ssl(kind)
        return SSLFrontend(kind, folder, tmp_path_factory.mktemp("kept"), **options)

    return load


@pytest.fixture(scope="module", params=KINDS)
def frozen(request, load_ssl):
    """A frozen front end in training, as the Brain's ``modules.train()`` leaves it."""
    frontend = load_ssl(request.param)
    nn.ModuleDict({"frontend": frontend}).train()
    return frontend


@pytest.fixture(scope="module", params=KINDS)
def finetuned(request, load_ssl):
    return load_ssl(request.param, frozen=False, spec_augment=SPEC_AUGMENT)


@pytest.mark.parametrize("kind", KINDS)
def test_a_local_model_needs_no_network(load_ssl, kind, monkeypatch):
    def refuse(*args):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_ssl(kind)


def test_an_unknown_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'data2vec': use one of wav2vec2, hubert, wavlm"):
        SSLFrontend("data2vec", tmp_path, tmp_path)


def test_frozen_gives_all_hidden_states(frozen, load_ssl):
    features, frame_lens = frozen(*padded(16000, 9000))
    assert features.shape == (2, 49, 4, 24)
    assert (frozen.feature_layers, frozen.feature_dim) == (4, 24)
    assert frozen.frame_duration == 0.02
    assert frame_lens.tolist() == [49, 27]
    assert not features[1, 27:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_features_are_those_of_transformers(load_ssl, tiny_ssl, kind):
    wavs, wav_lens = padded(16000)
    model = transformers.AutoModel.from_pretrained(tiny_ssl(kind)).eval()
    normal = (wavs - wavs.mean()) / wavs.std(correction=0)  # the feature extractor's do_normalize
    with torch.no_grad():
        hidden = model(normal, output_hidden_states=True).hidden_states
    features, _ = load_ssl(kind)(wavs, wav_lens)
    torch.testing.assert_close(features[0], torch.stack(hidden, 2)[0], rtol=1e-3, atol=1e-4)


@settings(max_examples=30)
@given(samples=st.integers(400, 40000))
def test_ssl_frames_are_known_before_they_are_computed(frozen, samples):
    features, [frames] = frozen(torch.ones(1, samples), torch.ones(1))
    assert frozen.count_frames(samples) == frames == features.size(1)
    assert frames == (samples - 80) // 320


def test_what_is_too_short_for_ssl_has_no_frame(frozen):
    assert max(frozen.count_frames(samples) for samples in range(400)) < 1
    assert frozen.count_frames(400) == 1


def test_frozen_has_nothing_to_train_and_nothing_to_keep(frozen):
    assert list(frozen.parameters()) == []
    assert list(frozen.state_dict()) == []
    features, _ = frozen(*padded(8000))
    assert not features.requires_grad


def test_frozen_stays_in_evaluation_when_the_brain_trains(frozen):
    assert frozen.training
    batch = padded(16000, 9000)
    expected, _ = frozen(*batch)
    # Dropout, layer drop and masks would each show in one of these.
    assert all(torch.equal(frozen(*batch)[0], expected) for _ in range(5))


def test_a_batch_changes_no_ssl_feature_but_in_training(frozen, finetuned):
    for frontend in (frozen, finetuned.eval()):
        wavs, wav_lens = padded(16000, 11701, 3200, 400)
        batched, frame_lens = frontend(wavs, wav_lens)
        for row, utterance in enumerate(alone(wavs, wav_lens)):
            features, [frames] = frontend(*utterance)
            assert frame_lens[row] == frames
            assert torch.equal(batched[row, :frames], features[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_another_kind_is_refused(tiny_ssl, tmp_path, kind):
    other = KINDS[KINDS.index(kind) - 1]
    with pytest.raises(ValueError, match=f"holds a {other} model, not a {kind} one"):
        SSLFrontend(kind, tiny_ssl(other), tmp_path)


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        ("wav2vec2", "facebook/wav2vec2-base"),
        ("hubert", "facebook/hubert-base-ls960"),
        ("wavlm", "microsoft/wavlm-base"),
    ],
)
def test_without_a_source_it_is_the_base_model_of_its_kind(kind, base, tmp_path, monkeypatch):
    asked = []

    def wrapper(source, **_):
        asked.append(source)
        raise OSError("no network")

    module = import_module(f"speechbrain.integrations.huggingface.{kind}")
    monkeypatch.setattr(module, SSL_MODELS[kind][0], wrapper)
    with pytest.raises(OSError, match="no network"):
        SSLFrontend(kind, None, tmp_path)
    assert asked == [base]


def test_a_revision_of_a_hub_s_model_is_pinned(tiny_ssl, tmp_path, monkeypatch):
    asked = []

    def fetch(name, **given):
        asked.append((name, given))
        return str(tiny_ssl("wav2vec2"))

    monkeypatch.setattr("ent_brain.frontend.snapshot_download", fetch)
    frontend = SSLFrontend("wav2vec2", "someone/model@0123abc", tmp_path)
    assert asked == [("someone/model", {"revision": "0123abc", "cache_dir": tmp_path})]
    assert frontend.settings["source"] == "someone/model@0123abc"

    folder = tmp_path / "model@home"  # a folder may be called so
    folder.symlink_to(tiny_ssl("wav2vec2"))
    SSLFrontend("wav2vec2", folder, tmp_path)
    assert len(asked) == 1


def test_a_frozen_model_moves_with_its_front_end(load_ssl):
    frontend = load_ssl("wav2vec2").double()
    wavs, wav_lens = padded(8000)
    assert frontend(wavs.double(), wav_lens)[0].dtype == torch.float64


def test_finetuned_gives_the_last_hidden_state(finetuned, tiny_ssl):
    finetuned.eval()
    wavs, wav_lens = padded(16000)
    features, frame_lens = finetuned(wavs, wav_lens)
    assert features.shape == (1, 49, 1, 24)
    assert (finetuned.feature_layers, frame_lens.tolist()) == (1, [49])
    hidden = finetuned.ssl.model((wavs - wavs.mean()) / wavs.std(correction=0)).last_hidden_state
    torch.testing.assert_close(features[:, :, 0], hidden, rtol=1e-3, atol=1e-4)


def test_finetuning_takes_what_is_shorter_than_a_mask(finetuned):
    finetuned.train()
    for samples in (400, 4000, 16000):
        features, frame_lens = finetuned(*padded(samples))
        assert features.shape[1] == frame_lens[0] == finetuned.count_frames(samples)
        assert features.isfinite().all()


def test_finetuning_trains_all_but_the_convolutions(finetuned):
    finetuned.train()
    finetuned.zero_grad()
    torch.manual_seed(0)
    finetuned(*padded(16000, 9000))[0].square().sum().backward()
    moved = {name: p.grad is not None for name, p in finetuned.named_parameters()}
    for name, has_gradient in moved.items():
        if ".feature_extractor." in name:
            assert not has_gradient, name
        elif ".encoder.layers.2.attention.q_proj" in name or ".feature_projection." in name:
            assert has_gradient, name


def test_finetuning_masks_its_input_in_training_alone(finetuned):
    config = finetuned.ssl.model.config
    assert config.apply_spec_augment
    assert {key: getattr(config, key) for key in SPEC_AUGMENT} == SPEC_AUGMENT
    batch = padded(32000)
    finetuned.eval()
    assert torch.equal(finetuned(*batch)[0], finetuned(*batch)[0])
    finetuned.train()
    assert not torch.equal(finetuned(*batch)[0], finetuned(*batch)[0])


def test_a_finetuned_model_is_kept_in_the_checkpoint(finetuned):
    names = {name for name, _ in finetuned.named_parameters()}
    assert names and names <= set(finetuned.state_dict())
