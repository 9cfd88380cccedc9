"""Several trainings: each in its own folder, as many at once as there are devices, none twice."""

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
from ent_brain.settings import CANNOT_LOAD, parse_arguments

FINISHED_FILE = "finished.json"
"""In the folder of a run that is finished: its settings, and how many seconds it took by the clock,
null where it was stopped in between."""


class Run(NamedTuple):
    """A training, its tests included."""

    name: str
    script: Path
    arguments: list
    """Of the script: the YAML, then options but for the output folder (str)."""
    folder: Path

    @property
    def command(self):
        """Arguments (list[str]) with the output folder among them."""
        return [*self.arguments, "--output_folder", str(self.folder)]

    def results(self):
        """Rows (list[dict]) of its ``results.json``."""
        return read_rows(self.folder / RESULTS_FILE, ["test set", "protocol"])

    def settings(self):
        """All that the YAML and the options say, resolved (str)."""
        hparams_file, _, overrides = parse_arguments(self.command)
        try:
            with Path(hparams_file).open(encoding="utf-8") as file:
                return resolve_references(file, overrides).getvalue()
        except CANNOT_LOAD as error:
            raise InputError(f"{hparams_file}: {one_line(error)}: correct it") from error

    def finished(self):
        """What is noted of it once it is finished (dict): ``settings`` and ``seconds``."""
        path = self.folder / FINISHED_FILE
        noted = read_json(path)
        try:
            check_kinds((dict, [noted]))
            check_kinds((str, [noted["settings"]]), (float | int | None, [noted["seconds"]]))
        except (TypeError, KeyError, ValueError) as error:
            raise InputError(f"{path}: no settings and seconds of a training: {REMEDY}") from error
        return noted


def is_finished(run):
    """Tell whether a run has been finished, and refuse one of other settings (InputError)."""
    settings = run.settings()
    if not all((run.folder / name).is_file() for name in (FINISHED_FILE, RESULTS_FILE)):
        return False
    if run.finished()["settings"] != settings:
        raise InputError(
            f"{run.folder}: was run with other settings than are asked for now: "
            "name another output_folder, or remove this one"
        )
    return True


def run_all(runs, devices=None):
    """Run what is not finished; what was stopped goes on where it stopped.

    Arguments
    ---------
    runs : list of Run
    devices : list of str, optional
        As many runs at once, each on its own; SpeechBrain's names. Those on a CPU share its cores,
        unless OMP_NUM_THREADS says otherwise. One at a time, on the device that the scripts choose,
        where none are named.

    Raises
    ------
    InputError
        Naming the runs that failed, once all others have ended; or as ``is_finished`` does.
    """
    waiting = [run for run in runs if not is_finished(run)]
    for run in runs:
        if run not in waiting:
            print(f"{run.name}: finished before, in {run.folder}")
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
            in_one_go = not run.folder.exists()
            begun = time.monotonic()
            command = [sys.executable, str(run.script), *run.command, *chosen]
            status = subprocess.call(command, env=environment)
            if not status:
                seconds = time.monotonic() - begun if in_one_go else None
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
    raise_problems(failed, "see above why, then start again: what is finished is kept")


def mean_and_deviation(rows):
    """Mean and sample standard deviation of each metric.

    Arguments
    ---------
    rows : list[dict]
        Values that are no numbers are passed over.

    Returns
    -------
    (dict, dict)
        By metric; the deviation of a single value is None.

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
    """A cell of a table (str), as ``25.3 ± 1.2``."""
    return f"{mean:.1f}" + (f" ± {deviation:.1f}" if deviation is not None else "")


def compare(variants, seeds, script, output_folder, devices=None):
    """Train variants of a recipe with each of several seeds, and make their table.

    Arguments
    ---------
    variants : dict[str, list[str]]
        By a name, of a folder too: the YAML, then options.
    seeds : sequence of int
    script : Path
        The recipe's ``train.py``.
    output_folder : Path
        Each run goes to ``<variant>/seed_<seed>`` in it; ``comparison.md`` and ``comparison.json``
        receive the table.
    devices : list of str, optional
        As ``run_all`` takes them.

    Returns
    -------
    str
        The table, Markdown: of each variant and test set the checkpoint that validation chose, mean
        and deviation over seeds; EDER as the YAML decodes segments, then otherwise.
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
    run_all([run for of_variant in runs.values() for run in of_variant], devices)
    figures, rows = [], []
    for name, of_variant in runs.items():
        measured = [_by_test_set(run) for run in of_variant]
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
    """What a run measured on each test set (dict of dicts), how it was decoded in the names."""
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
