"""The transducer lattice of a joint network, described by four small tensors and never stored.

A joint network over T frames and U+1 token positions has T x (U+1) nodes; node (t, u) of an
utterance carries ``weight @ tanh(enc[t] + pred[u]) + bias``. Storing the hidden layer of every
node is what fills memory. Whoever needs all nodes reads them tile by tile: ``tiles`` cuts the valid
ones into rectangles that fit a cache and ``tile_logits`` evaluates one. Whoever needs some nodes
lists them: ``node_logits`` evaluates a list run by run, and ``backpropagate`` is the backward pass,
which evaluates the nodes again instead of keeping their hidden layers.
"""

from typing import NamedTuple

import torch
from torch import Tensor

TILE_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Numbers that the widest layer of one tile may hold, or as many as the output's weight has where
that is more: on a CPU the tile stays in its cache, on a GPU it is large enough to fill the device.
"""

PADDED_SHARE = {"cpu": 0.0, "cuda": 0.25}
"""Share of padded nodes that a tile over several utterances may hold: a CPU takes utterances of
one size together and every other alone; a GPU would rather compute some padding than wait."""


class Lattice(NamedTuple):
    """``logits[b, t, u] = weight @ tanh(enc[b, t] + pred[b, u]) + bias`` of every node.

    ``Joint.lattice`` of ``ent_brain.model`` makes one; four tensors of any other joint network with
    a sum and a tanh do as well.
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
        """Logits of all nodes, [B, T, U+1, outputs]: for tests and pictures only."""
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
        """Logits of hidden nodes; half precision multiplies, sums that follow are in float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            logits = torch.nn.functional.linear(
                hidden, self.weight.to(hidden.dtype), self.bias.to(hidden.dtype)
            )
        return logits if logits.dtype == torch.float64 else logits.float()


class Tile(NamedTuple):
    """A rectangle of nodes: some utterances, a run of their frames, all their token positions."""

    rows: slice | Tensor
    """N utterances: a slice of one, or [N] indices."""
    frames: slice
    positions: slice

    def of_nodes(self, values):
        """The tile of a tensor over all nodes: [B, T, U+1, ...] -> [N, frames, positions, ...]."""
        return values[self.rows, self.frames, self.positions]

    def grid(self, device):
        """Frame index [frames, 1] and position index [1, positions] of the tile's nodes."""
        frames = torch.arange(self.frames.start, self.frames.stop, device=device)
        positions = torch.arange(self.positions.stop, device=device)
        return frames[:, None], positions[None, :]


def tiles(lattices, frame_lens, token_lens):
    """Cut the valid nodes of a batch into tiles.

    Arguments
    ---------
    lattices : sequence of Lattice
        Lattices that are read together.
    frame_lens, token_lens : Tensor
        [B], int; a node is valid where t < frame_len and u <= token_len.

    Returns
    -------
    list[Tile]
        Every valid node is in exactly one tile; the frames of an utterance come in order.
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
        alone = slice(group[0], group[0] + 1)
        rows = alone if len(group) == 1 else torch.tensor(group, device=device)
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
    """Logits of a list of nodes, as many at once as fit a tile's budget; no graph.

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
    """Gradients of the lattices' tensors from the gradient of the logits of some nodes.

    Arguments
    ---------
    lattices : sequence of Lattice
    nodes : tuple of Tensor
        Utterances, frames and positions of the nodes whose logits have a gradient, int64 [N] each.
    grad_logits : callable
        ``grad_logits(run, logits)`` returns the gradient of the logits [n, outputs] of a run of
        the nodes, and may overwrite them.

    Returns
    -------
    list[Tensor]
        enc, pred, weight and bias gradients of each lattice in turn, in the tensors' own types.
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
            # In one pass and in place: grad_hidden * (1 - hidden^2).
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
            # A sum of two rows of one table: they are gathered and added in a single pass.
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
    """Half precision as float32 on a CPU, whose tanh is several times slower in half precision."""
    return tensor.to(sum_type(tensor)) if tensor.device.type == "cpu" else tensor


def _nodes_at_once(lattices):
    elements = TILE_ELEMENTS.get(lattices[0].enc.device.type, TILE_ELEMENTS["cuda"])
    # A wide vocabulary's weight is read, and its gradient written, once a tile: a tile as large
    # as the weight costs no more memory than they do.
    elements = max(elements, *(lattice.weight.numel() for lattice in lattices))
    outputs = sum(lattice.bias.numel() for lattice in lattices)
    return max(1, elements // max(outputs, *(lattice.enc.size(2) for lattice in lattices)))


def sum_type(tensor):
    """The type in which numbers of a tensor are added up: float32, or float64 for float64."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def split_tensors(tensors):
    """Lattices of their tensors in a row, as autograd functions take them (list[Lattice])."""
    return [Lattice(*tensors[i : i + 4]) for i in range(0, len(tensors), 4)]
