#!/usr/bin/env python3
"""Time and memory of an epoch on a frozen wav2vec2-base: published, without and with the cache.

Every form trains the same ENT on the same utterances with the paper's losses, in its own process.
The SSL model has the true size and random weights, so its speed is that of the real one. The
published way encodes each pair of utterances with padding in every epoch, and runs a bidirectional
LSTM on packed sequences. It copies both sides of the lattice to T x U with ``repeat``, and pools in
a loop over the batch. A CPU without instructions for bfloat16 skips the forms that use it.

> python benchmarks/epoch.py [--quick] [--threads 1] [--output epoch.json]
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lookalike
import numpy as np
import torch
import transformers
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torchaudio.functional import rnnt_loss

from ent_brain.brain import EmotionTransducerBrain
from ent_brain.cache import disk_use
from ent_brain.dataio import make_batch_sampler, make_dataset
from ent_brain.emotions import PUBLISHED
from ent_brain.evaluation import hardware
from ent_brain.files import write_json
from ent_brain.frontend import SSLFrontend
from ent_brain.model import ENT
from ent_brain.synth import write_zed
from ent_brain.tokens import CharTokens


@dataclass(frozen=True)
class Form:
    """One way to train."""

    what: str
    published: bool = False
    cached: bool = False
    utterances: int = 2
    """Utterances per batch; the average with ``bucketed``."""
    bucketed: bool = False
    epochs: int = 1
    """Number of epochs; the fastest one counts."""
    precision: str = "fp32"
    """``fp32``, or ``bf16`` for SpeechBrain's mixed precision."""
    processes: int = 1
    """Processes as with ``torchrun``; each has its share of the threads, and its own batches."""


FORMS = {  # the order matters: the third form fills the cache for the later ones
    "published": Form("encoded in every epoch, lattice copied to T x U", published=True),
    "uncached": Form("encoded in every epoch, our lattice"),
    "filling": Form("first epoch with the cache", cached=True),
    "cached": Form("later epochs", cached=True),
    "bucketed 16": Form("later epochs", cached=True, epochs=2, utterances=16, bucketed=True),
    "bucketed 48": Form("later epochs", cached=True, epochs=2, utterances=48, bucketed=True),
    "bucketed 48, bfloat16": Form(
        "later epochs", cached=True, epochs=2, utterances=48, bucketed=True, precision="bf16"
    ),
    "bucketed 24, two processes": Form(
        "later epochs", cached=True, epochs=2, utterances=24, bucketed=True, processes=2
    ),
    "published, bfloat16": Form(
        "encoded in every epoch, lattice copied to T x U", published=True, precision="bf16"
    ),
    "published, two processes": Form(
        "encoded in every epoch, lattice copied to T x U",
        published=True,
        utterances=1,
        processes=2,
    ),
}


@dataclass(frozen=True)
class Sizes:
    """Sizes of the corpus and the models."""

    utterances: int = 200
    ssl: tuple = ()  # settings that differ from wav2vec2-base
    model: tuple = ()  # settings that differ from the paper's


QUICK = Sizes(
    utterances=24,
    ssl=(
        ("hidden_size", 64),
        ("num_hidden_layers", 2),
        ("num_attention_heads", 2),
        ("intermediate_size", 64),
        ("conv_dim", [32] * 7),
    ),
    # The joint keeps its size, because the lattice determines the memory.
    model=(("encoder_dim", 64), ("embedding_dim", 32), ("predictor_dim", 32)),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="use a small model and few utterances")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all)"
    )
    parser.add_argument("--output", metavar="JSON", type=Path, help="file for the results")
    options = parser.parse_args()
    sizes = QUICK if options.quick else Sizes()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        prepare(folder, sizes)
        rows = {
            name: measure(form, folder, sizes, options.threads)
            for name, form in FORMS.items()
            if form.precision == "fp32" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        }
        first = rows["published"]
        facts = _about(folder, options)
    print(facts + "\n")
    print("| form | | batch | s | times faster | CPU s | peak MB | of it training |")
    print("| :-- | :-- | --: | --: | --: | --: | --: | --: |")
    for name, row in rows.items():
        row["times faster"] = first["seconds"] / row["seconds"]
        print(
            f"| {name} | {FORMS[name].what} | {row['batch']:.1f} | {row['seconds']:.1f} "
            f"| {row['times faster']:.1f} | {row['cpu seconds']:.1f} "
            f"| {row['peak']:.0f} | {row['training']:.0f} |"
        )
    reading = rows["cached"]["reading seconds"]
    print(f"\nOf an epoch with the cache, {reading:.1f} s are reading audio and features.")
    if options.output:
        write_json({"made with": facts, "rows": rows}, options.output)


