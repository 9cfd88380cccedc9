"""Search: the words of an utterance, the frame of each token, and the emotion of every frame."""

from bisect import bisect_left
from itertools import chain, islice
from typing import NamedTuple

import torch
from torch import Tensor

from ent_brain.lattice import Lattice
from ent_brain.model import Streams
from ent_brain.tokens import BLANK

LOOK_AHEAD = 6
"""Frames whose token distributions are computed at once: until a token is emitted the predictor
stands still, so frames of a run of blanks need not wait for one another."""

HASH_FACTOR = 6364136223846793005
"""Of the hash that tells token sequences apart: an odd number of 63 bits, which wraps around."""

GIVEN_UP = 6.0
"""Nats below the best hypothesis at which the beam search gives another up: those far behind hardly
ever catch up, and as long as they stay at a frame the others wait for them."""

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
    """Log-probability, nats: of the path's tokens and blanks, or summed over several paths of these
    tokens by the beam search."""
    event_log_probs: Tensor | None = None
    """[E] of ``judge_events``."""


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
    return [best for (best,) in beam_search(model, features, frame_lens, 1, 1, max_symbols)]


@torch.no_grad()
def beam_search(model, features, frame_lens, beam_size=4, n_best=1, max_symbols=32):
    """Time-synchronous beam search over a batch.

    At frame t each hypothesis either passes to the next frame with a blank, or emits a token and
    stays; hypotheses of the same tokens at the same point become one, with the sum of their
    probabilities. The greedy hypothesis never leaves the beam: the best one is at least as
    probable, and a beam of 1 is the greedy search.

    Arguments
    ---------
    model, features, frame_lens, max_symbols
        As for ``greedy_search``.
    beam_size : int
        Hypotheses that are followed.
    n_best : int
        Hypotheses of each utterance that are returned, at most ``beam_size``; fewer where the beam
        holds fewer.

    Returns
    -------
    list[list[Hypothesis]]
        Of each utterance the best first, on the CPU. ``score`` sums over the alignments that the
        beam held; ``frames`` are those of the more probable one wherever two became one.

    Raises
    ------
    ValueError
        If ``n_best`` is not from 1 to ``beam_size``.

    Source: after Graves 2012 (arXiv 1211.3711), section 2.5, and the time-synchronous search of
    Saon et al., ICASSP 2020.
    """
    encoded = model.encode(features, frame_lens)
    return search(model, encoded, frame_lens, beam_size, n_best, max_symbols)


@torch.no_grad()
def search(model, encoded, frame_lens, beam_size=1, n_best=1, max_symbols=32):
    """``beam_search`` over the encoder streams of ``model.encode``, where they are there already.

    A beam of 1 is searched greedily, several frames at once.
    """
    if not 1 <= n_best <= beam_size:
        raise ValueError(f"n_best {n_best}: not from 1 to beam_size {beam_size}")
    if not model.token_joints:
        paths = [[TokenPath([], [], 0.0)] for _ in frame_lens]
    elif beam_size == 1:
        paths = _greedy_paths(model, encoded, frame_lens, max_symbols)
    else:
        paths = _beam_paths(model, encoded, frame_lens, beam_size, n_best, max_symbols)
    counts = torch.tensor([len(of_utterance) for of_utterance in paths], device=frame_lens.device)
    hypotheses = iter(
        judge_frames(
            model,
            Streams(*(stream.repeat_interleave(counts, 0) for stream in encoded)),
            frame_lens.repeat_interleave(counts),
            [path for of_utterance in paths for path in of_utterance],
        )
    )
    return [list(islice(hypotheses, len(of_utterance))) for of_utterance in paths]


