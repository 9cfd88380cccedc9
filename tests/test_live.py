"""Live recognition: the listener and the command."""

import json
import os
import queue
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ent_brain import cli, live
from ent_brain.annotation import Annotation, Heard
from ent_brain.emotions import PUBLISHED
from ent_brain.errors import InputError
from ent_brain.export import export
from ent_brain.inference import EmotionTransducer
from ent_brain.live import Listener, listen_to
from ent_brain.segments import TimedWord

RATE = 16000


@pytest.fixture(scope="module")
def folder(tmp_path_factory, trained):
    folder = tmp_path_factory.mktemp("model") / "pretrained"
    export(trained(), folder, 5.0)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return EmotionTransducer.from_hparams(source=folder)


def speech(seconds, seed=0):
    """Bursts of noise with pauses in between, as float32."""
    generator = np.random.default_rng(seed)
    wav = 0.1 * generator.normal(size=int(seconds * RATE))
    loud = np.repeat(generator.choice([0.001, 0.3, 1.0], size=4 * int(seconds) + 4), RATE // 4)
    return torch.from_numpy((wav * loud[: len(wav)]).astype(np.float32))


def hear(model, wav, sizes):
    """All words with the time in the stream at which each appeared, and the annotation."""
    listener, words, start = Listener(model), [], 0
    while start < len(wav):
        size = next(sizes)
        given = listener.feed(wav[start : start + size])
        start += size
        words += [(word, listener.seconds) for word in given]
    words += [(word, None) for word in listener.finish()]
    return words, listener.annotate("a")


def same_size(size):
    while True:
        yield size


def any_size(generator):
    while True:
        yield int(generator.integers(1, 40_000))


@pytest.fixture(scope="module")
def heard(model):
    wav = speech(23.3, seed=8)
    return wav, *hear(model, wav, same_size(1600))


def test_the_size_of_chunks_changes_nothing(model, heard):
    wav, words, annotation = heard
    for sizes in (any_size(np.random.default_rng(1)), same_size(len(wav))):
        others, other = hear(model, wav, sizes)
        assert [word for word, _ in others] == [word for word, _ in words]
        assert other == annotation


def test_words_come_in_order_and_soon(heard):
    _, words, annotation = heard
    assert len(words) > 5
    assert [word.text for word, _ in words] == [word.text for word in annotation.words]
    starts = [word.start for word, _ in words]
    assert starts == sorted(starts)
    assert any(now is not None for _, now in words[: len(words) // 2])
    assert annotation.duration == pytest.approx(23.3)
    assert annotation.segments[-1].end == pytest.approx(23.3)


def stub_model(hear_on):
    """A model that hears with a function."""
    frontend = SimpleNamespace(sample_rate=RATE, frame_samples=640, frame_duration=0.04)
    return SimpleNamespace(
        mods=SimpleNamespace(frontend=frontend),
        hparams=SimpleNamespace(longest_window=8.0),
        emotions=PUBLISHED,
        _hear_on=hear_on,
        _count_frames=lambda samples: samples // frontend.frame_samples,
    )


@pytest.mark.parametrize("silence", [0, 20])
def test_no_word_is_lost_doubled_or_late(silence):
    """The model recognises each burst as a word, with its loudness as the text."""

    def hear_bursts(wav, before, seconds):
        loud = np.diff([0, *(wav.abs() > 0).tolist(), 0])
        bounds = zip(np.flatnonzero(loud == 1), np.flatnonzero(loud == -1), strict=True)
        words = [
            TimedWord(f"W{round(100 * float(wav[a:b].max()))}", a / RATE, b / RATE)
            for a, b in bounds
        ]
        before = [TimedWord(text, 0.0, 0.0) for text in before]
        words = before + [word for word in words if word.start >= seconds]
        return Heard(len(wav) / RATE, words, None, None, None)

    stub = stub_model(hear_bursts)
    wav = torch.zeros(60 * RATE // 2)
    for number in range(60):
        wav[number * RATE // 2 :][: RATE // 4] = (number + 20) / 100
    wav = torch.cat((torch.zeros(silence * RATE), wav))
    words, annotation = hear(stub, wav, same_size(1600))
    assert [word.text for word, _ in words] == [f"W{number + 20}" for number in range(60)]
    assert annotation.text.split() == [word.text for word, _ in words]
    delays = [now - word.end for word, now in words if now is not None]
    assert max(delays) <= live.HOP + live.LAG + 1e-6
    assert len(delays) > 55


def test_a_word_that_is_found_before_the_settled_ones_follows_them():
    """Each hearing moves the words to the start of the window."""

    def hear_early(wav, before, seconds):
        count = len(before) + (len(wav) > 3 * RATE) + 1
        words = [TimedWord(f"W{index}", 0.0, 0.1) for index in range(count)]
        return Heard(len(wav) / RATE, words, None, None, None)

    words = Listener(stub_model(hear_early)).feed(torch.zeros(6 * RATE))
    assert len(words) > 5
    assert all(word.start + 0.039 < word.end for word in words)
    assert all(word.end <= following.start for word, following in pairwise(words))


def test_a_ctc_head_loses_no_word_after_settled_ones(trained, tmp_path):
    brain = trained(token_joint=False, ctc_head=True)
    head = brain.raw_modules["model"].ctc_head
    with torch.no_grad():
        head.weight.mul_(20)
        head.bias[[0, 2]] += 3  # blanks and spaces
    export(brain, tmp_path / "model", 5.0)
    model = EmotionTransducer.from_hparams(source=tmp_path / "model")
    wav = speech(3.0, seed=3)
    words = model._hear_on(wav, [], 0.0).words
    assert len(words) > 5
    for count in range(1, len(words)):
        before = [word.text for word in words[:count]]
        heard = model._hear_on(wav, before, words[count - 1].end)
        assert heard.words[count:] == words[count:]
        assert [word.text for word in heard.words[:count]] == before


def test_a_short_recording_has_the_emotions_of_annotate(model):
    wav = speech(2.9, seed=3)
    words, annotation = hear(model, wav, same_size(800))
    [whole] = model.annotate_batch(wav, names=["a"])
    assert annotation.frame_probabilities == whole.frame_probabilities
    assert annotation.segments == whole.segments and annotation.emotion == whole.emotion


def test_each_second_is_heard_a_bounded_number_of_times(model, monkeypatch):
    """The cost is linear, and no window exceeds its limit."""
    sizes = []
    original = EmotionTransducer._hear_on

    def count(self, wav, *known):
        sizes.append(len(wav) / RATE)
        return original(self, wav, *known)

    monkeypatch.setattr(EmotionTransducer, "_hear_on", count)
    costs = []
    for seconds in (10, 20):
        sizes.clear()
        listener = Listener(model)
        noise = 0.1 * torch.randn(seconds * RATE, generator=torch.Generator().manual_seed(0))
        listener.feed(noise)  # without any pause
        listener.finish()
        costs.append(sum(sizes) / seconds)
        assert max(sizes) <= 5.0 + 1e-6
    assert costs[1] < 1.2 * costs[0]


def test_wrong_samples_are_refused(model):
    listener = Listener(model)
    with pytest.raises(InputError, match="torch.int16 of shape"):
        listener.feed(np.zeros(10, dtype=np.int16))
    assert listener.finish() == []
    with pytest.raises(InputError, match="no audio"):
        listener.annotate("a")


def test_ctrl_c_loses_nothing_that_was_said_before_it():
    """The listener is slow: Ctrl-C comes when it has heard one chunk of five."""
    heard, chunks = [], queue.Queue()

    class Slow:
        def feed(self, samples):
            if not heard:
                signal.raise_signal(signal.SIGINT)
            heard.append(len(samples))
            return []

        def finish(self):
            return ["last"]

    for size in range(1, 6):
        chunks.put(bytes(2 * size))
    assert [*listen_to(chunks, Slow())] == [[]] * 5 + [["last"]]
    assert heard == [1, 2, 3, 4, 5]
    assert chunks.empty()


def test_a_second_ctrl_c_stops_at_once():
    class Slow:
        def feed(self, samples):
            signal.raise_signal(signal.SIGINT)

    chunks = queue.Queue()
    chunks.put(bytes(2))
    chunks.put(bytes(2))
    # A shell lets programs in the background ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            [*listen_to(chunks, Slow())]
    finally:
        signal.signal(signal.SIGINT, before)


def test_without_portaudio_the_remedy_is_to_install_it(tmp_path, monkeypatch):
    (tmp_path / "sounddevice.py").write_text('raise OSError("PortAudio library not found")')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    refused = pytest.raises(InputError, match="PortAudio library not found. Install PortAudio")
    with refused, live.microphone(RATE):
        pass


@pytest.mark.parametrize("late", [1.9, 2.1])
def test_a_note_says_that_the_computer_is_too_slow(folder, late, capsys, monkeypatch):
    @contextmanager
    def microphone(sample_rate):
        chunks = queue.Queue()
        for _ in range(1 + round(late / live.CHUNK)):
            chunks.put(bytes(2 * round(live.CHUNK * sample_rate)))
        chunks.put(None)
        yield chunks

    monkeypatch.setattr(cli, "microphone", microphone)
    with pytest.raises(SystemExit) as ended:
        cli.main(["listen", "--model", str(folder)])
    assert ended.value.code == 0
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "listening, Ctrl-C ends it"
    assert [line.startswith("note: 2 s late, and nothing is lost") for line in told[1:]] == (
        [True] if late > 2 else []
    )


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_command_ends_with_everything_written(folder, heard, tmp_path, interrupted):
    wav, words, annotation = heard
    raw = (wav * 2**15).round().clamp(-(2**15), 2**15 - 1).numpy().astype("<i2").tobytes()
    command = [sys.executable, "-m", "ent_brain.cli", "listen", "-", "--model", str(folder)]
    command += ["--out", str(tmp_path), "--format", "json,csv"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, env=dict(os.environ), **pipes)
    process.stdin.write(raw)
    process.stdin.flush()
    lines = []
    if interrupted:
        lines.append(process.stdout.readline())
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=100)
    else:
        out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err.decode()
    lines += out.splitlines()
    said = Annotation.from_json((tmp_path / "live.json").read_text())
    assert [json.loads(line)["text"] for line in lines] == [word.text for word in said.words]
    assert (tmp_path / "live.csv").is_file()
    if not interrupted:
        assert said.duration == annotation.duration


def test_the_delay_is_the_same_everywhere(capsys):
    delay = f"at most {live.HOP + live.LAG:g} s plus the computing time"
    page = Path(__file__).parents[1] / "docs" / "app.md"
    with pytest.raises(SystemExit):
        cli.main(["listen", "--help"])
    for text in (page.read_text("utf-8"), capsys.readouterr().out):
        assert delay in " ".join(text.split())
