#!/usr/bin/env python3
"""Errors, memory and left files of the app, which several sessions use at the same time.

The app runs in its own process. Each session uploads recordings again and again, one at a time, and
downloads the results. The results must be those of the session's own recording.

> python benchmarks/app_soak.py recordings/ --ssl whisper-base

Linux only: the memory is that of /proc.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from unittest.mock import patch
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
from gradio_client import Client, handle_file
from soak import ROOT, look_at, row_of

from ent_brain.annotation import Annotation
from ent_brain.app import MIXED, OWN_WORDS
from ent_brain.errors import InputError, exit_on_input_error
from ent_brain.evaluation import hardware
from ent_brain.export import OPEN_ENGLISH
from ent_brain.files import write_json
from ent_brain.formats import FORMATS
from ent_brain.recordings import find_recordings

INTERVAL = 0.2
"""Seconds between two measurements of the app."""

PATIENCE = 30
"""Time in seconds after which the files of closed sessions should be gone."""


@exit_on_input_error
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recordings", metavar="FOLDER", help="folder of recordings to upload")
    parser.add_argument("--model", default=OPEN_ENGLISH, metavar="FOLDER", help="model of the app")
    parser.add_argument("--ssl", metavar="FOLDER", help="folder of openai/whisper-base")
    parser.add_argument("--sessions", type=int, default=8, help="sessions at once (default: 8)")
    parser.add_argument("--minutes", type=float, default=10.0, help="duration (default: 10)")
    parser.add_argument("--output", metavar="JSON", type=Path, help="file for the results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        paths = [each.path for each in find_recordings([options.recordings], None, scratch)]
        # Gradio's client leaves an empty folder for each download.
        with patch.object(tempfile, "tempdir", str(scratch)):
            found = soak(paths, options, scratch)
    print(table(found))
    if options.output:
        write_json(found, options.output)


def soak(paths, options, scratch):
    """Run the app and its sessions; return the figures (dict)."""
    uploads, downloads = scratch / "uploads", scratch / "downloads"
    uploads.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "ent_brain", "app", "--port", port, "--model", options.model]
    command += ["--ssl", options.ssl] * (options.ssl is not None)
    environment = {"PYTHONPATH": str(ROOT), "TMPDIR": str(uploads)}
    app = subprocess.Popen(
        list(map(str, command)), env=os.environ | environment, stdout=subprocess.DEVNULL
    )
    try:
        wait_for(app, address)
        began, looks = time.perf_counter(), []
        until = began + 60 * options.minutes
        with ThreadPoolExecutor(options.sessions) as pool:
            futures = [
                pool.submit(
                    use, address, paths[number:] + paths[:number], downloads / str(number), until
                )
                for number in range(options.sessions)
            ]
            while not all(future.done() for future in futures):
                if look := look_at(app.pid, time.perf_counter() - began):
                    looks.append(look)
                time.sleep(INTERVAL)
            requests = [request for future in futures for request in future.result()]
        ended = time.perf_counter()
        while count_files(uploads) and time.perf_counter() < ended + PATIENCE:
            time.sleep(INTERVAL)
        left = count_files(uploads)
    finally:
        app.send_signal(signal.SIGTERM)
        app.wait()
    seconds = [took for took, problem in requests if problem is None]
    return {
        "made with": f"{options.sessions} sessions, {hardware('cpu')}",
        "requests": len(requests),
        "errors": dict(Counter(problem for _, problem in requests if problem is not None)),
        "seconds of a request": np.quantile(seconds, [0.5, 0.9, 1.0]).tolist() if seconds else [],
        "memory": row_of("sessions", looks),
        "files after the sessions": left,
        "files after the app": count_files(uploads),
    }


def wait_for(app, address):
    """Wait until the app answers; ``InputError`` if it ends instead."""
    while app.poll() is None:
        try:
            return urlopen(address).close()
        except URLError:
            time.sleep(INTERVAL)
    raise InputError("app: ended before it answered. Its own message is above.")


def use(address, paths, folder, until):
    """Annotate recordings in one session; return the seconds and the problem of each (list)."""
    client = Client(address, download_files=folder, verbose=False, analytics_enabled=False)
    requests = []
    try:
        for path in cycle(paths):
            began = time.perf_counter()
            if began > until:
                return requests
            try:
                _, files = client.predict(
                    handle_file(path), None, OWN_WORDS, "", MIXED, api_name="/annotate"
                )
                problem = check([Path(file) for file in files["value"]], path)
            except Exception as error:  # the benchmark counts every kind of them
                problem = f"{type(error).__name__}: {error}"
            requests.append((time.perf_counter() - began, problem))
    finally:
        client.close()


def check(files, path):
    """What is wrong with the downloaded files of a recording (str), None if nothing is."""
    try:
        if len(files) != len(FORMATS) + 1:
            return "missing files"
        [text] = [file.read_text(encoding="utf-8") for file in files if file.suffix == ".json"]
        return None if Annotation.from_json(text).name == path.stem else "another's result"
    finally:
        for file in files:
            file.unlink()


def count_files(folder):
    return sum(path.is_file() for path in folder.rglob("*"))


def table(found):
    """Make the Markdown table of the figures."""
    memory, seconds = found["memory"], found["seconds of a request"]
    rows = {
        "requests": found["requests"],
        "errors": sum(found["errors"].values()),
        "seconds of a request: median, 90th percentile, maximum": ", ".join(
            f"{each:.1f}" for each in seconds
        ),
        "resident MB after the warm-up, in the second quarter": f"{memory['early']:.0f}",
        "resident MB in the last quarter": f"{memory['late']:.0f}",
        "growth": f"{100 * memory['growth']:.1f} %",
        "open files after the warm-up, at the end": "{}, {}".format(*memory["files"]),
        "temporary files after the sessions": found["files after the sessions"],
        "temporary files after the app": found["files after the app"],
    }
    lines = [f"| {found['made with']} | |", "| :-- | --: |"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    lines += [f"\n{count} x {problem}" for problem, count in found["errors"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
