"""Transducer losses of other libraries on the tensors of ``lattice.py``, if they are installed.

``LOSSES`` has one entry per loss. Each takes the token lattice, the tokens and both lengths, and
returns the mean over utterances. A library is imported only when its loss is used.
"""

import importlib
from typing import NamedTuple

import torch
from torchaudio.functional import rnnt_loss

from ent_brain.losses import transducer_loss

SYMBOLS_A_FRAME = 5
"""Number of positions that the pruned losses keep at each frame: icefall's default."""
FIT_STEPS, FIT_RATE = 40, 0.05
"""Adam steps and learning rate that make random tensors resemble those of a trained model."""


FAST_RNNT = "not installed: source package only, and its build downloads pybind11"


class Loss(NamedTuple):
    call: object
    """Function of the imported module, lattice, tokens, frame and token lengths; gives a scalar."""
    module: str | None = None
    missing: str = ""
    """Install command, or the reason why it fails on the machine of the published table."""
    needs_cuda: bool = False
    pruned: bool = False


def ours(_, lattice, tokens, *lens):
    return transducer_loss([lattice], tokens, *lens)


def torchaudio_loss(_, lattice, tokens, *lens):
    return rnnt_loss(lattice.dense(), *(each.int() for each in (tokens, *lens)), blank=0)


def numba_loss(warprnnt_numba, lattice, tokens, *lens):
    lengths = [each.int() for each in (tokens, *lens)]
    return warprnnt_numba.RNNTLossNumba(blank=0)(lattice.dense(), *lengths).sum()


def speechbrain_loss(module, lattice, tokens, *lens):
    lengths = [each.int() for each in (tokens, *lens)]
    return module.TransducerLoss(blank=0, reduction="mean")(lattice.dense(), *lengths)


def warp_transducer_loss(warprnnt_pytorch, lattice, tokens, *lens):
    lengths = [each.int() for each in (tokens, *lens)]
    return warprnnt_pytorch.rnnt_loss(lattice.dense(), *lengths, blank=0, reduction="mean").sum()


def warp_rnnt_loss(warp_rnnt, lattice, tokens, *lens):
    log_probs = lattice.dense().log_softmax(-1)
    lengths = [each.int() for each in (tokens, *lens)]
    return warp_rnnt.rnnt_loss(log_probs, *lengths, blank=0, reduction="mean")


def exact_mutual_information_loss(module, lattice, tokens, *lens):
    return module.rnnt_loss(lattice.dense(), tokens, 0, boundary(tokens, *lens), reduction="mean")


def pruned_loss(module, lattice, tokens, *lens):
    """Compute the pruned loss; a joint without tanh on detached tensors gives its bounds."""
    detached = type(lattice)(*(tensor.detach() for tensor in lattice))
    _, gradients = simple_loss(module, detached, tokens, *lens)
    kept = boundary(tokens, *lens)
    ranges = module.get_rnnt_prune_ranges(*gradients, kept, SYMBOLS_A_FRAME)
    enc, pred = module.do_rnnt_pruning(lattice.enc, lattice.pred, ranges)
    logits = torch.nn.functional.linear(torch.tanh(enc + pred), lattice.weight, lattice.bias)
    return module.rnnt_loss_pruned(logits, tokens, ranges, 0, kept, reduction="mean")


def simple_loss(module, lattice, tokens, *lens):
    """Compute the loss of a joint without tanh, and the gradients of its arcs."""
    return module.rnnt_loss_simple(
        lm=lattice.pred @ lattice.weight.T,
        am=lattice.enc @ lattice.weight.T + lattice.bias,
        symbols=tokens,
        termination_symbol=0,
        boundary=boundary(tokens, *lens),
        reduction="mean",
        return_grad=True,
    )


def boundary(tokens, frame_lens, token_lens):
    """First and last token position and frame [B, 4] in k2's format."""
    start = torch.zeros_like(token_lens)
    return torch.stack([start, start, token_lens, frame_lens], 1).to(tokens.device, torch.int64)


LOSSES = {
    "ours": Loss(ours),
    "torchaudio": Loss(torchaudio_loss),
    "NeMo's numba loss (warprnnt_numba)": Loss(
        numba_loss, "warprnnt_numba", "not installed: pip install warprnnt-numba numba"
    ),
    "SpeechBrain's numba loss": Loss(
        speechbrain_loss,
        "speechbrain.integrations.numba.transducer_loss",
        "not installed: pip install numba",
        needs_cuda=True,
    ),
    "fast_rnnt, exact": Loss(
        exact_mutual_information_loss,
        "fast_rnnt",
        FAST_RNNT,
    ),
    "fast_rnnt, pruned": Loss(
        pruned_loss,
        "fast_rnnt",
        FAST_RNNT,
        pruned=True,
    ),
    "k2, pruned": Loss(
        pruned_loss,
        "k2",
        "not installable here: no source package, and the wheel is for torch 1.13, Python 3.9",
        pruned=True,
    ),
    "warp-transducer": Loss(
        warp_transducer_loss,
        "warprnnt_pytorch",
        "not installable here: no package of the PyTorch binding on PyPI",
    ),
    "warp_rnnt": Loss(
        warp_rnnt_loss,
        "warp_rnnt",
        "not installable here: source package only, and its build needs a CUDA device",
        needs_cuda=True,
    ),
}


def why_not(name, device):
    """Return the reason why a loss does not run on the device, or None."""
    loss = LOSSES[name]
    if loss.module is None:
        return None
    try:
        importlib.import_module(loss.module)
    except ModuleNotFoundError:
        return loss.missing
    except Exception as error:  # a library built for another torch fails in many ways
        return f"does not import: {error}"
    return "runs only on CUDA" if loss.needs_cuda and device != "cuda" else None


def compute(name, lattice, tokens, *lens):
    loss = LOSSES[name]
    module = importlib.import_module(loss.module) if loss.module else None
    return loss.call(module, lattice, tokens, *lens)


def errors(name, lattice, tokens, *lens):
    """Compute the relative errors of value and gradient against our loss."""
    losses, gradients = [], []
    for each in ("ours", name):
        value = compute(each, lattice, tokens, *lens)
        losses.append(value.item())
        parts = torch.autograd.grad(value, [*lattice])
        gradients.append(torch.cat([part.flatten() for part in parts]).double())
    exact, other = gradients
    return {
        "value_error": abs(losses[1] - losses[0]) / abs(losses[0]),
        "gradient_error": ((other - exact).norm() / exact.norm()).item(),
    }


def fitted(name, lattice, tokens, *lens):
    """Train both sides of the lattice on the tokens, as icefall does for a pruned loss.

    The objective is the exact loss plus half of the simple loss, so both learn the alignment.
    """
    module = importlib.import_module(LOSSES[name].module)
    tensors = [tensor.detach().clone().requires_grad_() for tensor in lattice]
    lattice = type(lattice)(*tensors)
    optimizer = torch.optim.Adam([lattice.enc, lattice.pred], lr=FIT_RATE)
    for _ in range(FIT_STEPS):
        optimizer.zero_grad()
        loss = ours(None, lattice, tokens, *lens)
        (loss + 0.5 * simple_loss(module, lattice, tokens, *lens)[0]).backward()
        optimizer.step()
    return lattice
