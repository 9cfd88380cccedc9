"""Time and peak memory of the lattice losses, in three forms of the same computation.

    python benchmarks/lattice.py [folder] [--quick] [--device cuda] [--peers | --huge]

The script measures the forward and backward pass of the transducer loss of a vocabulary joint plus
lattice pooling (``one``) of an emotion joint. Both joints are 768 wide. The data are random, and
every utterance has the full length. Gradients are computed for the outputs of both joints'
projections.

* ours: ``transducer_alignment`` and ``lattice_pooling_loss``; also with ``aligned`` pooling.
* dense: the sum of both sides by broadcasting, torchaudio's ``rnnt_loss`` on all logits, and
  pooling of the whole batch together.
* published: as in the method's published code. Both sides are copied to T x (U+1) with ``repeat``
  before they are added, and a Python loop over the batch does the pooling.

Each measurement runs in its own process with the same number of threads. Its memory is the peak
resident set during the passes minus the resident set before them. The latter includes the
interpreter, the libraries, the inputs and a small warm-up pass. On a GPU it is the allocator's peak
minus the inputs. Its time is the median of a few passes.

A form whose tensors would not fit is not run. The table gives the memory that they would need
(``needed_memory``), and compares ours with the dense form. If that does not fit either, it compares
with the need of the published form. The JSON also has the need of the forms that were run.

The folder receives ``lattice.json``, the table ``lattice.md``, and ``lattice.png``. The picture
shows the costs over the length of one utterance, with the exponents of the growth of peak memory.

``--peers`` measures only the transducer loss, and the losses of other libraries in
``transducers.py`` on the same tensors. Their errors are relative to ours. The row of a missing
library gives the reason. The files are ``lattice_peers.json`` and ``lattice_peers.md``.

``--huge`` measures a batch of more than 2^31 logits. It compares our loss and gradient of the whole
batch with torchaudio's sums over single utterances. torchaudio's loss of the batch would need the
dense logits, and its index would overflow. The files are ``lattice_huge.json`` and ``.md``.
"""

import argparse
import json
import math
import multiprocessing
import time
from itertools import product
from pathlib import Path
from statistics import median

import torch
import transducers
from torchaudio.functional import rnnt_loss
from tqdm import tqdm

from ent_brain.lattice import Lattice
from ent_brain.losses import aligned_pooling_loss, lattice_pooling_loss, transducer_alignment

JOINT_DIM, EMOTIONS, NEUTRAL = 768, 4, 3
SHAPES = [
    (2, 225, 51, 31),
    (4, 374, 81, 31),
    (2, 225, 21, 5000),
    (4, 1500, 301, 31),
    (1, 6000, 1201, 31),
    (8, 500, 101, 5000),
    (2, 500, 101, 20000),
]
"""Shapes (B, T, U+1, V). They are the paper's batch of two, a larger one, one with sentence pieces,
30 seconds and two minutes of speech, and large vocabularies, which often exhaust the memory."""
QUICK_SHAPES = [(2, 225, 51, 31), (2, 100, 21, 1000)]
PEER_SHAPES = [(2, 225, 51, 31), (4, 374, 81, 31), (2, 225, 21, 5000)]
HUGE_SHAPE, HUGE_JOINT_DIM = (16, 400, 68, 5000), 16
"""Shape of 2.2e9 logits, and a width of the joint with which a pass takes less than a minute."""
LENGTHS, QUICK_LENGTHS = (250, 500, 1000, 2000, 4000), (250, 500, 1000)
"""Numbers of frames of the plot's single utterance, which has one token per five frames."""
LENGTH_FORMS = ("ours", "dense", "published")
PASSES, ENOUGH_SECONDS = 7, 1.5
"""Number of passes for the median of the time, and seconds after which fewer passes suffice."""
FREE_SHARE = 0.5
"""Share of the free memory that a form may need. Other programs also use the machine."""


def needed_memory(form, shape, itemsize=4):
    """Compute the bytes of the tensors that must exist together in the dense or published form.

    The unit is a hidden layer H or a vocabulary-wide layer V of all nodes. While the emotion joint
    runs, there are the vocabulary joint's tanh and logits, H + V, and the sum and its tanh. The
    published form also has copies of both sides. The backward pass of the transducer loss needs
    both joints' tanh, the gradient of one, the loss's gradient and that of the logits: 3 H + 2 V.
    The gradient of the vocabulary joint's tanh needs 4 H + V.
    """
    batch, frames, positions, vocab_size = shape
    emotion_forward = {"dense": 3, "published": 5}[form]
    hidden, vocabulary = JOINT_DIM * itemsize, vocab_size * 4
    stages = [(emotion_forward, 1), (3, 2), (4, 1)]
    width = max(h * hidden + v * vocabulary for h, v in stages)
    return batch * frames * positions * width


