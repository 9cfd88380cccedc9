"""Figures and tables: learning curves, confusion matrices, timelines, lattices and results.

Figures are built without pyplot, so nothing global changes and no display is needed. People with
colour blindness can distinguish the colours; hatching, line styles and text carry the same
information. The ending of a path selects the format of the picture. Folders are created.
"""

from pathlib import Path

import numpy as np
from matplotlib import mlab
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator

from ent_brain.segments import fill_neutral

NEUTRAL_FILL = ("#DDDDDD", "")
FILLS = (
    *(("#E69F00", "..."), ("#D55E00", "xxx"), ("#0072B2", "///"), ("#56B4E9", "|||")),
    *(("#F0E442", "---"), ("#882255", "+++"), ("#55AA55", "\\\\\\"), ("#332288", "ooo")),
    *(("#66FFAA", "OO"), ("#DD00FF", "***"), ("#004D1A", "//"), ("#00FFFF", "..")),
)
"""Colours and hatchings (Matplotlib's) of emotions. The first five colours are those of Okabe and
Ito (2008); the others are chosen to differ for people with colour blindness, too."""
USUAL_FILLS = {"happy": 0, "angry": 1, "sad": 2}
"""Index in ``FILLS`` of the emotions that look the same in every label set."""
STAGE_LINES = {"train": "-", "valid": "--", "test": ":"}
LINES = (("#000000", "o"), ("#D55E00", "s"), ("#0072B2", "^"), ("#009E73", "v"), ("#CC79A7", "D"))
RATE_LABELS = {
    **{name: f"{name} ↓" for name in ("WER", "CER", "EDER", "error")},
    **{name: f"{name} ↑" for name in ("WA", "UA")},
}
FONT = FontProperties(size=9)
TEXT = {"fontproperties": FONT, "ha": "center", "va": "center"}
LINE = 0.18  # height of a line of text in inches
DYNAMIC_RANGE = 70  # range of a spectrogram in dB below its loudest point; softer points are white
SILENCE = -90  # level in dB of full scale below which a whole recording stays white


def palette(emotions):
    """Choose the colour and hatching of each emotion in a set, for pictures and pages.

    Arguments
    ---------
    emotions : EmotionSet

    Returns
    -------
    dict[str, tuple[str, str]]
        A colour (``#RRGGBB``) and Matplotlib's hatching for each name.

    Example
    -------
    >>> from ent_brain.emotions import EmotionSet
    >>> palette(EmotionSet(["calm", "fear", "happy"], "calm"))
    {'calm': ('#DDDDDD', ''), 'fear': ('#D55E00', 'xxx'), 'happy': ('#E69F00', '...')}
    """
    usual = {name: FILLS[index] for name, index in USUAL_FILLS.items() if name in emotions.names}
    if emotions.neutral is not None:
        usual[emotions.neutral] = NEUTRAL_FILL
    others = iter([fill for fill in FILLS if fill not in usual.values()])
    return {name: usual.get(name) or next(others) for name in emotions}


def _styles(emotions):
    """Matplotlib's keyword arguments to fill the area of each emotion (dict by name)."""
    return {
        name: {"facecolor": color, "hatch": hatch, "edgecolor": (1, 1, 1, 0.6), "linewidth": 0.5}
        for name, (color, hatch) in palette(emotions).items()
    }


