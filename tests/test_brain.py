import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain.utils.train_logger import FileTrainLogger
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

from ent_brain import pooling
from ent_brain.brain import EmotionTransducerBrain, _check_precision
from ent_brain.checkpoints import WholeCheckpointer
from ent_brain.dataio import make_batch_sampler, make_dataset
from ent_brain.emotions import PUBLISHED
from ent_brain.errors import InputError
from ent_brain.frontend import FbankFrontend
from ent_brain.losses import (
    aligned_emotions,
    aligned_event_loss,
    aligned_events,
    lattice_pooling_loss,
    next_token_loss,
    supervised_lattice_loss,
    transducer_alignment,
    transducer_loss,
)
from ent_brain.manifest import Interval
from ent_brain.metrics import TransducerStats
from ent_brain.model import ENT, FENT
from ent_brain.tokens import CharTokens

ADAMW = Path(__file__).resolve().parents[1] / "hparams" / "adamw.yaml"
LETTERS = "AEST"
LOUDNESS = {"happy": 0.3, "angry": 0.6, "sad": 0.05, "neutral": 0.15}
WEIGHTS = {"rnnt_weight": 0.5, "head_weight": 0.5, "lattice_weight": 0.5, "lm_weight": 0.0}
WEIGHTS |= {"ctc_weight": 0.0}


def sing(text, emotion, rng):
    """A tone for each letter and silence for a space; the emotion determines the loudness."""
    time = np.arange(1920) / 16000
    notes = [
        np.hanning(1920) * np.sin(2 * np.pi * (200 + 500 * LETTERS.find(letter)) * time)
        for letter in text
    ]
    song = LOUDNESS[emotion] * np.concatenate(notes) * np.repeat([c != " " for c in text], 1920)
    return song + 0.001 * rng.normal(size=len(song))


def draw_text(rng):
    words = []
    for _ in range(2):
        first = rng.choice(list(LETTERS))
        second = rng.choice([c for c in LETTERS if c != first])
        words.append(first + second + rng.choice([c for c in LETTERS if c != second]))
    return " ".join(words)


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    """Manifest of 16 songs of six letters each, four of each emotion."""
    folder = tmp_path_factory.mktemp("songs")
    rng = np.random.default_rng(0)
    manifest = {}
    for index in range(16):
        emotion = PUBLISHED.names[index % 4]
        text = draw_text(rng)
        song = sing(text, emotion, rng)
        soundfile.write(folder / f"song{index:02}.wav", song, 16000)
        half = len(song) // 2
        words = text.split()
        intervals = [(0, half, "neutral", words[0]), (half, len(song), emotion, words[1])]
        manifest[f"song{index:02}"] = {
            "wav": f"{{data_root}}/song{index:02}.wav",
            "duration": len(song) / 16000,
            "transcript": text,
            "emotion": emotion,
            "speaker": "Ann",
            "intervals": [Interval(*interval)._asdict() for interval in intervals],
        }
    (folder / "songs.json").write_text(json.dumps(manifest))
    return folder / "songs.json"


@pytest.fixture(scope="module")
def dataset(songs):
    return make_dataset(
        {"corpus": (songs, songs.parent)}, CharTokens(), PUBLISHED, FbankFrontend(0.04), 1.0
    )


def constant(optimizer, num_warmup_steps, num_training_steps):
    return LambdaLR(optimizer, lambda step: 1.0)


