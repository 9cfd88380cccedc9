"""Decoding: the words of an utterance, the frame of each token, and the emotions of frames."""

from bisect import bisect_left
from functools import reduce
from itertools import chain, islice
from typing import NamedTuple

import torch
from torch import Tensor

from ent_brain.lattice import Lattice, Span
from ent_brain.model import Streams
from ent_brain.tokens import BLANK

LOOK_AHEAD = 6
"""Number of frames whose token distributions are computed together. The predictor does not change
until a token is emitted, so a run of blanks needs no sequential steps."""

HASH_FACTOR = 6364136223846793005
"""Multiplier of the rolling hash of token sequences: an odd number of 63 bits, so that the product
wraps around without losing information."""

PRUNING_THRESHOLD = 6.0
"""Pruning threshold in nats. Hypotheses this far below the best one rarely win, but keep the whole
batch at the current frame."""

ROUNDS_BETWEEN_CHECKS = 8
"""Number of rounds between two checks whether all utterances have ended. A check makes the CPU wait
for the GPU."""


class Hypothesis(NamedTuple):
    """Decoded tokens and emotions of one utterance."""

    tokens: list
    """Token ids."""
    frames: list
    """Frame at which each token is emitted."""
    emotion_log_probs: Tensor | None
    """[T, E] for each frame; None if the model has neither emotion joint nor pooled head."""
    utterance_log_probs: Tensor | None
    """[E] for the utterance, from the pooled head, or the mean over frames if there is no head."""
    score: float
    """Log-probability in nats of the path's tokens and blanks. Beam search sums over all paths in
    the beam with these tokens. A language model adds its own score."""
    event_log_probs: Tensor | None = None
    """[E] from ``judge_events``."""


def greedy_search(model, features, frame_lens, max_symbols=32):
    """Greedy time-synchronous search over a batch.

    Each utterance gets the same result as alone. At frame t, the search takes the most probable
    output. A token is emitted and updates the predictor; t stays. Blank, or the ``max_symbols``-th
    token at this frame, advances t. The emotion of frame t comes from the emotion joint at frame t
    and the predictor's state when t advances. If the model has no emotion joint, it comes from the
    pooled head, applied to that one frame and state.

    Arguments
    ---------
    model : ENT or FENT
        In eval mode.
    features : Tensor
        [B, T, L, D]
    frame_lens : Tensor
        [B] int
    max_symbols : int
        Upper limit of the tokens at one frame.

    Returns
    -------
    list[Hypothesis]
        One per utterance, on the CPU.
    """
    return [best for (best,) in beam_search(model, features, frame_lens, 1, 1, max_symbols)]


