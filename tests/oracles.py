"""Reference implementations for tests: the definitions, in plain loops.

They share no code with the package: every path is walked, every node visited, every frame decoded
by itself. ``random_lattices`` and ``random_batch`` make what both sides are tried on.
"""

import contextlib
import itertools
import math
from typing import NamedTuple
from unittest import mock

import torch

from ent_brain import lattice as lattice_module
from ent_brain.lattice import Lattice

SIZES = [(6, 3), (2, 0), (6, 3), (1, 5), (4, 2)]
"""(frames, tokens) of each utterance in a batch: two utterances are equal, the others differ."""

PLANS = {"one by one": (10_000, 0.0), "cut": (30, 0.0), "together": (10_000, 1.0)}
"""Tile budgets and padded shares: whole utterances, runs of frames, all utterances in one."""


@contextlib.contextmanager
def plan(elements, padded_share):
    """Set the tile planner's budget and the share of padding that it accepts."""
    with (
        mock.patch.dict(lattice_module.TILE_ELEMENTS, {"cpu": elements}),
        mock.patch.dict(lattice_module.PADDED_SHARE, {"cpu": padded_share}),
    ):
        yield


class Batch(NamedTuple):
    tokens: torch.Tensor
    frame_lens: torch.Tensor
    token_lens: torch.Tensor


def random_lattices(sizes, outputs, width=5, seed=0, dtype=torch.float32, scale=1.0):
    """Lattices with gradients for (frames, tokens) of each utterance, one per number of outputs."""
    generator = torch.Generator().manual_seed(seed)
    frames, tokens = (max(column) for column in zip(*sizes, strict=True))

    def tensor(*shape):
        values = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
        return values.to(dtype).requires_grad_()

    return [
        Lattice(
            enc=tensor(len(sizes), frames, width),
            pred=tensor(len(sizes), tokens + 1, width),
            weight=tensor(count, width),
            bias=tensor(count),
        )
        for count in outputs
    ]


def random_batch(sizes, vocab_size, blank=0, seed=0):
    """Token ids other than blank, with blank in the padding, and the lengths."""
    generator = torch.Generator().manual_seed(seed)
    frame_lens, token_lens = (torch.tensor(column) for column in zip(*sizes, strict=True))
    shape = (len(sizes), int(token_lens.max()))
    tokens = (blank + torch.randint(1, vocab_size, shape, generator=generator)) % vocab_size
    padding = torch.arange(shape[1]) >= token_lens[:, None]
    return Batch(tokens.masked_fill(padding, blank), frame_lens, token_lens)


def copies(lattices, dtype=torch.float64):
    """Copy lattices as leaves of another dtype."""
    return [Lattice(*(x.detach().to(dtype).requires_grad_() for x in each)) for each in lattices]


def gradients(loss, lattices):
    return torch.autograd.grad(loss, [tensor for lattice in lattices for tensor in lattice])


def dense_logits(lattices):
    """Logits [B, T, U+1, outputs] of all nodes, with the outputs of all lattices concatenated."""
    hidden = [torch.tanh(each.enc.unsqueeze(2) + each.pred.unsqueeze(1)) for each in lattices]
    return torch.cat(
        [h @ each.weight.T + each.bias for h, each in zip(hidden, lattices, strict=True)], -1
    )


# The transducer (Graves 2012).


def alignments(frames, tokens):
    """Every path through a lattice: lists of (t, u, is_token) arcs that end with a blank."""
    steps = frames + tokens - 1
    for token_steps in itertools.combinations(range(steps), tokens):
        arcs, t, u = [], 0, 0
        for step in range(steps):
            arcs.append((t, u, step in token_steps))
            t, u = (t, u + 1) if step in token_steps else (t + 1, u)
        yield [*arcs, (t, u, False)]


