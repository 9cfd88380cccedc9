"""Sound files: whether one can be listened to, before anyone does, and its rate."""

import math
import re

import soundfile
from scipy.signal import resample_poly

from ent_brain.errors import InputError

DURATION_TOLERANCE = 0.1
"""Seconds: where corpus and audio differ by more, its intervals are of another recording."""

BLOCK = 2**20
"""Samples of each channel that are looked at together."""

LEAST_UNKNOWN_SIZE = 2**31 - 2**16
"""Bytes from which on a WAV's header means that its writer could not know: it was a pipe."""

LOUDEST = 1e6
"""Of a sample, where full scale is 1: what is beyond is no sound, and its energy no number."""

HIGHEST_RATE = 2**20
"""Hz: what a header tells beyond is no rate of sound."""

UNREADABLE = (soundfile.LibsndfileError, TypeError)
"""What soundfile raises for a file that is no audio; the latter where the name ends in .raw."""


def check_audio(wav):
    """Look whether a sound file is there, whole, and has samples that are sound.

    Arguments
    ---------
    wav : Path

    Returns
    -------
    soundfile._SoundFileInfo
        What soundfile tells of it: ``frames``, ``samplerate``, ``channels`` and more.

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
        audio = soundfile.info(wav)
        if not audio.frames:
            raise InputError(f"no samples in {wav}")
        _check_header(wav, audio)
        _check_samples(wav, audio)
    except UNREADABLE as error:
        raise InputError(f"unreadable audio {wav} ({_why_unreadable(error)})") from error
    return audio


def open_audio(path):
    """Open a sound file that is whole, as far as its header tells (soundfile.SoundFile).

    Arguments
    ---------
    path : str or Path

    Raises
    ------
    InputError
    """
    try:
        file = soundfile.SoundFile(str(path))
    except UnicodeEncodeError as error:
        raise InputError(f"{path}: its name is no text: rename it") from error
    except UNREADABLE as error:
        raise _cannot_be_read(path, error) from error
    try:
        _check_header(path, file)
    except InputError as error:
        file.close()
        raise InputError(f"{error}: replace it") from None
    return file


def read_samples(file, count, path):
    """Read samples of all channels, mixed down.

    Arguments
    ---------
    file : soundfile.SoundFile
    count : int
        At most; -1 reads all.
    path : str or Path
        That errors name.

    Returns
    -------
    float32 array [S]

    Raises
    ------
    InputError
        If they cannot be read, or one is no sound.
    """
    try:
        samples = file.read(count, dtype="float32", always_2d=True).mean(1)
    except UNREADABLE as error:
        raise _cannot_be_read(path, error) from error
    if samples.size and not _are_sound(samples):
        raise InputError(f"{path}: holds samples that are no sound: replace it")
    return samples


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


def _cannot_be_read(path, error):
    reason = _why_unreadable(error)
    return InputError(f"{path}: cannot be read as audio ({reason}): replace it")


def _are_sound(samples):
    """Whether samples, a tensor or an array of one at least, are numbers that sound can have."""
    return bool(abs(samples).max() <= LOUDEST)  # which none is that is no number


def _why_unreadable(error):
    """Why soundfile could not read a file (str), without its path."""
    if isinstance(error, TypeError):
        return "raw samples, without a rate"
    return getattr(error, "error_string", str(error)).rstrip(".") or "cut off"


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
    blocks = soundfile.blocks(wav, BLOCK, dtype="float32", always_2d=True)
    if not all(map(_are_sound, blocks)):
        raise InputError(f"samples that are no sound in {wav}")
