"""A recipe's YAML: read with the options of the command line, and checked before anything runs."""

import difflib
import json
import math
import os
import re
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import ruamel.yaml
import speechbrain as sb
import torch
import yaml
from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml.comments import TaggedScalar
from safetensors import SafetensorError
from speechbrain.core import RunOptions

from ent_brain.emotions import EmotionSet
from ent_brain.errors import InputError, one_line, raise_problems
from ent_brain.limits import limits_of
from ent_brain.losses import LATTICE_MODES, Losses
from ent_brain.manifest import read_text
from ent_brain.segments import SEGMENT_DECODINGS, SegmentDecoder
from ent_brain.tokens import NORMALIZATIONS

TRAINED_BY = {
    "labels": ("emotions", "neutral"),
    "loss settings": tuple(limits_of(Losses)),
    "training settings": (
        *("seed", "lr", "start_lr", "final_lr", "warmup_epochs", "decay_epochs"),
        *("batch_size", "max_batch_nodes", "max_batch_utterances"),
        *("curriculum_epochs", "max_grad_norm"),
        *("grad_accumulation_factor", "corpus_weights", "variants"),
        *("weight_decay", "remove_vector_weight_decay"),
        *("band_warp", "band_masks", "time_masks", "mask_time_prob", "mask_time_length"),
        *("feature_masks", "feature_mask", "time_mask", "speeds"),
        *("mask_feature_prob", "mask_feature_length", "feature_precision"),
    ),
    "protocol": ("paper_protocol",),
}
"""Keys that decide what a training learns or tells of its epochs, beside its data, tokens, features
and model: with others it is another training."""

KEYS_OF_EVERY_RECIPE = {
    *TRAINED_BY["labels"],
    *TRAINED_BY["loss settings"],
    *("max_symbols", "beam_size", "segment_decoding", "segment_seconds"),
    *("seed", "output_folder", "data_folder", "save_folder", "paper_protocol"),
    *("tokens", "vocab_size", "normalization", "max_unknown_share"),
    *("max_tokens_per_frame", "max_batch_nodes"),
    *("number_of_epochs", "warmup_epochs", "opt_class", "lr_schedule", "epoch_counter"),
    *("modules", "checkpointer", "train_logger", "train_dataloader_opts", "test_dataloader_opts"),
}
KEYS_READ_BY_CODE = {
    *KEYS_OF_EVERY_RECIPE,
    *("zed_folder", "test_session", "valid_share", "max_train_seconds"),
    *("test_actors", "valid_actors", "label_map", "zed_label_map"),
    *("train_parts", "valid_parts", "test_parts", "valid_speakers", "librispeech_folder"),
    "neutral_share",
    *("table", "test_share", "corpus_weights"),
    *("mixed", "keep_neutral", "mixed_folder", "mixed_speeds", "close_draws"),
    "variants",
    *("curriculum_epochs", "only_fill_cache", "average_checkpoints", "speeds"),
    *("max_batch_utterances", "language_model"),
}
"""Top-level keys that the recipes' code reads, beside SpeechBrain's run options."""


ABOVE_0 = {
    *("number_of_epochs", "batch_size", "lr", "max_grad_norm", "vocab_size"),
    *("max_tokens_per_frame", "max_train_seconds", "aligned_top"),
    *("max_batch_nodes", "max_batch_utterances"),
    *("frame_duration", "encoder_dim", "predictor_dim", "joint_dim", "max_symbols", "beam_size"),
    *("segment_seconds", "aligned_seconds", "longest_window"),
    *("mask_time_length", "mask_feature_length", "stacked", "time_mask", "feature_mask"),
    *("encoder_layers", "average_checkpoints", "speeds"),
}
UP_TO = {
    **dict.fromkeys(("valid_share", "test_share", "aligned_top", "dropout", "encoder_dropout"), 1),
    **dict.fromkeys(("max_unknown_share", "neutral_share"), 1),
    **dict.fromkeys(("mask_time_prob", "mask_feature_prob"), 1),
    **dict.fromkeys(("segment_seconds", "aligned_seconds"), 3600),
    **dict.fromkeys(("max_symbols", "beam_size"), 1000),
}
"""What the numbers of a recipe are held to, none of which may lie below 0: shares to 1, seconds to
an hour, and what a search follows at once to what it can hold."""

DECIBELS = {"level"}
"""Numbers of a recipe that may lie below 0, or be null."""

SWITCHES = {f"--{name}" for name, value in RunOptions().as_dict().items() if value is False}
"""Run options of SpeechBrain that take no value."""

OR_NULL = {"feature_cache", "neutral"}
"""Texts of a recipe that may be left out."""

