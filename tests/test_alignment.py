import itertools
import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from oracles import PLANS, SIZES, alignments, dense_logits, plan, random_batch, random_lattices

from ent_brain.alignment import align, best_path, word_times
from ent_brain.decoding import Hypothesis
from ent_brain.lattice import Lattice
from ent_brain.losses import transducer_alignment
from ent_brain.model import ENT, FENT


def by_walking_every_alignment(log_probs, tokens, blank):
    """Frames of the tokens on the most probable path, and its score; nested lists [T][U+1][V]."""
    best = max(
        alignments(len(log_probs), len(tokens)),
        key=lambda arcs: math.fsum(
            log_probs[t][u][tokens[u] if emits else blank] for t, u, emits in arcs
        ),
    )
    score = math.fsum(log_probs[t][u][tokens[u] if emits else blank] for t, u, emits in best)
    return [t for t, _, emits in best if emits], score


@pytest.mark.parametrize("sizes", PLANS)
@pytest.mark.parametrize("outputs", [[6], [1, 5]])
@pytest.mark.parametrize("seed", range(4))
def test_the_best_path_is_the_best_of_all(sizes, outputs, seed):
    lattices = random_lattices(SIZES, outputs, seed=seed, scale=2.0)
    batch = random_batch(SIZES, 6, seed=seed)
    with plan(*PLANS[sizes]):
        frames, score = best_path(lattices, *batch)
    log_probs = dense_logits(lattices).detach().double().log_softmax(-1)
    for row, (frame_count, token_count) in enumerate(SIZES):
        valid = log_probs[row, :frame_count, : token_count + 1].tolist()
        tokens = batch.tokens[row, :token_count].tolist()
        expected, best = by_walking_every_alignment(valid, tokens, blank=0)
        assert frames[row, :token_count].tolist() == expected
        assert not frames[row, token_count:].any()
        assert score[row].item() == pytest.approx(best, abs=1e-4)


def test_a_planted_path_is_found_and_no_more_probable_than_the_sum_of_all():
    """Frames and positions agree on the place of each token; enumeration is not feasible."""
    torch.manual_seed(0)
    frame_count, token_count = 300, 60
    planted = torch.randint(frame_count, (token_count,)).sort().values
    # The sum of both sides is above 0 once the token of this position is due at this frame.
    due = torch.cat((planted - 0.5, torch.tensor([1000.0])))
    lattice = Lattice(
        enc=0.01 * torch.arange(frame_count)[None, :, None],
        pred=-0.01 * due[None, :, None],
        weight=torch.tensor([[-2000.0], [2000.0], [0.0]]),
        bias=torch.zeros(3),
    )
    batch = (
        torch.ones(1, token_count, dtype=torch.long),
        torch.tensor([frame_count]),
        torch.tensor([token_count]),
    )
    frames, score = best_path([lattice], *batch)
    assert frames[0].tolist() == planted.tolist()
    assert score.item() <= -transducer_alignment([lattice], *batch).nll.item() + 1e-3


def test_a_batch_gives_what_each_utterance_gives_alone():
    lattices = random_lattices(SIZES, [6])
    tokens, frame_lens, token_lens = random_batch(SIZES, 6)
    together = best_path(lattices, tokens, frame_lens, token_lens)
    for row, (frame_count, token_count) in enumerate(SIZES):
        alone = [
            lattice._replace(
                enc=lattice.enc[row : row + 1, :frame_count],
                pred=lattice.pred[row : row + 1, : token_count + 1],
            )
            for lattice in lattices
        ]
        frames, score = best_path(
            alone, tokens[row : row + 1, :token_count], frame_lens[[row]], token_lens[[row]]
        )
        assert together.frames[row, :token_count].tolist() == frames[0].tolist()
        torch.testing.assert_close(together.score[row], score[0])


def test_frames_never_fall():
    frames = best_path(random_lattices([(40, 25)], [6]), *random_batch([(40, 25)], 6)).frames[0]
    assert all(a <= b for a, b in itertools.pairwise(frames.tolist()))


@pytest.mark.parametrize("make_model", [ENT, FENT])
def test_hypotheses_of_any_length_move_to_their_best_paths(make_model):
    torch.manual_seed(0)
    model = make_model(9, feature_dim=8, feature_layers=1, encoder_dim=8, joint_dim=8).eval()
    features, frame_lens = torch.randn(3, 12, 1, 8), torch.tensor([12, 9, 5])
    texts = [[3, 1, 4, 1, 5], [], [2, 6]]
    hypotheses = [Hypothesis(tokens, [0] * len(tokens), None, None, 0.0) for tokens in texts]
    aligned = align(model, model.encode(features, frame_lens), frame_lens, hypotheses)
    assert [hypothesis.tokens for hypothesis in aligned] == texts
    for row, (tokens, length) in enumerate(zip(texts, frame_lens.tolist(), strict=True)):
        batch = (
            torch.tensor([tokens], dtype=torch.long),
            frame_lens[[row]],
            torch.tensor([len(tokens)]),
        )
        output = model(features[[row], :length], batch[1], batch[0], batch[2])
        assert aligned[row].frames == best_path(output.token_lattices, *batch).frames[0].tolist()


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 4), st.booleans()), max_size=20),
    st.floats(-1, 1),
    st.floats(-0.49, 0.49),
)
@example([(0, 1, False)] * 3 + [(9, 1, False)], 0.0, -0.4)
@example([(9, 1, False)] * 3, 1.0, 0.4)
def test_words_are_never_empty_and_never_overlap(plan_of_words, rest, shift):
    """For any number of words in a frame, any part of the last frame, and any offset."""
    words, frames = [], []
    for frame, length, long in sorted(plan_of_words):
        frame = max(frame, frames[-1] if frames else 0)
        words.append(("W", len(frames), len(frames) + length))
        frames += [frame] * (length - 1) + [frame + 5 * long]
    duration = max(0.01, (max(frames, default=0) + rest) * 0.04)
    times = word_times(words, frames, 0.04, duration, shift * 0.04)
    assert [text for text, _, _ in times] == ["W"] * len(words)
    assert all(0 <= start < end <= duration for _, start, end in times)
    assert all(a[2] <= b[1] for a, b in itertools.pairwise(times))


def test_an_offset_moves_words_within_the_recording():
    words, frames = [("I", 0, 1), ("SEE", 2, 5)], [0, 4, 5, 6, 8]
    expected = {
        0.0: [("I", 0, 0.18), ("SEE", 0.2, 0.41)],
        -0.01: [("I", 0, 0.17), ("SEE", 0.19, 0.4)],
        0.01: [("I", 0.01, 0.19), ("SEE", 0.21, 0.41)],
    }
    for offset, times in expected.items():
        moved = word_times(words, frames, 0.04, 0.41, offset)
        assert moved == [(text, *map(pytest.approx, both)) for text, *both in times]
