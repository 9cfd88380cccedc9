import copy
import json
import os
import shutil
import socket
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from speechbrain.augment.freq_domain import SpectrogramDrop
from torch import nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from ent_brain.errors import InputError
from ent_brain.frontend import FbankFrontend, SSLFrontend, make_frontend

WRAPPERS = {"wav2vec2": "Wav2Vec2", "hubert": "HuBERT", "wavlm": "WavLM"}
"""Names of SpeechBrain's wrappers; each is in a module named after its kind."""
OF_WAVEFORMS = (*WRAPPERS, "data2vec-audio")
KINDS = (*OF_WAVEFORMS, "wav2vec2-bert", "whisper")
FRAMES = {
    **dict.fromkeys(OF_WAVEFORMS, lambda samples: (samples - 80) // 320),
    "wav2vec2-bert": lambda samples: ((samples - 400) // 160 + 1) // 2,
    "whisper": lambda samples: (samples + 319) // 320,
}
"""Number of an utterance's frames in transformers."""
WHISPER_BASE = Path(__file__).resolve().parents[2] / "shared" / "models" / "whisper-base"
SPEC_AUGMENT = {
    "mask_time_prob": 0.08,
    "mask_time_length": 15,
    "mask_feature_prob": 0.05,
    "mask_feature_length": 12,
}


def padded(*lengths, seed=0):
    """A batch of noise with these sample counts, and SpeechBrain's relative lengths."""
    generator = torch.Generator().manual_seed(seed)
    alone = [torch.randn(length, generator=generator) / 10 for length in lengths]
    wavs = nn.utils.rnn.pad_sequence(alone, batch_first=True)
    return wavs, torch.tensor(lengths) / max(lengths)


def alone(wavs, wav_lens):
    """Each utterance of a batch as a separate batch without padding."""
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
    def load(kind, source=None, **options):
        return SSLFrontend(
            kind, source or tiny_ssl(kind), tmp_path_factory.mktemp("kept"), **options
        )

    return load


@pytest.fixture(scope="module", params=KINDS)
def frozen(request, load_ssl):
    """A frozen front end in training, after the Brain's ``modules.train()``."""
    frontend = load_ssl(request.param)
    nn.ModuleDict({"frontend": frontend}).train()
    return frontend


@pytest.fixture(scope="module", params=KINDS)
def finetuned(request, load_ssl):
    return load_ssl(request.param, frozen=False, spec_augment=SPEC_AUGMENT)


def frames_of(frontend):
    return FRAMES[frontend.settings["model"]]


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


@pytest.mark.parametrize("source", ["/no/such/folder", "model", "a/b/c", "a/b/@c", "~/model", "@c"])
def test_a_source_is_a_folder_or_a_name_on_the_hub(source, tmp_path):
    with pytest.raises(ValueError, match="no folder, and no name on the Hugging Face hub") as error:
        SSLFrontend("wav2vec2", source, tmp_path)
    assert str(error.value).startswith(f"{source}: ")


def test_frozen_gives_all_hidden_states(frozen):
    features, frame_lens = frozen(*padded(16000, 9000))
    frames = [frames_of(frozen)(samples) for samples in (16000, 9000)]
    assert features.shape == (2, frames[0], 4, 24)
    assert (frozen.feature_layers, frozen.feature_dim) == (4, 24)
    assert frozen.frame_duration == 0.02
    assert frame_lens.tolist() == frames
    assert not features[1, frames[1] :].any()


@pytest.mark.parametrize("kind", OF_WAVEFORMS)
def test_frozen_features_are_those_of_transformers(load_ssl, tiny_ssl, kind):
    wavs, wav_lens = padded(16000)
    model = transformers.AutoModel.from_pretrained(tiny_ssl(kind)).eval()
    normal = (wavs - wavs.mean()) / wavs.std(correction=0)  # the feature extractor's do_normalize
    with torch.no_grad():
        hidden = model(normal, output_hidden_states=True).hidden_states
    features, _ = load_ssl(kind)(wavs, wav_lens)
    torch.testing.assert_close(features[0], torch.stack(hidden, 2)[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "offset"), [("wav2vec2", 0.0025), ("wav2vec2-bert", 0.0075), ("whisper", -0.01)]
)
def test_a_frame_is_centred_on_what_its_window_is_centred_on(load_ssl, kind, offset):
    frontend = load_ssl(kind, stacked=2)
    assert frontend.frame_offset == pytest.approx(offset)


@pytest.mark.parametrize("samples", [16000, 11701, 11860])
def test_w2v_bert_leaves_out_half_a_frame(load_ssl, tiny_ssl, samples):
    """transformers pads it and masks the padding."""
    wavs, wav_lens = padded(samples)
    model = transformers.AutoModel.from_pretrained(tiny_ssl("wav2vec2-bert")).eval()
    extractor = transformers.SeamlessM4TFeatureExtractor()
    given = extractor(wavs.numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**given, output_hidden_states=True).hidden_states
    features, [frames] = load_ssl("wav2vec2-bert")(wavs, wav_lens)
    assert frames == given["attention_mask"].sum()
    expected = torch.stack(hidden, 2)[:, :frames]
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("kind", WRAPPERS)
def test_features_are_bit_by_bit_those_of_speechbrain_s_wrappers(load_ssl, tiny_ssl, kind, frozen):
    wrappers = import_module(f"speechbrain.integrations.huggingface.{kind}")
    wrapper = getattr(wrappers, WRAPPERS[kind])(
        str(tiny_ssl(kind)), "", freeze=frozen, output_all_hiddens=frozen
    ).eval()
    wrapper.model.config.mask_feature_min_masks = 0  # which WavLM lacks
    frontend = load_ssl(kind, frozen=frozen).eval()
    batch = padded(16000, 11701)
    with torch.no_grad():
        hidden = wrapper(*batch)
        together = frontend.encode(*batch)
    expected = hidden.permute(1, 2, 0, 3) if frozen else hidden[:, :, None]
    assert torch.equal(together, expected)


@settings(max_examples=30)
@given(samples=st.integers(560, 40000))
def test_ssl_frames_are_known_before_they_are_computed(frozen, samples):
    features, [frames] = frozen(torch.ones(1, samples), torch.ones(1))
    assert frozen.count_frames(samples) == frames == features.size(1)
    assert frames == frames_of(frozen)(samples)


def test_what_is_too_short_for_ssl_has_no_frame(frozen):
    least = {"wav2vec2-bert": 560, "whisper": 1}.get(frozen.settings["model"], 400)
    assert max(frozen.count_frames(samples) for samples in range(least)) < 1
    features, [frames] = frozen(torch.rand(1, least), torch.ones(1))
    assert frozen.count_frames(least) == frames == features.size(1) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_model_changes_no_random_number_of_training(load_ssl, kind):
    frontend = load_ssl(kind).train()
    drawn = []
    frontend.ssl_model.register_forward_hook(lambda *_: drawn.append(torch.rand(3)))
    before = torch.get_rng_state()
    frontend.encode(*padded(4000))
    assert len(drawn) == 1
    assert torch.equal(torch.get_rng_state(), before)


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
        wavs, wav_lens = padded(16000, 11701, 3200, 560)
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
        ("data2vec-audio", "facebook/data2vec-audio-base"),
        ("wav2vec2-bert", "facebook/w2v-bert-2.0"),
        ("whisper", "openai/whisper-base"),
    ],
)
def test_without_a_source_it_is_the_base_model_of_its_kind(kind, base, tmp_path):
    with pytest.raises(ValueError, match=f"{base}: cannot be read as a {kind} model"):
        SSLFrontend(kind, None, tmp_path)


