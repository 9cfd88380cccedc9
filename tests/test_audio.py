"""Reading of complete audio: earlier readers silently lost audio of each file below."""

import os
import re
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from ent_brain.audio import (
    CLIPPED,
    check_audio,
    load_audio,
    mix_weights,
    read_blocks,
    restore_peaks,
    scan_audio,
)
from ent_brain.dataio import read_audio
from ent_brain.errors import InputError
from ent_brain.windows import read_windows

RATE = 16000
CODECS = {
    "wav": ("pcm_s16le", RATE),
    "flac": ("flac", RATE),
    "mp3": ("libmp3lame", RATE),
    "ogg": (None, RATE),  # FFmpeg's encoder of Vorbis is an experiment
    "opus": ("libopus", 48000),
    "webm": ("libopus", 48000),
    "m4a": ("aac", RATE),
    "avi": ("libmp3lame", RATE),
}
MORE_CODECS = {
    "aac": ("aac", RATE),
    "wma": ("wmav2", RATE),
    "amr": ("libopencore_amrnb", 8000),
    "aiff": ("pcm_s16be", RATE),
    "au": ("pcm_s16be", RATE),
    "caf": ("pcm_s16le", RATE),
    "w64": ("pcm_s16le", RATE),
    "mp4": ("aac", RATE),
    "mkv": ("pcm_s16le", RATE),
    "gsm": (None, 8000),
}
FUZZED = [*CODECS, "mp4", "mkv", "aac", "amr", "gsm"]
WITHOUT_LENGTH = {"aac", "amr", "gsm"}
"""Formats that are frames one after another: nothing tells how many there were."""


