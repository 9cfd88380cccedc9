"""The exact transducer loss and the posteriors of its alignments, on a lattice that is not stored.

``ent_brain.lattice`` describes the lattice. The forward pass stores only two numbers per node:
log p(blank) and log p(next token).
"""

import math
from typing import NamedTuple

import torch
import torchaudio  # noqa: F401  registers the transducer kernel
from torch import Tensor
from torch.autograd.function import once_differentiable

from ent_brain.lattice import backpropagate, split_tensors, sum_type, tile_logits, tiles

PROBABILITY_FLOOR = 1e-8
"""Lower bound of emotion probabilities before their logarithm, as in the paper's code."""


class Alignment(NamedTuple):
    """Results of the sum over all alignments of an utterance's tokens with its frames."""

    nll: Tensor
    """[B] -log P(tokens) in nats, with a graph."""
    posteriors: Tensor
    """[B, T, U+1] posterior of each node's blank arc: the probability that frame t ends at position
    u. It sums to 1 over u at every valid frame and is 0 elsewhere; no graph."""


def transducer_alignment(lattices, tokens, frame_lens, token_lens, blank=0, fastemit=0.0):
    """Sum over all alignments: the transducer's likelihood and its arc posteriors in one pass.

    Only log p(blank) and log p(next token) of a node enter the sum (Graves 2012). Therefore, a tile
    of nodes is normalised over all outputs and reduced to these two numbers. The backward pass
    computes each tile again.

    Arguments
    ---------
    lattices : sequence of Lattice
        Lattices whose concatenated outputs form the token distribution: one lattice for ENT, the
        blank and the vocabulary lattice for FENT.
    tokens : Tensor
        [B, U] token ids, any value in the padding.
    frame_lens, token_lens : Tensor
        [B] int, at least 1 frame and at least 0 tokens.
    blank : int
        Index of blank among the outputs.
    fastemit : float
        Weight of FastEmit (Yu et al. 2021, arXiv 2010.11148). It multiplies the gradient of token
        arcs by 1 + weight and does not change the loss. 0 gives the exact gradient; a small weight
        keeps alignments narrow, which greedy search needs.

    Returns
    -------
    Alignment

    Raises
    ------
    ValueError
        If an utterance has no frame, if a length exceeds its tensor, or if a token is blank or not
        an output.
    """
    _check(lattices, tokens, frame_lens, token_lens, blank)
    tensors = [tensor for lattice in lattices for tensor in lattice]
    nll, arcs = _Transducer.apply(tokens, frame_lens, token_lens, blank, fastemit, *tensors)
    return Alignment(nll, arcs[0])


def transducer_loss(lattices, tokens, frame_lens, token_lens, blank=0, reduction="mean"):
    """Exact transducer loss (Graves 2012) of a joint network whose lattice is never stored.

    It has the same value and gradient as ``torchaudio.functional.rnnt_loss`` on the dense logits.

    Arguments
    ---------
    lattices, tokens, frame_lens, token_lens, blank
        As for ``transducer_alignment``.
    reduction : str
        ``mean`` over utterances (not divided by length), ``sum`` or ``none``.

    Returns
    -------
    Tensor
        Scalar, or [B] for ``none``, in nats.

    Example
    -------
    >>> from torchaudio.functional import rnnt_loss
    >>> from ent_brain.lattice import Lattice
    >>> _ = torch.manual_seed(0)
    >>> enc, pred = torch.randn(1, 4, 8), torch.randn(1, 3, 8)
    >>> lattice = Lattice(enc, pred, weight=torch.randn(5, 8), bias=torch.zeros(5))
    >>> batch = torch.tensor([[2, 4]]), torch.tensor([4]), torch.tensor([2])
    >>> loss = transducer_loss([lattice], *batch)
    >>> dense = rnnt_loss(lattice.dense(), *(part.int() for part in batch), blank=0)
    >>> bool(torch.isclose(loss, dense))
    True
    """
    nll = transducer_alignment(lattices, tokens, frame_lens, token_lens, blank).nll
    return reduce_losses(nll, reduction)


