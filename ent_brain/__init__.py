"""Emotion Neural Transducers for SpeechBrain: what was said, how it was felt, and when."""

import platform
from importlib.metadata import version

__version__ = "0.2.0"


def versions():
    """Describe the versions that results depend on: this package, its main parts, Python (str)."""
    names = ("speechbrain", "torch", "transformers")
    parts = ", ".join(f"{name} {version(name)}" for name in names)
    return f"ent_brain {__version__}, {parts}; Python {platform.python_version()}"
