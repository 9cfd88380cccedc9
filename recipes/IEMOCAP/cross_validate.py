#!/usr/bin/env python3
"""Cross-validation on IEMOCAP: five trainings, each with a session left out, and their mean.

> python cross_validate.py hparams/ent.yaml --data_folder IEMOCAP_full_release

Options beside its own go to ``train.py``. Started again it leaves finished folds alone and goes on
with the others where they stopped.
"""

import argparse
import queue
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hyperpyyaml import resolve_references
from iemocap_prepare import SESSIONS
from speechbrain import parse_arguments

from ent_brain.errors import InputError, exit_on_input_error, raise_problems
from ent_brain.files import read_json, whole_or_nothing, write_json
from ent_brain.report import results_table

NO_METRIC = {"session", "test set", "protocol"}


def read_arguments(arguments):
    """Return the script's own options, and what goes on to ``train.py`` (list[str])."""
    parser = argparse.ArgumentParser(
        description="Cross-validate a recipe on IEMOCAP.", allow_abbrev=False
    )
    parser.add_argument("yaml", help="one of hparams/")
    parser.add_argument(
        "--output_folder", help="for all folds; results/cross_validation/<YAML's name> if not given"
    )
    parser.add_argument(
        "--sessions", default="1,2,3,4,5", help="sessions to leave out, one after another"
    )
    parser.add_argument(
        "--devices", help="as cuda:0,cuda:1 or cpu,cpu: as many folds at once, each on its own"
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
    """Arguments (list[str]) of the training that leaves a session out, tested by both protocols."""
    if not any(option.split("=")[0] == "--paper_protocol" for option in rest):
        rest = [*rest, "--paper_protocol", "True"]
    of_fold = ["--test_session", str(session), "--output_folder", str(fold_folder(own, session))]
    return [own.yaml, *rest, *of_fold]


def fold_folder(own, session):
    """Where a fold goes (Path)."""
    return own.output_folder / f"session_{session}"


def is_finished(folder, arguments):
    """Tell whether a fold's results are there, and refuse those of other settings."""
    if not (folder / "results.json").is_file():
        return False
    hparams_file, _, overrides = parse_arguments(arguments)
    with Path(hparams_file).open(encoding="utf-8") as file:
        now = resolve_references(file, overrides).getvalue()
    kept = (folder / "hyperparams.yaml").read_text(encoding="utf-8")
    if _without_comments(kept) != _without_comments(now):
        raise InputError(
            f"{folder}: was run with other settings than are asked for now: "
            "name another output_folder, or remove this one"
        )
    return True


def _without_comments(text):
    return [line for line in text.splitlines() if not line.startswith("#")]


def run_folds(own, rest):
    """Run the folds that are not finished, as many at once as devices are named."""
    arguments = {session: arguments_of(own, rest, session) for session in own.sessions}
    waiting = [k for k in own.sessions if not is_finished(fold_folder(own, k), arguments[k])]
    for session in set(own.sessions) - set(waiting):
        print(f"session {session}: finished before, in {fold_folder(own, session)}")
    devices = queue.SimpleQueue()
    names = own.devices.split(",") if own.devices else [None]
    for name in names:
        devices.put(name)

    def run(session):
        device = devices.get()
        try:
            chosen = ["--device", device] if device else []
            print(f"session {session}: training for {fold_folder(own, session)}", flush=True)
            train = str(Path(__file__).with_name("train.py"))
            return subprocess.call([sys.executable, train, *arguments[session], *chosen])
        finally:
            devices.put(device)

    with ThreadPoolExecutor(len(names)) as pool:
        statuses = dict(zip(waiting, pool.map(run, waiting), strict=True))
    failed = [f"session {session}: status {s}" for session, s in statuses.items() if s]
    raise_problems(failed, "see above why, then start again: finished folds are kept")


def summarize(folds):
    """Rows of the table: each fold's, then of each protocol the mean and the deviation.

    Arguments
    ---------
    folds : dict[int, list[dict]]
        Rows of each fold's ``results.json`` by session.

    Returns
    -------
    (list[dict], list[dict])
        The rows; and of each protocol the metrics' ``mean`` and ``deviation`` (sample standard
        deviation over folds, None of one fold), percent.

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
        of_protocol = [row for row in rows if row["protocol"] == protocol]
        metrics = [key for key in of_protocol[0] if key not in NO_METRIC]
        values = {m: [row[m] for row in of_protocol if row[m] is not None] for m in metrics}
        values = {metric: found for metric, found in values.items() if found}
        several = len(of_protocol) > 1
        summaries.append(
            {
                "protocol": protocol,
                "folds": len(of_protocol),
                "mean": {m: statistics.mean(found) for m, found in values.items()},
                "deviation": {
                    m: statistics.stdev(v) if several else None for m, v in values.items()
                },
            }
        )
    for summary in summaries:
        for name in ("mean", "deviation"):
            rows.append({"session": name, "protocol": summary["protocol"], **summary[name]})
    return [{k: v for k, v in row.items() if k != "test set"} for row in rows], summaries


def readme_line(name, summary):
    """A line of a README's table (str): mean and deviation of each metric of one protocol."""
    cells = []
    for metric, mean in summary["mean"].items():
        deviation = summary["deviation"][metric]
        spread = f" ± {deviation:.1f}" if deviation is not None else ""
        cells.append(f"{metric} {mean:.1f}{spread}")
    return f"| {name} | {summary['protocol']} | {summary['folds']} folds | {' | '.join(cells)} |"


@exit_on_input_error
def main():
    own, rest = read_arguments(sys.argv[1:])
    run_folds(own, rest)
    folds = {k: read_json(fold_folder(own, k) / "results.json") for k in own.sessions}
    rows, summaries = summarize(folds)
    table = results_table(rows)
    lines = [readme_line(Path(own.yaml).name, summary) for summary in summaries]
    write_json({"folds": rows, "summary": summaries}, own.output_folder / "cross_validation.json")
    with whole_or_nothing(own.output_folder / "cross_validation.md") as partial:
        partial.write_text("\n".join([table, "", *lines]) + "\n", encoding="utf-8")
    print(f"\n{table}\n\nAll in percent. For a README:\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
