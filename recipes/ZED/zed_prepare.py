"""Prepare ZED, the Zaion Emotion Dataset: a manifest with the interval of each utterance's emotion.

The corpus is read anew each time, so the manifest is never staler than the corpus.
Source: Wang, Ravanelli, Yacoubi, "Speech Emotion Diarization: Which Emotion Appears When?",
ASRU 2023 (arXiv 2306.12991).
"""

import re
from collections import Counter
from pathlib import Path

from speechbrain.utils.logger import get_logger

from ent_brain.emotions import EMOTIONS
from ent_brain.errors import InputError
from ent_brain.manifest import (
    SAMPLE_RATE,
    Utterance,
    check_utterances,
    is_seconds,
    path_inside,
    read_entries,
    save_manifests,
)
from ent_brain.segments import Segment

logger = get_logger(__name__)

FULL_UTTERANCES, FULL_SPEAKERS = 180, 73
KEYS = ("wav", "duration", "emotion", "transcription")
SPEAKER = re.compile(r"(?:spk|speaker)[-_]?\d+", re.IGNORECASE)


def prepare_zed(zed_folder, save_folder):
    """Write the manifest of ZED, for testing only.

    Arguments
    ---------
    zed_folder : str or Path
        The folder that holds ``ZED.json``; what ``{data_root}`` stands for.
    save_folder : str or Path
        Where the manifest goes.

    Returns
    -------
    dict[str, Path]
        The manifest of ``zed``.

    Raises
    ------
    InputError
        If the corpus is incomplete or contradicts itself; nothing is written then.

    Example
    -------
    >>> prepare_zed("ZED", "save")  # doctest: +SKIP
    """
    zed_folder = Path(zed_folder)
    entries = read_entries(
        zed_folder / "ZED.json", "set zed_folder to the folder that ZED.json lies in, unchanged"
    )
    drafts, problems = [], []
    for name, entry in entries.items():
        try:
            drafts.append(_read_entry(name, entry, zed_folder))
        except InputError as error:
            problems.append(f"{name}: {error}")
    utterances = check_utterances(drafts, zed_folder, problems)
    logger.info(_describe(utterances))
    return save_manifests(save_folder, {"zed": utterances}, zed_folder)


def _read_entry(name, entry, zed_folder):
    missing = [key for key in KEYS if key not in entry]
    if missing:
        raise InputError(f"no {' and no '.join(missing)} in ZED.json")
    if not is_seconds(entry["duration"]) or entry["duration"] <= 0:
        raise InputError(f"duration {entry['duration']!r} is not in seconds")
    if not isinstance(entry["transcription"], str):
        raise InputError(f"transcription {entry['transcription']!r} is no text")
    segment = _read_segment(entry["emotion"])
    # ZED.json has no key for the speaker: what an id or a path says plainly is taken, no more.
    speaker = SPEAKER.search(f"{name} {entry['wav']}")
    return Utterance(
        id=name,
        wav=path_inside(entry["wav"], "datafolder", zed_folder),
        transcript=entry["transcription"],
        emotion=segment.emotion,
        speaker=speaker[0].lower() if speaker else "unknown",
        segments=(segment,),
        samples=round(entry["duration"] * SAMPLE_RATE),
    )


def _read_segment(emotion):
    """Return the one emotional interval (Segment) of an utterance."""
    if not isinstance(emotion, list) or len(emotion) != 1 or not isinstance(emotion[0], dict):
        raise InputError("emotion is not a list of one interval")
    missing = [key for key in ("emo", "start", "end") if key not in emotion[0]]
    if missing:
        raise InputError(f"no {' and no '.join(missing)} in the interval")
    start, end = emotion[0]["start"], emotion[0]["end"]
    if not is_seconds(start) or not is_seconds(end):
        raise InputError(f"interval from {start!r} to {end!r} is not in seconds")
    return Segment(start, end, emotion[0]["emo"])


def _describe(utterances):
    """Say (str) how much there is, beside the full release."""
    emotions = Counter(utterance.emotion for utterance in utterances)
    counts = ", ".join(f"{emotions[emotion]} {emotion}" for emotion in EMOTIONS)
    speakers = len({utterance.speaker for utterance in utterances} - {"unknown"})
    return (
        f"ZED: {len(utterances)} utterances ({counts}), the full release has {FULL_UTTERANCES}; "
        f"{speakers} speakers named, it has {FULL_SPEAKERS}"
    )