def sum_over_alignments(log_probs, tokens, blank):
    """-log P and the posterior of each node's blank arc, by walking every alignment.

    ``log_probs`` are nested lists [T][U+1][V].
    """
    frames = len(log_probs)
    total, through = 0.0, [[0.0] * (len(tokens) + 1) for _ in log_probs]
    for arcs in alignments(frames, len(tokens)):
        probability = math.exp(
            math.fsum(log_probs[t][u][tokens[u] if emits else blank] for t, u, emits in arcs)
        )
        total += probability
        for t, u, emits in arcs:
            through[t][u] += 0.0 if emits else probability
    return -math.log(total), [[value / total for value in row] for row in through]


def forward_algorithm(log_blank, log_token):
    """-log P of one utterance from [T, U+1] log-probabilities, node by node, with a graph."""
    frames, positions = log_blank.shape
    alpha = {(0, 0): log_blank.new_zeros(())}
    for t, u in itertools.product(range(frames), range(positions)):
        arrivals = []
        if t:
            arrivals.append(alpha[t - 1, u] + log_blank[t - 1, u])
        if u:
            arrivals.append(alpha[t, u - 1] + log_token[t, u - 1])
        if arrivals:
            alpha[t, u] = torch.logsumexp(torch.stack(arrivals), 0)
    return -(alpha[frames - 1, positions - 1] + log_blank[-1, -1])


def transducer_nll(logits, batch, blank=0):
    """[B] -log P of dense logits, with a graph."""
    losses = []
    for row, (tokens, frames, count) in enumerate(zip(*batch, strict=True)):
        log_probs = logits[row, :frames, : count + 1].log_softmax(-1)
        following = [*tokens[:count].tolist(), blank]
        log_token = log_probs[:, torch.arange(count + 1), following]
        losses.append(forward_algorithm(log_probs[..., blank], log_token))
    return torch.stack(losses)


def blank_posteriors(logits, batch, blank=0):
    """Posteriors [T, U+1] of each utterance: negative gradient of the loss by the blank arcs."""
    posteriors = []
    for row, (tokens, frames, count) in enumerate(zip(*batch, strict=True)):
        log_probs = logits[row, :frames, : count + 1].detach().log_softmax(-1)
        following = [*tokens[:count].tolist(), blank]
        log_blank = log_probs[..., blank].clone().requires_grad_()
        log_token = log_probs[:, torch.arange(count + 1), following]
        nll = forward_algorithm(log_blank, log_token)
        posteriors.append(-torch.autograd.grad(nll, log_blank)[0])
    return posteriors


# Emotion losses (SPEC.md, section 4).


def clamped_log(probability):
    return probability.clamp(1e-8, 1.0).log()


def pooling(logits, emotions, batch, mode, neutral=3):
    """Lattice max pooling [B] from dense emotion logits, with a graph."""
    losses = []
    for row, emotion in enumerate(emotions.tolist()):
        frames, positions = int(batch.frame_lens[row]), int(batch.token_lens[row]) + 1
        p = logits[row].softmax(-1)
        value = p.tolist()
        nodes = list(itertools.product(range(frames), range(positions)))
        present = max(nodes, key=lambda node: value[node[0]][node[1]][emotion])
        absent = min(nodes, key=lambda node: value[node[0]][node[1]][neutral])

        def term(node, label, p=p, frames=frames, positions=positions):
            t, u = node
            pooled = {
                "one": [(t, u)],
                "mil": [(t, u)],
                "full_t": [(t, other) for other in range(positions)],
                "full_u": [(other, u) for other in range(frames)],
            }[mode]
            return -sum(clamped_log(p[each][label]) for each in pooled) / len(pooled)

        if mode == "mil":
            chosen = absent if emotion == neutral else present
            losses.append(term(chosen, emotion))
        else:
            losses.append(term(present, emotion) + term(absent, neutral))
    return torch.stack(losses)


