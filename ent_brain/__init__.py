"""Emotion Neural Transducers for SpeechBrain: words, emotions and their times from speech."""

import platform
import warnings
from importlib.metadata import version

__version__ = "0.2.0"

# SpeechBrain asks torchaudio 2.8 a question that torchaudio warns of.
warnings.filterwarnings("ignore", "torchaudio._backend.list_audio_backends")


def versions():
    """Describe the versions (str) of this package, its main dependencies and Python."""
    names = ("speechbrain", "torch", "transformers")
    parts = ", ".join(f"{name} {version(name)}" for name in names)
    return f"ent_brain {__version__}, {parts}; Python {platform.python_version()}"
