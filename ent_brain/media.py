"""Sound files decoded by FFmpeg or soundfile, and what their headers say."""

import io
import os
import re
import struct
from contextlib import contextmanager, suppress
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import soundfile

from ent_brain.errors import InputError, one_line

DURATION_TOLERANCE = 0.1
"""Seconds by which two accounts of a duration may differ without a note or a refusal."""

LEAST_UNKNOWN_SIZE = 2**31 - 2**16
"""Bytes of data in a WAV header from which on the writer did not know the size: it was a pipe."""

LOWEST_RATE, HIGHEST_RATE = 500, 2**20
"""Sample rates in Hz that a file may have; others come from damaged headers."""

LONGEST_GAP = 600.0
"""Seconds up to which silence replaces audio that is missing. Longer gaps come from damaged
timestamps."""

MOST_DEMUX_ERRORS = 100
"""Damaged places that are skipped in one file, so that reading ends."""

OGG_AUDIO = re.compile(rb"\x01vorbis|OpusHead|Speex|\x7fFLAC")
"""How the first page of audio in an Ogg file starts."""

MP3_HEADER = re.compile(
    rb"\xff[\xe0-\xff].{11,34}(?:(?:Xing|Info)...[\x01\x03\x05\x07\x09\x0b\x0d\x0f](.{4})|VBRI.{10}(.{4}))",
    re.DOTALL,
)
"""An MP3's frame that holds the number of frames."""

RATE_OF_OPUS = 48000
"""Hz of the positions in Ogg files with Opus."""

OGG_PAGE = 5.0
"""Seconds up to which a first page of an Ogg file may last; Opus and Vorbis have 1 s or less."""

UNREADABLE = (soundfile.LibsndfileError, TypeError)
"""Exceptions of soundfile for a file that is no audio; the latter if the name ends in .raw."""

PLAIN = {"PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"}
"""Encodings of WAV that soundfile reads as well as FFmpeg, and faster."""

CONTAINERS = {
    *("wav", "w64", "aiff", "au", "caf", "flac", "mov", "mp4", "matroska", "webm", "asf", "avi"),
    *("flv", "ape", "wv", "tta", "voc", "rm", "nistsphere"),
}
"""FFmpeg's names of the formats whose header gives a duration that is not a guess."""

COMMON = {"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG", "MP3"}
"""soundfile's names of formats that FFmpeg reads, too, if they are not damaged."""

RAW = {"mp3", "aac", "amr", "amrnb", "amrwb", "gsm", "ac3", "eac3", "dts"}
"""FFmpeg's names of the formats that are frames one after another, and tags."""

DEMUXERS = ",".join(
    CONTAINERS
    | RAW
    | {"loas", "ogg", "mpeg", "mpegts", "ircam", "mpc", "mpc8", "tak", "shn", "xwma", "3gp"}
)
"""Formats that are opened. FFmpeg's playlists are not among them, as they would open other files
and network addresses."""

SCALES = {
    np.dtype(np.uint8): (128.0, 128.0),
    np.dtype(np.int16): (0.0, 2.0**15),
    np.dtype(np.int32): (0.0, 2.0**31),
}
"""Zero and full scale of decoded samples that are integers."""


def open_source(path, label):
    """A source of blocks: soundfile for plain WAVs with a header that fits, else FFmpeg."""
    try:
        os.fsencode(path).decode()
    except UnicodeError as error:
        raise InputError(f"{label}: its name is no text: rename it") from error
    riff = read_riff(path)
    if riff and riff.is_right:
        with suppress(*UNREADABLE), soundfile.SoundFile(str(path)) as file:
            if file.subtype in PLAIN:
                return SoundfileSource(path, label, file, is_exact=True)
    try:
        return MediaSource(path, label, riff)
    except FileNotFoundError as error:
        raise InputError(f"{label}: no such file: check the path") from error
    except (av.FFmpegError, OSError) as error:
        try:  # a format that FFmpeg does not know
            with soundfile.SoundFile(str(path)) as file:
                note = f"damaged ({one_line(error.strerror)})" if file.format in COMMON else None
                return SoundfileSource(path, label, file, note=note)
        except UNREADABLE as other:
            reason = why_unreadable(other)
        if _is_mp4(path):
            reason = "an MP4 without its index, which is cut off or damaged"
        message = f"{label}: cannot be read as audio ({reason}): replace it"
        raise InputError(message) from error


