"""Checkpoints that are there whole or not at all, with the state of the random generators."""

import logging
import random
import re
import shutil

import numpy as np
import torch
import yaml
from speechbrain.utils.checkpoints import (
    CKPT_PREFIX,
    METAFNAME,
    Checkpointer,
    average_checkpoints,
)
from speechbrain.utils.distributed import ddp_barrier, get_rank, main_process_only
from speechbrain.utils.logger import get_logger

from ent_brain.errors import InputError
from ent_brain.files import written
from ent_brain.processes import gather

logger = get_logger(__name__)

PARTIAL = "partial+"
"""Before the name of a checkpoint that is being written: SpeechBrain takes it for none."""


class WholeCheckpointer(Checkpointer):
    """SpeechBrain's checkpointer, made safe from a kill at any moment.

    A checkpoint is written under another name and renamed once it is whole. One that a kill left
    behind half deleted is known by the files that are missing, and passed over. Both are removed
    when a run starts again. What cannot be written, or not be loaded, is one ``InputError``; the
    checkpoints before stay as they are.

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
        """Save a checkpoint; arguments and result are SpeechBrain's.

        Raises
        ------
        InputError
            If it cannot be written, as when the disk is full; nothing of it is left then.
        """
        meta = {**(meta or {}), "recoverables": sorted(self.recoverables)}
        try:
            with written():
                partial = super().save_checkpoint(meta, end_of_epoch, name, verbosity=logging.DEBUG)
        except OSError as error:
            for folder in self.checkpoints_dir.glob(f"{PARTIAL}*"):
                shutil.rmtree(folder, ignore_errors=True)  # it takes the room of the next one
            raise InputError(
                f"{self.checkpoints_dir}: no checkpoint can be written ({error.strerror}): make "
                "room, or make it writable, and start again: the run goes on from the checkpoint "
                "before"
            ) from error
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

    def load_checkpoint(self, checkpoint):
        """Load a checkpoint of SpeechBrain's kind.

        Raises
        ------
        InputError
            Which names the file that is damaged, or of another model than this one.
        """
        files = _Followed(checkpoint.paramfiles)
        try:
            super().load_checkpoint(checkpoint._replace(paramfiles=files))
        except Exception as error:  # there is no one kind for what a broken file can do
            if re.search("state.dict", str(error)):
                raise InputError(
                    f"{files.last}: of another model than this one: give the settings that the "
                    "training was begun with, or name another output_folder"
                ) from error
            raise _damaged(files.last or checkpoint.path, error) from error

    def recover_if_possible(self, *args, **kwargs):
        """Load the checkpoint that SpeechBrain chooses, once what a kill left is removed."""
        self._remove_leftovers()
        return super().recover_if_possible(*args, **kwargs)

    def load_average(self, count, max_key=None, min_key=None):
        """Load into each module the mean of its weights in the best checkpoints.

        Arguments
        ---------
        count : int
            Checkpoints, at most; those that there are where there are fewer.
        max_key, min_key : str, optional
            What tells which are the best, as for SpeechBrain's ``find_checkpoints``.
        """
        best = self.find_checkpoints(max_key=max_key, min_key=min_key, max_num_checkpoints=count)
        for name, module in self.recoverables.items():
            if isinstance(module, torch.nn.Module):
                module.load_state_dict(average_checkpoints(best, name, _read_weights))
        epochs = ", ".join(str(checkpoint.meta["epoch"]) for checkpoint in best)
        logger.info(f"the weights are the mean of those after epochs {epochs}")

    @staticmethod
    def _construct_checkpoint_objects(checkpoint_dirs):
        checkpoints = []
        for folder in checkpoint_dirs:
            try:
                [checkpoint] = Checkpointer._construct_checkpoint_objects([folder])
                if not {"recoverables", "end-of-epoch", "unixtime"} <= checkpoint.meta.keys():
                    raise ValueError("it ends too early")
            except (ValueError, AttributeError, yaml.YAMLError) as error:
                raise _damaged(folder / METAFNAME, error) from error
            checkpoints.append(checkpoint)
        return checkpoints

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


class _Followed(dict):
    """Files of a checkpoint by the part that they are of."""

    last = None
    """What was looked up last: what is being loaded."""

    def __getitem__(self, name):
        self.last = super().__getitem__(name)
        return self.last


def _read_weights(path, map_location="cpu"):
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # there is no one kind for what a broken file can do
        raise _damaged(path, error) from error


def _damaged(path, error):
    kind = type(error.__cause__ if isinstance(error, InputError) else error).__name__
    return InputError(
        f"{path}: damaged ({kind}): remove the folder {path.parent} and start "
        "again: the run goes on from the checkpoint before, or from the beginning"
    )


def _partial(path):
    return path.with_name(PARTIAL + path.name)


def save_random_state(_, path):
    """Write the states of Python's, NumPy's and PyTorch's generators, of each process its own."""
    name, words, *rest = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (name, words.tolist(), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    main_process_only(torch.save)(gather(state), path)


def load_random_state(_, path, end_of_epoch):
    """Bring back what ``save_random_state`` wrote of this process."""
    states = torch.load(path, map_location="cpu", weights_only=True)
    state = states[(get_rank() or 0) % len(states)]  # processes may be more than they were
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
