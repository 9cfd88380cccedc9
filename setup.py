"""Installation: ``pip install .``, with the extras app, demo, dev, listen and peers."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "ent_brain/__init__.py").read_text("utf-8"))[1]

setup(
    name="ent_brain",
    version=VERSION,
    description="Emotion Neural Transducer recipes for SpeechBrain: "
    "words, the utterance's emotion, and the emotion of every frame",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["ent_brain", "ent_brain.*"]),
    package_data={"ent_brain": ["assets/*.*", "assets/wavesurfer/*", "models/*/*"]},
    entry_points={"console_scripts": ["ent-brain = ent_brain.__main__:main"]},
    python_requires=">=3.10",
    install_requires=[
        # SpeechBrain imports torchaudio, which needs the torch of its own version. The newest
        # pair is 2.11.0: torchaudio 2.11.1 asks for torch 2.11 but cannot be imported with it.
        "torch>=2.8,<2.12",
        "torchaudio>=2.8,<2.11.1",
        "speechbrain>=1.1,<1.2",
        "transformers>=5.0,<6",
        "hyperpyyaml>=1.2.3",
        "sentencepiece>=0.2",
        "jiwer>=4.0",
        "matplotlib>=3.8",
        "soundfile>=0.12",
        "av>=14,<19",  # 19 has no metadata_errors, which damaged files need
        "pocketsphinx>=5.0.4,<6",  # its trigram of English words
        "pympi-ling>=1.70",
        "silero-vad>=6.2,<7",
        # SpeechBrain needs these too; our own code imports them.
        "huggingface_hub",
        "num2words>=0.5.13",
        "numpy",
        "pyyaml",
        "rapidfuzz",
        "ruamel.yaml",
        "safetensors",
        "scipy",
        "tqdm",
    ],
    extras_require={
        "app": ["gradio>=6,<7"],
        "listen": ["sounddevice>=0.5"],
        "demo": ["espeakng-loader>=0.2.4"],
        "peers": ["faster-whisper>=1.1"],
        "dev": [
            "axe-core-python>=0.1",
            "espeakng-loader>=0.2.4",
            "gradio>=6,<7",
            "hypothesis>=6",
            "praatio>=6",
            "pyannote.database>=6",
            "pytest>=8",
            "pytest-xdist>=3.5",
            "ruff>=0.12",
            "selenium>=4.20",
            "webvtt-py>=0.5",
        ],
    },
)