def make_batch(shape, device, dtype, joint_dim=JOINT_DIM):
    """Make both lattices, tokens, emotions, and frame and token lengths: random, full length."""
    batch, frames, positions, vocab_size = shape
    generator = torch.Generator().manual_seed(0)

    def tensor(*size, scale=1.0, dtype=torch.float32):
        values = torch.randn(*size, generator=generator) * scale
        return values.to(device, dtype).requires_grad_()

    def lattice(outputs):
        return Lattice(
            enc=tensor(batch, frames, joint_dim, dtype=dtype),
            pred=tensor(batch, positions, joint_dim, dtype=dtype),
            weight=tensor(outputs, joint_dim, scale=joint_dim**-0.5),
            bias=tensor(outputs),
        )

    tokens = torch.randint(1, vocab_size, (batch, positions - 1), generator=generator)
    emotions = torch.randint(EMOTIONS, (batch,), generator=generator)
    lens = torch.full((batch,), frames), torch.full((batch,), positions - 1)
    return (
        lattice(vocab_size),
        lattice(EMOTIONS),
        *(each.to(device) for each in (tokens, emotions, *lens)),
    )


def ours(token_lattice, emotion_lattice, tokens, emotions, *lens):
    nll = transducer_alignment([token_lattice], tokens, *lens).nll.mean()
    return nll + lattice_pooling_loss(emotion_lattice, emotions, *lens, neutral=NEUTRAL)


def ours_aligned(token_lattice, emotion_lattice, tokens, emotions, *lens):
    nll, posteriors = transducer_alignment([token_lattice], tokens, *lens)
    return nll.mean() + aligned_pooling_loss(
        (), emotion_lattice, tokens, emotions, *lens, neutral=NEUTRAL, posteriors=posteriors
    )


def dense(token_lattice, emotion_lattice, tokens, emotions, *lens):
    logits, emotion_logits = token_lattice.dense(), emotion_lattice.dense()
    lengths = [each.int() for each in (tokens, *lens)]
    probabilities = emotion_logits.softmax(-1).flatten(1, 2)
    present = probabilities.gather(2, emotions[:, None, None].expand(-1, probabilities.size(1), 1))
    absent = probabilities[..., NEUTRAL]
    pooled = present.amax((1, 2)).log() + absent.amin(1).log()
    return rnnt_loss(logits, *lengths, blank=0) - pooled.mean()


def published(token_lattice, emotion_lattice, tokens, emotions, *lens):
    logits, emotion_logits = copied(token_lattice), copied(emotion_lattice)
    lengths = [each.int() for each in (tokens, *lens)]
    terms = []
    for row, emotion in enumerate(emotions.tolist()):
        probabilities = emotion_logits[row, : lens[0][row], : lens[1][row] + 1].softmax(-1)
        terms.append(probabilities[..., emotion].max().log())
        terms.append(probabilities[..., NEUTRAL].min().log())
    return rnnt_loss(logits, *lengths, blank=0) - sum(terms) / len(emotions)


def copied(lattice):
    """Compute logits [B, T, U+1, outputs] from copies of both sides."""
    enc = lattice.enc.unsqueeze(2).repeat(1, 1, lattice.pred.size(1), 1)
    pred = lattice.pred.unsqueeze(1).repeat(1, lattice.enc.size(1), 1, 1)
    hidden = torch.tanh(enc + pred)
    weight, bias = lattice.weight.to(hidden.dtype), lattice.bias.to(hidden.dtype)
    return torch.nn.functional.linear(hidden, weight, bias).float()


FORMS = {"ours": ours, "ours, aligned": ours_aligned, "dense": dense, "published": published}