def frame_emotions(logits, posteriors):
    """For each utterance, q [T, E] = sum over u of posterior(t, u) * softmax(logits)(t, u)."""
    return [
        (logits[row, : len(g), : g.size(1)].softmax(-1) * g[..., None]).sum(1)
        for row, g in enumerate(posteriors)
    ]


def aligned_pooling(frame_probs, emotions, top=0.3, neutral=3):
    """Pooling [B] over the frames of each utterance's emotion distributions [T, E]."""
    losses = []
    for q, emotion in zip(frame_probs, emotions.tolist(), strict=True):
        if emotion == neutral:
            losses.append(-clamped_log(q[:, neutral]).mean())
            continue
        count = max(1, math.floor(top * len(q)))
        pooled = {e: q[:, e].topk(count).values.mean() for e in range(q.size(1)) if e != neutral}
        loss = -clamped_log(pooled.pop(emotion))
        losses.append(loss - sum(clamped_log(1 - other) for other in pooled.values()))
    return torch.stack(losses)


def aligned_event(frame_probs, emotions, shortest, evidence, neutral=3):
    """Event loss [B] from emotion distributions [T, E], event by event."""
    losses = []
    for q, emotion in zip(frame_probs, emotions.tolist(), strict=True):
        scores = [score for _, _, score in events(q, emotion, shortest, neutral)]
        likelihood = (torch.stack(scores) * evidence).exp().mean().log() / evidence
        if emotion == neutral:
            likelihood = clamped_log(q[:, neutral]).sum()
        losses.append(-likelihood / len(q))
    return torch.stack(losses)


def events(q, emotion, shortest, neutral=3):
    """Start, end and log-probability of each possible event of an utterance, from q [T, E]."""
    frames = len(q)
    for start, end in itertools.combinations(range(frames + 1), 2):
        parts = [start, end - start, frames - end]
        lasts = parts[1] == frames or parts[1] >= shortest
        if lasts and all(part == 0 or part >= shortest for part in (parts[0], parts[2])):
            labels = [neutral] * start + [emotion] * parts[1] + [neutral] * parts[2]
            yield start, end, clamped_log(q[range(frames), labels]).sum()


def supervised(logits, intervals):
    """Sum [B] over intervals of the mean cross-entropy over their L-shaped regions."""
    log_probs = logits.log_softmax(-1)
    losses = []
    for row, spans in enumerate(intervals):
        loss = logits.new_zeros(())
        for emotion, a, b, c, d in spans:
            region = [
                (t, u)
                for t, u in itertools.product(range(logits.size(1)), range(logits.size(2)))
                if (a <= t < b or c <= u < d) and t < b and u < d
            ]
            loss = loss - sum(log_probs[row][node][emotion] for node in region) / len(region)
        losses.append(loss)
    return torch.stack(losses)


# The models (SPEC.md, section 3) and greedy search (section 5), one utterance at a time.