@torch.no_grad()
def judge_events(model, encoded, hypotheses, decoder):
    """Let the pooled head tell how likely the event of each emotion has its emotion.

    Frames tell when each emotion is, if it is anywhere; which of them it is the head tells better.
    It hears all of an event at once, where a sum over frames counts what neighbours have in common
    once for each of them.

    Arguments
    ---------
    model : ENT or FENT
        In eval mode.
    encoded : Streams
        [B, T, D] each, what the hypotheses were searched in.
    hypotheses : list[Hypothesis]
    decoder : SegmentDecoder
        Whose ``events`` are judged if it looks for a ``lasting_event``.

    Returns
    -------
    list[Hypothesis]
        With ``event_log_probs``, if there is a pooled head and something to judge.
    """
    if model.pooled_head is None or decoder.method != "lasting_event":
        return hypotheses
    tokens, token_lens = pad_tokens(hypotheses, encoded.emotion.device)
    intervals = []
    for tokens_of_one, frames, log_probs, *_ in hypotheses:
        intervals.append([])
        for emotion, (a, b) in decoder.events(log_probs).items():
            c = bisect_left(frames, a)
            d = bisect_left(frames, b) if b < len(log_probs) else len(tokens_of_one) + 1
            intervals[-1].append((emotion, a, b, c, max(c + 1, d)))
    logits = model.classify_intervals(encoded, model.predict(tokens, token_lens), intervals)
    judged = logits.float().log_softmax(-1).cpu().split([len(spans) for spans in intervals])
    return [
        hypothesis._replace(event_log_probs=_of_events(log_probs, [span[0] for span in spans]))
        for hypothesis, spans, log_probs in zip(hypotheses, intervals, judged, strict=True)
    ]


def _of_events(log_probs, emotions):
    """[E] log-probability of each event's own emotion, of [K, E]; -inf where there is no event."""
    of_events = torch.full_like(log_probs[0], -torch.inf)
    of_events[emotions] = log_probs[range(len(emotions)), emotions]
    return of_events


def pad_tokens(hypotheses, device):
    """Tokens [B, U] of hypotheses, and how many there are of each, [B]."""
    tokens = [torch.tensor(hypothesis.tokens, dtype=torch.long) for hypothesis in hypotheses]
    token_lens = torch.tensor([len(of_one) for of_one in tokens], device=device)
    return torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True).to(device), token_lens


class TokenPath(NamedTuple):
    """Tokens of an utterance, the frame of each, and the path's log-probability."""

    tokens: list
    frames: list
    score: float


class _Reader:
    """Reads token after token for the token joints.

    The predictor's projection and the joint's side of it, two linear maps in a row, become one.

    Arguments
    ---------
    model : ENT or FENT
    """

    def __init__(self, model):
        self.model = model
        self.sides = [  # each token joint has a predictor of its own
            (
                joint.predictor_side.weight @ predictor.projection.weight,
                joint.predictor_side(predictor.projection.bias),
            )
            for joint, predictor in zip(model.token_joints, model.predictors, strict=True)
        ]

    def __call__(self, tokens, states=None):
        """Predictor sides [N, 1, J] of each token joint after tokens [N, 1], and the states."""
        states = [None] * len(self.model.predictors) if states is None else states
        read = [
            predictor.read(tokens, state)
            for predictor, state in zip(self.model.predictors, states, strict=True)
        ]
        sides = [
            torch.nn.functional.linear(hidden, *side)
            for (hidden, _), side in zip(read, self.sides, strict=True)
        ]
        return sides, [state for _, state in read]

    def lattices(self, encoded, sides):
        """Lattices of encoder streams and predictor sides [B, N, J]."""
        return [
            Lattice(
                joint.encoder_side(getattr(encoded, stream)),
                side,
                joint.output.weight,
                joint.output.bias,
            )
            for joint, stream, side in zip(
                self.model.token_joints, self.model.token_streams, sides, strict=True
            )
        ]


def _greedy_paths(model, encoded, frame_lens, max_symbols):
    """The greedy path of each utterance, [[TokenPath]]."""
    device = frame_lens.device
    rows = torch.arange(len(frame_lens), device=device)[:, None]
    ahead = torch.arange(LOOK_AHEAD, device=device)
    last = (frame_lens - 1)[:, None]
    read = _Reader(model)
    sides, states = read(torch.full_like(last, BLANK))
    lattices = read.lattices(encoded, sides)
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
        sides, stepped = read(token[:, None], states)
        lattices = [
            old._replace(pred=torch.where(emitting[:, None, None], side, old.pred))
            for side, old in zip(sides, lattices, strict=True)
        ]
        states = [
            tuple(torch.where(emitting[None, :, None], n, o) for n, o in zip(new, old, strict=True))
            for new, old in zip(stepped, states, strict=True)
        ]
    tokens, frames = torch.stack(history, 1).cpu()
    return [
        [TokenPath(ids[ids != BLANK].tolist(), times[ids != BLANK].tolist(), total)]
        for ids, times, total in zip(tokens.T, frames.T, score.tolist(), strict=True)
    ]


