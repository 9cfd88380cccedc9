"""Prepare IEMOCAP: manifests of one fold, or of all sessions, from the released corpus.

The corpus is read each time, so the manifests always match it.
Licence form and download: https://sail.usc.edu/iemocap/iemocap_release.htm
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from speechbrain.utils.logger import get_logger

from ent_brain.audio import DURATION_TOLERANCE, find_audio
from ent_brain.emotions import check_label_map, describe_label_map
from ent_brain.errors import InputError, raise_problems
from ent_brain.files import read_text
from ent_brain.manifest import Utterance, check_utterances, hold_out, save_manifests

logger = get_logger(__name__)

SESSIONS = range(1, 6)
RELEASE = "IEMOCAP_full_release"
LABELS = ("hap", "exc", "ang", "sad", "neu", "fru", "dis", "fea", "sur", "oth", "xxx")

# Counts in the full release: utterances with the labels of each group, and utterances of each
# session with any of these labels.
FULL_LABELS = {("hap", "exc"): 1636, ("ang",): 1103, ("sad",): 1084, ("neu",): 1708}
FULL_SESSIONS = (1085, 1023, 1151, 1031, 1241)

LENGTH_TOLERANCE = 1.0
"""Seconds by which a recording may differ from its evaluation, because copies are cut differently.
"""

LENGTH_TOLERANCE_SHARE = 0.5
"""Share of the evaluation's length by which a recording may differ. A whole dialog exceeds it."""

# [6.2901 - 8.2357]	Ses01F_impro01_F000	neu	[2.5000, 2.5000, 2.5000]
SECONDS = r"\s*(\d*\.?\d+)\s*"
EVALUATION = re.compile(
    rf"\[{SECONDS}-{SECONDS}\]\s+(Ses0(\d)\w+_([FM])[^\W_]+)\s+(\w+)\s+\[.*\]\s*"
)
# Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.
TRANSCRIPT = re.compile(r"(Ses0\d\w+)\s+\[[\d. ]+-[\d. ]+\]\s*:(.*)")


@dataclass
class Session:
    """Utterances and labels of a session."""

    utterances: list[Utterance] = field(default_factory=list)  # with mapped labels
    labels: Counter = field(default_factory=Counter)  # counts over all utterances
    seconds: dict[str, float] = field(default_factory=dict)  # of each utterance in the evaluation


def prepare_iemocap(
    data_folder,
    save_folder,
    emotions,
    label_map,
    normalize,
    test_session=None,
    valid_share=0.1,
    seed=42,
    max_train_seconds=None,
):
    """Write the manifests of IEMOCAP.

    Arguments
    ---------
    data_folder : str or Path
        ``IEMOCAP_full_release`` or its parent folder; ``{data_root}`` stands for it. Sessions may
        be missing, except the test session. Recordings may have any extension in
        ``audio.ENDINGS``.
    save_folder : str or Path
        Folder of the manifests. Use one per combination of the other arguments.
    emotions : EmotionSet
    label_map : dict[str, str]
        From the corpus's labels (``LABELS``) to names of ``emotions``. Utterances with other labels
        are skipped.
    normalize : callable
        The recipe's normalisation of transcripts.
    test_session : int, optional
        Session from 1 to 5 that becomes ``test``; None trains on all sessions.
    valid_share : float
        Share of the utterances of each training speaker and emotion that become ``valid``.
    seed : int
        Seed of the choice of these utterances.
    max_train_seconds : float, optional
        Utterances this long or longer are removed from ``train``, but not from ``valid`` or
        ``test`` (18.75 in the published code).

    Returns
    -------
    dict[str, Path]
        Manifests of ``train`` and ``valid``, and of ``test`` if there is a test session.

    Raises
    ------
    InputError
        If the corpus is incomplete or an argument is impossible. Nothing is written then.

    Example
    -------
    >>> label_map = {"hap": "happy", "exc": "happy", "ang": "angry", "sad": "sad", "neu": "neutral"}
    >>> prepare_iemocap(
    ...     "IEMOCAP_full_release", "save", PUBLISHED, label_map, normalize_transcript, 5
    ... )  # doctest: +SKIP
    """
    if test_session is not None and test_session not in SESSIONS:
        raise InputError(f"test_session {test_session}: choose 1 to 5, or none for no test session")
    label_map = check_label_map(label_map, "IEMOCAP", LABELS, emotions)
    data_folder = Path(data_folder)
    release = _find_release(data_folder)
    problems = []
    sessions = {
        k: _read_session(release / f"Session{k}", k, label_map, problems)
        for k in _find_sessions(release, test_session)
    }
    drafts = [utterance for session in sessions.values() for utterance in session.utterances]
    utterances = check_utterances(drafts, release, problems, emotions, normalize)
    _check_lengths(utterances, sessions)
    checked = {utterance.id: utterance for utterance in utterances}
    for session in sessions.values():
        session.utterances = [checked[draft.id] for draft in session.utterances]
    logger.info(f"IEMOCAP's labels: {_describe_labels(sessions, label_map, emotions)}")
    logger.info(f"IEMOCAP at {release}\n{_count_table(sessions, label_map, emotions)}")

    splits = {}
    if test_session is not None:
        splits["test"] = sessions.pop(test_session).utterances
    training = [utterance for session in sessions.values() for utterance in session.utterances]
    train, valid = hold_out(training, valid_share, seed)
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
        f"{data_folder}: neither it nor {RELEASE} in it has folders Session1 to Session5. "
        f"Set data_folder to {RELEASE} or to its parent folder."
    )


