import numpy as np
import pytest
import soundfile
import torch

from ent_brain.alignment import align
from ent_brain.annotation import Annotation
from ent_brain.dataio import read_audio
from ent_brain.decoding import search
from ent_brain.emotions import PUBLISHED
from ent_brain.errors import InputError
from ent_brain.export import export
from ent_brain.frontend import SSLFrontend
from ent_brain.inference import NO_SPEECH, PRECISIONS, EmotionTransducer
from ent_brain.model import ENT, FENT

RATE = 16000


def noise(seconds, seed=0, rate=RATE):
    """Bursts of noise that a random model distinguishes, with pauses in between."""
    generator = np.random.default_rng(seed)
    wav = 0.1 * generator.normal(size=int(seconds * rate))
    loud = generator.uniform(0.2, 1.0, size=int(seconds) + 1)
    return (wav * np.repeat(loud, rate)[: len(wav)]).astype(np.float32)


def write(path, wav, rate=RATE, **settings):
    soundfile.write(path, wav, rate, **settings)
    return path


@pytest.fixture(scope="module", params=[ENT, FENT], ids=lambda kind: kind.__name__)
def pair(request, tmp_path_factory, trained):
    """A Brain, and the model loaded from its export."""
    folder = tmp_path_factory.mktemp(request.param.__name__) / "pretrained"
    brain = trained(request.param)
    export(brain, folder, longest_window=2.0)
    return brain, EmotionTransducer.from_hparams(source=folder)


@pytest.fixture(scope="module")
def loaded(pair):
    return pair[1]


def test_an_export_gives_the_very_outputs_of_the_training_process(pair, tmp_path):
    brain, loaded = pair
    path = write(tmp_path / "a.wav", noise(1.6))
    frontend, model = brain.raw_modules["frontend"], brain.raw_modules["model"]
    with torch.no_grad():
        features, frame_lens = frontend(read_audio(path, RATE)[None], torch.ones(1))
        encoded = model.encode(features, frame_lens)
        [[best]] = search(model, encoded, frame_lens, 2, max_symbols=2)
        [aligned] = align(model, encoded, frame_lens, [best])
    text = brain.tokens.decode(best.tokens)
    assert len(text) > 3
    annotation = loaded.annotate_file(path)
    assert loaded.transcribe_file(path) == annotation.text == text
    probabilities, emotion = loaded.classify_file(path)
    assert torch.equal(probabilities, best.utterance_log_probs.exp())
    assert emotion == annotation.emotion == PUBLISHED.names[int(probabilities.argmax())]
    rounded = [[round(p, 4) for p in row] for row in best.emotion_log_probs.exp().tolist()]
    assert [list(row) for row in annotation.frame_probabilities] == rounded
    first = brain.tokens.words(aligned.tokens)[0][1]
    assert annotation.words[0].start == pytest.approx(0.04 * aligned.frames[first], abs=1e-4)
    assert loaded.diarize_file(path) == list(annotation.segments)


def test_a_batch_gives_what_its_recordings_give_alone(loaded, tmp_path):
    wavs = [noise(seconds, seed) for seed, seconds in enumerate((1.9, 0.7, 1.2))]
    files = [write(tmp_path / f"{i}.wav", wav, subtype="FLOAT") for i, wav in enumerate(wavs)]
    lens = torch.tensor([len(wav) for wav in wavs])
    batch = torch.full((3, int(lens.max())), 0.5)  # padding is not heard, whatever is in it
    for row, wav in zip(batch, wavs, strict=True):
        row[: len(wav)] = torch.from_numpy(wav)
    found = loaded.annotate_batch(batch, lens / lens.max(), names="012")
    probabilities, emotions = loaded.classify_batch(batch, lens / lens.max())
    for row, (path, annotation) in enumerate(zip(files, found, strict=True)):
        alone = loaded.annotate_file(path)
        assert (annotation.name, annotation.text) == (alone.name, alone.text)
        assert annotation.segments == alone.segments
        assert annotation.duration == pytest.approx(alone.duration, abs=1e-4)
        torch.testing.assert_close(
            torch.tensor(annotation.frame_probabilities),
            torch.tensor(alone.frame_probabilities),
            rtol=0,
            atol=2e-4,
        )
        torch.testing.assert_close(probabilities[row], loaded.classify_file(path)[0])
        assert emotions[row] == alone.emotion
    assert loaded.transcribe_batch(batch, lens / lens.max()) == [each.text for each in found]
    assert loaded.diarize_batch(batch, lens / lens.max()) == [list(a.segments) for a in found]


