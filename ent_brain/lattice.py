"""The transducer lattice of a joint network: four small tensors, from which nodes are computed.

A joint network over T frames and U+1 token positions has T x (U+1) nodes. Node (t, u) of an
utterance has the logits ``weight @ tanh(enc[t] + pred[u]) + bias``. Storing the hidden layer of
every node would fill the memory, so the lattice is never stored.

Code that needs all nodes reads them tile by tile: ``tiles`` cuts the valid nodes into rectangles
that fit a cache, and ``tile_logits`` evaluates one. Code that needs some nodes lists them:
``node_logits`` evaluates a list in runs. ``backpropagate`` is the backward pass; it evaluates the
nodes again instead of storing their hidden layers.
"""

from typing import NamedTuple

import torch
from torch import Tensor

TILE_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Upper limit of the elements in the widest layer of one tile, or the size of the output's weight
if that is larger. On a CPU the tile stays in its cache; on a GPU it is large enough to fill the
device."""

PADDED_SHARE = {"cpu": 0.0, "cuda": 0.25}
"""Upper limit of the share of padded nodes in a tile of several utterances. A CPU combines only
utterances of one size; a GPU computes some padding rather than idle."""


class Lattice(NamedTuple):
    """``logits[b, t, u] = weight @ tanh(enc[b, t] + pred[b, u]) + bias`` of every node.

    ``Joint.lattice`` of ``ent_brain.model`` makes one. The four tensors may come from any joint
    network with a sum and a tanh.
    """

    enc: Tensor
    """[B, T, J], encoder side after its projection."""
    pred: Tensor
    """[B, U+1, J], predictor side after its projection."""
    weight: Tensor
    """[outputs, J]"""
    bias: Tensor
    """[outputs]"""

    def dense(self):
        """Logits of all nodes, [B, T, U+1, outputs], for tests and pictures only."""
        return self._output(torch.tanh(self.enc[:, :, None] + self.pred[:, None]))

    def at(self, rows, frames, positions):
        """Logits of chosen nodes, with a graph.

        Arguments
        ---------
        rows, frames, positions : Tensor
            Utterance, frame and token position of each node, int64 of one shape [...].

        Returns
        -------
        Tensor
            [..., outputs], float32 or wider.
        """
        return self._output(torch.tanh(self.enc[rows, frames] + self.pred[rows, positions]))

    def _output(self, hidden):
        """Logits of hidden nodes. The product may be in half precision; the result is float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            logits = torch.nn.functional.linear(
                hidden, self.weight.to(hidden.dtype), self.bias.to(hidden.dtype)
            )
        return logits if logits.dtype == torch.float64 else logits.float()


class Span(NamedTuple):
    """An interval of one emotion in an utterance's lattice; its ends are excluded."""

    emotion: int
    """Class index."""
    frame_start: int
    frame_end: int
    token_start: int
    """Token position u."""
    token_end: int
    """U+1 at most, because an utterance has one position more than tokens."""


class Tile(NamedTuple):
    """A rectangle of nodes: some utterances, a run of their frames, all their token positions."""

    rows: slice | Tensor
    """N utterances: a slice of length 1, or indices [N]."""
    frames: slice
    positions: slice

    def grid(self, device):
        """Frame indices [frames, 1] and position indices [1, positions] of the tile's nodes."""
        frames = torch.arange(self.frames.start, self.frames.stop, device=device)
        positions = torch.arange(self.positions.stop, device=device)
        return frames[:, None], positions[None, :]


