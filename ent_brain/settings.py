"""A recipe's YAML and its settings, which are checked before anything runs."""

import difflib
import os
import re
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import ruamel.yaml
import torch
import yaml
from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml.comments import TaggedScalar
from safetensors import SafetensorError
from speechbrain.core import RunOptions

from ent_brain.emotions import EmotionSet
from ent_brain.errors import InputError, one_line, raise_problems
from ent_brain.files import read_text
from ent_brain.limits import FINITE, Choices, Range, as_yaml, limits_of
from ent_brain.losses import Losses
from ent_brain.segments import SEGMENT_DECODINGS, SegmentDecoder
from ent_brain.tokens import NORMALIZATIONS

EVERY, SOME, YAML = "every recipe", "some recipes", "the YAML"
LABELS, LOSSES, TRAINING, PROTOCOL = "labels", "loss settings", "training settings", "protocol"
ABOVE_0, SHARE = Range(excluded=True), Range(highest=1)
TO_1000 = Range(highest=1000, excluded=True)


class Setting(NamedTuple):
    """A key of a recipe's YAML."""

    reader: str = YAML
    """Whose code reads it. ``YAML``: only the YAML's own references, or SpeechBrain."""
    limits: Range | Choices | None = None
    """Values that it may have. None: any, but numbers are at least 0."""
    part: str | None = None
    """Part of ``trained_on.json`` that records it, if another value is another training."""
    or_null: bool = False
    or_list: bool = False
    """Whether a list may stand where the YAML has another kind. Its reader checks it."""
    is_path: bool = False
    sample: str | float | None = None
    """Sample value of a mapping with keys of any name. Limits and null are for its values."""


_TABLE = {
    "emotions": Setting(EVERY, part=LABELS),
    "neutral": Setting(EVERY, part=LABELS, or_null=True),
    # Data
    "data_folder output_folder save_folder tokens": Setting(EVERY),
    "vocab_size max_tokens_per_frame": Setting(EVERY, ABOVE_0),
    "max_unknown_share": Setting(EVERY, SHARE),
    "normalization": Setting(EVERY, Choices(tuple(NORMALIZATIONS))),
    "zed_folder librispeech_folder mixed_folder test_actors valid_actors train_parts valid_parts "
    "test_parts mixed keep_neutral mixed_speeds close_draws": Setting(SOME),
    "valid_speakers": Setting(SOME, or_list=True),
    "table": Setting(SOME, is_path=True),
    "test_session": Setting(SOME, Choices((1, 2, 3, 4, 5, None))),  # None trains on all
    "valid_share test_share neutral_share": Setting(SOME, SHARE),
    "max_train_seconds": Setting(SOME, ABOVE_0),
    "label_map zed_label_map": Setting(SOME, or_null=True, sample="b"),
    # Training
    "seed warmup_epochs": Setting(EVERY, part=TRAINING),
    "max_batch_nodes": Setting(EVERY, ABOVE_0, TRAINING),
    "curriculum_epochs": Setting(SOME, part=TRAINING),
    "max_batch_utterances speeds": Setting(SOME, ABOVE_0, TRAINING),
    "corpus_weights": Setting(SOME, TO_1000, TRAINING, sample=1.0),
    "variants": Setting(SOME, Range(highest=100), TRAINING, sample=1),
    "lr batch_size": Setting(YAML, ABOVE_0, TRAINING),
    "max_grad_norm": Setting(YAML, Range(highest=float("inf"), excluded=True), TRAINING),
    "start_lr final_lr decay_epochs weight_decay remove_vector_weight_decay "
    "grad_accumulation_factor": Setting(YAML, part=TRAINING),
    "paper_protocol": Setting(EVERY, part=PROTOCOL),
    "number_of_epochs": Setting(EVERY, ABOVE_0),
    "average_checkpoints": Setting(SOME, ABOVE_0),
    "opt_class lr_schedule epoch_counter modules checkpointer train_logger train_dataloader_opts "
    "test_dataloader_opts": Setting(EVERY),
    # Features, augmentation and model
    "ssl_hub": Setting(is_path=True),
    "feature_cache": Setting(is_path=True, or_null=True),
    "only_fill_cache": Setting(SOME),
    "level": Setting(YAML, Range(lowest=-FINITE), or_null=True),
    "frame_duration stacked": Setting(YAML, ABOVE_0),
    "feature_precision band_warp band_masks time_masks feature_masks": Setting(part=TRAINING),
    "time_mask feature_mask mask_time_length mask_feature_length": Setting(YAML, ABOVE_0, TRAINING),
    "mask_time_prob mask_feature_prob": Setting(YAML, SHARE, TRAINING),
    "encoder_dim encoder_layers predictor_dim joint_dim": Setting(YAML, ABOVE_0),
    "dropout encoder_dropout": Setting(YAML, SHARE),
    # Decoding
    "max_symbols beam_size": Setting(EVERY, TO_1000),
    "segment_decoding": Setting(EVERY, Choices(tuple(SEGMENT_DECODINGS))),
    "segment_seconds": Setting(EVERY, Range(highest=3600, excluded=True)),
    "language_model": Setting(SOME),
    "longest_window": Setting(YAML, ABOVE_0),
}
"""The settings by their names, without those of ``Losses``."""