class PlainModel:
    """ENT or FENT for one utterance, in double precision, from the parameters only.

    A stream is 0 for emotion and -1 for vocabulary: the same one in ENT.
    """

    def __init__(self, model):
        self.weights = {name: value.detach().double() for name, value in model.named_parameters()}
        self.factorised = "predictors.1.embedding.weight" in self.weights
        self.streams = 2 if self.factorised else 1

    def encode(self, features, stream):
        """Encoder output [T, D] of features [T, L, D]."""
        stream %= self.streams
        x = features.double()
        if x.size(1) > 1:
            layer_weights = self.weights[f"mixes.{stream}.weights"].softmax(0)
            mixed = sum(w * x[:, k] for k, w in enumerate(layer_weights))
            x = self.weights[f"mixes.{stream}.gamma"] * mixed
        else:
            x = x[:, 0]
        ahead = self.lstm("encoder.ahead", list(x))
        back = self.lstm("encoder.back", list(x.flip(0)))[::-1]
        return torch.stack([torch.cat(both) for both in zip(ahead, back, strict=True)])

    def predict(self, tokens, stream):
        """Predictor output [U+1, D] of a list of token ids."""
        outputs, state = [], None
        for token in [0, *tokens]:
            output, state = self.predict_one(token, state, stream)
            outputs.append(output)
        return torch.stack(outputs)

    def predict_one(self, token, state, stream):
        prefix = f"predictors.{stream % self.streams}"
        embedded = self.weights[f"{prefix}.embedding.weight"][token]
        if f"{prefix}.mix.weight" in self.weights:  # one that sees the last tokens alone
            context = self.weights[f"{prefix}.mix.weight"].size(1) // len(embedded)
            state = [*(state or context * [0 * embedded]), embedded][-context:]
            hidden = self.linear(f"{prefix}.mix", torch.cat(state)).tanh()
        else:
            hidden, state = self.lstm_cell(f"{prefix}.rnn", embedded, state)
        return self.linear(f"{prefix}.projection", hidden), state

    def token_logits(self, encoded, predicted):
        """Token logits [V] of one node; both arguments are (emotion stream, vocabulary stream)."""
        if not self.factorised:
            return self.joint("token_joints.0", encoded[0], predicted[0])
        blank = self.joint("token_joints.0", encoded[0], predicted[0])
        vocabulary = self.joint("token_joints.1", encoded[1], predicted[1])
        return torch.cat((blank, vocabulary))

    def emotion_logits(self, encoded, predicted):
        return self.joint("emotion_joint", encoded[0], predicted[0])

    def head_logits(self, encoded, predicted):
        """Pooled head's logits [E] of one vector per side, of the emotion stream."""
        x = torch.cat((encoded, predicted))
        normal = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
        normal = normal * self.weights["pooled_head.norm.weight"]
        return self.linear("pooled_head.output", normal + self.weights["pooled_head.norm.bias"])

    def joint(self, prefix, encoded, predicted):
        encoder_side = self.linear(f"{prefix}.encoder_side", encoded)
        predictor_side = self.linear(f"{prefix}.predictor_side", predicted)
        return self.linear(f"{prefix}.output", torch.tanh(encoder_side + predictor_side))

    def linear(self, prefix, x):
        return self.weights[f"{prefix}.weight"] @ x + self.weights[f"{prefix}.bias"]

    def lstm(self, prefix, inputs):
        outputs, state = [], None
        for x in inputs:
            hidden, state = self.lstm_cell(prefix, x, state)
            outputs.append(hidden)
        return outputs

    def lstm_cell(self, prefix, x, state):
        size = self.weights[f"{prefix}.weight_hh_l0"].size(1)
        hidden, cell = state or (x.new_zeros(size), x.new_zeros(size))
        gates = self.weights[f"{prefix}.weight_ih_l0"] @ x + self.weights[f"{prefix}.bias_ih_l0"]
        gates = gates + self.weights[f"{prefix}.weight_hh_l0"] @ hidden
        gates = gates + self.weights[f"{prefix}.bias_hh_l0"]
        entry, forget, candidate, output = gates.chunk(4)
        cell = forget.sigmoid() * cell + entry.sigmoid() * candidate.tanh()
        hidden = output.sigmoid() * cell.tanh()
        return hidden, (hidden, cell)


class Decoded(NamedTuple):
    tokens: list
    frames: list
    predicted: list
    """Predictor output (emotion stream, vocabulary stream) at the end of each frame."""
    score: float


def greedy(plain, features, max_symbols):
    """Greedy search, symbol by symbol, for the features [T, L, D] of one utterance."""
    encoded = list(zip(plain.encode(features, 0), plain.encode(features, -1), strict=True))
    steps = [plain.predict_one(0, None, stream) for stream in (0, -1)]
    tokens, frames, left_with, score = [], [], [], 0.0
    for t in range(len(features)):
        emitted = 0
        while emitted < max_symbols:
            predicted = [output for output, _ in steps]
            log_probs = plain.token_logits(encoded[t], predicted).log_softmax(0).tolist()
            best = max(range(len(log_probs)), key=log_probs.__getitem__)
            score += log_probs[best]
            if best == 0:
                break
            tokens.append(best)
            frames.append(t)
            emitted += 1
            steps = [
                plain.predict_one(best, state, stream)
                for stream, (_, state) in zip((0, -1), steps, strict=True)
            ]
        left_with.append([output for output, _ in steps])
    return Decoded(tokens, frames, left_with, score)


