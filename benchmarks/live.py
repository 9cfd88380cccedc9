#!/usr/bin/env python3
"""Words while they are spoken: accuracy, delay, computing time and memory of a ``Listener``.

A listener hears test speakers of LibriSpeech in chunks of several sizes. ``annotate_file``
annotates the same files. The delay of a word is the time from its end to the moment when a listener
at a microphone would have settled it, computing time included. The Montreal aligner gives the ends
of words, so only correct words have a delay. Words that the end of a file settles have none.

A further listener hears the files joined to one long stream. Its cost per minute must not grow.
Computing time is CPU time, which other programs change little.

> python benchmarks/live.py --librispeech LibriSpeech --ssl whisper-base
"""

import sys
import tempfile
import time
from pathlib import Path

import jiwer
import numpy as np
import soundfile
from epoch import in_its_own_process, memory
from field import Part, write_long
from open_model import RATE, add_model, corpus_parser, known_words, load, utterances
from word_times import boundary_errors

from ent_brain.dataio import read_audio
from ent_brain.errors import exit_on_input_error
from ent_brain.evaluation import hardware
from ent_brain.files import write_json
from ent_brain.live import Listener

WHOLE = "annotate_file"
PARTS = "first third", "second third", "last third"
STREAM_CHUNK = 0.1
"""Chunk in seconds of the long stream, about that of a microphone."""


@exit_on_input_error
def main():
    parser = corpus_parser(__doc__, every=20, threads=1)
    add_model(parser)
    parser.add_argument(
        "--chunks", type=float, nargs="+", default=[0.1, 0.5, 1.0], help="sizes in seconds"
    )
    parser.add_argument(
        "--minutes", type=float, default=3.0, help="minutes of the long stream (default: 3)"
    )
    options = parser.parse_args()
    speech = utterances(options.librispeech / options.part, options.every)
    model = load(options)
    rows = {WHOLE: whole(model, speech)}
    for seconds in options.chunks:
        heard = {path: listen(model, read_audio(path, RATE), seconds) for path in speech}
        rows[f"chunks of {seconds:g} s"] = score(heard, speech, options.librispeech / "alignments")
    facts = f"{len(speech)} files, {hardware('cpu')}"
    found = {"made with": facts, "files": rows}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "stream.wav"
        parts = [Part("LibriSpeech", each, text, None) for each, text in speech.items()]
        order = write_long(path, parts, options.minutes)
        text, found["stream"] = in_its_own_process(stream, options, path)
    found["WER of the stream"] = 100 * jiwer.wer(
        " ".join(parts[index].text for index in order), text or " "
    )
    print(table(found))
    if options.output:
        write_json(found, options.output)


def whole(model, speech):
    """WER in percent, and computing time per second of audio, of ``annotate_file``."""
    began = time.process_time()
    heard = [model.annotate_file(path, progressbar=False) for path in speech]
    took = time.process_time() - began
    return {
        "WER": 100 * jiwer.wer(list(speech.values()), [each.text or " " for each in heard]),
        "CPU s per s": took / sum(each.duration for each in heard),
    }


def listen(model, wav, seconds):
    """Feed a waveform to a listener in chunks.

    Returns
    -------
    (list[Word], float, float)
        The words, with the time after the start of the stream at which each was settled in place of
        its end, NaN after the stream; computing time and duration in seconds.
    """
    listener, words, now = Listener(model), [], 0.0
    began = time.process_time()
    for chunk in wav.split(round(seconds * RATE)):
        fed = time.perf_counter()
        settled = listener.feed(chunk)
        # A microphone gives a chunk at its end. It waits while the one before is being processed.
        now = max(now, listener.seconds) + time.perf_counter() - fed
        words += [word._replace(end=now) for word in settled]
    words += [word._replace(end=float("nan")) for word in listener.finish()]
    return words, time.process_time() - began, listener.seconds


def score(heard, speech, alignments):
    """WER in percent, delays in seconds, and computing time per second of audio.

    Arguments
    ---------
    heard : dict
        Results of ``listen`` by path.
    speech : dict
        Texts by path.
    alignments : Path
        Folder of LibriSpeech's alignments.
    """
    delays = []
    for path, (words, _, _) in heard.items():
        delays += [late for _, late in boundary_errors(known_words(alignments, path), words)]
    delays = np.array(delays)[~np.isnan(delays)]
    median, ninth, longest = np.quantile(delays, [0.5, 0.9, 1.0]).tolist()
    texts = [" ".join(word.text for word in words) or " " for words, _, _ in heard.values()]
    took, seconds = (sum(each) for each in list(zip(*heard.values(), strict=True))[1:])
    return {
        "WER": 100 * jiwer.wer([speech[path] for path in heard], texts),
        "delay, median": median,
        "delay, 90th percentile": ninth,
        "delay, maximum": longest,
        "words with a delay": len(delays),
        "CPU s per s": took / seconds,
    }


def stream(options, path):
    """Text of a long stream; and cost and memory in each third of it (dict)."""
    return measure_stream(load(options), path)


def measure_stream(model, path):
    """Feed a file to a listener in chunks; return its text, and the figures of each third (dict).

    The figures are computing time in seconds per minute of audio, and the largest resident memory
    in MB.
    """
    listener, looks = Listener(model), []
    size = round(STREAM_CHUNK * RATE)
    for chunk in soundfile.blocks(path, size, dtype="float32"):
        began = time.process_time()
        listener.feed(chunk)
        took = time.process_time() - began
        looks.append((took, len(chunk) / RATE, memory("VmRSS")))
    listener.finish()
    thirds = (np.array(part) for part in np.array_split(looks, len(PARTS)))
    return listener.annotate(path.stem).text, {
        name: {
            "CPU s per minute": float(60 * each[:, 0].sum() / each[:, 1].sum()),
            "MB": float(each[:, 2].max()),
        }
        for name, each in zip(PARTS, thirds, strict=True)
    }


def table(found):
    """Make the Markdown tables of the figures."""
    lines = [
        "| | WER | delay in s: median | 90th percentile | maximum | CPU s per s of audio |",
        "| :-- | --: | --: | --: | --: | --: |",
    ]
    for name, row in found["files"].items():
        delays = [f"{value:.2f}" for key, value in row.items() if key.startswith("delay")]
        cells = [name, f"{row['WER']:.1f}", *(delays or "---"), f"{row['CPU s per s']:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"\n{found['made with']}\n"]
    lines += ["| stream | CPU s per minute of audio | resident MB |", "| :-- | --: | --: |"]
    for name, row in found["stream"].items():
        lines.append(f"| {name} | {row['CPU s per minute']:.1f} | {row['MB']:.0f} |")
    lines += [f"\nWER of the stream: {found['WER of the stream']:.1f}"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
