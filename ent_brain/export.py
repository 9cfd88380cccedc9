"""A trained model as a folder: written after training, and checked before anything of it is loaded.

The folder is data: weights that are read without unpickling, and a YAML that may construct nothing
but what ``CONSTRUCTORS`` names. It loads by itself, offline, and can be pushed to a hub as it is.
"""

import re
from pathlib import Path

import torch
import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from speechbrain.utils.distributed import main_process_only

from ent_brain.errors import InputError, raise_problems
from ent_brain.files import whole_or_nothing
from ent_brain.frontend import SSLFrontend
from ent_brain.tokens import SentencePieceTokens

HPARAMS_FILE = "hyperparams.yaml"
SSL_FOLDER = "ssl"
"""What an SSL front end starts from: its configuration and weights, as transformers saves them."""

CONSTRUCTORS = {
    *("ent_brain.frontend.FbankFrontend", "ent_brain.frontend.SSLFrontend"),
    *("ent_brain.model.ENT", "ent_brain.model.FENT"),
    *("ent_brain.tokens.CharTokens", "ent_brain.tokens.SentencePieceTokens"),
    "sentencepiece.SentencePieceProcessor",
    "speechbrain.utils.parameter_transfer.Pretrainer",
}
"""What the YAML of a folder may construct: what ``export`` writes. A whole package is no safe list;
SpeechBrain itself has functions that run commands or unpickle files."""

TAGS = {
    "!ref",
    f"!name:{__name__}.load_weights",
    *(f"!new:{name}" for name in CONSTRUCTORS),
    *(
        f"tag:yaml.org,2002:{kind}"
        for kind in ("map", "seq", "str", "int", "float", "bool", "null")
    ),
}

INTERFACE = """\
# For SpeechBrain's foreign_class(source=..., pymodule_file="interface.py",
# classname="EmotionTransducer"), which runs this file; from_hparams of the class itself does not.
from ent_brain.inference import EmotionTransducer  # noqa: F401
"""

CARD = Path(__file__).parent / "assets" / "model_card.md"


@main_process_only
def export(brain, folder, longest_window, results="Not measured.", utterances=0, hours=0.0):
    """Write the weights that a Brain holds, its tokens, one flat YAML for inference, and a card.

    Arguments
    ---------
    brain : EmotionTransducerBrain
    folder : str or Path
        Created where it is missing.
    longest_window : float
        Seconds of a recording that the model is to hear at once, at most.
    results : str
        The card's table of results.
    utterances : int
        That the model was trained on.
    hours : float
        Of these.
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
        # A folder of this machine is nothing to others; a name on the hub is.
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
            "",
        ]
    else:
        lines += [f"tokens: {_tag(brain.tokens)}", ""]
    lines += [
        *(f"{key}: {getattr(brain.hparams, key)}" for key in ("max_symbols", "beam_size")),
        f"segment_decoding: {brain.hparams.segment_decoding}",
        f"segment_seconds: {brain.hparams.segment_seconds}",
        f"longest_window: {longest_window}",
        "",
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
            table=results,
        ),
    }
    for name, text in texts.items():
        with whole_or_nothing(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")


def load_weights(module, path):
    """Load a module's weights, all of them, from a file that is not unpickled.

    Raises
    ------
    InputError
        If the file holds anything but tensors, or not those of the module.
    """
    try:
        module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch has no one kind for what a broken file can do
        reason = " ".join(str(error).split()).partition(". ")[0][:160]
        name = type(module).__name__
        raise InputError(
            f"{path}: not the weights of this {name} ({reason}): export again"
        ) from error


def find_model(source, savedir=None, revision=None):
    """Find the folder of an exported model; a name on the hub is fetched.

    Arguments
    ---------
    source : str or Path
        Folder, or name on the Hugging Face hub (``owner/name``).
    savedir : str or Path, optional
        Where a fetched model is put; the hub's cache where it is not given.
    revision : str, optional
        Branch, tag or commit of a model on the hub.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If there is none.
    """
    if Path(source).is_dir():
        return Path(source)
    if Path(source).exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)):
        raise InputError(
            f"{source}: no folder: name the one that training left as `pretrained`, or owner/name "
            "of a model on the Hugging Face hub"
        )
    try:
        return Path(snapshot_download(str(source), revision=revision, local_dir=savedir))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise InputError(
            f"{source}: neither a folder nor to be had from the hub ({type(error).__name__}): "
            "check the name and the network"
        ) from error


def check_model(folder):
    """Refuse a folder that is incomplete, or whose YAML would do more than make a model.

    Nothing of it is loaded, run or unpickled here.

    Raises
    ------
    InputError
        Which says all that is wrong.
    """
    folder = Path(folder)
    path = folder / HPARAMS_FILE
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file: name a folder that training left as `pretrained`"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read ({reason}): export again") from error
    if not isinstance(root, yaml.MappingNode):
        raise InputError(f"{path}: not a YAML of keys and values: export again")
    problems = []
    loadables = []
    for key, node in _nodes(root):
        tag = node.tag
        if tag not in TAGS:
            problems.append(f"line {node.start_mark.line + 1}: {tag} is not allowed")
        elif isinstance(node, yaml.ScalarNode) and tag.endswith(":str"):
            parts = re.split(r"[/\\]", node.value)
            if ".." in parts or node.value.startswith(("/", "\\", "~")) or ":" in parts[0]:
                problems.append(
                    f"line {node.start_mark.line + 1}: {node.value!r} leads out of the folder"
                )
        if key == "paths":
            problems.append(f"line {node.start_mark.line + 1}: paths are not allowed")
        if key == "loadables" and isinstance(node, yaml.MappingNode):
            loadables = [name.value for name, _ in node.value]
    for file in folder.rglob("*"):
        # A hub's cache is links into its own blobs; nothing else may lead elsewhere.
        inside = folder.resolve(), folder.resolve().parents[1] / "blobs"
        if not any(file.resolve().is_relative_to(place) for place in inside):
            problems.append(f"{file.name} leads out of the folder")
    raise_problems(
        [f"{path}: {problem}" for problem in problems],
        "a model from a stranger can run code: look at it, and give trust=True to load it as it is",
    )
    missing = [name for name in loadables if not (folder / f"{name}.ckpt").is_file()]
    raise_problems([f"{folder / name}.ckpt: missing" for name in missing], "export or fetch again")


def _nodes(node, key=None):
    """Yield every node of a YAML below a key, with that key."""
    yield key, node
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield from _nodes(name)
            yield from _nodes(value, name.value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _nodes(value, key)


def _tag(thing):
    return f"!new:{type(thing).__module__}.{type(thing).__name__}"


def _indented(settings):
    text = yaml.safe_dump(settings, sort_keys=False).strip()
    text = re.sub(r"'(!ref <\w+>)'", r"\1", text)  # a tag, not a text
    return "\n".join(f"    {line}" for line in text.splitlines())
