"""Recordings as people have them. Each line of the table once gave a wrong result."""

import ast
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile

from ent_brain import inference, speech
from ent_brain.dataio import read_audio
from ent_brain.export import OPEN_ENGLISH, export
from ent_brain.frontend import FbankFrontend
from ent_brain.inference import NO_SPEECH, EmotionTransducer

RATE = 16000
SHARED = Path(__file__).resolve().parents[2] / "shared"
ENCODER, LIBRISPEECH = SHARED / "models" / "whisper-base", SHARED / "data" / "librispeech"

TABLE = {
    "recordings 6 dB louder, and 6, 20 or 40 dB quieter": [
        "test_gain_changes_neither_words_nor_emotion"
    ],
    "utterances joined without pauses": [
        "test_utterances_joined_without_pauses_keep_their_words",
        "test_windows.test_words_of_overlapping_windows_are_joined_without_loss_or_double",
        "test_windows.test_without_pauses_windows_overlap_and_cover_all",
    ],
    "a constant offset on a long recording": [
        "test_an_offset_changes_nothing_in_a_long_recording",
        "test_speech.test_level_offset_and_blocks_change_no_region",
    ],
    "the same long file 6, 20 or 50 dB quieter": [
        "test_a_long_recording_may_be_quieter",
        "test_level.test_gain_is_undone",
    ],
    "stereo with one channel inverted": [
        "test_a_channel_that_is_inverted_or_silent_costs_nothing",
        "test_audio.test_no_channel_takes_from_another",
    ],
    "one silent channel": [
        "test_a_channel_that_is_inverted_or_silent_costs_nothing",
        "test_audio.test_no_channel_takes_from_another",
    ],
    "noise, hum, a constant offset; faint noise before the speech": [
        "test_where_nobody_speaks_there_are_no_words_and_no_emotion",
        "test_speech.test_no_speech_is_found_where_nobody_speaks",
        "test_inference.test_frames_without_speech_are_neutral_and_their_sound_changes_nothing",
    ],
    "an MP3 without a Xing header; three joined; one cut off": [
        "test_audio.test_an_mp3_needs_no_header",
        "test_audio.test_joined_mp3s_are_read_to_the_end",
        "test_audio.test_what_is_cut_off_is_read_as_far_as_it_goes",
    ],
    "a WAV whose header says half of the data, or none": [
        "test_audio.test_a_wav_is_read_as_far_as_its_data_go",
    ],
    "m4a, webm and mp4, in a folder and named": [
        "test_cli.test_videos_of_a_folder_are_taken_and_other_media_are_counted",
        "test_audio.test_every_format_is_read_whole_and_without_a_note",
    ],
    "a second run after the recording or the model changed": [
        "test_cli.test_results_that_are_out_of_date_are_made_again",
    ],
    "two files whose names differ by a space": ["test_formats.test_rttm_keeps_names_apart"],
    "less than 0.1 s of audio": [
        "test_inference.test_less_than_a_tenth_of_a_second_has_no_words_and_no_emotion",
        "test_cli.test_what_is_too_short_for_words_is_noted",
    ],
    "a caption without a duration; the end of a TextGrid": [
        "test_formats.test_captions_are_where_their_words_are",
        "test_formats.test_textgrid_has_the_times_of_the_words",
        "test_annotation.test_no_time_lies_after_the_audio",
    ],
    "batches without lengths, of one waveform, of other shapes, and empty": [
        "test_inference.test_one_waveform_is_a_batch_of_one_and_lengths_may_be_left_out",
        "test_inference.test_what_is_no_batch_is_refused_in_one_line",
    ],
}
"""Tests of each line: of this file, or by the file that holds them."""


@pytest.mark.parametrize("line", TABLE)
def test_each_line_of_the_table_has_its_tests(line):
    for name in TABLE[line]:
        file, _, test = name.rpartition(".")
        path = Path(__file__).with_name(f"{file}.py") if file else Path(__file__)
        tests = ast.parse(path.read_text("utf-8")).body
        assert test in [each.name for each in tests if isinstance(each, ast.FunctionDef)], name


def bursts(seconds, seed=0):
    """Noise of different loudness in each second, loud enough to be speech 50 dB quieter."""
    generator = np.random.default_rng(seed)
    loudness = generator.uniform(0.5, 1.5, size=int(seconds) + 1)
    wav = generator.normal(size=int(seconds * RATE))
    return (wav * np.repeat(loudness, RATE)[: len(wav)]).astype(np.float32)


def with_pauses():
    """24 s: 12 bursts that each fit a window of the model."""
    pause = np.zeros(int(0.6 * RATE), dtype=np.float32)
    return np.concatenate([part for seed in range(12) for part in (bursts(1.4, seed), pause)])


def write(path, wav):
    soundfile.write(path, wav, RATE, subtype="FLOAT")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory, trained):
    """A small model with random weights that hears 2 s at once, at one level."""
    folder = tmp_path_factory.mktemp("model") / "pretrained"
    frontend = FbankFrontend(frame_duration=0.04, level=-26.0)
    export(trained(frontend=frontend), folder, 2.0)
    return EmotionTransducer.from_hparams(source=folder)