def arc_log_probs(lattices, tokens, frame_lens, token_lens, blank=0):
    """Log-probabilities of the arcs of each node: log p(blank) and log p(next token).

    Arguments
    ---------
    lattices, tokens, frame_lens, token_lens, blank
        As for ``transducer_alignment``, with the same errors.

    Returns
    -------
    Tensor
        [2, B, T, U+1] with the largest lengths T and U; -inf at invalid nodes. The token arc of
        position ``token_len``, which has no next token, is undefined.
    """
    _check(lattices, tokens, frame_lens, token_lens, blank)
    return _arc_log_probs(lattices, tokens, frame_lens, token_lens, blank)[0]


def next_token_loss(logits, tokens, token_lens):
    """Cross-entropy of the language-model head.

    Arguments
    ---------
    logits : Tensor
        [B, U+1, V]; position u predicts token u+1, the last position ``<sos/eos>``, id V-1.
    tokens : Tensor
        [B, U] ids.
    token_lens : Tensor
        [B] int.

    Returns
    -------
    Tensor
        Scalar: the mean over valid positions.
    """
    position = torch.arange(logits.size(1), device=logits.device)
    targets = torch.nn.functional.pad(tokens, (0, 1))
    targets = targets.masked_fill(position == token_lens[:, None], logits.size(2) - 1)
    valid = position <= token_lens[:, None]
    return torch.nn.functional.cross_entropy(logits[valid], targets[valid])


def ctc_loss(logits, tokens, frame_lens, token_lens, blank=0):
    """Loss of connectionist temporal classification (Graves et al. 2006) for each utterance.

    Arguments
    ---------
    logits : Tensor
        [B, T, V] for each frame.
    tokens : Tensor
        [B, U] ids.
    frame_lens, token_lens : Tensor
        [B] int
    blank : int

    Returns
    -------
    Tensor
        [B] -log P(tokens) in nats. 0, without gradient, if there are too few frames: each token
        needs one, and a repeated token one more.

    Example
    -------
    >>> logits = torch.zeros(1, 2, 3)  # one token in two frames: 3 of 9 equally likely paths
    >>> ctc_loss(logits, torch.tensor([[1]]), torch.tensor([2]), torch.tensor([1])).exp()
    tensor([3.])
    """
    return torch.nn.functional.ctc_loss(
        logits.float().log_softmax(-1).transpose(0, 1),
        tokens,
        frame_lens,
        token_lens,
        blank,
        reduction="none",
        zero_infinity=True,
    )


def reduce_losses(losses, reduction):
    if reduction == "none":
        return losses
    if reduction not in ("mean", "sum"):
        raise ValueError(f"unknown reduction {reduction!r}: mean, sum or none")
    return losses.mean() if reduction == "mean" else losses.sum()


class _Transducer(torch.autograd.Function):
    """Transducer likelihood and blank-arc posteriors; the backward pass computes nodes again."""

    @staticmethod
    def forward(ctx, tokens, frame_lens, token_lens, blank, fastemit, *tensors):
        lattices = split_tensors(tensors)
        arcs, following = _arc_log_probs(lattices, tokens, frame_lens, token_lens, blank)
        nll = _sum_alignments(arcs, frame_lens, token_lens)
        # Every alignment leaves each frame exactly once. Normalising corrects the rounding errors
        # of float32 sums over a thousand steps.
        arcs /= arcs[0].sum(2, keepdim=True).clamp(min=PROBABILITY_FLOOR)
        ctx.save_for_backward(arcs, following, *tensors)
        ctx.blank, ctx.fastemit = blank, fastemit
        ctx.mark_non_differentiable(arcs)
        return nll, arcs

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_nll, _):
        arcs, following, *tensors = ctx.saved_tensors

        def grad_logits(nodes, logits):
            rows, frames, positions = nodes
            # d nll / d log p(arc) = -posterior of the arc, and the softmax's own derivative.
            taken = arcs[:, rows, frames, positions] * grad_nll[rows]
            taken[1] *= 1 + ctx.fastemit
            grad = logits.softmax(-1).mul_(taken.sum(0)[:, None])
            grad[:, ctx.blank] -= taken[0]
            return grad.scatter_add_(1, following[rows, positions, None], -taken[1, :, None])

        # The skipped nodes of a frame or a position sum to less than the rounding of its total.
        # Subnormal numbers would also make the products many times slower.
        negligible = torch.finfo(arcs.dtype).eps / sum(arcs.shape[2:])
        nodes = (arcs.sum(0) > negligible).nonzero(as_tuple=True)
        gradients = backpropagate(split_tensors(tensors), nodes, grad_logits)
        return None, None, None, None, None, *gradients


