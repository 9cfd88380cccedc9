"""Prepare IEMOCAP: manifests of one fold, or of all sessions, from the corpus as it is released.

The corpus is read anew each time, so a manifest is never staler than its corpus.
Licence form and download: https://sail.usc.edu/iemocap/iemocap_release.htm
"""

import re
from collections import Counter, defaultdict
from pathlib import Path

from speechbrain.utils.logger import get_logger

from ent_brain.emotions import EMOTIONS
from ent_brain.errors import InputError
from ent_brain.manifest import Utterance, check_utterances, hold_out, read_text, save_manifests

logger = get_logger(__name__)

SESSIONS = range(1, 6)
RELEASE = "IEMOCAP_full_release"
LABELS = {"hap": "happy", "exc": "happy", "ang": "angry", "sad": "sad", "neu": "neutral"}
OTHER_LABELS = {"dis", "fea", "fru", "oth", "sur", "xxx"}

FULL_SESSIONS = (1085, 1023, 1151, 1031, 1241)
FULL_EMOTIONS = (1636, 1103, 1084, 1708)  # in the order of EMOTIONS

# [6.2901 - 8.2357]	Ses01F_impro01_F000	neu	[2.5000, 2.5000, 2.5000]
EVALUATION = re.compile(r"\[[\d. ]+-[\d. ]+\]\s+(Ses0(\d)\w+_([FM])[^\W_]+)\s+(\w+)\s+\[.*\]\s*")
# Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.
TRANSCRIPT = re.compile(r"(Ses0\d\w+)\s+\[[\d. ]+-[\d. ]+\]\s*:(.*)")


def prepare_iemocap(
    data_folder,
    save_folder,
    test_session=None,
    valid_share=0.1,
    seed=42,
    max_train_seconds=None,
):
    """Write the manifests of IEMOCAP's four classes.

    Arguments
    ---------
    data_folder : str or Path
        ``IEMOCAP_full_release`` or the folder it lies in; what ``{data_root}`` stands for.
    save_folder : str or Path
        Where the manifests go. Give every combination of the other arguments its own.
    test_session : int, optional
        1 to 5, left out of training as ``test``; None trains on all sessions.
    valid_share : float
        Share of each training speaker's utterances of each emotion that ``valid`` gets.
    seed : int
        Of the choice of those utterances.
    max_train_seconds : float, optional
        Utterances this long or longer are left out of ``train``, never of ``valid`` or ``test``
        (18.75 in the published code).

    Returns
    -------
    dict[str, Path]
        Manifests of ``train`` and ``valid``, and of ``test`` where there is a test session.

    Raises
    ------
    InputError
        If the corpus is incomplete or an argument is impossible; nothing is written then.

    Example
    -------
    >>> prepare_iemocap("IEMOCAP_full_release", "save", test_session=5)  # doctest: +SKIP
    """
    if test_session is not None and test_session not in SESSIONS:
        raise InputError(f"test_session {test_session}: choose 1 to 5, or none for no test session")
    data_folder = Path(data_folder)
    release = _find_release(data_folder)
    problems = []
    sessions = {k: _read_session(release / f"Session{k}", k, problems) for k in SESSIONS}
    drafts = [utterance for utterances in sessions.values() for utterance in utterances]
    checked = {utterance.id: utterance for utterance in check_utterances(drafts, release, problems)}
    sessions = {k: [checked[draft.id] for draft in sessions[k]] for k in SESSIONS}
    logger.info(f"IEMOCAP at {release}\n{_count_table(sessions)}")

    splits = {}
    if test_session is not None:
        splits["test"] = sessions.pop(test_session)
    train, valid = hold_out(sum(sessions.values(), []), valid_share, seed)
    if max_train_seconds is not None:
        before = len(train)
        train = [u for u in train if u.samples < max_train_seconds * u.sample_rate]
        logger.info(
            f"{before - len(train)} utterances of {max_train_seconds} s or more left out of train"
        )
    return save_manifests(save_folder, {"train": train, "valid": valid, **splits}, data_folder)


def _find_release(data_folder):
    for folder in (data_folder, data_folder / RELEASE):
        if any((folder / f"Session{k}").is_dir() for k in SESSIONS):
            return folder
    raise InputError(
        f"{data_folder}: neither it nor {RELEASE} in it has folders Session1 to Session5: "
        f"set data_folder to {RELEASE} or to the folder it lies in"
    )


