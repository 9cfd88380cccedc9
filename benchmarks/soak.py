#!/usr/bin/env python3
"""Memory, files and processes of a corpus of IEMOCAP's size, from synthesis to report.

`recipes/IEMOCAP/train.py` fills the cache of SSL features, trains three epochs on them, decodes the
held-out session and writes the report. It runs on 5,531 synthetic utterances with a small random
wav2vec2 and a small ENT. Meanwhile, this script records its resident memory, open files and child
processes. Then it measures ZED's preparation and the reading of manifests with up to 100,000
entries.

> python benchmarks/soak.py [--quick] [--output soak.json]

Linux only: the figures are those of /proc.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import lookalike
import numpy as np
import soundfile
import torch
import transformers
from epoch import in_its_own_process, memory

from ent_brain.dataio import make_dataset
from ent_brain.emotions import PUBLISHED
from ent_brain.evaluation import hardware
from ent_brain.files import write_json
from ent_brain.frontend import FbankFrontend
from ent_brain.tokens import CharTokens

ROOT = Path(__file__).resolve().parents[1]
INTERVAL = 0.05
"""Seconds between two measurements of the program."""

PATIENCE = 10
"""Time in seconds that child processes may outlive the program. The one that manages shared memory
ends last."""

FILLING = {
    "features of": "filling the cache",
    "All features are cached": "exit after filling",
}
TRAINING = {
    "Going into epoch 1": "first epoch",
    "Going into epoch 2": "later epochs",
    "Loading a checkpoint": "search, report",
    "To look at and listen to": "exit after training",
}
TORCH = {"that was all": "exit of torch alone"}
"""Output of each program at the start of a phase, and the name of the phase."""

TORCH_ALONE = "import time, torch; print('that was all', flush=True); time.sleep(1)"
"""Program that only imports torch, whose CUDA libraries read more of their files at its end."""

FIGURES = ("preparation seconds", "preparation peak", "reading seconds", "reading peak")


@dataclass(frozen=True)
class Look:
    """Resources of a program at one time."""

    seconds: float
    resident: float
    """In MB."""
    files: int
    children: int


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="use few utterances")
    parser.add_argument("--output", metavar="JSON", type=Path, help="file for the results")
    options = parser.parse_args()
    utterances, largest = (100, 4000) if options.quick else (5531, 100_000)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        steps = soak(folder, utterances)
        entries = preparation(folder / "entries", largest)
    seconds = time.perf_counter() - begin
    facts = f"{utterances:,} utterances, workers of the loader: 2; {hardware('cpu')}"
    print(f"{facts}; {seconds:.0f} s\n")
    print("| step | s | peak MB | MB, 2nd quarter | MB, last quarter | growth ", end="")
    print("| files | children | left behind |")
    print("| :-- | --: | --: | --: | --: | --: | --: | --: | --: |")
    for row in steps:
        print(
            f"| {row['step']} | {row['seconds']:.0f} | {row['peak']:.0f} | {row['early']:.0f} "
            f"| {row['late']:.0f} | {100 * row['growth']:.1f} % | {row['files'][0]} to "
            f"{row['files'][1]} | {row['children']} | {row['left']} |"
        )
    grown = after_warm_up(steps)
    print(f"\nmost from the second epoch to the end of the report: {100 * grown:+.1f} %")
    print("\n| entries | preparation s | peak MB | reading s | peak MB |")
    print("| --: | --: | --: | --: | --: |")
    for row in entries:
        cells = [f"{row[name]:.1f}" for name in FIGURES]
        print(f"| {row['entries']:,} | " + " | ".join(cells) + " |")
    exponents = {name: growth(entries, name) for name in FIGURES}
    print("| growth exponent | " + " | ".join(f"{e:.2f}" for e in exponents.values()) + " |")
    if options.output:
        found = {"steps": steps, "after_warm_up": grown, "entries": entries, "exponents": exponents}
        write_json({"made with": facts, "seconds": seconds, **found}, options.output)


# --- from synthesis to report


def soak(folder, utterances):
    """Run the recipe step by step (list of dicts)."""
    corpus = folder / "iemocap"
    synth = ["-m", "ent_brain.synth", "iemocap", corpus, "--utterances", utterances, "--seed", 1]
    train = [ROOT / "recipes" / "IEMOCAP" / "train.py", small_recipe(folder)]
    train += ["--data_folder", corpus, "--output_folder", folder / "out", "--device", "cpu"]
    train += ["--feature_cache", folder / "features", "--ssl_hub", folder / "ssl"]
    train += ["--number_of_epochs", 3, "--warmup_epochs", 0, "--batch_size", 8]
    train += ["--num_workers", 2, "--noprogressbar"]
    return [
        *watch("synthesis", synth),
        *watch("preparation", [*train, "--only_fill_cache", True], FILLING),
        *watch("start", train, TRAINING),
        *watch("import of torch", ["-c", TORCH_ALONE], TORCH),
    ]


def small_recipe(folder):
    """Write a small SSL model, and IEMOCAP's `ent.yaml` with a small ENT; return its path."""
    torch.manual_seed(0)
    transformers.logging.disable_progress_bar()
    ssl = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ssl |= {"intermediate_size": 64, "conv_dim": [32] * 7}
    transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**ssl)).save_pretrained(folder / "ssl")
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder / "ssl")
    text = (ROOT / "recipes" / "IEMOCAP" / "hparams" / "ent.yaml").read_text(encoding="utf-8")
    text = text.replace("../../../hparams", str(ROOT / "hparams"))
    sizes = ("encoder_dim: 64", "embedding_dim: 32", "predictor_dim: 32", "joint_dim: 32")
    line = "    dropout: !ref <dropout>\n"
    assert text.count(line) == 1
    text = text.replace(line, line + "".join(f"    {size}\n" for size in sizes))
    (folder / "ent.yaml").write_text(text, encoding="utf-8")
    return folder / "ent.yaml"