@pytest.mark.parametrize(
    ("name", "rate", "channels", "settings"),
    [
        ("a.wav", 44100, 2, {}),
        ("a.wav", 8000, 1, {"subtype": "PCM_U8"}),
        ("a.flac", 48000, 1, {"subtype": "PCM_24"}),
        ("a.mp3", 22050, 1, {}),
        ("a.ogg", 32000, 2, {}),
        ("a.opus.ogg", 48000, 1, {"format": "OGG", "subtype": "OPUS"}),
    ],
)
def test_files_of_any_kind_are_heard(loaded, tmp_path, name, rate, channels, settings):
    wav = np.repeat(noise(1.5, rate=rate)[:, None], channels, axis=1)
    annotation = loaded.annotate_file(write(tmp_path / name, wav, rate, **settings))
    assert annotation.duration == pytest.approx(1.5, abs=0.1)  # MP3 adds a little
    assert annotation.segments[-1].end == annotation.duration
    assert annotation.name == name.rpartition(".")[0]


@pytest.mark.parametrize("seconds", [0.1, 0.3])
def test_a_fraction_of_a_second_is_heard(loaded, tmp_path, seconds):
    annotation = loaded.annotate_file(write(tmp_path / "a.wav", noise(seconds)))
    assert annotation.duration == seconds
    assert (annotation.segments[0].start, annotation.segments[-1].end) == (0, seconds)


@pytest.mark.parametrize("samples", [1, 800, 1599])
def test_less_than_a_tenth_of_a_second_has_no_words_and_no_emotion(loaded, tmp_path, samples):
    wav = noise(1.0)[:samples]
    path = write(tmp_path / "a.wav", wav, subtype="FLOAT")
    [in_batch] = loaded.annotate_batch(wav, names=["a"])
    for annotation in (loaded.annotate_file(path), in_batch):
        assert (annotation.text, annotation.words) == ("", ())
        assert (annotation.emotion, annotation.segments) == (None, ())
        assert annotation.notes == (NO_SPEECH,)
        assert Annotation.from_json(annotation.to_json()) == annotation
    assert loaded.transcribe_file(path) == ""
    with pytest.raises(InputError) as caught:
        loaded.classify_file(path)
    assert str(caught.value) == f"{path}: {NO_SPEECH}. Give more speech."


def test_one_waveform_is_a_batch_of_one_and_lengths_may_be_left_out(loaded):
    wav = torch.from_numpy(noise(1.3))
    expected = loaded.annotate_batch(wav[None], torch.ones(1))
    assert loaded.annotate_batch(wav) == loaded.annotate_batch(wav[None]) == expected
    assert loaded.transcribe_batch(wav) == [expected[0].text]
    probabilities, emotions = loaded.classify_batch(wav.numpy())
    assert probabilities.shape == (1, 4)
    assert emotions == [expected[0].emotion]
    assert loaded.diarize_batch(wav) == [list(expected[0].segments)]


SHAPES = "Give floating-point samples from -1 to 1, [S] or [B, S], with at least one sample."
LENS = "Give each a share of the longest, above 0 and up to 1."


@pytest.mark.parametrize(
    ("wavs", "lens", "message"),
    [
        (torch.zeros(2, 9, 2), None, f"wavs: torch.float32 of shape [2, 9, 2]. {SHAPES}"),
        (torch.zeros(0, 9), None, f"wavs: torch.float32 of shape [0, 9]. {SHAPES}"),
        (torch.zeros(3, 0), None, f"wavs: torch.float32 of shape [3, 0]. {SHAPES}"),
        (
            [torch.zeros(9), torch.zeros(8)],
            None,
            "wavs: no tensor. Pad waveforms to one length, and give wav_lens.",
        ),
        (torch.tensor(0.5), None, f"wavs: torch.float32 of shape []. {SHAPES}"),
        (
            torch.zeros(1, 9, dtype=torch.int16),
            None,
            f"wavs: torch.int16 of shape [1, 9]. {SHAPES}",
        ),
        (torch.zeros(2, 9), torch.ones(3), f"wav_lens: [1.0, 1.0, 1.0] for 2 waveforms. {LENS}"),
        (torch.zeros(1, 9), torch.tensor([9]), f"wav_lens: [9] for 1 waveforms. {LENS}"),
        (torch.zeros(1, 9), torch.tensor([torch.nan]), f"wav_lens: [nan] for 1 waveforms. {LENS}"),
        (
            torch.tensor([[0.0, 0.1], [torch.nan, 0.1]]),
            None,
            "wavs: waveform 1 has samples that are NaN or absurdly large. Replace it.",
        ),
        (
            torch.full((9,), 1e7),
            None,
            "wavs: waveform 0 has samples that are NaN or absurdly large. Replace it.",
        ),
    ],
)
def test_what_is_no_batch_is_refused_in_one_line(loaded, wavs, lens, message):
    for method in ("transcribe", "classify", "diarize", "annotate"):
        with pytest.raises(InputError) as caught:
            getattr(loaded, f"{method}_batch")(wavs, lens)
        assert str(caught.value) == message