def make_brain(
    folder,
    model=ENT,
    size=16,
    dropout=0.0,
    epochs=2,
    resume=False,
    run_opts=(),
    frontend=None,
    **given,
):
    """A small Brain; ``given`` are hparams, and ``opt_class`` is the optimiser."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    frontend = frontend or FbankFrontend(0.04)
    weights = WEIGHTS | {key: given[key] for key in WEIGHTS if key in given}
    model = model(
        vocab_size=31,
        feature_dim=frontend.feature_dim,
        feature_layers=1,
        encoder_dim=size,
        embedding_dim=size // 2,
        predictor_dim=size // 2,
        joint_dim=size,
        dropout=dropout,
        token_joint=weights["rnnt_weight"],
        emotion_joint=weights["lattice_weight"],
        pooled_head=weights["head_weight"],
        lm_head=weights["lm_weight"],
        ctc_head=weights["ctc_weight"],
    )
    hparams = {
        **weights,
        "fastemit": 0.0,
        "lattice_mode": "one",
        "aligned_top": 0.3,
        "aligned_seconds": 0.3,
        "head_intervals": False,
        "max_symbols": 3,
        "beam_size": 1,
        "segment_decoding": "argmax",
        "segment_seconds": 0.3,
        "lr_schedule": constant,
        "warmup_epochs": 0,
        "number_of_epochs": epochs,
        "epoch_counter": EpochCounter(epochs),
        "train_logger": FileTrainLogger(str(folder / "train_log.txt")),
        "output_folder": str(folder),
        **given,
    }
    checkpointer = None
    if resume:
        parts = {"frontend": frontend, "model": model, "counter": hparams["epoch_counter"]}
        checkpointer = WholeCheckpointer(str(folder / "save"), parts)
    return EmotionTransducerBrain(
        CharTokens(),
        PUBLISHED,
        modules={"frontend": frontend, "model": model},
        opt_class=hparams.pop("opt_class", partial(torch.optim.AdamW, lr=1e-3)),
        hparams=hparams,
        run_opts={"noprogressbar": True, **dict(run_opts)},
        checkpointer=checkpointer,
    )


def fit(brain, dataset, batch_size=8, max_batch_nodes=None):
    train_loader_kwargs = {"batch_size": batch_size, "shuffle": True}
    if max_batch_nodes:
        train_loader_kwargs = {"batch_sampler": make_batch_sampler(dataset, max_batch_nodes)}
    brain.fit(
        brain.hparams.epoch_counter,
        dataset,
        dataset,
        train_loader_kwargs=train_loader_kwargs,
        valid_loader_kwargs={"batch_size": batch_size},
    )


def a_batch(dataset, count=4):
    return PaddedBatch([dataset[index] for index in range(count)])


# --- what is no number


def poisoned(brain, monkeypatch, spoil):
    """Make the loss terms of batches with the utterance ``spoil`` NaN."""
    honest = brain._loss_terms

    def terms(predictions, batch):
        found = honest(predictions, batch)
        if spoil in batch.id:
            found["rnnt"] = found["rnnt"] * math.nan
        return found

    monkeypatch.setattr(brain, "_loss_terms", terms)


def weights(brain):
    return [p.detach().clone() for p in brain.modules["model"].parameters()]


def test_a_loss_that_is_no_number_changes_nothing_and_is_named(
    tmp_path, dataset, monkeypatch, caplog
):
    brain = make_brain(tmp_path, epochs=2)
    spoil = dataset.data_ids[0]
    poisoned(brain, monkeypatch, spoil)
    seen = []
    honest = brain.fit_batch

    def watched(batch):
        before = weights(brain)
        loss = honest(batch)
        same = all(map(torch.equal, before, weights(brain)))
        seen.append((spoil in batch.id, same))
        return loss

    monkeypatch.setattr(brain, "fit_batch", watched)
    brain.fit(
        brain.hparams.epoch_counter, dataset, train_loader_kwargs={"batch_size": 4, "shuffle": True}
    )
    assert {(True, True), (False, False)} == set(seen)
    [line, _] = [r.getMessage() for r in caplog.records if "is NaN or" in r.getMessage()]
    assert spoil in line.partition(":")[0].split(", ")
    assert line.endswith(
        ": loss or gradient is NaN or infinite. This step is skipped (1 in a row)."
    )
    assert all(weight.isfinite().all() for weight in weights(brain))
    assert all(math.isfinite(value) for value in brain.train_losses.values())


@pytest.mark.parametrize("batch_size", [4, 100])  # 100: an epoch is one step
def test_too_many_in_a_row_end_the_training_with_advice(tmp_path, dataset, monkeypatch, batch_size):
    brain = make_brain(tmp_path, epochs=4, run_opts={"nonfinite_patience": 2})
    honest = brain._loss_terms
    monkeypatch.setattr(
        brain,
        "_loss_terms",
        lambda *given: {name: term * math.inf for name, term in honest(*given).items()},
    )
    before = weights(brain)
    with pytest.raises(InputError, match=r"as in the 2 steps before\. Lower lr, raise") as error:
        loader = {"batch_size": batch_size}
        brain.fit(brain.hparams.epoch_counter, dataset, train_loader_kwargs=loader)
    assert "\n" not in str(error.value)
    assert all(map(torch.equal, before, weights(brain)))


def test_a_gradient_that_is_no_number_is_left_out_though_the_loss_is_one(
    tmp_path, dataset, monkeypatch, caplog
):
    brain = make_brain(tmp_path, epochs=1)
    spoil = dataset.data_ids[0]
    honest, trained = brain._loss_terms, brain.modules["model"].encoder.ahead.weight_ih_l0

    def terms(predictions, batch):
        found = honest(predictions, batch)
        if spoil in batch.id:  # the root's slope at 0 is infinite, its value 0
            found["rnnt"] = found["rnnt"] + (0 * trained.sum()).abs().sqrt()
        return found

    monkeypatch.setattr(brain, "_loss_terms", terms)
    brain.fit(brain.hparams.epoch_counter, dataset, train_loader_kwargs={"batch_size": 4})
    [line] = [r.getMessage() for r in caplog.records if "is NaN or" in r.getMessage()]
    assert spoil in line.partition(":")[0].split(", ")
    assert all(weight.isfinite().all() for weight in weights(brain))


def test_of_accumulated_steps_only_their_own_utterances_are_named(tmp_path, dataset, monkeypatch):
    """SpeechBrain drops an epoch's incomplete step; the next step must not name its utterances."""
    batches = -(-len(dataset) // 4)
    factor = next(count for count in range(2, batches) if batches % count)
    brain = make_brain(tmp_path, epochs=2, run_opts={"grad_accumulation_factor": factor})
    named = []
    honest = brain._clip_gradients

    def watched(*args):
        named.append(list(brain.ids_of_step))
        honest(*args)

    monkeypatch.setattr(brain, "_clip_gradients", watched)
    brain.fit(brain.hparams.epoch_counter, dataset, train_loader_kwargs={"batch_size": 4})
    assert {len(ids) for ids in named} <= {4 * factor, 4 * (factor - 1) + len(dataset) % 4}


def scaled(folder, scale, **given):
    """A Brain with the loss scaler of fp16, which SpeechBrain only makes on GPUs."""
    brain = make_brain(folder, **given)
    brain.scaler = torch.GradScaler("cpu", init_scale=scale)
    return brain


def test_fp16_names_and_counts_a_loss_that_is_no_number(tmp_path, dataset, monkeypatch, caplog):
    brain = scaled(tmp_path, 4.0, epochs=1, run_opts={"nonfinite_patience": 3})
    spoil = dataset.data_ids[6]
    poisoned(brain, monkeypatch, spoil)
    brain.fit([1], dataset, train_loader_kwargs={"batch_size": 4})
    [line] = [r.getMessage() for r in caplog.records if "is NaN or" in r.getMessage()]
    assert line.startswith(f"{', '.join(dataset.data_ids[4:8])}: loss or gradient is NaN or inf")
    assert line.endswith("This step is skipped (1 in a row).")
    assert brain.left_out == 0  # two good steps followed
    honest, before = brain._loss_terms, weights(brain)
    monkeypatch.setattr(
        brain, "_loss_terms", lambda *args: {k: v * math.nan for k, v in honest(*args).items()}
    )
    with pytest.raises(InputError, match="as in the 3 steps before"):
        brain.fit([2, 3], dataset, train_loader_kwargs={"batch_size": 4})
    assert all(map(torch.equal, before, weights(brain)))


def test_fp16_finds_its_loss_scale_without_counting(tmp_path, dataset, caplog):
    brain = scaled(tmp_path, 2.0**127, epochs=4, run_opts={"nonfinite_patience": 0})
    before = weights(brain)
    brain.fit(brain.hparams.epoch_counter, dataset, train_loader_kwargs={"batch_size": 4})
    lines = [r.getMessage() for r in caplog.records if "overflows in fp16" in r.getMessage()]
    assert lines[0].startswith(f"{', '.join(dataset.data_ids[:4])}: gradient overflows")
    assert lines[0].endswith(f"the loss scale is lowered to {2.0**126:g}.")
    assert 0 < len(lines) < 16
    assert not any(map(torch.equal, before, weights(brain)))
    assert all(weight.isfinite().all() for weight in weights(brain))


# --- what is too large for the memory


def no_memory_of_cpu():
    torch.empty(2**60, dtype=torch.uint8)


def no_memory_of_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a lot")


def no_memory_of_numpy():
    np.empty(2**60, dtype=np.uint8)


@pytest.mark.parametrize("fail", [no_memory_of_cpu, no_memory_of_gpu, no_memory_of_numpy])
def test_out_of_memory_is_one_line_with_the_utterances_and_settings(tmp_path, dataset, fail):
    brain = make_brain(tmp_path, max_batch_nodes=None, max_train_seconds=20)
    brain._loss_terms = lambda *_: fail()
    batch = {"batch_size": 4}
    with pytest.raises(InputError) as error:
        brain.fit([1], dataset, train_loader_kwargs=batch)
    line = str(error.value)
    assert line.startswith(f"{', '.join(dataset.data_ids[:4])}: not enough memory for this batch (")
    assert line.endswith(
        "). Lower batch_size or max_train_seconds; grad_accumulation_factor keeps the size of a "
        "step."
    )
    brain.hparams.max_batch_nodes = 1000
    del brain.hparams.max_train_seconds
    with pytest.raises(InputError, match="Lower max_batch_nodes; grad_accumulation_factor"):
        brain.fit([1], dataset, train_loader_kwargs=batch)
    brain.compute_forward = lambda *_, **__: fail()
    with pytest.raises(InputError, match="song03: .* Lower batch_size of test_dataloader_opts"):
        brain.evaluate(dataset, test_loader_kwargs=batch)


def test_another_error_stays_what_it_is(tmp_path, dataset):
    brain = make_brain(tmp_path)
    brain._loss_terms = lambda *_: torch.zeros(2) + torch.zeros(3)
    with pytest.raises(RuntimeError, match="must match the size"):
        brain.fit([1], dataset, train_loader_kwargs={"batch_size": 4})


# --- what is hardly an utterance


@pytest.fixture(scope="module")
def oddities(tmp_path_factory):
    folder = tmp_path_factory.mktemp("oddities")
    noise = np.random.default_rng(0).normal(size=40 * 16000)
    waves = {
        "silence": (np.zeros(16000), "AT EASE"),
        "clipped": (np.sign(noise[:16000]), "A TEST"),
        "one_word": (noise[:8000] / 10, "SEAT"),
        "one_token": (noise[:1600] / 10, "A"),
        "crowded": (noise[:16000] / 10, "EASE " * 8 + "TEA"),  # 43 tokens, 25 frames
        "long": (noise / 10, "TEASE AT SEA"),
    }
    manifest = {}
    for index, (name, (wave, text)) in enumerate(waves.items()):
        soundfile.write(folder / f"{name}.wav", wave, 16000)
        manifest[name] = {
            "wav": f"{{data_root}}/{name}.wav",
            "duration": len(wave) / 16000,
            "transcript": text,
            "emotion": PUBLISHED.names[index % 4],
            "speaker": "Ann",
        }
    (folder / "oddities.json").write_text(json.dumps(manifest))
    return folder / "oddities.json"


@pytest.mark.parametrize("model", [ENT, FENT])
@pytest.mark.parametrize("mode", ["one", "full_t", "full_u", "mil", "aligned", "aligned_event"])
def test_what_is_hardly_an_utterance_is_learnt_from_and_heard(
    tmp_path, oddities, model, mode, caplog
):
    # Each model learns half of the modes from utterances normalised alone.
    normalize_utterances = (mode in ("one", "full_u", "aligned")) == (model is ENT)
    frontend = FbankFrontend(0.04, normalize_utterances=normalize_utterances)
    dataset = make_dataset(
        {"corpus": (oddities, oddities.parent)}, CharTokens(), PUBLISHED, frontend, 2.0
    )
    decoding = {"segment_decoding": "single_event", "beam_size": 2}
    brain = make_brain(tmp_path, model, frontend=frontend, epochs=1, lattice_mode=mode, **decoding)
    before = weights(brain)
    fit(brain, dataset, batch_size=1)
    assert not [record for record in caplog.records if "is NaN or" in record.getMessage()]
    assert not any(map(torch.equal, before, weights(brain)))
    assert all(math.isfinite(value) for epoch in brain.history for value in epoch.values())
    brain.evaluate(dataset, test_loader_kwargs={"batch_size": 6})
    assert set(brain.stats.hypotheses) == set(dataset.data_ids)
    for name, hypothesis in brain.stats.hypotheses.items():
        frames, _ = hypothesis.emotion_log_probs.shape
        assert frames == pytest.approx(dataset.data[name]["duration"] / 0.04, abs=1.5)
        assert hypothesis.emotion_log_probs.isfinite().all()
        assert len(hypothesis.frames) == len(hypothesis.tokens)


# --- learning


@pytest.mark.parametrize("model", [ENT, FENT])
def test_a_small_set_is_learnt_by_heart(tmp_path, dataset, model):
    steps = 300
    brain = make_brain(
        tmp_path,
        model,
        size=64,
        dropout=0.1,
        lattice_mode="aligned",
        opt_class=partial(torch.optim.AdamW, lr=0.01),
        lr_schedule=lambda optimizer, **_: LambdaLR(optimizer, lambda step: 1 - step / steps),
    )
    loader = {"batch_size": 4, "shuffle": True}
    brain.fit(range(1, steps * 4 // 16 + 1), dataset, train_loader_kwargs=loader)
    brain.evaluate(dataset, test_loader_kwargs={"batch_size": 6})
    summary = brain.stats.summarize()
    assert (summary["WER"], summary["CER"]) == (0, 0)
    assert (summary["WA"], summary["UA"]) == (100, 100)


@pytest.mark.parametrize("model", [ENT, FENT])
def test_the_search_reads_its_emotions_off_the_lattice(tmp_path, dataset, model):
    brain = make_brain(tmp_path, model)
    brain.modules.eval()
    batch = a_batch(dataset, 1)
    [hypothesis] = brain.compute_forward(batch, sb.Stage.VALID).hypotheses
    assert hypothesis.tokens
    lattice = brain.emotion_lattice(batch.sig.data[0], hypothesis.tokens)
    frames = torch.arange(len(lattice))
    emitted = (torch.tensor(hypothesis.frames) <= frames[:, None]).sum(1)
    torch.testing.assert_close(lattice[frames, emitted], hypothesis.emotion_log_probs.exp())


# --- loss terms


def expected_terms(brain, batch):
    """Unweighted terms, each from its own function."""
    frontend, model = brain.modules.frontend, brain.modules.model
    features, frame_lens = frontend(*batch.sig)
    tokens, token_lens = batch.tokens.data, batch.token_count
    weights, terms = brain.hparams, {}
    if not weights.rnnt_weight:  # nothing is transcribed, so no token is seen
        tokens, token_lens = tokens[:, :0], torch.zeros_like(token_lens)
    output = model(features, frame_lens, tokens, token_lens)
    if weights.rnnt_weight:
        terms["rnnt"] = transducer_loss(output.token_lattices, tokens, frame_lens, token_lens)
    if weights.head_weight:
        terms["head"] = cross_entropy(output.head_logits, batch.emotion_index)
    if weights.lattice_weight:
        terms["lattice"] = lattice_pooling_loss(
            output.emotion_lattice, batch.emotion_index, frame_lens, token_lens, mode="one"
        )
    if weights.lm_weight:
        terms["lm"] = next_token_loss(output.lm_logits, tokens, token_lens)
    if weights.ctc_weight:
        log_probs = output.ctc_logits.log_softmax(-1).transpose(0, 1)
        terms["ctc"] = torch.nn.functional.ctc_loss(
            log_probs, batch.tokens.data, frame_lens, batch.token_count, reduction="sum"
        ) / len(frame_lens)
    return terms


@pytest.mark.parametrize("model", [ENT, FENT])
@pytest.mark.parametrize(
    ("weights", "absent"),
    [
        ({}, {"lm_head"}),
        ({"lm_weight": 0.3}, set()),
        ({"lattice_weight": 0.0}, {"lm_head", "emotion_joint"}),
        ({"head_weight": 0.0}, {"lm_head", "pooled_head"}),
        ({"rnnt_weight": 0.0}, {"lm_head", "token_joints"}),
        ({"rnnt_weight": 0, "lattice_weight": 0}, {"lm_head", "token_joints", "emotion_joint"}),
        ({"rnnt_weight": 2, "head_weight": 0.1, "lattice_weight": 3, "lm_weight": 1}, set()),
        ({"ctc_weight": 0.3}, {"lm_head"}),
        ({"rnnt_weight": 0.0, "ctc_weight": 0.3}, {"lm_head", "token_joints"}),
        (
            {
                "ctc_weight": 1.0,
                **dict.fromkeys(("rnnt_weight", "head_weight", "lattice_weight"), 0),
            },
            {"lm_head", "token_joints", "emotion_joint", "pooled_head"},
        ),
    ],
)
def test_the_loss_is_the_weighted_sum_and_weight_0_leaves_no_trace(
    tmp_path, dataset, model, weights, absent
):
    weights = WEIGHTS | weights
    brain = make_brain(tmp_path, model, **weights)
    parts = {name.split(".")[0] for name, _ in brain.modules.model.named_parameters()}
    optional = {"token_joints", "emotion_joint", "pooled_head", "lm_head"}
    assert optional - parts == absent
    assert ("ctc_head" in parts) == bool(weights["ctc_weight"])

    batch = a_batch(dataset)
    brain.modules.eval()
    brain.on_stage_start(sb.Stage.TRAIN)
    outputs = brain.compute_forward(batch, sb.Stage.TRAIN)
    loss = brain.compute_objectives(outputs, batch, sb.Stage.TRAIN)
    terms = expected_terms(brain, batch)
    assert set(terms) == {
        name.removesuffix("_weight") for name, weight in weights.items() if weight
    }
    running, positions = dict(brain.running), int((outputs.token_lens + 1).sum())
    counts = {"positions": positions} if "lm" in terms else {}
    counts |= {"transcripts": 4} if terms.keys() & {"rnnt", "ctc"} else {}
    counts |= {"emotions": 4} if terms.keys() & {"head", "lattice"} else {}
    assert {name: running.pop(name) for name in counts} == counts
    assert set(running) == set(terms)
    for name, total in running.items():
        count = positions if name == "lm" else 4
        torch.testing.assert_close(total / count, terms[name].detach())
    total = sum(weights[f"{name}_weight"] * term for name, term in terms.items())
    torch.testing.assert_close(loss, total)

    loss.backward()
    without = {name for name, p in brain.modules.model.named_parameters() if p.grad is None}
    assert not without, "DDP refuses parameters that no loss reaches"


def test_without_transcription_no_word_error_is_told(tmp_path, dataset):
    brain = make_brain(tmp_path, rnnt_weight=0.0)
    brain.evaluate(dataset, test_loader_kwargs={"batch_size": 8})
    assert set(brain.stats.summarize()) == {"WA", "UA", "EDER", "error"}


@pytest.mark.parametrize("model", [ENT, FENT])
def test_a_ctc_head_alone_learns_to_spell(tmp_path, dataset, model):
    ctc = {"ctc_weight": 1.0, **dict.fromkeys(("rnnt_weight", "head_weight", "lattice_weight"), 0)}
    opt_class = partial(torch.optim.AdamW, lr=0.01)
    brain = make_brain(tmp_path, model, size=32, epochs=25, opt_class=opt_class, **ctc)
    fit(brain, dataset)
    brain.evaluate(dataset, test_loader_kwargs={"batch_size": 8})
    assert set(brain.stats.summarize()) == {"WER", "CER", "error"}
    assert brain.stats.summarize()["CER"] < 20


def test_without_emotions_only_word_errors_are_told(tmp_path, dataset):
    brain = make_brain(tmp_path, head_weight=0.0, lattice_weight=0.0)
    brain.evaluate(dataset, test_loader_kwargs={"batch_size": 8})
    assert set(brain.stats.summarize()) == {"WER", "CER", "error"}


@pytest.mark.parametrize(
    "mode",
    ["one", "full_t", "full_u", "mil", "aligned", "aligned_event"]
    + ["supervised", "supervised_aligned"],
)
def test_every_lattice_mode_trains(tmp_path, dataset, mode):
    brain = make_brain(tmp_path, lattice_mode=mode)
    fit(brain, dataset)
    assert all(math.isfinite(epoch["train lattice"]) for epoch in brain.history)


@pytest.mark.parametrize("model", [ENT, FENT])
@pytest.mark.parametrize("mode", ["supervised", "supervised_aligned", "aligned_event"])
@pytest.mark.parametrize("rnnt_weight", [0.5, 0.0])
@pytest.mark.parametrize("head_intervals", [True, False])
def test_intervals_known_or_found_are_learnt_from(
    tmp_path, dataset, model, mode, rnnt_weight, head_intervals
):
    """The head's term is the mean over an utterance and its intervals, pooled one by one."""
    if mode == "supervised" and not rnnt_weight:
        pytest.skip("there are no positions to tell intervals apart")
    options = {"rnnt_weight": rnnt_weight, "head_intervals": head_intervals}
    brain = make_brain(tmp_path, model, lattice_mode=mode, **options)
    batch = a_batch(dataset)
    brain.modules.eval()
    brain.on_stage_start(sb.Stage.TRAIN)
    outputs = brain.compute_forward(batch, sb.Stage.TRAIN)
    brain.compute_objectives(outputs, batch, sb.Stage.TRAIN).backward()
    terms = {name: float(total) / 4 for name, total in brain.running.items()}

    plain = brain.modules.model
    features, frame_lens = brain.modules.frontend(*batch.sig)
    tokens, token_lens = batch.tokens.data, batch.token_count
    if not rnnt_weight:
        tokens, token_lens = tokens[:, :0], torch.zeros_like(token_lens)
    encoded, predicted = plain.encode(features, frame_lens), plain.predict(tokens, token_lens)
    lattice = plain.emotion_lattice(encoded, predicted)
    posteriors = torch.ones(*encoded.emotion.shape[:2], 1)
    if rnnt_weight:
        lattices = plain.token_lattices(encoded, predicted)
        posteriors = transducer_alignment(lattices, tokens, frame_lens, token_lens).posteriors
    events = lattice, posteriors, batch.emotion_index, frame_lens, token_lens
    shortest = round(brain.hparams.aligned_seconds / brain.modules.frontend.frame_duration)
    intervals = [entry["intervals"] for entry in batch.entry]
    if mode == "aligned_event":
        intervals = aligned_events(*events, shortest)
        assert any(len(spans) > 1 for spans in intervals)

    of_utterances = plain.classify(encoded, frame_lens, predicted, token_lens)
    head = []
    for row, spans in enumerate(intervals):
        losses = [cross_entropy(of_utterances[row], batch.emotion_index[row])]
        for emotion, a, b, c, d in spans if head_intervals else []:
            positions = slice(c, d) if rnnt_weight else slice(0, 1)
            pooled = encoded.emotion[row, a:b].mean(0), predicted.emotion[row, positions].mean(0)
            losses.append(cross_entropy(plain.pooled_head(*pooled), torch.tensor(emotion)))
        head.append(sum(losses) / len(losses))
    assert terms["head"] == pytest.approx(float(sum(head).detach() / 4), rel=1e-5)

    if mode == "supervised":
        expected = supervised_lattice_loss(lattice, intervals, frame_lens, token_lens)
    elif mode == "aligned_event":
        expected = aligned_event_loss(*events, shortest)
    else:
        probs = aligned_emotions(lattice, posteriors, token_lens)
        surprises = [
            torch.stack(
                [-probs[row, t, emotion].log() for emotion, a, b, *_ in spans for t in range(a, b)]
            ).mean()
            for row, spans in enumerate(intervals)
        ]
        expected = torch.stack(surprises).mean()
    assert terms["lattice"] == pytest.approx(float(expected.detach()), rel=1e-5)
    assert all(p.grad is not None for p in plain.parameters())


def test_a_step_evaluates_the_emotions_of_its_frames_once(tmp_path, dataset, monkeypatch):
    passes, node_logits = [], pooling.node_logits
    monkeypatch.setattr(pooling, "node_logits", lambda *a: passes.append(a) or node_logits(*a))
    brain = make_brain(tmp_path, lattice_mode="aligned_event", head_intervals=True)
    brain.on_stage_start(sb.Stage.TRAIN)
    batch = a_batch(dataset)
    outputs = brain.compute_forward(batch, sb.Stage.TRAIN)
    brain.compute_objectives(outputs, batch, sb.Stage.TRAIN)
    assert len(passes) == 1


def test_a_test_set_need_not_tell_intervals(tmp_path, dataset):
    brain = make_brain(tmp_path, lattice_mode="supervised")
    untold = dataset.filtered_sorted()
    untold.data = {
        name: {**item, "entry": {**item["entry"], "intervals": None}}
        for name, item in dataset.data.items()
    }
    brain.evaluate(untold, test_loader_kwargs={"batch_size": 8})
    assert "EDER" in brain.stats.summarize()


def test_fastemit_changes_the_gradient_of_the_words_but_no_loss(tmp_path, dataset):
    losses, gradients = [], []
    for fastemit in (0.0, 0.5):
        brain = make_brain(tmp_path, fastemit=fastemit)
        brain.on_stage_start(sb.Stage.TRAIN)
        batch = a_batch(dataset)
        outputs = brain.compute_forward(batch, sb.Stage.TRAIN)
        losses.append(brain.compute_objectives(outputs, batch, sb.Stage.TRAIN))
        losses[-1].backward()
        gradients.append({name: p.grad for name, p in brain.modules.model.named_parameters()})
    torch.testing.assert_close(*losses)
    changed = {n for n, g in gradients[0].items() if not torch.allclose(g, gradients[1][n])}
    assert "token_joints.0.output.bias" in changed
    assert not {n for n in changed if n.startswith(("emotion_joint.", "pooled_head."))}


# --- optimisation


@pytest.mark.parametrize("limit", [0.01, 0.3])
def test_the_gradient_is_clipped_over_all_parameter_groups_together(tmp_path, dataset, limit):
    brain = make_brain(
        tmp_path,
        opt_class=partial(torch.optim.SGD, lr=1.0),
        run_opts={"max_grad_norm": limit, "remove_vector_weight_decay": True},
    )
    before = [p.detach().clone() for p in brain.modules.parameters()]
    fit_one(brain, a_batch(dataset))
    assert len(brain.optimizer.param_groups) == 2
    moved = [p.detach() - old for p, old in zip(brain.modules.parameters(), before, strict=True)]
    norm = math.sqrt(sum(float(change.square().sum()) for change in moved))
    assert norm == pytest.approx(limit, rel=1e-3)
    assert any(change.abs().max() > 0 for change in moved if change.dim() == 1)


def fit_one(brain, batch):
    brain.steps_per_epoch = 1
    brain.on_fit_start()
    brain.on_stage_start(sb.Stage.TRAIN)
    brain.modules.train()
    brain.step = 1
    return brain.fit_batch(batch)


def test_no_limit_leaves_the_gradient_as_it_is(tmp_path, dataset):
    brain = make_brain(
        tmp_path,
        opt_class=partial(torch.optim.SGD, lr=1.0),
        run_opts={"max_grad_norm": math.inf},
    )
    batch = a_batch(dataset)
    before = [p.detach().clone() for p in brain.modules.parameters()]
    loss = fit_one(brain, batch)
    twin = make_brain(tmp_path)
    twin.on_stage_start(sb.Stage.TRAIN)
    twin.modules.train()
    outputs = twin.compute_forward(batch, sb.Stage.TRAIN)
    twin_loss = twin.compute_objectives(outputs, batch, sb.Stage.TRAIN)
    twin_loss.backward()
    torch.testing.assert_close(loss, twin_loss.detach())
    for p, old, q in zip(
        brain.modules.parameters(), before, twin.modules.parameters(), strict=True
    ):
        torch.testing.assert_close(old - p.detach(), q.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("limit", [-1.0, 0.0, math.nan])
def test_a_limit_of_the_gradient_is_above_0(tmp_path, limit):
    with pytest.raises(InputError, match=r"max_grad_norm: .* is not above 0\. .* inf for no limit"):
        make_brain(tmp_path, run_opts={"max_grad_norm": limit})


def test_a_precision_that_the_cpu_lacks_for_lstms_is_refused(tmp_path, monkeypatch):
    def forward(self, x):
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("could not create a primitive descriptor for the LSTM")
        raise AssertionError("not tried in this precision")

    monkeypatch.setattr(torch.nn.LSTM, "forward", forward)
    with pytest.raises(InputError, match="^precision: bf16: this CPU cannot .*: use fp32$"):
        make_brain(tmp_path / "a", run_opts={"precision": "bf16"})
    make_brain(tmp_path / "b", run_opts={"precision": "fp32"})
    _check_precision(torch.nn.ModuleList([torch.nn.Linear(1, 1)]), "cpu", "bf16")
    _check_precision(torch.nn.ModuleList([torch.nn.LSTM(1, 1)]), "cuda", "bf16")


@pytest.mark.parametrize(("accumulation", "steps_per_epoch"), [(1, 6), (4, 1)])
def test_the_learning_rate_warms_up_and_falls_by_a_cosine(
    tmp_path, dataset, accumulation, steps_per_epoch
):
    """SPEC.md section 7: per step, from 5e-7 to lr in the warm-up epochs, then down to 5e-6."""
    with ADAMW.open() as file:
        adamw = load_hyperpyyaml(file, {"lr": 1e-3})
    epochs, warmup_epochs = 8, 3
    brain = make_brain(
        tmp_path,
        epochs=epochs,
        warmup_epochs=warmup_epochs,
        opt_class=adamw["opt_class"],
        lr_schedule=adamw["lr_schedule"],
        run_opts={"grad_accumulation_factor": accumulation},
    )
    used = []

    def record(batch, should_step):
        if should_step:
            used.append(brain.optimizer.param_groups[0]["lr"])

    brain.on_fit_batch_start = record
    brain.fit(range(epochs), dataset, train_loader_kwargs={"batch_size": 3})
    total, warmup = epochs * steps_per_epoch, warmup_epochs * steps_per_epoch
    rising = [5e-7 + (1e-3 - 5e-7) * step / (warmup - 1) for step in range(warmup)]
    falling = [
        5e-6 + (1e-3 - 5e-6) * (1 + math.cos(math.pi * step / (total - warmup))) / 2
        for step in range(1, total - warmup + 1)
    ]
    assert used == pytest.approx(rising + falling)
    assert (used[0], used[-1]) == (pytest.approx(5e-7), pytest.approx(5e-6))


def test_an_epoch_shows_the_learning_rate_of_its_last_step(tmp_path, dataset):
    def falling(optimizer, num_warmup_steps, num_training_steps):
        return LambdaLR(optimizer, lambda step: 1 / (1 + step))

    brain = make_brain(tmp_path, lr_schedule=falling)
    fit(brain, dataset)  # two steps an epoch
    assert [epoch["lr"] for epoch in brain.history] == pytest.approx([1e-3 / 2, 1e-3 / 4])


def test_batches_of_similar_lattices_are_others_in_every_epoch(tmp_path, dataset):
    brain = make_brain(tmp_path, epochs=3)
    seen, epochs = [], []
    brain.on_fit_batch_start = lambda batch, should_step: seen.append(tuple(batch.id))
    brain.on_stage_end = lambda stage, *_: stage == sb.Stage.TRAIN and epochs.append(seen[:])
    fit(brain, dataset, max_batch_nodes=720)
    ends = [len(seen) for seen in epochs]
    epochs = [seen[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    assert all(sorted(sum(batches, ())) == sorted(dataset.data_ids) for batches in epochs)
    assert len(epochs) == len(set(map(tuple, map(sorted, epochs)))) == 3
    assert [len(batches) for batches in epochs] == [brain.steps_per_epoch] * 3


def test_a_wrapped_model_is_trained_and_searched(tmp_path, dataset):
    brain = make_brain(tmp_path)
    # What SpeechBrain does to every module of a distributed training, without the processes.
    brain.modules["model"] = torch.nn.DataParallel(brain.modules["model"])
    fit(brain, dataset)
    assert len(brain.history) == 2


# --- history and checkpoints


def test_error_is_the_mean_of_the_three_error_rates(tmp_path, dataset):
    brain = make_brain(tmp_path)
    fit(brain, dataset)
    for epoch in brain.history:
        rates = epoch["valid WER"], 100 - epoch["valid UA"], epoch["valid EDER"]
        assert epoch["valid error"] == pytest.approx(sum(rates) / 3)


def test_the_history_tells_every_epoch(tmp_path, dataset):
    brain = make_brain(tmp_path, epochs=2)
    fit(brain, dataset)
    history = json.loads((tmp_path / "history.json").read_text())
    assert history == brain.history
    assert [epoch["epoch"] for epoch in history] == [1, 2]
    losses = {"loss", "rnnt", "head", "lattice"}
    rates = {"WER", "CER", "WA", "UA", "EDER", "error"}
    measured = {f"train {k}" for k in losses} | {f"valid {k}" for k in losses | rates}
    assert all(set(epoch) == {"epoch", "lr"} | measured for epoch in history)
    for stage in ("train", "valid"):
        terms = (0.5 * history[0][f"{stage} {name}"] for name in ("rnnt", "head", "lattice"))
        assert history[0][f"{stage} loss"] == pytest.approx(sum(terms), rel=1e-4)
    assert len((tmp_path / "train_log.txt").read_text().splitlines()) == 2


def state_of(brain):
    return {key: value.clone() for key, value in brain.modules.state_dict().items()}


def assert_same_state(state, other):
    assert state.keys() == other.keys()
    assert all(torch.equal(state[key], other[key]) for key in state)


def interrupt(brain, method, when):
    """Make a method of a Brain stop the run like Ctrl-C, once ``when(brain, *args)`` is true."""
    original = getattr(brain, method)

    def stop(*args, **kwargs):
        if when(*args, **kwargs):
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    setattr(brain, method, stop)


def test_a_run_stopped_between_epochs_goes_on_as_if_nothing_had_happened(tmp_path, dataset):
    with ADAMW.open() as file:
        adamw = load_hyperpyyaml(file)
    schedule = {"lr_schedule": adamw["lr_schedule"], "opt_class": adamw["opt_class"]}
    given = {"epochs": 4, "warmup_epochs": 1, "resume": True, **schedule}
    straight = make_brain(tmp_path / "straight", **given)
    fit(straight, dataset)

    stopped = make_brain(tmp_path / "stopped", **given)
    interrupt(stopped, "on_stage_start", lambda stage, epoch: epoch == 3)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, dataset)
    history = tmp_path / "stopped" / "history.json"
    assert len(json.loads(history.read_text())) == 2

    resumed = make_brain(tmp_path / "stopped", **given)
    fit(resumed, dataset)
    assert resumed.history == straight.history
    assert json.loads(history.read_text()) == straight.history
    assert_same_state(state_of(resumed), state_of(straight))


@pytest.mark.parametrize("batches", [{"batch_size": 4}, {"max_batch_nodes": 720}])
def test_a_run_stopped_within_an_epoch_goes_on_there(tmp_path, dataset, batches):
    steps = {"ckpt_interval_steps": 1}
    given = {"epochs": 2, "dropout": 0.2, "resume": True, "run_opts": steps}
    straight = make_brain(tmp_path / "straight", **given)
    fit(straight, dataset, **batches)
    stopped = make_brain(tmp_path / "stopped", **given)
    interrupt(stopped, "fit_batch", lambda batch: stopped.optimizer_step == 6)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, dataset, **batches)
    resumed = make_brain(tmp_path / "stopped", **given)
    fit(resumed, dataset, **batches)
    assert resumed.optimizer_step == 8
    assert_same_state(state_of(resumed), state_of(straight))
    assert resumed.history == straight.history


def test_the_checkpoint_of_the_lowest_error_is_the_one_evaluated(tmp_path, dataset, monkeypatch):
    brain = make_brain(tmp_path, epochs=4, resume=True)
    errors, states = iter([50.0, 10.0, 30.0, 20.0]), []
    summarize = TransducerStats.summarize

    def pretend(stats):
        states.append(state_of(brain))
        return summarize(stats) | {"error": next(errors)}

    monkeypatch.setattr(TransducerStats, "summarize", pretend)
    fit(brain, dataset)
    assert_same_state(state_of(brain), states[3])
    brain.evaluate(dataset, test_loader_kwargs={"batch_size": 8})
    assert_same_state(state_of(brain), states[3])
    brain.evaluate(dataset, min_key="error", test_loader_kwargs={"batch_size": 8})
    assert_same_state(state_of(brain), states[1])
    kept = brain.checkpointer.list_checkpoints()
    assert sorted(checkpoint.meta["epoch"] for checkpoint in kept) == [2, 4]


def test_the_paper_s_protocol_scores_test_sets_and_changes_nothing_else(tmp_path, dataset):
    plain = make_brain(tmp_path / "plain")
    fit(plain, dataset)
    paper = make_brain(tmp_path / "paper")
    loader = paper.make_dataloader(dataset, sb.Stage.TEST, ckpt_prefix=None, batch_size=8)
    paper.paper_sets = {"songs": loader}
    fit(paper, dataset)
    scored = [{k: v for k, v in epoch.items() if k.startswith("songs ")} for epoch in paper.history]
    rates = ("WER", "CER", "WA", "UA", "EDER", "error")
    # Validation and test set are the same here, so the figures must be.
    for epoch, of_test in zip(paper.history, scored, strict=True):
        assert of_test == {f"songs {name}": epoch[f"valid {name}"] for name in rates}
    rest = [{k: v for k, v in epoch.items() if k not in scored[0]} for epoch in paper.history]
    assert rest == plain.history
