#!/usr/bin/env python3
"""How long a word sounds after the frame of its last token, if a pause follows it.

A word's sound ends where its power falls to ``ABOVE`` the noise of the pause. The median is the
value of `ent_brain.alignment.WORD_TAIL`. Measure it on validation speakers.

> python benchmarks/word_tail.py --librispeech LibriSpeech --ssl whisper-base
"""

from itertools import pairwise

import numpy as np
from open_model import RATE, add_model, corpus_parser, load, utterances
from tqdm import tqdm

from ent_brain.alignment import WORD_TAIL
from ent_brain.dataio import read_audio
from ent_brain.errors import exit_on_input_error
from ent_brain.evaluation import hardware
from ent_brain.files import write_json
from ent_brain.segments import TimedWord

SPEAKERS = "2416", "3526", "8629"
"""Validation speakers of `recipes/Open` with the seed of the model in the package."""

PAUSE = 0.3
"""Seconds between the last token of a word and the next word from which on they are a pause."""

LONGEST = 1.0
"""Seconds after the last token in which the end of the sound is searched."""

ABOVE, LEAST = 10.0, 15.0
"""dB above the noise of the pause at which a sound ends; and what a word must have at least."""

LASTING = 5
"""Number of steps (50 ms) that must be below the threshold."""


@exit_on_input_error
def main():
    parser = corpus_parser(__doc__, threads=1)
    add_model(parser)
    parser.add_argument("--speakers", nargs="+", default=SPEAKERS, metavar="SPEAKER")
    parser.add_argument(
        "--utterances", type=int, default=20, help="utterances of each speaker (default: 20)"
    )
    parser.set_defaults(part="train-clean-5")
    options = parser.parse_args()
    model = load(options)
    seconds = []
    for speaker in options.speakers:
        speech = utterances(options.librispeech / options.part / speaker, 1)
        apart = max(1, len(speech) // options.utterances)
        chosen = list(speech.items())[::apart][: options.utterances]
        for path, text in tqdm(chosen, desc=speaker, unit="file"):
            wav = read_audio(path, RATE)
            [annotation] = model.align_batch(wav[None], [text])
            seconds += tails(wav.numpy(), annotation.words)
    quarters = np.quantile(seconds, (0.25, 0.5, 0.75)).round(3).tolist()
    found = {
        "words before a pause": len(seconds),
        "seconds": dict(zip(("first quarter", "median", "third quarter"), quarters, strict=True)),
        "made with": f"speakers {', '.join(options.speakers)}, {hardware('cpu')}",
    }
    print(found)
    if options.output:
        write_json(found, options.output)


def tails(wav, words):
    """Seconds from the last token of each word to the end of its sound, of words before a pause.

    Arguments
    ---------
    wav : array
        [S] at 16 kHz.
    words : sequence of Word

    Returns
    -------
    list[float]
    """
    step = RATE // 100
    levels = 10 * np.log10(
        [
            np.square(wav[max(0, start - step // 2) : start + 3 * step // 2]).mean() + 1e-10
            for start in range(0, len(wav) - step + 1, step)
        ]
    )
    found, end = [], TimedWord("", len(wav) / RATE, len(wav) / RATE)
    for word, following in pairwise((*words, end)):
        last = word.end - WORD_TAIL
        if following.start - last < PAUSE:
            continue
        first = max(0, int(100 * (last - 0.1)))
        part = levels[first : int(100 * min(following.start, last + LONGEST))]
        noise = np.quantile(part, 0.1)
        if part[:15].max() < noise + LEAST:
            continue
        quiet = part < noise + ABOVE
        ends = (i for i in range(10, len(part) - LASTING + 1) if quiet[i : i + LASTING].all())
        if (at := next(ends, None)) is not None:
            found.append((first + at + 0.5) / 100 - last)
    return found


if __name__ == "__main__":
    main()