SETTINGS = {
    **{name: setting for names, setting in _TABLE.items() for name in names.split()},
    **{name: Setting(EVERY, limits, LOSSES) for name, limits in limits_of(Losses).items()},
}

KEYS_READ_BY_CODE = {name for name, setting in SETTINGS.items() if setting.reader != YAML}
"""Top-level keys that the recipes' code reads, beside SpeechBrain's run options."""

TRAINED_BY = {
    part: [name for name, setting in SETTINGS.items() if setting.part == part]
    for part in (LABELS, LOSSES, TRAINING, PROTOCOL)
}
"""Keys that decide what a training learns, beside its data, tokens, features and model."""

CANNOT_LOAD = (
    *(ValueError, TypeError, KeyError, OverflowError, RuntimeError, ImportError, OSError),
    *(yaml.YAMLError, ruamel.yaml.error.YAMLError),
)
"""What a YAML that is none, or the parts of a recipe where a value does not suit them, raise."""


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
        """Build everything that the YAML names (dict by its keys).

        Raises ``InputError`` if something does not load, or a setting needs a neutral label.
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
                "curriculum_epochs: max_batch_nodes chooses another order of the utterances. Set "
                "curriculum_epochs to 0, or max_batch_nodes to null."
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
            f"{hparams_file}: weights of {source}: damaged ({error}). Download them again."
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
        If the file does not load, a key is missing or unknown, a value has a wrong type or is out
        of range, settings contradict each other, the output folder cannot be written, or the device
        does not exist.
    """
    hparams_file = Path(hparams_file)
    if not hparams_file.is_file():
        raise InputError(f"{hparams_file}: no such file. Name a YAML of the recipe's hparams/.")
    text = read_text(hparams_file, "save it as UTF-8")
    raise_problems(_unknown_keys(text, hparams_file), "correct the key or remove it")
    own = _read(text, hparams_file)
    missing = sorted(key for key, s in SETTINGS.items() if s.reader == EVERY and key not in own)
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
        raise InputError(f"{folder}: cannot be written. Name another output_folder.")
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
            hint = f" (did you mean --{near[0]}?)" if near else ""
            problems.append(f"--{key}: no such option{hint}")
    return problems


def wrong_values(own, given):
    """Values of another kind than the YAML's ``own``, or out of range, one problem each.

    The values ``given`` replace some of its own (dict). Returns list[str].
    """
    return [
        problem
        for key, value in {**own, **given}.items()
        for problem in _wrong_parts(key, key, own[key], value, own)
    ]


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
    setting, remedy = SETTINGS.get(key, Setting()), None
    if value is None and (model is None or (setting.or_null and not isinstance(model, dict))):
        return
    if setting.or_list and isinstance(value, list):
        return
    if isinstance(setting.limits, Choices):
        remedy = setting.limits.remedy(value)
    elif isinstance(model, dict) and isinstance(value, dict):
        for part in value:
            inner = f"{name}[{part}]"
            if setting.sample is not None:
                yield from _wrong_parts(inner, key, setting.sample, value[part], own)
            elif part in model:
                yield from _wrong_parts(inner, part, model[part], value[part], own)
            else:
                yield f"{name}: has no key {part!r}: correct the key or remove it"
    elif isinstance(model, dict):
        remedy = f"give keys and values, as {{{next(iter(model), 'a')}: ...}}"
    elif isinstance(model, list) and isinstance(value, list):
        for index, part in enumerate(value if model else ()):
            yield from _wrong_parts(f"{name}[{index}]", key, model[0], part, own)
    elif isinstance(model, list):
        remedy = "give a list, as [1, 2]"
    elif isinstance(model, TaggedScalar):
        remedy = "the YAML builds this object, so change it there"
    elif isinstance(model, bool):
        remedy = None if isinstance(value, bool) else "give True or False"
    elif isinstance(model, int | float) or (model is None and setting.limits):
        remedy = (setting.limits or Range()).remedy(value, whole=isinstance(model, int))
    elif isinstance(model, str):
        remedy = None if isinstance(value, str) else "give text"
    if remedy:
        yield f"{name}: {as_yaml(value)}: {remedy}"


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
            f"device: {str(device)!r}: {reason}. Name an available one, for example cpu."
        ) from error


def _unknown_keys(text, hparams_file):
    """Keys of a YAML that nothing reads, one problem each."""
    pairs = _key_value_pairs(text, hparams_file)
    referred = set(re.findall(r"<([A-Za-z_]\w*)", text))
    known = KEYS_READ_BY_CODE | referred | set(RunOptions().as_dict())
    problems = []
    for key, value in pairs:
        if key.value not in known and not key.value.startswith("__"):
            problems.append(f"{hparams_file}: nothing uses the key {key.value!r}")
        if value.tag.startswith("!include:"):
            fragment = hparams_file.parent / value.tag.removeprefix("!include:")
            if not fragment.is_file():
                problems.append(f"{hparams_file}: includes {fragment}, which does not exist")
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
    for part in node.value if isinstance(node, yaml.CollectionNode) else ():
        for inner in part if isinstance(part, tuple) else (part,):  # a key and its value
            yield from _mappings(inner)
