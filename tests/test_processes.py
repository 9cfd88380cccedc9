"""Distributed training with two and four processes on the CPU (gloo) equals that of one process."""

import json
import math
import os
from collections import Counter
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from speechbrain.dataio.sampler import ReproducibleRandomSampler
from test_brain import interrupt, make_brain, sing

from ent_brain import evaluation
from ent_brain.brain import _check_precision
from ent_brain.dataio import ShareOfBatches, make_batch_sampler, make_dataset
from ent_brain.emotions import PUBLISHED
from ent_brain.errors import InputError
from ent_brain.frontend import FbankFrontend
from ent_brain.losses import (
    aligned_pooling_loss,
    lattice_pooling_loss,
    next_token_loss,
    transducer_loss,
)
from ent_brain.tokens import CharTokens

SEED = 5
GLOO = {"distributed_backend": "gloo"}
CASES = {
    "batches of 3": {"batch_size": 3},
    "accumulated": {"batch_size": 2, "grad_accumulation_factor": 2},
    "of similar lattices": {"max_batch_nodes": 700},
}
TOGETHER = [*((case, 2) for case in CASES), ("accumulated", 4)]
"""Cases and processes."""


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    """Manifest of 11 songs of one to four letters."""
    folder = tmp_path_factory.mktemp("songs")
    rng = np.random.default_rng(0)
    manifest = {}
    for index in range(11):
        emotion, text = PUBLISHED.names[index % 4], "ASET"[: 1 + index * 7 % 4]
        song = sing(text, emotion, rng)
        soundfile.write(folder / f"{index:02}.wav", song, 16000)
        seconds = len(song) / 16000
        manifest[f"song{index:02}"] = {
            "wav": f"{{data_root}}/{index:02}.wav",
            "duration": seconds,
            "transcript": text,
            "emotion": emotion,
            "speaker": "Ann",
            "segments": [{"start": 0.0, "end": seconds / 2, "emotion": "sad"}],
        }
    (folder / "songs.json").write_text(json.dumps(manifest))
    return folder / "songs.json"


def load(songs):
    return make_dataset(
        {"corpus": (songs, songs.parent)}, CharTokens(), PUBLISHED, FbankFrontend(0.04), 1.0
    )


class Unions:
    """Batches of one process; each is the union of several processes' batches in a step."""

    def __init__(self, sampler, batch_size, processes):
        self.shares = [ShareOfBatches(sampler, r, processes, batch_size) for r in range(processes)]

    def set_epoch(self, epoch):
        for share in self.shares:
            share.set_epoch(epoch)

    def __iter__(self):
        return iter([sum(batches, []) for batches in zip(*self.shares, strict=True)])

    def __len__(self):
        return len(self.shares[0])


def trace(folder, dataset, case, alone_as=None):
    """Train two epochs; with ``alone_as``, in one process on the batches of so many processes."""
    run_opts = {"max_grad_norm": math.inf, **GLOO}
    run_opts |= {key: case[key] for key in ("grad_accumulation_factor", "precision") if key in case}
    terms = {"lm_weight": 0.3, "lattice_mode": "aligned", **case.get("terms", {})}
    opt_class = partial(torch.optim.SGD, lr=0.01)
    brain = make_brain(folder, opt_class=opt_class, run_opts=run_opts, **terms)
    prepare, gradients = brain.init_optimizers, []

    def watch(*_):
        gradients.append(torch.cat([p.grad.flatten() for p in brain.raw_modules.parameters()]))

    def init_optimizers():
        prepare()
        brain.optimizer.register_step_pre_hook(watch)

    brain.init_optimizers = init_optimizers
    batches = {"batch_size": case.get("batch_size"), "shuffle": True}
    if "max_batch_nodes" in case:
        batches = {"batch_sampler": make_batch_sampler(dataset, case["max_batch_nodes"])}
    if alone_as:
        sampler = batches.get("batch_sampler")
        sampler = sampler or ReproducibleRandomSampler(dataset, SEED)
        batches = {"batch_sampler": Unions(sampler, case.get("batch_size"), alone_as)}
    loaders = {"train_loader_kwargs": batches, "valid_loader_kwargs": {"batch_size": 2}}
    brain.fit(brain.hparams.epoch_counter, dataset, dataset, **loaders)
    brain.evaluate(dataset, test_loader_kwargs={"batch_size": 4})
    few = dataset.filtered_sorted(select_n=3)
    whole = brain.stats
    brain.evaluate(few, test_loader_kwargs={"batch_size": 4})
    return {
        "gradients": gradients,
        "state": brain.raw_modules.state_dict(),
        "history": brain.history,
        "summary": whole.summarize(),
        "by utterance": list(whole.by_utterance().items()),
        "of few": brain.stats.by_utterance(),
    }


