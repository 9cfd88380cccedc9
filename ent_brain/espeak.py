"""Synthetic speech without a download: the espeak-ng of ``espeakng-loader``, through ctypes."""

import _ctypes
import ctypes
import os
from typing import NamedTuple

import numpy as np

from ent_brain.errors import InputError

SAMPLE_RATE = 22050
"""Sample rate of espeak-ng in Hz."""

WORD_JOINER = "\u2060"
"""Silent character before a word. espeak-ng does not merge word pairs across it."""

# The constants and the event structure of espeak-ng's speak_lib.h.
_SYNCHRONOUS = 2
_UTF8, _SSML = 1, 16
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_LIST_TERMINATED, _WORD = 0, 1


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)
_unload = _ctypes.FreeLibrary if os.name == "nt" else _ctypes.dlclose


class Speech(NamedTuple):
    """Speech from espeak-ng."""

    samples: np.ndarray
    """int16 [samples] at ``SAMPLE_RATE``."""
    word_starts: list
    """First sample of every word, in order."""


def require():
    """Return the package with espeak-ng; ``InputError`` if it is not installed."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise InputError(
            "synthetic speech needs espeakng-loader: pip install ent_brain[demo]"
        ) from error
    return espeakng_loader


def speak(ssml, voice, rate=175, pitch=50, pitch_range=50, seed=0):
    """Synthesise a text, with the start of each word.

    The library is loaded for this call only. It has state that no function resets (the phase of the
    pitch flutter, the gain control). If the library stayed loaded, the samples of a text would
    depend on all texts before it. No other part of the process may keep the library loaded: its
    state would remain, and its voice settings would be lost.

    Arguments
    ---------
    ssml : str
        Text; ``<prosody pitch="0..99" range="0..99" rate="percent">`` changes how a part is said.
        Some word pairs ("on the") become one word in espeak-ng; ``WORD_JOINER`` before the second
        word prevents this.
    voice : str
        A language and a variant, such as ``en-us+f1``.
    rate : int
        Words per minute.
    pitch, pitch_range : int
        0 to 99; 50 is the voice's own value. 50 more is an octave up, or twice the range.
    seed : int
        Seed of the breath noise that some voices have.

    Returns
    -------
    Speech

    Raises
    ------
    InputError
        If ``espeakng-loader`` is not installed or has no such voice.

    Example
    -------
    >>> speech = speak("the lamp is here", "en-us+f1")
    >>> len(speech.word_starts), speech.samples.dtype
    (4, dtype('int16'))
    """
    espeakng_loader = require()
    chunks, word_starts = [], []

    @_Callback
    def collect(wave, length, events):
        if length > 0:
            chunks.append(ctypes.string_at(wave, 2 * length))
        position = 0
        while events[position].type != _LIST_TERMINATED:
            event = events[position]
            # espeak-ng reports a tag before the word joiner as a word without length: skip it.
            if event.type == _WORD and event.sample not in word_starts[-1:]:
                word_starts.append(event.sample)
            position += 1
        return 0

    library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
    try:
        library.espeak_Initialize(
            _SYNCHRONOUS, 0, os.fsencode(str(espeakng_loader.get_data_path())), 0
        )
        library.espeak_SetSynthCallback(collect)
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise InputError(f"{voice}: espeak-ng has no such voice: espeak-ng --voices lists them")
        # At half the default volume, espeak's gain control, which pumps, does not set in.
        settings = {_RATE: rate, _VOLUME: 50, _PITCH: pitch, _RANGE: pitch_range}
        for parameter, value in settings.items():
            library.espeak_SetParameter(parameter, value, 0)
        text = f"<speak>{ssml}</speak>".encode()
        library.espeak_Synth(text, len(text) + 1, 0, 0, 0, _UTF8 | _SSML, None, None)
        library.espeak_Terminate()
    finally:
        _unload(library._handle)
    return Speech(np.frombuffer(b"".join(chunks), dtype="<i2"), word_starts)