def tiles(lattices, frame_lens, token_lens):
    """Cut the valid nodes of a batch into tiles.

    Arguments
    ---------
    lattices : sequence of Lattice
        Lattices that are evaluated together.
    frame_lens, token_lens : Tensor
        [B], int; a node is valid if t < frame_len and u <= token_len.

    Returns
    -------
    list[Tile]
        Every valid node is in exactly one tile. The frames of an utterance are in order.
    """
    device = lattices[0].enc.device
    budget = _nodes_at_once(lattices)
    slack = PADDED_SHARE.get(device.type, PADDED_SHARE["cuda"])
    sizes = list(zip(frame_lens.tolist(), [n + 1 for n in token_lens.tolist()], strict=True))
    order = sorted(range(len(sizes)), key=lambda row: sizes[row], reverse=True)
    result = []
    while order:
        group = [order.pop(0)]
        frames, positions = sizes[group[0]]
        valid = frames * positions
        while order:
            grown = max(positions, sizes[order[0]][1])
            nodes = (len(group) + 1) * frames * grown
            grown_valid = valid + sizes[order[0]][0] * sizes[order[0]][1]
            if nodes > budget or nodes - grown_valid > slack * nodes:
                break
            group.append(order.pop(0))
            positions, valid = grown, grown_valid
        single = slice(group[0], group[0] + 1)
        rows = single if len(group) == 1 else torch.tensor(group, device=device)
        step = max(1, budget // (len(group) * positions))
        result += [
            Tile(rows, slice(start, min(start + step, frames)), slice(0, positions))
            for start in range(0, frames, step)
        ]
    return result


def tile_logits(lattices, tile):
    """Logits of a tile, the outputs of all lattices side by side.

    Returns
    -------
    Tensor
        [N, frames, positions, outputs], float32 or wider.
    """
    return _side_by_side([lattice._output(_hidden(lattice, tile)) for lattice in lattices])


def node_logits(lattices, nodes):
    """Evaluate a list of nodes in runs of a tile's size, without a graph.

    Arguments
    ---------
    lattices : sequence of Lattice
    nodes : tuple of Tensor
        Utterances, frames and positions, int64 [N] each.

    Yields
    ------
    (tuple of Tensor, Tensor)
        A run of the nodes, and their logits [n, outputs], float32 or wider.
    """
    for run, _, logits in _evaluate(lattices, nodes):
        yield run, logits


def backpropagate(lattices, nodes, grad_logits):
    """Compute the gradients of the lattices' tensors from those of some nodes' logits.

    Arguments
    ---------
    lattices : sequence of Lattice
    nodes : tuple of Tensor
        Utterances, frames and positions of the nodes whose logits have a gradient, int64 [N] each.
    grad_logits : callable
        ``grad_logits(run, logits)`` returns the gradient of the logits [n, outputs] of a run of
        the nodes. It may overwrite the logits.

    Returns
    -------
    list[Tensor]
        Gradients of enc, pred, weight and bias of each lattice in turn, in the tensors' types.
    """
    sums = [
        [tensor.new_zeros(tensor.shape, dtype=sum_type(tensor)) for tensor in lattice]
        for lattice in lattices
    ]
    outputs = [lattice.bias.numel() for lattice in lattices]
    for run, layers, logits in _evaluate(lattices, nodes):
        grads = grad_logits(run, logits).split(outputs, -1)
        for lattice, layer, grad, totals in zip(lattices, layers, grads, sums, strict=True):
            enc, pred, weight, bias = totals
            hidden, enc_rows, pred_rows = layer
            bias += grad.sum(0)
            grad = grad.to(hidden.dtype)
            if grad.dtype == weight.dtype:
                weight.addmm_(grad.T, hidden)
            else:
                weight += grad.T @ hidden
            grad_hidden = grad @ lattice.weight.to(hidden.dtype)
            # grad_hidden * (1 - hidden^2), in one pass and in place.
            torch.ops.aten.tanh_backward.grad_input(grad_hidden, hidden, grad_input=grad_hidden)
            enc.flatten(0, 1).index_add_(0, enc_rows, grad_hidden.to(enc.dtype))
            pred.flatten(0, 1).index_add_(0, pred_rows, grad_hidden.to(pred.dtype))
    return [
        total.to(tensor.dtype)
        for lattice, totals in zip(lattices, sums, strict=True)
        for tensor, total in zip(lattice, totals, strict=True)
    ]


def _evaluate(lattices, nodes):
    """Yield runs of the nodes, (hidden, encoder row, predictor row) of each lattice, and logits."""
    tables = [
        _as_hidden(torch.cat((each.enc.flatten(0, 1), each.pred.flatten(0, 1))))
        for each in lattices
    ]
    runs = (each.split(_nodes_at_once(lattices)) for each in nodes)
    for rows, frames, positions in zip(*runs, strict=True):
        layers = []
        for lattice, table in zip(lattices, tables, strict=True):
            enc_rows = rows * lattice.enc.size(1) + frames
            pred_rows = rows * lattice.pred.size(1) + positions
            pairs = torch.stack((enc_rows, pred_rows + len(lattice.enc) * lattice.enc.size(1)), 1)
            # Gathers two rows of one table and adds them in a single pass.
            hidden = torch.nn.functional.embedding_bag(pairs, table, mode="sum").tanh_()
            layers.append((hidden, enc_rows, pred_rows))
        logits = [
            lattice._output(layer[0]) for lattice, layer in zip(lattices, layers, strict=True)
        ]
        yield (rows, frames, positions), layers, _side_by_side(logits)


def _side_by_side(logits):
    return torch.cat(logits, -1) if len(logits) > 1 else logits[0]


def _hidden(lattice, tile):
    enc = _as_hidden(lattice.enc[tile.rows, tile.frames])
    pred = _as_hidden(lattice.pred[tile.rows, tile.positions])
    return torch.tanh_(enc[:, :, None] + pred[:, None])


def _as_hidden(tensor):
    """Convert half precision to float32 on a CPU, whose tanh is several times faster there."""
    return tensor.to(sum_type(tensor)) if tensor.device.type == "cpu" else tensor


def _nodes_at_once(lattices):
    elements = TILE_ELEMENTS.get(lattices[0].enc.device.type, TILE_ELEMENTS["cuda"])
    # Each tile reads the output's weight and writes its gradient. A tile as large as the weight
    # needs no more memory than these.
    elements = max(elements, *(lattice.weight.numel() for lattice in lattices))
    outputs = sum(lattice.bias.numel() for lattice in lattices)
    return max(1, elements // max(outputs, *(lattice.enc.size(2) for lattice in lattices)))


def sum_type(tensor):
    """Return the dtype for sums of a tensor's elements: float32, or float64 for float64."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def split_tensors(tensors):
    """Build lattices (list[Lattice]) from a flat list of their tensors."""
    return [Lattice(*tensors[i : i + 4]) for i in range(0, len(tensors), 4)]
