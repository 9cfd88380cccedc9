"""What all tests share: small corpora, and SSL models that need no network."""

import os
from pathlib import Path

import pytest
import torch
import transformers
from speechbrain.utils.importutils import LazyModule

# Hypothesis asks every module for its file, upon which SpeechBrain's lazy modules would import
# what is not installed.
LazyModule.__file__ = None

# Two threads that wait for one another on a busy machine are many times slower than one.
torch.set_num_threads(1)
# Of the programs that tests start, too: nothing is fetched, no screen is asked for.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}

RAVDESS = Path(__file__).resolve().parents[2] / "shared" / "data" / "ravdess"

SSL_CONFIGS = {
    "wav2vec2": transformers.Wav2Vec2Config,
    "hubert": transformers.HubertConfig,
    "wavlm": transformers.WavLMConfig,
}


@pytest.fixture(scope="session")
def iemocap(tmp_path_factory):
    """A look-alike of IEMOCAP_full_release: 60 utterances of the four classes, and some more."""
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
    """The real sample of RAVDESS beside the repository."""
    if not RAVDESS.is_dir():
        pytest.skip(f"no {RAVDESS}")
    return RAVDESS


@pytest.fixture(scope="session")
def tiny_ssl(tmp_path_factory):
    """``tiny_ssl("hubert")`` is a folder with a small random model, as a hub would hold it.

    Kernels, strides and group normalisation are those of the base models; three layers of 24.
    """
    folders = {}

    def make(kind):
        if kind not in folders:
            folders[kind] = folder = tmp_path_factory.mktemp(kind) / "model"
            config = SSL_CONFIGS[kind](
                hidden_size=24,
                num_hidden_layers=3,
                num_attention_heads=2,
                intermediate_size=32,
                conv_dim=[16] * 7,
                num_conv_pos_embeddings=8,
                num_conv_pos_embedding_groups=2,
            )
            with torch.random.fork_rng():
                torch.manual_seed(0)
                transformers.AutoModel.from_config(config).save_pretrained(folder)
            transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
        return folders[kind]

    return make
