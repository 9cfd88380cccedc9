"""Mixed utterances: neutral and emotional speech of one speaker joined, with known intervals.

They follow the Speech Emotion Diarization protocol of Wang, Ravanelli, Yacoubi 2023 (arXiv
2306.12991).
"""

import functools
import hashlib
import itertools
import random
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import soundfile
import torch
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
from ent_brain.speech import find_speech

logger = get_logger(__name__)

LOUDNESS = -30.0
"""Level of every part in dBFS: its root mean square, relative to a full scale of 1."""

RECENT_PARTS = 256
"""Number of parts whose samples stay in memory for later mixtures. A speaker has about as many
neutral utterances."""

SILENCE = 0.3
"""Most seconds of silence that a part of a close mixture keeps before and after its speech. The
pauses between parts are then 0 to 0.6 s."""

PATTERNS = ("ne", "en", "nen", "e")
"""Order of the parts in a mixture: n is a neutral utterance, e the emotional one."""


def draw_mixtures(entries, seed, neutral_label, keep_neutral=False):
    """Draw the utterances to join.

    Each emotional utterance of a speaker is used once, in one of ``PATTERNS`` with equal
    probability. Neutral ones are taken in turn from a shuffled list, which is repeated. A speaker's
    draw depends only on the seed and the speaker's own utterances. If a speaker has no neutral
    utterance, the emotional ones remain single.

    Arguments
    ---------
    entries : dict[str, dict]
        Entries of a manifest, each with an emotion.
    seed : int
    neutral_label : str
        Label of neutral utterances.
    keep_neutral : bool
        Whether, after the emotional utterances, each neutral utterance also takes the place of an
        emotional one.

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
    close_draws=0,
    prefix="",
):
    """Write the mixed corpus of a manifest: audio, and a manifest with the intervals.

    Utterances without transcript or emotion are skipped, because a mixture's intervals need both.

    Arguments
    ---------
    manifest : str or Path
        Manifest of single utterances with one emotion each.
    data_root : str or Path
        Folder for which ``{data_root}`` stands in this manifest.
    mixed_folder : str or Path
        Folder for the audio, 16 kHz FLAC; ``{data_root}`` in the mixed manifest stands for it. A
        file's name contains a digest of its samples, so existing files are never outdated.
    save_folder : str or Path
        Folder for the mixed manifest.
    emotions : EmotionSet
        A label set with a neutral label.
    normalize : callable
        Normalisation of the manifest's transcripts.
    seed : int
    keep_neutral : bool
        Whether there are also mixtures of neutral utterances only, which training on utterance
        labels needs. Neutral utterances are joined with others, so that length does not reveal the
        emotion.
    speeds : sequence of int
        Speeds in percent for SpeechBrain's ``SpeedPerturb``. There is one draw of mixtures per
        speed. Speed also changes the pitch, like another voice. Ids of mixtures from further draws
        end with ``_2``, ``_3`` and so on.
    close_draws : int
        Further draws whose parts are cut to their speech, with up to ``SILENCE`` around it. Without
        them, a model may learn that every sentence begins after a long pause.
    prefix : str
        Prefix of the mixtures' ids, to distinguish them from those of single utterances.

    Returns
    -------
    Path
        ``<save_folder>/mixed_<name of the manifest>``.

    Raises
    ------
    InputError
        If utterances cannot be read, are silent, or have wrong intervals; the message names them.
        Also if a speed is impossible, or if the label set has no neutral label.
    """
    if not speeds or not all(type(speed) is int and speed > 0 for speed in speeds):
        raise InputError(
            f"mixed_speeds: {speeds}: give one or more whole numbers of percent above 0"
        )
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
    draws = [(speed, False) for speed in speeds] + [(100, True)] * close_draws
    for draw, (speed, close) in enumerate(draws, 1):
        drawn_from = seed if draw == 1 else f"{seed} {draw}"
        mixtures = draw_mixtures(entries, drawn_from, emotions.neutral, keep_neutral)
        shapes.update(len(parts) for parts in mixtures.values())

        @functools.lru_cache(RECENT_PARTS)  # neutral utterances are used repeatedly
        def leveled(part, speed=speed):
            return _leveled(entries[part], data_root, speed)

        for name, parts in mixtures.items():
            mixture = prefix + (name if draw == 1 else f"{name}_{draw}")
            try:
                pieces = [(entries[part], leveled(part)) for part in parts]
                if close:
                    generator = random.Random(f"{drawn_from} {mixture}")
                    pieces = [(entry, _spoken(samples, generator)) for entry, samples in pieces]
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
    """Write the audio of a mixture; return its Utterance, with an entry's speaker and emotion."""
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


def _spoken(samples, generator):
    """Cut samples [S] to their speech, with up to ``SILENCE`` of what is around it."""
    regions = find_speech([torch.from_numpy(samples).float()]).regions or [(0, len(samples))]
    before, after = (int(generator.uniform(0, SILENCE) * SAMPLE_RATE) for _ in range(2))
    return samples[max(0, regions[0][0] - before) : regions[-1][1] + after]


def _leveled(entry, data_root, speed):
    """Read an entry's samples, float [S] at 16 kHz, with a speed and the level ``LOUDNESS``."""
    path = path_inside(entry["wav"], DATA_ROOT, data_root)
    samples = read_audio(path, SAMPLE_RATE, entry.get("start"), entry["duration"])
    samples = SpeedPerturb(SAMPLE_RATE, [speed])(samples[None])[0].double().numpy()
    level = np.sqrt(np.mean(np.square(samples)))
    if not level:
        raise InputError(f"{path} is silent")
    return samples * 10 ** (LOUDNESS / 20) / level