OPEN_MAPPINGS = {"label_map": str, "zed_label_map": str, "corpus_weights": float, "variants": int}
"""Mappings whose keys are the corpus's own, and the kind of their values."""

EXAMPLES = {str: "b", float: "1.0", int: "1"}
"""Values of those mappings, by kind, for messages."""

CANNOT_LOAD = (
    *(ValueError, TypeError, KeyError, OverflowError, RuntimeError, ImportError, OSError),
    *(yaml.YAMLError, ruamel.yaml.error.YAMLError),
)
"""What a YAML that is none, or the parts of a recipe where a value does not suit them, raise."""


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
        If ``--optimizer_step_limit`` is no number of steps, or a switch is given a value.

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
                f"{before} takes no value: give it alone to switch it on, or set it to {argument} "
                "in the YAML"
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
            raise InputError(f"--optimizer_step_limit: {limit}: give a whole number above 0")
        run_opts = replace(run_opts, optimizer_step_limit=int(limit))
    return hparams_file, run_opts, overrides


def _is_path(option):
    return option in ("--ssl_hub", "--feature_cache", "--table") or re.fullmatch(
        r"--\w+_folder", option
    )


def _quoted(text):
    """A text as YAML that SpeechBrain's own reading leaves alone; ``null`` stays what it is."""
    if text == "null":
        return text
    return json.dumps(text, ensure_ascii=False).replace("=", r"\x3d")


class Recipe:
    """A recipe's settings, before anything that costs time or memory is built of them.

    ``recipe["lr"]`` is a plain value of the YAML with its references resolved and the command
    line's overrides; what the YAML builds is None. Preparation needs no more, and may find out what
    the YAML leaves open: the labels, or the number of tokens.

    Arguments
    ---------
    hparams_file : Path
    overrides : dict
    """

    def __init__(self, hparams_file, overrides):
        self.hparams_file, self.overrides = hparams_file, overrides
        self._resolve()

    def _resolve(self):
        with self.hparams_file.open(encoding="utf-8") as file, _load_errors(self.hparams_file, {}):
            resolved = resolve_references(file, self.overrides)
            self.values = yaml.load(resolved, _PlainLoader)  # noqa: S506  a SafeLoader

    def __getitem__(self, key):
        return self.values[key]

    def get(self, key, default=None):
        """Return the value of a key, or a default where the YAML has none."""
        return self.values.get(key, default)

    def settle(self, **found):
        """Set keys that the YAML leaves to the data."""
        self.overrides = {**self.overrides, **found}
        self._resolve()

    @property
    def emotions(self):
        """The labels (EmotionSet); None as long as the data are to tell them."""
        names = self["emotions"]
        return None if names is None else EmotionSet(names, self["neutral"])

    @property
    def normalize(self):
        """How transcripts are normalised (callable): ``tokens: characters`` is always Unicode."""
        by = "unicode" if self["tokens"] == "characters" else self["normalization"]
        return NORMALIZATIONS[by]

    def build(self):
        """Build everything that the YAML names.

        Returns
        -------
        dict
            The YAML's keys, its modules constructed.

        Raises
        ------
        InputError
            If something does not load, or the labels lack a neutral one that a setting needs.
        """
        self.check()
        path = self.hparams_file
        with path.open(encoding="utf-8") as file, _load_errors(path, self.values):
            return load_hyperpyyaml(file, self.overrides)

    def check(self):
        """Check what several settings decide together (``InputError``), as far as it is known."""
        with _load_errors(self.hparams_file, {}):
            losses = Losses.from_settings(self.values)
            if self.emotions is not None:
                SegmentDecoder(self.emotions, 1.0, self["segment_decoding"])
                losses.check_labels(self.emotions)
        if self.emotions is not None and self.get("mixed"):
            self.emotions.need_neutral("mixed")
        if self.get("curriculum_epochs") and self["max_batch_nodes"] is not None:
            raise InputError(
                "curriculum_epochs: max_batch_nodes has an order of its own: set the one to 0 or "
                "the other to null"
            )


class _PlainLoader(ruamel.yaml.SafeLoader):
    """Reads plain values as HyperPyYAML does, 1e-3 as a number; what it would build is None."""


_PlainLoader.add_multi_constructor("!", lambda *_: None)


@contextmanager
def _load_errors(hparams_file, values):
    """Turn what a YAML that does not load raises into one line (``InputError``)."""
    try:
        yield
    except SafetensorError as error:  # which does not say of what file
        source = values.get("ssl_hub") or values.get("frontend")
        raise InputError(
            f"{hparams_file}: weights of {source}: damaged ({error}): fetch them again"
        ) from error
    except CANNOT_LOAD as error:
        named = isinstance(error, OSError) and error.filename
        parts = (named, error.strerror) if named else error.args
        reason = " ".join(" ".join(map(str, parts)).split())
        reason = reason.partition(" Exception raised from ")[0]  # PyTorch's own calls follow
        raise InputError(f"{hparams_file}: {reason}") from error