def test_a_revision_of_a_hub_s_model_is_pinned(load_ssl, tiny_ssl, tmp_path):
    """The hub's cache has two revisions of a model, in the format of the hub's library."""
    repository = tmp_path / "models--someone--model"
    folders = {name * 40: repository / "snapshots" / (name * 40) for name in "ab"}
    for folder in folders.values():
        shutil.copytree(tiny_ssl("wav2vec2"), folder)
    other = transformers.Wav2Vec2Model(load_ssl("wav2vec2").ssl_model.config)
    other.save_pretrained(folders["b" * 40])
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)

    def features(source):
        frontend = SSLFrontend("wav2vec2", source, tmp_path)
        assert frontend.settings["source"] == str(source)
        return frontend(*padded(8000))[0]

    newest, pinned = features("someone/model"), features(f"someone/model@{'b' * 40}")
    assert torch.equal(newest, features(tiny_ssl("wav2vec2")))
    assert torch.equal(pinned, features(folders["b" * 40]))
    assert not torch.equal(newest, pinned)
    folder = tmp_path / "model@home"  # a folder may be called so
    folder.symlink_to(tiny_ssl("wav2vec2"))
    assert torch.equal(features(folder), newest)


def test_a_frozen_model_moves_with_its_front_end(load_ssl):
    frontend = load_ssl("wav2vec2").double()
    wavs, wav_lens = padded(8000)
    assert frontend(wavs.double(), wav_lens)[0].dtype == torch.float64


