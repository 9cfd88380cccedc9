#!/usr/bin/env python3
"""Speed of greedy and beam search, in batches and one utterance at a time.

With ``--model FOLDER``, a trained model decodes 180 new synthetic utterances. Otherwise, the model
has the paper's sizes and random weights, and decodes noise. Its blank bias is set so that it emits
about as many tokens per second as speech has. Every row decodes the same utterances, including the
encoder, and must give the results of the first row of its search.

> python benchmarks/decoding.py [--quick] [--model demo/ent/pretrained] [--output decoding.json]
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from speechbrain.utils.data_utils import batch_pad_right

from ent_brain.dataio import read_audio
from ent_brain.decoding import Hypothesis, beam_search, greedy_search
from ent_brain.evaluation import hardware
from ent_brain.files import write_json
from ent_brain.inference import EmotionTransducer
from ent_brain.model import ENT, Streams
from ent_brain.synth import write_zed
from ent_brain.tokens import BLANK

TOKENS_A_SECOND = 14.0
"""Number of characters in a second of English speech."""

FRAME_DURATION = 0.02

MAX_SYMBOLS = 3
"""Upper limit of the tokens at one frame, because a model with random weights might never stop."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="use a small model and few utterances")
    parser.add_argument("--model", metavar="FOLDER", help="folder `pretrained` of a training")
    parser.add_argument(
        "--batch_size", type=int, default=32, help="utterances in a batch (default: 32)"
    )
    parser.add_argument(
        "--repetitions",
        type=int,
        default=3,
        help="runs of each row; the fastest counts (default: 3)",
    )
    parser.add_argument("--output", metavar="JSON", type=Path, help="file for the results")
    options = parser.parse_args()
    torch.manual_seed(1)
    if options.model:
        model, frame_duration, features, frame_lens = _trained(options)
    else:
        model, frame_duration, features, frame_lens = _random(options)
    seconds = float(frame_lens.sum()) * frame_duration
    batch = options.batch_size
    forms = {
        ("greedy", "symbol by symbol", 1): lambda *inputs: _symbol_by_symbol(model, *inputs),
        ("greedy", "one at a time", 1): lambda *inputs: greedy_search(model, *inputs, MAX_SYMBOLS),
        ("greedy", f"batches of {batch}", batch): lambda *inputs: greedy_search(
            model, *inputs, MAX_SYMBOLS
        ),
        ("beam of 4", "one at a time", 1): lambda *inputs: _beam(model, *inputs),
        ("beam of 4", f"batches of {batch}", batch): lambda *inputs: _beam(model, *inputs),
    }
    rows, first = [], {}
    for (search, form, size), run in forms.items():
        taken, found = _measure(run, features, frame_lens, size, options.repetitions)
        reference = first.setdefault(search, (taken, found))
        rows.append(
            {
                "search": search,
                "form": form,
                "seconds": taken,
                "real-time factor": taken / seconds,
                "times faster": reference[0] / taken,
                "the same": _same(found, reference[1]),
            }
        )
    tokens = sum(len(hypothesis.tokens) for hypothesis in found)
    facts = (
        f"{len(frame_lens)} utterances, {seconds:.0f} s, {tokens / seconds:.1f} tokens a second; "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters; {hardware('cpu')}"
    )
    print(facts + "\n")
    print("| search | form | s | real-time factor | times faster | the same |")
    print("| :-- | :-- | --: | --: | --: | :-- |")
    for row in rows:
        print(
            f"| {row['search']} | {row['form']} | {row['seconds']:.2f} "
            f"| {row['real-time factor']:.4f} | {row['times faster']:.1f} "
            f"| {'yes' if row['the same'] else 'NO'} |"
        )
    if options.output:
        write_json({"made with": facts, "rows": rows}, options.output)


@torch.no_grad()
def _trained(options):
    """A trained model, and the features of new utterances, sorted by length."""
    trained = EmotionTransducer.from_hparams(source=options.model).mods
    frontend, count = trained.frontend, 32 if options.quick else 180
    with tempfile.TemporaryDirectory() as folder:
        write_zed(folder, count, seed=7)
        wavs = [read_audio(path, frontend.sample_rate) for path in Path(folder).rglob("*.wav")]
    wavs.sort(key=len)
    features, frame_lens = frontend(*batch_pad_right(wavs))
    return trained.model, frontend.frame_duration, features, frame_lens