def test_as_many_names_as_waveforms(loaded):
    with pytest.raises(InputError, match="names: 2 for 1 waveforms. Give one for each."):
        loaded.annotate_batch(noise(0.5), names="ab")


def test_a_device_may_be_an_object_and_weights_are_of_single_precision(tmp_path, trained):
    export(trained(), tmp_path / "export", longest_window=2.0)
    options = {"device": torch.device("cpu")}
    model = EmotionTransducer.from_hparams(source=tmp_path / "export", run_opts=options)
    path = write(tmp_path / "a.wav", noise(1.3))
    single = model.annotate_file(path)
    with pytest.raises(InputError) as caught:
        model.to(torch.float64).annotate_file(path)
    assert str(caught.value) == "model: weights are torch.float64. Call model.float() first."
    assert model.float().annotate_file(path) == single


@pytest.mark.parametrize("seconds", [0.5, 5.0])
def test_silence_has_no_words_and_no_emotion(loaded, tmp_path, seconds):
    path = write(tmp_path / "a.wav", np.zeros(int(seconds * RATE), dtype=np.float32))
    annotation = loaded.annotate_file(path)
    assert (annotation.duration, annotation.text, annotation.words) == (seconds, "", ())
    assert (annotation.emotion, annotation.segments) == (None, ())
    assert annotation.notes == (NO_SPEECH,)


def test_frames_without_speech_are_neutral_and_their_sound_changes_nothing(loaded):
    speech, faint = noise(2.0), 5e-4 * noise(15.0, seed=1)
    [alone] = loaded.annotate_batch(torch.from_numpy(speech))
    [after] = loaded.annotate_batch(torch.from_numpy(np.concatenate((faint, speech))))
    neutral = PUBLISHED.index("neutral")
    frames = np.array(after.frame_probabilities)
    before = int(14.8 / after.frame_duration)  # up to a margin of 0.1 s
    assert (frames[:before].argmax(1) == neutral).all() and (frames[:before].max(1) > 0.99).all()
    assert len(frames) - before > len(alone.frame_probabilities)
    assert all(word.start > 13.9 for word in after.words)


@pytest.mark.parametrize("before, after", [(5.0, 0.0), (0.0, 5.0), (4.0, 6.0)])
def test_a_single_window_has_its_place_in_the_recording(tmp_path, trained, before, after):
    export(trained(), tmp_path / "export", longest_window=30.0)
    model = EmotionTransducer.from_hparams(source=tmp_path / "export")
    wav = np.concatenate([np.zeros(int(before * RATE)), noise(2.0), np.zeros(int(after * RATE))])
    [heard] = model.annotate_batch(torch.from_numpy(wav).float())
    # The window is the speech and a second around it.
    assert before - 1.1 < heard.words[0].start < heard.words[-1].end < before + 3.1
    frames, seconds = np.array(heard.frame_probabilities), heard.frame_duration
    assert len(frames) == model.mods.frontend.count_frames(len(wav))
    spoken = frames.max(1) < 0.99
    first, end = int((before + 0.3) / seconds), int((before + 1.7) / seconds)
    assert spoken[first:end].all()
    assert not spoken[: int((before - 0.3) / seconds)].any() or before == 0
    assert not spoken[int((before + 2.5) / seconds) :].any()


def test_a_long_recording_is_what_is_heard_in_its_parts(loaded, tmp_path, capsys):
    """Bursts shorter than a window, separated by pauses, give the same results alone."""
    bursts = [noise(1.4, seed) for seed in range(12)]
    pause = np.zeros(int(0.6 * RATE), dtype=np.float32)
    long = np.concatenate([part for burst in bursts for part in (burst, pause)])
    annotation = loaded.annotate_file(write(tmp_path / "long.wav", long, subtype="FLOAT"))
    assert "long.wav" in capsys.readouterr().err, "no progress bar"
    assert annotation.duration == 24.0
    assert len(annotation.frame_probabilities) == 601  # as one pass: a step begins at the end
    starts = [word.start for word in annotation.words]
    assert starts == sorted(starts)
    assert loaded.transcribe_file(tmp_path / "long.wav") == annotation.text
    assert Annotation.from_json(annotation.to_json()) == annotation


