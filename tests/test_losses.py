import itertools
import math

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    PLANS,
    SIZES,
    copies,
    dense_logits,
    gradients,
    plan,
    random_batch,
    random_lattices,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torchaudio.functional import rnnt_loss

from ent_brain import events, pooling, transducer
from ent_brain.emotions import PUBLISHED
from ent_brain.lattice import Lattice, backpropagate
from ent_brain.losses import (
    aligned_emotions,
    aligned_event_loss,
    aligned_events,
    aligned_pooling_loss,
    ctc_loss,
    lattice_pooling_loss,
    next_token_loss,
    supervised_aligned_loss,
    supervised_lattice_loss,
    transducer_alignment,
    transducer_loss,
)
from ent_brain.model import Joint
from ent_brain.pooling import DROPPED_POSTERIOR

MODES = ("one", "full_t", "full_u", "mil")
TOKEN_OUTPUTS = {"ENT": [6], "FENT": [1, 5]}
EMOTIONS = torch.tensor([3, 0, 1, 2, 3])
"""Emotions of the utterances in SIZES."""
INTERVALS = [
    [(3, 0, 2, 0, 1), (0, 2, 6, 1, 4)],
    [(1, 0, 2, 0, 1)],
    [(2, 0, 3, 0, 2), (3, 3, 4, 2, 3), (0, 4, 6, 2, 4)],
    [],
    [(1, 1, 4, 1, 3)],
]
"""Intervals of the utterances in SIZES, none to three each."""


def assert_equal_all(ours, theirs, tolerance=3e-5):
    """Compare gradients or other tensors by their largest element, because sums can cancel."""
    for mine, expected in zip(ours, theirs, strict=True):
        scale = expected.abs().max().item() if expected.numel() else 0.0
        torch.testing.assert_close(
            mine.double(), expected.double(), rtol=0, atol=tolerance * max(scale, 1e-6)
        )


def known_lattice(probabilities):
    """A lattice of one token position whose softmax is ``probabilities`` [B, T, E]."""
    logits = torch.tensor(probabilities, dtype=torch.float64).log()
    scale = logits.abs().max() + 1
    return Lattice(
        enc=(logits / scale).atanh().requires_grad_(),
        pred=torch.zeros(len(logits), 1, logits.size(2), dtype=torch.float64),
        weight=scale * torch.eye(logits.size(2), dtype=torch.float64),
        bias=torch.zeros(logits.size(2), dtype=torch.float64),
    )


def every_loss(dtype=torch.float32, reduction="mean"):
    """Each lattice loss as name: (function of lattices, lattices), on the batch SIZES."""
    batch = random_batch(SIZES, 6)
    lens = batch.frame_lens, batch.token_lens
    token_lattices = {
        name: random_lattices(SIZES, outputs, dtype=dtype)
        for name, outputs in TOKEN_OUTPUTS.items()
    }
    emotion_lattice = random_lattices(SIZES, [4], seed=1, dtype=dtype)
    held = [Lattice(*(x.detach() for x in each)) for each in token_lattices["FENT"]]
    cases = {
        f"transducer {name}": (
            lambda lattices: transducer_loss(lattices, *batch, reduction=reduction),
            lattices,
        )
        for name, lattices in token_lattices.items()
    }
    for mode in MODES:
        cases[mode] = (
            lambda lattices, mode=mode: lattice_pooling_loss(
                *lattices, EMOTIONS, *lens, mode, reduction=reduction
            ),
            emotion_lattice,
        )
    cases["aligned"] = (
        lambda lattices: aligned_pooling_loss(
            held, *lattices, batch.tokens, EMOTIONS, *lens, reduction=reduction
        ),
        emotion_lattice,
    )
    cases["supervised"] = (
        lambda lattices: supervised_lattice_loss(*lattices, INTERVALS, *lens, reduction=reduction),
        emotion_lattice,
    )
    return cases


LOSSES = tuple(every_loss())


# Every lattice loss.


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_finite_differences(name):
    loss, lattices = every_loss(torch.float64, reduction="none")[name]
    tensors = [tensor for lattice in lattices for tensor in lattice]

    def of_tensors(*tensors):
        return loss([Lattice(*tensors[i : i + 4]) for i in range(0, len(tensors), 4)])

    assert torch.autograd.gradcheck(of_tensors, tensors, fast_mode=True)


sizes_of_batches = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 5)), min_size=1, max_size=4)


@settings(max_examples=30)
@given(
    sizes=sizes_of_batches,
    outputs=st.sampled_from([[2], [5], [1, 4]]),
    plan_name=st.sampled_from(list(PLANS)),
    seed=st.integers(0, 99),
)
def test_transducer_gradients_of_any_batch_equal_finite_differences(
    sizes, outputs, plan_name, seed
):
    lattices = random_lattices(sizes, outputs, seed=seed, dtype=torch.float64)
    batch = random_batch(sizes, sum(outputs), seed=seed)
    tensors = [tensor for lattice in lattices for tensor in lattice]

    def of_tensors(*tensors):
        given = [Lattice(*tensors[i : i + 4]) for i in range(0, len(tensors), 4)]
        return transducer_loss(given, *batch, reduction="none")

    with plan(*PLANS[plan_name]):
        assert torch.autograd.gradcheck(of_tensors, tensors, fast_mode=True)


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_changes_neither_value_nor_gradient(name):
    loss, lattices = every_loss()[name]
    expected = loss(lattices)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(lattices)
    assert torch.equal(value, expected)
    grads = gradients(value, lattices)
    assert_equal_all(grads, gradients(expected, lattices), tolerance=0)


