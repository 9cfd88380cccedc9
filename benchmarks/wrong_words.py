#!/usr/bin/env python3
"""Which words of a transcript `ent-brain align` calls implausible: the wrong ones, and right ones.

In a copy of each transcript one word is replaced by a word of another transcript, and in a second
copy such a word is inserted. The threshold (`ent_brain.inference.IMPLAUSIBLE`) was chosen on the
validation speakers of `recipes/Open`. This script measures test speakers.

> python benchmarks/wrong_words.py --librispeech LibriSpeech --ssl whisper-base
"""

import random
import re
import sys

from open_model import RATE, add_model, corpus_parser, load, utterances

from ent_brain.dataio import read_audio
from ent_brain.errors import exit_on_input_error
from ent_brain.evaluation import hardware
from ent_brain.files import write_json

KINDS = "replaced", "inserted"


@exit_on_input_error
def main():
    parser = corpus_parser(__doc__, every=4)
    add_model(parser)
    options = parser.parse_args()
    model = load(options)
    speech = utterances(options.librispeech / options.part, options.every)
    found = measure(model, {read_audio(path, RATE): text for path, text in speech.items()})
    found["made with"] = f"{len(speech)} files, {hardware('cpu')}"
    print("| word | words | called implausible, % |\n| :-- | --: | --: |")
    for kind in ("right", *KINDS):
        print(f"| {kind} | {found[kind]['words']} | {found[kind]['%']:.1f} |")
    print(f"\n{found['made with']}")
    if options.output:
        write_json(found, options.output)


def measure(model, speech):
    """Share of words called implausible, by kind, for waveforms and their transcripts (dict)."""
    generator = random.Random(0)
    vocabulary = sorted({word for text in speech.values() for word in text.split()})
    called = {kind: [] for kind in ("right", *KINDS)}
    for wav, text in speech.items():
        words = text.split()
        called["right"] += implausible(model, wav, words)
        place = generator.randrange(len(words))
        wrong = generator.choice([word for word in vocabulary if word not in words])
        for kind, after in zip(KINDS, (place + 1, place), strict=True):
            changed = [*words[:place], wrong, *words[after:]]
            called[kind].append(implausible(model, wav, changed)[place])
    return {
        kind: {"words": len(each), "%": 100 * sum(each) / len(each)}
        for kind, each in called.items()
    }


def implausible(model, wav, words):
    """Whether the model calls each word implausible (list[bool])."""
    [annotation] = model.align_batch(wav[None], [" ".join(words)])
    notes = " ".join(annotation.notes)
    named = set(re.findall(r"(\S+ at \d+\.\d\d s)", notes))
    return [f"{word.text} at {word.start:.2f} s" in named for word in annotation.words]


if __name__ == "__main__":
    sys.exit(main())