def _about(folder, options):
    """Describe the measurement in one line."""
    frontend = _frontend(folder, cached=True)
    use = disk_use(frontend, [_dataset(folder, frontend)]).partition(", kept in")[0]
    model = "a small model" if options.quick else "the paper's ENT"
    return f"{model}; {use}; {hardware('cpu')}"


def in_its_own_process(function, *arguments):
    """Call a function in a new process, whose memory holds only imports."""
    return in_processes(function, [arguments])[0]


def in_processes(function, calls):
    """Call a function in a process for each list of arguments, at the same time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ent_brain.brain", "ent_brain.synth", "transformers"])
    with ProcessPoolExecutor(len(calls), mp_context=context) as pool:
        futures = [pool.submit(function, *arguments) for arguments in calls]
        return [future.result() for future in futures]


def prepare(folder, sizes):
    """Write the corpus, its manifest and the SSL model."""
    write_zed(folder / "zed", sizes.utterances, seed=1)
    lookalike.prepare(folder / "zed", folder)
    torch.manual_seed(0)
    ssl = transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**dict(sizes.ssl)))
    ssl.save_pretrained(folder / "ssl")
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder / "ssl")


def _frontend(folder, cached):
    cache = folder / "cache" if cached else None
    return SSLFrontend("wav2vec2", folder / "ssl", folder / "hub", cache_folder=cache)


def _dataset(folder, frontend):
    return make_dataset(
        {"corpus": (folder / "zed.json", folder / "zed")}, CharTokens(), PUBLISHED, frontend, 1.0
    )


def measure(form, folder, sizes, threads):
    """Train a form for its epochs.

    Returns
    -------
    dict
        ``seconds`` and ``cpu seconds`` of the fastest epoch, ``reading seconds``, and the mean
        ``batch``. Also the ``peak`` memory in MB, and its part due to ``training``. ``cpu seconds``
        and memory are sums over the processes; the other figures are the largest of them.
    """
    calls = [(rank, form, folder, sizes, threads) for rank in range(form.processes)]
    ranks = in_processes(train, calls)
    together = {"seconds": max, "reading seconds": max, "batch": max}
    return {name: together.get(name, sum)([rank[name] for rank in ranks]) for name in ranks[0]}


def train(rank, form, folder, sizes, threads):
    """Train a form for its epochs, in one of its processes."""
    if form.processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/{'published' if form.published else 'ours'}",
            rank=rank,
            world_size=form.processes,
        )
    torch.set_num_threads(max(threads // form.processes, 1))
    torch.manual_seed(0)
    frontend = _frontend(folder, form.cached)
    dataset = _dataset(folder, frontend)
    frontend_of_form = PaddedPairs(frontend) if form.published else frontend
    model = ENT(31, frontend.feature_dim, frontend.feature_layers, **dict(sizes.model))
    if form.published:
        model.encoder = PackedEncoder(model.encoder)
    kind = PublishedBrain if form.published else TimedBrain
    brain = kind(
        CharTokens(),
        PUBLISHED,
        modules={"frontend": frontend_of_form, "model": model},
        opt_class=partial(torch.optim.AdamW, lr=5e-4, weight_decay=0.05),
        hparams={
            **dict.fromkeys(("rnnt_weight", "head_weight", "lattice_weight"), 0.5),
            **dict.fromkeys(("lm_weight", "ctc_weight", "fastemit"), 0.0),
            **{"lattice_mode": "one", "aligned_top": 0.3, "aligned_seconds": 0.3},
            "warmup_epochs": 0,
            **{"head_intervals": False, "segment_decoding": "argmax", "segment_seconds": 0.3},
            **{"beam_size": 1, "max_symbols": 32},
            "number_of_epochs": form.epochs,
            "lr_schedule": lambda optimizer, **_: transformers.get_constant_schedule(optimizer),
        },
        run_opts={
            "noprogressbar": True,
            "max_grad_norm": 5.0,
            "device": "cpu",
            "precision": form.precision,
            "distributed_backend": "gloo",
        },
    )
    loader = {"batch_size": form.utterances, "shuffle": True}
    if form.bucketed:
        nodes = np.mean([item["nodes"] for item in dataset.data.values()])
        sampler = make_batch_sampler(dataset, int(form.utterances * nodes))
        loader = {"batch_sampler": sampler}
    begin = time.perf_counter()
    for _ in dataset:
        pass
    reading = time.perf_counter() - begin

    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak counts from here
    before = memory("VmRSS")
    brain.fit(range(1, form.epochs + 1), dataset, train_loader_kwargs=loader)
    seconds, cpu_seconds = min(brain.times)
    peak = memory("VmHWM")
    return {
        "seconds": seconds,
        "cpu seconds": cpu_seconds,
        "reading seconds": reading,
        "batch": len(dataset) / brain.steps_per_epoch,
        "peak": peak,
        "training": peak - before,
    }


def memory(field):
    """Read a memory figure of this process in MB, by its name in Linux's status."""
    status = Path("/proc/self/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024 / 1e6


class TimedBrain(EmotionTransducerBrain):
    """Measures the time of each epoch."""

    def on_stage_start(self, stage, epoch=None):
        super().on_stage_start(stage, epoch)
        self.begin = time.perf_counter(), time.process_time()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        now = time.perf_counter(), time.process_time()
        self.times = [*getattr(self, "times", []), (now[0] - self.begin[0], now[1] - self.begin[1])]
        super().on_stage_end(stage, stage_loss, epoch)


class PaddedPairs(torch.nn.Module):
    """Encodes a whole batch with its padding."""

    def __init__(self, frontend):
        super().__init__()
        self.frontend = frontend
        self.frame_duration = frontend.frame_duration
        self.frame_offset = frontend.frame_offset

    def forward(self, wavs, wav_lens):
        frame_lens = self.frontend.count_frames(self.frontend.sample_lens(wavs, wav_lens))
        return self.frontend.encode(wavs, wav_lens), frame_lens


class PackedEncoder(torch.nn.Module):
    """Our encoder's function with the same weights, as torch's packed LSTM."""

    def __init__(self, encoder):
        super().__init__()
        sizes = encoder.ahead.input_size, encoder.ahead.hidden_size
        self.rnn = torch.nn.LSTM(*sizes, batch_first=True, bidirectional=True)
        weights = encoder.ahead.state_dict()
        back = {f"{name}_reverse": value for name, value in encoder.back.state_dict().items()}
        self.rnn.load_state_dict(weights | back)

    def forward(self, features, frame_lens):
        packed = pack_padded_sequence(features, frame_lens.cpu(), True, enforce_sorted=False)
        return pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]


