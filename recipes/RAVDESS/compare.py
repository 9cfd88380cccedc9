#!/usr/bin/env python3
"""Compare ways to learn emotions in time: utterance labels, intervals, and a frame classifier.

Trains each with several seeds and writes one table.

> python compare.py --data_folder Audio_Speech_Actors_01-24

If you run it again, it keeps finished trainings and resumes the others. Other options are passed to
``train.py``.
"""

import argparse
import sys
from pathlib import Path

from ent_brain.errors import exit_on_input_error
from ent_brain.runs import compare

FOLDER = Path(__file__).parent
INTERVALS = ["--lattice_mode", "supervised_aligned"]
VARIANTS = {
    "weak": [],
    "supervised": INTERVALS,
    "frame": [*INTERVALS, "--rnnt_weight", "0", "--head_weight", "0"],
    "one": ["--lattice_mode", "one"],
    "aligned": ["--lattice_mode", "aligned"],
}
"""Options of the variants: utterance labels, known intervals, and a frame classifier with known
intervals. The last two are poolings with utterance labels: the published one, and ``aligned``."""


@exit_on_input_error
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--yaml", default=str(FOLDER / "hparams" / "ent_mix.yaml"))
    parser.add_argument("--output_folder", default="results/compare")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME"
    )
    parser.add_argument(
        "--devices", help="one training at a time on each device, for example cpu,cpu"
    )
    own, rest = parser.parse_known_args()
    output_folder = Path(own.output_folder).absolute()
    table = compare(
        {name: [own.yaml, *rest, *VARIANTS[name]] for name in own.variants},
        own.seeds,
        FOLDER / "train.py",
        output_folder,
        own.devices.split(",") if own.devices else None,
    )
    print(f"\n{table}\n\nAll but the minutes in percent. The same as JSON: {output_folder}")


if __name__ == "__main__":
    sys.exit(main())
