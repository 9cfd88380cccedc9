"""Words and emotions of speech while it is spoken.

The models read an utterance in both directions. A ``Listener`` therefore hears the same stretch of
audio again and again as it grows, and settles a word as soon as enough has been said after it.
"""

import os
import queue
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from itertools import takewhile

import numpy as np
import torch

from ent_brain.annotation import Heard, Word, annotate
from ent_brain.errors import InputError
from ent_brain.inference import SHORTEST, return_memory
from ent_brain.windows import join

HOP = 0.5
"""Seconds of new audio after which the window is heard again."""

LAG = 1.0
"""Age in seconds at which a word is settled, because the audio that follows can still change it.
The delay after the end of a word is thus at most ``HOP + LAG`` = 1.5 s of audio, plus the computing
time. It is longer if the model recognises the word late. ``benchmarks/live.py`` measures it."""

LONGEST, KEPT = 10.0, 4.0
"""Seconds of the window at which it is cut, and which are then left of it. The settled words in it
tell the model what came before. The cost of hearing the window again grows with it."""

CHUNK = 0.1
"""Seconds of the chunks of the microphone and of standard input."""

READ_AHEAD = 30.0
"""Seconds that are read ahead from standard input: a file may come faster than the model hears it,
and Ctrl-C ends after the model has heard them."""


class Listener:
    """Turns a stream of audio into settled words.

    The size of the chunks changes nothing in the result. Memory grows by some bytes per frame.

    Arguments
    ---------
    model : EmotionTransducer

    Example
    -------
    >>> listener = Listener(model)  # doctest: +SKIP
    >>> for chunk in microphone(listener.sample_rate):  # doctest: +SKIP
    ...     for word in listener.feed(chunk):
    ...         print(word.text, word.emotion)
    >>> listener.finish()  # doctest: +SKIP
    [Word(text='BYE', start=61.24, end=61.6, emotion='happy', probability=0.91)]
    """

    def __init__(self, model):
        self._model, self._frontend = model, model.mods.frontend
        self.sample_rate = self._frontend.sample_rate
        """Hz, of the chunks."""
        self._hop = round(HOP * self.sample_rate)
        longest = min(LONGEST, model.hparams.longest_window)
        self._longest = self._whole_frames(longest)
        self._kept = self._whole_frames(longest * KEPT / LONGEST)
        self._wav, self._start, self._total = torch.zeros(0), 0, 0
        self._next = self._hop  # samples of the stream at which the window is heard again
        self._settled = []  # TimedWord, in seconds of the stream
        self._spans, self._results = [], []  # of the windows that have ended

    @property
    def seconds(self):
        """Duration of what was fed (float)."""
        return self._total / self.sample_rate

    def feed(self, samples):
        """Take the next chunk.

        Arguments
        ---------
        samples : Tensor or array
            [S] floating-point samples from -1 to 1.

        Returns
        -------
        list[Word]
            Words that are settled by now, in the order of time.

        Raises
        ------
        InputError
            If the chunk has another shape or type.
        """
        samples = torch.as_tensor(samples)
        if samples.dim() != 1 or not samples.is_floating_point():
            raise InputError(
                f"samples: {samples.dtype} of shape {list(samples.shape)}. Give floating-point "
                "samples from -1 to 1, [S]."
            )
        self._wav = torch.cat((self._wav, samples.float()))
        self._total += len(samples)
        words = []
        while self._total >= self._next:
            words += self._listen(self._next)
            self._next += self._hop
        return words

    def finish(self):
        """End the stream, and settle the rest of the words (list[Word])."""
        if not len(self._wav):
            return []
        heard = self._hear(self._total)
        words = self._settle(heard, float("inf"))
        self._keep(heard, self._total)
        self._wav, self._start = torch.zeros(0), self._total
        return words

    def annotate(self, name):
        """Everything about a stream that has ended (Annotation), with the words that were settled.

        Raises
        ------
        InputError
            If the stream has no audio.
        """
        if not self._spans:
            raise InputError(f"{name}: no audio. Check the microphone, or what is piped in.")
        rate, frame_samples = self.sample_rate, self._frontend.frame_samples
        frames = self._model._count_frames(self._total)
        joined = join(self._spans, self._results, rate, frame_samples, frames)
        joined = joined._replace(words=self._settled, seconds=self.seconds)
        if self.seconds < SHORTEST:
            joined = Heard(self.seconds, [], None, None, None)
        return annotate(name, joined, self._frontend.frame_duration, self._model.emotions)

    def _whole_frames(self, seconds):
        return self._whole(int(seconds * self.sample_rate))

    def _whole(self, samples):
        return samples - samples % self._frontend.frame_samples

    def _listen(self, now):
        """Hear the window up to a sample of the stream, settle words, and cut a long window."""
        heard, limit = self._hear(now), now / self.sample_rate - LAG
        if now - self._start + self._hop <= self._longest:
            return self._settle(heard, limit)
        start = self._find_cut(heard.words, now - self._kept)
        # The next window does not have a word that ends at the cut.
        cut = start / self.sample_rate + self._frontend.frame_duration
        words = self._settle(heard, max(limit, cut))
        self._keep(heard, now)
        self._wav, self._start = self._wav[start - self._start :].clone(), start
        return_memory()
        return words

    def _find_cut(self, words, target):
        """Sample of the stream from ``target`` on that starts a frame and is not within a word."""
        ends = [
            round(word.end * self.sample_rate) + self._start
            for word in words
            if word.start * self.sample_rate + self._start < target
        ]
        return self._whole(max([target, *ends[-1:]]))

    def _keep(self, heard, end):
        """Keep the emotions of a window that has ended."""
        self._spans.append((self._start, end))
        self._results.append(heard._replace(words=[]))

    def _said(self):
        """The settled words (list[TimedWord]) of the window."""
        offset = self._start / self.sample_rate
        return [*takewhile(lambda word: word.start >= offset, reversed(self._settled))][::-1]

    def _hear(self, end):
        """What the model makes of the window (Heard), in seconds of it; settled words stay."""
        offset = self._start / self.sample_rate
        until = max(0.0, self._settled[-1].end - offset) if self._settled else 0.0
        wav = self._wav[: end - self._start]
        return self._model._hear_on(wav, [word.text for word in self._said()], until)

    def _settle(self, heard, limit):
        """Settle the new words of the window that end before ``limit`` (seconds of the stream)."""
        offset = self._start / self.sample_rate
        words = [word.moved(offset) for word in heard.words[len(self._said()) :]]
        count = next((i for i, word in enumerate(words) if word.end > limit), len(words))
        if not count:
            return []
        words = self._after_settled(words[:count])
        self._settled += words
        told = annotate(
            "",
            heard._replace(words=[_not_before(word.moved(-offset), 0.0) for word in words]),
            self._frontend.frame_duration,
            self._model.emotions,
        )
        return [
            Word(text, round(start, 4), round(end, 4), word.emotion, word.probability)
            for (text, start, end), word in zip(words, told.words, strict=True)
        ]

    def _after_settled(self, words):
        """Place words after the settled ones and each other; each lasts a frame or longer."""
        free, placed = self._settled[-1].end if self._settled else 0.0, []
        for word in words:
            start = max(word.start, free)
            free = max(word.end, start + self._frontend.frame_duration)
            placed.append(word._replace(start=start, end=free))
        return placed