@contextmanager
def ffmpeg_errors():
    """Collect the messages of FFmpeg's that tell errors (list)."""
    level, skip_repeated = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # the file before may have had the same error
    try:
        with av.logging.Capture() as errors:
            yield errors
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skip_repeated)


class SoundfileSource:
    """Samples of a file by soundfile."""

    def __init__(self, path, label, file, is_exact=False, note=None):
        if not LOWEST_RATE <= file.samplerate <= HIGHEST_RATE:
            raise InputError(f"{file.samplerate} samples a second in {label}: replace it")
        self.path, self.label = path, label
        self.rate, self.channels, self.frames = file.samplerate, file.channels, file.frames
        self.is_exact = is_exact  # whether ``frames`` needs no look at the samples
        self.note = note

    def __iter__(self):
        """Blocks float32 [S, C] of a second."""
        try:
            yield from soundfile.blocks(str(self.path), self.rate, dtype="float32", always_2d=True)
        except UNREADABLE as error:
            reason = why_unreadable(error)
            message = f"{self.label}: cannot be read as audio ({reason}): replace it"
            raise InputError(message) from error

    def summary(self, frames, errors):
        """Samples to use, notes on the file (list[str]), and whether audio is lost."""
        return frames, [self.note] if self.note else [], self.note is not None


class _MediaFile(io.FileIO):
    """A file in which damaged offsets lead to the end, where FFmpeg finds nothing more."""

    def seek(self, offset, whence=os.SEEK_SET):
        """Seek as ``FileIO`` does."""
        size = os.fstat(self.fileno()).st_size
        if whence == os.SEEK_SET and not 0 <= offset <= size:
            offset = size
        return super().seek(offset, whence)


