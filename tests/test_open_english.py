"""The packed model without its encoder, which is found in three ways."""

import hashlib
import shutil
import struct
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ent_brain import cli
from ent_brain import export as export_room
from ent_brain import inference as inference_room
from ent_brain.annotation import Annotation
from ent_brain.cache import weights_digest
from ent_brain.dataio import read_audio
from ent_brain.errors import InputError
from ent_brain.export import (
    DECODER_FILES,
    ENCODER_VARIABLE,
    HPARAMS_FILE,
    OPEN_ENGLISH,
    SSL_FILES,
    export,
    pack,
)
from ent_brain.files import read_json
from ent_brain.frontend import SSLFrontend
from ent_brain.inference import EmotionTransducer
from ent_brain.speech import find_speech

RECORD = Path(__file__).parents[1] / "recipes" / "Open" / "open_english.json"
ENCODER = "openai/whisper-base@e37978b90ca9030d5170a5c07aadb050351a65bb"
WAVS, LENS = 0.1 * torch.randn(2, 8000), torch.tensor([1.0, 0.6])


@pytest.fixture(scope="module")
def pretrained(tiny_ssl, tmp_path_factory, trained):
    folder = tmp_path_factory.mktemp("whisper") / "pretrained"
    frontend = SSLFrontend("whisper", tiny_ssl("whisper"), "hub", layers=[1, 2, 3], stacked=2)
    export(trained(frontend=frontend), folder, 2.5)
    return folder


@pytest.fixture
def packed(pretrained, tmp_path):
    pack(pretrained, tmp_path / "packed", ENCODER)
    return tmp_path / "packed"


@pytest.fixture
def encoder(tiny_ssl, tmp_path):
    return shutil.copytree(tiny_ssl("whisper"), tmp_path / "whisper")


def refusal(folder, **settings):
    with pytest.raises(InputError) as caught:
        EmotionTransducer.from_hparams(source=folder, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_packed_model_is_the_exported_one_in_float16(pretrained, packed, encoder):
    assert {path.name for path in packed.iterdir()} == {
        *("hyperparams.yaml", "interface.py", "README.md", "frontend.ckpt", "model.ckpt")
    }
    exported, rounded = (
        torch.load(folder / "model.ckpt", weights_only=True) for folder in (pretrained, packed)
    )
    assert {weights.dtype for weights in rounded.values()} == {torch.float16}
    whole = EmotionTransducer.from_hparams(source=pretrained)
    whole.mods.model.load_state_dict({name: v.half().float() for name, v in exported.items()})
    loaded = EmotionTransducer.from_hparams(source=packed, ssl=encoder)
    assert loaded.annotate_batch(WAVS, LENS) == whole.annotate_batch(WAVS, LENS)


def test_packing_returns_the_digests_of_its_files_and_keeps_a_card(pretrained, tmp_path):
    (tmp_path / "packed").mkdir()
    card = tmp_path / "packed" / "README.md"
    card.write_text("a card by hand")
    digests = pack(pretrained, tmp_path / "packed", ENCODER)
    assert card.read_text() == "a card by hand"
    assert digests == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (tmp_path / "packed").iterdir()
        if path != card
    }
    with pytest.raises(InputError, match="no frozen SSL model in it"):
        pack(tmp_path / "packed", tmp_path / "again", ENCODER)
    with pytest.raises(InputError, match="give owner/name@revision"):
        pack(pretrained, tmp_path / "again", "openai/whisper-base")


def test_the_digest_is_that_of_the_weights_rounded_to_float16():
    """The expected digest uses only the standard library."""
    model = torch.nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.1]]))
        model.bias.fill_(-2.0)
    expected = hashlib.sha256(b"bias (1,)" + struct.pack("<e", -2.0))
    expected.update(b"weight (1, 2)" + struct.pack("<2e", 1.0, 0.1))
    assert weights_digest(model) == expected.hexdigest()


def test_encoders_in_float16_and_float32_without_a_decoder_are_the_same(packed, encoder):
    path = encoder / "model.safetensors"
    weights = load_file(path)
    assert any(name.startswith("decoder.") for name in weights)
    halves = {name: v.half() for name, v in weights.items() if name.startswith("encoder.")}
    digests = []
    for given in (weights, halves):
        save_file(given, path, metadata={"format": "pt"})
        loaded = EmotionTransducer.from_hparams(source=packed, ssl=encoder)
        digests.append(weights_digest(loaded.mods.frontend.ssl_model))
    assert digests[0] == digests[1]
    halves["encoder.conv1.bias"] += 1
    save_file(halves, path, metadata={"format": "pt"})
    message = refusal(packed, ssl=encoder)
    assert message.startswith(f"{encoder}: not the encoder that this model was trained with (")


def test_an_encoder_is_found_by_the_environment_variable(packed, encoder, monkeypatch):
    expected = EmotionTransducer.from_hparams(source=packed, ssl=encoder)
    monkeypatch.setenv(ENCODER_VARIABLE, str(encoder))
    loaded = EmotionTransducer.from_hparams(source=packed)
    assert loaded.annotate_batch(WAVS, LENS) == expected.annotate_batch(WAVS, LENS)


