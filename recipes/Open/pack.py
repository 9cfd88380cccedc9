#!/usr/bin/env python3
"""Put the exported model of a training into the package, and record its results.

> python pack.py results/ent/whisper_char31_neutral_True/42

``open_english.json`` in this folder records the digests of the packed files, which a test compares
with the package. It also has the results on the recipe's test sets and how they were measured.
"""

import argparse
import sys
from pathlib import Path

from ent_brain.errors import InputError, exit_on_input_error
from ent_brain.export import OPEN_ENGLISH, pack
from ent_brain.files import read_json, write_json
from ent_brain.page import RESULTS_FILE

ENCODER = "openai/whisper-base@e37978b90ca9030d5170a5c07aadb050351a65bb"
RECORD = Path(__file__).with_name("open_english.json")


@exit_on_input_error
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="output folder of the training")
    parser.add_argument(
        "--target", type=Path, default=OPEN_ENGLISH, help="folder for the packed model"
    )
    parser.add_argument("--record", type=Path, default=RECORD, help="JSON file for the record")
    options = parser.parse_args()
    results = options.folder / RESULTS_FILE
    if not results.is_file():
        raise InputError(f"{results}: no such file. Name the output folder of a finished training.")
    facts = results.with_name("results.md").read_text(encoding="utf-8").partition("\n\n")[2]
    files = pack(options.folder / "pretrained", options.target, ENCODER)
    record = {
        "files": files,
        "results": read_json(results),
        "made with": [line.removeprefix("* ") for line in facts.splitlines() if line],
        "epochs": len(read_json(options.folder / "history.json")),
    }
    write_json(record, options.record)
    size = sum(path.stat().st_size for path in options.target.iterdir()) / 1e6
    print(f"{options.target}: {size:.1f} MB, {options.record.name}: its digests")


if __name__ == "__main__":
    sys.exit(main())