@torch.no_grad()
def _random(options):
    """A model with random weights, and noise of 1 to 8 seconds, sorted by length."""
    small = {"encoder_dim": 64, "embedding_dim": 64, "predictor_dim": 64, "joint_dim": 64}
    model = ENT(vocab_size=31, feature_layers=1, **(small if options.quick else {})).eval()
    for joint in model.token_joints:  # outputs that vary from frame to frame and token to token
        joint.output.weight.mul_(6)
        joint.encoder_side.weight.mul_(3)
        joint.predictor_side.weight.mul_(3)
    count = 32 if options.quick else 64
    frame_lens = ((1 + 7 * torch.rand(count)).sort().values / FRAME_DURATION).long()
    features = torch.randn(count, int(frame_lens.max()), 1, model.settings["feature_dim"])
    _set_blank(model, features[-8:], frame_lens[-8:])
    return model, FRAME_DURATION, features, frame_lens


def _set_blank(model, features, frame_lens):
    """Find the blank bias at which the utterances have as many tokens as speech."""
    bias = model.token_joints[0].output.bias
    wanted = TOKENS_A_SECOND * FRAME_DURATION * float(frame_lens.sum())
    low, high = -50.0, 50.0
    for _ in range(20):
        bias[0] = (low + high) / 2
        tokens = sum(
            len(each.tokens) for each in greedy_search(model, features, frame_lens, MAX_SYMBOLS)
        )
        low, high = (low, float(bias[0])) if tokens < wanted else (float(bias[0]), high)


def _measure(run, features, frame_lens, size, repetitions):
    """Measure the seconds of the fastest repetition, and return the hypotheses."""
    batches = [
        (features[start : start + size, : int(lens.max())], lens)
        for start, lens in zip(range(0, len(frame_lens), size), frame_lens.split(size), strict=True)
    ]
    for batch in batches:  # kernels are prepared when a shape first occurs
        run(*batch)
    taken = []
    for _ in range(repetitions):
        started = time.perf_counter()
        found = [hypotheses for batch in batches for hypotheses in run(*batch)]
        taken.append(time.perf_counter() - started)
    return min(taken), found


def _beam(model, features, frame_lens):
    found = beam_search(model, features, frame_lens, 4, max_symbols=MAX_SYMBOLS)
    return [best for (best,) in found]


@torch.no_grad()
def _symbol_by_symbol(model, features, frame_lens):
    """Decode as published: one utterance, one output at a time, each read by the CPU."""
    encoded = model.encode(features, frame_lens)
    predicted, state = _predict(model, torch.zeros(1, 1, dtype=torch.long), None)
    tokens, frames, emotions, score = [], [], [], 0.0
    here = torch.zeros(1, dtype=torch.long)
    for t in range(int(frame_lens)):
        now = Streams(*(stream[:, t : t + 1] for stream in encoded))
        for _ in range(MAX_SYMBOLS):
            logits = [each.at(here, here, here) for each in model.token_lattices(now, predicted)]
            best = torch.cat(logits, -1).log_softmax(-1).max(-1)
            score += best.values.item()
            if best.indices.item() == BLANK:
                break
            tokens.append(best.indices.item())
            frames.append(t)
            predicted, state = _predict(model, best.indices[None], state)
        emotions.append(model.emotion_lattice(now, predicted).at(here, here, here).log_softmax(-1))
    return [Hypothesis(tokens, frames, torch.cat(emotions), None, score)]


def _predict(model, tokens, state):
    """Both streams of ENT's single predictor, and its state."""
    [predictor] = model.predictors
    predicted, state = predictor(tokens, state)
    return Streams(predicted, predicted), state


def _same(some, others):
    return all(
        (a.tokens, a.frames) == (b.tokens, b.frames)
        and torch.allclose(a.emotion_log_probs, b.emotion_log_probs, atol=1e-4)
        for a, b in zip(some, others, strict=True)
    )


if __name__ == "__main__":
    main()