def test_gain_changes_neither_words_nor_emotion(model, tmp_path):
    texts = set()
    for seed in range(20):
        wav = bursts(1.6, seed)
        expected = model.annotate_file(write(tmp_path / "a.wav", wav))
        texts.add(expected.text)
        for decibels in (6, -6, -20, -40):
            found = model.annotate_file(write(tmp_path / "a.wav", wav * 10 ** (decibels / 20)))
            assert (found.text, found.emotion) == (expected.text, expected.emotion)
            assert found.notes == expected.notes
    assert len(texts) > 10


@pytest.mark.parametrize("offset", [0.02, 0.1, 0.5])
def test_an_offset_changes_nothing_in_a_long_recording(model, tmp_path, monkeypatch, offset):
    wav = 0.1 * with_pauses()
    wav -= wav.mean()
    expected = model.annotate_file(write(tmp_path / "a.wav", wav), progressbar=False)
    find = inference.find_speech  # a stand-in that takes an offset for sound
    monkeypatch.setattr(
        inference, "find_speech", lambda blocks: find(block - offset for block in blocks)
    )
    found = model.annotate_file(write(tmp_path / "b.wav", wav + offset), progressbar=False)
    assert len(expected.words) > 10
    assert [word[:4] for word in found.words] == [word[:4] for word in expected.words]
    assert found.emotion == expected.emotion


@pytest.mark.parametrize("decibels", [-6, -20, -50])
def test_a_long_recording_may_be_quieter(model, tmp_path, decibels):
    wav = with_pauses()
    expected = model.annotate_file(write(tmp_path / "a.wav", wav), progressbar=False)
    quieter = write(tmp_path / "b.wav", wav * 10 ** (decibels / 20))
    found = model.annotate_file(quieter, progressbar=False)
    assert len(expected.words) > 10
    assert [word[:4] for word in found.words] == [word[:4] for word in expected.words]
    assert found.emotion == expected.emotion


@pytest.mark.parametrize("seconds", [1.6, 5.0], ids=["short", "long"])
@pytest.mark.parametrize(
    ("gain", "note"),
    [
        (-1, "the 2 channels cancel each other out: channel 1 alone is used"),
        (0, "channel 2 of 2 is silent: left out"),
    ],
    ids=["inverted", "silent"],
)
def test_a_channel_that_is_inverted_or_silent_costs_nothing(model, tmp_path, seconds, gain, note):
    wav = bursts(seconds)
    expected = model.annotate_file(write(tmp_path / "a.wav", wav), progressbar=False)
    stereo = write(tmp_path / "b.wav", np.stack([wav, gain * wav], 1))
    found = model.annotate_file(stereo, progressbar=False)
    assert expected.text
    assert (found.words, found.segments) == (expected.words, expected.segments)
    assert found.frame_probabilities == expected.frame_probabilities
    assert found.notes == (note,)


TIME = np.arange(5 * RATE) / RATE
WHITE = np.random.default_rng(0).normal(size=len(TIME))
NOBODY_SPEAKS = {
    **{f"white noise at {level} dB": WHITE * 10 ** (level / 20) for level in (-55, -40, -20)},
    "hum": 0.03 * np.sin(2 * np.pi * 50 * TIME),
    "constant offset": 0.1 + 0 * TIME,
}


@pytest.mark.parametrize("kind", NOBODY_SPEAKS)
def test_where_nobody_speaks_there_are_no_words_and_no_emotion(model, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(inference, "find_speech", speech.find_speech)  # other tests replace it
    path = write(tmp_path / "a.wav", NOBODY_SPEAKS[kind])
    annotation = model.annotate_file(path, progressbar=False)
    assert (annotation.text, annotation.emotion, annotation.segments) == ("", None, ())
    assert annotation.notes == (NO_SPEECH,)


def test_utterances_joined_without_pauses_keep_their_words(long_mode, tmp_path, monkeypatch):
    """Speech of two people, with the model in the package: within two points of the parts."""
    if not (ENCODER.is_dir() and LIBRISPEECH.is_dir()):
        pytest.skip(f"no {ENCODER} or no {LIBRISPEECH}")
    monkeypatch.setattr(inference, "find_speech", speech.find_speech)
    model = EmotionTransducer.from_hparams(source=OPEN_ENGLISH, ssl=ENCODER)
    said, alone, joined = [], [], []
    for transcripts in sorted((LIBRISPEECH / "test-speakers").rglob("*.trans.txt")):
        lines = [line.split(" ", 1) for line in transcripts.read_text().splitlines()[:4]]
        parts = []
        for name, _ in lines:
            path = transcripts.with_name(f"{name}.opus")
            alone.append(model.transcribe_file(path))
            wav = read_audio(path, RATE)
            regions = speech.find_speech([wav]).regions
            parts.append(wav[regions[0][0] : regions[-1][1]].numpy())
        said.append(lines)
        path = write(tmp_path / "joined.wav", np.concatenate(parts))
        joined.append(model.transcribe_file(path))
    of_parts = jiwer.wer([text for lines in said for _, text in lines], alone)
    of_joined = jiwer.wer([" ".join(text for _, text in lines) for lines in said], joined)
    assert of_joined <= of_parts + 0.02
