#!/usr/bin/env python3
"""Cross-validation on IEMOCAP: five trainings, each with a held-out session, and their mean.

> python cross_validate.py hparams/ent.yaml --data_folder IEMOCAP_full_release

Other options are passed to ``train.py``. If you run it again, it keeps finished folds and resumes
the others.
"""

import argparse
import os
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from iemocap_prepare import SESSIONS

from ent_brain.errors import InputError, exit_on_input_error, raise_problems
from ent_brain.files import whole_or_nothing, write_json
from ent_brain.report import results_table
from ent_brain.runs import Run, mean_and_deviation, mean_with_deviation, run_all

METRICS = ("WER", "CER", "WA", "UA", "EDER")


def read_arguments(arguments):
    """Return the script's own options, and the options for ``train.py`` (list[str])."""
    parser = argparse.ArgumentParser(
        description="Cross-validate a recipe on IEMOCAP.", allow_abbrev=False
    )
    parser.add_argument("yaml", help="YAML in hparams/")
    parser.add_argument(
        "--output_folder",
        help="folder of all folds (default: results/cross_validation/<YAML's name>)",
    )
    parser.add_argument(
        "--sessions",
        default="1,2,3,4,5",
        help="sessions to leave out, one in each fold (default: all)",
    )
    parser.add_argument(
        "--devices", help="one fold at a time on each device, for example cuda:0,cuda:1 or cpu,cpu"
    )
    own, rest = parser.parse_known_args(arguments)
    if any(option.split("=")[0] == "--test_session" for option in rest):
        raise InputError("--test_session: cross-validation sets it: use --sessions")
    chosen = own.sessions.split(",")
    wrong = [f"--sessions: {k!r}" for k in chosen if k not in map(str, SESSIONS)]
    wrong += [f"--sessions: {k} twice" for k in set(chosen) if chosen.count(k) > 1]
    raise_problems(wrong, "name some of 1 to 5, each once, as 1,2,3")
    own.sessions = [int(k) for k in chosen]
    own.output_folder = Path(
        own.output_folder or Path("results") / "cross_validation" / Path(own.yaml).stem
    )
    return own, rest


def arguments_of(own, rest, session):
    """Arguments (list[str]) of the training without a session, tested by both protocols."""
    if not any(option.split("=")[0] == "--paper_protocol" for option in rest):
        rest = [*rest, "--paper_protocol", "True"]
    return [own.yaml, *rest, "--test_session", str(session)]


def fold_folder(own, session):
    """Output folder of a fold (Path)."""
    return own.output_folder / f"session_{session}"


def runs_of(own, rest):
    """The trainings (list[Run]), each with one held-out session."""
    train = Path(__file__).with_name("train.py")
    return [
        Run(f"session {k}", train, arguments_of(own, rest, k), fold_folder(own, k))
        for k in own.sessions
    ]


def summarize(folds):
    """Make the rows of the table: each fold, then the mean and deviation for each protocol.

    Arguments
    ---------
    folds : dict[int, list[dict]]
        Rows of each fold's ``results.json`` by session.

    Returns
    -------
    (list[dict], list[dict])
        The rows; and for each protocol, the ``mean`` and ``deviation`` of the metrics in percent.
        The deviation is the sample standard deviation over folds, None for a single fold.

    Example
    -------
    >>> row = {"test set": "session 1", "protocol": "valid", "WER": 10.0}
    >>> rows, [summary] = summarize({1: [row], 2: [{**row, "WER": 14.0}]})
    >>> summary["mean"], round(summary["deviation"]["WER"], 2)
    ({'WER': 12.0}, 2.83)
    """
    rows = [{"session": str(k), **row} for k, fold in folds.items() for row in fold]
    summaries = []
    for protocol in dict.fromkeys(row["protocol"] for row in rows):
        chosen = [row for row in rows if row["protocol"] == protocol]
        mean, deviation = mean_and_deviation(chosen)
        summaries.append(
            {
                "protocol": protocol,
                "folds": len(chosen),
                "mean": mean,
                "deviation": deviation,
            }
        )
    for summary in summaries:
        for name in ("mean", "deviation"):
            rows.append({"session": name, "protocol": summary["protocol"], **summary[name]})
    return [{k: v for k, v in row.items() if k != "test set"} for row in rows], summaries


def readme_line(name, summary, hardware, seconds):
    """Format the line of one protocol in the README's table of results (str).

    Arguments
    ---------
    name : str
        Name of the YAML.
    summary : dict
        Mean and deviation of each metric from ``summarize``.
    hardware : str
    seconds : list[float]
        Duration of each fold; None if it was interrupted.
    """
    cells = [
        mean_with_deviation(summary["mean"][metric], summary["deviation"][metric])
        if metric in summary["mean"]
        else "-"
        for metric in METRICS
    ]
    time = "-" if None in seconds else f"{sum(seconds) / 60:.0f} min"
    protocol = f"{summary['protocol']}, folds: {summary['folds']}"
    return f"| {' | '.join([version('ent_brain'), name, protocol, *cells, hardware, time])} |"


def hardware_of(devices):
    """Describe the devices (str), or training's default device if there are none."""
    devices = devices or ["cuda" if torch.cuda.is_available() else "cpu"]
    names = [
        f"CPU of {os.cpu_count()} cores" if device == "cpu" else torch.cuda.get_device_name(device)
        for device in devices
    ]
    return ", ".join(dict.fromkeys(names))


@exit_on_input_error
def main():
    own, rest = read_arguments(sys.argv[1:])
    runs = runs_of(own, rest)
    devices = own.devices.split(",") if own.devices else None
    run_all(runs, devices)
    folds = {k: run.results() for k, run in zip(own.sessions, runs, strict=True)}
    rows, summaries = summarize(folds)
    table = results_table(rows)
    seconds = [run.finished()["seconds"] for run in runs]
    about = hardware_of(devices), seconds
    lines = [readme_line(Path(own.yaml).name, summary, *about) for summary in summaries]
    write_json({"folds": rows, "summary": summaries}, own.output_folder / "cross_validation.json")
    with whole_or_nothing(own.output_folder / "cross_validation.md") as partial:
        partial.write_text("\n".join([table, "", *lines]) + "\n", encoding="utf-8")
    print(f"\n{table}\n\nAll in percent. For a README:\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