def test_a_joint_under_autocast_gives_nearly_the_single_precision_loss():
    sizes = [(40, 12), (31, 9)]
    batch = random_batch(sizes, 31)
    joint = Joint(input_dim=24, joint_dim=64, outputs=31)
    encoded, predicted = (torch.randn(2, n, 24, requires_grad=True) for n in (40, 13))
    leaves = [encoded, predicted, *joint.parameters()]
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            lattice = joint.lattice(encoded, predicted)
            value = transducer_loss([lattice], *batch)
        grads = torch.autograd.grad(value, leaves)
        assert value.dtype == torch.float32
        results.append((value, torch.cat([grad.flatten() for grad in grads])))
    assert lattice.enc.dtype == torch.bfloat16
    (expected, expected_grad), (value, grad) = results
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=0)
    assert (grad - expected_grad).norm() <= 0.02 * expected_grad.norm()


@pytest.mark.parametrize("name", LOSSES)
def test_reductions_agree(name):
    each, mean, total = (
        every_loss(reduction=reduction)[name][0](every_loss()[name][1])
        for reduction in ("none", "mean", "sum")
    )
    assert each.shape == (len(SIZES),)
    torch.testing.assert_close(mean, each.mean())
    torch.testing.assert_close(total, each.sum())
    loss, lattices = every_loss(reduction="median")[name]
    with pytest.raises(ValueError, match="unknown reduction 'median'"):
        loss(lattices)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("other", ["cut", "together"])
def test_the_plan_of_tiles_changes_nothing(name, other):
    loss, lattices = every_loss(torch.float64)[name]
    results = []
    for elements, padded_share in (PLANS["one by one"], PLANS[other]):
        with plan(elements, padded_share):
            value = loss(lattices)
            results.append([value, *gradients(value, lattices)])
    assert_equal_all(*results, tolerance=1e-9)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("plan_name", PLANS)
def test_padding_has_no_effect_and_no_gradient(name, plan_name):
    loss, lattices = every_loss(torch.float64)[name]
    soiled = copies(lattices)
    frame_lens, token_lens = (torch.tensor(column) for column in zip(*SIZES, strict=True))
    for lattice in soiled:
        frame_padding = torch.arange(lattice.enc.size(1)) >= frame_lens[:, None]
        position_padding = torch.arange(lattice.pred.size(1)) > token_lens[:, None]
        lattice.enc.data[frame_padding] = 1e4 * torch.randn(frame_padding.sum(), 5).double()
        lattice.pred.data[position_padding] = -1e4
    with plan(*PLANS[plan_name]):
        clean_value, soiled_value = loss(lattices), loss(soiled)
        torch.testing.assert_close(soiled_value, clean_value, rtol=1e-12, atol=0)
        grads = gradients(soiled_value, soiled)
        assert_equal_all(grads, gradients(clean_value, lattices), tolerance=1e-9)
    for enc, pred in zip(grads[0::4], grads[1::4], strict=True):
        assert not enc[frame_padding].any()
        assert not pred[position_padding].any()


@pytest.mark.parametrize("name", LOSSES)
def test_utterances_of_a_batch_do_not_see_one_another(name):
    loss, lattices = every_loss(torch.float64, reduction="none")[name]
    grads = gradients(loss(lattices)[0], lattices)
    for enc, pred in zip(grads[0::4], grads[1::4], strict=True):
        assert enc[0].any()
        assert not enc[1:].any()
        assert not pred[1:].any()


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_lattices_give_nearly_the_single_precision_loss(name):
    loss, lattices = every_loss()[name]
    half = [
        lattice._replace(
            enc=lattice.enc.detach().bfloat16().requires_grad_(),
            pred=lattice.pred.detach().bfloat16().requires_grad_(),
        )
        for lattice in lattices
    ]
    value, expected = loss(half), loss(lattices)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=2e-2, atol=0)
    grads = gradients(value, half)
    assert [grad.dtype for grad in grads[:4]] == [torch.bfloat16] * 2 + [torch.float32] * 2
    flat, flat_expected = (
        torch.cat([grad.flatten().float() for grad in each])
        for each in (grads, gradients(expected, lattices))
    )
    assert torch.cosine_similarity(flat, flat_expected, 0) > 0.99


