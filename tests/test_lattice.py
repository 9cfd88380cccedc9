import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import PLANS, SIZES, copies, dense_logits, gradients, plan, random_lattices

from ent_brain.lattice import Lattice, backpropagate, node_logits, tile_logits, tiles


def lengths(sizes):
    return tuple(torch.tensor(column) for column in zip(*sizes, strict=True))


def indices(rows):
    return list(range(rows.start, rows.stop)) if isinstance(rows, slice) else rows.tolist()


def nodes_of(tile):
    t = range(tile.frames.start, tile.frames.stop)
    return list(itertools.product(indices(tile.rows), t, range(tile.positions.stop)))


def valid_nodes(sizes):
    return {
        (row, t, u)
        for row, (frames, tokens) in enumerate(sizes)
        for t, u in itertools.product(range(frames), range(tokens + 1))
    }


def test_dense_follows_the_definition_node_by_node():
    [lattice] = random_lattices([(3, 2), (2, 1)], [4], dtype=torch.float64)
    lattice = Lattice(*(x.detach() for x in lattice))
    dense = lattice.dense()
    assert dense.shape == (2, 3, 3, 4)
    for b, t, u, k in itertools.product(range(2), range(3), range(3), range(4)):
        hidden = [math.tanh(lattice.enc[b, t, j] + lattice.pred[b, u, j]) for j in range(5)]
        terms = [float(w) * h for w, h in zip(lattice.weight[k], hidden, strict=True)]
        expected = math.fsum([*terms, float(lattice.bias[k])])
        assert float(dense[b, t, u, k]) == pytest.approx(expected, abs=1e-12)


def test_chosen_nodes_have_the_dense_logits_and_gradients():
    [lattice] = random_lattices([(3, 2), (2, 1)], [4], dtype=torch.float64)
    rows, frames, positions = torch.tensor([[0, 1, 0], [0, 2, 2], [1, 0, 1]])
    chosen, dense = lattice.at(rows, frames, positions), dense_logits([lattice])
    expected = torch.stack([dense[0, 0, 1], dense[1, 2, 0], dense[0, 2, 1]])
    torch.testing.assert_close(chosen, expected)
    factors = torch.randn(3, 4, dtype=torch.float64)
    for ours, theirs in zip(
        gradients((chosen * factors).sum(), [lattice]),
        gradients((expected * factors).sum(), [lattice]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("stored", "given"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_logits_are_at_least_single_precision(stored, given):
    [lattice] = random_lattices([(2, 1)], [3], dtype=stored)
    tile = tiles([lattice], *lengths([(2, 1)]))[0]
    assert lattice.dense().dtype == given
    assert lattice.at(0, 1, 1).dtype == given
    assert tile_logits([lattice], tile).dtype == given


def test_autocast_does_not_narrow_the_logits():
    [lattice] = random_lattices([(2, 1)], [3])
    outside = lattice.dense()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lattice.dense(), outside)


sizes = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 6)), min_size=1, max_size=6)


@settings(max_examples=60)
@given(sizes, st.sampled_from([1, 20, 60, 200, 10_000]), st.sampled_from([0.0, 0.25, 1.0]))
def test_every_valid_node_is_in_exactly_one_tile(sizes, elements, padded_share):
    lattices = random_lattices(sizes, [2])
    with plan(elements, padded_share):
        planned = tiles(lattices, *lengths(sizes))
    counted = [node for tile in planned for node in nodes_of(tile)]
    assert len(counted) == len(set(counted))
    assert valid_nodes(sizes) <= set(counted)
    for row in range(len(sizes)):
        starts = [tile.frames.start for tile in planned if row in indices(tile.rows)]
        assert starts == sorted(starts)


@settings(max_examples=60)
@given(sizes, st.sampled_from([1, 20, 60, 200, 10_000]), st.sampled_from([0.0, 0.25, 1.0]))
def test_a_tile_keeps_to_its_budget_and_its_padded_share(sizes, elements, padded_share):
    lattices = random_lattices(sizes, [7], width=5)  # the widest layer is the output
    elements = max(elements, 7 * 5)  # the weight's size is no less
    with plan(elements, padded_share):
        planned = tiles(lattices, *lengths(sizes))
    for tile in planned:
        nodes = nodes_of(tile)
        one_frame = tile.frames.stop - tile.frames.start == 1 and len(indices(tile.rows)) == 1
        assert len(nodes) * 7 <= elements or one_frame
        assert len(set(nodes) - valid_nodes(sizes)) <= padded_share * len(nodes)


