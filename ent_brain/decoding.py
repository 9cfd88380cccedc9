"""Decoding: the words of an utterance, the frame of each token, and the emotions of frames."""

from bisect import bisect_left
from functools import reduce
from itertools import chain, islice
from typing import NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from ent_brain.lattice import Lattice, Span
from ent_brain.model import Streams
from ent_brain.tokens import BLANK

LOOK_AHEAD = 6
"""Number of frames whose token distributions are computed together. The predictor does not change
until a token is emitted, so a run of blanks needs no sequential steps."""

PRUNING_THRESHOLD = 6.0
"""Pruning threshold in nats. Hypotheses this far below the best one rarely win."""

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
        in the beam. Merged hypotheses keep the ``frames`` of the more probable one.

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


@torch.no_grad()
def finds_tokens(model, encoded, frame_lens):
    """Whether greedy search finds any token.

    The search needs not go on for it: until the first token, the predictor has read none.

    Arguments
    ---------
    model : ENT or FENT
        In eval mode, with token joints.
    encoded : Streams
        [B, T, D] each, from ``model.encode``.
    frame_lens : Tensor
        [B] number of frames.

    Returns
    -------
    Tensor
        [B] bool.
    """
    rows = torch.arange(len(frame_lens), device=frame_lens.device)[:, None]
    times = torch.arange(int(frame_lens.max()), device=frame_lens.device)[None]
    read = _Reader(model)
    sides, _ = read.start((), len(rows))
    nodes = [lattice.at(rows, times, 0) for lattice in read.lattices(encoded, sides)]
    emits = torch.cat(nodes, -1).argmax(-1) != BLANK
    return (emits & (times < frame_lens[:, None])).any(1)


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


class _Prefix:
    """A token sequence of a beam search. Each is made once, and read once by the predictors."""

    __slots__ = ("__weakref__", "context", "gains", "parent", "row", "sides", "states", "token")

    def __init__(self, row, parent=None, token=BLANK):
        self.row, self.parent, self.token = row, parent, token
        self.sides = self.states = None
        """Predictor side [J] of each token joint, and state of each predictor."""
        self.context = self.gains = None
        """State of the language model, and what it adds to the outputs' log-probabilities [V]."""