def _find_sessions(release, test_session):
    """Return the sessions (list[int]) that a copy of the release has."""
    present = [k for k in SESSIONS if (release / f"Session{k}").is_dir()]
    names = ", ".join(f"Session{k}" for k in present)
    if test_session is not None and test_session not in present:
        raise InputError(
            f"no folder {release}/Session{test_session}, the test session. Restore it, or set "
            f"test_session to an existing one ({names})."
        )
    if present == [test_session]:
        raise InputError(
            f"{release}: only has {names}, the test session, and no session to train on. Restore "
            "other sessions, or train without a test session (test_session: null)."
        )
    missing = ", ".join(f"Session{k}" for k in SESSIONS if k not in present)
    if missing:
        logger.warning(f"{release}: no {missing}. Training continues without.")
    return present


def _read_session(folder, number, label_map, problems):
    """Return a Session with the utterances of mapped labels; append errors to ``problems``."""
    session = Session()
    dialog = folder / "dialog"
    missing = [
        part
        for part in (dialog / "EmoEvaluation", dialog / "transcriptions", folder / "sentences/wav")
        if not part.is_dir()
    ]
    if missing:
        problems += [f"no folder {part}" for part in missing]
        return session
    transcripts = _read_transcripts(dialog / "transcriptions")
    # Not recursive, because subfolders contain the files of single evaluators. No hidden files,
    # because the release also has binary "._Ses*.txt" files of macOS.
    paths = sorted((dialog / "EmoEvaluation").glob("Ses*.txt"))
    if not paths:
        problems.append(f"no Ses*.txt in {dialog / 'EmoEvaluation'}")
    for path in paths:
        for name, speaker, label, seconds in _read_evaluation(path, number, problems):
            session.labels[label] += 1
            if label not in label_map:
                continue
            session.seconds[name] = seconds
            wav = folder / "sentences" / "wav" / name.rpartition("_")[0] / f"{name}.wav"
            texts = transcripts.get(name, [None])
            if texts == [None]:
                problems.append(f"{name}: no transcript")
            if len(set(texts)) > 1:
                problems.append(f"{name}: {len(texts)} transcripts")
            try:
                wav = find_audio(wav) or wav
            except InputError as error:
                problems.append(f"{name}: {error}")
            else:
                utterance = Utterance(name, wav, texts[0], label_map[label], speaker)
                session.utterances.append(utterance)
    return session


def _read_evaluation(path, session, problems):
    """Return (utterance id, speaker, label, seconds) of an evaluation file's utterance lines."""
    found = []
    for number, line in enumerate(read_text(path, "restore the file").split("\n"), 1):
        line = line.strip()
        # Skip the header, the lines of single evaluators, and blank lines.
        if not line.startswith("[") and "Ses0" not in line:
            continue
        match = EVALUATION.fullmatch(line)
        if not match or int(match[4]) != session:
            problems.append(f"{path} line {number}: not an utterance of Session{session}")
            continue
        start, end, name, _, letter, label = match.groups()
        if label not in LABELS:
            problems.append(f"{path} line {number}: unknown label {label!r}")
        # The letter in the dialog's name tells who wore the markers, not who speaks.
        found.append((name, f"Ses0{session}{letter}", label, float(end) - float(start)))
    if not found:
        problems.append(f"{path}: no utterance line")
    return found