@torch.no_grad()
def beam_search(model, features, frame_lens, beam_size=4, n_best=1, max_symbols=32):
    """Time-synchronous beam search over a batch.

    At frame t, each hypothesis either passes to the next frame with a blank, or emits a token and
    stays. Hypotheses with the same tokens at the same frame are merged, and their probabilities
    summed. The greedy hypothesis never leaves the beam. The best hypothesis is therefore at least
    as probable, and a beam size of 1 gives the greedy search.

    Arguments
    ---------
    model, features, frame_lens, max_symbols
        As for ``greedy_search``.
    beam_size : int
        Number of hypotheses in the beam.
    n_best : int
        Number of hypotheses to return for each utterance, at most ``beam_size``. The beam may hold
        fewer.

    Returns
    -------
    list[list[Hypothesis]]
        Hypotheses of each utterance, the best first, on the CPU. ``score`` sums over the alignments
        in the beam. Merged hypotheses have the ``frames`` of the most probable alignment.

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
def search(model, encoded, frame_lens, beam_size=1, n_best=1, max_symbols=32, language_model=None):
    """``beam_search`` over encoder streams that ``model.encode`` has already computed.

    A beam size of 1 uses greedy search, several frames at a time. A model without a token joint has
    no lattice. Its tokens are the best path of the CTC head for any beam size.

    ``language_model`` (language_model.TokenScorer) adds to the score of each token in the beam, and
    subtracts the transducer's own expectation: the log-probability of the token among all tokens at
    the mean encoder output of the utterance. Greedy search and the CTC head do not use it.
    """
    sizes = beam_size, n_best, max_symbols
    paths = find_paths(model, encoded, frame_lens, *sizes, language_model)
    counts = torch.tensor([len(n_paths) for n_paths in paths], device=frame_lens.device)
    hypotheses = iter(
        judge_frames(
            model,
            Streams(*(stream.repeat_interleave(counts, 0) for stream in encoded)),
            frame_lens.repeat_interleave(counts),
            [path for n_paths in paths for path in n_paths],
        )
    )
    return [list(islice(hypotheses, len(n_paths))) for n_paths in paths]


@torch.no_grad()
def find_paths(
    model, encoded, frame_lens, beam_size, n_best, max_symbols, language_model=None, before=()
):
    """Find the tokens of utterances, as ``search`` does, without their emotions.

    Arguments
    ---------
    model, encoded, frame_lens, beam_size, n_best, max_symbols, language_model
        As for ``search``.
    before : sequence of int
        Tokens before the first frame, the same for all utterances. The predictor and the language
        model have read them; the paths do not contain them.

    Returns
    -------
    list[list[TokenPath]]
        Paths of each utterance, the best first.
    """
    if not 1 <= n_best <= beam_size:
        raise ValueError(f"n_best {n_best}: not from 1 to beam_size {beam_size}")
    if not model.token_joints and model.ctc_head is None:
        return [[TokenPath([], [], 0.0)] for _ in frame_lens]
    if not model.token_joints:
        return _ctc_paths(model, encoded, frame_lens)
    if beam_size == 1:
        return _greedy_paths(model, encoded, frame_lens, max_symbols, before)
    sizes = beam_size, n_best, max_symbols
    return _beam_paths(model, encoded, frame_lens, *sizes, language_model, before)


@torch.no_grad()
def judge_events(model, encoded, hypotheses, decoder):
    """Compute with the pooled head how probable each emotion is during its own event.

    The frame probabilities locate an event for each emotion. The pooled head classifies these
    events more accurately, because it sees a whole event at once. A sum over frames would count the
    evidence that neighbouring frames share several times.

    Arguments
    ---------
    model : ENT or FENT
        In eval mode.
    encoded : Streams
        [B, T, D] each, the encoder streams that the search used.
    hypotheses : list[Hypothesis]
    decoder : SegmentDecoder
        Decoder whose ``events`` are classified, if its method is ``lasting_event``.

    Returns
    -------
    list[Hypothesis]
        With ``event_log_probs``, if there are a pooled head and events. Otherwise unchanged.
    """
    if model.pooled_head is None or decoder.method != "lasting_event":
        return hypotheses
    tokens, token_lens = pad_tokens(hypotheses, encoded.emotion.device)
    intervals = []
    for own_tokens, frames, log_probs, *_ in hypotheses:
        intervals.append([])
        for emotion, (a, b) in decoder.events(log_probs).items():
            c = bisect_left(frames, a)
            d = bisect_left(frames, b) if b < len(log_probs) else len(own_tokens) + 1
            intervals[-1].append(Span(emotion, a, b, c, max(c + 1, d)))
    logits = model.classify_intervals(encoded, model.predict(tokens, token_lens), intervals)
    judged = logits.float().log_softmax(-1).cpu().split([len(spans) for spans in intervals])
    return [
        hypothesis._replace(event_log_probs=_own_emotion(log_probs, [s.emotion for s in spans]))
        for hypothesis, spans, log_probs in zip(hypotheses, intervals, judged, strict=True)
    ]


def _own_emotion(log_probs, emotions):
    """Log-probability [E] of each event's own emotion from [K, E]; -inf if there is no event."""
    own = torch.full_like(log_probs[0], -torch.inf)
    own[emotions] = log_probs[range(len(emotions)), emotions]
    return own


