"""Several trainings, each in its own folder, in parallel on several devices."""

import os
import queue
import statistics
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from hyperpyyaml import resolve_references

from ent_brain.arguments import parse_arguments
from ent_brain.errors import InputError, one_line, raise_problems
from ent_brain.files import (
    REMEDY,
    check_kinds,
    read_json,
    read_rows,
    whole_or_nothing,
    write_json,
)
from ent_brain.page import RESULTS_FILE
from ent_brain.report import results_table
from ent_brain.settings import CANNOT_LOAD

FINISHED_FILE = "finished.json"
"""File in the folder of a finished run with its settings and its duration in seconds. The duration
is null if the run was interrupted."""


class Run(NamedTuple):
    """A training with its tests."""

    name: str
    script: Path
    arguments: list
    """Arguments of the script: the YAML, then options without the output folder (str)."""
    folder: Path

    @property
    def command(self):
        """Arguments with the output folder (list[str])."""
        return [*self.arguments, "--output_folder", str(self.folder)]

    def results(self):
        """Read the rows of its ``results.json`` (list[dict])."""
        return read_rows(self.folder / RESULTS_FILE, ["test set", "protocol"])

    def settings(self):
        """Resolve the settings from the YAML and the options (str)."""
        hparams_file, _, overrides = parse_arguments(self.command)
        try:
            with Path(hparams_file).open(encoding="utf-8") as file:
                return resolve_references(file, overrides).getvalue()
        except CANNOT_LOAD as error:
            raise InputError(f"{hparams_file}: {one_line(error)}: correct it") from error

    def finished(self):
        """Read the ``settings`` and ``seconds`` of a finished run (dict)."""
        path = self.folder / FINISHED_FILE
        noted = read_json(path)
        try:
            check_kinds((dict, [noted]))
            check_kinds((str, [noted["settings"]]), (float | int | None, [noted["seconds"]]))
        except (TypeError, KeyError, ValueError) as error:
            raise InputError(f"{path}: no settings and seconds of a training: {REMEDY}") from error
        return noted


def is_finished(run):
    """Check whether a run is finished; ``InputError`` if it has other settings."""
    settings = run.settings()
    if not all((run.folder / name).is_file() for name in (FINISHED_FILE, RESULTS_FILE)):
        return False
    if run.finished()["settings"] != settings:
        raise InputError(
            f"{run.folder}: was run with other settings. Name another output_folder, or remove "
            "this one."
        )
    return True


