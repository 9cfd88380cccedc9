#!/usr/bin/env python3
"""Results of the model in the package, or of another, on recordings that are not clean.

Test speakers of LibriSpeech and test actors of RAVDESS are altered: other levels, codecs, noise, a
room. Further measurements: words recognised without speech, missed speech, speech without pauses,
and a long recording.

> python benchmarks/field.py --librispeech LibriSpeech --ravdess RAVDESS --ssl whisper-base
"""

import resource
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import jiwer
import numpy as np
import soundfile
import torch
from epoch import in_its_own_process
from open_model import (
    LINE_RATE,
    LINES,
    RATE,
    add_model,
    corpus_parser,
    known_words,
    load,
    test_actors,
    utterances,
)
from speechbrain.processing.signal_processing import reverberate

from ent_brain.audio import resample
from ent_brain.augment import add_noise, make_room
from ent_brain.dataio import read_audio
from ent_brain.errors import exit_on_input_error
from ent_brain.evaluation import hardware
from ent_brain.files import write_json
from ent_brain.level import MARGIN as ACTIVE_MARGIN
from ent_brain.level import STEP, active_level, step_powers
from ent_brain.metrics import EmotionStats
from ent_brain.speech import AROUND, find_speech

CORPORA = "LibriSpeech", "RAVDESS"
ROOM = 0.5, 0.0
"""Reverberation time in s, and direct-to-reverberant ratio in dB, of the room."""

LEVELS = -60, -40, -20, 0
"""Peak levels in dB of full scale of sounds that are not speech."""

PARTS_AT_ONCE = 15
"""Number of utterances that are joined without pauses."""

PAUSES = 0.3, 3.0
"""Range in s of the pauses in a long recording."""

PAUSE_LEVELS = -70.0, -30.0
"""Range in dB of full scale of the noise in these pauses."""


class Part(NamedTuple):
    """A recording of a corpus."""

    corpus: str
    path: Path
    text: str
    emotion: str | None


@exit_on_input_error
def main():
    parser = corpus_parser(__doc__)
    add_model(parser)
    parser.add_argument("--ravdess", type=Path, required=True, metavar="FOLDER", help="RAVDESS")
    parser.add_argument(
        "--recordings",
        type=int,
        default=20,
        help="recordings of each corpus, evenly spaced (default: 20)",
    )
    parser.add_argument(
        "--rows", nargs="+", choices=[*ROWS, *FURTHER], help="measure only these rows"
    )
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="minutes of the long recording (default: 5)"
    )
    options = parser.parse_args()
    options.rows = options.rows or [*ROWS, *FURTHER]
    model = load(options)
    parts, found = choose_parts(options), {"altered copies": {}}
    with tempfile.TemporaryDirectory() as scratch:
        scratch, original = Path(scratch), None
        for name, write in ROWS.items():
            if original is None or name in options.rows:
                wavs = (read_audio(part.path, RATE).numpy() for part in parts)
                results = [hear(model, write(scratch, wav)) for wav in wavs]
                original = original or results
                found["altered copies"][name] = score(model.emotions, parts, results, original)
        for name in options.rows:
            if name in FURTHER:
                found[name] = FURTHER[name](options, model, parts, original, scratch)
    counts = {name: sum(part.corpus == name for part in parts) for name in CORPORA}
    found = {"recordings": counts, "hardware": hardware("cpu"), **found}
    print(table(found))
    if options.output:
        write_json(found, options.output)


