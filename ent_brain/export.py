"""Turn a trained model into a folder that ``EmotionTransducer.from_hparams`` loads."""

from pathlib import Path

import torch
import yaml
from speechbrain.utils.distributed import main_process_only

from ent_brain.files import whole_or_nothing
from ent_brain.tokens import SentencePieceTokens

HPARAMS_FILE = "hyperparams.yaml"


@main_process_only
def export(brain, folder, longest_window):
    """Write the weights that a Brain holds, its tokens and one flat YAML for inference.

    Arguments
    ---------
    brain : EmotionTransducerBrain
    folder : str or Path
        Created where it is missing.
    longest_window : float
        Seconds of a recording that the model is to hear at once, at most.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    modules = {name: brain.raw_modules[name] for name in ("frontend", "model")}
    for name, module in modules.items():
        with whole_or_nothing(folder / f"{name}.ckpt") as partial:
            torch.save(module.state_dict(), partial)
    lines = ["# Loaded by ent_brain.inference.EmotionTransducer.from_hparams", ""]
    for name, module in modules.items():
        lines += [f"{name}: {_tag(module)}", _indented(module.settings), ""]
    loadables = list(modules)
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
        f"max_symbols: {brain.hparams.max_symbols}",
        f"beam_size: {brain.hparams.beam_size}",
        f"segment_decoding: {brain.hparams.segment_decoding}",
        f"segment_seconds: {brain.hparams.segment_seconds}",
        f"longest_window: {longest_window}",
        "",
        "modules:",
        *(f"    {name}: !ref <{name}>" for name in modules),
        "",
        "pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer",
        "    loadables:",
        *(f"        {name}: !ref <{name}>" for name in loadables),
    ]
    with whole_or_nothing(folder / HPARAMS_FILE) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _tag(thing):
    return f"!new:{type(thing).__module__}.{type(thing).__name__}"


def _indented(settings):
    text = yaml.safe_dump(settings, sort_keys=False).strip()
    return "\n".join(f"    {line}" for line in text.splitlines())
