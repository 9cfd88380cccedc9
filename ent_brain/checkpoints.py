"""Checkpoints that are written atomically, with the states of the random generators."""

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
"""Prefix of a checkpoint's name while it is being written. SpeechBrain ignores such folders."""


class WholeCheckpointer(Checkpointer):
    """SpeechBrain's checkpointer, made safe against a kill at any moment.

    A checkpoint is written under a temporary name and renamed when it is complete. A kill may also
    leave a checkpoint half deleted; it lacks files and is skipped. The next run removes both kinds
    of leftovers. A failure to write or load a checkpoint raises an ``InputError`` and leaves the
    earlier checkpoints unchanged.

    Arguments
    ---------
    *args, **kwargs
        Arguments of ``speechbrain.utils.checkpoints.Checkpointer``.

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
        """Save a checkpoint, with the arguments and the result of SpeechBrain's method.

        Raises
        ------
        InputError
            If it cannot be written, for example because the disk is full. No part of it remains.
        """
        meta = {**(meta or {}), "recoverables": sorted(self.recoverables)}
        try:
            with written():
                partial = super().save_checkpoint(meta, end_of_epoch, name, verbosity=logging.DEBUG)
        except OSError as error:
            for folder in self.checkpoints_dir.glob(f"{PARTIAL}*"):
                shutil.rmtree(folder, ignore_errors=True)  # frees its disk space
            raise InputError(
                f"{self.checkpoints_dir}: no checkpoint can be written ({error.strerror}). Free "
                "disk space or make the folder writable, then run the same command again to resume "
                "from the last checkpoint."
            ) from error
        ddp_barrier()  # several processes may write parts of a recoverable
        checkpoint = self._put_in_place(partial)  # all processes wait, then see the same list
        kind = "end-of-epoch" if end_of_epoch else "intra-epoch"
        logger.log(verbosity, f"Saved an {kind} checkpoint in {checkpoint.path}")
        return checkpoint

    @main_process_only
    def _put_in_place(self, partial):
        path = partial.path.with_name(partial.path.name.removeprefix(PARTIAL))
        return self._construct_checkpoint_objects([partial.path.rename(path)])[0]

    def list_checkpoints(self):
        """List the complete checkpoints (SpeechBrain's ``Checkpoint``)."""
        return [
            checkpoint
            for checkpoint in super().list_checkpoints()
            if set(checkpoint.meta["recoverables"]) <= set(checkpoint.paramfiles)
        ]

    def load_checkpoint(self, checkpoint):
        """Load one of SpeechBrain's ``Checkpoint``s.

        Raises
        ------
        InputError
            If a file is damaged or belongs to another model. The message names the file.
        """
        files = _Followed(checkpoint.paramfiles)
        try:
            super().load_checkpoint(checkpoint._replace(paramfiles=files))
        except Exception as error:  # a damaged file can raise errors of many types
            if re.search("state.dict", str(error)):
                raise InputError(
                    f"{files.last}: belongs to another model. Give the settings that the training "
                    "was started with, or use another output_folder."
                ) from error
            raise _damaged(files.last or checkpoint.path, error) from error

    def recover_if_possible(self, *args, **kwargs):
        """Remove the leftovers of a kill, then load the checkpoint that SpeechBrain chooses."""
        self._remove_leftovers()
        return super().recover_if_possible(*args, **kwargs)

    def load_average(self, count, max_key=None, min_key=None):
        """Load the mean of the weights in the best checkpoints into each module.

        Arguments
        ---------
        count : int
            Maximum number of checkpoints.
        max_key, min_key : str, optional
            Metric that ranks the checkpoints, as in SpeechBrain's ``find_checkpoints``.
        """
        best = self.find_checkpoints(max_key=max_key, min_key=min_key, max_num_checkpoints=count)
        for name, module in self.recoverables.items():
            if isinstance(module, torch.nn.Module):
                module.load_state_dict(average_checkpoints(best, name, _read_weights))
        epochs = ", ".join(str(checkpoint.meta["epoch"]) for checkpoint in best)
        logger.info(f"Averaged the weights after epochs {epochs}")

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
    """Files of a checkpoint by recoverable. It remembers which file is being loaded."""

    last = None
    """The file that was looked up last."""

    def __getitem__(self, name):
        self.last = super().__getitem__(name)
        return self.last


def _read_weights(path, map_location="cpu"):
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # a damaged file can raise errors of many types
        raise _damaged(path, error) from error


def _damaged(path, error):
    kind = type(error.__cause__ if isinstance(error, InputError) else error).__name__
    return InputError(
        f"{path}: damaged ({kind}). Remove the folder {path.parent} and run the same command again "
        "to resume from the checkpoint before it, or from the beginning."
    )


def _partial(path):
    return path.with_name(PARTIAL + path.name)


def save_random_state(_, path):
    """Write the states of Python's, NumPy's and PyTorch's generators in each process."""
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
    """Restore this process's states from the file of ``save_random_state``."""
    states = torch.load(path, map_location="cpu", weights_only=True)
    state = states[(get_rank() or 0) % len(states)]  # there may be more processes than before
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