class NodeReader:
    """Cached log-probabilities of an utterance's outputs at (frame, tokens so far)."""

    def __init__(self, plain, features):
        self.plain = plain
        self.encoded = list(zip(plain.encode(features, 0), plain.encode(features, -1), strict=True))
        self.steps = {(): [plain.predict_one(0, None, stream) for stream in (0, -1)]}
        self.known = {}

    def __call__(self, frame, tokens):
        if tokens not in self.steps:
            self.steps[tokens] = [
                self.plain.predict_one(tokens[-1], state, stream)
                for stream, (_, state) in zip((0, -1), self.steps[tokens[:-1]], strict=True)
            ]
        if (frame, tokens) not in self.known:
            predicted = [output for output, _ in self.steps[tokens]]
            logits = self.plain.token_logits(self.encoded[frame], predicted)
            self.known[frame, tokens] = logits.log_softmax(0).tolist()
        return self.known[frame, tokens]


def every_path(read, frames, max_symbols):
    """Probability of each token sequence over all paths; the last allowed token passes a frame."""
    total = {(): 0.0}
    for t in range(frames):
        at, total = total, {}
        for emitted in range(max_symbols + 1):
            emissions = {}
            for tokens, score in at.items():
                if emitted == max_symbols:
                    total[tokens] = add_logs(total.get(tokens, -math.inf), score)
                    continue
                for output, log_prob in enumerate(read(t, tokens)):
                    if output == 0:
                        total[tokens] = add_logs(total.get(tokens, -math.inf), score + log_prob)
                    else:
                        emissions[(*tokens, output)] = score + log_prob
            at = emissions
    return total


def beam(read, frames, beam_size, max_symbols, threshold):
    """{tokens: score} of the beam after the last frame, by dictionaries."""
    score, greedy_one = {((), False): 0.0}, ()
    for t in range(frames):
        score = {(tokens, False): total for (tokens, _), total in score.items()}
        greedy_passed = False
        for emitted in range(1, max_symbols + 1):
            emission_of_greedy = None
            if not greedy_passed:
                log_probs = read(t, greedy_one)
                best = max(range(len(log_probs)), key=log_probs.__getitem__)
                if best:
                    greedy_one = emission_of_greedy = (*greedy_one, best)
                greedy_passed = best == 0 or emitted == max_symbols
            candidates, emissions = [], []
            for (tokens, passed), total in score.items():
                log_probs = [0.0] if passed else read(t, tokens)
                candidates.append((tokens, True, total + log_probs[0]))
                emissions += [
                    ((*tokens, output), emitted == max_symbols, total + log_prob)
                    for output, log_prob in enumerate(log_probs)
                    if output
                ]
            # As many emissions compete as the beam has room for, the greedy one's always.
            emissions.sort(key=lambda each: (each[0] != emission_of_greedy, -each[2]))
            candidates += emissions[:beam_size]
            score = {}
            for tokens, passed, total in candidates:
                score[tokens, passed] = add_logs(score.get((tokens, passed), -math.inf), total)
            least, of_greedy = max(score.values()) - threshold, (greedy_one, greedy_passed)
            kept = [key for key in score if score[key] >= least or key == of_greedy]
            kept.sort(key=lambda key: (key != of_greedy, -score[key]))
            score = {key: score[key] for key in kept[:beam_size]}
    return {tokens: total for (tokens, _), total in score.items()}


def add_logs(a, b):
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
