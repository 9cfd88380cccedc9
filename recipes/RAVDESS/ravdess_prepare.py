"""Prepare RAVDESS: manifests split by actor, so that no voice is in two splits.

The corpus is read each time, so the manifests always match it. Source:
Livingstone & Russo (2018), PLoS ONE 13(5): e0196391, https://zenodo.org/record/1188976
(CC BY-NC-SA 4.0), ``Audio_Speech_Actors_01-24.zip``.
"""

import re
from collections import Counter
from pathlib import Path

from speechbrain.utils.logger import get_logger

from ent_brain.audio import ENDINGS
from ent_brain.emotions import check_label_map, describe_label_map
from ent_brain.errors import InputError, raise_problems
from ent_brain.manifest import Utterance, check_utterances, save_manifests

logger = get_logger(__name__)

ACTORS = range(1, 25)
LABELS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
"""Emotions of the codes 01 to 08."""

STATEMENTS = {"01": "Kids are talking by the door", "02": "Dogs are sitting by the door"}
AUDIO_ONLY, SPEECH = "03", "01"
# 2 statements, 2 repetitions, and 2 intensities (1 for neutral speech).
FULL_PER_ACTOR = {label: 4 if label == "neutral" else 8 for label in LABELS}

# modality-vocal channel-emotion-intensity-statement-repetition-actor
NAME = re.compile(r"(0[1-3])-(0[12])-(0[1-8])-0[12]-(0[12])-0[12]-([01]\d|2[0-4])")
# Actor_01 in the release; some copies have Actor_1.
FOLDER = re.compile(r"actor[-_ ]?0*([1-9]\d?)", re.IGNORECASE)


def prepare_ravdess(
    data_folder,
    save_folder,
    emotions,
    label_map,
    normalize,
    test_actors=(19, 20, 21, 22, 23, 24),
    valid_actors=(17, 18),
):
    """Write the manifests of RAVDESS's speech.

    Arguments
    ---------
    data_folder : str or Path
        The folder with ``Actor_01`` to ``Actor_24``, or its parent, or a folder of all recordings;
        ``{data_root}`` stands for it. Recordings may have any extension in ``audio.ENDINGS``.
    save_folder : str or Path
        Folder of the manifests. Use one per combination of the other arguments.
    emotions : EmotionSet
    label_map : dict[str, str]
        From the corpus's labels (``LABELS``) to names of ``emotions``. Utterances with other labels
        are skipped.
    normalize : callable
        The recipe's normalisation of transcripts.
    test_actors, valid_actors : sequence of int
        Actors of ``test`` and ``valid``; ``train`` gets the others.

    Returns
    -------
    dict[str, Path]
        Manifests of ``train``, ``valid`` and ``test``.

    Raises
    ------
    InputError
        If the corpus is incomplete or an argument is impossible. Nothing is written then.

    Example
    -------
    >>> label_map = {"calm": "neutral", "neutral": "neutral", "happy": "happy"}
    >>> prepare_ravdess(
    ...     "Audio_Speech_Actors_01-24", "save", PUBLISHED, label_map, normalize_transcript
    ... )  # doctest: +SKIP
    """
    label_map = check_label_map(label_map, "RAVDESS", LABELS, emotions)
    actors = _split_actors(test_actors, valid_actors)
    data_folder = Path(data_folder)
    problems = []
    recordings = _find_recordings(data_folder, problems)
    present = {actor for _, _, actor, _ in recordings}
    absent = [f"Actor_{actor:02}" for actor in actors["train"] if actor not in present]
    if absent and recordings:
        logger.warning(
            f"{data_folder}: no recordings of {', '.join(absent)}. Training continues without."
        )
    problems += [
        f"{data_folder}: no recordings of Actor_{actor:02}, whom {split}_actors names"
        for split in ("valid", "test")
        for actor in actors[split]
        if actor not in present
    ]
    drafts = [
        Utterance(wav.stem, wav, STATEMENTS[statement], label_map[label], f"Actor_{actor:02}")
        for wav, label, actor, statement in recordings
        if label in label_map
    ]
    utterances = check_utterances(drafts, data_folder, problems, emotions, normalize)
    left_out = Counter(label for _, label, _, _ in recordings if label not in label_map)
    counts = ", ".join(f"{count} {label}" for label, count in left_out.most_common())
    made_of = describe_label_map(label_map, emotions)
    logger.info(f"RAVDESS's labels: {made_of}; left out: {counts or 'none'}")
    full_per_actor = sum(FULL_PER_ACTOR[label] for label in label_map)
    splits = {}
    for split, members in actors.items():
        speakers = {f"Actor_{actor:02}" for actor in members}
        splits[split] = [u for u in utterances if u.speaker in speakers]
        found = Counter(utterance.emotion for utterance in splits[split])
        counts = ", ".join(f"{found[emotion]} {emotion}" for emotion in emotions)
        full = len(members) * full_per_actor
        logger.info(f"{split}: {found.total()} of the full release's {full} utterances ({counts})")
    return save_manifests(save_folder, splits, data_folder)


