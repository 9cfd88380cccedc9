"""Prepare LibriSpeech: manifests with transcripts and without emotions, split by speaker.

The corpus is read anew each time, so the manifests always match it. Source: Panayotov et al.
(2015), ICASSP, https://www.openslr.org/12 (CC BY 4.0); ``train-clean-5`` is a part of Mini
LibriSpeech, https://www.openslr.org/31.
"""

import dataclasses
import os
import random
from collections import Counter, defaultdict
from pathlib import Path

from speechbrain.utils.logger import get_logger

from ent_brain.audio import ENDINGS
from ent_brain.errors import SHOWN_PROBLEMS, InputError, raise_problems
from ent_brain.files import read_text
from ent_brain.manifest import Utterance, check_utterances, save_manifests

logger = get_logger(__name__)

MANIFEST = "librispeech_{}"
"""Name of a split's manifest. Other recipes have their own manifests in the same folder."""

TRANSCRIPTS = ".trans.txt"
"""Ending of the file with the transcripts of a chapter."""

OFFICIAL = {
    "dev-clean": 2703,
    "dev-other": 2864,
    "test-clean": 2620,
    "test-other": 2939,
    "train-clean-5": 1519,
    "train-clean-100": 28539,
    "train-clean-360": 104014,
    "train-other-500": 148688,
}
"""Number of utterances in each published part."""

PREFERRED = (".flac", ".wav")
"""Preferred extensions, in this order, if an utterance exists in several formats."""


def prepare_librispeech(
    data_folder,
    save_folder,
    emotions,
    normalize,
    train_parts=("train-clean-5",),
    valid_parts=(),
    test_parts=("test-clean",),
    valid_speakers=0.1,
    seed=42,
    neutral_share=0.0,
):
    """Write the manifests of parts of LibriSpeech, without a speaker in two of them.

    Arguments
    ---------
    data_folder : str or Path
        The folder ``LibriSpeech`` or its parent; ``{data_root}`` stands for it. The audio may be
        FLAC or any format in ``ent_brain.audio.ENDINGS``, with the same names.
    save_folder : str or Path
        Folder of the manifests: ``librispeech_train.json`` and so on.
    emotions : EmotionSet
        The recipe's labels. LibriSpeech itself has none.
    normalize : callable
        The recipe's normalisation of transcripts, from ``ent_brain.tokens.NORMALIZATIONS``.
    train_parts, valid_parts, test_parts : sequence of str
        Parts of each split. Without ``test_parts``, there is no test manifest.
    valid_speakers : float or sequence of int
        Training speakers to hold out for validation if ``valid_parts`` is empty: a share above 0
        and below 1, or a list of speakers. If ``SPEAKERS.TXT`` exists, the share applies to each
        sex. With an empty list, there is no validation manifest.
    seed : int
        Seed of the choice of validation speakers.
    neutral_share : float
        Share of each training speaker's utterances that get the neutral label, as read speech is
        mostly neutral. The others have no emotion.

    Returns
    -------
    dict[str, Path]
        Manifests by split: ``train``, ``valid`` and ``test``.

    Raises
    ------
    InputError
        If a part is missing or incomplete, two parts share a speaker, or an argument is
        impossible. Nothing is written then.

    Example
    -------
    >>> from ent_brain.emotions import PUBLISHED
    >>> from ent_brain.tokens import normalize_transcript
    >>> prepare_librispeech(
    ...     "LibriSpeech", "save", PUBLISHED, normalize_transcript, valid_speakers=[1088, 118]
    ... )  # doctest: +SKIP
    """
    parts = _check_parts(train_parts, valid_parts, test_parts)
    data_folder = Path(data_folder)
    root = _find_root(data_folder, parts)
    problems = []
    drafts = {part: _read_part(root / part, problems) for part in parts}
    # Reported before the audio is read, which takes minutes for the large parts.
    raise_problems(problems, f"correct {root}, or unpack the part's archive again")
    speakers = {part: {draft.speaker for draft in drafts[part]} for part in parts}
    _check_speakers(speakers)
    held_out = set()
    if not valid_parts:
        training = set().union(*(speakers[part] for part in train_parts))
        held_out = _hold_out_speakers(training, valid_speakers, root / "SPEAKERS.TXT", seed)

    everything = [draft for part in parts for draft in drafts[part]]
    utterances = check_utterances(everything, data_folder, (), emotions, normalize)
    splits = {"train": [], "valid": [], "test": []}
    for utterance in utterances:
        split = parts[utterance.wav.relative_to(root).parts[0]]
        splits["valid" if utterance.speaker in held_out else split].append(utterance)
    if neutral_share:
        splits["train"] = _label_neutral(splits["train"], neutral_share, emotions)
    splits = {split: members for split, members in splits.items() if members}
    for part in parts:
        if part in OFFICIAL:
            published = f"{OFFICIAL[part]:,} utterances of the published part"
            logger.info(f"{part}: {len(drafts[part]):,} of the {published}")
    for split, members in splits.items():
        hours = sum(utterance.duration for utterance in members) / 3600
        count = len({utterance.speaker for utterance in members})
        logger.info(f"{split}: {hours:.2f} h, {count} speakers, {len(members):,} utterances")
    named = {MANIFEST.format(split): members for split, members in splits.items()}
    paths = save_manifests(save_folder, named, data_folder)
    return dict(zip(splits, paths.values(), strict=True))