class _Nodes:
    """The lattice nodes of a batch, for any token sequences, in NumPy.

    Beam search looks at few nodes at a time, for which the calls of PyTorch take much longer than
    the computation.

    Arguments
    ---------
    model, encoded, frame_lens, language_model, before
        As for ``find_paths``.
    """

    def __init__(self, model, encoded, frame_lens, language_model, before):
        self._read = _Reader(model)
        sides, states = self._read.start(before, 1)
        lattices = self._read.lattices(encoded, sides)
        self._frames = [_array(lattice.enc) for lattice in lattices]
        lens = frame_lens.tolist()
        self._means = [
            np.stack([own[:length].mean(0) for own, length in zip(side, lens, strict=True)])
            for side in self._frames
        ]
        self._outputs = [(_array(lattice.weight).T, _array(lattice.bias)) for lattice in lattices]
        [self._first] = _apart(sides, states)
        self._language_model, self._before = language_model, before
        self._seen = model.settings["predictor_context"]
        self._known = {}
        """Sides and states of predictors that see few tokens, by these tokens."""
        self._prefixes = WeakValueDictionary()
        """Sequences by the sequence before their last token, and this token, while the beam has
        them."""

    def start(self, row):
        """The sequence (_Prefix) from which the search of an utterance starts."""
        prefix = reduce(self.after, self._before, _Prefix(row))
        prefix.sides, prefix.states = self._first
        if self._language_model is not None:
            advance, start = self._language_model.advance, self._language_model.start
            prefix.context = reduce(advance, self._before, start)
            self._add_gains([prefix])
        return prefix

    def after(self, prefix, token):
        """The sequence (_Prefix) that a token makes of another."""
        key = prefix, token
        found = self._prefixes.get(key)
        if found is None:
            found = self._prefixes[key] = _Prefix(prefix.row, *key)
        return found

    def read(self, prefixes):
        """Read the last tokens of sequences whose parents have been read."""
        if not prefixes:
            return
        keys = [self._key(prefix) for prefix in prefixes]
        found = {key: self._known.get(key) for key in keys}
        new = {key: each for key, each in zip(keys, prefixes, strict=True) if found[key] is None}
        if new:
            device = self._read.sides[0][0].device
            tokens = torch.tensor([[prefix.token] for prefix in new.values()], device=device)
            states = [
                tuple(torch.cat(parts, 1) for parts in zip(*of_one_predictor, strict=True))
                for of_one_predictor in zip(*(p.parent.states for p in new.values()), strict=True)
            ]
            found.update(zip(new, _apart(*self._read(tokens, states)), strict=True))
        if self._seen is not None:
            self._known.update(found)
        for key, prefix in zip(keys, prefixes, strict=True):
            prefix.sides, prefix.states = found[key]
        if self._language_model is not None:
            for prefix in prefixes:
                context = prefix.parent.context
                prefix.context = self._language_model.advance(context, prefix.token)
            self._add_gains(prefixes)

    def _key(self, prefix):
        """The tokens that the predictors see of a sequence; the sequence itself if they see all."""
        if self._seen is None:
            return prefix
        seen = []
        while prefix is not None and len(seen) < self._seen:
            seen.append(prefix.token)
            prefix = prefix.parent
        return tuple(seen)

    def _add_gains(self, prefixes):
        gains = self._language_model.gains([prefix.context for prefix in prefixes]).numpy()
        if weight := self._language_model.prior_weight:
            rows = [prefix.row for prefix in prefixes]
            logits = self._logits([mean[rows] for mean in self._means], prefixes)
            gains[:, 1:] -= weight * _log_softmax(logits[:, 1:])  # without blank
        for prefix, own in zip(prefixes, gains, strict=True):
            prefix.gains = own

    def log_probs(self, frames, prefixes):
        """Log-probabilities [N, V] of the outputs of N sequences, each at its own frame."""
        rows = [prefix.row for prefix in prefixes]
        logits = self._logits([side[rows, frames] for side in self._frames], prefixes)
        log_probs = _log_softmax(logits)
        if self._language_model is not None:
            log_probs += np.stack([prefix.gains for prefix in prefixes])
        return log_probs

    def _logits(self, frames, prefixes):
        """Logits [N, V] of N sequences at encoder sides [N, J] of each joint."""
        sides = zip(*(prefix.sides for prefix in prefixes), strict=True)
        logits = [
            np.tanh(of_frames + np.stack(of_prefixes)) @ weight + bias
            for of_frames, of_prefixes, (weight, bias) in zip(
                frames, sides, self._outputs, strict=True
            )
        ]
        return logits[0] if len(logits) == 1 else np.concatenate(logits, 1)


def _array(values):
    """A tensor's values as an array of float32 or float64."""
    wide = torch.promote_types(values.dtype, torch.float32)
    return values.detach().to(wide).cpu().numpy()


def _apart(sides, states):
    """The sides [J] and the states of each of N sequences, from [N, U, J] and those of all."""
    sides = zip(*(_array(side[:, -1]) for side in sides), strict=True)
    return [
        (own, [tuple(part[:, index : index + 1] for part in state) for state in states])
        for index, own in enumerate(sides)
    ]


def _log_softmax(logits):
    logits = logits - logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


class _Candidate(NamedTuple):
    """A hypothesis of a beam search."""

    prefix: _Prefix
    has_passed: bool
    """Whether the hypothesis has left the current frame."""
    score: float
    emitted: tuple
    """Frame of the last token, and this tuple of the tokens before; () if there is none."""


