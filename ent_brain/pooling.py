"""Losses of the emotion lattice: max pooling, pooling over the alignment, and known intervals.

No function stores a T x U x J hidden layer.
"""

import torch
from torch.autograd.function import once_differentiable

from ent_brain.emotions import PUBLISHED
from ent_brain.lattice import (
    Span,
    backpropagate,
    node_logits,
    split_tensors,
    sum_type,
    tile_logits,
    tiles,
)
from ent_brain.transducer import PROBABILITY_FLOOR, reduce_losses, transducer_alignment

POOLING_MODES = ("one", "full_t", "full_u", "mil")
"""Modes of ``lattice_pooling_loss``."""

SUPERVISED_MODES = ("supervised", "supervised_aligned")
"""Lattice losses of known intervals: ``supervised_lattice_loss``, ``supervised_aligned_loss``."""

DROPPED_POSTERIOR = 1e-3
"""Share of a frame's alignment that ``aligned`` pooling may leave out, at most."""


def lattice_pooling_loss(
    lattice,
    emotions,
    frame_lens,
    token_lens,
    mode="one",
    neutral=PUBLISHED.neutral_index,
    reduction="mean",
):
    """Lattice max pooling: an utterance's label trains the node that shows it best.

    With p the softmax of the emotion joint at each valid node, y the utterance's emotion and n
    neutral:

    * ``one``: -log max p_y - log min p_n, for every utterance (the paper's code);
    * ``full_t``: for the frame of each of those two nodes, the mean over its token positions;
    * ``full_u``: for the token position of each, the mean over its frames;
    * ``mil``: emotional utterances -log max p_y, neutral ones -log min p_n.

    Arguments
    ---------
    lattice : Lattice
        Of the emotion joint.
    emotions : Tensor
        [B] class indices.
    frame_lens, token_lens : Tensor
        [B] int.
    mode : str
        ``one``, ``full_t``, ``full_u`` or ``mil``.
    neutral : int or None
        Class index of neutral. Where a label set has none, ``one``, ``full_t`` and ``full_u`` have
        no second half, and in ``mil`` every utterance is emotional.
    reduction : str
        ``mean`` over utterances, ``sum`` or ``none``.

    Returns
    -------
    Tensor
        Scalar, or [B] for ``none``.

    Raises
    ------
    ValueError
        If the mode is unknown.

    Source: Shen et al., ICASSP 2024, section 2.3.
    """
    if mode not in POOLING_MODES:
        raise ValueError(f"unknown lattice pooling mode {mode!r}: one, full_t, full_u or mil")
    # Without a neutral label the second column is not used.
    second = emotions if neutral is None else torch.full_like(emotions, neutral)
    present = torch.stack((emotions, second), 1)
    frames, positions = _extreme_nodes(lattice, present, frame_lens, token_lens)
    rows = torch.arange(len(emotions), device=emotions.device)[:, None]
    if mode in ("one", "mil"):
        nodes = lattice.at(rows, frames, positions)[:, :, None]
        valid = torch.ones_like(nodes[..., 0], dtype=torch.bool)
    elif mode == "full_t":
        line, last = torch.arange(lattice.pred.size(1), device=rows.device), token_lens[:, None]
        # In the padding the last valid node again, as NaN there times 0 would be NaN.
        nodes = lattice.at(rows[..., None], frames[..., None], line.minimum(last)[:, None])
        valid = (line <= last).unsqueeze(1)
    else:
        line, last = torch.arange(lattice.enc.size(1), device=rows.device), frame_lens[:, None] - 1
        nodes = lattice.at(rows[..., None], line.minimum(last)[:, None], positions[..., None])
        valid = (line <= last).unsqueeze(1)
    probabilities = nodes.softmax(-1).gather(
        -1, present[:, :, None, None].expand(*nodes.shape[:-1], 1)
    )
    surprise = -log_probability(probabilities.squeeze(-1)) * valid
    terms = surprise.sum(-1) / valid.sum(-1)
    if neutral is None:
        return reduce_losses(terms[:, 0], reduction)
    if mode == "mil":
        return reduce_losses(torch.where(emotions == neutral, terms[:, 1], terms[:, 0]), reduction)
    return reduce_losses(terms.sum(1), reduction)