@pytest.mark.parametrize("words, files", [("own", SSL_FILES), (None, SSL_FILES + DECODER_FILES)])
def test_an_encoder_comes_from_the_hub_at_its_revision(packed, encoder, monkeypatch, words, files):
    asked = []

    def fetch(name, file, revision):
        asked.append((name, file, revision))
        return str(encoder / file)

    monkeypatch.setattr(export_room, "hf_hub_download", fetch)
    EmotionTransducer.from_hparams(source=packed, words=words)
    name, _, revision = ENCODER.partition("@")
    assert asked == [(name, file, revision) for file in files]


def test_an_encoder_comes_from_the_hub_s_cache_offline(packed, encoder, tmp_path, monkeypatch):
    """The tests are offline; the cache is laid out as huggingface_hub documents it."""
    name, _, revision = ENCODER.partition("@")
    cache = tmp_path / "hub"
    snapshot = cache / f"models--{name.replace('/', '--')}" / "snapshots" / revision
    shutil.copytree(encoder, snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    loaded = EmotionTransducer.from_hparams(source=packed)
    assert loaded.mods.frontend.settings["source"] == str(snapshot)


def test_without_an_encoder_one_line_names_the_three_ways(packed, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    message = refusal(packed)
    assert message.startswith(f"{ENCODER}: this encoder is neither in the hub's cache nor ")
    assert all(way in message for way in ("network", "--ssl", "ssl=", ENCODER_VARIABLE))


def test_a_folder_without_an_encoder_is_named(packed, pretrained, encoder, tmp_path):
    assert refusal(packed, ssl=tmp_path / "no").startswith(f"{tmp_path}/no: no config.json, ")
    assert refusal(pretrained, ssl=encoder) == (
        f"{encoder}: {pretrained} needs no other encoder. Leave ssl out."
    )
    (encoder / "model.safetensors").unlink()
    assert refusal(packed, ssl=encoder) == (
        f"{encoder}: no model.safetensors there. Name an encoder's folder."
    )


def test_a_strange_source_is_not_fetched(packed, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(export_room, "hf_hub_download", refuse)
    path = packed / HPARAMS_FILE
    path.write_text(path.read_text().replace(ENCODER, "a/b/c@main"))
    assert refusal(packed) == (
        f"{path}: ssl_source: 'a/b/c@main': give owner/name@revision, a name on the hub"
    )


def test_the_model_may_be_left_out(packed, encoder, tmp_path, monkeypatch, capsys):
    import soundfile

    monkeypatch.setattr(cli, "OPEN_ENGLISH", packed)
    monkeypatch.setattr(inference_room, "OPEN_ENGLISH", packed)
    soundfile.write(tmp_path / "a.wav", WAVS[0].numpy(), 16000)
    with pytest.raises(SystemExit) as caught:
        cli.main(["annotate", str(tmp_path / "a.wav"), "--ssl", str(encoder)])
    assert caught.value.code == 0
    [line] = capsys.readouterr().out.splitlines()
    model = EmotionTransducer.open_english(ssl=encoder)
    assert Annotation.from_json(line) == model.annotate_file(tmp_path / "a.wav")


@pytest.mark.skipif(not (OPEN_ENGLISH / HPARAMS_FILE).is_file(), reason="no model is packed yet")
def test_the_packaged_files_are_those_that_the_recipe_s_log_names():
    record = read_json(RECORD)
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in OPEN_ENGLISH.iterdir()
        if path.name != "README.md"
    }
    assert digests == record["files"]
    assert sum(path.stat().st_size for path in OPEN_ENGLISH.iterdir()) <= 12e6
    card = (OPEN_ENGLISH / "README.md").read_text()
    assert "CC BY-NC-SA 4.0" in card
    assert ENCODER in (OPEN_ENGLISH / HPARAMS_FILE).read_text()


SHARED = Path(__file__).resolve().parents[2] / "shared"
REAL_ENCODER = SHARED / "models" / "whisper-base"
REAL = {
    "ravdess/Actor_19/03-01-05-01-01-01-19.flac": "KIDS ARE TALKING BY THE DOOR",
    "ravdess/Actor_20/03-01-04-02-02-01-20.flac": "DOGS ARE SITTING BY THE DOOR",
}
READ_SPEECH = "librispeech/test-speakers/4088/158077/4088-158077-0006.opus"


@pytest.fixture(scope="module")
def open_english():
    if not REAL_ENCODER.is_dir():
        pytest.skip(f"no {REAL_ENCODER}")
    return EmotionTransducer.open_english(ssl=REAL_ENCODER)


@pytest.mark.parametrize("name", REAL)
def test_words_are_where_they_are_said(open_english, name):
    """An encoder of the whole utterance puts the words of RAVDESS at its start and its end."""
    path = SHARED / "data" / name
    annotation = open_english.annotate_file(path, progressbar=False)
    assert (annotation.text, annotation.words_by) == (REAL[name], "model")
    [(first, last)] = find_speech([read_audio(path, 16000)]).regions
    for word in annotation.words:
        assert first / 16000 - 0.4 <= word.start < word.end <= last / 16000 + 0.1
    gaps = [b.start - a.end for a, b in pairwise(annotation.words)]
    assert max(gaps) < 0.3


def test_read_speech_is_neutral(open_english):
    path = SHARED / "data" / READ_SPEECH
    assert open_english.annotate_file(path, progressbar=False).emotion == "neutral"