class MediaSource:
    """Samples of a file by FFmpeg: every packet that can be decoded, at its time.

    Lost packets leave a gap between timestamps. Silence fills it, so that what follows keeps its
    time. A source can be read once.
    """

    is_exact = False

    def __init__(self, path, label, riff):
        self.path, self.label, self.riff = path, label, riff
        self.rate = self.channels = self.layout = self.resampler = None
        self.lead = self.missing = self.failed = self.reached = 0.0
        self.decoded_bytes, self.problems = 0, []
        self.file = _MediaFile(path)
        options = {"format_whitelist": DEMUXERS}
        if riff and not riff.fits:
            options["ignore_length"] = "1"  # read on to the end of the file
        tag_bytes = sum(_id3_sizes(self.file))
        self.frame_bytes = self.file.seek(0, os.SEEK_END) - tag_bytes
        self.file.seek(0)
        try:
            # A Python file: FFmpeg would take some names for network addresses.
            self.container = av.open(self.file, options=options, metadata_errors="replace")
            self.stream = self.container.streams.best("audio")
            if self.stream is None or self.stream.codec_context is None:
                raise InputError(f"{label}: holds no audio: replace or remove it")
        except BaseException:
            self.file.close()
            raise
        self.missing_bytes = _count_missing_bytes(path)
        self.announced = self.end = self._announced()
        self.is_raw = self.container.format.name in RAW
        self.is_ogg = self.container.format.name == "ogg"
        if self.is_ogg and self.stream.duration:
            self.end = float(self.stream.duration * self.stream.time_base)
        if self.is_ogg:
            rate = self.stream.codec_context.sample_rate or RATE_OF_OPUS
            self.announced, self.is_ended = _read_ogg(path, rate)
        tracks = [stream.index for stream in self.container.streams.audio]
        number = tracks.index(self.stream.index) + 1
        self.track = f"audio track {number} of {len(tracks)} is used" if len(tracks) > 1 else None

    def __iter__(self):
        """Blocks float32 [S, C] of about a second."""
        with self.file, self.container:
            parts, count = [], 0
            for part in self._parts():
                parts.append(part)
                count += len(part)
                if count >= self.rate:
                    yield np.concatenate(parts)
                    parts, count = [], 0
            if parts:
                yield np.concatenate(parts)

    def summary(self, frames, errors):
        """Samples to use, notes on the file (list[str]), and whether audio is lost."""
        notes, lost = [], False
        seconds = frames / self.rate - self.lead
        if self.announced is not None:
            # In a video the sound may end before the picture, unless its own length is known.
            whole = not self.stream.duration
            whole &= abs(self.announced - self.reached) <= DURATION_TOLERANCE
            lost = self.announced - seconds > DURATION_TOLERANCE and not whole
            if lost or seconds - self.announced > DURATION_TOLERANCE:
                notes.append(
                    f"header says {self.announced:.2f} s, {seconds:.2f} s could be decoded"
                )
        if self.is_raw and self.decoded_bytes and self.announced is None:
            # Nothing else says how long these frames last: bytes without a frame are lost.
            skipped = self.frame_bytes - self.decoded_bytes
            self.missing = max(self.missing, skipped * seconds / self.decoded_bytes)
        if max(self.missing, self.failed) > DURATION_TOLERANCE:
            lost = True
            notes.append(f"{max(self.missing, self.failed):.2f} s are missing or damaged")
        if self.is_ogg and not self.is_ended:
            lost = True
            notes.append("cut off: Ogg's mark of the end is missing")
        share = self.missing_bytes / max(self.frame_bytes, 1)
        if share * seconds > DURATION_TOLERANCE and not lost:
            lost = True
            notes.append(f"cut off: the header says {self.missing_bytes} bytes more")
        if self.riff and not self.riff.is_consistent:
            notes.append("the header contradicts itself about rate, channels or sample size")
        errors = [f"{name}: {one_line(message)}" for _, name, message in errors] or self.problems
        if errors and not notes:
            notes.append(f"damaged ({errors[0]})")
        if self.track:
            notes.append(self.track)
        if self.end is not None and 0 < seconds - self.end <= DURATION_TOLERANCE:
            frames -= round((seconds - self.end) * self.rate)  # what encoders add to fill a block
        return frames, notes, lost

    def _announced(self):
        """Seconds that the header says; None if it does not, or FFmpeg would guess."""
        if self.riff:
            return self.riff.seconds
        stream, names = self.stream, set(self.container.format.name.split(","))
        if not stream.codec_context.sample_rate:
            return None
        seconds = float(stream.duration * stream.time_base) if stream.duration else None
        if names == {"mp3"}:
            frames = _count_mp3_frames(self.path)
            if frames is None:
                return None
            told = frames * stream.codec_context.frame_size / stream.codec_context.sample_rate
            # FFmpeg leaves the padding out, but guesses where a file has other bytes than it says.
            return seconds if seconds and abs(seconds - told) < 2 * DURATION_TOLERANCE else told
        if not names & CONTAINERS:
            return None
        if names == {"caf"} and stream.codec_context.name.startswith("pcm_"):
            return stream.frames / stream.codec_context.sample_rate
        if seconds is None and self.container.duration:
            seconds = self.container.duration / av.time_base
        if seconds and stream.bit_rate and names & {"wav", "w64"}:
            seconds += self.missing_bytes * 8 / stream.bit_rate
        return seconds

    def _frames(self):
        """Decoded frames; what cannot be decoded is skipped."""
        only_audio = len(self.container.streams) == 1
        start = (self.container.start_time or 0) / av.time_base
        for _ in range(MOST_DEMUX_ERRORS):
            try:
                for packet in self.container.demux(*[self.stream] * only_audio):
                    if packet.stream_index != self.stream.index:
                        if packet.pts is not None:
                            end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                            self.reached = max(self.reached, end - start)
                        continue
                    try:
                        yield from packet.decode()
                        self.decoded_bytes += packet.size
                    except av.FFmpegError:  # some packets hold more frames than their duration
                        self.failed += float((packet.duration or 0) * packet.time_base)
                return
            except av.FFmpegError as error:  # a damaged place: FFmpeg looks for the next packet
                self.problems.append(one_line(error.strerror))

    def _parts(self):
        """Samples float32 [S, C], with silence where timestamps leave a gap."""
        start = self.container.start_time
        origin = None if start is None else start / av.time_base
        position = 0
        for frame in self._frames():
            if self.rate is None:
                self.rate, self.layout = frame.sample_rate, frame.layout
                self.channels = self.layout.nb_channels
                if not LOWEST_RATE <= self.rate <= HIGHEST_RATE:
                    raise InputError(f"{self.rate} samples a second in {self.label}: replace it")
            if frame.time is not None:
                origin = frame.time if origin is None else origin
                now = position / self.rate
                gap = frame.time - origin - now
                if abs(gap) > DURATION_TOLERANCE:
                    if not position and self.container.streams.video:
                        self.lead = gap  # the sound starts after the picture
                    elif gap > 0:
                        self.missing += gap
                    beyond = self.announced is not None and now + gap > self.announced + 1
                    if not 0 < gap <= LONGEST_GAP or beyond:  # another clock from here on
                        origin += gap
                        gap = self.lead = 0.0
                    for left in range(round(gap * self.rate), 0, -self.rate):
                        size = min(left, self.rate)
                        yield np.zeros((size, self.channels), np.float32)
                        position += size
            for part in self._floats(frame):
                yield part
                position += len(part)

    def _floats(self, frame):
        """Samples float32 [S, C] of a frame, all with the rate and channels of the first."""
        channels = frame.layout.nb_channels
        if (frame.sample_rate, channels) != (self.rate, self.channels):
            # Files of different rates joined: FFmpeg converts the later ones.
            key = frame.sample_rate, frame.layout.name, frame.format.name
            if self.resampler is None or self.resampler[0] != key:
                converter = av.AudioResampler("flt", self.layout, self.rate)
                self.resampler = key, converter
            frame.pts = None
            try:
                frames = self.resampler[1].resample(frame)
            except av.FFmpegError:  # damaged, with tens of channels
                self.failed += frame.samples / frame.sample_rate
                return
        else:
            frames = [frame]
        for each in frames:
            samples = each.to_ndarray()
            samples = samples.T if each.format.is_planar else samples.reshape(-1, self.channels)
            zero, scale = SCALES.get(samples.dtype, (0, 1))
            with np.errstate(invalid="ignore", over="ignore"):  # such samples are refused later
                samples = samples.astype(np.float32)
                samples = (samples - np.float32(zero)) / np.float32(scale)
            yield samples