def aligned_pooling_loss(
    token_lattices,
    emotion_lattice,
    tokens,
    emotions,
    frame_lens,
    token_lens,
    top=0.3,
    neutral=PUBLISHED.neutral_index,
    blank=0,
    reduction="mean",
    posteriors=None,
):
    """Lattice pooling where the alignment passes.

    The emotion distribution of frame t is the emotion joint's, averaged over token positions with
    the alignment's weights g(t, u), which are held constant. A neutral utterance trains all its
    frames towards neutral; an emotional one its ``top`` most emotional frames towards its emotion
    and away from the others (SPEC: multiple-instance learning with a top-k pool).

    Arguments
    ---------
    token_lattices, tokens, frame_lens, token_lens, blank
        As for ``transducer_alignment``.
    emotion_lattice : Lattice
        Of the emotion joint.
    emotions : Tensor
        [B] class indices.
    top : float
        Share of an utterance's frames, in (0, 1], that an emotion is expected to cover.
    neutral : int or None
        Class index of neutral; every utterance is emotional where a label set has none.
    reduction : str
        ``mean`` over utterances, ``sum`` or ``none``.
    posteriors : Tensor, optional
        [B, T, U+1] of ``transducer_alignment`` where a step has computed them already.

    Returns
    -------
    Tensor
        Scalar, or [B] for ``none``.
    """
    if posteriors is None:
        with torch.no_grad():
            posteriors = transducer_alignment(
                token_lattices, tokens, frame_lens, token_lens, blank
            ).posteriors
    frame_probs = aligned_emotions(emotion_lattice, posteriors, token_lens)
    valid = torch.arange(frame_probs.size(1), device=frame_probs.device) < frame_lens[:, None]
    count = (top * frame_lens).long().clamp(min=1)[:, None, None]
    ranked = frame_probs.masked_fill(~valid[..., None], -1.0).sort(dim=1, descending=True).values
    kept = torch.arange(ranked.size(1), device=ranked.device)[None, :, None] < count
    pooled = (ranked * kept).sum(1) / count[:, 0]
    classes = torch.arange(pooled.size(1), device=pooled.device)
    others = classes != emotions[:, None]
    if neutral is not None:
        others &= classes != neutral
    present = -log_probability(pooled.gather(1, emotions[:, None])[:, 0])
    absent = -(log_probability(1 - pooled) * others).sum(1)
    if neutral is None:
        return reduce_losses(present + absent, reduction)
    calm = (-log_probability(frame_probs[..., neutral]) * valid).sum(1) / frame_lens
    return reduce_losses(torch.where(emotions == neutral, calm, present + absent), reduction)


def supervised_lattice_loss(lattice, intervals, frame_lens, token_lens, reduction="mean"):
    """Cross-entropy over the lattice region of each known interval.

    The region of interval k is ((t in [a, b)) or (u in [c, d))) and t < b and u < d: an L shape.
    Its loss is the mean of -log p over the region; summed over intervals.

    Arguments
    ---------
    lattice : Lattice
        Of the emotion joint.
    intervals : list[list[Span]]
        Intervals of each utterance.
    frame_lens, token_lens : Tensor
        [B] int.
    reduction : str
        ``mean`` over utterances, ``sum`` or ``none``.

    Returns
    -------
    Tensor
        Scalar, or [B] for ``none``.

    Raises
    ------
    ValueError
        If an interval is empty, leaves the utterance's lattice, or names no emotion of it.
    """
    emotions = lattice.bias.numel()
    sizes = zip(frame_lens.tolist(), token_lens.tolist(), strict=True)
    for row, (spans, (frames, tokens)) in enumerate(zip(intervals, sizes, strict=True)):
        for emotion, a, b, c, d in spans:
            if not 0 <= emotion < emotions:
                raise ValueError(f"utterance {row}: emotion {emotion} is not in 0..{emotions - 1}")
            if not (0 <= a < b <= frames and 0 <= c < d <= tokens + 1):
                raise ValueError(
                    f"utterance {row}: interval of frames [{a}, {b}) and positions [{c}, {d}) "
                    f"is empty or leaves the lattice of {frames} frames and {tokens} tokens"
                )
    most = max(len(spans) for spans in intervals)
    # An interval that ends at frame 0 has an empty region: the padding of shorter lists.
    padded = [list(spans) + [Span(0, 0, 0, 0, 0)] * (most - len(spans)) for spans in intervals]
    spans = torch.tensor(padded, device=lattice.enc.device).view(len(intervals), most, 5)
    return reduce_losses(_Regions.apply(spans, frame_lens, token_lens, *lattice), reduction)