def record(form, shape, device="cpu", dtype="float32", threads=2):
    """Measure a row of the results in its own process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([ours.__module__, "ent_brain.losses"])
    row = {"form": form, "shape": shape, "device": device, "dtype": dtype, "threads": threads}
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(sender,), kwargs=row)
    process.start()
    sender.close()
    try:
        return row | receiver.recv()
    except EOFError:
        raise RuntimeError(f"{form} at {shape} died") from None
    finally:
        process.join()


def measure(results, form, shape, device, dtype, threads):
    """Send the seconds and bytes of a form, or only its need if it does not fit."""
    torch.set_num_threads(threads)
    dtype = getattr(torch, dtype)
    one_pass(form, make_batch((1, 20, 8, 9), device, dtype))
    row = {}
    if form in ("dense", "published"):
        row["needs"] = needed_memory(form, shape, dtype.itemsize)
    if row.get("needs", 0) <= FREE_SHARE * free_memory(device):
        batch = make_batch(shape, device, dtype)
        before = start_of_peak(device)
        seconds, cpu_seconds = [], []
        while len(seconds) < PASSES and sum(seconds) < ENOUGH_SECONDS:
            start, cpu_start = time.perf_counter(), time.process_time()
            one_pass(form, batch)
            seconds.append(time.perf_counter() - start)
            cpu_seconds.append(time.process_time() - cpu_start)
        row |= {"seconds": median(seconds), "bytes": peak(device) - before}
        row["cpu_seconds"] = median(cpu_seconds)
        if form in transducers.LOSSES:
            row |= peer_errors(form, batch)
    results.send(row)


def peer_errors(name, batch):
    """Relative errors of value and gradient; for a pruned loss, also on fitted tensors."""
    lattice, _, tokens, _, *lens = batch
    row = transducers.errors(name, lattice, tokens, *lens)
    if transducers.LOSSES[name].pruned:
        lattice = transducers.fitted(name, lattice, tokens, *lens)
        row["fitted"] = transducers.errors(name, lattice, tokens, *lens)
    return row


def one_pass(form, batch):
    if form in FORMS:
        torch.autograd.grad(FORMS[form](*batch), [*batch[0], *batch[1]])
    else:
        lattice, _, tokens, _, *lens = batch
        torch.autograd.grad(transducers.compute(form, lattice, tokens, *lens), [*lattice])
    if batch[0].enc.is_cuda:
        torch.cuda.synchronize()


def start_of_peak(device):
    """Reset the peak of the memory; return the bytes in use."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def peak(device):
    return torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")


def resident(field):
    return kilobytes("/proc/self/status", field)


def kilobytes(path, field):
    """Read a field of one of Linux's memory tables, in bytes."""
    fields = dict(line.split(":") for line in Path(path).read_text().splitlines() if ":" in line)
    return int(fields[field].split()[0]) * 1024


def free_memory(device):
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return kilobytes("/proc/meminfo", "MemAvailable")


def table(rows):
    """Make the Markdown table: each shape, type and form, and the gains of ours."""
    lines = [
        "| B, T, U+1, V | form | time | peak memory | times faster | times less memory |",
        "| :-- | :-- | --: | --: | --: | --: |",
    ]
    cases = dict.fromkeys((tuple(row["shape"]), row["dtype"]) for row in rows)
    for shape, dtype in cases:
        forms = {
            row["form"]: row
            for row in rows
            if tuple(row["shape"]) == shape and row["dtype"] == dtype
        }
        size = ", ".join(f"{n:,}" for n in shape) + (" bf16" if dtype == "bfloat16" else "")
        for form, row in forms.items():
            if "seconds" in row:
                seconds, memory = f"{row['seconds'] * 1e3:,.0f} ms", megabytes(row["bytes"])
            else:
                seconds, memory = "does not fit", f"needs {megabytes(row['needs'])}"
            faster, less = gains(row, forms) if form.startswith("ours") else ("", "")
            lines.append(f"| {size} | {form} | {seconds} | {memory} | {faster} | {less} |")
            size = ""
    return "\n".join(lines)


def gains(ours, forms):
    """Make the cells with the factors by which ours is faster and needs less memory."""
    for form in ("published", "dense"):
        other, label = forms[form], "" if form == "published" else " than dense"
        if "seconds" in other:
            return (
                f"{other['seconds'] / ours['seconds']:.1f}{label}",
                f"{other['bytes'] / ours['bytes']:.0f}{label}",
            )
    return "", f"{forms['published']['needs'] / ours['bytes']:.0f} than needed"


def megabytes(count):
    return f"{count / 1e6:,.0f} MB"


def measure_peers(shapes, device, threads):
    """Measure a row for each loss and shape; a loss that does not run has a row with the reason."""
    rows = []
    for name in tqdm(transducers.LOSSES, desc="losses"):
        if reason := transducers.why_not(name, device):
            rows.append({"form": name, "reason": reason})
        else:
            rows += [record(name, shape, device, threads=threads) for shape in shapes]
    return rows