class Riff(NamedTuple):
    """What the header of a WAV says about its data."""

    fits: bool
    """Whether the data ends where the header says."""
    is_consistent: bool
    """Whether rate, channels and sample size agree with the bytes a second."""
    seconds: float | None
    """Duration; None if the writer did not know it, or the header contradicts itself."""

    @property
    def is_right(self):
        """Whether a reader may trust the header."""
        return self.fits and self.is_consistent


def read_riff(path):
    """Read the header of a WAV (``Riff``); None if the file is none, or has more than 4 GiB."""
    with suppress(OSError, ValueError, struct.error), Path(path).open("rb") as file:
        kind, _, form = struct.unpack("<4sI4s", file.read(12))
        if (kind, form) != (b"RIFF", b"WAVE"):
            return None
        layout = None
        while True:
            name, size = struct.unpack("<4sI", file.read(8))
            if name == b"data":
                break
            content = file.read(16) if name == b"fmt " else b""
            layout = struct.unpack("<HHIIHH", content) if content else layout
            file.seek(size + size % 2 - len(content), os.SEEK_CUR)
        if layout is None:
            return None
        tag, channels, rate, byte_rate, align, bits = layout
        start, end = file.tell(), file.seek(0, os.SEEK_END)
        file.seek(start + size + size % 2)
        name, following = struct.unpack("<4sI", file.read(8).ljust(8, b"\0"))
        left = end - start - size
        is_chunk = name.isascii() and name.decode().isprintable() and following <= left
        # What follows the data is other chunks, or nothing worth a word.
        fits = left >= 0 and (is_chunk or left <= byte_rate * DURATION_TOLERANCE)
        uncompressed = tag in (1, 3, 6, 7, 0xFFFE)
        is_consistent = byte_rate > 0 and not (
            uncompressed and (align != channels * bits // 8 or byte_rate != rate * align)
        )
        known = size < LEAST_UNKNOWN_SIZE and is_consistent
        return Riff(fits, is_consistent, size / byte_rate if known else None)
    return None


def _count_mp3_frames(path):
    """Frames of an MP3 by its header, Xing's or Fraunhofer's; None if it has none."""
    with Path(path).open("rb") as file:
        start = _id3_sizes(file)[0]
        for position in (start, 0):  # the size of the tag may be damaged
            file.seek(position)
            if header := MP3_HEADER.search(file.read(4096)):
                return int.from_bytes(header[1] or header[2], "big")
    return None


def _count_missing_bytes(path):
    """Bytes that a WAV, AVI, W64 or RF64 file lacks by its own account."""
    with Path(path).open("rb") as file:
        start, size = file.read(28), file.seek(0, os.SEEK_END)
    told = 0
    if start[:4] == b"riff":
        told = int.from_bytes(start[16:24], "little")
    elif start[:4] == b"RF64":
        told = int.from_bytes(start[20:28], "little") + 8
    elif start[:4] == b"RIFF":
        told = int.from_bytes(start[4:8], "little") + 8
        told = told if told < LEAST_UNKNOWN_SIZE else 0
    return max(0, told - size)


def _read_ogg(path, rate):
    """Seconds of audio by the pages of an Ogg file, and whether its last page is there.

    Files that follow each other in one are added. The seconds are None if a stream begins in its
    middle, as recordings of radio do.
    """
    audio, finished, is_ended, position, first = {}, 0.0, False, 0, None
    with Path(path).open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        while (start := content.find(b"OggS", position)) >= 0 and start + 27 <= len(content):
            flags, granule, serial = struct.unpack("<5xBqI", content[start : start + 18])
            sizes = content[start + 27 : start + 27 + content[start + 26]]
            body = start + 27 + len(sizes)
            position = body + sum(sizes)
            if flags & 2:
                if OGG_AUDIO.match(content[body : body + 8]):
                    finished += sum(audio.values())
                    audio = {serial: 0.0}
                    clock = rate
                    if content[body : body + 8] == b"OpusHead":
                        clock = RATE_OF_OPUS
                    elif content[body + 1 : body + 7] == b"vorbis":
                        clock = int.from_bytes(content[body + 12 : body + 16], "little") or rate
            elif serial in audio and granule > 0:
                seconds = granule / clock
                first = seconds if first is None else first
                audio[serial] = seconds
            is_ended = bool(flags & 4) and position <= len(content)
    seconds = finished + sum(audio.values())
    is_middle = first is not None and OGG_PAGE < first <= seconds
    return None if is_middle else seconds, is_ended


def _id3_sizes(file):
    """Bytes of the tags before and behind the frames of an MP3 or another raw stream."""
    file.seek(0)
    tag = file.read(10)
    before = 0
    if tag[:3] == b"ID3":
        before = 10 + sum((byte & 127) << 7 * i for i, byte in enumerate(tag[:5:-1]))
    file.seek(max(0, file.seek(0, os.SEEK_END) - 128))
    return before, 128 * (file.read(3) == b"TAG")


def _is_mp4(path):
    with suppress(OSError), Path(path).open("rb") as file:
        return file.read(8)[4:] == b"ftyp"
    return False


def why_unreadable(error):
    """Why soundfile could not read a file (str), without its path."""
    if isinstance(error, TypeError):
        return "raw samples, without a rate"
    return getattr(error, "error_string", str(error)).rstrip(".") or "cut off"
