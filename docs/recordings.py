"""Draw three test recordings as the English model in the package annotates them.

The pictures are ``ravdess.png``, ``mixture.png`` and ``librispeech.png``. Each is of the first
recording of its kind, whatever the result.

> python docs/recordings.py --librispeech LibriSpeech --ravdess RAVDESS --ssl whisper-base
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from open_model import RATE, known_segments, test_actors, test_mixtures, utterances
from PIL import Image  # matplotlib depends on it

from ent_brain.dataio import read_audio
from ent_brain.errors import exit_on_input_error
from ent_brain.inference import EmotionTransducer
from ent_brain.report import plot_timeline
from ent_brain.segments import Segment

EMOTION = "angry"
COLOURS = 64
"""Colours of a picture, so that its file is small."""

LONGEST = 8.0
"""Seconds of LibriSpeech's recording, so that its words can be read."""


@exit_on_input_error
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--librispeech", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--ravdess", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--ssl", metavar="FOLDER", help="openai/whisper-base")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, metavar="FOLDER")
    options = parser.parse_args()
    model = EmotionTransducer.open_english(ssl=options.ssl)
    with tempfile.TemporaryDirectory() as scratch:
        for name, (path, segments) in choose(options, Path(scratch)).items():
            annotation = model.annotate_file(path, progressbar=False)
            wav = read_audio(path, RATE).numpy()
            picture = options.output / f"{name}.png"
            plot_timeline(picture, wav, RATE, annotation, segments)
            Image.open(picture).quantize(COLOURS).save(picture, optimize=True)
            print(f"{name}.png: {path.name}: {annotation.emotion}: {annotation.text}")


def choose(options, scratch):
    """Path and known segments of each recording, by the name of its picture."""
    acted = test_actors(options.ravdess)
    path = next(path for path, entry in acted.items() if entry["emotion"] == EMOTION)
    single = path, [Segment(0.0, acted[path]["duration"], EMOTION)]
    mixtures = test_mixtures(options.ravdess, scratch)
    path = next(path for path, entry in mixtures.items() if entry["emotion"] == EMOTION)
    speech = utterances(options.librispeech / "test-speakers", every=1)
    read = next(path for path in speech if len(read_audio(path, RATE)) <= LONGEST * RATE)
    return {
        "ravdess": single,
        "mixture": (path, known_segments(mixtures[path])),
        "librispeech": (read, None),
    }


if __name__ == "__main__":
    sys.exit(main())
