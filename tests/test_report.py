import itertools
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ent_brain.annotation import Heard, annotate
from ent_brain.emotions import PUBLISHED
from ent_brain.errors import InputError
from ent_brain.report import (
    plot_confusion,
    plot_lattice,
    plot_learning_curves,
    plot_timeline,
    results_table,
)
from ent_brain.segments import Segment

pytestmark = pytest.mark.filterwarnings("error")


def check_picture(path, figure):
    """Check that the file is a PNG of the figure's size and that nothing exceeds the figure."""
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert np.allclose(image.size, figure.get_size_inches() * 150, atol=1)
        pixels = np.asarray(image.convert("L"))
    border = np.concatenate([pixels[[0, -1]].ravel(), pixels[:, [0, -1]].ravel()])
    assert (border == 255).all()
    figure.dpi = 150
    figure.draw_without_rendering()  # so that extents are those of the file


def texts(axes):
    return [text.get_text() for text in axes.texts if text.get_text()]


def legend_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


# --- learning curves


def test_curves_go_to_their_panels(tmp_path):
    epochs = [
        {"epoch": 1, "lr": 1e-4, "train loss": 80.0, "valid loss": 90.0, "valid rnnt": 99.0},
        {"epoch": 2, "lr": 2e-4, "train loss": 40.0, "valid loss": 60.0, "valid WER": 90.0},
        {"epoch": 3, "train loss": 30.0, "valid loss": None, "valid WER": 70.0, "valid UA": 55.0},
    ]
    path = tmp_path / "new" / "folder" / "curves.png"
    figure = plot_learning_curves(epochs, path)
    check_picture(path, figure)
    losses, rates, lr = figure.axes
    assert legend_of(losses) == ["train loss", "valid loss", "valid rnnt"]
    assert legend_of(rates) == ["valid WER ↓", "valid UA ↑"]
    train, valid, _ = losses.lines
    assert list(train.get_xdata()) == [1, 2, 3]
    assert list(valid.get_ydata()) == [90.0, 60.0]
    assert train.get_color() == valid.get_color()
    assert train.get_linestyle() != valid.get_linestyle()
    assert list(lr.lines[0].get_ydata()) == [1e-4, 2e-4]


@pytest.mark.parametrize("count", [1, 2, 50])
@pytest.mark.parametrize("keys", [[], ["train loss"], ["valid WER"], ["train loss", "lr"]])
def test_curves_of_few_epochs_and_few_keys(tmp_path, count, keys):
    epochs = [{"epoch": epoch, **dict.fromkeys(keys, 1.0 / epoch)} for epoch in range(1, count + 1)]
    figure = plot_learning_curves(epochs, tmp_path / "curves.png")
    ticks = figure.axes[-1].xaxis.get_majorticklocs()
    assert all(tick == round(tick) for tick in ticks)
    check_picture(tmp_path / "curves.png", figure)


# --- confusion


def test_confusion_shows_counts_and_row_percentages(tmp_path):
    confusion = np.array([[1203, 102, 31, 300], [1, 3, 0, 0], [0, 0, 5, 0], [0, 0, 0, 0]])
    figure = plot_confusion(confusion, tmp_path / "confusion.png", "session $5$", PUBLISHED)
    check_picture(tmp_path / "confusion.png", figure)
    cells = texts(figure.axes[0])
    assert cells[0] == "1203\n73.5 %"
    assert cells[4:8] == ["1\n25.0 %", "3\n75.0 %", "0\n0.0 %", "0\n0.0 %"]
    assert cells[12:] == ["0"] * 4
    assert figure.axes[0].get_title() == "session $5$"


# --- timeline

SPEECH = ["WE", "SHOULD", "PROBABLY", "GO", "HOME", "BECAUSE", "IT'S", "EXTRAORDINARILY", "LATE"]


def draw(path, duration=4.0, words=(), reference=(), classes=None, waveform=None):
    rate = 16000
    if waveform is None:
        waveform = 0.1 * np.random.default_rng(0).normal(size=int(duration * rate))
    frames = int(duration * 50) - 1 if classes is None else len(classes)
    classes = [0] * frames if classes is None else classes
    probabilities = torch.full([frames, 4], 0.1)
    probabilities[torch.arange(frames), classes] = 0.7
    heard = Heard(duration, words, probabilities.log(), classes, torch.ones(4))
    annotation = annotate("a $title$", heard, 0.02, PUBLISHED)
    return plot_timeline(path, waveform, rate, annotation, reference)


@pytest.mark.parametrize("duration", [1.0, 4.0, 15.0])
@pytest.mark.parametrize("length", [0.0, 0.9])
def test_every_word_is_there_and_none_hides_another(tmp_path, duration, length):
    step = duration / len(SPEECH)
    words = [(w, i * step, (i + length) * step) for i, w in enumerate(SPEECH)]
    figure = draw(tmp_path / "t.png", duration, words)
    check_picture(tmp_path / "t.png", figure)
    panel = figure.axes[1]
    assert sorted(texts(panel)) == sorted(SPEECH)
    frame = panel.get_window_extent()
    boxes = [text.get_window_extent() for text in panel.texts]
    for box in boxes:
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1
        assert frame.y0 <= box.y0 and box.y1 <= frame.y1
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    intervals = {tuple(line.get_xdata()) for line in panel.lines}
    assert intervals == {(round(start, 4), round(end, 4)) for _, start, end in words}


