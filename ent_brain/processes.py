"""Distributed training: ``torchrun`` starts the processes, and SpeechBrain's DDP joins them."""

import os
import random
import signal
from dataclasses import replace
from itertools import zip_longest

import numpy as np
import torch
from speechbrain.utils.distributed import (
    ddp_init_group,
    get_rank,
    infer_device,
    is_distributed_initialized,
)

from ent_brain.errors import InputError, ProcessEndedError


def join(run_opts):
    """Join the processes that ``torchrun`` started; do nothing without ``torchrun``.

    On a CPU, the backend becomes gloo automatically. If a process ends, the others exit with a
    message of one line.

    Arguments
    ---------
    run_opts : RunOptions
        Run options from ``speechbrain.parse_arguments``.

    Returns
    -------
    RunOptions
        The run options with a backend that suits the device.

    Raises
    ------
    InputError
        If there are more processes than GPUs.
    """
    on_cpu = (run_opts["device"] or infer_device()).startswith("cpu")
    if on_cpu and run_opts["distributed_backend"] == "nccl":  # SpeechBrain's default, for GPUs
        named = {*run_opts.overridden_args, "distributed_backend"}
        run_opts = replace(run_opts, distributed_backend="gloo", overridden_args=named)
    try:
        ddp_init_group(run_opts)
    except ValueError as error:
        raise InputError(
            f"torchrun: {' '.join(str(error).split())} "
            "Start no more processes than there are GPUs, or give --device cpu"
        ) from error
    if is_distributed_initialized():
        signal.signal(signal.SIGTERM, _end)  # torchrun sends it to the remaining processes
    return run_opts


def _end(*_):
    raise ProcessEndedError


def rank_and_count():
    """Rank and number of processes (int, int) by ``torchrun``, also before they are joined."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def part_random_states():
    """Give the random generators of each process except the first another state.

    SpeechBrain seeds all processes equally, so that they start from the same weights. Masks and
    dropout should differ between the processes.
    """
    rank = get_rank()
    if is_distributed_initialized() and rank:
        random.seed(f"{random.random()} {rank}")
        np.random.seed([*np.random.get_state()[1][:2], rank])
        torch.manual_seed(torch.initial_seed() + rank)


def gather(value):
    """Gather a value from each process.

    Arguments
    ---------
    value : object
        A value that can be pickled.

    Returns
    -------
    list
        The values by rank, the same list in every process. A single process gives one entry.
    """
    if not is_distributed_initialized():
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def take_turns(shares):
    """Merge the shares ``sequence[rank::processes]`` into the original sequence.

    Arguments
    ---------
    shares : list[list]
        Share of each rank, without None.

    Returns
    -------
    list

    Example
    -------
    >>> take_turns(["abcdefg"[rank::3] for rank in range(3)])
    ['a', 'b', 'c', 'd', 'e', 'f', 'g']
    """
    return [each for turn in zip_longest(*shares) for each in turn if each is not None]