def test_finetuned_gives_the_last_hidden_state(finetuned, load_ssl):
    finetuned.eval()
    batch = padded(16000, 9000)
    with torch.no_grad():  # with gradients, other kernels round differently
        features, frame_lens = finetuned(*batch)
    expected, frames = load_ssl(finetuned.settings["model"])(*batch)
    assert (finetuned.feature_layers, features.size(2)) == (1, 1)
    assert torch.equal(frame_lens, frames)
    assert torch.equal(features[:, :, 0], expected[:, :, -1])


def test_finetuning_takes_what_is_shorter_than_a_mask(finetuned):
    finetuned.train()
    for lengths in ((560,), (4000,), (16000,), (16000, 560)):
        features, frame_lens = finetuned(*padded(*lengths))
        assert features.shape[1] == frame_lens[0] == finetuned.count_frames(lengths[0])
        assert features.isfinite().all()


def test_finetuning_trains_all_but_the_convolutions(finetuned):
    finetuned.train()
    finetuned.zero_grad()
    torch.manual_seed(0)
    finetuned(*padded(16000, 9000))[0].square().sum().backward()
    moved = {name for name, p in finetuned.named_parameters() if p.grad is not None}
    assert any(".layers.2." in name and ".weight" in name for name in moved)
    still = {name for name, p in finetuned.named_parameters() if not p.requires_grad}
    assert not moved & still
    kind = finetuned.settings["model"]
    parts = {"whisper": (".conv1.", ".conv2.", ".embed_positions."), "wav2vec2-bert": ()}
    convolutions = parts.get(kind, (".feature_extractor.",))
    names = {name for name, _ in finetuned.named_parameters()}
    assert still == {name for name in names if any(part in name for part in convolutions)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [True, False])
def test_finetuning_decides_about_masks_not_the_model(tiny_ssl, load_ssl, tmp_path, kind, masked):
    """The model's configuration, and a vector for masked frames in its file, have no effect."""
    folder = shutil.copytree(tiny_ssl(kind), tmp_path / "model")
    never = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    if masked:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **never}))
        weights = load_file(folder / "model.safetensors")
        weights.pop("masked_spec_embed", None)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    spec_augment = {**SPEC_AUGMENT, "mask_time_prob": 0.5} if masked else {**SPEC_AUGMENT, **never}
    frontend = load_ssl(kind, folder, frozen=False, spec_augment=spec_augment).train()
    frontend.ssl_model.config.layerdrop = 0.0
    for module in frontend.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):  # of attention
            module.dropout = 0.0
    batch = padded(32000)
    features, _ = frontend(*batch)
    features.sum().backward()
    assert features.isfinite().all()
    plain, _ = load_ssl(kind, folder)(*batch)
    same = torch.allclose(features[:, :, 0], plain[:, :, -1], rtol=1e-3, atol=1e-4)
    assert same is not masked


def test_finetuning_masks_its_input_in_training_alone(finetuned):
    config = finetuned.ssl.model.config
    assert {key: getattr(config, key) for key in SPEC_AUGMENT} == SPEC_AUGMENT
    batch = padded(32000)
    finetuned.eval()
    assert torch.equal(finetuned(*batch)[0], finetuned(*batch)[0])
    finetuned.train()
    assert not torch.equal(finetuned(*batch)[0], finetuned(*batch)[0])
    assert config.apply_spec_augment


