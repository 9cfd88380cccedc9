"""Emotion Neural Transducers for SpeechBrain: words, emotions and their times from speech."""

import platform
from importlib.metadata import version

__version__ = "0.2.0"


def versions():
    """Describe the versions (str) of this package, its main dependencies and Python."""
    names = ("speechbrain", "torch", "transformers")
    parts = ", ".join(f"{name} {version(name)}" for name in names)
    return f"ent_brain {__version__}, {parts}; Python {platform.python_version()}"
