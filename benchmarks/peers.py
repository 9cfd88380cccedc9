#!/usr/bin/env python3
"""The model in the package compared with Whisper's programs, on the same files and threads.

The script needs the extra ``peers``, a folder of openai/whisper-base, and one of its conversion for
faster-whisper. Each program runs in its own process; peak memory is that of the process. Times
include reading and decoding of files. Texts are normalised by Whisper's English normaliser. A CPU
without instructions for bfloat16 leaves out the rows in it.

> python benchmarks/peers.py --librispeech LibriSpeech --ssl whisper-base --ct2 faster-whisper-base
"""

import json
import os
import resource
import subprocess
import sys
import time

import jiwer
import numpy as np
import torch
from open_model import RATE, corpus_parser, known_words, utterances
from word_times import boundary_errors

from ent_brain.annotation import Word
from ent_brain.dataio import read_audio
from ent_brain.errors import exit_on_input_error
from ent_brain.evaluation import hardware
from ent_brain.files import write_json
from ent_brain.inference import EmotionTransducer


def faster_whisper(options):
    """faster-whisper with its defaults: beam size 5, word times from cross-attention."""
    from faster_whisper import WhisperModel

    model = WhisperModel(options.ct2, compute_type="int8", cpu_threads=options.threads)

    def run(path):
        segments, _ = model.transcribe(
            read_audio(path, RATE).numpy(), language="en", word_timestamps=True
        )
        words = [word for segment in segments for word in segment.words]
        return "".join(w.word for w in words), [(w.word, w.start, w.end) for w in words], None

    return run


def transformers_pipeline(options):
    """The pipeline of transformers, with word times from cross-attention."""
    from transformers import pipeline

    model = pipeline("automatic-speech-recognition", model=options.ssl, dtype=torch.float32)

    def run(path):
        audio = {"raw": read_audio(path, RATE).numpy(), "sampling_rate": RATE}
        said = model(audio, return_timestamps="word", generate_kwargs={"language": "en"})
        return said["text"], [(c["text"], *c["timestamp"]) for c in said["chunks"]], None

    return run


def ours(options, words="own", precision="fp32"):
    """``annotate_file`` of the packed model."""
    run_opts = {"precision": precision}
    model = EmotionTransducer.open_english(ssl=options.ssl, words=words, run_opts=run_opts)

    def run(path):
        said = model.annotate_file(path, progressbar=False)
        return said.text, [word[:3] for word in said.words], said.emotion

    return run


PEERS = {
    "faster-whisper, int8": faster_whisper,
    "transformers' pipeline": transformers_pipeline,
    "ours, own words": ours,
    "ours, own words, bf16": lambda options: ours(options, precision="bf16"),
    "ours, Whisper's words": lambda options: ours(options, "whisper"),
    "ours, Whisper's words, bf16": lambda options: ours(options, "whisper", "bf16"),
}


@exit_on_input_error
def main():
    parser = corpus_parser(__doc__, every=4, needs_ssl=True)
    parser.add_argument(
        "--ct2", required=True, metavar="FOLDER", help="openai/whisper-base for faster-whisper"
    )
    parser.add_argument("--only", choices=PEERS, help="measure one in this process and print JSON")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(PEERS[options.only](options), options)))
        return
    rows = {}
    for name in PEERS:
        if "bf16" in name and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            continue
        command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
        threads = {"OMP_NUM_THREADS": str(options.threads)}
        done = subprocess.run(command, env=os.environ | threads, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(done.returncode)
        rows[name] = json.loads(done.stdout.splitlines()[-1])
    print(table(rows))
    torch.set_num_threads(options.threads)
    files = next(iter(rows.values()))["files"]
    print(f"\n{files} files, {hardware('cpu')}")
    if options.output:
        write_json(rows, options.output)


def measure(run, options):
    """Run a peer over the files.

    Returns
    -------
    dict
        ``WER`` in percent; median ``start`` and ``end`` errors of words in ms; the share ``found``
        of words; ``real-time factor``; ``peak MB``; and the count of each of the ``emotions``.
    """
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    torch.set_num_threads(options.threads)
    normalize = EnglishTextNormalizer({})
    speech = utterances(options.librispeech / options.part, options.every)
    run(next(iter(speech)))  # warm-up
    began = time.perf_counter()
    said = {path: run(path) for path in speech}
    took = time.perf_counter() - began
    seconds = sum(len(read_audio(path, RATE)) for path in speech) / RATE
    texts = [normalize(text) or " " for text, _, _ in said.values()]
    references = [normalize(text) for text in speech.values()]
    errors, known_count, emotions = [], 0, {}
    for path, (_, words, emotion) in said.items():
        known = known_words(options.librispeech / "alignments", path)
        known_count += len(known)
        errors += boundary_errors(known, [_comparable(*word) for word in words])
        if emotion:
            emotions[emotion] = emotions.get(emotion, 0) + 1
    start, end = 1000 * np.median(np.abs(errors or [(np.nan, np.nan)]), axis=0)
    return {
        "files": len(speech),
        "WER": 100 * jiwer.wer(references, texts),
        "start": float(start),
        "end": float(end),
        "found": len(errors) / known_count,
        "real-time factor": took / seconds,
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "emotions": emotions,
    }


def _comparable(text, start, end):
    """Write a word in the alignments' form: upper case without punctuation."""
    letters = "".join(c for c in text.upper() if c.isalnum() or c == "'")
    return Word(letters or "-", start, end, None, None)


def table(rows):
    """Make the Markdown table of the figures."""
    lines = [
        "| | WER | word starts, ms | word ends, ms | real-time factor | peak MB | emotions |",
        "| :-- | --: | --: | --: | --: | --: | :-- |",
    ]
    for name, row in rows.items():
        emotions = ", ".join(f"{count} {emotion}" for emotion, count in row["emotions"].items())
        lines.append(
            f"| {name} | {row['WER']:.1f} | {row['start']:.0f} | {row['end']:.0f} | "
            f"{row['real-time factor']:.3f} | {row['peak MB']:.0f} | {emotions or '-'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