def supervised_aligned_loss(
    emotion_lattice, posteriors, intervals, frame_lens, token_lens, reduction="mean"
):
    """Frame cross-entropy of known intervals, each frame's emotion averaged over the alignment.

    Where nothing is transcribed a frame has one node, of posterior 1: a plain frame classifier.

    Arguments
    ---------
    emotion_lattice : Lattice
        Of the emotion joint.
    posteriors : Tensor
        [B, T, U+1] of ``transducer_alignment``.
    intervals : list[list[Span]]
        Intervals of each utterance; each frame lies in one of them.
    frame_lens, token_lens : Tensor
        [B] int.
    reduction : str
        ``mean`` over utterances, ``sum`` or ``none``.

    Returns
    -------
    Tensor
        Of each utterance the mean over its frames; a scalar, or [B] for ``none``.

    Example
    -------
    >>> from ent_brain.lattice import Lattice
    >>> lattice = Lattice(*(torch.zeros(size) for size in [(1, 3, 2), (1, 1, 2), (4, 2), (4,)]))
    >>> known = [[(3, 0, 2, 0, 1), (0, 2, 3, 0, 1)]]  # two neutral frames, then a happy one
    >>> lens = torch.tensor([3]), torch.tensor([0])
    >>> supervised_aligned_loss(lattice, torch.ones(1, 3, 1), known, *lens)  # log 4: knows nothing
    tensor(1.3863)
    """
    probs = aligned_emotions(emotion_lattice, posteriors, token_lens)
    target = torch.zeros(probs.shape[:2], dtype=torch.long, device=probs.device)
    for row, spans in enumerate(intervals):
        for emotion, start, end, *_ in spans:
            target[row, start:end] = emotion
    valid = torch.arange(probs.size(1), device=probs.device) < frame_lens[:, None]
    surprise = -log_probability(probs.gather(-1, target[..., None])[..., 0]) * valid
    return reduce_losses(surprise.sum(1) / frame_lens, reduction)


def aligned_emotions(emotion_lattice, posteriors, token_lens):
    """Emotion distribution of each frame, averaged over the alignment.

    Nodes of negligible posterior are not evaluated: those left out of a frame add up to at most
    ``DROPPED_POSTERIOR``, which bounds the error of each probability.

    Arguments
    ---------
    emotion_lattice : Lattice
    posteriors : Tensor
        [B, T, U+1] of ``transducer_alignment``.
    token_lens : Tensor
        [B] int.

    Returns
    -------
    Tensor
        [B, T, E]; rows of valid frames sum to 1 but for what was left out.
    """
    return _AlignedEmotions.apply(posteriors, token_lens, *emotion_lattice)


def log_probability(probabilities):
    return probabilities.clamp(PROBABILITY_FLOOR, 1.0).log()


class _AlignedEmotions(torch.autograd.Function):
    """Softmax of the nodes on the alignment, summed over a frame's by posterior: [B, T, E]."""

    @staticmethod
    def forward(ctx, posteriors, token_lens, *tensors):
        threshold = DROPPED_POSTERIOR / (token_lens + 1)
        nodes = (posteriors > threshold[:, None, None]).nonzero(as_tuple=True)
        batch, frames, _ = posteriors.shape
        result = posteriors.new_zeros(batch * frames, tensors[-1].numel())
        for (rows, times, positions), logits in node_logits(split_tensors(tensors), nodes):
            # Few emotions are normalised many times faster along the first dimension.
            shares = posteriors[rows, times, positions] * logits.T.softmax(0)
            result.index_add_(0, rows * frames + times, shares.T.to(result.dtype))
        ctx.save_for_backward(posteriors, *nodes, *tensors)
        return result.view(batch, frames, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_emotions):
        posteriors, *nodes = ctx.saved_tensors[:4]
        tensors = ctx.saved_tensors[4:]

        def grad_logits(run, logits):
            rows, times, _ = run
            share, grad = logits.T.softmax(0), grad_emotions[rows, times].T
            grad = share * (grad - (share * grad).sum(0))
            return grad.mul_(posteriors[run]).T

        return None, None, *backpropagate(split_tensors(tensors), nodes, grad_logits)