def prepare_corpora(recipe, data_folder):
    """Prepare LibriSpeech by a recipe's keys, as corpora for its training and tests.

    Arguments
    ---------
    recipe : Recipe
    data_folder : str or Path

    Returns
    -------
    dict[str, dict[str, tuple]]
        For each split, by the corpus's name: the manifest and ``data_folder``, for
        ``recipe.train_and_test``. The test set is named after its parts.
    """
    keys = ("train_parts", "valid_parts", "test_parts", "valid_speakers", "seed")
    manifests = prepare_librispeech(
        data_folder,
        recipe["save_folder"],
        recipe.emotions,
        recipe.normalize,
        **{key: recipe[key] for key in keys},
        neutral_share=recipe.get("neutral_share", 0.0),
    )
    names = {"test": " ".join(recipe["test_parts"])}
    return {
        split: {names.get(split, "LibriSpeech"): (path, data_folder)}
        for split, path in manifests.items()
    }


def _label_neutral(utterances, share, emotions):
    """Give a share of each speaker's utterances the neutral label (list[Utterance])."""
    if emotions.neutral is None:
        raise InputError(
            "neutral_share: the labels have no neutral: name it, or set the share to 0"
        )
    labelled, seen = [], Counter()
    for utterance in utterances:
        seen[utterance.speaker] += 1
        count = seen[utterance.speaker]
        if int(count * share) > int((count - 1) * share):
            utterance = dataclasses.replace(utterance, emotion=emotions.neutral)
        labelled.append(utterance)
    return labelled


def _check_parts(train_parts, valid_parts, test_parts):
    """Return the split of each part (dict[str, str])."""
    named = {"train": train_parts, "valid": valid_parts, "test": test_parts}
    for split, parts in named.items():
        if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
            raise InputError(f"{split}_parts {parts}: give a list, as [train-clean-5]")
    if not train_parts:
        raise InputError("train_parts is empty: name one part or more, as [train-clean-5]")
    uses = Counter(part for parts in named.values() for part in parts)
    problems = [f"part {part} is named {n} times" for part, n in uses.items() if n > 1]
    raise_problems(problems, "name it once in train_parts, valid_parts and test_parts")
    return {part: split for split, parts in named.items() for part in parts}


def _find_root(data_folder, parts):
    """Return the folder of the parts; all of them must exist."""
    below = data_folder / "LibriSpeech"
    root = below if below.is_dir() else data_folder
    if not root.is_dir():
        raise InputError(f"{root}: no such folder: set data_folder to the folder LibriSpeech")
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    missing = [part for part in parts if root / part not in folders]
    if not missing:
        return root
    no_part = f"{root}: no part {', '.join(missing)}"
    others = [folder.name for folder in folders if _contains(folder, f"*/*/*{TRANSCRIPTS}")]
    if others:
        raise InputError(f"{no_part}, only {', '.join(others)}: name these, or download the others")
    if _contains(root, f"*/*/*{TRANSCRIPTS}"):
        raise InputError(
            f"{no_part}; it looks like a part itself: set data_folder to {root.parent}"
        )
    raise InputError(f"{no_part}, nor another one: set data_folder to the folder LibriSpeech")


def _contains(folder, pattern):
    return next(folder.glob(pattern), None) is not None


