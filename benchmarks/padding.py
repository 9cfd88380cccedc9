#!/usr/bin/env python3
"""What silence behind an utterance, up to Whisper's 30 s, changes in words and emotions.

Whisper was trained on 30 s. The front end encodes an utterance at its own length, which is cheaper.
Here a model hears the test sets once so and once padded. The model was trained at own length.

> python benchmarks/padding.py --librispeech LibriSpeech --ravdess RAVDESS --ssl whisper-base
"""

import sys
from pathlib import Path

import torch
from open_model import add_model, corpus_parser, emotions, load, recordings, utterances, words

from ent_brain.errors import exit_on_input_error
from ent_brain.evaluation import hardware
from ent_brain.files import write_json


@exit_on_input_error
def main():
    parser = corpus_parser(__doc__, every=1)
    add_model(parser)
    parser.add_argument("--ravdess", type=Path, required=True, metavar="FOLDER", help="RAVDESS")
    options = parser.parse_args()
    model = load(options)
    speech = utterances(options.librispeech / options.part, options.every)
    acted = recordings(options.ravdess, options.every)
    frontend, rows = model.mods.frontend, {}
    for name, encode in {"own length": frontend.encode, "30 s": padded(frontend)}.items():
        frontend.encode = encode
        rows[name] = words(model, speech, options.librispeech / "alignments")
        rows[name] |= emotions(model, acted)
    print(table(rows))
    print(f"\n{len(speech)} and {len(acted)} files, {hardware('cpu')}")
    if options.output:
        write_json(rows, options.output)


def padded(frontend):
    """The front end's ``encode`` with silence up to 30 s; the states of the silence are dropped."""
    plain = frontend.encode

    def encode(wavs, wav_lens=None):
        silence = frontend.max_samples - wavs.size(1)
        states = plain(torch.nn.functional.pad(wavs, (0, silence)))
        return states[:, : frontend._count_states(wavs.size(1))]

    return encode


def table(rows):
    """Markdown of the figures."""
    lines = [
        "| encoded | WER | median error of word boundaries, ms | UA | real-time factor |",
        "| :-- | --: | --: | --: | --: |",
    ]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['WER, own words']:.1f} | {row['word boundaries, median ms']:.0f} | "
            f"{row['UA']:.1f} | {row['real-time factor']:.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