class _Regions(torch.autograd.Function):
    """Sum over intervals of the mean cross-entropy over their regions, [B]."""

    @staticmethod
    def forward(ctx, spans, frame_lens, token_lens, *tensors):
        device = spans.device
        t = torch.arange(int(frame_lens.max()), device=device)[:, None]
        u = torch.arange(int(token_lens.max()) + 1, device=device)
        used = torch.zeros(len(spans), len(t), len(u), dtype=torch.bool, device=device)
        for span in spans.unbind(1):
            used |= _inside(span[..., None, None], t, u)
        nodes = used.nonzero(as_tuple=True)
        total = tensors[0].new_zeros(len(spans), dtype=sum_type(tensors[0]))
        for run, logits in node_logits(split_tensors(tensors), nodes):
            surprise = logits.log_softmax(-1).mul_(_class_weights(spans, run, logits))
            total.index_add_(0, run[0], surprise.sum(-1), alpha=-1)
        ctx.save_for_backward(spans, *nodes, *tensors)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total):
        spans, *nodes = ctx.saved_tensors[:4]
        tensors = ctx.saved_tensors[4:]

        def grad_logits(run, logits):
            weights = _class_weights(spans, run, logits)
            grad = logits.softmax(-1).mul_(weights.sum(-1, keepdim=True)).sub_(weights)
            return grad.mul_(grad_total[run[0], None])

        return None, None, None, *backpropagate(split_tensors(tensors), nodes, grad_logits)


def _inside(span, t, u):
    """Whether nodes lie in the region of a span [B, 5, ...], the numbers of a ``Span``."""
    _, a, b, c, d = span.unbind(1)
    return (t < b) & (u < d) & ((t >= a) | (u >= c))


def _class_weights(spans, nodes, logits):
    """Weight of each class at each of a run of nodes, [n, E]."""
    rows, frames, positions = nodes
    weights = torch.zeros_like(logits)
    for span in spans[rows].unbind(1):
        emotion, a, b, c, d = span.unbind(1)
        share = _inside(span, frames, positions).to(weights.dtype) / (b * d - a * c).clamp(min=1)
        weights.scatter_add_(1, emotion[:, None], share[:, None])
    return weights


@torch.no_grad()
def _extreme_nodes(lattice, classes, frame_lens, token_lens):
    """Nodes of the largest p of the first class and the smallest p of the second.

    Returns
    -------
    (Tensor, Tensor)
        Frames and positions, [B, 2].
    """
    best = lattice.enc.new_full((2, len(classes)), -torch.inf, dtype=sum_type(lattice.enc))
    nodes = torch.zeros_like(classes.T)
    columns = lattice.pred.size(1)
    sign = torch.tensor([[1], [-1]], device=classes.device)
    for tile in tiles([lattice], frame_lens, token_lens):
        logits = tile_logits([lattice], tile)
        t, u = tile.grid(classes.device)
        frames, tokens = frame_lens[tile.rows, None, None], token_lens[tile.rows, None, None]
        valid = ((t < frames) & (u <= tokens)).flatten(1)
        wanted = classes.T[:, tile.rows, None].expand(2, *valid.shape).flatten(1)
        # Few emotions are normalised many times faster along the first dimension.
        log_probs = logits.flatten(0, 2).T.log_softmax(0).gather(0, wanted).mul_(sign)
        value, index = log_probs.view(2, *valid.shape).where(valid, -torch.inf).max(-1)
        width = tile.positions.stop
        node = (tile.frames.start + index // width) * columns + index % width
        better = value > best[:, tile.rows]
        nodes[:, tile.rows] = torch.where(better, node, nodes[:, tile.rows])
        best[:, tile.rows] = torch.where(better, value, best[:, tile.rows])
    nodes = nodes.T
    return nodes // columns, nodes % columns