def load_recipe(hparams_file, overrides, device=None):
    """Load a recipe's YAML with the overrides of the command line.

    Arguments
    ---------
    hparams_file : str or Path
    overrides : str
        As ``parse_arguments`` returns them.
    device : str, optional
        What the run is to use, by PyTorch's name.

    Returns
    -------
    Recipe

    Raises
    ------
    InputError
        If the file is missing or does not load, a key that every recipe has is not there, a key (in
        the file, under one of its includes, or on the command line) is one that nothing reads, a
        value is of another kind than the file's own or out of range, no loss has a positive weight,
        two settings do not go together, the output folder cannot be written, or the device is not
        there.
    """
    hparams_file = Path(hparams_file)
    if not hparams_file.is_file():
        raise InputError(f"{hparams_file}: no such YAML: name one of the recipe's hparams folder")
    text = read_text(hparams_file, "save it as UTF-8")
    raise_problems(_unknown_keys(text, hparams_file), "correct the key or remove it")
    own = _read(text, hparams_file)
    missing = sorted(KEYS_OF_EVERY_RECIPE - own.keys())
    raise_problems(
        [f"{hparams_file}: no key {key!r}" for key in missing], "take it from the recipe's own YAML"
    )
    if overrides:
        _key_value_pairs(overrides, "command line")
    given = _read(overrides, "command line") or {}
    raise_problems(_unknown_options(own, given), "correct the option or remove it")
    if wrong := wrong_values(own, given):
        raise InputError("; ".join(wrong))
    recipe = Recipe(hparams_file, dict(given))
    recipe.check()
    check_device(device)
    folder = Path(recipe["output_folder"])
    with suppress(OSError):  # what is in its way shows in the next line
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: cannot be written: name another one")
    return recipe


def _read(text, origin):
    """Keys and values of a YAML as hyperpyyaml reads them: 1e-3 is a number in YAML 1.2 alone."""
    try:
        return ruamel.yaml.YAML().load(text)
    except CANNOT_LOAD as error:
        raise _not_yaml(origin, error) from error


def _not_yaml(origin, error):
    reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    return InputError(f"{origin}: not YAML ({' '.join(reason.split())})")


def _unknown_options(own, given):
    """Options of the command line that the YAML does not have, one problem each."""
    known = [*own, *RunOptions()]
    problems = []
    for key in given:
        if key not in own:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f" (--{near[0]} is near)" if near else ""
            problems.append(f"--{key}: no such option{hint}")
    return problems


def wrong_values(own, given):
    """Values that are of another kind than the YAML's own, or out of range, one problem each.

    Arguments
    ---------
    own, given : dict
        Of the YAML, and those that take the place of some of them.

    Returns
    -------
    list[str]
    """
    choices = {
        "lattice_mode": LATTICE_MODES,
        "segment_decoding": tuple(SEGMENT_DECODINGS),
        "normalization": tuple(NORMALIZATIONS),
        "test_session": (1, 2, 3, 4, 5, None),  # None trains on all
    }
    problems = []
    for key, value in {**own, **given}.items():
        if key not in choices:
            problems += _wrong_parts(key, key, own[key], value, own)
        elif repr(value) not in map(repr, choices[key]):
            remedy = "choose " + ", ".join(map(_as_yaml, choices[key]))
            problems.append(f"{key}: {_as_yaml(value)}: {remedy}")
    return problems


