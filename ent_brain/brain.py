"""The Brain: training, validation, tests, logging and checkpoints."""

import math
import os
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import speechbrain as sb
import torch
from speechbrain.dataio.sampler import ReproducibleRandomSampler
from speechbrain.utils.autocast import AMPConfig
from speechbrain.utils.distributed import (
    ddp_all_reduce,
    ddp_broadcast,
    if_main_process,
    main_process_only,
)
from speechbrain.utils.logger import get_logger
from torch.utils.data import SequentialSampler

from ent_brain.checkpoints import load_random_state, save_random_state
from ent_brain.dataio import ShareOfBatches
from ent_brain.errors import InputError, one_line
from ent_brain.files import read_json, write_json
from ent_brain.losses import Losses
from ent_brain.metrics import TransducerStats
from ent_brain.processes import gather, part_random_states, take_turns
from ent_brain.recognizer import Recognizer

logger = get_logger(__name__)

HISTORY_FILE = "history.json"
"""File in the output folder with the losses and metrics of each epoch."""


class EmotionTransducerBrain(sb.Brain):
    """Trains and evaluates an emotion transducer with SpeechBrain's loop.

    ``modules`` are ``frontend`` and ``model``. The ``hparams`` are SpeechBrain's own run options
    and the following keys.

    * The arguments of ``losses.Losses``.
    * ``segment_decoding``, ``segment_seconds``, ``max_symbols``: settings of decoding.
    * ``beam_size``: for tests only. Validation uses greedy search.
    * ``lr_schedule``, ``warmup_epochs``, ``number_of_epochs``, ``train_logger``, ``output_folder``.
    * ``average_checkpoints``: number of the best checkpoints whose weights are averaged; default 1.

    The validation set selects the checkpoint: ``evaluate(..., min_key="error")`` loads the
    checkpoint with the lowest ``error``, or the average of the best ones. ``error`` is the mean of
    WER, 100 - UA and EDER, as far as the labels allow to compute them.

    In distributed training, each process trains on its share of the batches and decodes its share
    of the other sets. Gradients, losses and statistics cover all utterances, each of them once, and
    are identical in all processes.

    Arguments
    ---------
    tokens : CharTokens, CharacterTokens or SentencePieceTokens
        Conversion between token ids and words.
    emotions : EmotionSet
        Labels of the class indices.
    **kwargs
        Arguments of ``speechbrain.Brain``.
    """

    def __init__(self, tokens, emotions, **kwargs):
        super().__init__(**kwargs)
        # Once training begins, ``self.modules`` holds the distributed wrappers.
        self.raw_modules = torch.nn.ModuleDict(self.modules.items())
        _check_precision(self.raw_modules, self.device, self.precision)
        self.tokens, self.emotions = tokens, emotions
        self.losses = Losses.from_settings(vars(self.hparams))
        self.paper_sets = {}
        """Loaders by name of the sets that are evaluated after every epoch (``paper`` protocol)."""
        self.history = []
        self.running = defaultdict(float)
        """Sums over the stage so far: each loss term, the ``_counts``, and the learning rate of the
        last step (``lr``). Each process has its own sums."""
        self.ids_of_step = []
        """Ids of the utterances whose gradients the next optimiser step uses."""
        self.counts_of_steps = None
        """``_counts`` of each accumulated step of this epoch; None until they are needed."""
        self.left_out = 0
        """Number of consecutive skipped steps. SpeechBrain's own counter starts anew each epoch."""
        self.is_loss_finite = True
        """Whether all losses since the last optimiser step are finite."""
        if self.checkpointer is not None:
            # With --debug, SpeechBrain gives each process its own temporary folder, so the
            # processes would load different checkpoints.
            self.checkpointer.checkpoints_dir = ddp_broadcast(self.checkpointer.checkpoints_dir)
            for name, state, load, save in (
                ("history", self.history, _load_history, main_process_only(write_json)),
                ("running", self.running, _load_running, _save_running),
                ("random_state", None, load_random_state, save_random_state),  # a global state
            ):
                self.checkpointer.add_recoverable(name, state, load, save)
        # SpeechBrain clips only the first parameter group. We clip all parameters, at each step.
        self.clip_norm, self.max_grad_norm = self.max_grad_norm, math.inf
        if not self.clip_norm > 0:  # a negative limit would reverse the gradient
            raise InputError(
                f"max_grad_norm: {self.clip_norm} is not above 0. Give a positive number, or inf "
                "for no limit."
            )

    def make_dataloader(self, dataset, stage, ckpt_prefix="dataloader-", **loader_kwargs):
        """Make a loader. The training loader's length sets the length of the schedule."""
        if stage == sb.Stage.TRAIN:
            # The iterator draws a seed for workers. A resumed epoch has a second iterator, which
            # must not draw from the restored random state.
            loader_kwargs.setdefault("generator", torch.Generator())
        elif self.distributed_launch:
            processes = torch.distributed.get_world_size()
            loader_kwargs["sampler"] = range(self.rank, len(dataset), processes)
        loader = super().make_dataloader(dataset, stage, ckpt_prefix, **loader_kwargs)
        if stage == sb.Stage.TRAIN:
            if self.train_sampler is None:
                # SpeechBrain calls ``set_epoch`` of this attribute only. Without it, our samplers
                # would repeat the first epoch.
                self.train_sampler = loader_kwargs.get(
                    "batch_sampler", loader_kwargs.get("sampler")
                )
            # SpeechBrain drops incomplete accumulated steps at the end of an epoch.
            self.steps_per_epoch = len(loader) // self.grad_accumulation_factor
            self.train_batches = loader.batch_sampler
            self.label_counts = [_item_counts(dataset.data[name]) for name in dataset.data_ids]
        return loader

    def _train_loader_specifics(self, dataset, loader_kwargs):
        """In distributed training, give each process its share of the batches."""
        if not self.distributed_launch:
            return super()._train_loader_specifics(dataset, loader_kwargs)
        sampler, batch_size = loader_kwargs.get("batch_sampler"), None
        if sampler is None:
            batch_size = loader_kwargs["batch_size"]
            sampler = loader_kwargs.get("sampler")
        if sampler is None and not loader_kwargs.get("shuffle"):
            sampler = SequentialSampler(dataset)
        if sampler is None:
            sampler = ReproducibleRandomSampler(dataset, int(os.environ.get("SB_GLOBAL_SEED", 0)))
        processes = torch.distributed.get_world_size()
        self.train_sampler = ShareOfBatches(sampler, self.rank, processes, batch_size)
        replaced = ("batch_size", "shuffle", "sampler")
        given = {key: value for key, value in loader_kwargs.items() if key not in replaced}
        return {**given, "batch_sampler": self.train_sampler}

    def on_fit_start(self):
        """Wrap the modules and load the last checkpoint, as SpeechBrain does."""
        part_random_states()
        super().on_fit_start()

    def _wrap_distributed(self):
        """Wrap each module with its own setting of ``find_unused_parameters``.

        A trained front end needs it, because LayerDrop may skip parameters. The model uses all its
        parameters. It must not have the setting, because DDP would not find the parameters that the
        losses use after ``forward``.
        """
        modules = self.modules
        for name in list(modules):
            self.modules = torch.nn.ModuleDict({name: modules[name]})
            self.find_unused_parameters = name == "frontend"
            super()._wrap_distributed()
            modules[name] = self.modules[name]
        self.modules = modules

    def init_optimizers(self):
        """Add gradient clipping over all parameters and the per-step schedule."""
        super().init_optimizers()
        self.optimizer.register_step_pre_hook(self._clip_gradients)
        self.scheduler = self.hparams.lr_schedule(
            self.optimizer,
            num_warmup_steps=self.hparams.warmup_epochs * self.steps_per_epoch,
            num_training_steps=self.hparams.number_of_epochs * self.steps_per_epoch,
        )
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("scheduler", self.scheduler)

    def _clip_gradients(self, optimizer, args, kwargs):
        """Clip all gradients together; skip the step if they are NaN or infinite."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        if norm.isfinite():
            self.left_out = 0
            self._forget_step()
            return
        for parameter in parameters:
            parameter.grad = None  # the optimiser skips such parameters
        self._count_left_out()

    def _forget_step(self):
        self.ids_of_step.clear()
        self.is_loss_finite = True

    def optimizers_step(self):
        """Step as SpeechBrain does; report a step that the loss scaler of fp16 skips."""
        super().optimizers_step()
        if self.ids_of_step:  # the loss scaler did not call the optimiser
            self._count_left_out(scale=self.scaler.get_scale())

    def _count_left_out(self, scale=None):
        """Report the utterances of a skipped step; end the training after too many in a row.

        With fp16, the loss scale alone may make a gradient overflow. The scaler then halves the
        scale, and the step counts only if the scale is below 1.
        """
        # Gradients are the same in all processes, so all processes call this method.
        ids, finite = zip(*gather((list(self.ids_of_step), self.is_loss_finite)), strict=True)
        ids = ", ".join(take_turns(ids))
        self._forget_step()
        if scale is not None and all(finite) and scale >= 1:
            logger.warning(
                f"{ids}: gradient overflows in fp16. This step is skipped, and the loss scale is "
                f"lowered to {scale:g}."
            )
            return
        self.left_out += 1
        problem = f"{ids}: loss or gradient is NaN or infinite"
        if self.left_out > self.nonfinite_patience:
            raise InputError(
                f"{problem}, as in the {self.left_out - 1} steps before. Lower lr, raise "
                "warmup_epochs, check these utterances, or raise --nonfinite_patience."
            )
        logger.warning(f"{problem}. This step is skipped ({self.left_out} in a row).")

    def fit_batch(self, batch):
        """Train on a batch; its ids are stored until the next optimiser step."""
        self.ids_of_step += batch.id
        hparams = vars(self.hparams)
        size = "max_batch_nodes" if hparams.get("max_batch_nodes") else "batch_size"
        shorter = " or max_train_seconds" if "max_train_seconds" in hparams else ""
        remedy = f"Lower {size}{shorter}; grad_accumulation_factor keeps the size of a step"
        with _one_line_if_out_of_memory(batch, remedy):
            return super().fit_batch(batch)

    def evaluate_batch(self, batch, stage):
        """Evaluate a batch of the validation set or of a test set."""
        with _one_line_if_out_of_memory(batch, "Lower batch_size of test_dataloader_opts"):
            return super().evaluate_batch(batch, stage)

    def check_loss_isfinite(self, loss):
        """Do nothing: ``compute_objectives`` makes the gradients NaN if the loss is not finite."""

    def compute_forward(self, batch, stage):
        """Run the model on a batch; in validation and tests, also decode it.

        Returns
        -------
        SimpleNamespace
            ``output`` (TransducerOutput), ``frame_lens`` and ``token_lens`` [B], and
            ``hypotheses``, a list, empty in training. In tests, the frames of the hypotheses are
            those of the best path.
        """
        batch = batch.to(self.device)
        kept = {"kept": batch.kept} if hasattr(batch, "kept") else {}
        # All processes must call a distributed wrapper equally often. In evaluation their numbers
        # of batches differ.
        modules = self.modules if stage == sb.Stage.TRAIN else self.raw_modules
        features, frame_lens = modules["frontend"](*batch.sig, **kept)
        # Without a transcript, the lattice has one position: the predictor's state after blank.
        token_lens = batch.token_count.clamp(min=0)
        if not self.losses.rnnt_weight:  # the model then uses no tokens
            token_lens = torch.zeros_like(token_lens)
        output = modules["model"](features, frame_lens, batch.tokens.data, token_lens)
        hypotheses = []
        if stage != sb.Stage.TRAIN:
            is_test, recognizer = stage == sb.Stage.TEST, self.recognizer
            if not is_test:
                recognizer = replace(recognizer, beam_size=1)
            hypotheses = recognizer.recognize(output.encoded, frame_lens, aligned=is_test)
        return SimpleNamespace(
            output=output, frame_lens=frame_lens, token_lens=token_lens, hypotheses=hypotheses
        )

    @torch.no_grad()
    def emotion_lattice(self, wav, tokens):
        """Compute the emotion probabilities at each node of an utterance's lattice.

        Arguments
        ---------
        wav : Tensor
            [S] at the front end's sample rate.
        tokens : list[int]

        Returns
        -------
        Tensor
            [T, U+1, E] on the CPU.
        """
        frontend, model = self.raw_modules.frontend, self.raw_modules.model
        features, frame_lens = frontend(
            wav[None].to(self.device), torch.ones(1, device=self.device)
        )
        tokens = torch.tensor([tokens], dtype=torch.long, device=self.device)
        predicted = model.predict(tokens, torch.tensor([tokens.size(1)], device=self.device))
        lattice = model.emotion_lattice(model.encode(features, frame_lens), predicted)
        return lattice.dense()[0].softmax(-1).cpu()

    @property
    def recognizer(self):
        """The steps from encoded speech to words, emotions and times (Recognizer)."""
        return Recognizer.from_hparams(self.raw_modules, self.tokens, self.emotions, self.hparams)

    def compute_objectives(self, predictions, batch, stage):
        """Compute the weighted sum of the loss terms; store the hypotheses.

        Each term is the mean over the utterances that have its label. In training, this is the mean
        over the optimiser's step, which may have several batches and processes. In tests the loss
        is 0, because a test set may lack the labels of a loss.
        """
        self.decoded += zip(batch.id, predictions.hypotheses, batch.entry, strict=False)
        if stage == sb.Stage.TEST:
            return torch.zeros(())
        terms, weights = self._loss_terms(predictions, batch), self.losses.weights
        counts = _counts(batch, predictions.token_lens)
        shares = self._shares(counts, stage)
        loss = sum(weights[name] * shares[_COUNTED[name]] * term for name, term in terms.items())
        if stage == sb.Stage.TRAIN and len(terms) < len(weights):
            # Every process and every batch must use all parameters, whichever labels it has.
            loss = loss + 0 * sum(p.sum() for p in self.raw_modules.model.parameters())
        if stage == sb.Stage.TRAIN:
            # A loss that is not finite makes all gradients NaN. DDP shares the gradients, so all
            # processes skip the step.
            finite = loss.detach().isfinite()
            loss = loss * torch.where(finite, 1.0, math.nan)
            self.is_loss_finite &= bool(finite)
        else:
            finite = True
        if finite:
            for name, term in terms.items():
                self.running[name] += term.detach() * counts[_COUNTED[name]]
            for name in {_COUNTED[name] for name in terms}:
                self.running[name] += counts[name]
        return loss if terms else torch.as_tensor(loss)

    def _loss_terms(self, predictions, batch):
        return self.losses.terms(predictions, batch, self.raw_modules, self.emotions)

    def _shares(self, counts, stage):
        """Factors for a batch's means that make the step's gradient that of the step's means.

        SpeechBrain divides by the number of accumulated batches, DDP by the number of processes.
        """
        accumulated = self.grad_accumulation_factor
        if stage != sb.Stage.TRAIN or (not self.distributed_launch and accumulated == 1):
            return dict.fromkeys(counts, 1.0)
        own = torch.stack(list(counts.values())).double()
        total = own.clone() if accumulated == 1 else self._step_counts().to(own)
        parts = accumulated
        if self.distributed_launch:
            total = ddp_all_reduce(total, torch.distributed.ReduceOp.SUM)
            parts *= torch.distributed.get_world_size()
        shares = own * parts / total.clamp(min=1)
        return dict(zip(counts, shares.float(), strict=True))

    def _step_counts(self):
        """Sums of ``_counts`` over the accumulated batches of this step, in the same order."""
        if self.counts_of_steps is None:
            labels = torch.tensor(self.label_counts)
            counts = torch.stack([labels[batch].sum(0) for batch in self.train_batches])
            steps = counts.split(self.grad_accumulation_factor)
            self.counts_of_steps = [step.sum(0) for step in steps]
        return self.counts_of_steps[(self.step - 1) // self.grad_accumulation_factor]

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Step the schedule with the optimiser."""
        if should_step:
            self.running["lr"] = self.scheduler.get_last_lr()[0]
            self.scheduler.step()

    def on_stage_start(self, stage, epoch=None):
        """Start the sums and statistics of a stage."""
        if stage == sb.Stage.TRAIN:
            self.counts_of_steps = None  # the sampler makes the epoch's batches later
        if stage != sb.Stage.TRAIN or not self.step:  # a resumed epoch keeps its sums
            self.running.clear()
            self._forget_step()  # an incomplete step of the epoch before
        self.decoded = []
        """Id, hypothesis and entry of each utterance of this process in the stage so far."""
        has_words = self.losses.rnnt_weight or self.losses.ctc_weight
        self.stats = TransducerStats(self.tokens if has_words else None, self.recognizer.decoder)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log the stage; after validation, keep the best checkpoints and the latest one."""
        for name, hypothesis, entry in take_turns(gather(self.decoded)):
            self.stats.append([name], [hypothesis], [entry])
        if stage == sb.Stage.TEST:
            return
        total = _total(self.running)
        lr = total.pop("lr", 0.0)
        counts = {name: total.pop(name) for name in set(_COUNTED.values()) if name in total}
        losses = {name: value / counts[_COUNTED[name]] for name, value in total.items()}
        weights = self.losses.weights
        losses = {"loss": sum(weights[name] * losses[name] for name in losses), **losses}
        if stage == sb.Stage.TRAIN:
            self.train_losses, self.lr = losses, lr
        if stage != sb.Stage.VALID:
            return
        valid = {**losses, **self.stats.summarize()}
        rates = {"epoch": epoch, "lr": self.lr}
        self.hparams.train_logger.log_stats(rates, self.train_losses, valid)
        self.history.append(
            {
                **rates,
                **{f"train {name}": value for name, value in self.train_losses.items()},
                **{f"valid {name}": value for name, value in valid.items()},
                **self._score_paper_sets(),
            }
        )
        self._keep_history()
        if self.checkpointer is not None:
            self.checkpointer.save_and_keep_only(
                meta={"epoch": epoch, "error": valid["error"]},
                num_to_keep=self._averaged,
                min_keys=["error"],
            )

    @property
    def _averaged(self):
        """Number of checkpoints whose weights are averaged for tests."""
        return getattr(self.hparams, "average_checkpoints", 1)

    def _score_paper_sets(self):
        measured = {}
        for name, loader in self.paper_sets.items():
            self.evaluate(loader, progressbar=False)
            measured.update({f"{name} {key}": v for key, v in self.stats.summarize().items()})
        self.modules.train()
        return measured

    @main_process_only
    def _keep_history(self):
        write_json(self.history, Path(self.hparams.output_folder) / HISTORY_FILE)

    def on_evaluate_start(self, max_key=None, min_key=None):
        """Load the checkpoint that a key selects; without a key, keep the current weights."""
        if max_key or min_key:
            super().on_evaluate_start(max_key, min_key)
            if self._averaged > 1 and self.checkpointer is not None:
                self.checkpointer.load_average(self._averaged, max_key, min_key)


NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")
"""Parts of PyTorch's messages, in a RuntimeError, when memory is exhausted."""


