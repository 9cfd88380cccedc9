"""Mixed utterances: neutral and emotional speech of one speaker joined, with known intervals.

After the Speech Emotion Diarization protocol of Wang, Ravanelli, Yacoubi 2023 (arXiv 2306.12991).
"""

import functools
import hashlib
import itertools
import random
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import soundfile
from speechbrain.augment.time_domain import SpeedPerturb
from speechbrain.utils.logger import get_logger

from ent_brain.dataio import read_audio
from ent_brain.errors import InputError, raise_problems
from ent_brain.files import whole_or_nothing
from ent_brain.manifest import (
    DATA_ROOT,
    SAMPLE_RATE,
    Interval,
    Utterance,
    check_utterances,
    path_inside,
    read_manifest,
    save_manifests,
)

logger = get_logger(__name__)

LOUDNESS = -30.0
"""dBFS of every part: its root mean square, full scale being 1."""

RECENT_PARTS = 256
"""Parts whose samples are kept for mixtures to come: about as many neutral ones has a speaker."""

PATTERNS = ("ne", "en", "nen", "e")
"""What is joined: n a neutral utterance, e the emotional one."""


def draw_mixtures(entries, seed, neutral_label, keep_neutral=False):
    """Draw which utterances are joined.

    Of each speaker each emotional utterance is used once, in one of ``PATTERNS`` with equal
    probability; neutral ones are taken in turn from a shuffled list that is repeated. A speaker's
    draw depends on the seed and that speaker's utterances alone. Where a speaker has no neutral
    utterance, the emotional ones stand alone.

    Arguments
    ---------
    entries : dict[str, dict]
        Of a manifest, each with an emotion.
    seed : int
    neutral_label : str
        The emotion that neutral utterances have.
    keep_neutral : bool
        Whether each neutral utterance takes an emotional one's place, too, once it is their turn.

    Returns
    -------
    dict[str, list[str]]
        Ids of the parts, by the id of the emotional utterance (or of the neutral one in its place).

    Example
    -------
    >>> emotions = {"a": "sad", "b": "neutral", "c": "neutral", "d": "happy"}
    >>> entries = {name: {"speaker": "Ann", "emotion": e} for name, e in emotions.items()}
    >>> draw_mixtures(entries, seed=1, neutral_label="neutral")
    {'a': ['b', 'a'], 'd': ['c', 'd', 'b']}
    """
    speakers = defaultdict(list)
    for name in sorted(entries):
        speakers[entries[name]["speaker"]].append(name)
    mixtures = {}
    for speaker, names in sorted(speakers.items()):
        generator = random.Random(f"{seed} {speaker}")
        neutral = [name for name in names if entries[name]["emotion"] == neutral_label]
        generator.shuffle(neutral)
        fillers = itertools.cycle(neutral)
        emotional = [name for name in names if name not in neutral]
        for name in emotional + (sorted(neutral) if keep_neutral else []):
            pattern = generator.choice(PATTERNS) if set(neutral) - {name} else "e"
            others = (filler for filler in fillers if filler != name)
            mixtures[name] = [next(others) if part == "n" else name for part in pattern]
    return mixtures