def _wrong_parts(name, key, model, value, own):
    """What of a value is of another kind than the YAML's own (``model``), one problem each."""
    if isinstance(model, TaggedScalar):
        if value is model:
            return
        referred = re.fullmatch(r"<([^<>]+)>", model.value)
        if referred and referred[1] in own:
            yield from _wrong_parts(name, referred[1], own[referred[1]], value, own)
            return
        if not referred:  # a path, of other keys, or what is to be named
            model = "" if key.endswith("_folder") else None
    remedy = None
    if key in OPEN_MAPPINGS:
        kind = OPEN_MAPPINGS[key]
        right = {str: str | None, float: float | int, int: int}[kind]
        if not isinstance(value, dict) or not all(isinstance(v, right) for v in value.values()):
            remedy = f"give keys and values, as {{a: {EXAMPLES[kind]}}}"
    elif isinstance(model, dict):
        if isinstance(value, dict):
            for part in value:
                if part not in model:
                    yield f"{name}: has no key {part!r}: correct the key or remove it"
                else:
                    inner = f"{name}[{part}]"
                    yield from _wrong_parts(inner, part, model[part], value[part], own)
        else:
            remedy = f"give keys and values, as {{{next(iter(model), '')}: ...}}"
    elif isinstance(model, list):
        if isinstance(value, list):
            for index, part in enumerate(value if model else ()):
                yield from _wrong_parts(f"{name}[{index}]", key, model[0], part, own)
        else:
            remedy = "give a list, as [1, 2]"
    elif isinstance(model, TaggedScalar):
        remedy = "the YAML makes it: change it there"
    elif isinstance(model, bool):
        remedy = None if isinstance(value, bool) else "give True or False"
    elif isinstance(model, int | float) or (model is None and key in ABOVE_0):
        if not _is_right_number(key, model, value):
            remedy = "give a whole number" if isinstance(model, int) else "give a number"
            if key not in DECIBELS:
                remedy += " above 0" if key in ABOVE_0 else " from 0"
            remedy += f" to {UP_TO[key]}" if key in UP_TO else ""
    elif isinstance(model, str):
        right = isinstance(value, str) or (value is None and key in OR_NULL)
        remedy = None if right else "give text"
    if remedy:
        yield f"{name}: {_as_yaml(value)}: {remedy}"


def _is_right_number(key, own, value):
    if value is None:
        return own is None or key in DECIBELS
    kind = int if isinstance(own, int) else int | float
    if not isinstance(value, kind) or isinstance(value, bool):
        return False
    highest = UP_TO.get(key, math.inf)
    finite = math.isfinite(value) or key == "max_grad_norm"  # where inf is no limit
    in_range = 0 < value <= highest or (value == 0 and key not in ABOVE_0)
    return finite and (in_range or key in DECIBELS)


def _as_yaml(value):
    return "null" if value is None else str(value)


def check_device(device):
    """Refuse a device that is not there, or on which nothing can be computed (``InputError``).

    Arguments
    ---------
    device : str, torch.device or None
        PyTorch's name; None is the one that PyTorch takes by itself.
    """
    try:
        torch.empty(1, device=device).cpu()  # which one without memory, as meta, cannot do
    except (RuntimeError, AssertionError) as error:
        # PyTorch may go on with a list of its internals.
        reason = one_line(error, most=300).partition(". ")[0].rstrip(".")
        raise InputError(
            f"device: {str(device)!r}: {reason}: name one that is there, cpu is"
        ) from error


def _unknown_keys(text, hparams_file):
    """Keys of a YAML that nothing reads, one problem each."""
    pairs = _key_value_pairs(text, hparams_file)
    referred = set(re.findall(r"<([A-Za-z_]\w*)", text))
    known = KEYS_READ_BY_CODE | referred | set(RunOptions().as_dict())
    problems = []
    for key, value in pairs:
        if key.value not in known and not key.value.startswith("__"):
            problems.append(f"{hparams_file}: nothing reads the key {key.value!r}")
        if value.tag.startswith("!include:"):
            fragment = hparams_file.parent / value.tag.removeprefix("!include:")
            if not fragment.is_file():
                problems.append(f"{hparams_file}: includes {fragment}, which is not there")
                continue
            fragment_text = read_text(fragment, "save it as UTF-8")
            defined = {k.value for k, _ in _key_value_pairs(fragment_text, fragment)}
            given = {k.value for k, _ in value.value} if value.value else set()
            problems += [f"{fragment}: has no key {name!r}" for name in sorted(given - defined)]
    return problems


def _key_value_pairs(text, origin):
    """Nodes of keys and values of a YAML mapping; a key given twice, at any depth, is refused."""
    try:
        node = yaml.compose(text)
        mappings = list(_mappings(node))
    except (yaml.YAMLError, RecursionError) as error:
        raise _not_yaml(origin, error) from error
    keys = [[key for key, _ in mapping.value] for mapping in mappings]
    are_names = all(isinstance(key, yaml.ScalarNode) for of_one in keys for key in of_one)
    if not isinstance(node, yaml.MappingNode) or not are_names:
        raise InputError(f"{origin}: not a YAML of keys and values")
    repeated = [
        f"{origin}: {key} is given {count} times"
        for of_one in keys
        for key, count in Counter(key.value for key in of_one).items()
        if count > 1
    ]
    raise_problems(repeated, "keep one of them")
    return node.value


def _mappings(node):
    """The mappings (yaml.MappingNode) in a YAML's node, itself among them, from the outside in."""
    if isinstance(node, yaml.MappingNode):
        yield node
        for pair in node.value:
            for part in pair:
                yield from _mappings(part)
    elif isinstance(node, yaml.SequenceNode):
        for part in node.value:
            yield from _mappings(part)