def watch(step, arguments, later=()):
    """Run and monitor a program (list of dicts: the step, then later phases)."""
    command = [sys.executable, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    phases, begin = {step: []}, time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        program = subprocess.Popen(
            command, env=environment, stdout=said, stderr=said, start_new_session=True
        )
        while program.poll() is None:
            said.seek(0)
            text = said.read()
            started = [later[line] for line in later if line in text]
            looks = phases.setdefault(started[-1] if started else step, [])
            if look := look_at(program.pid, time.perf_counter() - begin):
                looks.append(look)
            time.sleep(INTERVAL)
        if program.returncode:
            said.seek(0)
            sys.exit(f"{' '.join(command)}\n{said.read()}")
    ended = time.perf_counter()
    while processes_of(program.pid) and time.perf_counter() < ended + PATIENCE:
        time.sleep(INTERVAL)
    left = len(processes_of(program.pid))
    return [
        row_of(name, looks) | {"left": left} for name, looks in phases.items() if len(looks) >= 8
    ]


def look_at(pid, seconds):
    """Measure a program's resources (Look); None if it has just ended."""
    proc = Path(f"/proc/{pid}")
    try:
        resident = int((proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
        files = len(list((proc / "fd").iterdir()))
        children = len((proc / "task" / str(pid) / "children").read_text().split())
    except OSError:
        return None
    return Look(seconds, resident, files, children)


def processes_of(session):
    """List the processes of a session: its first process and all descendants."""
    found = []
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            # The name in parentheses may contain any character.
            fields = (proc / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # the process has just ended
            continue
        state, own_session = fields[0], int(fields[3])
        if own_session == session and state != "Z":  # Z means that the process has ended
            found.append(int(proc.name))
    return found


def row_of(step, looks):
    """Make the table's row of a step: peak resources, and their growth after the warm-up."""
    quarter = len(looks) // 4
    early, late = (
        max(look.resident for look in part)
        for part in (looks[quarter : 2 * quarter], looks[-quarter:])
    )
    return {
        "step": step,
        "seconds": looks[-1].seconds - looks[0].seconds,
        "peak": max(look.resident for look in looks),
        "early": early,
        "late": late,
        "growth": late / early - 1,
        "files": [looks[quarter].files, looks[-1].files],
        "children": max(look.children for look in looks),
    }


def after_warm_up(rows):
    """Compute the growth of resident memory from the second epoch to the end of the report."""
    of = {row["step"]: row for row in rows}
    later = of["later epochs"]
    return max(later["peak"], of["search, report"]["peak"]) / later["early"] - 1


# --- many entries


def preparation(folder, largest):
    """Prepare and read corpora of increasing size (list of dicts)."""
    rows = []
    for entries in (largest // 8, largest // 4, largest // 2, largest):
        corpus = folder / str(entries)
        corpus.mkdir(parents=True)
        in_its_own_process(write_entries, corpus, entries)
        seconds = [in_its_own_process(timed, each, corpus) for each in (prepare, read)]
        figures = [figure for each in seconds for figure in each]
        rows.append({"entries": entries, **dict(zip(FIGURES, figures, strict=True))})
    return rows


def write_entries(corpus, entries):
    """Write a corpus in ZED's layout; its audio is one second of noise under many names."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(16000)
    interval = {"emo": "sad", "start": 0.25, "end": 0.75}
    utterances = {}
    for index in range(entries):
        path = Path("wav") / f"{index // 1000}" / f"{index}.wav"
        first = corpus / path.parent / f"{index - index % 1000}.wav"
        if index % 1000:  # file systems allow at most 65,000 names of one file
            (corpus / path).hardlink_to(first)
        else:
            first.parent.mkdir(parents=True)
            soundfile.write(first, noise, 16000)
        utterances[f"u{index}"] = {
            "wav": f"datafolder/{path.as_posix()}",
            "duration": 1.0,
            "emotion": [interval],
            "transcription": f"It is number {index}.",
        }
    write_json(utterances, corpus / "ZED.json")


def prepare(corpus):
    """Prepare a corpus as the recipe does."""
    lookalike.prepare(corpus, corpus / "save")


def read(corpus):
    """Read a corpus's manifest as training does."""
    make_dataset(
        {"corpus": (corpus / "save" / "zed.json", corpus)},
        CharTokens(),
        PUBLISHED,
        FbankFrontend(),
        1.0,
    )


def timed(function, corpus):
    """Measure a function's time in seconds, and its peak memory in MB."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = memory("VmRSS")
    begin = time.perf_counter()
    function(corpus)
    seconds = time.perf_counter() - begin
    return seconds, memory("VmHWM") - before


def growth(rows, name):
    """Compute the exponent of a figure's growth with the number of entries."""
    first, last = rows[0], rows[-1]
    return math.log(last[name] / first[name]) / math.log(last["entries"] / first["entries"])


if __name__ == "__main__":
    main()
