"""Export of trained models as folders, and checks of such folders before they are loaded.

A folder contains only data: weights that are loaded without unpickling, and a YAML that may
construct only ``CONSTRUCTORS``. It is complete, so it loads offline and can be pushed to a hub. A
packed model lacks the weights of its SSL model and stores their digest.
"""

import hashlib
import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

import torch
import yaml
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import logging
from safetensors import SafetensorError, safe_open
from speechbrain.utils.distributed import main_process_only

from ent_brain.cache import weights_digest
from ent_brain.errors import InputError, one_line, raise_problems
from ent_brain.files import whole_or_nothing
from ent_brain.frontend import HUB_NAME, SSL_MODELS, SSLFrontend
from ent_brain.tokens import CharacterTokens, SentencePieceTokens

HPARAMS_FILE = "hyperparams.yaml"
SSL_FOLDER = "ssl"
"""Folder of an SSL front end's configuration and weights, in the format of transformers."""

SSL_CONFIG, SSL_WEIGHTS = "config.json", "model.safetensors"
SSL_FILES = (SSL_CONFIG, SSL_WEIGHTS, "preprocessor_config.json")
"""The only files allowed in that folder. transformers might unpickle other files, or ask the hub
about them."""

OPEN_ENGLISH = Path(__file__).parent / "models" / "open_english"
"""Folder of the packed model in this package. Its README.md is the model card."""

ENCODER_VARIABLE = "ENT_BRAIN_SSL"
"""Environment variable with the folder of a packed model's SSL model."""

DECODER_FILES = ("generation_config.json", "tokenizer.json", "tokenizer_config.json")
"""Files that Whisper's decoder needs in addition to ``SSL_FILES``."""

CONSTRUCTORS = {
    *("ent_brain.frontend.FbankFrontend", "ent_brain.frontend.SSLFrontend"),
    *("ent_brain.model.ENT", "ent_brain.model.FENT"),
    *("ent_brain.tokens.CharTokens", "ent_brain.tokens.CharacterTokens"),
    *("ent_brain.tokens.SentencePieceTokens", "ent_brain.language_model.WordFusion"),
    "sentencepiece.SentencePieceProcessor",
    "speechbrain.utils.parameter_transfer.Pretrainer",
}
"""Classes that the YAML of a folder may construct: those of this package that ``export`` writes. A
model with another class needs ``trust``. Allowing a whole package would not be safe: SpeechBrain
has functions that run commands or unpickle files."""

SSL_TAG = "!new:ent_brain.frontend.SSLFrontend"
CHARACTERS_TAG = "!new:ent_brain.tokens.CharacterTokens"

ARGUMENTS = {
    SSL_TAG: {
        "model": None,
        "source": "<ssl_source>",
        "save_path": SSL_FOLDER,
        "frozen": None,
        "layers": None,
        "stacked": None,
        "level": None,
        "digest": None,
    },
    "!new:sentencepiece.SentencePieceProcessor": {},
    "!new:speechbrain.utils.parameter_transfer.Pretrainer": {
        "loadables": None,
        "custom_hooks": None,
    },
}
"""Allowed arguments of the constructors that could read or write files elsewhere. A value other
than None is the only allowed value."""

TAGS = {
    "!ref",
    f"!name:{__name__}.load_weights",
    *(f"!new:{name}" for name in CONSTRUCTORS),
    *(
        f"tag:yaml.org,2002:{kind}"
        for kind in ("map", "seq", "str", "int", "float", "bool", "null")
    ),
}

REFERENCE = re.compile(r"<\w+>")
"""Allowed references: to a key of the YAML only, because an attribute may be a method that writes
files."""

PLAIN = re.compile(r"(?!.*\.\.)([\w.+ -]+(/[\w.+@ -]+)*)?")
"""Allowed values: numbers, names, and names on the hub, with or without a revision. HyperPyYAML
reads a value in parentheses as a tuple, with a YAML loader that can run code."""

SEGMENT_SETTINGS = {"segment_decoding": "min_duration", "segment_seconds": 0.3}
"""Settings with which an exported model finds segments. The decoding of a training corpus may
expect one event per file, and would find an emotion in every window of neutral speech."""