def _arc_log_probs(lattices, tokens, frame_lens, token_lens, blank):
    """``arc_log_probs``, and the next token of each position [B, U+1]."""
    frames, positions = int(frame_lens.max()), int(token_lens.max()) + 1
    # Next token of position u. The last position has none, so any valid index will do.
    ended = torch.arange(positions, device=tokens.device) >= token_lens[:, None]
    padded = torch.nn.functional.pad(tokens[:, : positions - 1], (0, 1))
    following = padded.long().masked_fill(ended, blank)
    first = lattices[0].enc
    arcs = first.new_full((2, len(first), frames, positions), -torch.inf, dtype=sum_type(first))
    for tile in tiles(lattices, frame_lens, token_lens):
        log_probs = tile_logits(lattices, tile).log_softmax(-1)
        arcs[0][tile] = log_probs[..., blank]
        arcs[1][tile] = _gather(log_probs, following, tile)
    return arcs, following


def _sum_alignments(arcs, frame_lens, token_lens):
    """Sum over alignments, and replace the arcs' log-probabilities by their posteriors in place.

    Arguments
    ---------
    arcs : Tensor
        [2, B, T, U+1] log-probabilities of blank and of the next token, with the largest lengths T
        and U. Values at invalid nodes, and for the token of the last position, are ignored.

    Returns
    -------
    Tensor
        -log P [B].
    """
    if arcs.is_cuda and arcs.dtype == torch.float32 and arcs.size(3) > 1:
        return _kernel(arcs, frame_lens, token_lens)  # faster than one launch per diagonal
    return _sweep(arcs, frame_lens, token_lens)


def _kernel(arcs, frame_lens, token_lens):
    """``_sum_alignments`` with torchaudio's kernel: float32, at least one token.

    Class 1 of the kernel stands for the next token. We call the operator behind
    ``torchaudio.functional.rnnt_loss``, because it returns the gradient together with the loss.
    """
    lengths = [n.to(arcs.device, torch.int32) for n in (frame_lens, token_lens)]
    targets = torch.ones(arcs[0, :, 0, 1:].shape, dtype=torch.int32, device=arcs.device)
    operators = torch.ops.torchaudio
    # torchaudio 2.8 has the operator under the loss's own name.
    operator = getattr(operators, "rnnt_loss_forward", None) or operators.rnnt_loss
    nll, grad = operator(
        arcs.movedim(0, -1).contiguous(),
        targets,
        *lengths,
        blank=0,
        clamp=-1.0,
        fused_log_softmax=False,
    )
    torch.neg(grad.movedim(-1, 0), out=arcs)
    return nll