def test_windows_of_an_ssl_model_have_as_many_frames_as_the_whole(tmp_path, trained, tiny_ssl):
    frontend = SSLFrontend("wav2vec2", tiny_ssl("wav2vec2"), tmp_path / "ssl")
    export(trained(ENT, frontend), tmp_path / "export", longest_window=2.0)
    model = EmotionTransducer.from_hparams(source=tmp_path / "export")
    path = write(tmp_path / "long.wav", noise(21.3))
    annotation = model.annotate_file(path)
    assert len(annotation.frame_probabilities) == (int(21.3 * RATE) - 400) // 320 + 1


def test_the_encoder_may_compute_in_half_precision(tmp_path, trained, tiny_ssl):
    frontend = SSLFrontend("whisper", tiny_ssl("whisper"), tmp_path / "ssl")
    export(trained(ENT, frontend), tmp_path / "export", longest_window=2.0)
    path, computed, rows = write(tmp_path / "a.wav", noise(1.3)), {}, {}
    for precision in PRECISIONS:
        options = {"precision": precision}
        model = EmotionTransducer.from_hparams(source=tmp_path / "export", run_opts=options)
        model.mods.frontend.ssl_model.encoder.layers[0].fc1.register_forward_hook(
            lambda *args, precision=precision: computed.update({precision: args[-1].dtype})
        )
        rows[precision] = np.array(model.annotate_file(path).frame_probabilities)
        assert np.abs(rows[precision] - rows["fp32"]).max() < 0.05
    assert [computed[each] for each in PRECISIONS] == [torch.float32, torch.bfloat16, torch.float16]
    with pytest.raises(InputError, match="^precision: 'int8': choose fp32 or bf16 or fp16$"):
        EmotionTransducer.from_hparams(tmp_path / "export", run_opts={"precision": "int8"})


def test_a_recording_that_is_cut_off_is_annotated_as_far_as_it_goes(loaded, tmp_path):
    path = write(tmp_path / "a.wav", noise(3.0))
    path.write_bytes(path.read_bytes()[: 44 + 2 * int(1.8 * RATE)])
    annotation = loaded.annotate_file(path)
    assert annotation.duration == 1.8
    assert annotation.notes == ("header says 3.00 s, 1.80 s could be decoded",)
    assert Annotation.from_json(annotation.to_json()).notes == annotation.notes
    write(tmp_path / "b.wav", noise(3.0)[: int(1.8 * RATE)])
    assert annotation.words == loaded.annotate_file(tmp_path / "b.wav").words


def test_a_channel_is_annotated_as_if_it_were_alone(loaded, tmp_path):
    first, second = noise(1.3, seed=5), noise(1.3, seed=6)
    path = write(tmp_path / "a.wav", np.stack([first, second], 1), subtype="FLOAT")
    for channel, wav in ((1, first), (2, second)):
        (tmp_path / str(channel)).mkdir()
        alone = write(tmp_path / str(channel) / "a.wav", wav, subtype="FLOAT")
        assert loaded.annotate_file(path, channel=channel) == loaded.annotate_file(alone)
    with pytest.raises(InputError, match="has no channel 3: give one from 1 to 2"):
        loaded.annotate_file(path, channel=3)


def test_two_files_of_one_name_are_two(loaded, tmp_path):
    for folder, seed in (("a", 3), ("b", 4)):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "x.wav", noise(1.0, seed))
    first, second = (loaded.annotate_file(tmp_path / f / "x.wav") for f in "ab")
    assert first.frame_probabilities != second.frame_probabilities


def test_a_model_without_words_or_emotions_tells_what_it_can(tmp_path, trained):
    path = write(tmp_path / "a.wav", noise(1.0))
    export(trained(ENT, emotion_joint=False, pooled_head=False), tmp_path / "asr", 2.0)
    annotation = EmotionTransducer.from_hparams(source=tmp_path / "asr").annotate_file(path)
    assert annotation.text
    assert (annotation.emotion, annotation.segments) == (None, ())
    export(trained(ENT, token_joint=False), tmp_path / "ser", 2.0)
    annotation = EmotionTransducer.from_hparams(source=tmp_path / "ser").annotate_file(path)
    assert (annotation.text, annotation.words) == ("", ())
    assert annotation.emotion in PUBLISHED.names


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file: check the path"),
        (b"not a sound", "cannot be read as audio"),
        (np.zeros(0), "holds no audio: replace or remove it"),
        (np.full(9, np.nan), "holds samples that are no sound: replace it"),
    ],
)
def test_what_is_no_recording_is_refused_in_one_line(loaded, tmp_path, content, reason):
    path = tmp_path / "bad.wav"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        write(path, content, subtype="FLOAT")
    with pytest.raises(InputError, match=reason) as caught:
        loaded.annotate_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