def run_all(runs, devices=None):
    """Run all unfinished runs; interrupted ones resume.

    Arguments
    ---------
    runs : list of Run
    devices : list of str, optional
        Devices by SpeechBrain's names; one run at a time on each. Runs on a CPU share its cores,
        unless OMP_NUM_THREADS is set. If None, one run at a time on the script's default device.

    Raises
    ------
    InputError
        If runs failed, after all others have ended; the message names them. Also the errors of
        ``is_finished``.
    """
    waiting = [run for run in runs if not is_finished(run)]
    for run in runs:
        if run not in waiting:
            print(f"{run.name}: already finished, in {run.folder}")
    free = queue.SimpleQueue()
    for device in devices or [None]:
        free.put(device)
    environment = dict(os.environ)
    if together := (devices or []).count("cpu"):
        threads = max(1, (os.cpu_count() or 1) // together)
        environment.setdefault("OMP_NUM_THREADS", str(threads))

    def start(run):
        device = free.get()
        try:
            chosen = ["--device", device] if device else []
            print(f"{run.name}: training for {run.folder}", flush=True)
            is_new = not run.folder.exists()
            started = time.monotonic()
            command = [sys.executable, str(run.script), *run.command, *chosen]
            status = subprocess.call(command, env=environment)
            if not status:
                seconds = time.monotonic() - started if is_new else None
                finished = {"settings": run.settings(), "seconds": seconds}
                write_json(finished, run.folder / FINISHED_FILE)
            return status
        finally:
            free.put(device)

    with ThreadPoolExecutor(len(devices or [None])) as pool:
        statuses = list(pool.map(start, waiting))
    failed = [
        f"{run.name}: status {status}"
        for run, status in zip(waiting, statuses, strict=True)
        if status
    ]
    raise_problems(failed, "see the errors above, then start again; finished runs are kept")


def mean_and_deviation(rows):
    """Compute the mean and the sample standard deviation of each metric.

    Arguments
    ---------
    rows : list[dict]
        Values that are not numbers are skipped.

    Returns
    -------
    (dict, dict)
        Mean and deviation by metric; the deviation of a single value is None.

    Example
    -------
    >>> mean_and_deviation([{"WER": 10.0, "EDER": 30.0}, {"WER": 14.0, "EDER": 30.0}])
    ({'WER': 12.0, 'EDER': 30.0}, {'WER': 2.8284271247461903, 'EDER': 0.0})
    """
    found = {
        metric: [row[metric] for row in rows if isinstance(row.get(metric), int | float)]
        for metric in dict.fromkeys(key for row in rows for key in row)
    }
    found = {metric: values for metric, values in found.items() if values}
    mean = {metric: statistics.mean(values) for metric, values in found.items()}
    deviation = {m: statistics.stdev(v) if len(v) > 1 else None for m, v in found.items()}
    return mean, deviation


def mean_with_deviation(mean, deviation):
    """Format a table's cell (str), such as ``25.3 ± 1.2``."""
    return f"{mean:.1f}" + (f" ± {deviation:.1f}" if deviation is not None else "")


def compare(variants, seeds, script, output_folder, devices=None):
    """Train variants of a recipe with each of several seeds, and make a table.

    Arguments
    ---------
    variants : dict[str, list[str]]
        The YAML, then options, for each variant by name. The name is also that of its folder.
    seeds : sequence of int
    script : Path
        The recipe's ``train.py``.
    output_folder : Path
        Runs are in ``<variant>/seed_<seed>``, the table in ``comparison.md`` and
        ``comparison.json``.
    devices : list of str, optional
        As for ``run_all``.

    Returns
    -------
    str
        The Markdown table. For each variant and test set, it has the mean and deviation over seeds
        of the checkpoint that validation selected. EDER is that of the YAML's segment decoding,
        followed by those of others.
    """
    if twice := [seed for seed, count in Counter(seeds).items() if count > 1]:
        raise InputError(f"seeds: {twice[0]} is given more than once: give each once")
    output_folder = Path(output_folder)
    runs = {
        name: [
            Run(
                f"{name}, seed {seed}",
                script,
                [*arguments, "--seed", str(seed)],
                output_folder / name / f"seed_{seed}",
            )
            for seed in seeds
        ]
        for name, arguments in variants.items()
    }
    run_all([run for own_runs in runs.values() for run in own_runs], devices)
    figures, rows = [], []
    for name, own_runs in runs.items():
        measured = [_by_test_set(run) for run in own_runs]
        for test_set in measured[0]:
            mean, deviation = mean_and_deviation([run[test_set] for run in measured])
            about = {"model": name, "test set": test_set}
            figures.append({**about, "seeds": list(seeds), "mean": mean, "deviation": deviation})
            cells = {k: mean_with_deviation(mean[k], deviation[k]) for k in mean}
            rows.append({**about, **cells})
    columns = dict.fromkeys(column for row in rows for column in row)
    table = results_table([{column: row.get(column) for column in columns} for row in rows])
    write_json(figures, output_folder / "comparison.json")
    with whole_or_nothing(output_folder / "comparison.md") as partial:
        partial.write_text(table + "\n", encoding="utf-8")
    return table


def _by_test_set(run):
    """Metrics of a run on each test set (dict of dicts); names of EDER include the decoding."""
    measured = {}
    for row in run.results():
        of_set = measured.setdefault(row["test set"], {})
        if row["protocol"] == "valid":
            of_set.update({key: row[key] for key in ("WER", "UA", "EDER") if key in row})
        elif row["protocol"] != "paper":
            of_set[f"EDER, {row['protocol']}"] = row["EDER"]
    seconds = run.finished()["seconds"]
    for of_set in measured.values():
        of_set["minutes"] = None if seconds is None else seconds / 60
    return measured
