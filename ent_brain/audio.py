"""Sound files of any format: every sample that can be decoded, and what is wrong with the file."""

import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import soundfile
import torch
from scipy.linalg import solve, solve_toeplitz
from scipy.signal import resample_poly

from ent_brain.errors import InputError
from ent_brain.media import (
    DURATION_TOLERANCE,
    HIGHEST_RATE,
    LEAST_UNKNOWN_SIZE,
    UNREADABLE,
    ffmpeg_errors,
    open_source,
    read_riff,
    why_unreadable,
)

STDIN = "-"
"""Path that stands for standard input."""

ENDINGS = (
    *(".wav", ".flac", ".mp3", ".ogg", ".opus", ".oga", ".aif", ".aiff", ".au", ".w64", ".caf"),
    *(".m4a", ".m4b", ".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".webm", ".mkv", ".mka", ".avi"),
    *(".aac", ".wma", ".wmv", ".asf", ".amr", ".gsm", ".mp2", ".ac3", ".eac3", ".dts", ".spx"),
    *(".aifc", ".snd", ".rf64", ".sph", ".voc", ".ape", ".wv", ".tta", ".tak", ".mpc", ".shn"),
    *(".ra", ".rm", ".flv", ".ogv", ".mpg", ".mpeg", ".vob", ".mts", ".m2ts"),
)
"""Extensions of the sound files taken from a folder, the preferred ones first."""

OTHER_ENDINGS = (
    *(".raw", ".pcm", ".sln", ".alaw", ".ulaw", ".g711", ".g722", ".g729", ".ima", ".sd2"),
    *(".ircam", ".dss", ".ds2", ".dvf", ".msv", ".m4p", ".aax", ".aa", ".dsf", ".dff", ".mid"),
    *(".midi", ".m4r", ".mpa", ".mp1", ".mp+", ".mxf", ".ogm", ".ogx", ".qt", ".rmvb", ".divx"),
    ".m2v",
)
"""Extensions of other media, which are not taken from a folder. Most of them cannot be read."""

BLOCK = 10
"""Whole seconds that are resampled at once."""

LOUDEST = 1e6
"""Largest sample that is taken for sound, where full scale is 1. Energies stay finite below it."""

SILENT_CHANNEL = -40.0
"""Level in dB under the loudest channel below which a channel is silent. Each channel counts by its
loudest second, so that somebody who speaks once in an hour is kept."""

CANCELLED = 0.5
"""Power of the mix, as a share of what uncorrelated channels give, below which channels cancel."""

CLIPPED = 0.99
"""Share of full scale from which on a sample may be clipped, if the next one is, too."""

LONGEST_CLIP = 0.005
"""Duration in seconds of the longest clipped peak that is restored. Longer ones are not speech."""

HIGHEST_PEAK = 4.0
"""Limit of restored peaks, where full scale is 1."""

PREDICTED, ORDER, PREDICTIONS = 0.032, 0.001, 3
"""Seconds of sound in which clipped peaks are predicted together, seconds that a prediction sees,
and number of repetitions."""

MOST_CLIPPED = 0.5
"""Share of these samples above which they are left as they are."""

SEEKABLE = {"WAV", "WAVEX", "W64", "AIFF", "AU", "FLAC"}
"""soundfile's names of formats in which it finds any sample at once."""


class Inspection(NamedTuple):
    """What ``scan_audio`` computes from the samples of a sound file while it decodes them."""

    function: Callable
    """Takes blocks as ``read_blocks`` yields them."""
    sample_rate: int
    """Hz of the blocks."""
    least: float = 0.0
    """Seconds; a recording that is not longer is not inspected."""


@dataclass(frozen=True)
class Audio(os.PathLike):
    """A sound file that was looked through: what it holds, and how its channels become one.

    An ``Audio`` can stand for the path of its file.
    """

    path: Path
    """Of the file; of a temporary copy if the audio came through a pipe."""
    label: str
    """Name of the file for messages."""
    samplerate: int
    """Hz."""
    channels: int
    frames: int
    """Samples of each channel that can be decoded, and of silence in place of lost ones; for a part
    of a file, those of the part."""
    weights: tuple[float, ...]
    """Weight of each channel in the mix."""
    notes: tuple[str, ...] = ()
    """A line for each thing that somebody who uses the result should know."""
    lost: bool = False
    """Whether more than 0.1 s of the audio is cut off or damaged."""
    copy: tempfile.TemporaryDirectory | None = None
    """Folder of the temporary copy, which is removed with this object."""
    start: int = 0
    """First sample of a part."""
    inspected: tuple = field(default=(None, None), compare=False, repr=False)
    """Function of the inspection, and its result."""

    @property
    def seconds(self):
        """Duration (float)."""
        return self.frames / self.samplerate

    def __fspath__(self):
        return str(self.path)


def find_audio(path):
    """Find a recording whose extension, or the case of whose name, differs from its corpus's list.

    Arguments
    ---------
    path : Path
        Where the corpus says that the recording is.

    Returns
    -------
    Path
        ``path`` if that file exists; otherwise the file of the same name with the first extension
        of ``ENDINGS`` that exists. None if its folder has no file of that name.

    Raises
    ------
    InputError
        If the folder has files of that name, but none with an extension of ``ENDINGS``.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "A.FLAC").touch()
    >>> find_audio(folder / "a.wav").name
    'A.FLAC'
    """
    try:
        if path.is_file():
            return path
        stem = path.stem.casefold()
        others = [p for p in sorted(path.parent.iterdir()) if p.stem.casefold() == stem]
    except OSError:  # a name that is too long, or no such folder
        return None
    others = [other for other in others if other.is_file()]
    found = [other for other in others if other.suffix.lower() in ENDINGS]
    if others and not found:
        names = ", ".join(other.name for other in others)
        raise InputError(f"no audio file {path}, only {names}")
    return min(found, key=lambda other: ENDINGS.index(other.suffix.lower()), default=None)


def scan_audio(path, channel=None, inspection=None):
    """Look through a sound file: decode it once, without keeping it in memory.

    Formats and codecs are FFmpeg's, videos included. The duration is that of the decoded samples,
    not that of the header. If they differ, or part of the file is damaged, ``notes`` says so. WAV
    files of one channel with a header that fits the file are not decoded here.

    An inspection gets the samples in the same decoding. Channels are then mixed with equal weights.
    If ``mix_weights`` gives others in the end, the file is decoded again for the inspection.

    Arguments
    ---------
    path : str, Path or Audio
        ``-`` is standard input. Pipes are copied to a temporary file. An ``Audio`` is returned.
    channel : int, optional
        The channel to use, from 1 on. By default the channels are mixed by ``mix_weights``.
    inspection : Inspection, optional

    Returns
    -------
    Audio

    Raises
    ------
    InputError
        If the file cannot be read, lacks the channel, or has no sample, a sample that is no sound,
        or a rate that no sound has.
    """
    if isinstance(path, Audio):
        return path
    return _scan(path, channel, inspection=inspection)


def scan_part(path, start, duration, channel=None):
    """Look through a sound file, as ``scan_audio`` does, for a part of it.

    Arguments
    ---------
    path : str or Path
    start, duration : float
        Seconds. A part ends with its file at the latest.
    channel : int, optional

    Returns
    -------
    Audio
        Its notes are those of the whole file.

    Raises
    ------
    InputError
        As ``scan_audio`` does, and if the part begins after the end of the file.
    """
    audio = _scan_once(*_version(path), channel)
    first, count = (round(seconds * audio.samplerate) for seconds in (start, duration))
    if first >= audio.frames:
        raise InputError(
            f"{audio.label}: has {audio.seconds:.2f} s, the part starts at {start:.2f} s. "
            "Correct its start."
        )
    return replace(audio, start=first, frames=max(1, min(count, audio.frames - first)))


def load_audio(path, channel=None):
    """Read a whole sound file, as ``scan_audio`` looks through it.

    Arguments
    ---------
    path : str, Path or Audio
    channel : int, optional

    Returns
    -------
    (Audio, array)
        The samples are float32 [S] at the rate of the file, with the channels mixed.

    Raises
    ------
    InputError
        As ``scan_audio`` does.
    """
    if isinstance(path, Audio):
        return path, np.concatenate(list(_read_mixed(path)))
    blocks = []
    audio = _scan(path, channel, blocks)
    samples = np.concatenate([_mix(block, audio.weights) for block in blocks])
    return audio, samples[: audio.frames]


def load_part(path, start, duration):
    """Read a part of a sound file that holds more, its channels mixed as those of the whole file.

    Arguments
    ---------
    path : str or Path
    start, duration : float
        Seconds.

    Returns
    -------
    (Audio, array)
        The whole file, and the part's samples, float32 at the rate of the file.

    Raises
    ------
    InputError
        As ``scan_audio`` does.
    """
    audio = _scan_once(*_version(path))
    first, count = (round(seconds * audio.samplerate) for seconds in (start, duration))
    with suppress(*UNREADABLE), soundfile.SoundFile(str(path)) as file:
        if file.format in SEEKABLE and file.frames == audio.frames:
            file.seek(min(first, file.frames))
            block = file.read(count, dtype="float32", always_2d=True)
            return audio, _mix(block, audio.weights)
    return audio, load_audio(audio)[1][first : first + count]


def _version(path):
    path = Path(path)
    return path, path.stat().st_mtime_ns if path.exists() else 0


@lru_cache(maxsize=256)
def _scan_once(path, _changed, channel=None):
    return scan_audio(path, channel)


def read_blocks(audio, sample_rate):
    """Read a sound file at another rate, with little of it in memory.

    Arguments
    ---------
    audio : Audio
    sample_rate : int
        Hz.

    Yields
    ------
    Tensor
        float32 [S], with the channels mixed: ``BLOCK`` seconds, the last one less.

    Raises
    ------
    InputError
        If a sample is no sound.
    """
    yield from _resample_blocks(_read_mixed(audio), audio.samplerate, sample_rate)


def _resample_blocks(stream, rate, sample_rate):
    """Blocks of ``read_blocks`` from an iterator of samples [S] of any lengths."""
    kept, before, start = np.zeros(0, dtype=np.float32), 0, 0
    ended = False
    while not ended:
        # A second more at both ends, where resampling would hear an edge.
        missing = (start + BLOCK + 1 - before) * rate - len(kept)
        parts = [kept]
        while missing > 0 and (part := next(stream, None)) is not None:
            parts.append(part)
            missing -= len(part)
        kept = np.concatenate(parts)
        # What was read beyond that second waits for the next block.
        used = kept[: (start + BLOCK + 1 - before) * rate]
        ended = before * rate + len(kept) <= (start + BLOCK) * rate
        wav = torch.from_numpy(resample(restore_peaks(used, rate), rate, sample_rate))
        first = (start - before) * sample_rate
        yield wav[first : first + BLOCK * sample_rate]
        start += BLOCK
        kept, before = kept[(start - 1 - before) * rate :], start - 1


def mix_weights(covariance, loudest):
    """Weights of channels in a mix that loses nothing, and notes on what is unusual.

    The mix is the mean of the channels that are not silent. If they cancel each other out, as two
    channels with opposite signs do, the mix is the loudest channel alone.

    Arguments
    ---------
    covariance : array
        [C, C] of the channels' samples, up to a factor.
    loudest : array
        [C] power of each channel's loudest second.

    Returns
    -------
    (array, list[str])
        [C], and a line for each note.

    Example
    -------
    >>> mix_weights(np.array([[4.0, 4.0], [4.0, 4.0]]), np.array([1.0, 1.0]))
    (array([0.5, 0.5]), [])
    >>> mix_weights(np.array([[4.0, 0.0], [0.0, 0.0]]), np.array([1.0, 0.0]))
    (array([1., 0.]), ['channel 2 of 2 is silent: left out'])
    >>> mix_weights(np.array([[4.0, -5.0], [-5.0, 9.0]]), np.array([1.0, 1.0]))
    (array([0., 1.]), ['the 2 channels cancel each other out: channel 2 alone is used'])
    """
    count = len(loudest)
    used = loudest >= loudest.max() * 10 ** (SILENT_CHANNEL / 10)
    notes = []
    if not used.all():
        silent = (np.flatnonzero(~used) + 1).tolist()
        names = ", ".join(map(str, silent[:8])) + (", ..." if len(silent) > 8 else "")
        verb = "channel {} of {} is" if len(silent) == 1 else "channels {} of {} are"
        notes.append(f"{verb.format(names, count)} silent: left out")
    weights = used / used.sum()
    power = np.diag(covariance)
    if weights @ covariance @ weights < CANCELLED * (weights**2 @ power):
        best = int(np.where(used, power, -1.0).argmax())
        weights = np.eye(count)[best]
        notes.append(
            f"the {used.sum()} channels cancel each other out: channel {best + 1} alone is used"
        )
    return weights, notes


def check_audio(wav):
    """Check that a sound file of a corpus is there, whole, and has samples that are sound.

    Arguments
    ---------
    wav : Path

    Returns
    -------
    Audio or soundfile._SoundFileInfo
        Both have ``frames``, ``samplerate`` and ``channels``.

    Raises
    ------
    InputError
        Which names the file, and says what is wrong with it.
    """
    try:
        there = wav.is_file()
    except OSError:  # a name that is too long
        there = False
    if not there:
        raise InputError(f"no audio file {wav}")
    try:
        info = soundfile.info(wav)
    except UNREADABLE as error:
        try:
            if not isinstance(error, TypeError):
                return _check_whole(scan_audio(wav))
        except InputError as other:
            if not isinstance(other.__cause__, (av.FFmpegError, OSError)):
                raise
        raise InputError(f"unreadable audio {wav} ({why_unreadable(error)})") from error
    try:
        _check_header(wav, info)
        riff = read_riff(wav)
        if info.format != "FLAC" and not (riff and riff.is_right):
            return _check_whole(scan_audio(wav))
        if not info.frames:
            raise InputError(f"no samples in {wav}")
        _check_samples(wav, info)
    except UNREADABLE as error:
        raise InputError(f"unreadable audio {wav} ({why_unreadable(error)})") from error
    return info


def _check_whole(audio):
    if audio.lost:
        raise InputError(f"incomplete audio {audio.label} ({'; '.join(audio.notes)})")
    return audio


def resample(samples, rate, sample_rate):
    """Samples at another rate, by SciPy: torchaudio takes gigabytes where rates share no factor.

    Arguments
    ---------
    samples : float array [S]
    rate, sample_rate : int
        Hz, that they have and that they are to have.

    Returns
    -------
    float array [S * sample_rate / rate]
    """
    if rate == sample_rate:
        return samples
    common = math.gcd(rate, sample_rate)
    return resample_poly(samples, sample_rate // common, rate // common)


def restore_peaks(samples, rate):
    """Restore clipped peaks from the samples around them, by linear prediction.

    Only peaks at full scale are restored, and nothing if a sample is beyond full scale.

    Source: Janssen, Veldhuis and Vries, IEEE Transactions on Acoustics, Speech, and Signal
    Processing 34 (2), 1986.

    Arguments
    ---------
    samples : float array [S]
    rate : int
        Hz.

    Returns
    -------
    float array [S]
        The argument itself if nothing is clipped. Restored samples may be beyond full scale.

    Example
    -------
    >>> tone = 1.2 * np.sin(np.arange(1600) * 0.1)
    >>> error = np.abs(restore_peaks(tone.clip(-1, 1), 16000) - tone)[200:-200].max()
    >>> round(float(error), 2)  # of peaks that were cut by 0.2
    0.0
    """
    levels = np.abs(samples)
    if not 1 >= levels.max(initial=0) >= CLIPPED:
        return samples
    edges = np.flatnonzero(np.diff(levels >= CLIPPED, prepend=False, append=False))
    is_peak = np.zeros(len(samples), dtype=bool)
    for first, end in edges.reshape(-1, 2):
        if first and end < len(samples) and 2 <= end - first <= LONGEST_CLIP * rate:
            is_peak[first:end] = True
    if not is_peak.any():
        return samples
    restored, quarter = samples.copy(), math.ceil(PREDICTED * rate / 4)
    for start in range(0, len(samples) - 4 * quarter + 1, 2 * quarter):
        part, middle = slice(start, start + 4 * quarter), slice(quarter, 3 * quarter)
        if is_peak[part][middle].any() and is_peak[part].mean() <= MOST_CLIPPED:
            predicted = _predict(restored[part].astype(np.float64), is_peak[part], rate)
            restored[part][middle] = predicted[middle]
    return restored


def _predict(samples, is_peak, rate):
    """Samples [S] with peaks that fit best what linear prediction expects, above their level."""
    order, window = math.ceil(ORDER * rate), np.hanning(len(samples))
    peaks = np.flatnonzero(is_peak)
    levels, signs = np.abs(samples[peaks]), np.sign(samples[peaks])
    lags = np.abs(peaks[:, None] - peaks)
    for _ in range(PREDICTIONS):
        windowed = samples * window
        correlation = np.correlate(windowed, windowed, "full")[len(samples) - 1 :][: order + 1]
        correlation[0] *= 1 + 1e-6  # otherwise the equations of a pure tone have no solution
        filtered = np.append(1.0, -solve_toeplitz(correlation[:-1], correlation[1:]))
        errors = np.correlate(filtered, filtered, "full")
        by_lag = np.append(errors[order:], 0.0)
        expected = np.convolve(np.where(is_peak, 0.0, samples), errors, "same")[peaks]
        found = solve(by_lag[lags.clip(max=order + 1)], -expected, assume_a="pos")
        samples[peaks] = signs * (signs * found).clip(levels, HIGHEST_PEAK)
    return samples


def _scan(path, channel, blocks=None, inspection=None):
    """Look through a file, and append its blocks to ``blocks`` if that is a list."""
    path, label, copy = _find(path)
    found = None
    with ffmpeg_errors() as errors:
        source = open_source(path, label)
        scan = _Scan(source, label, channel, errors)
        if blocks is None and scan.is_needless(inspection):
            scan.end(source.frames)
        elif inspection is not None:
            found = _inspect(inspection, scan)
        else:
            for block in scan:
                if blocks is not None:
                    blocks.append(block)
    if not scan.frames:
        raise InputError(f"{label}: holds no audio: replace or remove it")
    weights, notes = scan.equal_weights(), scan.notes
    if channel is None and source.channels > 1:
        weights, more = mix_weights(scan.covariance, scan.loudest)
        notes = notes + more
    shape = source.rate, source.channels, scan.frames
    audio = Audio(path, label, *shape, tuple(weights.tolist()), tuple(notes), scan.lost, copy)
    if found is None:
        return audio
    if not np.array_equal(weights, scan.equal_weights()):
        found = inspection.function(read_blocks(audio, inspection.sample_rate))
    return replace(audio, inspected=(inspection.function, found))


def _inspect(inspection, scan):
    """Result of an inspection of a whole scan; None if the recording is too short for it."""
    stream, beginning, count = scan.mixed(), [], 0
    for part in stream:
        beginning.append(part)
        count += len(part)
        if count > inspection.least * scan.source.rate:
            break
    else:
        return None
    parts = chain(beginning, stream)
    found = inspection.function(_resample_blocks(parts, scan.source.rate, inspection.sample_rate))
    for _ in parts:  # the scan is of the whole file
        pass
    return found


class _Scan:
    """The decoding of a source once, in which samples are counted and channels are measured."""

    def __init__(self, source, label, channel, errors):
        self.source, self.label, self.channel, self.errors = source, label, channel, errors
        self.frames, self.notes, self.lost = 0, [], False
        self.covariance = self.loudest = 0.0

    def is_needless(self, inspection):
        """Whether all is known without the samples."""
        source = self.source
        if not source.is_exact or (source.channels > 1 and self.channel is None):
            return False
        return inspection is None or source.frames <= inspection.least * source.rate

    def __iter__(self):
        """Blocks float32 [S, C] of the source."""
        frames = 0
        for block in self.source:
            _check_sound(block, self.label)
            frames += len(block)
            if self.source.channels > 1:
                centred = (block - block.mean(0)).astype(np.float64)
                product = centred.T @ centred
                self.covariance = self.covariance + product
                self.loudest = np.maximum(self.loudest, np.diag(product) / len(block))
            yield block
        self.end(frames)

    def end(self, frames):
        """Set what is known at the end: ``frames`` to use, ``notes`` and ``lost``."""
        if frames:
            self.frames, self.notes, self.lost = self.source.summary(frames, self.errors)

    def equal_weights(self):
        """Weights of the channels [C]: equal ones, or those of one channel.

        ``InputError`` if the source lacks the channel.
        """
        count = self.source.channels
        if self.channel is None:
            return np.ones(count) / count
        if not 1 <= self.channel <= count:
            raise InputError(
                f"{self.label}: has no channel {self.channel}: give one from 1 to {count}"
            )
        return np.eye(count)[self.channel - 1]

    def mixed(self):
        """Blocks float32 [S] with equal weights of the channels: the samples to use."""
        waiting, given = None, 0
        for block in self:
            if waiting is None:
                waiting, weights = np.zeros(0, dtype=np.float32), self.equal_weights()
                # The end of the source tells how much of the last samples is padding.
                most_padding = math.ceil(DURATION_TOLERANCE * self.source.rate) + 1
            waiting = np.concatenate((waiting, _mix(block, weights)))
            ready = max(0, len(waiting) - most_padding)
            yield waiting[:ready]
            given, waiting = given + ready, waiting[ready:]
        if waiting is not None:
            yield waiting[: self.frames - given]


def _read_mixed(audio):
    """Blocks of a file's samples with the channels mixed, float32 [S] of about a second."""
    skipped, left = audio.start, audio.frames
    for block in open_source(audio.path, audio.label):
        _check_sound(block, audio.label)
        part = block[skipped:][:left]
        yield _mix(part, audio.weights)
        skipped, left = max(0, skipped - len(block)), left - len(part)
        if not left:
            return


def _mix(block, weights):
    return block[:, 0] if len(weights) == 1 else block @ np.float32(weights)


def _find(path):
    """The file to read, its name for messages, and the folder of its copy if it was a pipe."""
    is_stdin = str(path) == STDIN
    try:
        is_pipe = is_stdin or Path(path).is_fifo()
    except (OSError, ValueError):  # soundfile says what is wrong
        is_pipe = False
    if not is_pipe:
        return Path(path), str(path), None
    folder = _Scratch(prefix="ent_brain")
    copy = Path(folder.name) / ("stdin" if is_stdin else Path(path).name)
    with copy.open("wb") as file:
        if is_stdin:
            shutil.copyfileobj(sys.stdin.buffer, file)
        else:
            with Path(path).open("rb") as pipe:
                shutil.copyfileobj(pipe, file)
    return copy, "standard input" if is_stdin else str(path), folder


class _Scratch(tempfile.TemporaryDirectory):
    """A folder that is removed when nothing refers to it, which Python would warn of."""

    def __del__(self):
        self.cleanup()


def _check_sound(block, label):
    if not _are_sound(block):
        raise InputError(f"{label}: holds samples that are no sound: replace it")


def _are_sound(samples):
    """Whether samples, a tensor or an array of one at least, are numbers that sound can have."""
    return bool(abs(samples).max() <= LOUDEST)  # which none is that is no number


def _check_header(wav, audio):
    """Refuse audio (SoundFile or its info) that ends too early, or has a rate that no sound has."""
    if audio.samplerate > HIGHEST_RATE:
        raise InputError(f"{audio.samplerate} samples a second in {wav}")
    # libsndfile shortens what is cut off, and says so in its log alone.
    sizes = re.search(r"^data : (\d+) \(should be (\d+)\)", audio.extra_info, re.MULTILINE)
    if sizes and int(sizes[1]) < LEAST_UNKNOWN_SIZE:
        seconds = audio.frames / audio.samplerate
        announced = seconds * int(sizes[1]) / int(sizes[2])
        if announced - seconds > DURATION_TOLERANCE:
            raise InputError(f"{seconds:.2f} of {announced:.2f} s of audio in {wav}")


def _check_samples(wav, audio):
    """Refuse audio with samples that are no sound.

    PCM in WAV, as IEMOCAP and ZED are, has none; all else is read, at about a second for an hour of
    FLAC.
    """
    if audio.format in ("WAV", "WAVEX") and audio.subtype.startswith("PCM_"):
        return
    blocks = soundfile.blocks(wav, BLOCK * audio.samplerate, dtype="float32", always_2d=True)
    if not all(map(_are_sound, blocks)):
        raise InputError(f"samples that are no sound in {wav}")
