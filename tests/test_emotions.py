import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ent_brain.annotation import Annotation, Heard, annotate
from ent_brain.emotions import MOST_EMOTIONS, PUBLISHED, EmotionSet, check_label_map
from ent_brain.errors import InputError
from ent_brain.export import export
from ent_brain.formats import FORMATS
from ent_brain.inference import EmotionTransducer
from ent_brain.lattice import Lattice
from ent_brain.losses import aligned_pooling_loss, lattice_pooling_loss
from ent_brain.metrics import TransducerStats
from ent_brain.model import ENT
from ent_brain.report import palette
from ent_brain.segments import Segment, SegmentDecoder, fill_neutral

NAMES = (
    st.text("abcäößйद शé_-", min_size=1, max_size=8)
    .map(str.strip)
    .filter(lambda name: name and any(letter.isalpha() for letter in name))
)
GERMAN = EmotionSet(["wut", "freude", "trauer", "überraschung", "angst", "neutral"], "neutral")
NO_NEUTRAL = EmotionSet(["joy", "anger", "fear"])


def refused(names, neutral=None):
    with pytest.raises(InputError) as error:
        EmotionSet(names, neutral)
    return str(error.value)


def test_the_published_labels_and_their_codes():
    assert tuple(PUBLISHED) == ("happy", "angry", "sad", "neutral")
    assert (PUBLISHED.neutral_index, PUBLISHED.codes) == (3, ("h", "a", "s", "n"))


@given(st.lists(NAMES, min_size=2, max_size=MOST_EMOTIONS, unique_by=str.casefold))
def test_codes_tell_the_labels_apart(names):
    emotions = EmotionSet(names)
    assert len(set(emotions.codes)) == len(names)
    for name, code in zip(emotions, emotions.codes, strict=True):
        assert name.startswith(code)
        others = [other for other in names if other != name and other.startswith(code)]
        assert not others or code == name


@pytest.mark.parametrize(
    ("names", "neutral", "line"),
    [
        ("happy", None, "emotions: happy: give a list of names, as [happy, neutral]"),
        ([1, 2], None, "emotions: [1, 2]: give a list of names, as [happy, neutral]"),
        (
            ["sad"],
            None,
            "emotions: 1 labels: give 2 to 12; label_map merges some or leaves them out",
        ),
        (["a", "A"], None, "emotions: a, A: the same label twice. Keep one of them."),
        (["a", "b"], "c", "neutral: 'c' is not one of a, b: name one of them, or null"),
    ],
)
def test_what_is_no_label_set(names, neutral, line):
    assert refused(names, neutral) == line


@pytest.mark.parametrize("name", ["", " sad", "a/b", "null", "True", "<b>", "7", "a" * 41, "a\nb"])
def test_what_is_no_label(name):
    assert refused(["happy", name]).startswith("emotions: ")
    assert refused(["happy", name]).endswith("letters, digits, spaces, _ and -: rename it")


def test_three_hundred_labels_are_one_line():
    line = refused([f"label {index}" for index in range(300)])
    assert line == ("emotions: 300 labels: give 2 to 12; label_map merges some or leaves them out")


def test_a_label_map_names_labels_of_both_sides():
    labels = ["exc", "hap", "fru"]
    assert check_label_map({"exc": "happy", "fru": None}, "IEMOCAP", labels, PUBLISHED) == {
        "exc": "happy"
    }
    with pytest.raises(InputError, match="label_map: IEMOCAP has no label 'joy'"):
        check_label_map({"joy": "happy"}, "IEMOCAP", labels, PUBLISHED)
    with pytest.raises(InputError, match="exc becomes 'glad', which is not one of happy, angry"):
        check_label_map({"exc": "glad"}, "IEMOCAP", labels, PUBLISHED)


# --- looks


def test_the_published_labels_look_as_they_did():
    assert palette(PUBLISHED) == {
        "happy": ("#E69F00", "..."),
        "angry": ("#D55E00", "xxx"),
        "sad": ("#0072B2", "///"),
        "neutral": ("#DDDDDD", ""),
    }


def linear(color):
    """Convert a colour ``#RRGGBB`` to linear RGB."""
    values = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


DEFICIENCIES = {
    # Machado, Oliveira, Fernandes (2009), severity 1.
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "none": np.eye(3),
}  # fmt: skip


@pytest.mark.parametrize("neutral", [None, "label 0"])
@pytest.mark.parametrize("sight", DEFICIENCIES)
def test_twelve_labels_differ_in_pattern_and_in_colour(sight, neutral):
    emotions = EmotionSet([f"label {i}" for i in range(MOST_EMOTIONS)], neutral)
    fills = list(palette(emotions).values())
    assert len({hatch for _, hatch in fills}) == MOST_EMOTIONS
    seen = [np.array(DEFICIENCIES[sight]) @ linear(color) for color, _ in fills]
    near = [
        np.abs(np.cbrt(a.clip(0)) - np.cbrt(b.clip(0))).max()
        for a, b in itertools.combinations(seen, 2)
    ]
    assert min(near) > 0.1


# --- a set without a neutral label


def lattices(classes=3):
    torch.manual_seed(3)
    parts = (
        torch.randn(2, 5, 4),
        torch.randn(2, 3, 4),
        torch.randn(classes, 4),
        torch.randn(classes),
    )
    return Lattice(*parts), torch.tensor([5, 4]), torch.tensor([2, 1])