def pad_tokens(hypotheses, device):
    """Pad the tokens of hypotheses: token ids [B, U] and token counts [B]."""
    tokens = [torch.tensor(hypothesis.tokens, dtype=torch.long) for hypothesis in hypotheses]
    token_lens = torch.tensor([len(row) for row in tokens], device=device)
    return torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True).to(device), token_lens


class TokenPath(NamedTuple):
    """Tokens of an utterance, their frames, and the path's log-probability."""

    tokens: list
    frames: list
    score: float


class _Reader:
    """Feeds tokens one by one to the predictors of the token joints.

    It merges the predictor's projection and the joint's projection, two linear maps, into one.

    Arguments
    ---------
    model : ENT or FENT
    """

    def __init__(self, model):
        self.model = model
        self.sides = [  # each token joint has its own predictor
            (
                joint.predictor_side.weight @ predictor.projection.weight,
                joint.predictor_side(predictor.projection.bias),
            )
            for joint, predictor in zip(model.token_joints, model.predictors, strict=True)
        ]

    def start(self, before, rows):
        """Predictor sides [rows, 1, J] and states after blank and the tokens ``before``."""
        device = self.sides[0][0].device
        sides, states = self(torch.tensor([BLANK, *before], device=device).expand(rows, -1))
        return [side[:, -1:] for side in sides], states

    def __call__(self, tokens, states=None):
        """Predictor sides [N, U, J] for each token joint after tokens [N, U], and the states."""
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


def _greedy_paths(model, encoded, frame_lens, max_symbols, before=()):
    """The greedy path of each utterance, [[TokenPath]]."""
    device = frame_lens.device
    rows = torch.arange(len(frame_lens), device=device)[:, None]
    ahead = torch.arange(LOOK_AHEAD, device=device)
    last = (frame_lens - 1)[:, None]
    read = _Reader(model)
    sides, states = read.start(before, len(rows))
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
        # Frames left by a blank: the whole window, or the frames before the first token.
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


def _ctc_paths(model, encoded, frame_lens):
    """The best path of the CTC head for each utterance, [[TokenPath]].

    A run of frames with the same token gives one token, at its first frame.
    """
    best, outputs = model.ctc_head(encoded.vocabulary).float().log_softmax(-1).max(-1)
    valid = torch.arange(outputs.size(1), device=outputs.device) < frame_lens[:, None]
    before = torch.nn.functional.pad(outputs[:, :-1], (1, 0), value=BLANK)
    begins = (outputs != before) & (outputs != BLANK) & valid
    scores = (best * valid).sum(1).tolist()
    return [
        [TokenPath(ids[starts].tolist(), starts.nonzero()[:, 0].tolist(), score)]
        for ids, starts, score in zip(outputs.cpu(), begins.cpu(), scores, strict=True)
    ]


