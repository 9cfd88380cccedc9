#!/usr/bin/env python3
"""Errors of word times on synthetic or real speech.

Without ``--alignments``, the model annotates a new synthetic look-alike of ZED. Its words are
compared with the true ones.

With ``--alignments``, the model aligns known words of real recordings. Their times are compared
with TextGrids from the Montreal Forced Aligner. ``--whisper`` adds Whisper's own word times, for
its words that match the TextGrid. The table also compares rules for the boundaries of words, given
the frames of their tokens.

> python benchmarks/word_times.py --model demo/ent/pretrained
> python benchmarks/word_times.py --model PRETRAINED --alignments LibriSpeech/alignments \
    --recordings LibriSpeech/test-speakers --whisper WHISPER/hf
"""

import argparse
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median

import jiwer
import numpy as np
import torch
import transformers
from tqdm import tqdm

from ent_brain.alignment import align_tokens, word_times
from ent_brain.audio import ENDINGS
from ent_brain.dataio import read_audio
from ent_brain.errors import InputError
from ent_brain.files import read_json, write_json
from ent_brain.inference import EmotionTransducer
from ent_brain.model import Streams
from ent_brain.synth import write_zed
from ent_brain.tokens import normalize_transcript
from ent_brain.transcripts import read_transcript, spell

RATE = 16000


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--model", metavar="FOLDER", required=True, help="folder `pretrained` of a training"
    )
    parser.add_argument(
        "--alignments", metavar="FOLDER", type=Path, help="folder of TextGrids with words"
    )
    parser.add_argument(
        "--recordings",
        metavar="FOLDER",
        type=Path,
        help="folder of the recordings of the TextGrids",
    )
    parser.add_argument("--whisper", metavar="FOLDER", help="whole Whisper model to compare with")
    parser.add_argument(
        "--utterances", type=int, default=180, help="maximum number of utterances (default: 180)"
    )
    parser.add_argument("--seed", type=int, default=7, help="seed of the synthetic corpus")
    parser.add_argument("--output", metavar="JSON", type=Path, help="file for the results")
    options = parser.parse_args()
    model = EmotionTransducer.from_hparams(source=options.model)
    if options.alignments is None:
        errors, said = synthetic(model, options.utterances, options.seed)
    else:
        errors, said = real(model, options)
    rows = {name: summarize(own_errors) for name, own_errors in errors.items()}
    print(f"{said} words said; median, 90th percentile and bias (how late) in ms; shares in %\n")
    print("| times | words | boundary | median | 90 % | bias | 20 ms | 50 ms | 100 ms |")
    print("| :-- | --: | :-- | --: | --: | --: | --: | --: | --: |")
    for name, row in rows.items():
        for boundary in ("starts", "ends", "both"):
            figures = row[boundary]
            shares = " | ".join(f"{100 * share:.1f}" for share in figures["within"].values())
            print(
                f"| {name} | {row['words']} | {boundary} | {figures['median']:.0f} | "
                f"{figures['0.9']:.0f} | {figures['bias']:+.0f} | {shares} |"
            )
    if options.output:
        write_json({"words": said} | rows, options.output)


def summarize(errors):
    """Compute the figures of [(start, end)] errors in seconds, by boundary."""
    errors = 1000 * np.array(errors).reshape(-1, 2)
    row = {"words": len(errors)}
    for name, values in (("starts", errors[:, 0]), ("ends", errors[:, 1]), ("both", errors)):
        size = np.abs(values)
        row[name] = {
            "median": float(np.median(size)),
            "0.9": float(np.quantile(size, 0.9)),
            "bias": float(np.median(values)),
            "within": {str(limit): float((size <= limit).mean()) for limit in (20, 50, 100)},
        }
    return row


def synthetic(model, utterances, seed):
    """Errors of a model's word times in a look-alike of ZED, and the number of true words."""
    errors, said = [], 0
    with tempfile.TemporaryDirectory() as folder:
        write_zed(folder, utterances, seed=seed)
        truth = read_json(Path(folder) / "ground_truth.json")
        for path in sorted(Path(folder).rglob("*.wav")):
            known = truth[path.stem]["words"]
            errors += boundary_errors(known, model.annotate_file(path, progressbar=False).words)
            said += len(known)
    return {"annotate": errors}, said