def peer_table(rows):
    """Make the Markdown table: each loss at each shape, then the losses that did not run."""
    lines = [
        "| B, T, U+1, V | loss | time | CPU time | peak memory | error of value | of gradient |",
        "| :-- | :-- | --: | --: | --: | --: | --: |",
    ]
    measured = [row for row in rows if "seconds" in row]
    for shape in dict.fromkeys(tuple(row["shape"]) for row in measured):
        size = ", ".join(f"{n:,}" for n in shape)
        for row in measured:
            if tuple(row["shape"]) == shape:
                times = [f"{row[key] * 1e3:,.0f} ms" for key in ("seconds", "cpu_seconds")]
                costs = " | ".join([*times, megabytes(row["bytes"])])
                lines.append(f"| {size} | {row['form']} | {costs} | {peer_error_cells(row)} |")
                size = ""
                if fitted := row.get("fitted"):
                    lines.append(f"| | on fitted tensors | | | | {peer_error_cells(fitted)} |")
    lines += [
        f"| any | {row['form']} | {row['reason']} | | | | |" for row in rows if "reason" in row
    ]
    return "\n".join(lines)


def peer_error_cells(row):
    return f"{row['value_error']:.1e} | {row['gradient_error']:.1e}"


def measure_huge(shape, joint_dim):
    """Compare our loss of a whole batch with torchaudio's sum over single utterances."""
    lattice, _, tokens, _, *lens = make_batch(shape, "cpu", torch.float32, joint_dim)
    start, cpu_start = time.perf_counter(), time.process_time()
    before = start_of_peak("cpu")
    nll = transducer_alignment([lattice], tokens, *lens).nll
    gradients = torch.autograd.grad(nll.sum(), [*lattice])
    row = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}
    row["bytes"] = peak("cpu") - before
    singles, exact = [], [torch.zeros_like(each, dtype=torch.float64) for each in lattice]
    for index in tqdm(range(shape[0]), desc="utterances"):
        one = slice(index, index + 1)
        single = lattice._replace(enc=lattice.enc[one], pred=lattice.pred[one])
        loss = transducers.torchaudio_loss(None, single, tokens[one], *(n[one] for n in lens))
        for total, part in zip(exact, torch.autograd.grad(loss, [*lattice]), strict=True):
            total += part
        singles.append(loss.item())
    singles = torch.tensor(singles, dtype=torch.float64)
    return row | {
        "shape": shape,
        "joint_dim": joint_dim,
        "logits": math.prod(shape),
        "dense_logits_bytes": 4 * math.prod(shape),
        "loss": nll.sum().item(),
        "sum_of_single_losses": singles.sum().item(),
        "largest_value_error": ((nll.detach() - singles).abs() / singles).max().item(),
        "gradient_errors": {
            name: ((mine - right).norm() / right.norm()).item()
            for name, mine, right in zip(lattice._fields, gradients, exact, strict=True)
        },
    }


def huge_table(row):
    size = ", ".join(f"{n:,}" for n in row["shape"])
    times = f"{row['seconds']:.0f} s | {row['cpu_seconds']:.0f} s"
    cost = f"{times} | {megabytes(row['bytes'])} | {row['loss']:,.1f}"
    worst = f"{row['largest_value_error']:.1e} | {max(row['gradient_errors'].values()):.1e}"
    need = f"dense logits: {megabytes(row['dense_logits_bytes'])}, their gradient as much again"
    lines = [
        "| B, T, U+1, V | loss | time | CPU time | peak memory | value | its error | of gradient |",
        "| :-- | :-- | --: | --: | --: | --: | --: | --: |",
        f"| {size} | ours, whole batch | {cost} | {worst} |",
        f"| | torchaudio, sum of utterances | | | | {row['sum_of_single_losses']:,.1f} | | |",
        f"| | torchaudio, whole batch | not run | | {need} | | | |",
        "",
        f"{row['logits']:,} logits; 2^31 is {2**31:,}.",
    ]
    return "\n".join(lines)


def growth(rows):
    """Exponent of peak memory over length: the slope of a line through the logarithms."""
    lengths, memories = (
        [math.log(value) for value in column]
        for column in zip(*((row["shape"][1], row["bytes"]) for row in rows), strict=True)
    )
    mean = sum(lengths) / len(lengths)
    spread = sum((x - mean) ** 2 for x in lengths)
    return sum((x - mean) * y for x, y in zip(lengths, memories, strict=True)) / spread