INTERFACE = """\
# For SpeechBrain's foreign_class(source=..., pymodule_file="interface.py",
# classname="EmotionTransducer"), which runs this file; from_hparams of the class itself does not.
from ent_brain.inference import EmotionTransducer  # noqa: F401
"""

CARD = Path(__file__).parent / "assets" / "model_card.md"


@main_process_only
def export(brain, folder, longest_window, results="Not measured.", utterances=0, hours=0.0):
    """Write a Brain's weights and tokens, a flat YAML for inference, and a model card.

    Arguments
    ---------
    brain : EmotionTransducerBrain
    folder : str or Path
        Created if it does not exist.
    longest_window : float
        Longest window, in seconds, that the model processes at a time.
    results : str
        Table of results for the model card.
    utterances : int
        Number of training utterances.
    hours : float
        Their duration in hours.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    frontend, model = (brain.raw_modules[name] for name in ("frontend", "model"))
    for name, module in (("frontend", frontend), ("model", model)):
        with whole_or_nothing(folder / f"{name}.ckpt") as partial:
            torch.save(module.state_dict(), partial)
    settings, loadables, lines = dict(frontend.settings), ["frontend", "model"], []
    if isinstance(frontend, SSLFrontend):
        frontend.save_ssl(folder / SSL_FOLDER)
        # A path on this machine means nothing elsewhere; a name on the hub does.
        source = SSL_FOLDER if Path(settings["source"]).exists() else settings["source"]
        lines += [f"ssl_source: {source}  # the folder beside this file is taken where it is", ""]
        settings |= {"source": "!ref <ssl_source>", "save_path": SSL_FOLDER}
    lines += [f"frontend: {_tag(frontend)}", _indented(settings), ""]
    lines += [f"model: {_tag(model)}", _indented(model.settings), ""]
    if isinstance(brain.tokens, SentencePieceTokens):
        with whole_or_nothing(folder / "processor.ckpt") as partial:
            partial.write_bytes(brain.tokens.processor.serialized_model_proto())
        loadables.append("processor")
        lines += [
            "processor: !new:sentencepiece.SentencePieceProcessor",
            f"tokens: {_tag(brain.tokens)}",
            "    processor: !ref <processor>",
            f"    normalization: {brain.tokens.normalization}",
            "",
        ]
    elif isinstance(brain.tokens, CharacterTokens):
        brain.tokens.save(folder / "tokens.ckpt")
        loadables.append("tokens")
        lines += [f"tokens: {_tag(brain.tokens)}  # tokens.ckpt is text: a character a line", ""]
    else:
        normalization = f"    normalization: {brain.tokens.normalization}"
        lines += [f"tokens: {_tag(brain.tokens)}", normalization, ""]
    if fusion := getattr(brain.hparams, "language_model", None):
        lines += [f"language_model: {_tag(fusion)}", _indented(fusion.settings), ""]
    lines += [
        f"emotions: [{', '.join(brain.emotions)}]",
        f"neutral: {'null' if brain.emotions.neutral is None else brain.emotions.neutral}",
        *(f"{key}: {getattr(brain.hparams, key)}" for key in ("max_symbols", "beam_size")),
        *(f"{key}: {value}" for key, value in SEGMENT_SETTINGS.items()),
        f"longest_window: {longest_window}",
        "",
        *_loading(loadables),
    ]
    texts = {
        HPARAMS_FILE: "\n".join([f"# Loaded by {__package__}.inference", "", *lines, ""]),
        "interface.py": INTERFACE,
        "README.md": CARD.read_text(encoding="utf-8").format(
            model=type(model).__name__,
            frontend=type(frontend).__name__,
            parameters=sum(p.numel() for p in model.parameters()) / 1e6,
            utterances=utterances,
            hours=hours,
            lattice_mode=brain.hparams.lattice_mode,
            emotions=", ".join(brain.emotions),
            table=results,
        ),
    }
    for name, text in texts.items():
        with whole_or_nothing(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")


def pack(source, target, encoder):
    """Pack an exported model: in float16, without the weights of its SSL model.

    The digest of those weights is stored, and loading verifies it.

    Arguments
    ---------
    source : str or Path
        Folder ``pretrained`` of a training with a frozen SSL model.
    target : str or Path
        Created if it does not exist. A README.md in it is kept.
    encoder : str
        Name and revision of the same SSL model on the Hugging Face hub, ``owner/name@revision``.

    Returns
    -------
    dict[str, str]
        SHA-256 of each file except README.md, by name.

    Raises
    ------
    InputError
        If the source is not such a model, or the encoder's name has no revision.
    """
    source, target = Path(source), Path(target)
    _split_encoder(encoder, "encoder")
    check_model(source)
    settings = _frontend_settings(source)
    if settings.get("frozen") != "true" or "digest" in settings:
        raise InputError(
            f"{source}: no frozen SSL model in it. Name the `pretrained` folder of a training."
        )
    frontend = SSLFrontend(settings["model"], source / SSL_FOLDER, SSL_FOLDER)
    digest = weights_digest(frontend.ssl_model)
    text = (source / HPARAMS_FILE).read_text(encoding="utf-8")
    text = re.sub(r"(?m)^ssl_source: .*$", f"ssl_source: {encoder}", text)
    text = re.sub(r"(?m)^    save_path: .*$", rf"\g<0>\n    digest: {digest}", text)
    target.mkdir(parents=True, exist_ok=True)
    with whole_or_nothing(target / HPARAMS_FILE) as partial:
        partial.write_text(text, encoding="utf-8")
    for path in (*source.glob("*.ckpt"), source / "interface.py", source / "README.md"):
        if path.stem in ("frontend", "model"):
            weights = torch.load(path, map_location="cpu", weights_only=True)
            weights = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
            with whole_or_nothing(target / path.name) as partial:
                torch.save(weights, partial)
        elif path.name != "README.md" or not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(target.iterdir())
        if path.is_file() and path.name != "README.md"
    }


def _split_encoder(name, origin):
    """Split ``owner/name@revision`` into the name on the hub and the revision (str, str)."""
    repository, _, revision = name.partition("@")
    if not (HUB_NAME.fullmatch(repository) and re.fullmatch(r"[\w.-]+", revision)):
        raise InputError(f"{origin}: {name!r}: give owner/name@revision, a name on the hub")
    return repository, revision


def _frontend_settings(folder):
    """Settings (dict[str, str]) of the SSL front end in a model's YAML; empty if there is none."""
    root = yaml.compose((Path(folder) / HPARAMS_FILE).read_text(encoding="utf-8"))
    frontend = {key.value: value for key, value in root.value}.get("frontend")
    if not isinstance(frontend, yaml.MappingNode) or frontend.tag != SSL_TAG:
        return {}
    return {key.value: value.value for key, value in frontend.value}