@pytest.mark.parametrize("mode", ["one", "full_t", "full_u", "mil"])
def test_pooling_without_neutral_has_no_second_half(mode):
    lattice, frame_lens, token_lens = lattices()
    emotions = torch.tensor([0, 2])
    found = lattice_pooling_loss(
        lattice, emotions, frame_lens, token_lens, mode, neutral=None, reduction="none"
    )
    dense = lattice.dense().softmax(-1)
    for row, (frames, tokens) in enumerate(zip(frame_lens, token_lens, strict=True)):
        p = dense[row, :frames, : tokens + 1, emotions[row]]
        t, u = np.unravel_index(int(p.argmax()), p.shape)
        nodes = {"full_t": p[t], "full_u": p[:, u]}.get(mode, p[t, u])
        torch.testing.assert_close(found[row], -nodes.log().mean())


def test_aligned_pooling_without_neutral_treats_every_utterance_as_emotional():
    lattice, frame_lens, token_lens = lattices()
    emotions = torch.tensor([0, 2])
    posteriors = torch.rand(2, 5, 3)
    for row, (frames, tokens) in enumerate(zip(frame_lens, token_lens, strict=True)):
        posteriors[row, frames:] = 0
        posteriors[row, :, tokens + 1 :] = 0
    posteriors = posteriors / posteriors.sum(-1, keepdim=True).clamp(min=1e-9)
    found = aligned_pooling_loss(
        (), lattice, None, emotions, frame_lens, token_lens, top=0.5, neutral=None,
        posteriors=posteriors, reduction="none",
    )  # fmt: skip
    q = (lattice.dense().softmax(-1) * posteriors[..., None]).sum(2)
    for row, frames in enumerate(frame_lens.tolist()):
        best = q[row, :frames].sort(0, descending=True).values[: int(0.5 * frames)].mean(0)
        others = [c for c in range(3) if c != emotions[row]]
        expected = -best[emotions[row]].log() - (1 - best[others]).log().sum()
        torch.testing.assert_close(found[row], expected, rtol=2e-3, atol=2e-3)


def test_what_needs_a_neutral_label_says_so():
    for method in ("single_event", "lasting_event"):
        with pytest.raises(InputError) as error:
            SegmentDecoder(NO_NEUTRAL, 0.1, method)
        assert str(error.value) == (
            f"segment_decoding {method} needs a neutral label, but emotions (joy, anger, fear) "
            "have none. Set neutral to one of them, or make another choice."
        )
    with pytest.raises(InputError, match="the time from 1.00 to 2.00 s, in no segment, needs"):
        fill_neutral([Segment(0.0, 1.0, "joy")], 2.0, NO_NEUTRAL)
    whole = [Segment(0.0, 1.0, "joy"), Segment(1.0, 2.0, "fear")]
    assert fill_neutral(whole, 2.0, NO_NEUTRAL) == whole


def test_without_a_neutral_label_there_is_no_neutral_baseline():
    stats = TransducerStats(None, SegmentDecoder(NO_NEUTRAL, 0.5))
    assert list(stats.diarization) == ["model", "utterance emotion everywhere"]


# --- a model with labels of its own


@pytest.fixture
def german(trained, tmp_path):
    brain = trained(ENT, num_emotions=len(GERMAN))
    brain.emotions = GERMAN
    export(brain, tmp_path / "model", longest_window=2.0)
    return tmp_path / "model"


def test_a_loaded_model_speaks_with_its_own_labels(german, tmp_path):
    model = EmotionTransducer.from_hparams(source=german)
    assert model.emotions == GERMAN
    probabilities, names = model.classify_batch(torch.randn(2, 16000), torch.ones(2))
    assert probabilities.shape == (2, 6)
    assert set(names) <= set(GERMAN)
    [annotation] = model.annotate_batch(torch.randn(1, 16000), torch.ones(1), ["a"])
    fields = json.loads(annotation.to_json())
    assert tuple(fields["probabilities"]) == tuple(fields["frame_probabilities"]) == GERMAN.names
    assert sum(fields["probabilities"].values()) == pytest.approx(1, abs=1e-3)
    assert fields["neutral"] == "neutral"
    assert "emotions: wut, freude" not in (german / "README.md").read_text()
    assert "wut, freude, trauer, überraschung, angst, neutral" in (german / "README.md").read_text()


def test_labels_that_do_not_fit_the_model_are_refused(german):
    path = german / "hyperparams.yaml"
    path.write_text(path.read_text().replace("wut, freude, ", "wut, "))
    with pytest.raises(InputError, match="num_emotions: the model's is 6, it must be 5"):
        EmotionTransducer.from_hparams(source=german)


def test_every_format_names_the_labels():
    emotions = EmotionSet(["very happy", "überrascht"])
    heard = Heard(
        1.0,
        [("OH", 0.0, 0.5), ("NO", 0.5, 1.0)],
        torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log(),
        [0, 1],
        torch.tensor([0.3, 0.7]).log(),
    )
    annotation = annotate("a", heard, 0.5, emotions)
    assert Annotation.from_json(annotation.to_json()) == annotation
    written = {name: each.serialize(annotation) for name, each in FORMATS.items()}
    assert "<c.very_happy>[very happy]</c> OH" in written["webvtt"]
    assert [line.split()[7] for line in written["rttm"].splitlines()] == [
        "very%20happy",
        "überrascht",
    ]
    assert 'text = "very happy"' in written["textgrid"]
    assert "\tüberrascht\n" in written["audacity"]
