#!/usr/bin/env python3
"""Results of the model in the package on test speakers and test actors.

The script scores words of LibriSpeech's test speakers, and emotions of RAVDESS's actors 19 to 24,
single and mixed. It repeats this with telephone bands, and counts words in noise, music and
silence.

> python benchmarks/open_model.py --librispeech LibriSpeech --ravdess RAVDESS --ssl whisper-base
"""

import argparse
import importlib.util
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import jiwer
import numpy as np
import scipy.signal
import soundfile
import torch
from pympi.Praat import TextGrid
from word_times import boundary_errors

from ent_brain.dataio import read_audio
from ent_brain.emotions import PUBLISHED
from ent_brain.errors import exit_on_input_error
from ent_brain.evaluation import hardware
from ent_brain.export import OPEN_ENGLISH
from ent_brain.files import write_json
from ent_brain.inference import EmotionTransducer
from ent_brain.manifest import DATA_ROOT, read_manifest
from ent_brain.metrics import EmotionStats
from ent_brain.mixing import mix
from ent_brain.recipe import TEST_MIXTURES_SEED
from ent_brain.segments import Segment, fill_neutral
from ent_brain.speech import find_speech
from ent_brain.tokens import NORMALIZATIONS

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
RATE, LINE_RATE = 16000, 8000
LABELS = {"neutral": "neutral", "calm": "neutral", "happy": "happy", "sad": "sad", "angry": "angry"}
SECONDS_OF_NOTHING = 20.0
PROTOCOL = {"segment_decoding": "lasting_event", "segment_seconds": 3.6}
"""Decoding of mixtures in ``recipes/Open``, where each has one emotional part."""

CARD_MARKS = "<!-- results: benchmarks/open_model.py -->", "<!-- end of results -->"

TARGETS = {
    "WER, own words": 14.0,
    "WER, Whisper's words, above Whisper's own": 0.5,
    "word boundaries, median ms": 20.0,
    "UA": 80.0,
    "EDER, mixed, of speech": 18.0,
    "real-time factor": 0.03,
    "words in noise, music, silence": 0,
    "WER on a telephone, times the original's": 1.5,
    "UA on a telephone, points below the original's": 8.0,
}
"""Targets of the model: lower limit for the UA, upper limits for the others."""


@exit_on_input_error
def main():
    parser = corpus_parser(__doc__, every=1)
    parser.add_argument("--ravdess", type=Path, required=True, metavar="FOLDER", help="RAVDESS")
    parser.add_argument("--alignments", type=Path, metavar="FOLDER", help="LibriSpeech/alignments")
    parser.add_argument(
        "--whisper", action="store_true", help="also score Whisper's words; needs it whole in --ssl"
    )
    parser.add_argument("--card", action="store_true", help="write the table into the model card")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = EmotionTransducer.open_english(ssl=options.ssl, words="own")
    of_protocol = EmotionTransducer.open_english(ssl=options.ssl, words="own", overrides=PROTOCOL)
    speech = utterances(options.librispeech / options.part, options.every)
    alignments = options.alignments or options.librispeech / "alignments"
    acted = recordings(options.ravdess, options.every)
    found = words(model, speech, alignments)
    found |= emotions(model, acted)
    if options.whisper:
        found |= whisper_words(options)
    with tempfile.TemporaryDirectory() as scratch:
        mixtures = dict(
            list(test_mixtures(options.ravdess, Path(scratch)).items())[:: options.every]
        )
        found |= mixed(of_protocol, mixtures)
        annotated = mixed(model, mixtures)
        found |= {f"{name}, as annotate decodes": rate for name, rate in annotated.items()}
        found["words in noise, music, silence"] = nothing(model, Path(scratch))
        found |= telephone(model, speech, acted, Path(scratch))
    facts = f"{len(speech)} and {len(acted)} files, {hardware('cpu')}"
    text = f"{table(found)}\n\n{facts}."
    print(text)
    if options.card:
        write_card(text)
    if options.output:
        write_json({"made with": facts, **found}, options.output)


def write_card(text):
    """Put the table between the marks in the model card."""
    path = OPEN_ENGLISH / "README.md"
    before, begin, rest = path.read_text(encoding="utf-8").partition(CARD_MARKS[0])
    _, end, after = rest.partition(CARD_MARKS[1])
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def corpus_parser(doc, every=None, threads=2, needs_ssl=False):
    """Parser of the arguments of all benchmarks that read LibriSpeech.

    ``doc`` is the docstring of the benchmark; ``every`` and ``threads`` are its defaults. Without
    ``every``, it has no such argument. ``needs_ssl``: the folder of Whisper must be given.
    """
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument(
        "--librispeech", type=Path, required=True, metavar="FOLDER", help="LibriSpeech"
    )
    parser.add_argument(
        "--part", default="test-speakers", help="part of LibriSpeech (default: test-speakers)"
    )
    parser.add_argument(
        "--ssl", required=needs_ssl, metavar="FOLDER", help="folder of openai/whisper-base"
    )
    if every is not None:
        parser.add_argument(
            "--every", type=int, default=every, help=f"use only every Nth file (default: {every})"
        )
    parser.add_argument(
        "--threads", type=int, default=threads, help=f"CPU threads (default: {threads})"
    )
    parser.add_argument("--output", metavar="JSON", type=Path, help="file for the results")
    return parser