def test_tracks_show_target_and_prediction_and_name_what_has_room(tmp_path):
    classes = [3] * 50 + [0] * 50 + [1] + [0] * 9 + [2] * 6 + [3] * 83
    reference = [Segment(1.0, 2.0, "happy")]
    figure = draw(tmp_path / "t.png", 4.0, reference=reference, classes=classes)
    check_picture(tmp_path / "t.png", figure)
    panel = figure.axes[2]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["target", "predicted"]
    # One frame of angry has no room for a name, 0.18 and 0.12 s for a letter.
    target, predicted = ["neutral", "happy", "neutral"], ["neutral", "happy", "h", "s", "neutral"]
    assert texts(panel) == target + predicted
    boxes = [text.get_window_extent() for text in panel.texts if text.get_text()]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["happy (h)", "angry (a)", "sad (s)", "neutral (n)"]


def test_emotions_differ_without_colour(tmp_path):
    figure = draw(tmp_path / "t.png")
    patches = figure.legends[0].get_patches()
    assert len({patch.get_hatch() for patch in patches}) == len(PUBLISHED.names)
    grey = sorted(np.dot(p.get_facecolor()[:3], [0.299, 0.587, 0.114]) for p in patches)
    assert min(np.diff(grey)) > 0.1


def test_bands_stack_to_the_probabilities(tmp_path):
    figure = draw(tmp_path / "t.png", 1.0, classes=[1] * 49)
    angry = figure.axes[3].collections[1].get_paths()[0].vertices
    assert angry.min(axis=0) == pytest.approx([0.0, 0.1])
    assert angry.max(axis=0) == pytest.approx([0.98, 0.8])
    assert figure.axes[3].get_xlim() == (0.0, 1.0)


def test_without_reference_there_is_one_track(tmp_path):
    figure = draw(tmp_path / "t.png", reference=None)
    assert [label.get_text() for label in figure.axes[2].get_yticklabels()] == ["predicted"]


def test_silence_and_a_recording_shorter_than_a_frame(tmp_path):
    silent = draw(tmp_path / "t.png", waveform=np.zeros(16000), classes=[3] * 49)
    assert silent.axes[0].images[0].norm(-160.0) <= 0  # white
    draw(tmp_path / "short.png", waveform=np.full(100, 0.1), classes=[])
    check_picture(tmp_path / "t.png", silent)


def test_spectrogram_has_a_tone_where_it_sounds(tmp_path):
    time = np.arange(32000) / 16000
    waveform = np.sin(2 * np.pi * 3000 * time) * (time >= 1)
    picture = draw(tmp_path / "t.png", 2.0, waveform=waveform).axes[0].images[0]
    left, right, low, high = picture.get_extent()
    decibels = picture.get_array()
    row, column = np.unravel_index(decibels.argmax(), decibels.shape)
    assert low + (row + 0.5) / len(decibels) * (high - low) == pytest.approx(3.0, abs=0.05)
    onset = np.argmax(decibels[row] > decibels.max() - 12)
    assert left + (onset + 0.5) / decibels.shape[1] * (right - left) == pytest.approx(1, abs=0.02)


def test_a_reference_that_overlaps_is_refused(tmp_path):
    with pytest.raises(InputError):
        draw(tmp_path / "t.png", reference=[Segment(0, 2, "sad"), Segment(1, 3, "happy")])


def test_pictures_leave_pyplot_alone(tmp_path):
    draw(tmp_path / "t.png")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


# --- lattice


@pytest.mark.parametrize(
    "words", [[("OH", 0, 2), ("$I$", 3, 4)], [], [("WORD", i, i + 1) for i in range(60)]]
)
def test_lattice_shows_each_emotion_and_the_path(tmp_path, words):
    tokens = words[-1][2] if words else 0
    probabilities = np.random.default_rng(0).dirichlet([0.3] * 4, size=(80, tokens + 1))
    frames = sorted(np.random.default_rng(1).integers(80, size=tokens).tolist())
    figure = plot_lattice(
        tmp_path / "l.png", probabilities, frames, words, 0.02, "a $title$", PUBLISHED
    )
    check_picture(tmp_path / "l.png", figure)
    panels = figure.axes[:4]
    assert [axes.get_title(loc="left") for axes in panels] == list(PUBLISHED.names)
    for index, axes in enumerate(panels):
        assert np.array_equal(axes.images[0].get_array(), probabilities[..., index].T)
        for line in axes.lines:
            times, positions = line.get_data()
            # The position changes at a token's frame, and the path covers the utterance.
            assert np.allclose(times[1:-1], (np.array(frames) + 0.5) * 0.02)
            assert (times[0], times[-1], positions[0], positions[-1]) == (0, 1.6, 0, tokens)
    labels = [label for label in panels[0].get_yticklabels() if label.get_text()]
    if len(words) < 60:
        assert [label.get_text() for label in labels] == [word for word, _, _ in words]
    else:  # there is no room for all
        assert 20 < len(labels) < 60
    boxes = [label.get_window_extent() for label in labels]
    assert not any(a.y0 < b.y1 and b.y0 < a.y1 for a, b in itertools.combinations(boxes, 2))


# --- tables


def test_table_is_aligned_markdown():
    table = results_table(
        [
            {"model": "ENT", "UA": np.float32(71.25), "WER": 31.26, "epochs": 50},
            {"model": "all neutral", "UA": 25.0, "WER": None, "note": "baseline"},
        ]
    )
    assert table.splitlines() == [
        "| model       |   UA |  WER | epochs | note     |",
        "| :---------- | ---: | ---: | -----: | :------- |",
        "| ENT         | 71.2 | 31.3 |     50 | -        |",
        "| all neutral | 25.0 |    - |      - | baseline |",
    ]


def test_table_of_nothing():
    assert results_table([]) == "|\n|"
