"""Prepare RAVDESS: manifests split by actor, so that no voice is in two splits.

The corpus is read anew each time, so a manifest is never staler than its corpus. Source:
Livingstone & Russo (2018), PLoS ONE 13(5): e0196391, https://zenodo.org/record/1188976
(CC BY-NC-SA 4.0), ``Audio_Speech_Actors_01-24.zip``.
"""

import re
from collections import Counter
from pathlib import Path

from speechbrain.utils.logger import get_logger

from ent_brain.emotions import EMOTIONS
from ent_brain.errors import InputError, raise_problems
from ent_brain.manifest import Utterance, check_utterances, save_manifests

logger = get_logger(__name__)

ACTORS = range(1, 25)
CALM = "02"
CODES = {"01": "neutral", "03": "happy", "04": "sad", "05": "angry"}
STATEMENTS = {"01": "Kids are talking by the door", "02": "Dogs are sitting by the door"}
AUDIO_ONLY, SPEECH = "03", "01"
# 2 statements, 2 repetitions, 2 intensities but for neutral speech, which has one.
FULL_CALM = 8
FULL_PER_ACTOR = 4 + FULL_CALM + 3 * 8

# modality-vocal channel-emotion-intensity-statement-repetition-actor
NAME = re.compile(r"(0[1-3])-(0[12])-(0[1-8])-0[12]-(0[12])-0[12]-(\d\d)")


def prepare_ravdess(
    data_folder,
    save_folder,
    test_actors=(19, 20, 21, 22, 23, 24),
    valid_actors=(17, 18),
    calm_as_neutral=True,
):
    """Write the manifests of RAVDESS's happy, angry, sad and neutral speech.

    Arguments
    ---------
    data_folder : str or Path
        The folder with ``Actor_01`` to ``Actor_24``; what ``{data_root}`` stands for.
    save_folder : str or Path
        Where the manifests go. Give every combination of the other arguments its own.
    test_actors, valid_actors : sequence of int
        Actors of ``test`` and ``valid``; ``train`` gets the others.
    calm_as_neutral : bool
        Whether calm speech is neutral speech; if not, it is left out.

    Returns
    -------
    dict[str, Path]
        Manifests of ``train``, ``valid`` and ``test``.

    Raises
    ------
    InputError
        If the corpus is incomplete or an argument is impossible; nothing is written then.

    Example
    -------
    >>> prepare_ravdess("Audio_Speech_Actors_01-24", "save")  # doctest: +SKIP
    """
    actors = _split_actors(test_actors, valid_actors)
    data_folder = Path(data_folder)
    if not any((data_folder / f"Actor_{actor:02}").is_dir() for actor in ACTORS):
        raise InputError(
            f"{data_folder}: no folders Actor_01 to Actor_24 in it: "
            "set data_folder to the folder of Audio_Speech_Actors_01-24.zip, unpacked"
        )
    emotions = {**CODES, CALM: "neutral"} if calm_as_neutral else CODES
    drafts, problems = [], []
    for actor in ACTORS:
        folder = data_folder / f"Actor_{actor:02}"
        if folder.is_dir():
            drafts += _read_actor(folder, emotions, problems)
        elif actor not in actors["train"]:
            problems.append(f"no folder {folder}")
    utterances = check_utterances(drafts, data_folder, problems)
    splits = {}
    for split, members in actors.items():
        speakers = {f"Actor_{actor:02}" for actor in members}
        splits[split] = [u for u in utterances if u.speaker in speakers]
        found = Counter(utterance.emotion for utterance in splits[split])
        counts = ", ".join(f"{found[emotion]} {emotion}" for emotion in EMOTIONS)
        full = len(members) * (FULL_PER_ACTOR if calm_as_neutral else FULL_PER_ACTOR - FULL_CALM)
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


def _read_actor(folder, emotions, problems):
    """Return the actor's utterances of the codes in ``emotions``; note what is wrong."""
    utterances = []
    # Sorted, as the order of a folder differs between machines; macOS leaves "._*" files.
    for wav in sorted(folder.glob("[!.]*")):
        if wav.suffix not in (".wav", ".flac"):
            continue
        match = NAME.fullmatch(wav.stem)
        if not match or folder.name != f"Actor_{match[5]}":
            problems.append(f"{wav}: not named as a recording of {folder.name}")
            continue
        modality, channel, code, statement, _ = match.groups()
        if (modality, channel) == (AUDIO_ONLY, SPEECH) and code in emotions:
            utterances.append(
                Utterance(wav.stem, wav, STATEMENTS[statement], emotions[code], folder.name)
            )
    return utterances