class _Beam:
    """The beam search of one utterance.

    In each round, every hypothesis at the current frame either passes to the next frame or emits a
    token. When all have passed, the search advances to the next frame. All hypotheses still at the
    frame have therefore emitted equally many tokens there, and two of them with the same tokens can
    be merged.
    """

    def __init__(self, prefix, beam_size, max_symbols):
        self.beam_size, self.max_symbols = beam_size, max_symbols
        self.candidates = [_Candidate(prefix, False, 0.0, ())]
        """The hypotheses, the greedy one first."""
        self.frame, self.symbols = 0, 0

    def waiting(self):
        """The hypotheses that are still at the current frame."""
        return [candidate for candidate in self.candidates if not candidate.has_passed]

    def advance(self, log_probs, after):
        """Make one round, from the log-probabilities [N, V] of the outputs of ``waiting``.

        ``after`` is ``_Nodes.after``.
        """
        waiting = self.waiting()
        is_last = self.symbols + 1 == self.max_symbols
        best = BLANK if self.candidates[0].has_passed else int(log_probs[0].argmax())
        totals = np.array([candidate.score for candidate in waiting])[:, None] + log_probs
        passing = iter(totals[:, BLANK].tolist())
        candidates = [
            each if each.has_passed else each._replace(has_passed=True, score=next(passing))
            for each in self.candidates
        ]
        greedy = candidates[0]

        # As many emissions as the beam has room for, the greedy one among them.
        totals, outputs = totals[:, 1:].ravel(), totals.shape[1] - 1
        ranked = totals
        if best != BLANK:
            ranked = totals.copy()
            ranked[best - 1] = np.inf
        size = min(self.beam_size, len(ranked))
        chosen = np.argpartition(ranked, -size)[-size:]
        for index, total in zip(chosen.tolist(), totals[chosen].tolist(), strict=True):
            parent, token = divmod(index, outputs)
            prefix, _, _, emitted = waiting[parent]
            prefix = after(prefix, token + 1)
            candidates.append(_Candidate(prefix, is_last, total, (self.frame, emitted)))
            if index == best - 1:
                greedy = candidates[-1]

        # Merge hypotheses with the same tokens at the same frame: keep the most probable one, with
        # the sum of all.
        merged = {}
        for candidate in sorted(candidates, key=_score, reverse=True):
            key = candidate.prefix, candidate.has_passed
            if key in merged:
                total = float(np.logaddexp(merged[key].score, candidate.score))
                candidate = merged[key]._replace(score=total)
            merged[key] = candidate
        greedy = merged.pop((greedy.prefix, greedy.has_passed))
        others = sorted(merged.values(), key=_score, reverse=True)[: self.beam_size - 1]
        least = max(each.score for each in (greedy, *others)) - PRUNING_THRESHOLD
        self.candidates = [greedy, *(each for each in others if each.score >= least)]
        self.symbols += 1
        if all(candidate.has_passed for candidate in self.candidates):
            self.frame, self.symbols = self.frame + 1, 0
            self.candidates = [each._replace(has_passed=False) for each in self.candidates]


def _score(candidate):
    return candidate.score


def _beam_paths(
    model, encoded, frame_lens, beam_size, n_best, max_symbols, language_model=None, before=()
):
    """The most probable paths of each utterance, [[TokenPath]], the best first."""
    nodes = _Nodes(model, encoded, frame_lens, language_model, before)
    beams = [_Beam(nodes.start(row), beam_size, max_symbols) for row in range(len(frame_lens))]
    lens = frame_lens.tolist()
    while active := [beam for beam, end in zip(beams, lens, strict=True) if beam.frame < end]:
        waiting = [beam.waiting() for beam in active]
        counts = [len(each) for each in waiting]
        frames = np.repeat([beam.frame for beam in active], counts)
        log_probs = nodes.log_probs(frames, [each.prefix for each in chain(*waiting)])
        log_probs = np.split(log_probs, np.cumsum(counts)[:-1])
        for beam, of_beam in zip(active, log_probs, strict=True):
            beam.advance(of_beam, nodes.after)
        met = [candidate.prefix for beam in active for candidate in beam.candidates]
        nodes.read([prefix for prefix in met if prefix.sides is None])
    return [_best_paths(beam.candidates, n_best, language_model) for beam in beams]


def _best_paths(candidates, n_best, language_model):
    """The best paths (list[TokenPath]) of the hypotheses that have reached the end."""
    if language_model is not None:
        candidates = [
            each._replace(score=each.score + language_model.end(each.prefix.context))
            for each in candidates
        ]
    return [_path(each) for each in sorted(candidates, key=_score, reverse=True)[:n_best]]


def _path(candidate):
    """The tokens and frames of a hypothesis (TokenPath)."""
    tokens, frames, prefix, emitted = [], [], candidate.prefix, candidate.emitted
    while emitted:
        frame, emitted = emitted
        tokens.append(prefix.token)
        frames.append(frame)
        prefix = prefix.parent
    return TokenPath(tokens[::-1], frames[::-1], candidate.score)


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
