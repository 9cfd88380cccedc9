"""The command line of a recipe."""

import json
from dataclasses import replace

import speechbrain as sb
from speechbrain.core import RunOptions

from ent_brain.errors import InputError
from ent_brain.settings import SETTINGS, Setting

SWITCHES = {f"--{name}" for name, value in RunOptions().as_dict().items() if value is False}
"""Run options of SpeechBrain that take no value."""


def parse_arguments(arguments):
    r"""Read a recipe's command line as ``speechbrain.parse_arguments`` does, but paths as they are.

    SpeechBrain makes YAML of it, in which `` #`` begins a comment, ``: `` a value, and 2024 is a
    number; and it takes ``=`` for a space.

    Arguments
    ---------
    arguments : list[str]

    Returns
    -------
    (str, RunOptions, str)
        The YAML's path, SpeechBrain's run options, and the other options as YAML.

    Raises
    ------
    InputError
        If ``--optimizer_step_limit`` is not a whole number above 0, or a switch has a value.

    Example
    -------
    >>> parse_arguments(["ent.yaml", "--data_folder", "/corpora #2", "--lr=0.1"])[2]
    'data_folder: "/corpora #2"\nlr: 0.1'
    """
    quoted, before = [], ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if before in SWITCHES and argument.lower() in ("true", "false"):
            raise InputError(
                f"{before}: takes no value. Give it alone to switch it on, or set it to {argument} "
                "in the YAML."
            )
        if _is_path(before):
            argument = _quoted(argument)
        elif equals and _is_path(name):
            argument = f"{name}={_quoted(value)}"
        quoted.append(argument)
        before = argument
    hparams_file, run_opts, overrides = sb.parse_arguments(quoted)
    limit = run_opts.optimizer_step_limit  # SpeechBrain reads a text
    if limit is not None:
        if not (limit.isdecimal() and int(limit)):
            raise InputError(f"--optimizer_step_limit: {limit}. Give a whole number above 0.")
        run_opts = replace(run_opts, optimizer_step_limit=int(limit))
    return hparams_file, run_opts, overrides


def _is_path(option):
    key = option.removeprefix("--")
    return key != option and (key.endswith("_folder") or SETTINGS.get(key, Setting()).is_path)


def _quoted(text):
    """A text as YAML that SpeechBrain's own reading leaves alone; ``null`` stays what it is."""
    if text == "null":
        return text
    return json.dumps(text, ensure_ascii=False).replace("=", r"\x3d")