class LargestTensor(TorchDispatchMode):
    """Records the number of elements in the largest tensor that an operation creates."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("name", LOSSES)
def test_no_hidden_layer_of_the_whole_lattice_is_ever_made(name):
    sizes = [(40, 20), (40, 20)]
    nodes, width, budget = 2 * 40 * 21, 32, 2000
    batch = random_batch(sizes, 12)
    lens = batch.frame_lens, batch.token_lens
    outputs = {"transducer ENT": [12], "transducer FENT": [1, 11]}.get(name, [4])
    lattices = random_lattices(sizes, outputs, width=width)
    with plan(budget, 0.0), LargestTensor() as largest:
        if name in MODES:
            value = lattice_pooling_loss(*lattices, torch.tensor([0, 3]), *lens, name)
        elif name == "supervised":
            value = supervised_lattice_loss(*lattices, [[(0, 3, 30, 4, 9)]] * 2, *lens)
        elif name == "aligned":
            posteriors = torch.full((2, 40, 21), 1 / 21)
            value = aligned_emotions(*lattices, posteriors, batch.token_lens).square().sum()
        else:
            value = transducer_loss(lattices, *batch)
        gradients(value, lattices)
    # A few numbers a place on a diagonal, a tile, or the hidden layers along one line: never
    # node x width.
    diagonals = (40 + 21) * 2 * 2 * 21
    assert largest.elements <= max(diagonals, budget, 2 * 2 * 40 * width)
    assert largest.elements < nodes * 12


# Transducer loss.


@pytest.mark.parametrize("outputs", TOKEN_OUTPUTS.values(), ids=TOKEN_OUTPUTS)
@pytest.mark.parametrize("size", [(1, 0), (1, 1), (1, 4), (2, 3), (3, 2), (4, 4), (5, 0)], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_loss_and_posteriors_are_sums_over_all_alignments(size, outputs, dtype, tolerance):
    lattices = random_lattices([size], outputs, dtype=dtype, scale=1.5)
    batch = random_batch([size], 6, blank=2)
    alignment = transducer_alignment(lattices, *batch, blank=2)
    log_probs = dense_logits(copies(lattices))[0].log_softmax(-1).tolist()
    nll, posteriors = oracles.sum_over_alignments(log_probs, batch.tokens[0].tolist(), blank=2)
    assert alignment.nll.item() == pytest.approx(nll, rel=tolerance)
    expected = torch.tensor([posteriors], dtype=dtype)
    torch.testing.assert_close(alignment.posteriors, expected, rtol=0, atol=tolerance)


def test_the_forward_algorithm_sums_over_all_alignments():
    # The reference for larger lattices, against the reference for small ones.
    size = (4, 3)
    batch = random_batch([size], 6)
    logits = dense_logits(random_lattices([size], [6], dtype=torch.float64)).detach()
    log_probs = logits[0].log_softmax(-1).tolist()
    nll, posteriors = oracles.sum_over_alignments(log_probs, batch.tokens[0].tolist(), blank=0)
    assert oracles.transducer_nll(logits, batch).item() == pytest.approx(nll, rel=1e-12)
    [by_gradient] = oracles.blank_posteriors(logits, batch)
    torch.testing.assert_close(by_gradient, torch.tensor(posteriors, dtype=torch.float64))


@pytest.mark.parametrize("outputs", TOKEN_OUTPUTS.values(), ids=TOKEN_OUTPUTS)
@pytest.mark.parametrize("blank", [0, 3, 5])
def test_value_and_gradients_equal_torchaudio_on_dense_logits(outputs, blank):
    sizes = [(12, 6), (5, 1), (1, 3), (9, 4), (12, 6)]
    lattices = random_lattices(sizes, outputs)
    batch = random_batch(sizes, 6, blank=blank)
    ours = transducer_loss(lattices, *batch, blank=blank)
    dense = rnnt_loss(dense_logits(lattices), *(x.int() for x in batch), blank=blank)
    torch.testing.assert_close(ours, dense, rtol=1e-5, atol=0)
    assert_equal_all(gradients(ours, lattices), gradients(dense, lattices))


def test_moderate_lattice_equals_the_forward_algorithm_in_double_precision():
    sizes = [(40, 15), (22, 9)]
    lattices = random_lattices(sizes, [1, 9], scale=1.5)
    batch = random_batch(sizes, 10)
    ours = transducer_loss(lattices, *batch, reduction="none")
    doubles = copies(lattices)
    expected = oracles.transducer_nll(dense_logits(doubles), batch)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=0)
    assert_equal_all(gradients(ours.sum(), lattices), gradients(expected.sum(), doubles))


@settings(max_examples=25)
@given(
    sizes=sizes_of_batches,
    outputs=st.sampled_from([[2], [5], [1, 4], [2, 1, 2]]),
    blank=st.integers(0, 4),
    plan_name=st.sampled_from(list(PLANS)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_any_batch_equals_the_dense_forward_algorithm(
    sizes, outputs, blank, plan_name, dtype, seed
):
    vocab_size = sum(outputs)
    blank = min(blank, vocab_size - 1)
    lattices = random_lattices(sizes, outputs, seed=seed, dtype=dtype)
    batch = random_batch(sizes, vocab_size, blank=blank, seed=seed)
    with plan(*PLANS[plan_name]):
        ours = transducer_loss(lattices, *batch, blank=blank, reduction="sum")
        grads = gradients(ours, lattices)
    doubles = copies(lattices)
    expected = oracles.transducer_nll(dense_logits(doubles), batch, blank).sum()
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-6)
    assert_equal_all(grads, gradients(expected, doubles))


def test_nodes_that_no_alignment_passes_are_left_out_backward_without_effect(monkeypatch):
    sizes = [(60, 20), (43, 17)]
    lattices = random_lattices(sizes, [6], scale=3.0)
    batch = random_batch(sizes, 6)
    evaluated = []

    def watched(lattices, nodes, grad_logits):
        evaluated.append(len(nodes[0]))
        return backpropagate(lattices, nodes, grad_logits)

    monkeypatch.setattr(transducer, "backpropagate", watched)
    grads = gradients(transducer_loss(lattices, *batch), lattices)
    assert evaluated[0] < 0.5 * (60 * 21 + 43 * 18)
    doubles = copies(lattices)
    expected = gradients(oracles.transducer_nll(dense_logits(doubles), batch).mean(), doubles)
    assert_equal_all(grads, expected)
    ours = gradients(transducer_loss(doubles, *batch), doubles)
    assert_equal_all(ours, expected, tolerance=1e-12)


def test_posteriors_are_never_subnormal():
    # Products of subnormal numbers are many times slower.
    sizes = [(60, 20)]
    lattices = random_lattices(sizes, [6], scale=6.0)
    posteriors = transducer_alignment(lattices, *random_batch(sizes, 6)).posteriors
    tiny = torch.finfo(torch.float32).tiny
    assert not ((posteriors > 0) & (posteriors < tiny)).any()
    assert (posteriors == 0).any()


def test_single_precision_equals_double():
    sizes = [(30, 12), (4, 11), (17, 0), (1, 1)]
    lattices = random_lattices(sizes, [6], scale=2.0)
    batch = random_batch(sizes, 6)
    single = transducer_alignment(lattices, *batch)
    double = transducer_alignment(copies(lattices), *batch)
    torch.testing.assert_close(single.nll.double(), double.nll, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(single.posteriors.double(), double.posteriors, rtol=0, atol=1e-4)


def test_the_kernel_that_serves_gpus_equals_the_sweep():
    # The kernel exists for CPUs, too: only the way to it is a GPU's.
    sizes = [(30, 12), (4, 11), (17, 0), (1, 1)]
    batch = random_batch(sizes, 6)
    [lattice] = random_lattices(sizes, [3], scale=2.0)
    kernel_arcs = lattice.dense().detach().log_softmax(-1)[..., :2].movedim(-1, 0).contiguous()
    lens, arcs = (batch.frame_lens, batch.token_lens), kernel_arcs.double()
    kernel_nll = transducer._kernel(kernel_arcs, *lens)
    nll = transducer._sweep(arcs, *lens)
    torch.testing.assert_close(kernel_nll.double(), nll, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kernel_arcs.double(), arcs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_posteriors_sum_to_one_at_valid_frames_and_are_zero_elsewhere(dtype):
    lattices = random_lattices(SIZES, [6], dtype=dtype)
    posteriors = transducer_alignment(lattices, *random_batch(SIZES, 6)).posteriors
    assert not posteriors.requires_grad
    for row, (frames, tokens) in enumerate(SIZES):
        ones = torch.ones(frames, dtype=dtype)
        torch.testing.assert_close(posteriors[row, :frames].sum(1), ones)
        assert posteriors[row, :frames, : tokens + 1].min() >= 0
        assert not posteriors[row, frames:].any()
        assert not posteriors[row, :, tokens + 1 :].any()


def test_the_lattice_may_be_larger_than_the_longest_utterance():
    lattices = random_lattices([(9, 7)] * 2, [6], dtype=torch.float64)
    batch = random_batch([(4, 2), (3, 3)], 6)
    wide = batch._replace(tokens=torch.nn.functional.pad(batch.tokens, (0, 5), value=-100))
    cut = [each._replace(enc=each.enc[:, :4], pred=each.pred[:, :4]) for each in lattices]
    expected = oracles.transducer_nll(dense_logits(cut), batch).mean()
    torch.testing.assert_close(transducer_loss(lattices, *wide), expected)


def test_no_value_in_the_padding_reaches_the_loss_not_even_nan():
    lattices = random_lattices(SIZES, [6])
    batch = random_batch(SIZES, 6)
    before = transducer_loss(lattices, *batch)
    expected = gradients(before, lattices)
    for row, (frames, tokens) in enumerate(SIZES):
        lattices[0].enc.data[row, frames:] = torch.nan
        lattices[0].pred.data[row, tokens + 1 :] = torch.nan
        batch.tokens[row, tokens:] = -(10**9)
    after = transducer_loss(lattices, *batch)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert_equal_all(gradients(after, lattices), expected, tolerance=0)


@pytest.mark.parametrize("mode", MODES)
def test_no_value_in_the_padding_reaches_lattice_pooling_not_even_nan(mode):
    lattices = random_lattices(SIZES, [4], seed=1)
    batch = random_batch(SIZES, 6)
    batch = EMOTIONS, batch.frame_lens, batch.token_lens, mode
    before = lattice_pooling_loss(*lattices, *batch)
    expected = gradients(before, lattices)
    for row, (frames, tokens) in enumerate(SIZES):
        lattices[0].enc.data[row, frames:] = torch.nan
        lattices[0].pred.data[row, tokens + 1 :] = torch.nan
    after = lattice_pooling_loss(*lattices, *batch)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert_equal_all(gradients(after, lattices), expected, tolerance=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame_lens": torch.tensor([0, 3])}, r"frame lengths must lie in 1..4: \[0, 3\]"),
        ({"frame_lens": torch.tensor([4, 5])}, r"frame lengths must lie in 1..4: \[4, 5\]"),
        ({"token_lens": torch.tensor([2, 3])}, r"token lengths must lie in 0..2: \[2, 3\]"),
        ({"token_lens": torch.tensor([2, -1])}, r"token lengths must lie in 0..2: \[2, -1\]"),
        ({"tokens": torch.tensor([[1, 6], [1, 1]])}, "token ids must lie in 0..5"),
        ({"tokens": torch.tensor([[1, -1], [1, 1]])}, "token ids must lie in 0..5"),
        ({"tokens": torch.tensor([[1, 0], [1, 1]])}, "not be blank"),
        ({"tokens": torch.tensor([[1, 2]])}, "2 utterances"),
        ({"frame_lens": torch.tensor([4])}, "2 utterances"),
    ],
)
def test_impossible_input_is_refused(change, message):
    sizes = [(4, 2), (3, 1)]
    batch = random_batch(sizes, 6)._replace(**change)
    with pytest.raises(ValueError, match=message):
        transducer_loss(random_lattices(sizes, [6]), *batch)


@pytest.mark.parametrize("blank", [-1, 6])
def test_a_blank_that_is_no_output_is_refused(blank):
    with pytest.raises(ValueError, match=f"blank {blank} is not one of 6 outputs"):
        transducer_loss(random_lattices(SIZES, [1, 5]), *random_batch(SIZES, 6), blank=blank)


# Lattice max pooling.


def compare_pooling(lattices, emotions, batch, mode, **options):
    """Compare value and gradients of each utterance with the dense reference."""
    lens = batch.frame_lens, batch.token_lens
    ours = lattice_pooling_loss(*lattices, emotions, *lens, mode, reduction="none", **options)
    doubles = copies(lattices)
    expected = oracles.pooling(dense_logits(doubles), emotions, batch, mode, **options)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-5)
    factors = torch.arange(1.0, len(emotions) + 1)
    assert_equal_all(
        gradients((ours * factors).sum(), lattices), gradients((expected * factors).sum(), doubles)
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("plan_name", PLANS)
def test_pooling_equals_the_dense_reference(mode, plan_name):
    with plan(*PLANS[plan_name]):
        compare_pooling(
            random_lattices(SIZES, [4], scale=2.0), EMOTIONS, random_batch(SIZES, 6), mode
        )


@settings(max_examples=25)
@given(
    sizes=sizes_of_batches,
    mode=st.sampled_from(MODES),
    seed=st.integers(0, 99),
    neutral=st.integers(0, 3),
    data=st.data(),
)
def test_pooling_of_any_batch_equals_the_dense_reference(sizes, mode, seed, neutral, data):
    labels = st.lists(st.integers(0, 3), min_size=len(sizes), max_size=len(sizes))
    emotions = torch.tensor(data.draw(labels))
    # In double precision, where no two nodes are best but for rounding.
    lattices = random_lattices(sizes, [4], seed=seed, dtype=torch.float64)
    compare_pooling(lattices, emotions, random_batch(sizes, 6), mode, neutral=neutral)


@pytest.mark.parametrize("mode", MODES)
def test_improbable_emotions_are_clamped(mode):
    # At every node p of happy is below 1e-8, and p of neutral is 1.
    [lattice] = random_lattices([(3, 2)], [4])
    with torch.no_grad():
        lattice.weight.zero_()
        lattice.bias.copy_(torch.tensor([-40.0, 0.0, 0.0, 40.0]))
    batch, emotions = random_batch([(3, 2)], 6), torch.tensor([0])
    value = lattice_pooling_loss(lattice, emotions, batch.frame_lens, batch.token_lens, mode)
    assert value.item() == pytest.approx(-math.log(1e-8), rel=1e-6)
    assert max(grad.abs().max() for grad in gradients(value, [lattice])) < 1e-12


@pytest.mark.parametrize("mode", MODES)
def test_equal_nodes_give_the_gradient_of_one_of_them(mode):
    sizes = [(4, 3)]
    [lattice] = random_lattices(sizes, [4], dtype=torch.float64)
    with torch.no_grad():
        lattice.enc[:] = lattice.enc[:, :1]
        lattice.pred[:] = lattice.pred[:, :1]
    batch, emotions = random_batch(sizes, 6), torch.tensor([1])
    with plan(*PLANS["cut"]):
        value = lattice_pooling_loss(lattice, emotions, batch.frame_lens, batch.token_lens, mode)
    grads = gradients(value, [lattice])
    expected = oracles.pooling(dense_logits([lattice]), emotions, batch, mode).sum()
    dense_grads = gradients(expected, [lattice])
    torch.testing.assert_close(value, expected)
    # Whichever node is taken, the sums over nodes and the output's gradients are the same.
    assert_equal_all(
        [grads[0].sum(1), grads[1].sum(1), *grads[2:]],
        [dense_grads[0].sum(1), dense_grads[1].sum(1), *dense_grads[2:]],
        tolerance=1e-9,
    )
    most = {"full_u": 4}.get(mode, 1), {"full_t": 4}.get(mode, 1)
    assert (grads[0].abs().sum(2) > 0).sum() == most[0]
    assert (grads[1].abs().sum(2) > 0).sum() == most[1]


def test_mil_trains_neutral_utterances_by_their_least_neutral_node_alone():
    probabilities = [[[0.1, 0.2, 0.3, 0.4], [0.05, 0.05, 0.1, 0.8], [0.6, 0.1, 0.1, 0.2]]] * 2
    lattice, frame_lens = known_lattice(probabilities), torch.tensor([3, 3])
    losses = [
        lattice_pooling_loss(
            lattice, torch.tensor([0, 3]), frame_lens, torch.tensor([0, 0]), mode, reduction="none"
        )
        for mode in ("one", "mil")
    ]
    expected = [
        [-math.log(0.6) - math.log(0.2), -math.log(0.8) - math.log(0.2)],
        [-math.log(0.6), -math.log(0.2)],
    ]
    assert [loss.tolist() for loss in losses] == [pytest.approx(each) for each in expected]


def test_an_unknown_pooling_mode_is_refused():
    batch = random_batch(SIZES, 6)
    with pytest.raises(ValueError, match="unknown lattice pooling mode 'two': one, full_t"):
        lattice_pooling_loss(
            *random_lattices(SIZES, [4]), EMOTIONS, batch.frame_lens, batch.token_lens, "two"
        )


# Aligned pooling.


ALIGNED_SIZES = [(12, 6), (7, 2), (10, 0), (1, 4), (9, 5)]
ALIGNED_EMOTIONS = torch.tensor([0, 3, 2, 1, 1])


def aligned_case(dtype=torch.float64):
    """Token lattices, emotion lattice, batch."""
    token_lattices = random_lattices(ALIGNED_SIZES, [1, 5], dtype=dtype, scale=1.5)
    emotion_lattice = random_lattices(ALIGNED_SIZES, [4], seed=1, dtype=dtype)
    return token_lattices, emotion_lattice, random_batch(ALIGNED_SIZES, 6)


def aligned(token_lattices, emotion_lattice, batch, **options):
    return aligned_pooling_loss(
        token_lattices,
        *emotion_lattice,
        batch.tokens,
        ALIGNED_EMOTIONS,
        batch.frame_lens,
        batch.token_lens,
        reduction="none",
        **options,
    )


def dense_frame_emotions(token_lattices, emotion_lattice, batch):
    posteriors = oracles.blank_posteriors(dense_logits(token_lattices), batch)
    return oracles.frame_emotions(dense_logits(emotion_lattice), posteriors)


@pytest.mark.parametrize("top", [0.1, 0.3, 0.55, 1.0])
def test_aligned_equals_the_dense_reference_where_no_node_is_dropped(top, monkeypatch):
    monkeypatch.setattr(pooling, "DROPPED_POSTERIOR", 0.0)
    case = aligned_case()
    ours = aligned(*case, top=top)
    expected = oracles.aligned_pooling(dense_frame_emotions(*case), ALIGNED_EMOTIONS, top)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    factors = torch.arange(1.0, 6.0)
    assert_equal_all(
        *(gradients((each * factors).sum(), case[1]) for each in (ours, expected)),
        tolerance=1e-7,
    )


@pytest.mark.parametrize("dropped", [DROPPED_POSTERIOR, 0.1])
def test_dropped_nodes_change_a_frame_by_no_more_than_allowed(dropped, monkeypatch):
    monkeypatch.setattr(pooling, "DROPPED_POSTERIOR", dropped)
    token_lattices, [emotion_lattice], batch = aligned_case()
    posteriors = transducer_alignment(token_lattices, *batch).posteriors
    ours = aligned_emotions(emotion_lattice, posteriors, batch.token_lens)
    lost = []
    for row, dense in enumerate(dense_frame_emotions(token_lattices, [emotion_lattice], batch)):
        lost.append(dense.sum(1) - ours[row, : len(dense)].sum(1))
        difference = dense - ours[row, : len(dense)]
        assert difference.min() > -1e-9
        assert not ours[row, len(dense) :].any()
    lost = torch.cat(lost)
    assert lost.max() <= dropped
    assert lost.max() > 0.01 * dropped  # nodes are dropped indeed


def test_a_node_is_dropped_where_all_of_its_frame_might_be():
    # Of four positions each may hold a quarter of DROPPED_POSTERIOR.
    small = DROPPED_POSTERIOR / 4
    posteriors = torch.tensor([[[0.9 * small, 1.1 * small, 0.5, 0.5 - 2 * small]]])
    [lattice] = random_lattices([(1, 3)], [4])
    frame_probs = aligned_emotions(lattice, posteriors, torch.tensor([3]))
    kept = 1 - 0.9 * small
    assert frame_probs.sum().item() == pytest.approx(kept, abs=0.1 * small)


def test_aligned_stays_within_the_bound_that_dropping_implies():
    case = aligned_case()
    ours = aligned(*case)
    dense = dense_frame_emotions(*case)
    expected = oracles.aligned_pooling(dense, ALIGNED_EMOTIONS)
    # Every q may lack up to DROPPED_POSTERIOR: -log q rises, and -log(1 - q) falls.
    for mine, reference, q, emotion in zip(
        ours, expected, dense, ALIGNED_EMOTIONS.tolist(), strict=True
    ):
        low = (q - DROPPED_POSTERIOR).clamp(1e-8)
        count = max(1, math.floor(0.3 * len(q)))
        pooled = q.topk(count, dim=0).values.mean(0)
        if emotion == 3:
            rise, fall = (q[:, 3] / low[:, 3]).log().mean(), 0.0
        else:
            others = [e for e in range(3) if e != emotion]
            rise = (pooled[emotion] / (pooled[emotion] - DROPPED_POSTERIOR)).log()
            less = (1 - pooled[others] + DROPPED_POSTERIOR) / (1 - pooled[others])
            fall = less.log().sum()
        assert reference - fall - 1e-9 <= mine <= reference + rise + 1e-9
    assert not torch.equal(ours, expected)
    for mine, reference in zip(
        gradients(ours.sum(), case[1]), gradients(expected.sum(), case[1]), strict=True
    ):
        assert (mine - reference).norm() <= 0.01 * reference.norm()


def test_the_top_share_of_the_frames_is_pooled():
    # Ten frames: 0.3 of them are three, and they may lie anywhere.
    happy = [0.1, 0.9, 0.1, 0.2, 0.5, 0.1, 0.7, 0.1, 0.1, 0.1]
    probabilities = [[[p, 0.02, 0.03, 0.95 - p] for p in happy]]
    value = aligned_pooling_loss(
        random_lattices([(10, 0)], [6], dtype=torch.float64),
        known_lattice(probabilities),
        torch.zeros(1, 0, dtype=torch.long),
        torch.tensor([0]),
        torch.tensor([10]),
        torch.tensor([0]),
        top=0.3,
    )
    expected = -math.log((0.9 + 0.7 + 0.5) / 3) - math.log(1 - 0.02) - math.log(1 - 0.03)
    assert value.item() == pytest.approx(expected, rel=1e-9)


def test_every_frame_of_a_neutral_utterance_counts():
    neutral = [0.4, 0.5, 0.9]
    value = aligned_pooling_loss(
        random_lattices([(3, 0)], [6], dtype=torch.float64),
        known_lattice([[[0.01, 0.02, 0.97 - p, p] for p in neutral]]),
        torch.zeros(1, 0, dtype=torch.long),
        torch.tensor([3]),
        torch.tensor([3]),
        torch.tensor([0]),
    )
    expected = -(math.log(0.4) + math.log(0.5) + math.log(0.9)) / 3
    assert value.item() == pytest.approx(expected, rel=1e-9)


def test_aligned_pooling_gives_no_gradient_to_the_token_lattices():
    token_lattices, emotion_lattice, batch = aligned_case()
    aligned(token_lattices, emotion_lattice, batch).sum().backward()
    assert all(tensor.grad is None for lattice in token_lattices for tensor in lattice)
    assert all(tensor.grad is not None for tensor in emotion_lattice[0])


def test_known_posteriors_take_the_place_of_the_token_lattices():
    token_lattices, emotion_lattice, batch = aligned_case()
    posteriors = transducer_alignment(token_lattices, *batch).posteriors
    given = aligned((), emotion_lattice, batch, posteriors=posteriors)
    torch.testing.assert_close(given, aligned(token_lattices, emotion_lattice, batch))


def test_aligned_pooling_evaluates_few_nodes_once_the_alignment_is_sharp():
    # A token at every second frame, almost surely: of 40 x 21 nodes, two a frame are evaluated.
    frames, tokens = 40, 20
    posteriors = torch.zeros(1, frames, tokens + 1)
    for t in range(frames):
        posteriors[0, t, t // 2 : t // 2 + 2] = 0.5
    [lattice] = random_lattices([(frames, tokens)], [4], width=64)
    with LargestTensor() as largest:
        aligned_emotions(lattice, posteriors, torch.tensor([tokens])).sum().backward()
    assert largest.elements <= 2 * frames * 64


@pytest.mark.parametrize("shortest", [1, 2, 4, 7, 30])
def test_an_event_may_be_wherever_it_and_its_surroundings_last(shortest, monkeypatch):
    monkeypatch.setattr(pooling, "DROPPED_POSTERIOR", 0.0)
    token_lattices, [emotion_lattice], batch = aligned_case()
    posteriors = transducer_alignment(token_lattices, *batch).posteriors
    lens = batch.frame_lens, batch.token_lens
    ours = aligned_event_loss(
        emotion_lattice, posteriors, ALIGNED_EMOTIONS, *lens, shortest, reduction="none"
    )
    frame_probs = dense_frame_emotions(token_lattices, [emotion_lattice], batch)
    expected = oracles.aligned_event(frame_probs, ALIGNED_EMOTIONS, shortest, events.EVIDENCE)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    factors = torch.arange(1.0, 6.0)
    assert_equal_all(
        *(gradients((each * factors).sum(), [emotion_lattice]) for each in (ours, expected)),
        tolerance=1e-7,
    )


@pytest.mark.parametrize("shortest", [1, 2, 4, 30])
def test_the_most_probable_event_is_that_of_all(shortest, monkeypatch):
    monkeypatch.setattr(pooling, "DROPPED_POSTERIOR", 0.0)
    token_lattices, [lattice], batch = aligned_case()
    posteriors = transducer_alignment(token_lattices, *batch).posteriors
    lens = batch.frame_lens, batch.token_lens
    found = aligned_events(lattice, posteriors, ALIGNED_EMOTIONS, *lens, shortest)
    frame_probs = dense_frame_emotions(token_lattices, [lattice], batch)
    columns = found, frame_probs, ALIGNED_EMOTIONS.tolist(), posteriors, batch.token_lens.tolist()
    for spans, q, emotion, of_arcs, tokens in zip(*columns, strict=True):
        assert [0, *(span[2] for span in spans)] == [*(span[1] for span in spans), len(q)]
        felt = [span[1:3] for span in spans if span[0] != PUBLISHED.neutral_index]
        if emotion != PUBLISHED.neutral_index:
            start, end, _ = max(oracles.events(q, emotion, shortest), key=lambda event: event[2])
            assert felt == [(start, end)]
        assert {span[0] for span in spans} <= {emotion, PUBLISHED.neutral_index}
        assert bool(felt) == (emotion != PUBLISHED.neutral_index)
        passed = [0.0, *(of_arcs * torch.arange(of_arcs.size(1))).sum(1).tolist()]
        for _, a, b, c, d in spans:
            assert abs(c - passed[a]) <= 0.5
            assert d == tokens + 1 if b == len(q) else d == c + 1 or abs(d - passed[b]) <= 0.5
            assert c < d


# Supervised intervals.


@pytest.mark.parametrize("plan_name", PLANS)
def test_supervised_loss_equals_the_dense_regions(plan_name):
    lattices = random_lattices(SIZES, [4])
    batch = random_batch(SIZES, 6)
    with plan(*PLANS[plan_name]):
        ours = supervised_lattice_loss(
            *lattices, INTERVALS, batch.frame_lens, batch.token_lens, reduction="none"
        )
        doubles = copies(lattices)
        expected = oracles.supervised(dense_logits(doubles), INTERVALS)
        torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-6)
        assert ours[3] == 0  # no intervals, no loss
        factors = torch.arange(1.0, 6.0)
        assert_equal_all(
            gradients((ours * factors).sum(), lattices),
            gradients((expected * factors).sum(), doubles),
        )


@st.composite
def intervals_of(draw, size):
    frames, tokens = size
    spans = []
    for _ in range(draw(st.integers(0, 3))):
        a, c = draw(st.integers(0, frames - 1)), draw(st.integers(0, tokens))
        b, d = draw(st.integers(a + 1, frames)), draw(st.integers(c + 1, tokens + 1))
        spans.append((draw(st.integers(0, 3)), a, b, c, d))
    return spans


@settings(max_examples=25)
@given(sizes=sizes_of_batches, data=st.data())
def test_any_intervals_equal_the_dense_regions(sizes, data):
    intervals = [data.draw(intervals_of(size)) for size in sizes]
    lattices = random_lattices(sizes, [4], dtype=torch.float64)
    batch = random_batch(sizes, 6)
    ours = supervised_lattice_loss(
        *lattices, intervals, batch.frame_lens, batch.token_lens, reduction="sum"
    )
    expected = oracles.supervised(dense_logits(lattices), intervals).sum()
    torch.testing.assert_close(ours, expected)
    if any(intervals):
        assert_equal_all(gradients(ours, lattices), gradients(expected, lattices), tolerance=1e-9)


@pytest.mark.parametrize(
    "span",
    [(2, 2, 0, 1), (3, 2, 0, 1), (-1, 2, 0, 1), (0, 5, 0, 1), (0, 1, 1, 1), (0, 1, 0, 3)],
    ids=str,
)
def test_an_interval_that_is_empty_or_leaves_the_lattice_is_refused(span):
    sizes = [(9, 9), (4, 1)]
    batch = random_batch(sizes, 6)
    intervals = [[(0, 0, 1, 0, 1)], [(0, 0, 1, 0, 1), (1, *span)]]
    a, b, c, d = span
    message = rf"utterance 1: interval of frames \[{a}, {b}\) and positions \[{c}, {d}\)"
    with pytest.raises(ValueError, match=message):
        supervised_lattice_loss(
            *random_lattices(sizes, [4]), intervals, batch.frame_lens, batch.token_lens
        )


@pytest.mark.parametrize("emotion", [-1, 4])
def test_an_interval_of_no_emotion_is_refused(emotion):
    batch = random_batch([(4, 1), (4, 1)], 6)
    with pytest.raises(ValueError, match=rf"utterance 1: emotion {emotion} is not in 0\.\.3"):
        supervised_lattice_loss(
            *random_lattices([(4, 1), (4, 1)], [4]),
            [[(3, 0, 1, 0, 1)], [(emotion, 0, 1, 0, 1)]],
            batch.frame_lens,
            batch.token_lens,
        )


def test_supervised_aligned_is_the_frame_cross_entropy_of_the_alignment_s_emotions():
    token_lattices, [emotion_lattice], batch = aligned_case()
    posteriors = transducer_alignment(token_lattices, *batch).posteriors
    lens = batch.frame_lens, batch.token_lens
    halves = [
        [(0, 0, n // 2, 0, 1), (3, n // 2, n, 1, 2)] if n > 1 else [(2, 0, n, 0, 1)]
        for n in batch.frame_lens.tolist()
    ]
    probs = aligned_emotions(emotion_lattice, posteriors, batch.token_lens)
    expected = []
    for row, spans in enumerate(halves):
        labels = [emotion for emotion, a, b, *_ in spans for _ in range(a, b)]
        surprises = [-probs[row, t, label].log() for t, label in enumerate(labels)]
        expected.append(sum(surprises) / len(labels))
    ours = supervised_aligned_loss(emotion_lattice, posteriors, halves, *lens, reduction="none")
    torch.testing.assert_close(ours, torch.stack(expected))
    mean = supervised_aligned_loss(emotion_lattice, posteriors, halves, *lens)
    torch.testing.assert_close(mean, ours.mean())


def test_without_words_supervised_aligned_is_a_frame_classifier():
    probabilities = [[[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]]]
    lens = torch.tensor([3]), torch.tensor([0])
    known = [[(3, 0, 1, 0, 1), (0, 1, 3, 0, 1)]]
    value = supervised_aligned_loss(
        known_lattice(probabilities), torch.ones(1, 3, 1, dtype=torch.float64), known, *lens
    )
    expected = -(math.log(0.4) + math.log(0.7) + math.log(0.25)) / 3
    assert value.item() == pytest.approx(expected, rel=1e-9)


# Next-token loss.


def test_next_token_loss_predicts_each_token_and_then_the_end():
    logits = torch.randn(3, 4, 7, dtype=torch.float64, requires_grad=True)
    tokens, token_lens = torch.tensor([[3, 1, 2], [5, 0, 0], [0, 0, 0]]), torch.tensor([3, 1, 0])
    log_probs = logits.log_softmax(-1)
    targets = {(0, 0): 3, (0, 1): 1, (0, 2): 2, (0, 3): 6, (1, 0): 5, (1, 1): 6, (2, 0): 6}
    expected = -sum(log_probs[node][token] for node, token in targets.items()) / len(targets)
    loss = next_token_loss(logits, tokens, token_lens)
    torch.testing.assert_close(loss, expected)
    assert_equal_all(
        *(torch.autograd.grad(each, logits) for each in (loss, expected)), tolerance=1e-9
    )


def test_fastemit_scales_the_gradient_of_token_arcs_alone_and_not_the_value():
    [lattice] = random_lattices([(6, 3)], [5], dtype=torch.float64)
    batch = random_batch([(6, 3)], 5)

    def gradient(fastemit):
        nll = transducer_alignment([lattice], *batch, fastemit=fastemit).nll.sum()
        return nll.detach(), torch.autograd.grad(nll, lattice.bias)[0]

    (value, none), (same, some), (_, more) = map(gradient, (0.0, 0.1, 0.2))
    assert value == same
    # Linear in the weight, and what it adds pulls mass from blank to the tokens.
    torch.testing.assert_close(more - none, 2 * (some - none))
    assert (some - none)[0] > 0 > (some - none)[1:].sum()


# --- CTC


def test_ctc_sums_over_all_paths_that_spell_the_tokens():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, 3, generator=generator, dtype=torch.double)
    spelt = [[1, 1], [2, 1, 2], [], [1, 1, 1]]
    frame_lens, token_lens = torch.tensor([5, 4, 3, 4]), torch.tensor([2, 3, 0, 3])
    tokens = torch.zeros(4, 3, dtype=torch.long)
    for row, ids in enumerate(spelt):
        tokens[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
    found = ctc_loss(logits.requires_grad_(), tokens, frame_lens, token_lens)
    for row, (ids, frames) in enumerate(zip(spelt, frame_lens.tolist(), strict=True)):
        log_probs = logits[row].log_softmax(-1)
        total = torch.zeros((), dtype=torch.double)
        for path in itertools.product(range(3), repeat=frames):
            if [token for token, _ in itertools.groupby(path) if token] == ids:
                total = total + log_probs[range(frames), path].sum().exp()
        # Three equal tokens have no room in four frames, as a blank parts each two.
        expected = -total.log() if total else torch.zeros(())
        torch.testing.assert_close(found[row].double(), expected.double(), rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert gradient[:3].isfinite().all()
    assert gradient[0].any()
    assert not gradient[3].any()
    assert not gradient[1, 4].any()


def test_ctc_of_no_tokens_at_all():
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    tokens, none = torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    found = ctc_loss(logits, tokens, torch.tensor([3, 2]), none)
    blanks = logits.log_softmax(-1)[..., 0]
    torch.testing.assert_close(found, -torch.stack((blanks[0].sum(), blanks[1, :2].sum())))