def noise(seconds=3.0, seed=0, rate=RATE):
    """Noise without pauses, in a band that every codec preserves."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(size=round(seconds * rate)))
    spectrum[round(2000 * seconds) :] = 0
    wav = np.fft.irfft(spectrum)
    return (0.1 * wav / wav.std()).astype(np.float32)


def encode(path, wav, codec, rate, video=False, **options):
    """Write a file with FFmpeg or soundfile, from wav [S] or [S, C] at 16 kHz."""
    if codec is None:
        raw = {"format": "RAW", "subtype": "GSM610"} if path.suffix == ".gsm" else {}
        soundfile.write(path, wav[:: RATE // rate], rate, **raw)
        return path
    samples = np.ascontiguousarray(np.atleast_2d(wav.T))
    layout = "mono" if len(samples) == 1 else "stereo"
    with av.open(str(path), "w", options=options) as container:
        if video:
            picture = container.add_stream("mpeg4", rate=10, width=64, height=64)
        stream = container.add_stream(codec, rate=rate)
        stream.layout, stream.bit_rate = layout, 12200 if codec.endswith("amrnb") else 64000
        stream.codec_context.open()
        convert = av.AudioResampler(stream.codec_context.format, layout, rate).resample
        for start in range(0, samples.shape[1], 1600):
            piece = np.ascontiguousarray(samples[:, start : start + 1600])
            frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
            frame.sample_rate = RATE
            for part in convert(frame):
                container.mux(stream.encode(part))
        for part in convert(None):
            container.mux(stream.encode(part))
        if video:
            for _ in range(round(10 * samples.shape[1] / RATE)):
                image = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
                container.mux(picture.encode(image))
            container.mux(picture.encode(None))
        container.mux(stream.encode(None))
    return path


def resembles(samples, rate, wav):
    """Correlation of decoded samples with the original, at the best shift within 0.1 s."""
    times = np.arange(len(wav)) / RATE
    found = np.interp(times, np.arange(len(samples)) / rate, samples, right=0)
    product = np.fft.irfft(np.fft.rfft(found) * np.fft.rfft(wav).conj(), len(wav))
    near = np.r_[product[:1600], product[-1600:]]
    return near.max() / (np.linalg.norm(found) * np.linalg.norm(wav))


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """``media("m4a")`` is a file of 3 s of noise."""
    folder, made = tmp_path_factory.mktemp("media"), {}

    def make(kind):
        if kind not in made:
            codec, rate = (CODECS | MORE_CODECS)[kind]
            path = folder / f"a.{kind}"
            made[kind] = encode(path, noise(), codec, rate, kind in ("mp4", "mkv", "avi"))
        return made[kind]

    return make


@pytest.mark.parametrize("kind", CODECS | MORE_CODECS)
def test_every_format_is_read_whole_and_without_a_note(media, kind):
    audio, samples = load_audio(media(kind))
    assert audio.notes == ()
    assert not audio.lost
    assert audio.seconds == pytest.approx(3.0, abs=0.1)
    assert len(samples) == audio.frames
    assert resembles(samples, audio.samplerate, noise()) > {"amr": 0.7, "gsm": 0.8}.get(kind, 0.97)
    assert scan_audio(media(kind)).seconds == audio.seconds
    checked = check_audio(media(kind))
    assert (checked.frames, checked.samplerate) == (audio.frames, audio.samplerate)


# --- the table of what was lost in silence


@pytest.mark.parametrize(("said", "note"), [(1.5, "1.50"), (0, "0.00"), (6, "6.00")])
def test_a_wav_is_read_as_far_as_its_data_go(media, tmp_path, said, note):
    content = media("wav").read_bytes()
    at = content.index(b"data") + 4
    path = tmp_path / "a.wav"
    path.write_bytes(content[:at] + struct.pack("<I", round(said * 2 * RATE)) + content[at + 4 :])
    audio, samples = load_audio(path)
    np.testing.assert_array_equal(samples, load_audio(media("wav"))[1])
    assert audio.notes == (f"header says {note} s, 3.00 s could be decoded",)
    assert audio.lost == (said > 3)


@pytest.mark.parametrize("behind", [b"LIST\x04\0\0\0abcd", b"\0" * 99, b"TAG" + b"x" * 125])
def test_what_lies_behind_the_data_of_a_wav_is_not_read(media, tmp_path, behind):
    path = tmp_path / "a.wav"
    path.write_bytes(media("wav").read_bytes() + behind)
    assert scan_audio(path).notes == ()
    assert scan_audio(path).frames == 3 * RATE


def test_a_wav_with_a_wrong_number_of_bytes_a_second_is_read_and_told(media, tmp_path):
    content = bytearray(media("wav").read_bytes())
    content[28:32] = struct.pack("<I", 9999)
    path = tmp_path / "a.wav"
    path.write_bytes(content + b"LIST" + struct.pack("<I", 9000) + bytes(9000))
    audio = scan_audio(path)
    assert (audio.frames, audio.lost) == (3 * RATE, False)
    assert audio.notes == ("the header contradicts itself about rate, channels or sample size",)


def test_a_wav_whose_writer_did_not_know_its_size_needs_no_note(media, tmp_path):
    content = media("wav").read_bytes()
    at = content.index(b"data") + 4
    path = tmp_path / "a.wav"
    path.write_bytes(content[:at] + b"\xff\xff\xff\xff" + content[at + 4 :])
    assert (scan_audio(path).frames, scan_audio(path).notes) == (3 * RATE, ())


def test_an_mp3_needs_no_header(media, tmp_path):
    content = media("mp3").read_bytes()
    at = content.index(b"\xff\xf3", content.index(b"Info"))
    path = tmp_path / "a.mp3"
    path.write_bytes(content[at:])
    audio, samples = load_audio(path)
    assert audio.seconds == pytest.approx(3.0, abs=0.15)  # encoders add silence at both ends
    assert audio.notes == ()
    assert resembles(samples, RATE, noise()) > 0.9


def test_the_header_of_a_quiet_mp3_is_no_damage(tmp_path):
    """LAME uses few bits for a hum, so the header's bytes would count as a third of a second."""
    hum = 0.3 * np.sin(np.arange(60 * RATE) / 10)
    soundfile.write(tmp_path / "a.mp3", hum, RATE)
    audio = scan_audio(tmp_path / "a.mp3")
    assert (audio.frames, audio.notes) == (60 * RATE, ())