def _sweep(arcs, frame_lens, token_lens):
    """``_sum_alignments`` along the lattice's anti-diagonals, in plain tensor operations.

    Node (t, u) lies on diagonal t + u, and its two predecessors lie on the diagonal before. A
    diagonal is therefore one step for the whole batch. The backward sums, from a node to the end,
    are forward sums in the lattice rotated by 180 degrees, and are computed in the same steps.
    """
    _, batch, frames, positions = arcs.shape
    t = torch.arange(frames + 1, device=arcs.device)[:, None]
    u = torch.arange(positions, device=arcs.device)
    frame_lens, token_lens = frame_lens[:, None, None], token_lens[:, None, None]
    outside = (t >= frame_lens) | (u > token_lens)
    arcs.masked_fill_(outside[:, :-1], -torch.inf)
    arcs[1].masked_fill_(u == token_lens, -torch.inf)
    # After its last blank, an utterance's path continues at no cost to the common last corner.
    arcs[0].masked_fill_(((t >= frame_lens) & (u == positions - 1))[:, :-1], 0.0)
    blank, token = arcs[0], torch.nn.functional.pad(arcs[1], (0, 0, 0, 1), value=-torch.inf)
    token.masked_fill_((t == frame_lens) & (u >= token_lens), 0.0)

    # [diagonals, 2 x B x (U+1)]. ``ways``: the arc into each node from the frame before, later
    # replaced by the sum over the paths to the node. ``steps``: the arc from the position before.
    width = 2 * batch * positions
    ways = arcs.new_full((frames + positions, width), -torch.inf)
    steps = ways.clone()

    def nodes(diagonals):
        """Views of the nodes and of the rotated nodes: [B, T+1, U+1] each."""
        size, strides = (batch, frames + 1, positions), (positions, width, width + 1)
        return [diagonals.as_strided(size, strides, half) for half in (0, width // 2)]

    for places, arriving in zip(nodes(ways), (blank, blank.flip(1, 2)), strict=True):
        places[:, 1:] = arriving
    for places, arriving in zip(
        nodes(steps), (token[..., :-1], token[..., :-1].flip(1, 2)), strict=True
    ):
        places[..., 1:] = arriving
    del token, arriving
    ways[0, ::positions] = 0.0
    for before, here, from_left in zip(ways[:-1], ways[1:], steps[1:], strict=True):
        here.add_(before)
        # No arc leads into a row's first position, so the value added there has no effect.
        from_left[1:].add_(before[:-1])
        torch.logaddexp(here, from_left, out=here)

    before, turned = nodes(ways)
    after = turned.flip(1, 2)
    arcs += before[:, :-1]
    arcs[0] += after[:, 1:]
    arcs[1, ..., :-1] += after[:, :-1, 1:]
    log_likelihood = after[:, 0, 0]
    arcs.sub_(log_likelihood[:, None, None]).masked_fill_(outside[:, :-1], -torch.inf)
    # On a CPU, infinities make exp many times slower, and subnormal numbers all later operations.
    least = 1e3 * torch.finfo(arcs.dtype).tiny
    torch.nn.functional.threshold_(arcs.clamp_(min=math.log(least)).exp_(), 2 * least, 0.0)
    return -log_likelihood


def _gather(logits, following, tile):
    return logits.gather(-1, _next(following, tile, logits)).squeeze(-1)


def _next(following, tile, logits):
    """Output index of each node's next token, [N, frames, positions, 1]."""
    index = following[tile.rows, tile.positions]
    return index[:, None, :, None].expand(*logits.shape[:-1], 1)


def _check(lattices, tokens, frame_lens, token_lens, blank):
    outputs = sum(lattice.bias.numel() for lattice in lattices)
    batch, frames = lattices[0].enc.shape[:2]
    positions = lattices[0].pred.size(1)
    if not 0 <= blank < outputs:
        raise ValueError(f"blank {blank} is not one of {outputs} outputs")
    if len(frame_lens) != batch or len(token_lens) != batch or len(tokens) != batch:
        raise ValueError(f"{batch} utterances in the lattice, other counts of lengths or tokens")
    if frame_lens.min() < 1 or frame_lens.max() > frames:
        raise ValueError(f"frame lengths must lie in 1..{frames}: {frame_lens.tolist()}")
    if token_lens.min() < 0 or token_lens.max() > min(positions - 1, tokens.size(1)):
        raise ValueError(
            f"token lengths must lie in 0..{min(positions - 1, tokens.size(1))}: "
            f"{token_lens.tolist()}"
        )
    used = torch.arange(tokens.size(1), device=tokens.device) < token_lens[:, None]
    ids = tokens[used]
    if len(ids) and (ids.min() < 0 or ids.max() >= outputs or (ids == blank).any()):
        raise ValueError(f"token ids must lie in 0..{outputs - 1} and not be blank ({blank})")