# --- several processes and one


def run(function, processes, folder, *args):
    """Call ``function(folder, *args)`` in several processes; return the results by rank."""
    torch.multiprocessing.start_processes(
        _process, (function, processes, folder, args), processes, start_method="forkserver"
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(processes)]


def _process(rank, function, processes, folder, args):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "SB_GLOBAL_SEED": str(SEED)}
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=processes)
    torch.save(function(folder, *args), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def _train(folder, songs, cases):
    dataset = load(songs)
    return {name: trace(folder / name, dataset, CASES[name]) for name in cases}


@pytest.fixture(scope="module")
def together(processes, songs, tmp_path_factory):
    """Traces of 2 or 4 processes, and the trace of one process with all of their batches."""

    @cache
    def train(count):
        cases = [name for name, of in TOGETHER if of == count]
        folder = tmp_path_factory.mktemp("together")
        ranks = run(_train, count, folder, songs, cases)
        dataset = load(songs)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SB_GLOBAL_SEED", str(SEED))
            alone = {
                name: trace(folder / f"alone, {name}", dataset, CASES[name], alone_as=count)
                for name in cases
            }
        return ranks, alone

    return train


@pytest.mark.parametrize(("case", "count"), TOGETHER)
def test_gradients_are_those_of_one_process_with_all_the_batches(together, case, count):
    ranks, alone = together(count)
    expected = alone[case]["gradients"]
    assert len(expected) >= 2
    for of_rank in ranks:
        found = of_rank[case]["gradients"]
        assert len(found) == len(expected)
        for gradient, of_all in zip(found, expected, strict=True):
            assert (gradient - of_all).norm() < 1e-5 * of_all.norm()
        for name, value in alone[case]["state"].items():
            torch.testing.assert_close(of_rank[case]["state"][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("case", "count"), TOGETHER)
def test_statistics_count_each_utterance_once_and_are_the_same_in_all_processes(
    together, case, count
):
    ranks, alone = together(count)
    expected = alone[case]
    for of_rank in ranks:
        assert of_rank[case]["by utterance"] == ranks[0][case]["by utterance"]
        assert of_rank[case]["history"] == ranks[0][case]["history"]
        assert [name for name, _ in of_rank[case]["by utterance"]] == [
            name for name, _ in expected["by utterance"]
        ]
        assert len(expected["by utterance"]) == 11
        assert of_rank[case]["summary"] == pytest.approx(expected["summary"])
        assert of_rank[case]["of few"] == expected["of few"]  # fewer than four processes
        for epoch, of_all in zip(of_rank[case]["history"], expected["history"], strict=True):
            assert epoch == pytest.approx(of_all, rel=1e-4)


def _train_closely(folder, songs):
    dataset = load(songs).filtered_sorted(select_n=8)  # batches of four and of two come out even
    halves = {"batch_size": 2, "grad_accumulation_factor": 2}
    cases = {
        "at once": {"batch_size": 4},
        "accumulated": halves,
        "in bfloat16": {**halves, "precision": "bf16"},
    }
    found = {}
    for name, case in cases.items():
        # Without statistics of what was seen before, or a mean that is not one over utterances.
        frontend = FbankFrontend(0.04, normalize_utterances=True)
        terms = {"lm_weight": 0.0, "frontend": frontend}
        found[name] = trace(folder / name, dataset, {**case, "terms": terms})
    return found


def test_accumulation_and_bfloat16_change_little(processes, songs, tmp_path):
    try:
        _check_precision(torch.nn.ModuleList([torch.nn.LSTM(1, 1)]), "cpu", "bf16")
    except InputError as error:
        pytest.skip(str(error))
    for found in run(_train_closely, 2, tmp_path, songs):
        at_once, accumulated, rough = (each["gradients"] for each in found.values())
        assert len(at_once) == len(accumulated) == len(rough) == 2
        for exact, same, close in zip(at_once, accumulated, rough, strict=True):
            assert (same - exact).norm() < 1e-5 * exact.norm()
            assert close.isfinite().all()
            assert (close - exact).norm() < 0.1 * exact.norm()


# --- what befalls some of them


def _go_on(folder, songs):
    """State and history of a training interrupted within an epoch, and of an uninterrupted one."""
    dataset = load(songs)
    run_opts = {**GLOO, "ckpt_interval_steps": 1}
    loaders = {"train_loader_kwargs": {"batch_size": 2}, "valid_loader_kwargs": {"batch_size": 2}}
    found = []
    for name in ("straight", "stopped", "stopped"):
        brain = make_brain(folder / name, dropout=0.3, resume=True, run_opts=run_opts)
        if name == "stopped" and len(found) == 1:
            interrupt(brain, "fit_batch", lambda batch, brain=brain: brain.optimizer_step == 4)
            with pytest.raises(KeyboardInterrupt):
                brain.fit(brain.hparams.epoch_counter, dataset, dataset, **loaders)
        else:
            brain.fit(brain.hparams.epoch_counter, dataset, dataset, **loaders)
        found.append((brain.raw_modules.state_dict(), brain.history, brain.optimizer_step))
    return found


def test_processes_that_are_stopped_go_on_as_if_nothing_had_happened(processes, songs, tmp_path):
    for straight, stopped, resumed in run(_go_on, 2, tmp_path, songs):
        assert (straight[2], stopped[2], resumed[2]) == (6, 4, 6)
        assert straight[0].keys() == resumed[0].keys()
        assert all(torch.equal(value, resumed[0][name]) for name, value in straight[0].items())
        for epoch, expected in zip(resumed[1], straight[1], strict=True):
            assert epoch == pytest.approx(expected)


def _masks(folder):
    """Two draws of dropout, and the initial weights of a process."""
    brain = make_brain(folder / os.environ["RANK"], run_opts=GLOO)
    brain.steps_per_epoch = 1
    brain.on_fit_start()
    return torch.rand(5), np.random.rand(5), brain.raw_modules.state_dict()


def test_processes_begin_with_the_same_weights_and_drop_others(processes, tmp_path):
    (first, other), (first_too, other_too), (weights, same) = zip(
        *run(_masks, 2, tmp_path), strict=True
    )
    assert not set(first.tolist()) & set(other.tolist())
    assert not set(first_too) & set(other_too)
    assert all(torch.equal(value, same[name]) for name, value in weights.items())


def _spoil(folder, songs):
    """Error message if the loss of one process is NaN, and whether the weights stay the same."""
    dataset = load(songs)
    brain = make_brain(folder / "out", run_opts={**GLOO, "nonfinite_patience": 0})
    honest = brain._loss_terms

    def terms(predictions, batch):
        factor = math.nan if os.environ["RANK"] == "1" else 1.0
        return {k: term * factor for k, term in honest(predictions, batch).items()}

    brain._loss_terms = terms
    before = {k: value.clone() for k, value in brain.modules["model"].state_dict().items()}
    with pytest.raises(InputError) as error:
        brain.fit([1], dataset, train_loader_kwargs={"batch_size": 2})
    after = brain.raw_modules["model"].state_dict()
    return str(error.value), all(torch.equal(after[k], value) for k, value in before.items())


def test_a_loss_of_one_process_that_is_no_number_is_left_out_by_all(processes, songs, tmp_path):
    (told, same), (told_too, same_too) = run(_spoil, 2, tmp_path, songs)
    assert told == told_too
    assert told.partition(":")[0].count("song") == 4  # of both processes
    assert same
    assert same_too


def _report(folder):
    """The processes that draw; figures cannot be sent to another process."""
    drawn = []

    def draw(*_):
        drawn.append(os.environ["RANK"])
        return lambda: None  # which pickle refuses

    def stop(**_):
        raise InputError("enough")

    (folder / os.environ["RANK"]).mkdir()
    (folder / os.environ["RANK"] / "history.json").write_text('[{"epoch": 1}]')
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="enough"):
        patch.setattr(evaluation, "plot_learning_curves", draw)
        hparams = {"output_folder": folder / os.environ["RANK"]}
        evaluation.report(SimpleNamespace(on_evaluate_start=stop), None, None, {}, hparams)
    return drawn


def test_one_process_draws_and_keeps_the_figure_to_itself(processes, tmp_path):
    assert run(_report, 2, tmp_path) == [["0"], []]


# --- shares


def test_processes_obey_shuffle_false(songs, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    brain, found = make_brain(tmp_path), []
    brain.distributed_launch = True
    for brain.rank in (0, 1):
        given = brain._train_loader_specifics(load(songs), {"batch_size": 3, "shuffle": False})
        for epoch in (1, 2):
            given["batch_sampler"].set_epoch(epoch)
            found.append(list(given["batch_sampler"]))
    # As one process has them, in turn: 11 songs by three.
    assert found == [[[0, 1, 2], [6, 7, 8]]] * 2 + [[[3, 4, 5], [9, 10]]] * 2


class Order(list):
    """A sampler with a different order in every epoch."""

    def set_epoch(self, epoch):
        pass


@given(
    batches=st.lists(st.integers(1, 5), min_size=1, max_size=12),
    processes=st.integers(1, 6),
)
def test_shares_of_batches_are_as_many_and_have_each_utterance_once(batches, processes):
    numbers = iter(range(sum(batches)))
    given_batches = Order([[next(numbers) for _ in range(size)] for size in batches])
    if sum(batches) < processes:
        with pytest.raises(InputError, match=f"than the {processes} processes. Start fewer"):
            ShareOfBatches(given_batches, 0, processes)
        return
    shares = [ShareOfBatches(given_batches, rank, processes) for rank in range(processes)]
    assert len(set(map(len, shares))) == 1
    found = [batch for share in shares for batch in share]
    assert max(map(len, found)) <= max(batches)
    utterances = sorted(sum(found, []))
    assert len(set(utterances)) == len(utterances)
    # Some are left out only where there is nothing to halve.
    left_out = sum(batches) - len(utterances)
    assert not left_out or (left_out < processes and max(map(len, found)) == 1)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_step_of_several_is_a_step_of_one_with_larger_batches(processes):
    order = ReproducibleRandomSampler(range(24), seed=SEED)
    shares = [ShareOfBatches(order, rank, processes, 4) for rank in range(processes)]
    for epoch in (1, 2):
        for share in shares:
            share.set_epoch(epoch)
        steps = [sum(batches, []) for batches in zip(*shares, strict=True)]
        order.set_epoch(epoch)
        everything = list(order)
        size = 4 * processes
        assert steps == [everything[i : i + size] for i in range(0, 24, size)]


# --- partly labelled utterances of two corpora


MISSING = ("transcript", "emotion", None, None, "emotion", "transcript")
"""Labels that the songs lack, in turn."""

PARTLY = {"rnnt_weight": 0.7, "head_weight": 0.5, "lattice_weight": 0.4, "lm_weight": 0.3}
PARTLY |= {"ctc_weight": 0.2}
STEP = {"batch_size": 3, "grad_accumulation_factor": 2}


@pytest.fixture(scope="module")
def corpora(songs):
    """The songs in two corpora, without half of their labels."""
    entries = list(json.loads(songs.read_text()).items())
    for index, (_, entry) in enumerate(entries):
        if missing := MISSING[index % len(MISSING)]:
            entry[missing] = None
        del entry["segments"]
    found = {}
    for name, part in (("words", entries[:6]), ("emotions", entries[6:])):
        path = songs.parent / f"{name}.json"
        path.write_text(json.dumps(dict(part)))
        found[name] = (path, songs.parent)
    return found


def first_step(folder, corpora, mode):
    """First optimiser step of a process: features by id, weights and gradients."""
    dataset = make_dataset(corpora, CharTokens(), PUBLISHED, FbankFrontend(0.04), 1.0)
    run_opts = {"max_grad_norm": math.inf, "optimizer_step_limit": 1, **GLOO}
    run_opts["grad_accumulation_factor"] = STEP["grad_accumulation_factor"]
    opt_class = partial(torch.optim.SGD, lr=0.01)
    brain = make_brain(folder, opt_class=opt_class, run_opts=run_opts, lattice_mode=mode, **PARTLY)
    seen, prepare, honest, gradients = [], brain.init_optimizers, brain.fit_batch, []
    state = {name: value.clone() for name, value in brain.raw_modules.model.state_dict().items()}

    def fit_batch(batch):
        loss = honest(batch)
        features, frame_lens = outputs.pop()
        rows = zip(batch.id, features, frame_lens, strict=True)
        seen.extend((name, row[:count].detach()) for name, row, count in rows)
        return loss

    def init_optimizers():
        prepare()
        model = brain.raw_modules.model
        brain.optimizer.register_step_pre_hook(
            lambda *_: gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
        )

    outputs = []
    brain.raw_modules.frontend.register_forward_hook(lambda *args: outputs.append(args[2]))
    brain.fit_batch, brain.init_optimizers = fit_batch, init_optimizers
    loader = {"batch_size": STEP["batch_size"], "shuffle": True}
    brain.fit(brain.hparams.epoch_counter, dataset, train_loader_kwargs=loader)
    return {"seen": seen, "state": state, "gradients": gradients[0]}


def gradients_term_by_term(brain, corpora, seen, mode):
    """Gradients of each term's mean over the utterances with its label, one by one."""
    entries = {}
    for path, _ in corpora.values():
        entries |= json.loads(path.read_text())
    model, tokens_of = brain.raw_modules.model, CharTokens().encode
    sums, counts = dict.fromkeys(("rnnt", "ctc", "head", "lattice", "lm"), 0.0), Counter()
    for name, features in seen:
        transcript, emotion = (entries[name][key] for key in ("transcript", "emotion"))
        tokens = torch.tensor([tokens_of(transcript or "")], dtype=torch.long)
        lens = torch.tensor([len(features)]), torch.tensor([tokens.size(1)])
        output = model(features[None], lens[0], tokens, lens[1])
        if transcript is not None:
            sums["rnnt"] += transducer_loss(output.token_lattices, tokens, *lens)
            positions = tokens.size(1) + 1
            sums["lm"] += positions * next_token_loss(output.lm_logits, tokens, lens[1])
            log_probs = output.ctc_logits.log_softmax(-1).transpose(0, 1)
            sums["ctc"] += torch.nn.functional.ctc_loss(log_probs, tokens, *lens, reduction="sum")
            counts["rnnt"] += 1
            counts["ctc"] += 1
            counts["lm"] += positions
        if emotion is not None:
            target = torch.tensor([PUBLISHED.index(emotion)])
            sums["head"] += torch.nn.functional.cross_entropy(output.head_logits, target)
            if mode == "aligned":
                pooled = aligned_pooling_loss(
                    output.token_lattices, output.emotion_lattice, tokens, target, *lens
                )
            else:
                pooled = lattice_pooling_loss(output.emotion_lattice, target, *lens, mode=mode)
            sums["lattice"] += pooled
            counts["head"] += 1
            counts["lattice"] += 1
    total = sum(PARTLY[f"{name}_weight"] * sums[name] / counts[name] for name in sums)
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(total, parameters), strict=True)), counts


