"""Words from Whisper's decoder, on states that the front end's encoder computes."""

import json

import numpy as np
import pytest
import soundfile
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizerFast,
)

from ent_brain import cli
from ent_brain.annotation import Annotation
from ent_brain.errors import InputError
from ent_brain.export import export, pack
from ent_brain.frontend import SSLFrontend
from ent_brain.inference import EmotionTransducer
from ent_brain.whisper import WhisperDecoder, _end_in_repetition, _Repetition

ENCODER = "openai/whisper-base@e37978b90ca9030d5170a5c07aadb050351a65bb"
RATE = 16000
SPECIAL = ("endoftext", "startoftranscript", "en", "de", "transcribe", "translate", "notimestamps")
END, START, EN, DE, TRANSCRIBE, TRANSLATE, NO_TIMES = range(256, 256 + len(SPECIAL))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small random Whisper with decoder and byte tokenizer, in the format of transformers."""
    folder = tmp_path_factory.mktemp("whole") / "whisper"
    ids = {"bos_token_id": END, "eos_token_id": END, "pad_token_id": END}
    ids["decoder_start_token_id"] = START
    sizes = {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
    sizes |= {f"{side}_ffn_dim": 32 for side in ("encoder", "decoder")}
    config = WhisperConfig(
        vocab_size=256 + len(SPECIAL),
        d_model=24,
        encoder_layers=2,
        decoder_layers=1,
        **sizes,
        **ids,
    )
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        model.model.decoder.embed_tokens.weight.mul_(20)  # louder: texts differ with the states
        for name, weights in model.named_parameters():
            if "encoder_attn" in name:
                weights.mul_(20)
    model.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([f"<|{name}|>" for name in SPECIAL])
    tokenizer.save(str(folder / "raw.json"))
    ends = dict.fromkeys(("unk_token", "bos_token", "eos_token", "pad_token"), "<|endoftext|>")
    fast = WhisperTokenizerFast(tokenizer_file=str(folder / "raw.json"), **ends)
    fast.save_pretrained(folder)
    settings = {
        **ids,
        "max_length": 448,
        "is_multilingual": True,
        "lang_to_id": {"<|en|>": EN, "<|de|>": DE},
        "task_to_id": {"transcribe": TRANSCRIBE, "translate": TRANSLATE},
        "suppress_tokens": [START, EN, DE, TRANSCRIBE, TRANSLATE, NO_TIMES],
        "no_timestamps_token_id": NO_TIMES,
        "return_timestamps": False,
    }
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def frontend(whole):
    return SSLFrontend("whisper", whole, "hub", layers=[1, 2], stacked=2).eval()


@pytest.fixture(scope="module")
def packed(trained, frontend, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    export(trained(frontend=frontend), folder / "pretrained", 2.5)
    pack(folder / "pretrained", folder / "packed", ENCODER)
    return folder / "packed"


@pytest.fixture
def path(tmp_path):
    """Bursts of noise, for which the small random model gives words."""
    wav = 0.1 * np.random.default_rng(0).normal(size=2 * RATE)
    wav *= np.repeat([1.0, 0.1, 0.7, 0.2], RATE // 2)
    soundfile.write(tmp_path / "a.wav", wav, RATE)
    return tmp_path / "a.wav"


def test_the_decoder_reads_half_a_second_of_silence_after_an_utterance(whole, frontend):
    wavs = [0.1 * torch.randn(RATE), 0.1 * torch.randn(8160), 0.1 * torch.randn(478_000)]
    states = WhisperDecoder(whole, frontend).encode(wavs)
    assert [len(each) for each in states] == [75, 51, 1500]  # never more than 30 s
    for wav, own, samples in zip(wavs, states, (24_000, 16_160, 480_000), strict=True):
        padded = torch.nn.functional.pad(wav, (0, samples - len(wav)))
        torch.testing.assert_close(own, frontend.encode_last(padded[None])[0])


def test_texts_are_those_of_the_whole_model_of_transformers(whole, frontend):
    """Utterances of 30 s need no states of silence."""
    wavs = [0.1 * torch.randn(480_000), torch.sin(torch.arange(480_000) / 10)]
    decoder = WhisperDecoder(whole, frontend)
    decoder.prepare()
    found = decoder.transcribe(wavs, [frontend.encode_last(wav[None])[0] for wav in wavs])
    model = WhisperForConditionalGeneration.from_pretrained(whole)
    features = WhisperFeatureExtractor()(
        [wav.numpy() for wav in wavs], sampling_rate=RATE, return_tensors="pt"
    )
    ids = model.generate(**features, language="en", task="transcribe", max_new_tokens=16 + 240)
    tokenizer = WhisperTokenizerFast.from_pretrained(whole)
    expected = [" ".join(t.split()) for t in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    assert found == expected
    assert all(found)


def test_a_text_that_repeats_itself_is_made_again_with_silence(whole, frontend, monkeypatch):
    decoder = WhisperDecoder(whole, frontend)
    asked = []

    def decode(states, language, most, **settings):
        asked.append(states)
        text = "once more " * 30 if len(asked) == 1 else "once more"
        return [decoder.tokenizer.encode(text, add_special_tokens=False)]

    monkeypatch.setattr(decoder, "_decode", decode)
    wav = 0.1 * torch.randn(RATE)
    assert decoder.transcribe([wav], [frontend.encode_last(wav[None])[0]]) == ["once more"]
    first, second = asked
    assert first.shape == second.shape == (1, 1500, 24)
    padded = torch.nn.functional.pad(wav, (0, 480_000 - RATE))
    torch.testing.assert_close(second, frontend.encode_last(padded[None]))
    torch.testing.assert_close(first[:, 50:], decoder.silence[None, 50:])


def test_a_decoder_that_repeats_itself_is_stopped(whole, frontend):
    decoder = WhisperDecoder(whole, frontend)
    states = frontend.encode_last(0.1 * torch.randn(1, RATE))
    states = torch.cat((states, decoder.silence[None, 50:]), 1)
    [endless] = decoder._decode(states, "en", 100)
    [stopped] = decoder._decode(states, "en", 100, stopping_criteria=[_Repetition()])
    assert len(endless) == 100
    assert stopped == endless[: len(stopped)]
    seen = [endless[i : i + 8] for i in range(93)]
    first = next(i for i, tokens in enumerate(seen) if seen[:i].count(tokens) >= 2)
    assert len(stopped) == first + 8


@pytest.mark.parametrize(
    ("ids", "repeats"),
    [
        (range(20), False),
        ([*range(8), *range(8)], False),
        ([*range(8), *range(8), *range(8)], True),
        ([9] * 10, True),
        ([9] * 9, False),
        ([*range(8), *range(8), *range(8), 3], False),
        ([], False),
    ],
)
def test_a_repetition_is_eight_tokens_that_were_there_twice_before(ids, repeats):
    ids = torch.tensor([list(ids)])
    assert _end_in_repetition(ids).tolist() == [repeats]


def test_words_are_written_as_whisper_writes_them(packed, whole, path, monkeypatch):
    model = EmotionTransducer.from_hparams(packed, ssl=whole, words="whisper")
    text = "Well, Mr. Fox \u2013 25 cats!"
    monkeypatch.setattr(model.whisper, "transcribe", lambda wavs, states, language: [text])
    annotation = model.annotate_file(path)
    assert annotation.text == text == model.transcribe_file(path)
    assert [word.text for word in annotation.words] == ["Well,", "Mr.", "Fox \u2013", "25", "cats!"]
    times = [time for word in annotation.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert times[-1] <= annotation.duration
    assert {word.emotion for word in annotation.words} <= set(model.emotions)
    own = EmotionTransducer.from_hparams(packed, ssl=whole, words="own")
    assert model.with_own_words().annotate_file(path) == own.annotate_file(path)
    assert model.annotate_file(path) == annotation


def test_nobody_asks_whisper_about_silence(packed, whole, monkeypatch):
    model = EmotionTransducer.from_hparams(packed, ssl=whole, words="whisper")
    asked = []
    monkeypatch.setattr(
        model.whisper, "transcribe", lambda wavs, *rest: [asked.append(wavs) or "Thank you."]
    )
    assert model.transcribe_batch(torch.zeros(1, RATE)) == [""]
    assert asked == []


def test_whisper_writes_where_its_decoder_is_at_hand(packed, whole, frontend, tmp_path, path):
    frontend.save_ssl(tmp_path / "encoder")
    loaded = {
        name: EmotionTransducer.from_hparams(packed, ssl=ssl, words=words)
        for name, ssl, words in (
            ("whole", whole, None),
            ("encoder", tmp_path / "encoder", None),
            ("own", whole, "own"),
        )
    }
    assert {name: model.whisper is not None for name, model in loaded.items()} == {
        "whole": True,
        "encoder": False,
        "own": False,
    }
    annotations = {name: model.annotate_file(path) for name, model in loaded.items()}
    assert annotations["whole"].words_by == "whisper"
    assert annotations["encoder"].words_by == annotations["own"].words_by == "model"


def test_the_command_line_chooses_the_words(packed, whole, path, capsys, tmp_path):
    asked = ["annotate", str(path), "--model", str(packed), "--ssl", str(whole), "--quiet"]
    said = {}
    for words in ("own", "whisper"):
        with pytest.raises(SystemExit) as caught:
            cli.main([*asked, "--words", words])
        assert caught.value.code == 0
        said[words] = Annotation.from_json(capsys.readouterr().out)
    loaded = EmotionTransducer.from_hparams(packed, ssl=whole, words="whisper")
    assert said["whisper"] == loaded.annotate_file(path)
    assert said["own"].text != said["whisper"].text
    out = ["--out", str(tmp_path / "out")]
    for extra, done in (([], "1/1"), ([], "0file"), (["--words", "own"], "1/1")):
        with pytest.raises(SystemExit):
            cli.main([*asked[:-1], *out, *extra])
        assert done in capsys.readouterr().err


def test_what_whisper_s_words_need_is_said(packed, whole, tiny_ssl, trained, tmp_path):
    def refusal(folder, **settings):
        with pytest.raises(InputError) as caught:
            EmotionTransducer.from_hparams(folder, words="whisper", **settings)
        return str(caught.value)

    encoder = tmp_path / "encoder"
    frontend = SSLFrontend("whisper", whole, "hub")
    frontend.save_ssl(encoder)
    assert refusal(packed, ssl=encoder) == (
        f"{encoder}: no generation_config.json, tokenizer.json, tokenizer_config.json there. Name "
        "a whole Whisper model's folder."
    )
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (encoder / name).write_bytes((whole / name).read_bytes())
    assert refusal(packed, ssl=encoder).startswith(f"{encoder}: holds Whisper's encoder, but no ")
    export(trained(), tmp_path / "fbank", 2.5)
    assert refusal(tmp_path / "fbank").startswith("words: whisper: needs a model of words with ")
    model = EmotionTransducer.from_hparams(packed, ssl=whole, words="whisper", language="xx")
    with pytest.raises(InputError, match="'xx': not one of Whisper's"):
        model.whisper.transcribe([torch.zeros(RATE)], [torch.zeros(50, 24)], "xx")
    with pytest.raises(InputError, match="choose own or whisper"):
        EmotionTransducer.from_hparams(packed, words="mine")