def add_model(parser):
    """Add the argument of benchmarks that measure any model."""
    parser.add_argument(
        "--model",
        default=OPEN_ENGLISH,
        metavar="FOLDER",
        help="model to measure (default: the one in the package)",
    )


def load(options):
    """Load the model of ``add_model``, for as many threads as the options say."""
    torch.set_num_threads(options.threads)
    return EmotionTransducer.from_hparams(source=options.model, ssl=options.ssl, words="own")


def utterances(part, every):
    """Text of each utterance in a part of LibriSpeech, by path (dict)."""
    texts = {}
    for transcripts in sorted(part.rglob("*.trans.txt")):
        for line in transcripts.read_text(encoding="utf-8").splitlines():
            name, _, text = line.partition(" ")
            [path] = [p for p in transcripts.parent.glob(f"{name}.*") if p.suffix != ".txt"]
            texts[path] = text
    return dict(list(texts.items())[::every])


def recordings(ravdess, every):
    """Path and emotion of each recording of the test actors."""
    return {path: entry["emotion"] for path, entry in list(test_actors(ravdess).items())[::every]}


def test_actors(ravdess):
    """Path and entry of the manifest of each recording of the test actors."""
    with tempfile.TemporaryDirectory() as folder:
        entries = read_manifest(_prepare(ravdess, folder)).values()
    return {Path(entry["wav"].replace(DATA_ROOT, str(ravdess))): entry for entry in entries}


def _prepare(ravdess, folder):
    """Write the manifests of RAVDESS as its recipe does; return the test actors'."""
    path = RECIPES / "RAVDESS" / "ravdess_prepare.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    normalize = NORMALIZATIONS["unicode"]
    return module.prepare_ravdess(ravdess, folder, PUBLISHED, LABELS, normalize)["test"]


def known_words(alignments, path):
    """(text, start, end) of each word from the Montreal aligner."""
    grid = TextGrid(alignments / path.parent.relative_to(path.parents[2]) / f"{path.stem}.TextGrid")
    [tier] = [tier for tier in grid.get_tiers() if tier.name == "words"]
    intervals = sorted(tier.get_intervals())
    return [(text.upper(), start, end) for start, end, text in intervals if text.strip()]


def words(model, speech, alignments):
    """WER, word boundaries and real-time factor of the model's own words."""
    heard, errors, seconds = {}, [], 0.0
    began = time.perf_counter()
    for path in speech:
        heard[path] = model.annotate_file(path, progressbar=False)
    took = time.perf_counter() - began
    for path, annotation in heard.items():
        seconds += annotation.duration
        errors += boundary_errors(known_words(alignments, path), annotation.words)
    return {
        "WER, own words": 100 * jiwer.wer(list(speech.values()), _texts(heard)),
        "word boundaries, median ms": 1000 * float(np.median(np.abs(errors))),
        "real-time factor": took / seconds,
    }


def _texts(heard):
    return [annotation.text or " " for annotation in heard.values()]


def emotions(model, acted):
    """WA and UA of single recordings, in percent."""
    stats = EmotionStats(model.emotions)
    for path, emotion in acted.items():
        _, found = model.classify_file(path)
        stats.append([path.stem], [model.emotions.index(found)], [model.emotions.index(emotion)])
    return {"UA": stats.summarize("UA"), "WA": stats.summarize("WA")}


def whisper_words(options):
    """WER of Whisper's words aligned by the model, and difference to the WER of Whisper itself."""
    import peers

    alone, ours = (
        peers.measure(peers.PEERS[name](options), options)
        for name in ("transformers' pipeline", "ours, Whisper's words")
    )
    return {
        "WER, Whisper's words": ours["WER"],
        "WER, Whisper's words, above Whisper's own": ours["WER"] - alone["WER"],
        "real-time factor, Whisper's words": ours["real-time factor"],
    }


def test_mixtures(ravdess, scratch):
    """Path and entry of the manifest of each mixture of the test actors, as in ``recipes/Open``."""
    manifest = _prepare(ravdess, scratch)
    normalize = NORMALIZATIONS["unicode"]
    folders = ravdess, scratch / "mixed", scratch
    path = mix(manifest, *folders, PUBLISHED, normalize, TEST_MIXTURES_SEED)
    entries = read_manifest(path).values()
    return {Path(e["wav"].replace(DATA_ROOT, str(scratch / "mixed"))): e for e in entries}