def _not_before(word, time):
    return word._replace(start=max(word.start, time), end=max(word.end, time))


def listen_to(chunks, listener):
    """Yield lists of settled words of a queue of chunks, until its end or Ctrl-C.

    After Ctrl-C, the listener still hears the chunks that are in the queue, and so loses nothing. A
    second Ctrl-C stops at once.

    Arguments
    ---------
    chunks : queue.Queue
        Of bytes, 16-bit little-endian samples at the listener's rate; None is the end.
    listener : Listener
    """
    ended = threading.Event()

    def end(*_):
        ended.set()
        signal.signal(signal.SIGINT, before)

    def received():
        while not ended.is_set():
            with suppress(queue.Empty):
                yield chunks.get(timeout=CHUNK)
        for _ in range(chunks.qsize()):
            yield chunks.get()

    before = signal.signal(signal.SIGINT, end)
    rest = b""
    try:
        for chunk in takewhile(lambda chunk: chunk is not None, received()):
            chunk = rest + chunk
            whole = len(chunk) // 2 * 2  # a pipe may part a sample
            rest = chunk[whole:]
            yield listener.feed(np.frombuffer(chunk[:whole], dtype="<i2") / np.float32(2**15))
        yield listener.finish()
    finally:
        signal.signal(signal.SIGINT, before)


def standard_input(sample_rate):
    """Give a queue of chunks (bytes), None last, that standard input fills with its raw bytes."""
    chunks = queue.Queue(maxsize=round(READ_AHEAD / CHUNK))

    def read():
        # Not sys.stdin.buffer, whose lock a thread that waits would hold as Python ends.
        while chunk := os.read(sys.stdin.fileno(), 2 * round(CHUNK * sample_rate)):
            chunks.put(chunk)
        chunks.put(None)

    threading.Thread(target=read, daemon=True).start()
    return chunks


@contextmanager
def microphone(sample_rate):
    """Yield a queue of chunks (bytes) that the default microphone fills while the block runs.

    Raises
    ------
    InputError
        If there is no microphone, or sounddevice or its library PortAudio is missing.
    """
    try:
        import sounddevice
    except ModuleNotFoundError as error:
        raise InputError(f"microphone: {error}. Run pip install 'ent_brain[listen]'.") from error
    except OSError as error:
        raise InputError(
            f"microphone: {error}. Install PortAudio, on Debian and Ubuntu with apt install "
            "libportaudio2."
        ) from error
    chunks = queue.Queue()
    try:
        stream = sounddevice.RawInputStream(
            samplerate=sample_rate,
            blocksize=round(CHUNK * sample_rate),
            channels=1,
            dtype="int16",
            callback=lambda data, *_: chunks.put(bytes(data)),
        )
    except sounddevice.PortAudioError as error:
        raise InputError(f"microphone: {error}. Connect one, or pipe audio to `-`.") from error
    with stream:
        yield chunks