def _read_transcripts(folder):
    """Return the texts of each utterance id; lines without an id are skipped."""
    transcripts = defaultdict(list)
    for path in sorted(folder.glob("Ses*.txt")):
        for line in read_text(path, "restore the file").split("\n"):
            if match := TRANSCRIPT.fullmatch(line.strip()):
                transcripts[match[1]].append(match[2])
    return transcripts


def _check_lengths(utterances, sessions):
    """Refuse recordings whose length differs from the evaluation, such as whole dialogs."""
    expected = {name: s for session in sessions.values() for name, s in session.seconds.items()}
    differences = {u.id: abs(u.duration - expected[u.id]) for u in utterances}
    problems = [
        f"{u.id}: {u.duration:.2f} s of audio, {expected[u.id]:.2f} s in the evaluation"
        for u in utterances
        if differences[u.id] > max(LENGTH_TOLERANCE, LENGTH_TOLERANCE_SHARE * expected[u.id])
    ]
    raise_problems(problems, "put one utterance, no whole dialog, into each file of sentences/wav")
    differing = sum(difference > DURATION_TOLERANCE for difference in differences.values())
    if differing:
        logger.warning(
            f"{differing} of {len(utterances)} recordings differ from the length in their "
            f"evaluation by more than {DURATION_TOLERANCE} s"
        )


def _describe_labels(sessions, label_map, emotions):
    """Describe (str) the labels of each emotion, and count the skipped utterances."""
    labels = sum((session.labels for session in sessions.values()), Counter())
    left_out = ", ".join(
        f"{count:,} {label}" for label, count in labels.most_common() if label not in label_map
    )
    return f"{describe_label_map(label_map, emotions)}; left out: {left_out or 'none'}"


def _count_table(sessions, label_map, emotions):
    """Compare the utterances per session and emotion with the full release (str)."""
    known = {label for group in FULL_LABELS for label in group}
    of_emotions = [
        FULL_LABELS.get(tuple(label for label in LABELS if label_map.get(label) == emotion))
        for emotion in emotions
    ]
    all_known = label_map.keys() == known
    full = dict(zip(SESSIONS, FULL_SESSIONS, strict=True))
    total = sum(FULL_SESSIONS) if all_known else None

    cells = [["", *emotions, "all", "full release"]]
    of_all = Counter()
    for k, session in sessions.items():
        row = Counter(utterance.emotion for utterance in session.utterances)
        of_all += row
        counts = [*(row[emotion] for emotion in emotions), row.total()]
        cells.append([f"Session{k}", *counts, full[k] if all_known else None])
    cells.append(["all", *(of_all[emotion] for emotion in emotions), of_all.total(), total])
    cells.append(["full release", *of_emotions, "", total])
    width = 1 + max(8, *map(len, emotions))
    lines = [
        f"{row[0]:<12}"
        + "".join(f"{_cell(value):>{width}}" for value in row[1:-1])
        + f"{_cell(row[-1]):>14}"
        for row in cells
    ]

    # The comparison uses the corpus's labels, not those of the recipe.
    found = {k: session.labels for k, session in sessions.items()}
    labels = sum(found.values(), Counter())
    compared = [
        (f"Session{k}", sum(found.get(k, {}).get(label, 0) for label in known), full[k])
        for k in SESSIONS
    ]
    compared.append(("all", sum(labels[label] for label in known), sum(FULL_SESSIONS)))
    compared += [
        (" and ".join(group), sum(labels[label] for label in group), count)
        for group, count in FULL_LABELS.items()
    ]
    differing = [
        f"{name} {count:,} of {expected:,}"
        for name, count, expected in compared
        if count != expected
    ]
    names = ", ".join(label for label in LABELS if label in known)
    verdict = f"this is not the full release (utterances of {names}): {', '.join(differing)}"
    return "\n".join([*lines, verdict if differing else "this is the full release"])


def _cell(value):
    """Format a cell of the table (str); a dash stands for an unknown number."""
    return "-" if value is None else value if isinstance(value, str) else f"{value:,}"