def known_segments(entry):
    """Emotional segments of a mixture, from its entry."""
    return [
        Segment(i["start"] / RATE, i["end"] / RATE, i["emotion"])
        for i in entry["intervals"]
        if i["emotion"] != PUBLISHED.neutral
    ]


def mixed(model, mixtures):
    """EDER of mixtures (path and entry of each) in percent: of the speech in them, and of all.

    Where nobody speaks, the model says neutral. In a mixture, the pauses of an emotional part have
    its emotion, so most errors of the whole are pauses.
    """
    rates = []
    for path, entry in mixtures.items():
        known = fill_neutral(known_segments(entry), entry["duration"], PUBLISHED)
        found = model.diarize_file(path)
        whole = [(0.0, entry["duration"])]
        regions = find_speech([read_audio(path, RATE)]).regions
        speech = [(start / RATE, end / RATE) for start, end in regions]
        rates.append([error_rate(known, found, spans) for spans in (speech, whole)])
    of_speech, of_all = 100 * np.mean(rates, axis=0)
    return {"EDER, mixed, of speech": float(of_speech), "EDER, mixed": float(of_all)}


def error_rate(known, found, spans):
    """Share of spans (start, end) in which segments lack the emotion of the known ones."""
    right = sum(
        max(0.0, min(a.end, b.end, end) - max(a.start, b.start, start))
        for a in known
        for b in found
        for start, end in spans
        if a.emotion == b.emotion
    )
    return 1 - right / sum(end - start for start, end in spans)


def nothing(model, scratch):
    """Count the words recognised without speech: white noise, pink noise, chords, silence."""
    generator = np.random.default_rng(0)
    samples = int(SECONDS_OF_NOTHING * RATE)
    white = generator.normal(size=samples)
    pink = np.fft.irfft(np.fft.rfft(white) / np.sqrt(np.arange(1, samples // 2 + 2)), samples)
    time = np.arange(samples) / RATE
    beat = np.exp(-3 * (time % 0.5))
    roots = np.array([220.0, 174.6, 261.6, 196.0])[(time // 2).astype(int) % 4]
    phase = 2 * np.pi * np.cumsum(roots) / RATE
    chords = beat * sum(np.sin(ratio * phase) for ratio in (0.5, 1, 1.26, 1.5, 2))
    total = 0
    for name, wav in {"white": white, "pink": pink, "music": chords, "silence": 0 * time}.items():
        wav = 0.1 * wav / max(np.std(wav), 1e-9)
        soundfile.write(scratch / f"{name}.wav", wav.clip(-1, 1), RATE)
        total += len(model.annotate_file(scratch / f"{name}.wav", progressbar=False).words)
    return total


def telephone(model, speech, acted, scratch):
    """WER and UA of copies at 8 kHz: plain, GSM, and mu-law from 300 to 3,400 Hz."""
    rows = {}
    for name, write in LINES.items():
        copies = {}
        for path in (*speech, *acted):
            copies[path] = scratch / f"{path.stem}.{name.replace(' ', '_')}.wav"
            write(copies[path], read_audio(path, LINE_RATE).numpy())
        heard = {path: model.annotate_file(copies[path], progressbar=False) for path in speech}
        wer = 100 * jiwer.wer(list(speech.values()), _texts(heard))
        scores = emotions(model, {copies[path]: emotion for path, emotion in acted.items()})
        rows |= {f"WER, {name}": wer, f"UA, {name}": scores["UA"]}
    return rows


def _band(path, wav):
    band = scipy.signal.butter(6, (300, 3400), "bandpass", fs=LINE_RATE, output="sos")
    soundfile.write(path, scipy.signal.sosfilt(band, wav), LINE_RATE, subtype="ULAW")


LINES = {
    "8 kHz": partial(soundfile.write, samplerate=LINE_RATE, subtype="PCM_16"),
    "GSM": partial(soundfile.write, samplerate=LINE_RATE, subtype="GSM610"),
    "mu-law 300 to 3,400 Hz": _band,
}


def table(found):
    """Make the Markdown table of the figures and the targets."""
    worst = max(found[f"WER, {name}"] for name in LINES), min(found[f"UA, {n}"] for n in LINES)
    against = {
        **found,
        "WER on a telephone, times the original's": worst[0] / found["WER, own words"],
        "UA on a telephone, points below the original's": found["UA"] - worst[1],
    }
    lines = ["| | measured | target |", "| :-- | --: | --: |"]
    for name, value in against.items():
        sign = "" if name not in TARGETS else "at least " if name == "UA" else "at most "
        lines.append(f"| {name} | {value:.3g} | {sign}{TARGETS.get(name, '')} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