def check_gradients(folder, ranks, corpora, mode):
    brain = make_brain(folder, lattice_mode=mode, **PARTLY)
    brain.raw_modules.model.load_state_dict(ranks[0]["state"])
    seen = [each for rank in ranks for each in rank["seen"]]
    assert len({name for name, _ in seen}) == len(seen)
    expected, counts = gradients_term_by_term(brain, corpora, seen, mode)
    assert 0 < counts["rnnt"] < len(seen)
    assert 0 < counts["head"] < len(seen)
    for rank in ranks:
        for name, gradient in expected.items():
            found = rank["gradients"][name]
            torch.testing.assert_close(found, gradient, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("mode", ["one", "aligned"])
def test_terms_are_means_over_the_labelled_utterances_of_the_step(
    corpora, tmp_path, monkeypatch, mode
):
    monkeypatch.setenv("SB_GLOBAL_SEED", str(SEED))
    alone = first_step(tmp_path / "one", corpora, mode)
    check_gradients(tmp_path / "again", [alone], corpora, mode)


def test_so_they_are_over_two_processes(processes, corpora, tmp_path):
    ranks = run(partial(_first_step, corpora=corpora), 2, tmp_path)
    check_gradients(tmp_path / "again", ranks, corpora, "aligned")


def _first_step(folder, corpora):
    return first_step(folder / "step", corpora, "aligned")
