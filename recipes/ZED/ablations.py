#!/usr/bin/env python3
"""Compare lattice losses: how well each helps to find emotions in time.

Trains the demo YAMLs with each lattice mode and without a lattice loss, on synthetic look-alikes of
IEMOCAP and ZED, and writes one table.

> python ablations.py --output_folder ablations --devices cpu,cpu

If you run it again, it keeps finished trainings and resumes the others. Other options are passed to
``train.py``.
"""

import argparse
import sys
from pathlib import Path

from ent_brain.errors import exit_on_input_error
from ent_brain.runs import compare
from ent_brain.synth import write_iemocap, write_zed

FOLDER = Path(__file__).parent
MODES = ("none", "one", "full_t", "full_u", "mil", "aligned", "aligned_event")


def variants(models, modes, options):
    """Arguments of ``train.py`` for each model in each mode (dict of list[str])."""
    chosen = {}
    for model in models:
        for mode in modes:
            lattice = ["--lattice_weight", "0"] if mode == "none" else ["--lattice_mode", mode]
            yaml = str(FOLDER / "hparams" / f"{model}_demo.yaml")
            chosen[f"{model}_{mode}"] = [yaml, *options, *lattice]
    return chosen


@exit_on_input_error
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--output_folder", type=Path, default=Path("results/ablations"))
    parser.add_argument(
        "--utterances", type=int, default=2500, help="utterances of the IEMOCAP look-alike"
    )
    parser.add_argument("--zed_utterances", type=int, default=180)
    parser.add_argument("--models", nargs="+", choices=("ent", "fent"), default=["ent", "fent"])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), metavar="MODE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument(
        "--devices", help="one training at a time on each device, for example cpu,cpu"
    )
    own, rest = parser.parse_known_args()
    folder = own.output_folder.absolute()
    corpora = {"data_folder": folder / "iemocap", "zed_folder": folder / "zed"}
    if not corpora["data_folder"].is_dir():
        write_iemocap(corpora["data_folder"], own.utterances, seed=1)
    if not corpora["zed_folder"].is_dir():
        write_zed(corpora["zed_folder"], own.zed_utterances, seed=1)
    options = [text for key, path in corpora.items() for text in (f"--{key}", str(path))]
    table = compare(
        variants(own.models, own.modes, [*options, *rest]),
        own.seeds,
        FOLDER / "train.py",
        folder,
        own.devices.split(",") if own.devices else None,
    )
    print(f"\n{table}\n\nAll but the minutes in percent. The same as JSON: {folder}")


if __name__ == "__main__":
    sys.exit(main())