def test_utterances_of_one_size_share_a_tile_even_without_padding():
    lattices = random_lattices(SIZES, [2])
    with plan(10_000, 0.0):
        planned = tiles(lattices, *lengths(SIZES))
    assert sorted(indices(tile.rows) for tile in planned) == [[0, 2], [1], [3], [4]]


def test_utterances_of_unlike_sizes_share_a_tile_up_to_the_padded_share():
    sizes = [(3, 3), (9, 3), (8, 3)]  # together: 28 of 108 nodes are padding, 4 of 72 without one
    lattices = random_lattices(sizes, [2])
    with plan(10_000, 0.25):
        planned = tiles(lattices, *lengths(sizes))
    assert [indices(tile.rows) for tile in planned] == [[1, 2], [0]]


def test_a_small_budget_cuts_an_utterance_into_runs_of_frames():
    lattices = random_lattices([(5, 1)], [2], width=4)
    with plan(2 * 2 * 4, 0.0):  # two frames of two positions
        planned = tiles(lattices, *lengths([(5, 1)]))
    assert [(tile.frames.start, tile.frames.stop) for tile in planned] == [(0, 2), (2, 4), (4, 5)]


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("outputs", [[4], [1, 3]])
def test_tiles_read_the_dense_lattice(name, outputs):
    lattices = random_lattices(SIZES, outputs)
    dense = dense_logits(lattices)
    with plan(*PLANS[name]):
        for tile in tiles(lattices, *lengths(SIZES)):
            expected = dense[indices(tile.rows)][:, tile.frames, tile.positions]
            torch.testing.assert_close(tile_logits(lattices, tile), expected)


def test_a_tile_knows_where_its_nodes_are():
    lattices = random_lattices([(5, 2)], [2], width=4)
    with plan(2 * 3 * 4, 0.0):
        tile = tiles(lattices, *lengths([(5, 2)]))[1]
    t, u = tile.grid("cpu")
    assert (t + 0 * u).tolist() == [[2, 2, 2], [3, 3, 3]]
    assert (u + 0 * t).tolist() == [[0, 1, 2], [0, 1, 2]]


def some_nodes():
    """Every second valid node of the batch SIZES: rows, frames, positions."""
    return torch.tensor(sorted(valid_nodes(SIZES))[::2]).unbind(1)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("outputs", [[4], [1, 3]])
def test_lists_of_nodes_read_the_dense_lattice(name, outputs):
    lattices = random_lattices(SIZES, outputs)
    nodes = some_nodes()
    with plan(*PLANS[name]), torch.no_grad():
        runs, logits = zip(*node_logits(lattices, nodes), strict=True)
    torch.testing.assert_close(torch.cat(logits), dense_logits(lattices)[nodes])
    assert [torch.cat(each).tolist() for each in zip(*runs, strict=True)] == [
        each.tolist() for each in nodes
    ]
    budget = PLANS[name][0] // 5  # the hidden layer's width
    assert all(len(run[0]) == min(budget, len(nodes[0])) for run in runs[:-1])


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("outputs", [[4], [1, 3]])
def test_backpropagate_gives_the_gradient_of_the_dense_lattice(name, outputs):
    lattices = random_lattices(SIZES, outputs, dtype=torch.float64)
    dense = dense_logits(lattices)
    nodes = some_nodes()
    factors = torch.zeros_like(dense)
    factors[nodes] = torch.randn(len(nodes[0]), 4, dtype=torch.float64)
    with plan(*PLANS[name]):
        ours = backpropagate(
            [Lattice(*(x.detach() for x in lattice)) for lattice in lattices],
            nodes,
            lambda run, logits: factors[run],
        )
    for mine, expected in zip(ours, gradients((dense * factors).sum(), lattices), strict=True):
        torch.testing.assert_close(mine, expected)


def test_backpropagate_sums_half_precision_in_single_precision():
    # A bias gradient of 3,000 ones: bfloat16 would stop at 256.
    sizes = [(1000, 2)]
    [half] = copies(random_lattices(sizes, [1]), torch.bfloat16)
    half = Lattice(*(x.detach() for x in half))
    nodes = torch.tensor(sorted(valid_nodes(sizes))).unbind(1)
    with plan(100, 0.0):
        grads = backpropagate([half], nodes, lambda run, logits: torch.ones_like(logits))
    assert [grad.dtype for grad in grads] == [torch.bfloat16] * 4
    assert grads[3].item() == torch.tensor(3000.0).bfloat16().item()
