"""Draw ``the_lattice.png``: a lattice, its alignment and its pooling, for ``the_lattice.md``.

> python docs/the_lattice.py

A small transducer learns from 120 sentences of invented sound: a letter lasts some frames, each of
them a noisy one-hot vector, and one word of an emotional sentence sounds different. The training
knows the letters and the emotion of each sentence, not their times. It takes seconds.
"""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

from ent_brain.alignment import best_path
from ent_brain.emotions import PUBLISHED
from ent_brain.lattice import Lattice
from ent_brain.losses import aligned_emotions, aligned_pooling_loss, transducer_alignment
from ent_brain.report import palette

WORDS = ("GO", "AWAY", "NOW", "SEE", "THE", "DAWN", "WE", "STAY")
LETTERS = " " + "".join(sorted(set("".join(WORDS))))
WIDTH = 32
EMOTIONS = PUBLISHED


def speak(words, emotion, loud):
    """Features [T, D] of words, one of them (an index) emotional, and its first and last frame."""
    frames, span = [], [0, 0]
    for index, word in enumerate(words):
        start = len(frames)
        for letter in " " * (index > 0) + word:
            for _ in range(int(torch.randint(2, 5, ()))):
                frame = torch.zeros(len(LETTERS) + len(EMOTIONS))
                frame[LETTERS.index(letter)] = 1.0
                frame[len(LETTERS) + emotion] = float(index == loud)
                frames.append(frame)
        if index == loud:
            span = [start, len(frames)]
    return torch.stack(frames) + 0.2 * torch.randn(len(frames), len(frames[0])), span


class Transducer(nn.Module):
    """The smallest one: a convolution over five frames, and the last token."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv1d(len(LETTERS) + len(EMOTIONS), 2 * WIDTH, 5, padding=2)
        self.predictor = nn.Embedding(len(LETTERS) + 1, 2 * WIDTH)
        self.words = nn.Linear(WIDTH, len(LETTERS) + 1)
        self.emotions = nn.Linear(WIDTH, len(EMOTIONS))

    def forward(self, features, tokens):
        """Lattices of the tokens and of the emotions."""
        enc = self.encoder(features.mT).mT.chunk(2, -1)
        pred = self.predictor(nn.functional.pad(tokens, (1, 0))).chunk(2, -1)  # blank, 0, first
        return (
            Lattice(enc[0], pred[0], self.words.weight, self.words.bias),
            Lattice(enc[1], pred[1], self.emotions.weight, self.emotions.bias),
        )


def draw_sentences(count):
    """Sentences of three words: features, tokens and emotion of each."""
    for index in range(count):
        words = [WORDS[i] for i in torch.randperm(len(WORDS))[:3]]
        emotion = index % len(EMOTIONS)
        loud = None if emotion == EMOTIONS.neutral_index else int(torch.randint(3, ()))
        tokens = [LETTERS.index(letter) + 1 for letter in " ".join(words)]
        yield speak(words, emotion, loud)[0], torch.tensor(tokens), emotion


def train(steps=100):
    """Train on the words and the emotions of sentences (Transducer)."""
    torch.manual_seed(1)
    model = Transducer()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    pad = nn.utils.rnn.pad_sequence
    features, tokens, emotions = zip(*draw_sentences(120), strict=True)
    lens = torch.tensor([len(f) for f in features]), torch.tensor([len(t) for t in tokens])
    data = pad(features, True), pad(tokens, True), torch.tensor(emotions), *lens
    for _ in range(steps):
        rows = torch.randint(len(emotions), (16,))
        sound, spelt, felt, frame_lens, token_lens = (each[rows] for each in data)
        sound, spelt = sound[:, : frame_lens.max()], spelt[:, : token_lens.max()]
        words, emotion = model(sound, spelt)
        lens = frame_lens, token_lens
        nll, posteriors = transducer_alignment([words], spelt, *lens)
        pooled = aligned_pooling_loss(
            [words], emotion, spelt, felt, *lens, posteriors=posteriors, top=0.3
        )
        optimizer.zero_grad()
        (nll.mean() / 10 + pooled).backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def draw(model, path):
    """Draw one sentence; returns its frame probabilities [T] and the angry word's frames."""
    torch.manual_seed(5)
    angry = EMOTIONS.index("angry")
    sentence = "GO AWAY NOW"
    features, span = speak(sentence.split(), angry, 1)
    tokens = torch.tensor([[LETTERS.index(letter) + 1 for letter in sentence]])
    lens = torch.tensor([len(features)]), torch.tensor([len(sentence)])
    words, emotion = model(features[None], tokens)
    alignment = transducer_alignment([words], tokens, *lens)
    frames = best_path([words], tokens, *lens).frames[0].tolist()
    nodes = emotion.dense()[0].softmax(-1)[..., angry]
    along = aligned_emotions(emotion, alignment.posteriors, lens[1])[0, :, angry]
    top_t, top_u = divmod(int(nodes.argmax()), nodes.size(1))
    ranked = along.topk(max(1, int(0.3 * len(along)))).indices

    color = palette(EMOTIONS)["angry"][0]
    figure = Figure(figsize=(10, 9), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 1.4])
    look = {"origin": "lower", "aspect": "auto", "cmap": "gray_r", "vmin": 0, "vmax": 1}
    for axes, values in zip(panels, (alignment.posteriors[0], nodes), strict=False):
        axes.imshow(values.T.numpy(), **look)
        axes.set_yticks(range(len(sentence) + 1), ["start", *sentence.replace(" ", "␣")])
        axes.set_ylabel("tokens so far")
    heights = [*range(len(sentence) + 1), len(sentence)]
    times = [-0.5, *frames, len(features) - 0.5]
    panels[0].step(times, heights, where="post", color=color, label="best path")
    panels[0].set_title("Alignment: how likely frame t ends at token u (posterior g)", loc="left")
    panels[1].set_title("Emotion lattice: probability of angry at each node", loc="left")
    panels[1].axvline(top_t, color=color, label="full_t: mean over this frame")
    panels[1].axhline(top_u, color=color, linestyle="--", label="full_u: mean over this position")
    panels[1].plot(
        top_t, top_u, "o", ms=11, mfc="none", mec="#D55E00", mew=2, label="one: this node"
    )
    panels[2].step(range(len(along)), along.numpy(), where="mid", color=color, label="q, angry")
    marked = torch.full_like(along, torch.nan)
    marked[ranked] = 0.03
    panels[2].plot(marked.numpy(), "s", color="black", ms=4, label="top 30 % of frames")
    panels[2].axvspan(span[0] - 0.5, span[1] - 0.5, color="#DDDDDD", label="AWAY as it was spoken")
    panels[2].set(ylim=(0, 1.05), xlabel="frame t", ylabel="probability")
    panels[2].set_title("aligned: emotion of each frame, averaged along the alignment", loc="left")
    for axes in panels:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(path, dpi=110)
    return along, span


if __name__ == "__main__":
    draw(train(), sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
