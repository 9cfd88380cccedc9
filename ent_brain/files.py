"""Atomic writing of files, and checked reading of texts and of JSON that this package wrote."""

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
"""Parts of the messages of PyTorch, safetensors and libsndfile after an incomplete write."""

ABANDONED_SECONDS = 3600
"""Age in seconds from which partial files are considered abandoned."""


@contextmanager
def whole_or_nothing(path):
    """Provide a temporary path that replaces ``path`` when the block succeeds.

    Arguments
    ---------
    path : str or Path

    Yields
    ------
    Path
        Unique path in the same folder. If the block fails, the file is removed.
    """
    path = Path(path)
    start = path.name[:50]  # the temporary name must not exceed the limit of a name's length
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
    """Remove the partial files of killed processes from a folder and its subfolders.

    Arguments
    ---------
    folder : str or Path
        It need not exist.
    shared : sequence of str or Path
        Folders to which other processes may be writing. Partial files in them are removed only
        when they are abandoned.
    """
    shared = [Path(each).resolve() for each in shared]
    for partial in Path(folder).resolve().rglob(".*.partial"):
        patience = ABANDONED_SECONDS if any(map(partial.is_relative_to, shared)) else 0
        try:
            if time.time() - partial.stat().st_mtime > patience:
                partial.unlink()
        except FileNotFoundError:  # another process has just renamed or removed it
            continue


@contextmanager
def written():
    """Turn a library's failure to write a file into an ``OSError``.

    PyTorch, safetensors and libsndfile raise errors of other types.
    """
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if not UNWRITTEN.search(str(error)):
            raise
        raise OSError(errno.ENOSPC, "a file could not be written to its end") from error


def write_json(value, path):
    """Write a value as JSON atomically."""
    with whole_or_nothing(path) as partial:
        partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_text(path, remedy):
    """Read a UTF-8 text file (str); an ``InputError`` ends with ``remedy``."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}: {remedy}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8 text: {remedy}") from error


REMEDY = "remove it and run the command that wrote it again"


def read_json(path, remedy=REMEDY):
    """Read a JSON file that this package wrote; ``InputError`` ending in ``remedy`` if damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({type(error).__name__}): {remedy}") from error


def check_kinds(*kinds):
    """Check the types of values that were read from a file.

    Arguments
    ---------
    *kinds : (type, iterable)
        Expected type and the values. True and False do not count as numbers.

    Raises
    ------
    TypeError
        If a value has another type.
    ValueError
        If a number is not finite, or a text contains a lone surrogate.
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
    """Read the rows (list[dict], not empty) of a table that this package wrote as JSON.

    Each row must have the ``keys``. Otherwise, an ``InputError`` ends with ``remedy``.
    """
    rows = read_json(path, remedy)
    are_rows = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    if not (are_rows and rows and all(row.keys() >= set(keys) for row in rows)):
        raise InputError(f"{path}: no rows of {', '.join(keys)}: {remedy}")
    return rows