def draw(rows, path):
    """Draw peak memory and time over the frames of one utterance, with a line per form."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    # Colours of Okabe and Ito, which everybody can distinguish; markers and dashes differ in grey.
    styles = {
        "ours": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
        "dense": {"color": "#E69F00", "marker": "s", "linestyle": "--"},
        "published": {"color": "#000000", "marker": "^", "linestyle": ":"},
    }
    figure, (memory, seconds) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for form, style in styles.items():
        points = [row for row in rows if row["form"] == form and "bytes" in row]
        lengths = [row["shape"][1] for row in points]
        exponent = f", grows with length$^{{{growth(points):.2f}}}$" if len(points) > 1 else ""
        memory.plot(lengths, [row["bytes"] / 1e6 for row in points], label=form + exponent, **style)
        seconds.plot(lengths, [row["seconds"] for row in points], label=form, **style)
        missing = [row for row in rows if row["form"] == form and "bytes" not in row]
        memory.plot(
            [row["shape"][1] for row in missing],
            [row["needs"] / 1e6 for row in missing],
            **style | {"linestyle": "none", "markerfacecolor": "none"},
        )
    memory.set(ylabel="peak memory (MB); hollow: needed, does not fit")
    seconds.set(ylabel="forward and backward (s)")
    for axes in (memory, seconds):
        axes.set(xlabel="frames T of one utterance, T/5 tokens", xscale="log", yscale="log")
        ticks = sorted({row["shape"][1] for row in rows})
        axes.set_xticks(ticks, [f"{frames:,}" for frames in ticks])
        axes.minorticks_off()
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("results/benchmarks"),
        help="folder for the results (default: results/benchmarks)",
    )
    parser.add_argument("--quick", action="store_true", help="small shapes, less than a minute")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="device (default: cpu)"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--peers", action="store_true", help="measure only the losses of other libraries"
    )
    mode.add_argument(
        "--huge", action="store_true", help="measure only a batch of more than 2^31 logits"
    )
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.peers:
        shapes = PEER_SHAPES[:1] if arguments.quick else PEER_SHAPES
        rows = measure_peers(shapes, arguments.device, arguments.threads)
        write(arguments, "lattice_peers", {"rows": rows}, peer_table(rows), JOINT_DIM)
    elif arguments.huge:
        torch.set_num_threads(arguments.threads)
        shape = QUICK_SHAPES[0] if arguments.quick else HUGE_SHAPE
        row = measure_huge(shape, HUGE_JOINT_DIM)
        write(arguments, "lattice_huge", {"rows": row}, huge_table(row), HUGE_JOINT_DIM)
    else:
        measure_forms(arguments)


def measure_forms(arguments):
    """Measure the three forms of the transducer loss plus pooling; write table and picture."""
    settings = arguments.device, "float32", arguments.threads
    types = ("float32", "bfloat16") if arguments.device == "cuda" else ("float32",)
    lengths = QUICK_LENGTHS if arguments.quick else LENGTHS
    shapes = QUICK_SHAPES if arguments.quick else SHAPES
    rows = [
        record(form, shape, arguments.device, dtype, arguments.threads)
        for form, shape, dtype in tqdm([*product(FORMS, shapes, types)], desc="shapes")
    ]
    over_length = [
        record(form, (1, frames, frames // 5 + 1, 31), *settings)
        for form, frames in tqdm([*product(LENGTH_FORMS, lengths)], desc="lengths")
    ]
    exponent = growth([row for row in over_length if row["form"] == "ours"])
    lines = f"""{table(rows)}

Peak memory of ours grows with the length of an utterance (T and U) to the power of {exponent:.2f}
between {lengths[0]} and {lengths[-1]} frames."""
    found = {"shapes": rows, "over_length": over_length, "growth_exponent": exponent}
    write(arguments, "lattice", found, lines, JOINT_DIM)
    draw(over_length, arguments.folder / "lattice.png")


def write(arguments, name, found, lines, joint_dim):
    """Write the JSON and the table, and name the machine in both."""
    where = f"{machine(arguments.device)}, threads: {arguments.threads}"
    text = f"{lines}\n\n{where}, random data, joint {joint_dim} wide.\n"
    print(text)
    found = {"machine": where, **found}
    (arguments.folder / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
    (arguments.folder / f"{name}.md").write_text(text)


def machine(device):
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'CPU'}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
