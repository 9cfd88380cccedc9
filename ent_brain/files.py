"""Files that are there whole or not at all, and what was written to them as it is read."""

import errno
import json
import math
import re
import secrets
import time
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ent_brain.errors import InputError

UNWRITTEN = re.compile("inline_container|I/O error|System error")
"""What PyTorch, safetensors and libsndfile say where a file cannot be written to its end."""

SECONDS_OF_WRITING = 3600
"""What nobody has written to for so long is not being written."""


@contextmanager
def whole_or_nothing(path):
    """Give a path to write to, which takes the place of ``path`` once all is written.

    Arguments
    ---------
    path : str or Path

    Yields
    ------
    Path
        Beside ``path``, of a name that no other process has; removed again where the block fails.
    """
    path = Path(path)
    start = path.name[:50]  # where the whole is as long as a name may be, it has no room
    partial = path.with_name(f".{start}.{secrets.token_hex(4)}.partial")
    try:
        with written():
            yield partial
        partial.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def sweep(folder, shared=()):
    """Remove what writers that were killed have left in a folder, and in those in it.

    Arguments
    ---------
    folder : str or Path
        That need not be there.
    shared : sequence of str or Path
        Folders that others may write to now: what is in them is left until it is old.
    """
    shared = [Path(each).resolve() for each in shared]
    for partial in Path(folder).resolve().rglob(".*.partial"):
        patience = SECONDS_OF_WRITING if any(map(partial.is_relative_to, shared)) else 0
        try:
            if time.time() - partial.stat().st_mtime > patience:
                partial.unlink()
        except FileNotFoundError:  # its writer has just renamed it, or another has swept
            continue


@contextmanager
def written():
    """Let a library's own failure to write a file be the ``OSError`` that it is.

    PyTorch, safetensors and libsndfile raise errors of other kinds.
    """
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if not UNWRITTEN.search(str(error)):
            raise
        raise OSError(errno.ENOSPC, "a file could not be written to its end") from error


def write_json(value, path):
    """Write a value as JSON, whole or not at all."""
    with whole_or_nothing(path) as partial:
        partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


REMEDY = "remove it and give the command again that wrote it"


def read_json(path, remedy=REMEDY):
    """Read a JSON file that this package wrote; ``InputError`` ending in ``remedy`` if damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({type(error).__name__}): {remedy}") from error


def check_kinds(*kinds):
    """Refuse what was read from a file and is not what was written.

    Arguments
    ---------
    *kinds : (type, iterable)
        What the values must be; True and False are no numbers.

    Raises
    ------
    TypeError
        If one is of another kind.
    ValueError
        If a number is not finite, or a text holds half a character.
    """
    for kind, values in kinds:
        for value in values:
            if not isinstance(value, kind) or isinstance(value, bool):
                raise TypeError(f"{value!r} is no {kind}")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{value} is not finite")
            if isinstance(value, str):
                value.encode()


def read_rows(path, keys, remedy=REMEDY):
    """Read rows of a table (list[dict], not empty) that this package wrote, as ``read_json`` does.

    Each has the ``keys``, at least.
    """
    rows = read_json(path, remedy)
    are_rows = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    if not (are_rows and rows and all(row.keys() >= set(keys) for row in rows)):
        raise InputError(f"{path}: no rows of {', '.join(keys)}: {remedy}")
    return rows