def plot_learning_curves(epochs, path):
    """Draw losses, rates and the learning rate over the epochs.

    Arguments
    ---------
    epochs : list[dict]
        Log of each epoch: ``epoch``, ``lr`` and ``"<stage> <quantity>"`` with stage train, valid or
        test. The quantities WER, CER, EDER, WA, UA and error are in percent; all others are losses.
        Any key except ``epoch`` may be missing.
    path : str or Path

    Returns
    -------
    matplotlib.figure.Figure

    Example
    -------
    >>> epochs = [{"epoch": 1, "lr": 1e-4, "train loss": 9.0, "valid loss": 8.0, "valid UA": 30.0}]
    >>> figure = plot_learning_curves(epochs, getfixture("tmp_path") / "curves.png")
    """
    figure = Figure(figsize=(9, 7), layout="constrained")
    losses, rates, lr = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 1])
    names = dict.fromkeys(key.partition(" ")[::2] for epoch in epochs for key in epoch)
    for axes, are_rates in ((losses, False), (rates, True)):
        chosen = [n for n in names if n[0] in STAGE_LINES and (n[1] in RATE_LABELS) == are_rates]
        quantities = list(dict.fromkeys(quantity for _, quantity in chosen))
        for stage, quantity in chosen:
            points = _points(epochs, f"{stage} {quantity}")
            color, marker = LINES[quantities.index(quantity) % len(LINES)]
            look = {"color": color, "marker": marker, "linestyle": STAGE_LINES[stage]}
            look |= {"markersize": 4, "markevery": max(1, len(points[0]) // 10)}
            axes.plot(*points, label=f"{stage} {RATE_LABELS.get(quantity, quantity)}", **look)
        if chosen:
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, handlelength=3)
    lr.plot(*_points(epochs, "lr"), color="black", marker=".")
    losses.set(ylabel="loss", yscale="log")  # the parts differ by orders of magnitude
    rates.set(ylabel="%")
    lr.set(ylabel="learning rate", xlabel="epoch")
    lr.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def _points(epochs, key):
    """Epochs with a value, and the values."""
    logged = [epoch for epoch in epochs if epoch.get(key) is not None]
    return [epoch["epoch"] for epoch in logged], [epoch[key] for epoch in logged]


def plot_confusion(confusion, path, title, emotions):
    """Draw a confusion matrix: counts, and percentages of each row.

    Arguments
    ---------
    confusion : int array [E, E]
        Counts from ``EmotionStats.summarize("confusion")``: a row per target, a column per
        prediction.
    path : str or Path
    title : str
    emotions : EmotionSet

    Returns
    -------
    matplotlib.figure.Figure

    Example
    -------
    >>> from ent_brain.emotions import PUBLISHED
    >>> confusion = [[9, 1, 0, 2], [1, 8, 0, 1], [0, 0, 7, 3], [2, 1, 2, 9]]
    >>> path = getfixture("tmp_path") / "confusion.png"
    >>> figure = plot_confusion(confusion, path, "Session 5", PUBLISHED)
    """
    confusion, names = np.asarray(confusion), emotions.names
    side = max(5.2, 1.6 + 0.75 * len(names))  # inches
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    percentages = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(percentages, cmap="Blues", vmin=0, vmax=100)
    for (row, column), count in np.ndenumerate(confusion):
        percentage = percentages[row, column]
        text = f"{count}\n{percentage:.1f} %" if confusion[row].any() else "0"
        color = "white" if percentage > 55 else "black"
        axes.text(column, row, text, ha="center", va="center", color=color)
    crowded = max(map(len, names)) * 0.09 * len(names) > 0.8 * side
    axes.set_xticks(range(len(names)), names, parse_math=False, rotation=45 * crowded)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set(xlabel="predicted", ylabel="target")
    axes.set_title(title, parse_math=False)
    return _save(figure, path)


def plot_timeline(path, waveform, sample_rate, annotation, reference=None):
    """Draw the words and emotions of one recording over time.

    From the top: spectrogram, words, target and predicted emotions, emotion probabilities.

    Arguments
    ---------
    path : str or Path
    waveform : float array [samples]
    sample_rate : int
        Hz.
    annotation : Annotation
        Annotation of the recording; its name is the title.
    reference : list[Segment], optional
        Emotional segments; the rest is neutral. Without it, the track of targets is omitted.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InputError
        If the segments of the reference overlap or lie outside the recording.

    Example
    -------
    >>> import torch
    >>> from ent_brain.annotation import Heard, annotate
    >>> from ent_brain.emotions import PUBLISHED
    >>> from ent_brain.segments import Segment
    >>> log_probs = torch.full([50, 4], 0.25).log()
    >>> heard = Heard(1.0, [("HELLO", 0.1, 0.5)], log_probs, [0] * 50, log_probs[0])
    >>> figure = plot_timeline(
    ...     getfixture("tmp_path") / "timeline.png",
    ...     waveform=np.random.default_rng(0).normal(size=16000), sample_rate=16000,
    ...     annotation=annotate("a greeting", heard, 0.02, PUBLISHED),
    ...     reference=[Segment(0.0, 0.6, "happy")],
    ... )
    """
    duration, emotions = len(waveform) / sample_rate, annotation.label_set
    tracks = {"predicted": annotation.segments}
    if reference is not None:
        tracks = {"target": fill_neutral(reference, duration, emotions), **tracks}
    width = min(max(9.0, duration), 24.0)  # minimum length of the time axis in inches
    seconds_per_point = duration / (72 * width)
    words = [(word.text, word.start, word.end) for word in annotation.words]
    rows = _rows_of_words(words, duration, seconds_per_point)
    heights = np.array([2.0, 0.1 + 0.26 * len(rows), 0.32 * len(tracks), 1.2])
    figure = Figure(figsize=(width + 1.3, heights.sum() + 1.3), layout="constrained")
    panels = figure.subplots(4, 1, sharex=True, height_ratios=heights)
    _draw_spectrogram(panels[0], waveform, sample_rate)
    _draw_words(panels[1], rows)
    _draw_tracks(panels[2], tracks, seconds_per_point, emotions)
    probabilities = np.array(annotation.frame_probabilities).reshape(-1, len(emotions))
    _draw_probabilities(panels[3], probabilities, annotation.frame_duration, emotions)
    for axes, label in zip(panels, ("kHz", "words", "", "probability"), strict=True):
        axes.set_ylabel(label)
        axes.tick_params(bottom=axes is panels[3])
    figure.align_ylabels()
    panels[0].set_title(annotation.name, loc="left", parse_math=False)
    panels[3].set(xlim=(0, duration), xlabel="seconds")
    codes = zip(emotions, emotions.codes, strict=True)
    names = [name if code == name else f"{name} ({code})" for name, code in codes]
    patches = [Patch(**style) for style in _styles(emotions).values()]
    room = 72 * (width + 1) / (max(map(_text_width, names)) + 50)  # columns of swatch and name
    columns = max(1, min(len(patches), int(room)))
    look = {"ncols": columns, "frameon": False, "handlelength": 3, "handleheight": 1.4}
    figure.legend(patches, names, loc="outside lower right", **look)
    return _save(figure, path)


def plot_lattice(path, probabilities, frames, words, frame_duration, title, emotions):
    """Draw the emotion lattice of one utterance, and the best path of its words.

    Each emotion has a panel with its probability at each node (frame, token position) in grey. The
    path moves up when a token is emitted. A search uses the emotions along the path.

    Arguments
    ---------
    path : str or Path
    probabilities : float array [T, U+1, E]
        Emotion probabilities of each node.
    frames : sequence of int
        [U] frame at which each token is emitted.
    words : list[tuple[str, int, int]]
        Text, index of the first token, and index after the last token, from ``tokens.words``.
    frame_duration : float
        Seconds from one frame to the next.
    title : str
    emotions : EmotionSet

    Returns
    -------
    matplotlib.figure.Figure

    Example
    -------
    >>> from ent_brain.emotions import PUBLISHED
    >>> figure = plot_lattice(
    ...     getfixture("tmp_path") / "lattice.png", np.full([50, 4, 4], 0.25), frames=[5, 9, 30],
    ...     words=[("OH", 0, 2), ("I", 2, 3)], frame_duration=0.02, title="an answer",
    ...     emotions=PUBLISHED,
    ... )
    """
    steps, positions, _ = probabilities.shape
    duration = steps * frame_duration
    middles = [(first + end) / 2 for _, first, end in words]
    nearest = min(np.diff(middles), default=np.inf)
    rows, columns = -(-len(emotions) // 2), 2
    height = min(max(1.4, 0.05 * positions, LINE * positions / nearest), 7.0)  # panel, in inches
    height = min(height, max(1.4, 14.0 / rows))
    labels = []  # words without those that would overlap
    for middle, (word, _, _) in zip(middles, words, strict=True):
        if not labels or middle - labels[-1][0] >= LINE * positions / height - 1e-6:
            labels.append((middle, word))
    figure = Figure(figsize=(11, rows * height + 1.6), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[len(emotions) :]:
        axes.set_axis_off()
    # The path stays at position u from the frame of token u to that of the next token.
    times = [0.0, *(frame_duration * (np.asarray(frames) + 0.5)), duration]
    for index, (axes, emotion) in enumerate(zip(panels.flat, emotions, strict=False)):
        image = axes.imshow(
            probabilities[..., index].T,
            cmap="gray_r",
            vmin=0,
            vmax=1,
            origin="lower",
            aspect="auto",
            interpolation="nearest",
            extent=(0, duration, -0.5, positions - 0.5),
        )
        heights = [*range(positions), positions - 1]
        # A white line below makes the vermilion one, a middle grey in print, visible on any grey.
        for color, width in (("white", 3.5), (LINES[1][0], 1.8)):
            axes.step(times, heights, where="post", color=color, linewidth=width)
        axes.set_title(emotion, loc="left", fontproperties=FONT, parse_math=False)
        axes.set_yticks([first + 0.5 for _, first, _ in words], minor=True)
        axes.grid(axis="y", which="minor", color="black", alpha=0.25, linewidth=0.5)
        axes.tick_params(which="minor", left=False)
        axes.set_yticks(
            [middle for middle, _ in labels], [word for _, word in labels], fontproperties=FONT
        )
        for label in axes.get_yticklabels():
            label.set_parse_math(False)
    for axes in panels[-1]:
        axes.set_xlabel("seconds")
    figure.suptitle(title, x=0.01, ha="left", parse_math=False)
    line = Line2D([], [], color=LINES[1][0], linewidth=1.8, label="best path of the words")
    figure.legend(handles=[line], loc="outside lower left", frameon=False)
    figure.colorbar(image, ax=panels, label="probability", pad=0.01, aspect=30)
    return _save(figure, path)


def _text_width(text):
    """Width of a text in points, with a margin."""
    return text_to_path.get_text_width_height_descent(text, FONT, ismath=False)[0] + 6


def _rows_of_words(words, duration, seconds_per_point):
    """Spread (word, start, end, middle of its text) over rows in which no two overlap."""
    rows = [[]]
    ends = [-np.inf]
    for text, start, end in words:
        width = _text_width(text) * seconds_per_point
        middle = min(max((start + end) / 2, width / 2), duration - width / 2)
        left = min(middle - width / 2, start)
        row = next((row for row, taken in enumerate(ends) if taken <= left), len(rows))
        if row == len(rows):
            rows.append([])
            ends.append(-np.inf)
        rows[row].append((text, start, end, middle))
        ends[row] = max(middle + width / 2, end)
    return rows


def _draw_spectrogram(axes, waveform, sample_rate):
    window = int(0.025 * sample_rate)
    hop = int(0.005 * sample_rate)
    padded = np.pad(waveform, window // 2)  # so that frame k is centred at k * hop
    options = {"NFFT": window, "noverlap": window - hop, "mode": "magnitude"}
    decibels = 20 * np.log10(np.maximum(mlab.specgram(padded, **options)[0], 1e-8))
    start, end = (np.array([0, decibels.shape[1]]) - 0.5) * hop / sample_rate
    loudest = max(decibels.max(), SILENCE)
    look = {"cmap": "gray_r", "vmin": loudest - DYNAMIC_RANGE, "vmax": loudest}
    look |= {"origin": "lower", "aspect": "auto", "extent": (start, end, 0, sample_rate / 2000)}
    axes.imshow(decibels, **look)


def _draw_words(axes, rows):
    for row, words in enumerate(rows):
        for text, start, end, middle in words:
            axes.plot([start, end], [row + 0.15] * 2, color="black", linewidth=2, marker="|")
            axes.text(middle, row + 0.6, text, **TEXT, parse_math=False)
    axes.set(ylim=(len(rows), -0.1), yticks=[])


def _draw_tracks(axes, tracks, seconds_per_point, emotions):
    styles, codes = _styles(emotions), dict(zip(emotions, emotions.codes, strict=True))
    for row, segments in enumerate(tracks.values()):
        for start, end, emotion in segments:
            axes.broken_barh([(start, end - start)], (row + 0.08, 0.84), **styles[emotion])
            names = (emotion, codes[emotion])
            room = (end - start) / seconds_per_point
            name = next((name for name in names if _text_width(name) < room), "")
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}
            axes.text((start + end) / 2, row + 0.5, name, **TEXT, bbox=box)
    axes.set_yticks(np.arange(len(tracks)) + 0.5, tracks, fontproperties=FONT)
    axes.set_ylim(len(tracks), 0)


def _draw_probabilities(axes, probabilities, frame_duration, emotions):
    edges = np.repeat(np.arange(len(probabilities) + 1) * frame_duration, 2)[1:-1]
    tops = np.repeat(np.cumsum(probabilities, axis=1), 2, axis=0).T  # constant within a frame
    bottoms = np.concatenate([np.zeros_like(tops[:1]), tops[:-1]])
    for bottom, top, style in zip(bottoms, tops, _styles(emotions).values(), strict=True):
        axes.fill_between(edges, bottom, top, **style)
    axes.set(ylim=(0, 1), yticks=[0, 0.5, 1])


def _save(figure, path):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06)  # inches
    figure.savefig(path, dpi=150)
    return figure


def results_table(rows):
    """Return a Markdown table that is also readable as plain text.

    Arguments
    ---------
    rows : list[dict]
        Columns are in the order of their first occurrence. Floats have one decimal; None and a
        missing value are "-".

    Returns
    -------
    str

    Example
    -------
    >>> print(results_table([{"model": "ENT", "WER": 31.26}, {"model": "neutral", "WER": None}]))
    | model   |  WER |
    | :------ | ---: |
    | ENT     | 31.3 |
    | neutral |    - |
    """
    lines = [""] * (len(rows) + 2)
    for column in dict.fromkeys(column for row in rows for column in row):
        values = [row.get(column) for row in rows]
        cells = [cell_text(value) for value in values]
        width = max(3, len(column), *map(len, cells))
        align = str.ljust if any(isinstance(value, str) for value in values) else str.rjust
        cells = [column, align(":", width, "-"), *cells]
        lines = [f"{line}| {align(cell, width)} " for line, cell in zip(lines, cells, strict=True)]
    return "\n".join(f"{line}|" for line in lines)


def cell_text(value):
    """Text (str) of a value in a table of results."""
    if value is None:
        return "-"
    return f"{value:.1f}" if isinstance(value, float | np.floating) else str(value)