def test_joined_mp3s_are_read_to_the_end(media, tmp_path):
    path = tmp_path / "a.mp3"
    path.write_bytes(media("mp3").read_bytes() * 3)
    audio, samples = load_audio(path)
    assert audio.seconds == pytest.approx(9.2, abs=0.2)
    assert not audio.lost
    [note] = audio.notes
    assert note == f"header says 3.10 s, {audio.seconds:.2f} s could be decoded"
    for start in (0.0, 3.1, 6.2):
        part = samples[round(start * RATE) :][: 3 * RATE]
        assert resembles(part, RATE, noise()) > 0.9


def test_joined_ogg_files_are_read_to_the_end(media, tmp_path):
    path = tmp_path / "a.opus"
    path.write_bytes(media("opus").read_bytes() * 2)
    assert scan_audio(path).seconds == pytest.approx(6.0, abs=0.1)


def test_joined_mp3s_may_have_different_rates_and_channels(tmp_path):
    first = encode(tmp_path / "a.mp3", noise(), "libmp3lame", RATE).read_bytes()
    both = np.stack((noise(), noise()), 1)
    second = encode(tmp_path / "b.mp3", both, "libmp3lame", 44100).read_bytes()
    (tmp_path / "ab.mp3").write_bytes(first + second)
    audio, samples = load_audio(tmp_path / "ab.mp3")
    assert (audio.samplerate, audio.channels) == (RATE, 1)
    assert audio.seconds == pytest.approx(6.1, abs=0.1)
    assert resembles(samples[round(3.1 * RATE) :][: 3 * RATE], RATE, noise()) > 0.97


def test_joined_ogg_files_that_ffmpeg_cannot_follow_are_told(tmp_path):
    soundfile.write(tmp_path / "a.ogg", noise(), RATE)
    soundfile.write(tmp_path / "b.ogg", np.repeat(noise(), 2), 2 * RATE)
    path = tmp_path / "ab.ogg"
    path.write_bytes((tmp_path / "a.ogg").read_bytes() + (tmp_path / "b.ogg").read_bytes())
    audio = scan_audio(path)
    assert audio.lost
    assert audio.notes == ("header says 6.00 s, 3.00 s could be decoded",)


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "webm", "aiff", "au", "caf", "w64", "mkv"])
def test_what_is_cut_off_is_read_as_far_as_it_goes(media, tmp_path, kind):
    content = media(kind).read_bytes()
    path = tmp_path / f"a.{kind}"
    path.write_bytes(content[: round(0.6 * len(content))])
    audio, samples = load_audio(path)
    assert 1.0 < audio.seconds < 2.5
    assert len(samples) == audio.frames
    assert resembles(samples, audio.samplerate, noise()[: round(audio.seconds * RATE)]) > 0.9
    [note] = audio.notes
    assert note.startswith("header says 3.0")
    assert note.endswith(f" s, {audio.seconds:.2f} s could be decoded")
    assert audio.lost
    with pytest.raises(InputError, match="header says 3|of 3.00 s|unreadable"):
        check_audio(path)
    with pytest.raises(InputError, match=r"could be decoded: replace it$"):
        read_audio(path, RATE)


def test_an_ogg_file_that_is_cut_off_is_told_by_its_missing_end(media, tmp_path):
    content = media("opus").read_bytes()
    path = tmp_path / "a.opus"
    path.write_bytes(content[: round(0.6 * len(content))])
    assert scan_audio(path).notes[-1] == "cut off: Ogg's mark of the end is missing"


def test_an_mp4_that_lost_its_index_says_so(media, tmp_path):
    path = tmp_path / "a.m4a"
    path.write_bytes(media("m4a").read_bytes()[:9000])
    with pytest.raises(InputError, match="an MP4 without its index, which is cut off or damaged"):
        scan_audio(path)