def _read_part(folder, problems):
    """Return the part's utterances; append errors to ``problems``."""
    audio, texts = defaultdict(list), {}
    misplaced = []
    for path in _files(folder):
        is_audio = path.suffix.lower() in ENDINGS
        if not is_audio and not path.name.endswith(TRANSCRIPTS):
            continue
        name = path.stem if is_audio else path.name.removesuffix(TRANSCRIPTS)
        chapter, _, number = name.rpartition("-") if is_audio else (name, "", "0")
        # <part>/<speaker>/<chapter>/<speaker>-<chapter>: the names must repeat the folders.
        here = path.relative_to(folder).parts[:-1]
        if len(here) != 2 or "-".join(here) != chapter or not number.isdecimal():
            misplaced.append(str(path))
        elif is_audio:
            audio[name].append(path)
        else:
            _read_transcripts(path, chapter, texts, problems)
    lists = {
        "files not named after their folders <speaker>/<chapter>": misplaced,
        "transcripts without audio": sorted(texts.keys() - audio.keys()),
        "audio files without transcript": sorted(audio.keys() - texts.keys()),
    }
    for kind, found in lists.items():
        if found:
            more = ", ..." if len(found) > SHOWN_PROBLEMS else ""
            shown = ", ".join(found[:SHOWN_PROBLEMS])
            problems.append(f"{folder}: {kind}: {len(found)} ({shown}{more})")
    if not (texts or any(lists.values())):
        problems.append(f"{folder}: no utterance in it")
    return [
        Utterance(name, min(audio[name], key=_preference), text, None, name.partition("-")[0])
        for name, text in sorted(texts.items())
        if name in audio
    ]


def _files(folder):
    """Files in a folder and its subfolders, following links, without macOS's ``._`` files."""
    return [
        Path(inside, name)
        for inside, _, names in os.walk(folder, followlinks=True)
        for name in names
        if not name.startswith(".")
    ]


def _preference(path):
    """Sort key of the files of one utterance."""
    suffix = path.suffix.lower()
    return PREFERRED.index(suffix) if suffix in PREFERRED else len(PREFERRED), path.name


def _read_transcripts(path, chapter, texts, problems):
    """Add a chapter's transcripts to ``texts`` (dict[str, str]); append errors to ``problems``."""
    lines = read_text(path, "unpack the part's archive again").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, *rest = line.split(maxsplit=1)
        where = f"{path}, line {number}"
        if not name.startswith(f"{chapter}-"):
            problems.append(f"{where}: {name!r} is no utterance of {chapter}")
        elif name in texts:
            problems.append(f"{where}: {name} is there twice")
        else:
            if not rest:
                problems.append(f"{where}: no text after {name}")
            texts[name] = "".join(rest)


def _check_speakers(speakers):
    """Refuse parts (dict[str, set[str]]) that share speakers, such as train-clean-5 and -100."""
    problems, parts = [], list(speakers)
    for index, part in enumerate(parts):
        for other in parts[index + 1 :]:
            shared = sorted(speakers[part] & speakers[other], key=_by_number)
            if shared:
                more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
                problems.append(f"speaker {shared[0]}{more} in both {part} and {other}")
    raise_problems(problems, "leave one of the parts out of train_parts, valid_parts, test_parts")


def _hold_out_speakers(speakers, valid_speakers, speakers_file, seed):
    """Choose validation speakers among training speakers (set[str])."""
    if isinstance(valid_speakers, list | tuple):
        chosen = {str(speaker) for speaker in valid_speakers}
        problems = [f"speaker {name} is not in train_parts" for name in sorted(chosen - speakers)]
        raise_problems(problems, "correct valid_speakers")
    elif isinstance(valid_speakers, float) and 0 < valid_speakers < 1:
        chosen = _draw(speakers, valid_speakers, _read_sexes(speakers_file), seed)
    else:
        raise InputError(
            f"valid_speakers {valid_speakers!r}: give a share above 0 and below 1, or a list of "
            "speakers, as [1088, 118]"
        )
    left = len(speakers) - len(chosen)
    if not left or (valid_speakers and not chosen):
        raise InputError(
            f"valid_speakers {valid_speakers}: of {len(speakers)} speakers {len(chosen)} are for "
            f"validation and {left} for training: choose others, or another share"
        )
    return chosen


def _draw(speakers, share, sexes, seed):
    """Draw a share of the speakers of each sex."""
    groups = defaultdict(list)
    for speaker in sorted(speakers, key=_by_number):
        groups[sexes.get(speaker, "")].append(speaker)
    chosen, seen = set(), 0
    for sex, group in sorted(groups.items()):
        # Rounding the running total, not each group, keeps the overall share right.
        count = int(share * (seen + len(group)) + 0.5) - int(share * seen + 0.5)
        seen += len(group)
        chosen.update(random.Random(f"{seed} {sex}").sample(group, count))
    return chosen


def _by_number(speaker):
    return int(speaker) if speaker.isdecimal() else 0, speaker


def _read_sexes(path):
    """Read the sex of each speaker (dict[str, str]) from SPEAKERS.TXT; empty without it."""
    if not path.is_file():
        logger.info(f"no {path}: validation speakers are drawn without regard to their sex")
        return {}
    lines = read_text(path, "replace it, or remove it").splitlines()
    rows = [line.split("|") for line in lines if not line.startswith(";")]
    return {row[0].strip(): row[1].strip() for row in rows if len(row) > 1}