class PublishedBrain(TimedBrain):
    """Computes the losses on lattices of T x U copies of both sides."""

    def _loss_terms(self, predictions, batch):
        output, tokens = predictions.output, batch.tokens.data
        logits = torch.cat([_copied(lattice) for lattice in output.token_lattices], -1)
        lens = predictions.frame_lens.int(), predictions.token_lens.int()
        nll = rnnt_loss(logits.float(), tokens.int(), *lens, blank=0, reduction="mean")
        probabilities = _copied(output.emotion_lattice).softmax(-1).clamp(min=1e-8)
        pooled = [
            -p[:t, : u + 1, emotion].max().log()
            - p[:t, : u + 1, PUBLISHED.neutral_index].min().log()
            for p, emotion, t, u in zip(probabilities, batch.emotion_index, *lens, strict=True)
        ]
        head = torch.nn.functional.cross_entropy(output.head_logits, batch.emotion_index)
        return {"rnnt": nll, "head": head, "lattice": torch.stack(pooled).mean()}


def _copied(lattice):
    frames, positions = lattice.enc.size(1), lattice.pred.size(1)
    enc = lattice.enc.unsqueeze(2).repeat(1, 1, positions, 1)
    pred = lattice.pred.unsqueeze(1).repeat(1, frames, 1, 1)
    return torch.nn.functional.linear((enc + pred).tanh(), lattice.weight, lattice.bias)


if __name__ == "__main__":
    main()