def test_a_finetuned_model_is_kept_in_the_checkpoint(finetuned):
    names = {name for name, _ in finetuned.named_parameters()}
    assert names and names <= set(finetuned.state_dict())


# --- Whisper


def whisper_oracle(folder, wav):
    """Hidden states [T, L, D] of transformers' encoder, made for as many positions as frames.

    Its weights are read from the file by their names. Zeros fill up the last frame of 20 ms.
    """
    frames = -(-len(wav) // 320)
    config = transformers.WhisperConfig.from_pretrained(folder, max_source_positions=frames)
    encoder = WhisperEncoder(config).eval()
    weights = {
        name.rpartition("encoder.")[2]: values.float()
        for name, values in load_file(folder / "model.safetensors").items()
        if "decoder." not in name
    }
    weights["embed_positions.weight"] = weights["embed_positions.weight"][:frames]
    encoder.load_state_dict(weights)
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    whole = nn.functional.pad(wav, (0, frames * 320 - len(wav))).numpy()
    mels = extractor(whole, sampling_rate=16000, padding="do_not_pad", return_tensors="pt")
    with torch.no_grad():
        hidden = encoder(mels["input_features"], output_hidden_states=True).hidden_states
    return torch.stack(hidden, 2)[0]


@pytest.mark.parametrize("samples", [1, 160, 321, 1600, 11701, 16000, 59201, 479999, 480000])
@pytest.mark.parametrize("size", ["tiny", "base"])
def test_whisper_s_features_are_those_of_transformers_at_the_utterance_s_length(
    load_ssl, tiny_ssl, size, samples
):
    folder = tiny_ssl("whisper") if size == "tiny" else WHISPER_BASE
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    wavs, wav_lens = padded(samples)
    features, [frames] = load_ssl("whisper", folder)(wavs, wav_lens)
    expected = whisper_oracle(folder, wavs[0])
    assert features[0].shape == expected.shape
    assert frames == len(expected) == -(-samples // 320)
    torch.testing.assert_close(features[0], expected, rtol=1e-4, atol=1e-4)


def mel_input(frontend, wav):
    """Mel bands [80, frames] that the encoder gets for an utterance."""
    given = []
    hook = frontend.ssl_model.register_forward_pre_hook(
        lambda _, args, kwargs: given.append(kwargs["input_features"]), with_kwargs=True
    )
    frontend(wav[None], torch.ones(1))
    hook.remove()
    return given[0][0]


def test_whisper_s_mel_bands_are_those_of_the_padded_utterance(load_ssl, tiny_ssl):
    """The last mel frame differs, because its window ends in mirrored samples, not silence."""
    wavs, _ = padded(20000)
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(tiny_ssl("whisper"))
    half_a_minute = extractor(wavs[0].numpy(), sampling_rate=16000, return_tensors="pt")
    mels = mel_input(load_ssl("whisper"), wavs[0])
    assert mels.shape == (80, 126)
    expected = half_a_minute["input_features"][0, :, :125]
    torch.testing.assert_close(mels[:, :125], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("gain", [0.1, 10.0])
def test_a_recording_s_level_shifts_whisper_s_mel_bands(load_ssl, gain):
    """The shift is a quarter of the logarithm of its power, because the level is not normalised."""
    frontend, wav = load_ssl("whisper"), padded(16000)[0][0]
    shift = torch.tensor(gain).square().log10() / 4
    torch.testing.assert_close(
        mel_input(frontend, gain * wav), mel_input(frontend, wav) + shift, rtol=0, atol=1e-4
    )


def test_whisper_encodes_half_a_minute_at_most(load_ssl):
    for stacked in (1, 7):
        frontend = load_ssl("whisper", stacked=stacked)
        assert frontend.max_samples == 30 * 16000
        with pytest.raises(
            InputError, match=r"an utterance of 30\.01 s: whisper .* at most 30 s: cut"
        ):
            frontend(torch.zeros(1, 480160), torch.ones(1))
        features, _ = frontend(torch.zeros(1, 480000), torch.ones(1))
        assert features.size(1) == -(-1500 // stacked)
    assert load_ssl("wav2vec2-bert").max_samples is None


@pytest.mark.parametrize("prefix", ["model.encoder.", "encoder."])
def test_whisper_needs_no_decoder(load_ssl, tiny_ssl, tmp_path, caplog, prefix):
    folder = shutil.copytree(tiny_ssl("whisper"), tmp_path / "model")
    weights = {
        prefix + name.removeprefix("encoder."): values
        for name, values in load_file(folder / "model.safetensors").items()
        if not name.startswith("decoder.")
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    transformers.logging.enable_propagation()
    frontends = load_ssl("whisper"), load_ssl("whisper", folder)
    transformers.logging.disable_propagation()
    assert not caplog.records
    names = {name for name, _ in frontends[0].ssl_model.named_parameters()}
    assert names == {f"encoder.{name.removeprefix(prefix)}" for name in weights}
    features = [frontend(*padded(16000, 9000))[0] for frontend in frontends]
    assert torch.equal(*features)


def test_other_whispers_have_more_mel_bands(load_ssl, tmp_path):
    """An example is large-v3."""
    config = transformers.WhisperConfig(
        **{"num_mel_bins": 128, "d_model": 16, "encoder_layers": 2, "decoder_layers": 1},
        **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16},
    )
    transformers.WhisperModel(config).save_pretrained(tmp_path)
    transformers.WhisperFeatureExtractor(feature_size=128).save_pretrained(tmp_path)
    frontend = load_ssl("whisper", tmp_path)
    wavs, wav_lens = padded(16001)
    features, _ = frontend(wavs, wav_lens)
    assert features.shape == (1, 51, 3, 16)
    expected = whisper_oracle(tmp_path, wavs[0])
    torch.testing.assert_close(features[0], expected, rtol=1e-4, atol=1e-4)


# --- what holds for all models


@pytest.mark.parametrize("kind", KINDS)
def test_no_weight_is_made_up(load_ssl, tiny_ssl, tmp_path, kind):
    folder = shutil.copytree(tiny_ssl(kind), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if ".layers.1." in name and "decoder" not in name)
    save_file(
        {name: values for name, values in weights.items() if name != gone},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ValueError, match=f"{folder}: 1 weights are missing, {gone} for one: fetch"):
        load_ssl(kind, folder)


@pytest.mark.parametrize("kind", ["hubert", "whisper"])
def test_a_configuration_names_no_code(load_ssl, tiny_ssl, tmp_path, kind):
    """transformers would download kernels, quantisers and classes from the hub."""
    folder = shutil.copytree(tiny_ssl(kind), tmp_path / "model")
    strange = {
        "_attn_implementation": "someone/kernel",
        "attn_implementation": "someone/kernel",
        "_experts_implementation": "someone/kernel",
        "auto_map": {"AutoModel": "someone/model--code.Model", "AutoConfig": "someone/code.Config"},
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
        "base_model_tp_plan": {"encoder": "someone"},
        "return_dict": False,
    }
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **strange}))
    frontend, plain = load_ssl(kind, folder), load_ssl(kind)
    ours, expected = (f.ssl_model.config.to_dict() for f in (frontend, plain))
    origin = {"_name_or_path"}
    assert {k: v for k, v in ours.items() if k not in origin} == {
        k: v for k, v in expected.items() if k not in origin
    }
    assert frontend.describe() == plain.describe()
    assert torch.equal(frontend(*padded(8000))[0], plain(*padded(8000))[0])


@pytest.mark.parametrize("kind", ["wav2vec2-bert", "whisper"])
def test_mixed_precision_is_close_to_full(load_ssl, kind):
    frontend, batch = load_ssl(kind), padded(16000, 9000)
    expected, _ = frontend(*batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, _ = frontend(*batch)
    error = (features.float() - expected).norm() / expected.norm()
    assert 0 < error < 0.05


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("stacked", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_stacked(load_ssl, kind, stacked, frozen):
    plain, frontend = (
        load_ssl(kind, stacked=number, frozen=frozen, spec_augment={"mask_time_prob": 0.0}).eval()
        for number in (1, stacked)
    )
    assert frontend.frame_duration == pytest.approx(0.02 * stacked)
    assert frontend.frame_samples == 320 * stacked
    assert (frontend.feature_dim, frontend.feature_layers) == (24 * stacked, plain.feature_layers)
    lengths = (16000, 11701, 3200, 560)
    states, state_lens = plain(*padded(*lengths))
    features, frame_lens = frontend(*padded(*lengths))
    assert frame_lens.tolist() == [frontend.count_frames(samples) for samples in lengths]
    assert features.size(1) == frame_lens.max()
    for row, (frames, count) in enumerate(zip(frame_lens, state_lens, strict=True)):
        assert frames == -(-count // stacked)
        for frame in range(features.size(1)):
            for place in range(stacked):
                part = features[row, frame, :, 24 * place : 24 * (place + 1)]
                state = frame * stacked + place
                expected = states[row, state] if state < count else torch.zeros_like(part)
                assert torch.equal(part, expected)
    if not frozen:  # in training, too, nothing of the padding is in a frame
        features, frame_lens = frontend.train()(*padded(*lengths))
        ends = [features[row, count // stacked :, 0] for row, count in enumerate(state_lens)]
        for end, count in zip(ends, state_lens.tolist(), strict=True):
            assert not end.reshape(-1)[count % stacked * 24 :].any()


def test_stacked_log_mel_energies_have_longer_frames():
    frontend = make_frontend("fbank", stacked=2)
    assert (frontend.frame_duration, frontend.feature_dim) == (0.04, 320)


@pytest.mark.parametrize("stacked", [0, -1, 1.5])
def test_at_least_one_frame_is_stacked(load_ssl, stacked):
    with pytest.raises(ValueError, match=f"stacked {stacked}: give a whole number of frames"):
        load_ssl("wav2vec2", stacked=stacked)


def drop(dim, longest, most):
    return SpectrogramDrop(1, longest, most, most, dim=dim)


@pytest.mark.parametrize("cached", [True, False])
def test_features_are_masked_in_training_alone_the_same_in_all_layers(load_ssl, tmp_path, cached):
    folder = tmp_path if cached else None
    drops = [drop(2, 8, 3), drop(1, 5, 3)]
    frontend = load_ssl("whisper", stacked=2, cache_folder=folder, augment=drops)
    batch = padded(16000, 9600)
    whole, _ = frontend.eval()(*batch)
    torch.manual_seed(1)
    masked, _ = frontend.train()(*batch)
    assert masked.dtype == whole.dtype
    kept = (masked == whole).all(2)  # of 4 layers
    gone = (masked == 0).all(2)
    assert (kept | gone).all()
    for row, frames in enumerate((25, 15)):
        lost = ~kept[row, :frames]
        stretches, groups = lost.all(1), lost.all(0)
        assert stretches.any()
        assert not stretches.all()
        assert groups.any()
        assert groups.sum() <= 24
        assert torch.equal(lost, stretches[:, None] | groups)
    assert not torch.equal(frontend(*batch)[0], masked)
    assert torch.equal(frontend.eval()(*batch)[0], whole)
    assert frontend.state_dict() == {}
    assert "augment" not in frontend.settings


def test_what_masks_nothing_draws_nothing(load_ssl):
    frontend = load_ssl("whisper", augment=[drop(2, 8, 0), drop(1, 5, 0)]).train()
    before = torch.get_rng_state()
    frontend(*padded(1600))
    assert torch.equal(torch.get_rng_state(), before)


def test_masks_of_features_are_refused_where_a_model_is_fine_tuned(load_ssl):
    with pytest.raises(ValueError, match="augment needs a frozen SSL model"):
        load_ssl("whisper", frozen=False, augment=[drop(1, 5, 1)])


@pytest.mark.parametrize("kind", ["hubert", "whisper"])
def test_the_cache_serves_any_number_of_stacked_frames(load_ssl, kind, tmp_path, monkeypatch):
    batch = padded(16000, 9000)
    plain = load_ssl(kind, cache_folder=tmp_path)
    plain(*batch)
    expected, _ = load_ssl(kind, stacked=2)(*batch)
    frontend = load_ssl(kind, stacked=2, cache_folder=tmp_path)
    assert frontend.cache.folder == plain.cache.folder
    assert frontend.describe() != plain.describe()
    monkeypatch.setattr(SSLFrontend, "encode", None)
    assert torch.equal(frontend(*batch)[0], expected.half())
