"""Speech without a download: espeak-ng, as ``espeakng-loader`` ships it, called through ctypes."""

import _ctypes
import ctypes
import os
from typing import NamedTuple

import numpy as np

from ent_brain.errors import InputError

SAMPLE_RATE = 22050
"""Rate in Hz at which espeak-ng speaks."""

WORD_JOINER = "\u2060"
"""Silent before a word, but the pronunciation of word pairs does not reach across it."""

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
    """What espeak-ng said."""

    samples: np.ndarray
    """int16 [samples] at ``SAMPLE_RATE``."""
    word_starts: list
    """First sample of every word, in order."""


def require():
    """Return the package that carries espeak-ng; ``InputError`` if it is not installed."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise InputError(
            "synthetic speech needs espeakng-loader: pip install ent_brain[demo]"
        ) from error
    return espeakng_loader


def speak(ssml, voice, rate=175, pitch=50, pitch_range=50, seed=0):
    """Speak a text and tell where its words begin.

    The library is loaded for this call and unloaded after it. It keeps state that no function
    resets (the phase of the pitch flutter, the gain control), so in a library that stays loaded the
    samples of a text would depend on everything said before it. A copy that another part of the
    process holds loaded would defeat that, and its voice settings would be lost.

    Arguments
    ---------
    ssml : str
        Text; ``<prosody pitch="0..99" range="0..99" rate="percent">`` changes how a part is said.
        Some word pairs ("on the") are one word to espeak-ng; ``WORD_JOINER`` before the second
        keeps them two.
    voice : str
        A language and a variant, such as ``en-us+f1``.
    rate : int
        Words a minute.
    pitch, pitch_range : int
        0 to 99, 50 being the voice's own; 50 more is an octave up, or twice the range.
    seed : int
        Of the breath noise that some voices have.

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
            # A tag before the word joiner is told as a word without length: pass it over.
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
        # Half the default volume keeps clear of espeak's gain control, which pumps.
        settings = {_RATE: rate, _VOLUME: 50, _PITCH: pitch, _RANGE: pitch_range}
        for parameter, value in settings.items():
            library.espeak_SetParameter(parameter, value, 0)
        text = f"<speak>{ssml}</speak>".encode()
        library.espeak_Synth(text, len(text) + 1, 0, 0, 0, _UTF8 | _SSML, None, None)
        library.espeak_Terminate()
    finally:
        _unload(library._handle)
    return Speech(np.frombuffer(b"".join(chunks), dtype="<i2"), word_starts)
