"""Learning rate schedules."""

from torch.optim.lr_scheduler import LambdaLR


def trapezoid_by_epoch(
    optimizer, num_warmup_steps, num_training_steps, number_of_epochs, decay_epochs
):
    """Linear warm-up, a constant part and a linear decay; the rate is constant within an epoch.

    With W warm-up epochs, N epochs and D decay epochs, the factor on the optimiser's rate in epoch
    e is e / W, then 1, then (N + 1 - e) / D. It is above 0 in the first and the last epoch.

    Arguments
    ---------
    optimizer : torch.optim.Optimizer
    num_warmup_steps, num_training_steps : int
        As in the schedules of transformers. The schedule is stepped with the optimiser.
    number_of_epochs : int
        Number of epochs in ``num_training_steps``.
    decay_epochs : int
        Number of last epochs in which the rate falls.

    Returns
    -------
    LambdaLR

    Example
    -------
    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    >>> schedule = trapezoid_by_epoch(optimizer, 2, 6, number_of_epochs=6, decay_epochs=3)
    >>> [round(schedule.lr_lambdas[0](step), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 1.0, 0.67, 0.33]
    """
    steps = max(1, num_training_steps // number_of_epochs)
    warmup_epochs = num_warmup_steps // steps

    def factor(step):
        epoch = step // steps + 1
        rising = epoch / warmup_epochs if epoch < warmup_epochs else 1.0
        falling = max(0, number_of_epochs + 1 - epoch) / decay_epochs if decay_epochs else 1.0
        return min(rising, falling, 1.0)

    return LambdaLR(optimizer, factor)
