"""Checkpoints that are there whole or not at all, with the state of the random generators."""

import logging
import random
import shutil

import numpy as np
import torch
from speechbrain.utils.checkpoints import CKPT_PREFIX, Checkpointer
from speechbrain.utils.distributed import ddp_barrier, main_process_only
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

PARTIAL = "partial+"
"""Before the name of a checkpoint that is being written: SpeechBrain takes it for none."""


class WholeCheckpointer(Checkpointer):
    """SpeechBrain's checkpointer, made safe from a kill at any moment.

    A checkpoint is written under another name and renamed once it is whole. One that a kill left
    behind half deleted is known by the files that are missing, and passed over. Both are removed
    when a run starts again.

    Arguments
    ---------
    *args, **kwargs
        As for ``speechbrain.utils.checkpoints.Checkpointer``.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> checkpointer = WholeCheckpointer(folder, {"model": torch.nn.Linear(1, 1)})
    >>> checkpoint = checkpointer.save_checkpoint()
    >>> checkpoint == checkpointer.recover_if_possible()
    True
    >>> checkpoint.paramfiles["model"].unlink()
    >>> checkpointer.list_checkpoints()
    []
    """

    def save_checkpoint(self, meta=None, end_of_epoch=True, name=None, verbosity=logging.INFO):
        """Save a checkpoint; arguments and result are SpeechBrain's."""
        meta = {**(meta or {}), "recoverables": sorted(self.recoverables)}
        partial = super().save_checkpoint(meta, end_of_epoch, name, verbosity=logging.DEBUG)
        ddp_barrier()  # a recoverable may be one that every process writes a part of
        checkpoint = self._put_in_place(partial)  # every process waits, and then lists the same
        kind = "end-of-epoch" if end_of_epoch else "intra-epoch"
        logger.log(verbosity, f"Saved an {kind} checkpoint in {checkpoint.path}")
        return checkpoint

    @main_process_only
    def _put_in_place(self, partial):
        path = partial.path.with_name(partial.path.name.removeprefix(PARTIAL))
        return self._construct_checkpoint_objects([partial.path.rename(path)])[0]

    def list_checkpoints(self):
        """List the checkpoints (SpeechBrain's ``Checkpoint``) that no file is missing of."""
        return [
            checkpoint
            for checkpoint in super().list_checkpoints()
            if set(checkpoint.meta["recoverables"]) <= set(checkpoint.paramfiles)
        ]

    def recover_if_possible(self, *args, **kwargs):
        """Load the checkpoint that SpeechBrain chooses, once what a kill left is removed."""
        self._remove_leftovers()
        return super().recover_if_possible(*args, **kwargs)

    @main_process_only
    def _remove_leftovers(self):
        whole = {checkpoint.path for checkpoint in self.list_checkpoints()}
        for mark in ("", PARTIAL):
            for folder in self.checkpoints_dir.glob(f"{mark}{CKPT_PREFIX}+*"):
                if folder not in whole:
                    shutil.rmtree(folder)

    def _new_checkpoint_dirpath(self):
        return _partial(super()._new_checkpoint_dirpath())

    def _custom_checkpoint_dirpath(self, name):
        return _partial(super()._custom_checkpoint_dirpath(name))


def _partial(path):
    return path.with_name(PARTIAL + path.name)


@main_process_only
def save_random_state(_, path):
    """Write the state of Python's, NumPy's and PyTorch's generators of the main process."""
    name, words, *rest = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (name, words.tolist(), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    torch.save(state, path)


def load_random_state(_, path, end_of_epoch):
    """Bring back what ``save_random_state`` wrote, on every process."""
    state = torch.load(path, map_location="cpu")
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