def _beam_paths(model, encoded, frame_lens, beam_size, n_best, max_symbols):
    """The most probable paths of each utterance, [[TokenPath]], the best first.

    In each round every hypothesis that has not passed its frame either passes or emits; once all
    have passed, the next frame is theirs. So those at the frame have emitted equally many tokens
    there, and two of them with one history of tokens are in the same place.
    """
    device = frame_lens.device
    rows = torch.arange(len(frame_lens), device=device)[:, None]
    slots = torch.arange(beam_size, device=device).expand(len(rows), -1)
    last = (frame_lens - 1)[:, None]
    read = _Reader(model)
    sides, states = read(torch.full((slots.numel(), 1), BLANK, device=device))
    lattices = read.lattices(encoded, [side.view(*slots.shape, -1) for side in sides])
    # One hypothesis begins; slot 0 holds the greedy one all along.
    score = torch.zeros(slots.shape, device=device).masked_fill_(slots > 0, -torch.inf)
    passed = torch.zeros_like(slots, dtype=torch.bool)
    sequence = torch.zeros_like(slots)  # a hash of the tokens: equal ones are the same sequence
    time, symbols = torch.zeros_like(last), torch.zeros_like(last)
    history = []
    while len(history) % ROUNDS_BETWEEN_CHECKS or bool((time <= last).any()):
        nodes = [lattice.at(rows, time.minimum(last), slots) for lattice in lattices]
        log_probs = torch.cat(nodes, -1).log_softmax(-1)
        greedy = log_probs[:, 0].argmax(-1, keepdim=True)
        waits = passed | (time > last)
        greedy_emits = (greedy != BLANK) & ~waits[:, :1]
        moves = (score[..., None] + log_probs).masked_fill_(waits[..., None], -torch.inf)

        # Candidates: every slot once it has passed, and as many emissions, greedy's the first.
        passing = torch.where(waits, score, moves[..., BLANK])
        moves[..., BLANK] = -torch.inf
        moves = moves.flatten(1)
        ranked = moves.scatter_add(1, greedy, torch.where(greedy_emits, torch.inf, 0.0))
        chosen = ranked.topk(beam_size).indices
        outputs = log_probs.size(-1)
        parent = torch.cat((slots, chosen // outputs), 1)
        token = torch.cat((torch.full_like(slots, BLANK), chosen % outputs), 1)
        total = torch.cat((passing, moves.gather(1, chosen)), 1)
        full = (symbols + 1 >= max_symbols).expand_as(slots)
        at_next = torch.cat((torch.ones_like(passed), full), 1)
        sequence = sequence.gather(1, parent)
        sequence = torch.where(token == BLANK, sequence, sequence * HASH_FACTOR + token)

        # Hypotheses of one sequence in one place become one: the most probable, with their sum.
        same = (sequence[:, :, None] == sequence[:, None]) & (
            at_next[:, :, None] == at_next[:, None]
        )
        totals = torch.where(same, total[:, None], -torch.inf)
        candidate = torch.arange(total.size(1), device=device)
        most_probable = totals.argmax(-1) == candidate
        total = totals.logsumexp(-1)
        is_greedy = candidate == torch.where(greedy_emits, beam_size, 0)
        holds_greedy = (same & is_greedy[:, None]).any(-1) & most_probable
        hopeful = most_probable & (total >= total.amax(1, keepdim=True) - GIVEN_UP)
        total = total.masked_fill(~(hopeful | holds_greedy), -torch.inf)
        kept = total.masked_fill(holds_greedy, torch.inf).topk(beam_size).indices

        score, sequence, token, parent = (
            values.gather(1, kept) for values in (total, sequence, token, parent)
        )
        history.append(torch.stack((token, time.expand_as(token), parent)))
        passed = at_next.gather(1, kept) | (score == -torch.inf)
        finished = passed.all(1, keepdim=True)
        passed = passed & ~finished
        time = time + finished
        symbols = torch.where(finished, 0, symbols + 1)

        origin = (rows * beam_size + parent).flatten()
        states = [tuple(part[:, origin] for part in state) for state in states]
        sides, stepped = read(token.view(-1, 1), states)
        emits = (token != BLANK)[..., None]
        lattices = [
            old._replace(pred=torch.where(emits, side.view_as(old.pred), old.pred[rows, parent]))
            for side, old in zip(sides, lattices, strict=True)
        ]
        states = [
            tuple(torch.where(emits.view(1, -1, 1), n, o) for n, o in zip(new, old, strict=True))
            for new, old in zip(stepped, states, strict=True)
        ]
    return _trace(torch.stack(history).cpu(), *(best.cpu() for best in score.topk(n_best)))


def _trace(history, scores, slot):
    """Follow the slots [B, N] back through the rounds [R, 3, B, K]: token, frame, parent."""
    found = []
    for token, frame, parent in history.flip(0):
        found.append(torch.stack((token.gather(1, slot), frame.gather(1, slot))))
        slot = parent.gather(1, slot)
    tokens, frames = torch.stack(found[::-1], -1)
    emitted = tokens != BLANK
    return [
        [
            TokenPath(
                tokens[row, n][emitted[row, n]].tolist(),
                frames[row, n][emitted[row, n]].tolist(),
                total,
            )
            for n, total in enumerate(totals)
            if total > -torch.inf
        ]
        for row, totals in enumerate(scores.tolist())
    ]


@torch.no_grad()
def judge_frames(model, encoded, frame_lens, paths):
    """Tell the emotions of all frames and utterances, after the words.

    Arguments
    ---------
    model : ENT or FENT
        In eval mode.
    encoded : Streams
        [B, T, D] each.
    frame_lens : Tensor
        [B] int
    paths : list[TokenPath]

    Returns
    -------
    list[Hypothesis]
    """
    device = frame_lens.device
    token_lens = torch.tensor([len(path.tokens) for path in paths], device=device)
    real = torch.arange(int(token_lens.max()), device=device) < token_lens[:, None]
    padded = torch.zeros_like(real, dtype=torch.long)
    padded[real] = _flat([path.tokens for path in paths], device)
    emitted_at = torch.full_like(padded, encoded.emotion.size(1))
    emitted_at[real] = _flat([path.frames for path in paths], device)
    predicted = model.predict(padded, token_lens)
    # The predictor's state as frame t advances has seen the tokens emitted up to frame t.
    steps = torch.arange(encoded.emotion.size(1), device=device)
    positions = torch.searchsorted(emitted_at, steps.repeat(len(paths), 1), right=True)
    rows = torch.arange(len(paths), device=device)[:, None]

    of_frames = None
    if model.emotion_joint is not None:
        of_frames = model.emotion_lattice(encoded, predicted).at(rows, steps, positions)
    elif model.pooled_head is not None:
        of_frames = model.pooled_head(encoded.emotion, predicted.emotion[rows, positions])
    of_utterance = model.classify(encoded, frame_lens, predicted, token_lens)

    if of_frames is not None:
        of_frames = of_frames.float().log_softmax(-1)
    if of_utterance is not None:
        of_utterance = of_utterance.float().log_softmax(-1)
    elif of_frames is not None:
        within = (steps < frame_lens[:, None])[..., None]
        of_utterance = ((of_frames.exp() * within).sum(1) / frame_lens[:, None]).log()
    # One copy to the CPU for all; None where there is nothing.
    of_frames, of_utterance = (
        [None] * len(paths) if values is None else values.cpu()
        for values in (of_frames, of_utterance)
    )
    return [
        Hypothesis(tokens, frames, each if each is None else each[:length].clone(), of_one, score)
        for (tokens, frames, score), each, of_one, length in zip(
            paths, of_frames, of_utterance, frame_lens.tolist(), strict=True
        )
    ]


def _flat(lists, device):
    return torch.tensor(list(chain.from_iterable(lists)), dtype=torch.long, device=device)