def find_encoder(folder, given=None, with_decoder=False):
    """Find the SSL model that a model of ``find_model`` needs.

    A complete export has it in its ``ssl`` folder. For a packed model, it is the given folder, or
    the folder in ``ENT_BRAIN_SSL``, or it comes from the hub's cache or the hub.

    Arguments
    ---------
    folder : str or Path
        Folder of the model.
    given : str or Path, optional
        Folder with a configuration and ``model.safetensors``.
    with_decoder : bool or None
        Whether Whisper's decoder is needed, too; None if it is only wanted.

    Returns
    -------
    Path or None
        None if the model has no SSL model.

    Raises
    ------
    InputError
        If it cannot be found, or if a folder is given for a model that is not packed.
    """
    folder = Path(folder)
    files = (*SSL_FILES, *(DECODER_FILES if with_decoder else ()))
    if "digest" not in _frontend_settings(folder):
        if given is not None:
            raise InputError(f"{given}: {folder} needs no other encoder. Leave ssl out.")
        return folder / SSL_FOLDER if (folder / SSL_FOLDER).is_dir() else None
    given = given or os.environ.get(ENCODER_VARIABLE)
    if given:
        given = Path(given)
        if missing := [name for name in files if not (given / name).is_file()]:
            kind = "a whole Whisper model's" if with_decoder else "an encoder's"
            raise InputError(f"{given}: no {', '.join(missing)} there. Name {kind} folder.")
        _check_ssl_config(given / SSL_CONFIG)
        return given
    root = yaml.compose((folder / HPARAMS_FILE).read_text(encoding="utf-8"))
    name = {key.value: value.value for key, value in root.value}.get("ssl_source", "")
    repository, revision = _split_encoder(name, f"{folder / HPARAMS_FILE}: ssl_source")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the hub's client warns at each attempt
    try:  # files of a commit in the cache need no network
        paths = [hf_hub_download(repository, file, revision=revision) for file in files]
        if with_decoder is None:
            with suppress(HfHubHTTPError, OSError):
                for file in DECODER_FILES:
                    hf_hub_download(repository, file, revision=revision)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise InputError(
            f"{name}: this encoder is neither in the hub's cache nor can it be fetched "
            f"({type(error).__name__}). Connect to the network once, or name a folder with it by "
            f"--ssl (in Python ssl=), or by the environment variable {ENCODER_VARIABLE}."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    return Path(paths[0]).parent


def _loading(loadables):
    """Lines of the YAML that make SpeechBrain load files into the constructed objects."""
    return [
        "modules:",
        "    frontend: !ref <frontend>",
        "    model: !ref <model>",
        "",
        "pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer",
        "    loadables:",
        *(f"        {name}: !ref <{name}>" for name in loadables),
        "    custom_hooks:",
        *(f"        {name}: !name:{__name__}.load_weights" for name in ("frontend", "model")),
    ]


def load_weights(module, path):
    """Load all of a module's weights from a file, without unpickling.

    Raises
    ------
    InputError
        If the file contains anything but tensors, or those of another module, or if a weight is NaN
        or infinite.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        module.load_state_dict(weights)
        _check_finite(weights)
    except Exception as error:  # a damaged file can raise errors of many types
        raise _not_the_weights(module, path, error) from error


def check_ssl_weights(ssl, path):
    """Refuse an SSL model in which a weight is NaN or infinite.

    Arguments
    ---------
    ssl : nn.Module
    path : str or Path
        The file of the weights.

    Raises
    ------
    InputError
        If there is such a weight. The message names it.
    """
    try:
        _check_finite(ssl.state_dict())
    except ValueError as error:
        raise _not_the_weights(ssl, path, error) from error


def _check_finite(weights):
    for name, values in weights.items():
        if not values.isfinite().all():
            raise ValueError(f"{name} contains NaN or infinity")


def _not_the_weights(module, path, error):
    reason, name = one_line(error).partition(". ")[0], type(module).__name__
    return InputError(f"{path}: not the weights of this {name} ({reason}): export again")


def find_model(source, savedir=None, revision=None):
    """Find the folder of an exported model, or download it from the hub.

    Arguments
    ---------
    source : str or Path
        Folder, or name on the Hugging Face hub (``owner/name``).
    savedir : str or Path, optional
        Folder for a downloaded model; the hub's cache if None.
    revision : str, optional
        Branch, tag or commit of a model on the hub.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If there is no such model.
    """
    if Path(source).is_dir():
        left_by_training = Path(source) / "pretrained"
        if (left_by_training / HPARAMS_FILE).is_file():
            raise InputError(
                f"{source}: output folder of a training. Name its model, {left_by_training}."
            )
        return Path(source)
    if Path(source).exists() or not HUB_NAME.fullmatch(str(source)):
        raise InputError(
            f"{source}: no such folder. Name the `pretrained` folder of a training, or owner/name "
            "of a model on the Hugging Face hub."
        )
    try:
        return Path(snapshot_download(str(source), revision=revision, local_dir=savedir))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise InputError(
            f"{source}: neither a folder nor available on the hub ({type(error).__name__}). "
            "Check the name and the network."
        ) from error


def check_model(folder):
    """Refuse a folder that is incomplete, or whose YAML would do more than build a model.

    This check loads, runs and unpickles nothing from the folder.

    Raises
    ------
    InputError
        If there are problems. The message lists them.
    """
    folder = Path(folder)
    path = folder / HPARAMS_FILE
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file. Name the `pretrained` folder of a training."
        ) from None
    except RecursionError:
        raise InputError(f"{path}: nested too deep: export again") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}): export again") from error
    if not isinstance(root, yaml.MappingNode):
        raise InputError(f"{path}: not a YAML of keys and values: export again")
    nodes = list(_nodes(root, set()))
    problems = [
        f"line {node.start_mark.line + 1}: {problem}"
        for node, repeated in nodes
        for problem in (["an alias is not allowed"] if repeated else _strange_parts(node))
    ]
    raise_problems(
        [f"{path}: {problem}" for problem in (*problems, *_strange_files(folder))],
        "a model from a stranger can run code: look at it, and give --trust (in Python trust=True) "
        "to load it as it is",
    )
    has_ssl = any(node.tag == SSL_TAG for node, _ in nodes)
    needed = [f"{name}.ckpt" for name in _check_loading(path, root)]
    has_ssl = has_ssl and "digest" not in _frontend_settings(folder)  # a packed model lacks it
    needed += [f"{SSL_FOLDER}/{name}" for name in SSL_FILES if has_ssl]
    missing = [name for name in needed if not (folder / name).is_file()]
    raise_problems([f"{folder / name}: missing" for name in missing], "export or fetch again")
    if has_ssl:
        _check_ssl_config(folder / SSL_FOLDER / SSL_CONFIG)


def _strange_parts(node):
    """Yield a description of each part of a YAML node that an export never contains."""
    tag = node.tag
    if tag not in TAGS:
        yield f"{tag} is not allowed"
    elif isinstance(node, yaml.ScalarNode):
        if not (REFERENCE if tag == "!ref" else PLAIN).fullmatch(node.value):
            yield f"{node.value!r} is more than a number or a name"
    elif isinstance(node, yaml.SequenceNode) and tag.startswith("!"):
        yield f"{tag} of a list is not allowed"
    elif tag in ARGUMENTS and isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.value not in ARGUMENTS[tag]:
                yield f"{name.value} is not allowed here"
            elif ARGUMENTS[tag][name.value] not in (None, value.value):
                yield f"{name.value} can only be {ARGUMENTS[tag][name.value]}"


def _strange_files(folder):
    """Yield a description of each file outside the folder, or not meant for transformers."""
    # The hub's cache links to its own blobs. No other link may leave the folder.
    real = folder.resolve()
    inside = [real]
    if real.parent.name == "snapshots":
        inside.append(real.parents[1] / "blobs")
    for file in folder.rglob("*"):
        target = Path(os.path.realpath(file))  # resolve() raises an error for circular links
        if not any(target.is_relative_to(place) for place in inside):
            yield f"{file.name} leads out of the folder"
    for file in (folder / SSL_FOLDER).glob("*"):
        if file.name not in SSL_FILES:
            yield f"{SSL_FOLDER}/{file.name} is not allowed"


def _check_loading(path, root):
    """Return the names of the files that a YAML loads; they must be those of ``export``."""
    parts = {key.value: value for key, value in root.value}
    loadables = ["frontend", "model", *(["processor"] if "processor" in parts else [])]
    loadables += ["tokens"] if "tokens" in parts and parts["tokens"].tag == CHARACTERS_TAG else []
    for key, value in yaml.compose("\n".join(_loading(loadables))).value:
        given = parts.get(key.value)
        if given is None or _canonical(given) != _canonical(value):
            raise InputError(f"{path}: {key.value}: not as it was exported: export again")
    return loadables


def _canonical(node):
    return yaml.serialize(node, canonical=True)


def has_decoder(folder):
    """Whether a folder holds a whole Whisper model (bool), not its encoder alone."""
    if folder is None or not all((folder / name).is_file() for name in DECODER_FILES):
        return False
    try:
        with safe_open(folder / SSL_WEIGHTS, "pt") as file:
            return any(".decoder." in f".{name}" for name in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError):
        return False


def _check_ssl_config(path):
    try:
        kind = json.loads(path.read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}): export again") from error
    if kind not in SSL_MODELS:  # transformers would ask whether to run code from the hub
        raise InputError(
            f"{path}: model_type {kind!r}: not one of {', '.join(SSL_MODELS)}: export again"
        )


def _nodes(node, seen):
    """Yield every node of a YAML, and whether it is repeated, as through an alias."""
    yield node, node in seen
    if node in seen:
        return
    seen.add(node)
    if isinstance(node, yaml.ScalarNode):
        return
    for part in node.value:
        for child in part if isinstance(node, yaml.MappingNode) else (part,):
            yield from _nodes(child, seen)


def _tag(thing):
    return f"!new:{type(thing).__module__}.{type(thing).__name__}"


def _indented(settings):
    text = yaml.safe_dump(settings, sort_keys=False).strip()
    text = re.sub(r"'(!ref <\w+>)'", r"\1", text)  # without quotes, so that YAML reads a tag
    return "\n".join(f"    {line}" for line in text.splitlines())
