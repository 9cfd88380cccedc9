"""Fixtures of all tests: small corpora, and SSL models that need no network."""

import multiprocessing
import os
import resource
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from hypothesis import settings
from speechbrain.utils.importutils import LazyModule

# Hypothesis reads the file of every module. SpeechBrain's lazy modules would then import packages
# that are not installed.
LazyModule.__file__ = None

# On a busy machine, two threads that wait for each other are many times slower than one.
torch.set_num_threads(1)
# The environment also applies to programs that tests start: no downloads, no display.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}
# torchaudio 2.8 warns of a question that SpeechBrain asks it.
os.environ["PYTHONWARNINGS"] = "ignore:torchaudio._backend.list_audio_backends"

RAVDESS = Path(__file__).resolve().parents[2] / "shared" / "data" / "ravdess"

CONVOLUTIONS = {
    **{"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2},
    **{"intermediate_size": 32, "conv_dim": [16] * 7},
    **{"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2},
}
SSL_CONFIGS = {
    "wav2vec2": transformers.Wav2Vec2Config(**CONVOLUTIONS),
    "hubert": transformers.HubertConfig(**CONVOLUTIONS),
    "wavlm": transformers.WavLMConfig(**CONVOLUTIONS),
    "data2vec-audio": transformers.Data2VecAudioConfig(
        **CONVOLUTIONS | {"num_conv_pos_embeddings": 2}
    ),
    "wav2vec2-bert": transformers.Wav2Vec2BertConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    ),
    "whisper": transformers.WhisperConfig(
        **{"d_model": 24, "num_mel_bins": 80, "vocab_size": 100, "max_target_positions": 10},
        **{"encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 32},
        **{"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32},
        **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
    ),
}
SSL_EXTRACTORS = {
    "wav2vec2-bert": transformers.SeamlessM4TFeatureExtractor,
    "whisper": transformers.WhisperFeatureExtractor,
}


def pytest_addoption(parser):
    parser.addoption(
        "--long", action="store_true", help="more kills, processes, resumed trainings and fuzzing"
    )


def pytest_configure(config):
    """Make the ordinary mode deterministic, so that only a change can make it fail."""
    settings.register_profile("ordinary", max_examples=150, derandomize=True, deadline=None)
    settings.register_profile("long", max_examples=2000, deadline=None)
    settings.load_profile("long" if config.getoption("--long") else "ordinary")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Let a skipped browser test fail on CI, because nobody would notice it otherwise."""
    report = yield
    asked = "browser" in item.fixturenames and "long_mode" not in item.fixturenames
    if report.skipped and asked and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped on CI ({report.longrepr[2]}): install Chromium and chromedriver"
    return report


@pytest.fixture
def long_mode(request):
    """Skip a test that takes minutes, unless ``--long`` is given."""
    if not request.config.getoption("--long"):
        pytest.skip("takes minutes: give --long")


@pytest.fixture(scope="session")
def iemocap(tmp_path_factory):
    """A look-alike of IEMOCAP_full_release: 60 utterances of the four classes, and some others."""
    pytest.importorskip("espeakng_loader")
    from ent_brain.synth import write_iemocap

    folder = tmp_path_factory.mktemp("iemocap") / "IEMOCAP_full_release"
    write_iemocap(folder, 60, seed=1)
    return folder


@pytest.fixture(scope="session")
def zed(tmp_path_factory):
    """A look-alike of ZED: 9 utterances."""
    pytest.importorskip("espeakng_loader")
    from ent_brain.synth import write_zed

    folder = tmp_path_factory.mktemp("zed") / "ZED"
    write_zed(folder, 9, seed=1)
    return folder


@pytest.fixture(scope="session")
def ravdess():
    """Folder of the real sample of RAVDESS, next to the repository."""
    if not RAVDESS.is_dir():
        pytest.skip(f"no {RAVDESS}")
    return RAVDESS


@pytest.fixture(scope="session")
def processes():
    """Context of processes with preloaded imports, which take longer than a small training."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "pytest",
            "ent_brain.recipe",
            "ent_brain.frontend",
            "speechbrain.augment.freq_domain",
            "transformers.models.hubert.modeling_hubert",
            "transformers.models.wav2vec2.modeling_wav2vec2",
            "transformers.models.wavlm.modeling_wavlm",
            "speechbrain.utils.train_logger",
            "transformers.optimization",
        ]
    )
    return context


@pytest.fixture(scope="session")
def tiny_ssl(tmp_path_factory):
    """``tiny_ssl("hubert")`` is a folder with a small random model in the hub's format.

    It has the kernels, strides and group normalisation of the base model, and three layers of 24.
    Whisper's model has its decoder.
    """
    folders = {}

    def make(kind):
        if kind not in folders:
            folders[kind] = folder = tmp_path_factory.mktemp(kind) / "model"
            with torch.random.fork_rng():
                torch.manual_seed(0)
                transformers.AutoModel.from_config(SSL_CONFIGS[kind]).save_pretrained(folder)
            extractor = SSL_EXTRACTORS.get(kind, transformers.Wav2Vec2FeatureExtractor)
            extractor().save_pretrained(folder)
        return folders[kind]

    return make


@pytest.fixture(scope="session")
def trained():
    """``trained(ENT)`` has the attributes of a trained Brain that ``export`` needs.

    Its small model has random weights, large enough that it emits tokens. The front end gives
    log-mel energies of 40 ms by default.
    """
    from ent_brain.emotions import PUBLISHED
    from ent_brain.frontend import FbankFrontend
    from ent_brain.model import ENT
    from ent_brain.tokens import CharTokens

    def make(model_class=ENT, frontend=None, **parts):
        torch.manual_seed(1)
        frontend = (frontend or FbankFrontend(frame_duration=0.04)).eval()
        sizes = {"encoder_dim": 16, "embedding_dim": 8, "predictor_dim": 12, "joint_dim": 12}
        dims = frontend.feature_dim, frontend.feature_layers
        model = model_class(31, *dims, **sizes, **parts).eval()
        with torch.no_grad():
            for joint in model.token_joints:
                joint.output.weight.mul_(4)
        return SimpleNamespace(
            raw_modules={"frontend": frontend, "model": model},
            tokens=CharTokens(),
            emotions=PUBLISHED,
            hparams=SimpleNamespace(
                max_symbols=2,
                beam_size=2,
                segment_decoding="median",
                segment_seconds=0.2,
                lattice_mode="aligned",
            ),
        )

    return make


@pytest.fixture
def file_limit():
    """``file_limit(n)`` limits all files of this process to n bytes, to simulate a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(autouse=True, scope="session")
def sound_is_speech():
    """Let models treat all sound above -60 dB as speech, because most tests use noise."""
    import numpy as np

    from ent_brain import inference
    from ent_brain.speech import Speech

    def find_speech(blocks):
        wav = torch.cat(list(blocks))
        power = torch.nn.functional.pad(wav, (0, -len(wav) % 160)).view(-1, 160).square().mean(1)
        edges = np.flatnonzero(np.diff([False, *(power > 1e-6).tolist(), False])).reshape(-1, 2)
        regions = [(int(a) * 160, min(int(b) * 160, len(wav))) for a, b in edges]
        seconds = sum(b - a for a, b in regions) / 16000
        return Speech(regions, seconds, len(wav), np.ones(129))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "find_speech", find_speech)
        yield
