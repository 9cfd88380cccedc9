"""Search: the words of an utterance, the frame of each token, and the emotion of every frame."""

from typing import NamedTuple

import torch
from torch import Tensor

from ent_brain.tokens import BLANK

LOOK_AHEAD = 8
"""Frames whose token distributions are computed at once: until a token is emitted the predictor
stands still, so frames of a run of blanks need not wait for one another."""

ROUNDS_BETWEEN_CHECKS = 8
"""Rounds between two looks at whether all utterances have ended, which stop a GPU's queue."""


class Hypothesis(NamedTuple):
    """What a model makes of one utterance."""

    tokens: list
    """Token ids."""
    frames: list
    """Frame at which each token is emitted."""
    emotion_log_probs: Tensor | None
    """[T, E] of each frame; None where the model has neither emotion joint nor pooled head."""
    utterance_log_probs: Tensor | None
    """[E] of the utterance: the pooled head's, or the mean over frames where there is no head."""
    score: float
    """Log-probability of the path: its tokens and blanks, nats."""


@torch.no_grad()
def greedy_search(model, features, frame_lens, max_symbols=32):
    """Greedy time-synchronous search over a batch, the same per utterance as one at a time.

    At frame t the most probable output is taken: a token is emitted, the predictor steps and t
    stays; blank, or the ``max_symbols``-th token at this frame, advances t. The emotion of frame t
    is the emotion joint's at (t, the predictor's state as t advances); where the model has no
    emotion joint it is the pooled head's, applied to that one frame and state.

    Arguments
    ---------
    model : ENT or FENT
        In eval mode.
    features : Tensor
        [B, T, L, D]
    frame_lens : Tensor
        [B] int
    max_symbols : int
        Most tokens at one frame.

    Returns
    -------
    list[Hypothesis]
        One an utterance, on the CPU.
    """
    encoded = model.encode(features, frame_lens)
    if model.token_joints:
        tokens, frames, scores = _greedy_tokens(model, encoded, frame_lens, max_symbols)
    else:
        tokens = frames = [[] for _ in frame_lens]
        scores = [0.0] * len(frame_lens)
    return _annotate(model, encoded, frame_lens, tokens, frames, scores)


def _greedy_tokens(model, encoded, frame_lens, max_symbols):
    """Tokens, their frames, and path scores, as lists over utterances."""
    device = frame_lens.device
    rows = torch.arange(len(frame_lens), device=device)[:, None]
    ahead = torch.arange(LOOK_AHEAD, device=device)
    last = (frame_lens - 1)[:, None]
    predicted, states = model.predict_next(
        torch.full_like(last, BLANK), [None] * len(model.predictors)
    )
    lattices = model.token_lattices(encoded, predicted)
    time = torch.zeros_like(frame_lens)
    symbols = torch.zeros_like(frame_lens)
    score = torch.zeros(len(frame_lens), device=device)
    history = []
    while len(history) % ROUNDS_BETWEEN_CHECKS or bool((time < frame_lens).any()):
        window = time[:, None] + ahead
        nodes = [lattice.at(rows, window.minimum(last), 0) for lattice in lattices]
        log_probs = torch.cat(nodes, -1).log_softmax(-1)
        best, token = log_probs.max(-1)
        emits = (token != BLANK) & (window <= last)
        emitting = emits.any(1)
        # Frames passed with a blank: all of the window, or those before the first token.
        blanks = torch.where(emitting, emits.int().argmax(1), LOOK_AHEAD)
        passed = (ahead < blanks[:, None]) & (window <= last)
        score += (best * passed).sum(1)
        first = blanks.clamp(max=LOOK_AHEAD - 1)[:, None]
        score += torch.where(emitting, best.gather(1, first)[:, 0], 0.0)
        token = torch.where(emitting, token.gather(1, first)[:, 0], BLANK)
        time = time + blanks
        history.append(torch.stack((token, time)))

        symbols = torch.where(blanks > 0, 0, symbols) + emitting
        full = symbols >= max_symbols
        time = time + full
        symbols = symbols.masked_fill(full, 0)
        following, stepped = model.predict_next(token[:, None], states)
        lattices = tuple(
            new._replace(pred=torch.where(emitting[:, None, None], new.pred, old.pred))
            for new, old in zip(
                model.next_token_lattices(lattices, following), lattices, strict=True
            )
        )
        states = [
            tuple(torch.where(emitting[None, :, None], n, o) for n, o in zip(new, old, strict=True))
            for new, old in zip(stepped, states, strict=True)
        ]
    tokens, frames = torch.stack(history, 1).cpu()
    emitted = (tokens != BLANK).T
    return (
        [ids[mask].tolist() for ids, mask in zip(tokens.T, emitted, strict=True)],
        [times[mask].tolist() for times, mask in zip(frames.T, emitted, strict=True)],
        score.tolist(),
    )


def _annotate(model, encoded, frame_lens, tokens, frames, scores):
    """Hypotheses of decoded tokens: the emotions of all frames at once, after the words."""
    device = frame_lens.device
    token_lens = torch.tensor([len(ids) for ids in tokens], device=device)
    padded = torch.zeros(len(tokens), int(token_lens.max()), dtype=torch.long, device=device)
    emitted_at = torch.zeros_like(padded)
    for row, (ids, times) in enumerate(zip(tokens, frames, strict=True)):
        padded[row, : len(ids)] = torch.tensor(ids, device=device)
        emitted_at[row, : len(ids)] = torch.tensor(times, device=device)
    predicted = model.predict(padded, token_lens)
    # The predictor's state as frame t advances has seen the tokens emitted up to frame t.
    steps = torch.arange(encoded.emotion.size(1), device=device)
    real = torch.arange(padded.size(1), device=device) < token_lens[:, None]
    positions = ((emitted_at[:, None] <= steps[:, None]) & real[:, None]).sum(2)
    rows = torch.arange(len(tokens), device=device)[:, None]

    of_frames = None
    if model.emotion_joint is not None:
        of_frames = model.emotion_lattice(encoded, predicted).at(rows, steps, positions)
    elif model.pooled_head is not None:
        of_frames = model.pooled_head(encoded.emotion, predicted.emotion[rows, positions])
    of_utterance = model.classify(encoded, frame_lens, predicted, token_lens)

    hypotheses = []
    for row, length in enumerate(frame_lens.tolist()):
        frame_log_probs = utterance_log_probs = None
        if of_frames is not None:
            frame_log_probs = of_frames[row, :length].float().log_softmax(-1).cpu()
            utterance_log_probs = frame_log_probs.exp().mean(0).log()
        if of_utterance is not None:
            utterance_log_probs = of_utterance[row].float().log_softmax(-1).cpu()
        hypotheses.append(
            Hypothesis(tokens[row], frames[row], frame_log_probs, utterance_log_probs, scores[row])
        )
    return hypotheses