def _beam_paths(
    model, encoded, frame_lens, beam_size, n_best, max_symbols, language_model=None, before=()
):
    """The most probable paths of each utterance, [[TokenPath]], the best first.

    In each round, every hypothesis at the current frame either passes to the next frame or emits a
    token. When all have passed, the search advances to the next frame. All hypotheses still at the
    frame have therefore emitted equally many tokens there, and two of them with the same tokens can
    be merged.
    """
    device = frame_lens.device
    rows = torch.arange(len(frame_lens), device=device)[:, None]
    slots = torch.arange(beam_size, device=device).expand(len(rows), -1)
    last = (frame_lens - 1)[:, None]
    read = _Reader(model)
    sides, states = read.start(before, slots.numel())
    lattices = read.lattices(encoded, [side.view(*slots.shape, -1) for side in sides])
    # The search starts with one hypothesis. Slot 0 always holds the greedy one.
    score = torch.zeros(slots.shape, device=device).masked_fill_(slots > 0, -torch.inf)
    passed = torch.zeros_like(slots, dtype=torch.bool)
    sequence = torch.zeros_like(slots)  # hash of the tokens, equal for equal sequences
    time, symbols = torch.zeros_like(last), torch.zeros_like(last)
    if language_model is not None:
        context = reduce(language_model.advance, before, language_model.start)
        contexts = [[context] * beam_size for _ in rows]
        means = [_mean_frame(lattice, frame_lens) for lattice in lattices]
    history = []
    while len(history) % ROUNDS_BETWEEN_CHECKS or bool((time <= last).any()):
        nodes = [lattice.at(rows, time.minimum(last), slots) for lattice in lattices]
        log_probs = torch.cat(nodes, -1).log_softmax(-1)
        if language_model is not None:
            gains = language_model.gains([context for row in contexts for context in row])
            log_probs = log_probs + gains.view(log_probs.shape).to(device)
        if language_model is not None and language_model.prior_weight:
            nodes = [
                lattice._replace(enc=mean).at(rows, torch.zeros_like(slots), slots)
                for lattice, mean in zip(lattices, means, strict=True)
            ]
            prior = torch.cat(nodes, -1)[..., 1:].log_softmax(-1)  # without blank
            log_probs[..., 1:] -= language_model.prior_weight * prior
        greedy = log_probs[:, 0].argmax(-1, keepdim=True)
        waits = passed | (time > last)
        greedy_emits = (greedy != BLANK) & ~waits[:, :1]
        moves = (score[..., None] + log_probs).masked_fill_(waits[..., None], -torch.inf)

        # Candidates: every slot, passing, and equally many emissions, the greedy one first.
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

        # Merge hypotheses with the same tokens at the same frame: keep the most probable one, with
        # the sum of all.
        same = (sequence[:, :, None] == sequence[:, None]) & (
            at_next[:, :, None] == at_next[:, None]
        )
        totals = torch.where(same, total[:, None], -torch.inf)
        candidate = torch.arange(total.size(1), device=device)
        most_probable = totals.argmax(-1) == candidate
        total = totals.logsumexp(-1)
        is_greedy = candidate == torch.where(greedy_emits, beam_size, 0)
        holds_greedy = (same & is_greedy[:, None]).any(-1) & most_probable
        survives = most_probable & (total >= total.amax(1, keepdim=True) - PRUNING_THRESHOLD)
        total = total.masked_fill(~(survives | holds_greedy), -torch.inf)
        kept = total.masked_fill(holds_greedy, torch.inf).topk(beam_size).indices

        score, sequence, token, parent = (
            values.gather(1, kept) for values in (total, sequence, token, parent)
        )
        history.append(torch.stack((token, time.expand_as(token), parent)))
        if language_model is not None:
            contexts = [
                [language_model.advance(row[slot], new) for slot, new in zip(*moved, strict=True)]
                for row, *moved in zip(contexts, parent.tolist(), token.tolist(), strict=True)
            ]
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
    if language_model is not None:
        ends = [[language_model.end(context) for context in row] for row in contexts]
        score = score + torch.tensor(ends, device=device)
    return _trace(torch.stack(history).cpu(), *(best.cpu() for best in score.topk(n_best)))


def _mean_frame(lattice, frame_lens):
    """Mean encoder side [B, 1, J] of each utterance."""
    valid = torch.arange(lattice.enc.size(1), device=frame_lens.device) < frame_lens[:, None]
    return (lattice.enc * valid[..., None]).sum(1, keepdim=True) / frame_lens[:, None, None]


def _trace(history, scores, slot):
    """Trace the slots [B, N] back through the rounds [R, 3, B, K] of token, frame and parent."""
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
    """Compute the emotions of all frames and utterances, given the tokens.

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
    # When frame t advances, the predictor has read the tokens emitted up to frame t.
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
    # One copy to the CPU for the whole batch.
    of_frames, of_utterance = (
        [None] * len(paths) if values is None else values.cpu()
        for values in (of_frames, of_utterance)
    )
    return [
        Hypothesis(tokens, frames, each if each is None else each[:length].clone(), whole, score)
        for (tokens, frames, score), each, whole, length in zip(
            paths, of_frames, of_utterance, frame_lens.tolist(), strict=True
        )
    ]


def _flat(lists, device):
    return torch.tensor(list(chain.from_iterable(lists)), dtype=torch.long, device=device)