def _split_actors(test_actors, valid_actors):
    """Return the actors of each split (dict[str, list[int]])."""
    if not all(isinstance(chosen, list | tuple) for chosen in (test_actors, valid_actors)):
        raise InputError(
            f"test_actors {test_actors}, valid_actors {valid_actors}: give lists, as [19, 20]"
        )
    chosen = Counter([*test_actors, *valid_actors])
    problems = [f"actor {actor} is not one of 1 to 24" for actor in chosen if actor not in ACTORS]
    problems += [f"actor {actor} is named {n} times" for actor, n in chosen.items() if n > 1]
    raise_problems(problems, "correct test_actors and valid_actors")
    train = [actor for actor in ACTORS if actor not in chosen]
    return {"train": train, "valid": list(valid_actors), "test": list(test_actors)}


def _find_recordings(data_folder, problems):
    """Return path, label, actor (int) and statement code of each audio-only speech recording."""
    found = []
    folders = _find_folders(data_folder)
    for folder in folders:
        named = FOLDER.fullmatch(folder.name)
        for wav in _sound_files(folder):
            match = NAME.fullmatch(wav.stem)
            if not match or (named and int(named[1]) != int(match[5])):
                whose = folder.name if named else "RAVDESS"
                problems.append(f"{wav}: not named as a recording of {whose}")
                continue
            modality, channel, code, statement, actor = match.groups()
            if (modality, channel) == (AUDIO_ONLY, SPEECH):
                found.append((wav, LABELS[int(code) - 1], int(actor), statement))
    if not found and not problems:
        raise InputError(
            f"{data_folder}: "
            + ("no speech" if folders else "no folders Actor_01 to Actor_24")
            + " in it: set data_folder to the folder of Audio_Speech_Actors_01-24.zip, unpacked, "
            "or of its recordings, with their names, in any format of sound"
        )
    return found


def _find_folders(data_folder):
    """Return the actors' folders, here or one level deeper, or else folders with recordings."""
    deeper = sorted(path for path in data_folder.glob("[!.]*") if path.is_dir())
    for parents in ([data_folder], deeper):
        inside = [path for parent in parents for path in sorted(parent.glob("[!.]*"))]
        folders = [path for path in inside if path.is_dir() and FOLDER.fullmatch(path.name)]
        if folders:
            return folders
    return [
        folder
        for folder in (data_folder, *deeper)
        if any(NAME.fullmatch(path.stem) for path in _sound_files(folder))
    ]


def _sound_files(folder):
    # Sorted, because the order in a folder differs between machines; without macOS's "._*" files.
    return [path for path in sorted(folder.glob("[!.]*")) if path.suffix.lower() in ENDINGS]