def mix(
    manifest,
    data_root,
    mixed_folder,
    save_folder,
    emotions,
    normalize,
    seed,
    keep_neutral=False,
    speeds=(100,),
    prefix="",
):
    """Write the mixed corpus of a manifest: audio, and a manifest with the intervals.

    Utterances without transcript or emotion are left out: a mixture's intervals have both.

    Arguments
    ---------
    manifest : str or Path
        Of single utterances, one emotion each.
    data_root : str or Path
        What ``{data_root}`` in it stands for.
    mixed_folder : str or Path
        Where the audio goes, 16 kHz FLAC; what ``{data_root}`` stands for in the mixed manifest. A
        file's name tells its content, so that what is there already is never stale.
    save_folder : str or Path
        Where the manifest goes.
    emotions : EmotionSet
        With a neutral label.
    normalize : callable
        How the manifest's transcripts were normalised.
    seed : int
    keep_neutral : bool
        Whether each neutral utterance is also there, as training on utterance labels needs some
        that are neutral: joined with other neutral ones, so that no length tells the emotion.
    speeds : sequence of int
        Percent, as SpeechBrain's ``SpeedPerturb`` takes them: a draw of mixtures at each. It moves
        the pitch, too, as another voice would. The id of a further draw's mixture ends with ``_2``,
        ``_3`` and so on.
    prefix : str
        Of the mixtures' ids, so that they differ from those of the single utterances.

    Returns
    -------
    Path
        ``<save_folder>/mixed_<name of the manifest>``.

    Raises
    ------
    InputError
        Naming the utterances that cannot be read, are silent, or whose intervals do not fit; if a
        speed is impossible, or the label set has no neutral label.
    """
    if not speeds or not all(type(speed) is int and speed > 0 for speed in speeds):
        raise InputError(f"mixed_speeds: {speeds}: whole percent above 0, one at least")
    manifest, mixed_folder = Path(manifest), Path(mixed_folder)
    emotions.need_neutral("mixed")
    all_entries = read_manifest(manifest, emotions, normalize)
    entries = {
        name: entry
        for name, entry in all_entries.items()
        if None not in (entry["transcript"], entry["emotion"])
    }
    if left_out := len(all_entries) - len(entries):
        logger.info(
            f"{manifest}: {left_out} utterances without transcript or emotion are not mixed"
        )
    mixed_folder.mkdir(parents=True, exist_ok=True)
    utterances, problems, shapes = [], [], Counter()
    for draw, speed in enumerate(speeds, 1):
        drawn_from = seed if draw == 1 else f"{seed} {draw}"
        mixtures = draw_mixtures(entries, drawn_from, emotions.neutral, keep_neutral)
        shapes.update(len(parts) for parts in mixtures.values())

        @functools.lru_cache(RECENT_PARTS)  # a speaker's neutral ones are parts again and again
        def leveled(part, speed=speed):
            return _leveled(entries[part], data_root, speed)

        for name, parts in mixtures.items():
            mixture = prefix + (name if draw == 1 else f"{name}_{draw}")
            try:
                pieces = [(entries[part], leveled(part)) for part in parts]
                utterances.append(_join(mixture, entries[name], pieces, mixed_folder))
            except InputError as error:
                problems.append(f"{mixture}: {error}")
    raise_problems(problems, f"correct {data_root}")
    logger.info(
        f"{manifest}: {shapes[1]} utterances alone, {shapes[2]} of two parts, {shapes[3]} of three"
    )
    split = f"mixed_{manifest.stem}"
    checked = check_utterances(utterances, mixed_folder, emotions=emotions, normalize=normalize)
    return save_manifests(save_folder, {split: checked}, mixed_folder)[split]


def _join(name, entry, pieces, mixed_folder):
    """Write the audio of a mixture of an entry's speaker and emotion; return its Utterance."""
    intervals, start = [], 0
    for part, samples in pieces:
        end = start + len(samples)
        intervals.append(Interval(start, end, part["emotion"], part["transcript"]))
        start = end
    joined = np.concatenate([samples for _, samples in pieces])
    joined = (joined.clip(-1, 1) * 32767).round().astype("<i2")
    digest = hashlib.sha256(joined.tobytes()).hexdigest()[:12]
    wav = mixed_folder / f"{name}_{digest}.flac"
    if not wav.exists():
        with whole_or_nothing(wav) as partial:
            soundfile.write(partial, joined, SAMPLE_RATE, format="FLAC")
    return Utterance(
        id=name,
        wav=wav,
        transcript=" ".join(interval.transcript for interval in intervals),
        emotion=entry["emotion"],
        speaker=entry["speaker"],
        samples=len(joined),
        intervals=tuple(intervals),
    )


def _leveled(entry, data_root, speed):
    """Samples of an entry's file at 16 kHz, float [S], at a speed and brought to ``LOUDNESS``."""
    path = path_inside(entry["wav"], DATA_ROOT, data_root)
    samples = read_audio(path, SAMPLE_RATE, entry.get("start"), entry["duration"])
    samples = SpeedPerturb(SAMPLE_RATE, [speed])(samples[None])[0].double().numpy()
    level = np.sqrt(np.mean(np.square(samples)))
    if not level:
        raise InputError(f"{path} is silent")
    return samples * 10 ** (LOUDNESS / 20) / level