def choose_parts(options):
    """Choose evenly spaced recordings of each corpus (list[Part])."""
    speech = utterances(options.librispeech / options.part, every=1).items()
    acted = test_actors(options.ravdess).items()
    corpora = (
        [Part(CORPORA[0], path, text, None) for path, text in speech],
        [Part(CORPORA[1], path, each["transcript"], each["emotion"]) for path, each in acted],
    )
    counts = [min(options.recordings, len(each)) for each in corpora]
    return [
        each[index * len(each) // count]
        for each, count in zip(corpora, counts, strict=True)
        for index in range(count)
    ]


def hear(model, path):
    """Recognise the text and the emotion of a file."""
    annotation = model.annotate_file(path, progressbar=False)
    return annotation.text, annotation.emotion


# --- altered copies: functions of a folder and samples that write a file and return its path


def write_float(folder, wav, change=None):
    """Write samples as floats, after a function has changed them."""
    path = folder / "copy.wav"
    soundfile.write(path, wav if change is None else change(wav), RATE, subtype="FLOAT")
    return path


def encode(folder, wav, codec, suffix, bit_rate):
    """Write samples with one of FFmpeg's codecs."""
    path = folder / f"copy.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, layout="mono")
        stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(wav[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        stream.codec_context.open()
        size = stream.codec_context.frame_size
        converter = av.AudioResampler(stream.codec_context.format, "mono", RATE, size)
        for part in (*converter.resample(frame), *converter.resample(None), None):
            container.mux(stream.encode(part))
    return path


def send(folder, wav, line):
    """Write samples as transmitted by a telephone line."""
    path = folder / "copy.wav"
    LINES[line](path, resample(wav, RATE, LINE_RATE))
    return path


def amplify(wav, decibels):
    return wav * 10 ** (decibels / 20)


def _clip(wav):
    return amplify(wav, 12).clip(-1, 1)


def _reverberate(wav):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return reverberate(torch.from_numpy(wav)[None], make_room(*ROOM, RATE))[0].numpy()


def _add_noise(wav, ratio):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return add_noise(torch.from_numpy(wav)[None], ratio, 0.0, RATE)[0].numpy()


ROWS = {
    "original": write_float,
    **{
        f"{decibels:+} dB": partial(write_float, change=partial(amplify, decibels=decibels))
        for decibels in (-40, -20, -6, 6, 20)
    },
    "+12 dB, clipped": partial(write_float, change=_clip),
    **{
        name: partial(encode, codec=codec, suffix=suffix, bit_rate=1000 * kilobits)
        for name, codec, suffix, kilobits in (
            ("MP3, 128 kbit/s", "libmp3lame", "mp3", 128),
            ("MP3, 32 kbit/s", "libmp3lame", "mp3", 32),
            ("Opus, 16 kbit/s", "libopus", "opus", 16),
        )
    },
    **{line: partial(send, line=line) for line in LINES},
    "room": partial(write_float, change=_reverberate),
    **{
        f"white noise, SNR {ratio} dB": partial(
            write_float, change=partial(_add_noise, ratio=ratio)
        )
        for ratio in (20, 10)
    },
}
"""Functions that write a copy, by name. The first writes the unchanged recording."""


def score(emotions, parts, results, original):
    """WER by corpus, UA, and shares of texts and emotions equal to those of the originals, in %."""
    stats, figures = EmotionStats(emotions), {}
    for corpus in CORPORA:
        figures[f"WER, {corpus}"] = wer(parts, results, corpus)
    for part, (_, emotion) in zip(parts, results, strict=True):
        if part.emotion is not None:
            target = emotions.index(part.emotion)
            # A missing emotion counts as a wrong one.
            found = (target + 1) % len(emotions) if emotion is None else emotions.index(emotion)
            stats.append([part.path.stem], [found], [target])
    figures["UA, RAVDESS"] = stats.summarize("UA")
    for index, name in enumerate(("same text", "same emotion")):
        same = [a[index] == b[index] for a, b in zip(results, original, strict=True)]
        figures[name] = 100 * float(np.mean(same))
    return figures


def wer(parts, results, corpus=None):
    """WER in percent of one corpus or of all."""
    pairs = [
        (part.text, text or " ")
        for part, (text, _) in zip(parts, results, strict=True)
        if corpus in (None, part.corpus)
    ]
    return 100 * jiwer.wer(*map(list, zip(*pairs, strict=True)))


# --- further measurements


def no_speech(options, model, parts, original, scratch):
    """Words per minute without speech, by kind of sound and peak level."""
    words = {}
    for name, wav in sounds(60 * RATE).items():
        words[name] = {}
        for level in LEVELS:
            path = write_float(scratch, amplify(wav / np.abs(wav).max(), level))
            words[name][f"{level} dB"] = len(hear(model, path)[0].split())
    return words


def sounds(samples):
    """Ten kinds of sound that are not speech, [samples] each."""
    generator, time_ = np.random.default_rng(0), np.arange(samples) / RATE
    frequency = np.maximum(np.fft.rfftfreq(samples, 1 / RATE), 20)

    def colored(exponent):
        spectrum = np.fft.rfft(generator.normal(size=samples))
        return np.fft.irfft(spectrum * frequency ** (-exponent / 2), samples)

    roots = np.array([220.0, 174.6, 261.6, 196.0])[(time_ // 2).astype(int) % 4]
    phase = 2 * np.pi * np.cumsum(roots) / RATE
    chords = sum(np.sin(ratio * phase) for ratio in (0.5, 1, 1.26, 1.5, 2))
    tone = 2 * np.pi * np.cumsum(800 + 500 * np.sin(np.pi * time_)) / RATE
    return {
        "white noise": colored(0),
        "pink noise": colored(1),
        "brown noise": colored(2),
        "hum of 50 Hz": sum(np.sin(2 * np.pi * 50 * k * time_) / k for k in range(1, 8)),
        "constant offset": 1 + 0.001 * colored(0),
        "chords": np.exp(-3 * (time_ % 0.5)) * chords,
        "breathing": colored(1) * np.maximum(0, np.sin(2 * np.pi * 0.3 * time_)) ** 2,
        "clicks": (np.arange(samples) % 3777 == 0).astype(float),
        "siren": np.sin(tone),
        "noise in the rhythm of syllables": colored(1) * np.sin(2 * np.pi * 2 * time_) ** 2,
    }


def lost_speech(options, model, parts, original, scratch):
    """Share of speech in % that the model misses, because silero-vad finds none within a second.

    For LibriSpeech, the share of the words in the alignments. For RAVDESS, the share of the steps
    of 20 ms with active speech by their power (P.56).
    """
    missed = {corpus: [] for corpus in CORPORA}
    for part in parts:
        wav = read_audio(part.path, RATE)
        regions = [(a / RATE - AROUND, b / RATE + AROUND) for a, b in find_speech([wav]).regions]
        if part.corpus == "LibriSpeech":
            words = known_words(options.librispeech / "alignments", part.path)
            times = [(start + end) / 2 for _, start, end in words]
        else:
            powers = step_powers(wav, RATE)
            active = 10 * powers.clamp(min=1e-20).log10() >= active_level(powers) - ACTIVE_MARGIN
            times = [(step + 0.5) * STEP for step in active.nonzero()[:, 0].tolist()]
        missed[part.corpus] += [not any(a <= each < b for a, b in regions) for each in times]
    return {corpus: {"%": 100 * float(np.mean(each))} for corpus, each in missed.items()}


def without_pauses(options, model, parts, original, scratch):
    """WER in percent of speech joined without pauses, and of its separate parts."""
    found = {}
    for corpus in CORPORA:
        own = [part for part in parts if part.corpus == corpus]
        joined, results = [], []
        for first in range(0, len(own), PARTS_AT_ONCE):
            group = own[first : first + PARTS_AT_ONCE]
            path = write_float(scratch, np.concatenate([_spoken(part) for part in group]))
            joined.append(Part(corpus, path, " ".join(part.text for part in group), None))
            results.append(hear(model, path))
        alone = wer(parts, original, corpus)
        found[corpus] = {"WER": wer(joined, results), "WER of the parts": alone}
    return found


def _spoken(part):
    """Samples of a recording from the start to the end of speech."""
    wav = read_audio(part.path, RATE)
    regions = find_speech([wav]).regions or [(0, len(wav))]
    return wav[regions[0][0] : regions[-1][1]].numpy()


def long_recording(options, model, parts, original, scratch):
    """WER, real-time factor and peak memory of a long recording, of a minute, and of its parts."""
    found = {}
    for minutes in (1.0, options.minutes):
        order = write_long(scratch / "long.wav", parts, minutes)
        row = in_its_own_process(annotate_alone, options, scratch / "long.wav")
        text = " ".join(parts[index].text for index in order)
        found[f"{minutes:g} min"] = {
            "WER": 100 * jiwer.wer(text, row.pop("text") or " "),
            "WER of the parts": wer(*([of[i] for i in order] for of in (parts, original))),
            **row,
        }
    return found


def write_long(path, parts, minutes):
    """Write recordings in random order with noise in between; return the order (list[int])."""
    generator, order, seconds = np.random.default_rng(0), [], 0.0
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
        while seconds < 60 * minutes:
            if len(order) % len(parts) == 0:
                shuffled = generator.permutation(len(parts)).tolist()
            order.append(shuffled[len(order) % len(parts)])
            noise = generator.normal(size=int(generator.uniform(*PAUSES) * RATE))
            noise = amplify(noise, generator.uniform(*PAUSE_LEVELS))
            wav = np.concatenate((noise, read_audio(parts[order[-1]].path, RATE).numpy()))
            file.write(wav)
            seconds += len(wav) / RATE
    return order


def annotate_alone(options, path):
    """Text, real-time factor and peak memory of a file, measured in a new process."""
    model = load(options)
    began = time.perf_counter()
    annotation = model.annotate_file(path, progressbar=False)
    took = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    factor = took / annotation.duration
    return {"text": annotation.text, "real-time factor": factor, "peak MB": peak}


FURTHER = {
    "made-up words a minute": no_speech,
    "lost speech": lost_speech,
    "joined without pauses": without_pauses,
    "joined with pauses and noise": long_recording,
}
"""Further measurements, by name."""


def table(found):
    """Make the Markdown tables of the figures."""
    counts = " and ".join(f"{count} of {name}" for name, count in found["recordings"].items())
    blocks = [f"{counts}; {found['hardware']}."]
    for title in ("altered copies", *FURTHER):
        if rows := found.get(title):
            columns = list(next(iter(rows.values())))
            lines = [" | ".join((title, *columns)), " | ".join((":--", *["--:"] * len(columns)))]
            for name, row in rows.items():
                lines.append(" | ".join((name, *(f"{row[column]:.3g}" for column in columns))))
            blocks.append("\n".join(f"| {line} |" for line in lines))
    return "\n\n".join(blocks)


if __name__ == "__main__":
    sys.exit(main())