def _read_session(folder, session, problems):
    """Return the session's utterances of the four classes; add what is wrong to ``problems``."""
    dialog = folder / "dialog"
    missing = [
        part
        for part in (dialog / "EmoEvaluation", dialog / "transcriptions", folder / "sentences/wav")
        if not part.is_dir()
    ]
    if missing:
        missing = missing if folder.is_dir() else [folder]
        problems += [f"no folder {part}" for part in missing]
        return []
    transcripts = _read_transcripts(dialog / "transcriptions")
    utterances = []
    left_out = Counter()
    # Not recursive, and no file whose name starts with a dot: the subfolders hold single
    # evaluators' files, and macOS left binary "._Ses*.txt" beside the real ones.
    paths = sorted((dialog / "EmoEvaluation").glob("Ses*.txt"))
    if not paths:
        problems.append(f"no Ses*.txt in {dialog / 'EmoEvaluation'}")
    for path in paths:
        for name, speaker, label in _read_evaluation(path, session, problems):
            if label not in LABELS:
                left_out[label] += 1
                continue
            wav = folder / "sentences" / "wav" / name.rpartition("_")[0] / f"{name}.wav"
            texts = transcripts.get(name, [None])
            if len(set(texts)) > 1:
                problems.append(f"{name}: {len(texts)} transcripts")
            utterances.append(Utterance(name, wav, texts[0], LABELS[label], speaker))
    counts = ", ".join(f"{count:,} {label}" for label, count in left_out.most_common())
    logger.info(f"{folder.name}: other labels, left out: {counts or 'none'}")
    return utterances


def _read_evaluation(path, session, problems):
    """Return (utterance id, speaker, label) of each utterance line of an evaluation file."""
    found = []
    for number, line in enumerate(read_text(path, "restore the file").split("\n"), 1):
        line = line.strip()
        # The header, single evaluators and blank lines name no utterance.
        if not line.startswith("[") and "Ses0" not in line:
            continue
        match = EVALUATION.fullmatch(line)
        if not match or int(match[2]) != session:
            problems.append(f"{path} line {number}: not an utterance of Session{session}")
            continue
        name, _, letter, label = match.groups()
        if label not in LABELS and label not in OTHER_LABELS:
            problems.append(f"{path} line {number}: unknown label {label!r}")
        # The letter in the dialog's name says who wore the markers, not who speaks.
        found.append((name, f"Ses0{session}{letter}", label))
    if not found:
        problems.append(f"{path}: no utterance line")
    return found


def _read_transcripts(folder):
    """Return the texts of each utterance id; lines without an id are passed over."""
    transcripts = defaultdict(list)
    for path in sorted(folder.glob("Ses*.txt")):
        for line in read_text(path, "restore the file").split("\n"):
            if match := TRANSCRIPT.fullmatch(line.strip()):
                transcripts[match[1]].append(match[2])
    return transcripts


def _count_table(sessions):
    """Count utterances per session and emotion beside the full release's (str, with a verdict)."""
    rows = {f"Session{k}": Counter(u.emotion for u in sessions[k]) for k in SESSIONS}
    rows["all"] = sum(rows.values(), Counter())
    full = {f"Session{k}": count for k, count in zip(SESSIONS, FULL_SESSIONS, strict=True)}
    full["all"] = sum(FULL_SESSIONS)
    full_emotions = dict(zip(EMOTIONS, FULL_EMOTIONS, strict=True))

    cells = [["", *EMOTIONS, "all", "full release"]]
    for name, row in rows.items():
        counts = [*(row[emotion] for emotion in EMOTIONS), row.total(), full[name]]
        cells.append([name, *(f"{count:,}" for count in counts)])
    cells.append(
        ["full release", *(f"{count:,}" for count in FULL_EMOTIONS), "", f"{full['all']:,}"]
    )
    lines = [
        f"{row[0]:<12}" + "".join(f"{cell:>9}" for cell in row[1:-1]) + f"{row[-1]:>14}"
        for row in cells
    ]

    found = {**{name: row.total() for name, row in rows.items()}, **rows["all"]}
    differing = [
        f"{name} has {found.get(name, 0):,} of {count:,} utterances"
        for name, count in (full | full_emotions).items()
        if found.get(name, 0) != count
    ]
    verdict = f"this is not the full release: {', '.join(differing)}"
    return "\n".join([*lines, verdict if differing else "this is the full release"])
