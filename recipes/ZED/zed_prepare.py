"""Prepare ZED, the Zaion Emotion Dataset: a manifest with the interval of each utterance's emotion.

The corpus is read each time, so the manifest always matches it.
Source: Wang, Ravanelli, Yacoubi, "Speech Emotion Diarization: Which Emotion Appears When?",
ASRU 2023 (arXiv 2306.12991). If the page of the data set does not answer
(https://zaion.ai/en/resources/zaion-lab-blog/zaion-emotion-dataset/), see
https://github.com/BenoitWang/Speech_Emotion_Diarization and ``recipes/ZaionEmotionDataset`` of
https://github.com/speechbrain/speechbrain.
"""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from speechbrain.utils.logger import get_logger

from ent_brain.audio import find_audio
from ent_brain.emotions import check_label_map, describe_label_map
from ent_brain.errors import InputError, first_names
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

LABELS = ("happy", "angry", "sad")
REST = "the rest"
"""Label for the rest of an utterance, which is neutral by the corpus's definition."""

FULL_UTTERANCES, FULL_SPEAKERS = 180, 73
KEYS = ("wav", "duration", "emotion", "transcription")
SPEAKER = re.compile(r"(?:spk|speaker)[-_]?\d+", re.IGNORECASE)


def prepare_zed(zed_folder, save_folder, emotions, label_map, normalize):
    """Write the manifest of ZED, for testing only.

    Arguments
    ---------
    zed_folder : str or Path
        The folder with ``ZED.json``; ``{data_root}`` stands for it. The recordings may have other
        extensions than in ``ZED.json``, and names in another case.
    save_folder : str or Path
        Folder of the manifest.
    emotions : EmotionSet
        A label set with a neutral label, for the rest of each utterance.
    label_map : dict[str, str]
        From the corpus's labels (``LABELS``) to names of ``emotions``. Utterances with other labels
        are skipped.
    normalize : callable
        The recipe's normalisation of transcripts.

    Returns
    -------
    dict[str, Path]
        The manifest of ``zed``.

    Raises
    ------
    InputError
        If the corpus is incomplete or contradicts itself, or an argument is impossible. Nothing is
        written then.

    Example
    -------
    >>> label_map = {"happy": "happy", "angry": "angry", "sad": "sad"}
    >>> prepare_zed("ZED", "save", PUBLISHED, label_map, normalize_transcript)  # doctest: +SKIP
    """
    emotions.need_neutral("ZED")
    label_map = check_label_map(label_map, "ZED", LABELS, emotions)
    zed_folder = Path(zed_folder)
    entries = read_entries(
        zed_folder / "ZED.json", "set zed_folder to the folder that ZED.json lies in, unchanged"
    )
    drafts, missing, problems = [], [], []
    left_out = Counter()
    for name, entry in entries.items():
        try:
            label, draft = _read_entry(name, entry, zed_folder, label_map)
            if label not in label_map:
                left_out[label] += 1
            elif wav := find_audio(draft.wav):
                drafts.append(replace(draft, wav=wav))
            else:
                missing.append(str(draft.wav))
        except InputError as error:
            problems.append(f"{name}: {error}")
    if missing:
        problems.append(
            f"{len(missing)} of {len(entries)} recordings missing: {first_names(missing)}"
        )
    utterances = check_utterances(drafts, zed_folder, problems, emotions, normalize)
    made_of = describe_label_map({**label_map, REST: emotions.neutral}, emotions)
    counts = ", ".join(f"{count} {label}" for label, count in left_out.most_common())
    logger.info(f"ZED's labels: {made_of}; left out: {counts or 'none'}")
    logger.info(_describe(utterances, emotions))
    return save_manifests(save_folder, {"zed": utterances}, zed_folder)


def _read_entry(name, entry, zed_folder, label_map):
    """Return an entry's label (str) and its Utterance; the emotion of a skipped one is None."""
    missing = [key for key in KEYS if key not in entry]
    if missing:
        raise InputError(f"no {' and no '.join(missing)} in ZED.json")
    if not is_seconds(entry["duration"]) or entry["duration"] <= 0:
        raise InputError(f"duration {entry['duration']!r} is not in seconds")
    if not isinstance(entry["transcription"], str):
        raise InputError(f"transcription {entry['transcription']!r} is no text")
    start, end, label = _read_interval(entry["emotion"])
    emotion = label_map.get(label)
    # ZED.json has no key for the speaker. We only use plain names in the id or the path.
    speaker = SPEAKER.search(f"{name} {entry['wav']}")
    return label, Utterance(
        id=name,
        wav=path_inside(entry["wav"], "datafolder", zed_folder),
        transcript=entry["transcription"],
        emotion=emotion,
        speaker=speaker[0].lower() if speaker else "unknown",
        segments=(Segment(start, end, emotion),),
        samples=round(entry["duration"] * SAMPLE_RATE),
    )


def _read_interval(emotion):
    """Return start, end (seconds) and label of the one emotional interval of an utterance."""
    if not isinstance(emotion, list) or len(emotion) != 1 or not isinstance(emotion[0], dict):
        raise InputError("emotion is not a list of one interval")
    missing = [key for key in ("emo", "start", "end") if key not in emotion[0]]
    if missing:
        raise InputError(f"no {' and no '.join(missing)} in the interval")
    start, end, label = (emotion[0][key] for key in ("start", "end", "emo"))
    if not is_seconds(start) or not is_seconds(end):
        raise InputError(f"interval from {start!r} to {end!r} is not in seconds")
    if label not in LABELS:
        raise InputError(f"unknown emotion {label!r}, not one of {', '.join(LABELS)}")
    return start, end, label


def _describe(utterances, emotions):
    """Describe (str) the number of utterances and speakers, compared with the full release."""
    found = Counter(utterance.emotion for utterance in utterances)
    counts = ", ".join(f"{found[emotion]} {emotion}" for emotion in emotions)
    speakers = len({utterance.speaker for utterance in utterances} - {"unknown"})
    return (
        f"ZED: {len(utterances)} utterances ({counts}), the full release has {FULL_UTTERANCES}; "
        f"{speakers} speakers named, it has {FULL_SPEAKERS}"
    )
