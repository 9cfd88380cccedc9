"""Several processes that train together: ``torchrun`` starts them, SpeechBrain's DDP joins them."""

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
    """Join the processes that ``torchrun`` started; nothing where it did not.

    On a CPU they talk through gloo, without being told. When one ends, the others say so in a line.

    Arguments
    ---------
    run_opts : RunOptions
        As ``speechbrain.parse_arguments`` returns them.

    Returns
    -------
    RunOptions
        With the means by which the processes talk.

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
        signal.signal(signal.SIGTERM, _end)  # which torchrun sends to those that are left
    return run_opts


def _end(*_):
    raise ProcessEndedError


def part_random_states():
    """Let the random generators of each process but the first go on elsewhere.

    SpeechBrain seeds all alike, so that they make the same weights; masks and dropout that are the
    same for all would be fewer.
    """
    rank = get_rank()
    if is_distributed_initialized() and rank:
        random.seed(f"{random.random()} {rank}")
        np.random.seed([*np.random.get_state()[1][:2], rank])
        torch.manual_seed(torch.initial_seed() + rank)


def gather(value):
    """Gather what each process has.

    Arguments
    ---------
    value : object
        That pickle can take.

    Returns
    -------
    list
        By rank, the same on every process; of one entry where there is one process.
    """
    if not is_distributed_initialized():
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def take_turns(shares):
    """Put together what ``sequence[rank::processes]`` has parted.

    Arguments
    ---------
    shares : list[list]
        By rank; no entry is None.

    Returns
    -------
    list

    Example
    -------
    >>> take_turns(["abcdefg"[rank::3] for rank in range(3)])
    ['a', 'b', 'c', 'd', 'e', 'f', 'g']
    """
    return [each for turn in zip_longest(*shares) for each in turn if each is not None]