def real(model, options):
    """Errors of the times of known words in recordings, and the number of words."""
    if options.recordings is None:
        raise InputError("--alignments: also need --recordings, the folder of the sound files")
    grids = sorted(options.alignments.rglob("*.TextGrid"))
    # Evenly over the speakers.
    grids = grids[:: max(1, len(grids) // options.utterances)][: options.utterances]
    whisper = options.whisper and transformers.pipeline(
        "automatic-speech-recognition", options.whisper, return_timestamps="word"
    )
    errors, said = {name: [] for name in ("align", *RULES)}, 0
    for grid in tqdm(grids, unit="file"):
        stem = options.recordings / grid.relative_to(options.alignments).with_suffix("")
        path = next(p for p in map(stem.with_suffix, ENDINGS) if p.is_file())
        known = [(word.text.upper(), word.start, word.end) for word in read_transcript(grid)]
        said += len(known)
        words = model.align_file(path, " ".join(word[0] for word in known)).words
        errors["align"] += [
            (word.start - start, word.end - end)
            for word, (_, start, end) in zip(words, known, strict=True)
        ]
        for name, times in by_rules(model, path, known).items():
            errors[name] += [
                (a - start, b - end)
                for (_, a, b), (_, start, end) in zip(times, known, strict=True)
            ]
        if whisper:
            errors.setdefault("whisper", [])
            errors["whisper"] += boundary_errors(known, whisper_words(whisper, path))
    return errors, said


def whisper_words(whisper, path):
    """Whisper's own words (text, start, end), for ``boundary_errors``."""
    found = whisper({"raw": read_audio(path, RATE).numpy(), "sampling_rate": RATE})["chunks"]
    words = [(normalize_transcript(chunk["text"]), *chunk["timestamp"]) for chunk in found]
    return [word for word in words if word[0] and " " not in word[0] and word[2] is not None]


def by_rules(model, path, known):
    """Times of known words by each of ``RULES``."""
    wav = read_audio(path, model.mods.frontend.sample_rate)[None]
    [encoded] = model._encode_each(wav, torch.ones(1))
    streams = Streams(*(stream[None] for stream in encoded.streams))
    spelling = spell(" ".join(word[0] for word in known), model.hparams.tokens)
    frames, _ = align_tokens(model.mods.model, streams, spelling.tokens)
    seconds = encoded.samples / model.mods.frontend.sample_rate
    duration = model.mods.frontend.frame_duration
    return {name: rule(spelling.words, frames, duration, seconds) for name, rule in RULES.items()}


def halfway(words, frames, frame_duration, duration):
    """Compute the times of words if each token is emitted in the middle of its sound.

    A sound starts and ends halfway to its neighbours, but at most half the usual distance of two
    tokens away. The usual distance is the median within the words of the recording.
    """
    centers = [(frame + 0.5) * frame_duration for frame in frames]
    steps = [
        later - earlier
        for _, first, end in words
        for earlier, later in pairwise(centers[first:end])
    ]
    half = median(steps) / 2 if steps else frame_duration / 2
    times = []
    for (text, first, end), following in zip(words, [*words[1:], None], strict=True):
        start = centers[first] - half
        if times:
            start = max(start, times[-1][2])
        stop = min(centers[end - 1] + half, duration)
        if following:
            stop = min(stop, (centers[end - 1] + centers[following[1]]) / 2)
        times.append((text, min(max(start, 0.0), duration), stop))
    return times


RULES = {"rule: first frame, tail": word_times, "rule: halfway": halfway}
"""Rules that ``--alignments`` compares, by name; the first is the one in use."""


def boundary_errors(known, words):
    """Delay in seconds of the start and end of each recognised word, [(start, end)]."""
    output = jiwer.process_words(
        " ".join(text for text, *_ in known), " ".join(text for text, *_ in words) or " "
    )
    return [
        (words[there][1] - known[here][1], words[there][2] - known[here][2])
        for chunk in output.alignments[0]
        if chunk.type == "equal"
        for here, there in zip(
            range(chunk.ref_start_idx, chunk.ref_end_idx),
            range(chunk.hyp_start_idx, chunk.hyp_end_idx),
            strict=True,
        )
    ]


if __name__ == "__main__":
    main()