@contextmanager
def _one_line_if_out_of_memory(batch, remedy):
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not any(each in str(error) for each in NO_MEMORY):
            raise
        reason = one_line(error).partition(". ")[0]
        raise InputError(
            f"{', '.join(batch.id)}: not enough memory for this batch ({reason}). {remedy}."
        ) from error


_COUNTED = {
    **{"rnnt": "transcripts", "ctc": "transcripts", "lm": "positions"},
    **{"head": "emotions", "lattice": "emotions"},
}
"""Kind of item over which each loss term is a mean."""


def _counts(batch, token_lens):
    """Number of items of each kind in ``_COUNTED`` in a batch (dict of int tensors)."""
    worded = batch.token_count >= 0
    return {
        "transcripts": worded.sum(),
        "positions": ((token_lens + 1) * worded).sum(),
        "emotions": (batch.emotion_index >= 0).sum(),
    }


def _item_counts(item):
    """The same counts for one utterance of a dataset, without reading it."""
    known = item["entry"]
    worded = known["transcript"] is not None
    return worded, worded * item["positions"], known["emotion"] is not None


def _check_precision(modules, device, precision):
    """Refuse a precision in which this CPU cannot compute the LSTMs of modules (InputError)."""
    dtype = AMPConfig.from_name(precision).dtype
    has_lstm = any(isinstance(module, torch.nn.LSTM) for module in modules.modules())
    if dtype == torch.float32 or torch.device(device).type != "cpu" or not has_lstm:
        return
    try:
        with torch.autocast("cpu", dtype):
            torch.nn.LSTM(1, 1)(torch.zeros(1, 1, 1))
    except RuntimeError as error:
        raise InputError(
            f"precision: {precision}: this CPU cannot compute LSTMs in it: use fp32"
        ) from error


def _total(running):
    """Sums over all processes (dict of floats)."""
    shares = gather({name: float(value) for name, value in running.items()})
    names = dict.fromkeys(name for share in shares for name in share)
    merge = {"lr": max}  # the learning rate is the same in all processes
    return {
        name: merge.get(name, sum)([share.get(name, 0.0) for share in shares]) for name in names
    }


def _save_running(running, path):
    main_process_only(write_json)(_total(running), path)


def _load_running(running, path, end_of_epoch):
    running.clear()
    if if_main_process():  # the file has the sums of all processes, so one process keeps them
        running.update(read_json(path))


def _load_history(history, path, end_of_epoch):
    history[:] = read_json(path)