def test_silence_stands_for_what_is_damaged_and_the_rest_keeps_its_time(media, tmp_path):
    content = bytearray(media("opus").read_bytes())
    content[9000:12000] = bytes(3000)
    path = tmp_path / "a.opus"
    path.write_bytes(content)
    audio, samples = load_audio(path)
    assert audio.seconds == pytest.approx(3.0, abs=0.02)
    missing = 20e-3 * np.sum(~samples[: len(samples) // 960 * 960].reshape(-1, 960).any(1))
    assert missing > 0.3
    [note] = audio.notes
    assert float(note.split(" ")[0]) == pytest.approx(missing, abs=0.1)
    assert note.endswith(" s are missing or damaged")
    end = samples[-48000 // 2 :]
    assert resembles(end, 48000, noise()[-RATE // 2 :]) > 0.9


def test_the_sound_of_a_video_may_start_late_and_end_early(tmp_path):
    """The picture lasts 3 s, and the times of words must match it."""
    encode(tmp_path / "a.mkv", noise(2.0), "pcm_s16le", RATE)
    with av.open(str(tmp_path / "a.mkv")) as sound, av.open(str(tmp_path / "b.mkv"), "w") as out:
        picture = out.add_stream("mpeg4", rate=10, width=64, height=64)
        stream = out.add_stream_from_template(sound.streams.audio[0])
        for _ in range(30):
            image = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
            out.mux(picture.encode(image))
        out.mux(picture.encode(None))
        for packet in sound.demux():
            if packet.pts is not None:
                packet.stream = stream
                packet.pts += round(0.5 / packet.time_base)
                packet.dts = packet.pts
                out.mux(packet)
    audio, samples = load_audio(tmp_path / "b.mkv")
    assert audio.notes == ()
    assert audio.seconds == pytest.approx(2.5, abs=0.01)
    assert not samples[: round(0.49 * RATE)].any()
    assert resembles(samples[RATE // 2 :], RATE, noise(2.0)) > 0.99


def test_a_video_without_sound_and_a_playlist_are_refused(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        picture = out.add_stream("mpeg4", rate=10, width=64, height=64)
        image = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
        out.mux(picture.encode(image))
        out.mux(picture.encode(None))
    with pytest.raises(InputError, match="holds no audio"):
        scan_audio(tmp_path / "a.mp4")
    soundfile.write(tmp_path / "secret.wav", noise(), RATE)
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:3,\nsecret.wav\n#EXT-X-ENDLIST\n"
    (tmp_path / "a.m3u8").write_text(playlist)
    with pytest.raises(InputError, match="cannot be read as audio"):
        scan_audio(tmp_path / "a.m3u8")


def test_telephone_speech_in_a_wav_is_read(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise()[::2], 8000, subtype="GSM610")
    audio, samples = load_audio(tmp_path / "a.wav")
    assert (audio.samplerate, audio.notes) == (8000, ())
    assert audio.seconds == pytest.approx(3.0, abs=0.05)
    assert resembles(samples, 8000, noise()) > 0.8


def test_formats_that_only_soundfile_knows_are_read(tmp_path):
    soundfile.write(tmp_path / "a.pvf", noise(), RATE)
    audio, samples = load_audio(tmp_path / "a.pvf")
    assert (audio.frames, audio.notes) == (3 * RATE, ())
    np.testing.assert_allclose(samples, noise(), atol=1e-4)


# --- channels


@pytest.mark.parametrize("kind", ["wav", "flac"])
@pytest.mark.parametrize(
    ("channels", "weights", "note"),
    [
        ((1, 1), (0.5, 0.5), None),
        ((1, -1), (1, 0), "the 2 channels cancel each other out: channel 1 alone is used"),
        ((0.5, -0.8), (0, 1), "the 2 channels cancel each other out: channel 2 alone is used"),
        ((1, 0), (1, 0), "channel 2 of 2 is silent: left out"),
        ((0.001, 1, 0, 1), (0, 0.5, 0, 0.5), "channels 1, 3 of 4 are silent: left out"),
    ],
)
def test_no_channel_takes_from_another(tmp_path, kind, channels, weights, note):
    wav = noise()
    path = tmp_path / f"a.{kind}"
    soundfile.write(path, np.outer(wav, channels) + 0.05 * (channels == (1, 0)), RATE)
    audio, samples = load_audio(path)
    assert audio.weights == weights
    assert audio.notes == (() if note is None else (note,))
    loudest = max(channels, key=abs)
    np.testing.assert_allclose(samples - samples.mean(), loudest * wav, atol=2e-3)
    streamed = np.concatenate([block.numpy() for block in read_blocks(audio, RATE)])
    np.testing.assert_array_equal(streamed, samples)


def test_two_speakers_with_a_channel_each_are_both_kept(tmp_path):
    """This holds even for a speaker who rarely speaks."""
    left, right = noise(60.0), noise(60.0, seed=1)
    right[: 58 * RATE] = 0
    soundfile.write(tmp_path / "a.wav", np.stack((left, right), 1), RATE)
    audio = scan_audio(tmp_path / "a.wav")
    assert (audio.weights, audio.notes) == ((0.5, 0.5), ())


def test_one_channel_can_be_chosen(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack((noise(), noise(seed=1)), 1), RATE)
    for channel in (1, 2):
        audio, samples = load_audio(path, channel)
        np.testing.assert_allclose(samples, noise(seed=channel - 1), atol=1e-4)
        assert audio.notes == ()
    for channel in (0, 3):
        with pytest.raises(InputError, match=f"no channel {channel}: give one from 1 to 2"):
            scan_audio(path, channel)


def test_silence_in_all_channels_is_mixed():
    weights, notes = mix_weights(np.zeros((2, 2)), np.zeros(2))
    assert (weights.tolist(), notes) == ([0.5, 0.5], [])


# --- streams


def test_standard_input_is_read_from_a_pipe(media):
    """The index of this format is at the end, so it cannot be read as a stream."""
    program = (
        "from ent_brain.audio import *; a, s = load_audio('-'); print(a.seconds, len(s), a.label)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=media("m4a").read_bytes(),
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    seconds, count, label = done.stdout.decode().split(maxsplit=2)
    assert (float(seconds), int(count)) == (3.064, 49024)
    assert label == "standard input\n"


def test_a_named_pipe_is_read_and_its_copy_is_removed(media, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(media("flac").read_bytes(),))
    writer.start()
    audio = scan_audio(pipe)
    writer.join()
    assert audio.frames == 3 * RATE
    assert scan_audio(audio) is audio
    [window] = read_windows(audio, RATE, 4.0, 320)
    assert len(window.wav) == 3 * RATE
    assert Path(audio).name == "pipe"
    folder = Path(audio).parent
    del audio
    assert not folder.exists()


MEMORY = """
import resource, sys
from ent_brain.windows import read_windows
for path in sys.argv[1:]:
    count = sum(len(window.wav) > 0 for window in read_windows(path, 16000, 20.0, 320))
    print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("kind", ["flac", "mp3"])
def test_memory_does_not_grow_with_the_recording(tmp_path, kind):
    """A quarter of an hour in float32 would need 58 MB."""
    paths = [tmp_path / f"{minutes}.{kind}" for minutes in (1, 15)]
    for path in paths:
        with soundfile.SoundFile(path, "w", RATE, 1) as file:
            for minute in range(int(path.stem)):
                file.write(noise(60.0, seed=minute % 3))
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *map(str, paths)],
        capture_output=True,
        check=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.stderr == ""
    # The short one first: a peak never falls.
    (few, low), (many, high) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert few >= 3
    assert many >= 3 * 15
    assert high - low < 25_000  # KiB


# --- damage that nobody thought of


def damaged(content, generator):
    """A file with some bytes flipped, overwritten, lost or truncated, in its header or anywhere."""
    content, size = bytearray(content), len(content)
    for _ in range(generator.integers(1, 4)):
        kind = generator.integers(5)
        start = generator.integers(size)
        length = generator.integers(1, size // 3)
        if kind == 0:
            for at in generator.integers(min(200, len(content)), size=generator.integers(1, 9)):
                content[at] ^= generator.integers(1, 256)
        elif kind == 1:
            for at in generator.integers(len(content), size=generator.integers(1, 99)):
                content[at] ^= generator.integers(1, 256)
        elif kind == 2:
            content[start : start + length] = generator.bytes(len(content[start : start + length]))
        elif kind == 3:
            del content[start : start + length]
        else:
            del content[max(start, 100) :]
    return bytes(content)


SILENT_ONCE = [
    ("m4a", 231),  # frames of 51 channels, which FFmpeg cannot convert
    ("avi", 184),  # the picture went on where the sound had ended
    *(("mp3", case) for case in (80, 156, 177, 257)),  # packets with several damaged frames
]
"""Damaged files that once had a traceback, or lost audio without a note."""


def seconds_left(kind, content, damaged_content):
    """Seconds of 3 s that a reader has to hear, or to say that they are missing.

    All of them, unless the only length is gone: bytes that are missing are then missing silently.
    """
    has_length = kind not in WITHOUT_LENGTH
    if kind == "mp3":  # its first frame has the number of frames
        has_length = damaged_content[:150] == content[:150]
    return 3.0 if has_length else 3.0 * min(1.0, len(damaged_content) / len(content))


def test_damaged_files_give_samples_or_one_line_and_no_loss_is_silent(
    media, tmp_path, pytestconfig
):
    """No traceback, no hang, and no loss of more than 0.1 s without a note or an error.

    AAC, AMR and GSM without a container have no length, nor has an MP3 whose first frame is
    damaged. Of such a file, all that is left has to be heard or told. The next test has the cases
    where what is missing cannot be told. With ``-s``, the counts are printed.
    """
    count = 500 if pytestconfig.getoption("--long") else 65
    counts = {kind: Counter() for kind in FUZZED}
    silent = []
    cases = [(FUZZED[case % len(FUZZED)], case) for case in range(count)]
    for kind, case in cases + SILENT_ONCE:
        content = media(kind).read_bytes()
        path = tmp_path / f"{case}.{kind}"
        path.write_bytes(damaged(content, np.random.default_rng(case)))
        started = time.monotonic()
        try:
            audio, samples = load_audio(path)
        except InputError as error:
            assert str(error).startswith(str(path))
            assert "\n" not in str(error)
            counts[kind]["refused"] += 1
            continue
        finally:
            assert time.monotonic() - started < 20.0, path.name
        assert len(samples) == audio.frames
        assert np.isfinite(samples).all()
        step = audio.samplerate // 50
        blocks = samples[: len(samples) // step * step].reshape(-1, step)
        heard = np.count_nonzero(blocks.any(1)) / 50
        is_whole = heard > 3.0 - 0.14  # two blocks are at the edges of what is missing
        outcome = "told" if audio.notes else "whole" if is_whole else "silent"
        counts[kind][outcome] += 1
        if outcome == "silent" and heard < seconds_left(kind, content, path.read_bytes()) - 0.14:
            silent.append(f"{path.name}: {heard} of 3 s")
    for kind, found in counts.items():
        print(f"{kind}: {dict(found)}")
    assert not silent
    refused = sum(found["refused"] for found in counts.values())
    assert refused < 2 / 3 * count


def frames_of_adts(content, start, end):
    """Where frames of AAC begin: each has its length in its header."""
    while start < end:
        yield start
        start += int.from_bytes(content[start + 3 : start + 6], "big") >> 5 & 0x1FFF


def sixth_tenth(starts):
    """Of places in order, the one after six tenths."""
    starts = list(starts)
    return starts[len(starts) * 6 // 10]


def cut_raw(kind):
    def spoil(content):
        size = len(content)
        starts = {
            "aac": frames_of_adts(content, 0, size),
            "amr": range(6, size, 32),
            "gsm": range(0, size, 33),
        }
        return content[: sixth_tenth(starts[kind])]

    return spoil


def cut_mp3(content):
    """Without its first frame, which has the number of frames."""
    start = content.index(b"\xff\xf3", content.index(b"Info"))
    return content[start : sixth_tenth(range(start, len(content), 288))]


def cut_wav(content):
    """Of a writer to a pipe, which knows neither of the two sizes."""
    at = content.index(b"data") + 4
    unknown = b"\xff" * 4
    content = content[:4] + unknown + content[8:at] + unknown + content[at + 4 :]
    return content[: at + 4 + 2 * round(1.8 * RATE)]


def cut_flac(content):
    """Of a writer to a pipe, which knows no number of samples."""
    first = content.index(b"\xff\xf8")  # all frames but the last begin as it does
    frames = [m.start() for m in re.finditer(re.escape(content[first : first + 4]), content)]
    # 36 bits: four of them share a byte with the sample size.
    content = content[:21] + bytes([content[21] & 0xF0]) + bytes(4) + content[26:]
    return content[: sixth_tenth(frames)]


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        *((kind, cut_raw(kind)) for kind in sorted(WITHOUT_LENGTH)),
        ("mp3", cut_mp3),
        ("wav", cut_wav),
        ("flac", cut_flac),
    ],
)
def test_without_a_length_a_cut_between_two_frames_cannot_be_told(media, tmp_path, kind, spoil):
    """What is left is heard, and nothing says that there was more."""
    path = tmp_path / f"a.{kind}"
    path.write_bytes(spoil(media(kind).read_bytes()))
    audio, samples = load_audio(path)
    assert (audio.notes, audio.lost) == ((), False)
    assert audio.seconds == pytest.approx(1.8, abs=0.1)
    assert resembles(samples, audio.samplerate, noise()[: round(audio.seconds * RATE)]) > 0.7
    soundless = audio.samplerate // 50
    assert samples[-soundless:].any()


@pytest.mark.parametrize("kind", ["aac", "mp3"])
def test_bytes_between_frames_that_are_no_frame_are_told(media, tmp_path, kind):
    content = media(kind).read_bytes()
    if kind == "mp3":
        content = content[content.index(b"\xff\xf3", content.index(b"Info")) :]
    spoiled = bytearray(content)
    middle = len(content) // 2
    spoiled[middle : middle + len(content) // 6] = bytes(len(content) // 6)
    path = tmp_path / f"a.{kind}"
    path.write_bytes(spoiled)
    for _ in range(2):  # FFmpeg does not repeat a message that it has just told
        audio = scan_audio(path)
        assert audio.lost
        [note] = audio.notes
        assert note.endswith(" s are missing or damaged")
        assert float(note.split()[0]) == pytest.approx(0.5, abs=0.2)


def test_an_error_that_two_files_share_is_told_of_both(media, tmp_path):
    content = media("amr").read_bytes()
    for name in "ab":
        path = tmp_path / f"{name}.amr"
        path.write_bytes(content[: 6 + 32 * 90 + 17])
        assert scan_audio(path).notes == ("damaged (amrnb: Corrupt bitstream)",)


def tone(peak, seconds=1.0):
    """A voice's first ten harmonics, of which less than a third is near the peak."""
    angles = 0.06 * np.arange(round(16000 * seconds))[:, None] * np.arange(1, 11)
    wav = np.sin(angles).sum(1)
    return np.float32(peak * wav / np.abs(wav).max())


def test_clipped_peaks_are_restored():
    original = tone(2.0)
    restored = restore_peaks(original.clip(-1, 1), 16000)
    assert restored.dtype == np.float32
    assert np.abs(restored - original)[200:-200].max() < 0.1
    kept = np.abs(original) < CLIPPED
    assert np.array_equal(restored[kept], original[kept])


@pytest.mark.parametrize(
    "samples",
    [
        tone(0.9),
        tone(2.0),  # louder than full scale, in a file of floats
        tone(2.0).clip(-0.5, 0.5),
        np.sign(np.sin(0.06 * np.arange(16000)), dtype=np.float32),
        np.ones(16000, dtype=np.float32),
        np.zeros(0, dtype=np.float32),
        np.ones(1, dtype=np.float32),
    ],
    ids=["quieter", "louder", "clipped below", "square", "offset", "empty", "one sample"],
)
def test_what_is_not_clipped_speech_is_left_as_it_is(samples):
    assert restore_peaks(samples, 16000) is samples


def test_noise_that_is_clipped_almost_everywhere_is_left_as_it_is():
    wav = np.random.default_rng(0).normal(scale=3.0, size=16000).astype(np.float32).clip(-1, 1)
    assert np.array_equal(restore_peaks(wav, 16000), wav)


def test_clipped_peaks_are_restored_in_files_of_any_rate(tmp_path):
    original = tone(2.0, seconds=12.0)
    soundfile.write(tmp_path / "a.wav", original.clip(-1, 1), 32000, subtype="PCM_16")
    blocks = read_blocks(scan_audio(tmp_path / "a.wav"), 16000)
    heard = np.concatenate(list(blocks))
    assert np.abs(heard - original[::2])[200:-200].max() < 0.1
