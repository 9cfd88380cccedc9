#!/usr/bin/env python3
"""Time of `make demo` in a fresh clone, and the table that it prints.

The time includes the virtual environment, whose packages pip downloads or finds in its cache. The
clone stays in the folder, and with it the model: `FOLDER/demo/ent/pretrained`.

> python benchmarks/demo.py FOLDER [--output demo.json]
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from ent_brain.evaluation import hardware
from ent_brain.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="new folder for the clone")
    parser.add_argument("--output", metavar="JSON", type=Path, help="file for the results")
    options = parser.parse_args()
    seconds, rows = measure(ROOT, options.folder)
    facts = f"a clone of the last commit; {hardware('cpu')}"
    print(f"{facts}; {seconds:.0f} s")
    if options.output:
        write_json({"made with": facts, "seconds": seconds, "rows": rows}, options.output)


def measure(repository, folder):
    """Clone a repository and make its demo; return the seconds and the rows of the table."""
    subprocess.run(["git", "clone", "--quiet", repository, folder], check=True)
    begin = time.perf_counter()
    subprocess.run(["make", "demo", f"PYTHON={sys.executable}"], cwd=folder, check=True)
    return time.perf_counter() - begin, read_json(folder / "demo" / "ent" / "results.json")


if __name__ == "__main__":
    main()
