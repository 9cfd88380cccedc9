"""From a manifest to the batches that the Brain sees."""

import copy
import os
from functools import partial

import numpy as np
import torch
from speechbrain.augment.time_domain import SpeedPerturb
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.sampler import DynamicBatchSampler
from torch.utils.data import BatchSampler, Sampler

from ent_brain import augment
from ent_brain.audio import load_audio, load_part, resample
from ent_brain.errors import InputError, raise_problems
from ent_brain.level import bring_to_level
from ent_brain.manifest import (
    DATA_ROOT,
    SAMPLE_RATE,
    Interval,
    path_inside,
    read_manifest,
)
from ent_brain.segments import Segment

OUTPUT_KEYS = ("id", "sig", "tokens", "token_count", "emotion_index", "entry")

UNKNOWN = -1
"""``token_count`` or ``emotion_index`` of an utterance without transcript or emotion."""

FIRST_SHARE = 0.2
"""Of the utterances, by duration: what a curriculum begins with."""

MAX_BUCKETS = 16
"""More fill batches no better, and put the same utterances together again and again."""


def read_audio(path, sample_rate, start=None, duration=None):
    """Read a file, or a part of it, as mono audio, resampled where its rate is another.

    Arguments
    ---------
    path : str or Path
        Any format that FFmpeg or soundfile reads.
    sample_rate : int
        Hz.
    start, duration : float, optional
        Seconds of the part; all of the file where ``start`` is not given.

    Returns
    -------
    Tensor
        [S] float32.

    Raises
    ------
    InputError
        If the file cannot be read, is cut off or damaged, or holds no sample or one that is no
        sound.
    """
    audio, samples = load_audio(path) if start is None else load_part(path, start, duration)
    if audio.lost:
        raise InputError(f"{path}: {'; '.join(audio.notes)}: replace it")
    return torch.from_numpy(resample(samples, audio.samplerate, sample_rate))


def make_dataset(corpora, tokens, emotions, frontend, max_tokens_per_frame, speeds=(100,)):
    """Make a SpeechBrain dataset of the manifests of one or more corpora.

    Arguments
    ---------
    corpora : dict[str, tuple]
        Of each corpus by its name: a manifest, as ``ent_brain.manifest`` writes it, and the folder
        that ``{data_root}`` in it stands for.
    tokens : CharTokens, CharacterTokens or SentencePieceTokens
    emotions : EmotionSet
    frontend : Frontend
        Tells the sample rate and how many frames an utterance has, and where features are kept.
    max_tokens_per_frame : float
        An utterance with more tokens a frame is refused: its transcript is of another recording.
    speeds : sequence of int
        In percent: each time that an utterance is read one of them is drawn, by which its speed and
        pitch change. What is told of its duration stays that of the recording.

    Returns
    -------
    DynamicItemDataset
        Items: id; sig [S] float; tokens [U] int64; token_count (U, or ``UNKNOWN`` without
        transcript); emotion_index (or ``UNKNOWN``); entry, what the manifest says: transcript,
        duration (seconds), emotion, segments (list of Segment, None where they are not known), and
        intervals as ``losses.supervised_lattice_loss`` takes them
        (None where they are not known); where the front end has a cache also kept, what the cache
        has of the utterance, which the loader's workers read. ``data`` holds corpus, the name of
        the utterance's, positions, U + 1, and nodes, frames * (U + 1): the size of the utterance's
        lattice, for samplers.

    Raises
    ------
    InputError
        Naming every utterance that is too short for a frame or too long for the front end, has too
        many tokens, or an interval without a frame; or if two corpora have an utterance of the same
        id; or there is no speed, or another speed than 100 where intervals are known.
    """
    if not speeds:
        raise InputError("speeds: []: give one at least, 100 for the speed that there is")
    entries, corpus_of, roots = {}, {}, {}
    for corpus, (manifest, data_root) in corpora.items():
        added = read_manifest(manifest, emotions, tokens.normalize)
        raise_problems(
            [f"{name}: in {corpus_of[name]} and in {corpus}" for name in added if name in entries],
            "rename these utterances in one of the corpora",
        )
        entries |= added
        corpus_of |= dict.fromkeys(added, corpus)
        roots[corpus] = data_root
    problems, nodes, positions, spans = [], {}, {}, {}
    for name, entry in entries.items():
        frames = frontend.count_frames(round(entry["duration"] * frontend.sample_rate))
        shortest, longest = (entry["duration"] * 100 / end(speeds) for end in (max, min))
        count = len(tokens.encode(entry["transcript"] or ""))
        positions[name] = count + 1
        nodes[name] = frames * positions[name]
        most = frontend.max_samples
        if frontend.count_frames(round(shortest * frontend.sample_rate)) < 1:
            problems.append(f"{name}: {shortest:.3f} s is too short for one frame")
        elif most and longest * frontend.sample_rate > most:
            seconds = most / frontend.sample_rate
            problems.append(f"{name}: {longest:.2f} s, the front end takes {seconds:.0f}")
        elif count > max_tokens_per_frame * frames:
            problems.append(f"{name}: {count} tokens in {frames} frames")
        elif "intervals" in entry:
            try:
                intervals = [Interval(**interval) for interval in entry["intervals"]]
                spans[name] = interval_spans(
                    intervals, tokens, emotions, frontend.frame_samples, frames
                )
            except InputError as error:
                problems.append(f"{name}: {error}")
    raise_problems(
        problems,
        "correct or remove these utterances of "
        f"{' and '.join(str(manifest) for manifest, _ in corpora.values())}, or raise "
        "max_tokens_per_frame",
    )

    if spans and set(speeds) != {100}:
        raise InputError(
            f"speeds: {list(speeds)}: {len(spans)} utterances have known intervals, whose times "
            "they would move: set speeds to [100]"
        )
    items = {
        name: {
            "wav": str(path_inside(entry["wav"], DATA_ROOT, roots[corpus_of[name]])),
            "corpus": corpus_of[name],
            "duration": entry["duration"],
            "start": entry.get("start"),
            "variant": 0,
            "nodes": nodes[name],
            "positions": positions[name],
            "entry": {
                **entry,
                "segments": _segments(entry, emotions),
                "intervals": spans.get(name),
            },
        }
        for name, entry in entries.items()
    }
    dataset = DynamicItemDataset(items, output_keys=list(OUTPUT_KEYS))
    # Nothing local, which workers that are not forked could not be given.
    perturb = SpeedPerturb(frontend.sample_rate, list(speeds)) if set(speeds) != {100} else None
    takes, provides = ("id", "variant", "wav", "start", "duration"), ("sig", "kept")
    reader = partial(_read_part, frontend.sample_rate, frontend.level, perturb, frontend.cache)
    dataset.add_dynamic_item(reader, takes, provides)
    labels = ("tokens", "token_count", "emotion_index")
    dataset.add_dynamic_item(
        partial(_read_labels, tokens, emotions), takes="entry", provides=labels
    )
    if frontend.cache is not None:
        dataset.set_output_keys([*OUTPUT_KEYS, "kept"])
    return dataset


def _read_part(sample_rate, level, perturb, cache, name, variant, wav, start, duration):
    """Yield an utterance's samples and what the cache has of it (None without a cache)."""
    samples = bring_to_level(read_audio(wav, sample_rate, start, duration), sample_rate, level)
    if perturb is not None:
        samples = perturb(samples[None])[0]
    if not variant:
        yield samples
        yield None if cache is None else cache.look_up(samples)
        return
    kept = cache and cache.look_up(samples, f"{augment.FORMAT} {level} {name}")
    # Features that are cached need no samples, and altering takes longer than reading.
    is_needed = kept is None or kept.features is None
    if is_needed:
        samples = bring_to_level(augment.alter(samples, sample_rate, name), sample_rate, level)
    yield samples
    yield kept


def add_variants(dataset, variants):
    """Make a dataset with altered copies of each utterance behind it.

    Arguments
    ---------
    dataset : DynamicItemDataset
        As ``make_dataset`` makes it, not sorted.
    variants : dict[str, int]
        For each corpus to be altered, how many copies ``augment.alter`` makes of an utterance, from
        its id and their number.

    Returns
    -------
    DynamicItemDataset
        ``VariantSampler`` draws from it. Every utterance has as many items, with ids that end with
        ``#1``, ``#2`` and so on; a corpus of fewer copies repeats them.
    """
    most = max(variants.values())
    copies = copy.copy(dataset)
    copies.data = {
        f"{name}#{number}" if number else name: {
            **dataset.data[name],
            "variant": number % (variants.get(dataset.data[name]["corpus"], 0) + 1),
        }
        for name in dataset.data_ids
        for number in range(most + 1)
    }
    copies.data_ids = list(copies.data)
    return copies


def _read_labels(tokens, emotions, entry):
    ids = tokens.encode(entry["transcript"] or "")
    yield torch.tensor(ids, dtype=torch.long)
    yield UNKNOWN if entry["transcript"] is None else len(ids)
    yield UNKNOWN if entry["emotion"] is None else emotions.index(entry["emotion"])


def interval_spans(intervals, tokens, emotions, frame_samples, frames):
    """Tell which frames and which token positions of an utterance's lattice an interval has.

    A frame belongs to the interval that covers at least half of it (Wang, Ravanelli, Yacoubi
    2023). Position u is the predictor's state after u tokens: an interval's first is the one that
    its first token is emitted from, so that a space between two belongs to the earlier one.

    Arguments
    ---------
    intervals : list of Interval
        As ``manifest.check_intervals`` wants them.
    tokens : CharTokens, CharacterTokens or SentencePieceTokens
    emotions : EmotionSet
    frame_samples : int
        Samples a frame, at 16 kHz.
    frames : int
        Of the utterance.

    Returns
    -------
    list[tuple]
        (emotion, frame_start, frame_end, token_start, token_end), ends excluded; together they
        cover all frames and all positions.

    Raises
    ------
    InputError
        If an interval has no frame, or its text has other tokens within the utterance than alone.

    Example
    -------
    >>> from ent_brain.emotions import PUBLISHED
    >>> from ent_brain.tokens import CharTokens
    >>> known = [Interval(0, 470, "neutral", "OH"), Interval(470, 1600, "sad", "NO")]
    >>> interval_spans(known, CharTokens(), PUBLISHED, frame_samples=320, frames=5)
    [(3, 0, 1, 0, 3), (2, 1, 5, 3, 6)]
    """
    ids = tokens.encode(" ".join(interval.transcript for interval in intervals))
    spans, frame, position = [], 0, 0
    for index, interval in enumerate(intervals):
        last = index == len(intervals) - 1
        # The remainder of a frame that is half the earlier interval's is the earlier one's.
        end = frames if last else (2 * interval.end + frame_samples) // (2 * frame_samples)
        end = min(end, frames)
        words = tokens.encode(interval.transcript if last else interval.transcript + " ")
        stop = position + len(words)
        if ids[position:stop] != words:
            raise InputError(f"{interval.transcript!r} has other tokens within the utterance")
        if not frame < end:
            raise InputError(f"interval of samples {interval.start} to {interval.end}: no frame")
        spans.append((emotions.index(interval.emotion), frame, end, position, stop + last))
        frame, position = end, stop
    return spans


def _segments(entry, emotions):
    if "intervals" in entry:
        return [
            Segment(i["start"] / SAMPLE_RATE, i["end"] / SAMPLE_RATE, i["emotion"])
            for i in entry["intervals"]
            if i["emotion"] != emotions.neutral
        ]
    if "segments" not in entry:
        return None
    return [Segment(**segment) for segment in entry["segments"]]


def make_batch_sampler(dataset, max_batch_nodes, max_utterances=None):
    """Make batches of utterances with lattices of similar size, as many as a limit allows.

    Arguments
    ---------
    dataset : DynamicItemDataset
        As ``make_dataset`` makes it.
    max_batch_nodes : int
        Nodes that the lattices of a batch have together at most; an utterance with more is a batch
        of its own.
    max_utterances : int, optional
        Utterances of a batch at most, where short ones would make few large batches.

    Returns
    -------
    DynamicBatchSampler
        SpeechBrain's. Every epoch has every utterance once, as many batches, and other ones.

    Raises
    ------
    InputError
        If the limit is not above 0.
    """
    if not max_batch_nodes > 0:
        raise InputError(f"max_batch_nodes: {max_batch_nodes}: above 0, or null for batch_size")
    nodes = np.array([dataset.data[name]["nodes"] for name in dataset.data_ids])
    # No more buckets than full batches, as each may leave one batch that is not full; and each with
    # as many nodes as any other, so that it fills as many.
    buckets = int(np.clip(nodes.sum() / max_batch_nodes, 1, MAX_BUCKETS))
    ascending = np.sort(nodes)
    share = np.arange(1, buckets + 1) / buckets
    ends = np.searchsorted(ascending.cumsum(), share * nodes.sum() * (1 - 1e-9))
    return DynamicBatchSampler(
        dataset,
        max_batch_length=max_batch_nodes,
        max_batch_ex=max_utterances,
        bucket_boundaries=np.unique(ascending[ends]).tolist(),
        lengths_list=nodes.tolist(),
        seed=int(os.environ.get("SB_GLOBAL_SEED", 0)),  # as SpeechBrain's random sampler
    )


class CurriculumSampler(Sampler):
    """Draw training utterances from the shortest first, and from ever more of them.

    In a short utterance there is little doubt about when its emotion is. A model that learns from
    utterance labels alone, and from long utterances at once, may settle for a time that fits them
    on average. Source: Platanios et al., "Competence-based Curriculum Learning for Neural Machine
    Translation" (NAACL 2019), with a competence that grows evenly.

    Arguments
    ---------
    dataset : DynamicItemDataset
        As ``make_dataset`` makes it.
    epochs : float
        Epochs until all are drawn from. An epoch has as many draws as there are utterances; until
        the curriculum is over it may have some of them twice and others not, afterwards it has each
        once.
    """

    def __init__(self, dataset, epochs):
        durations = [dataset.data[name]["duration"] for name in dataset.data_ids]
        self.shortest_first = np.argsort(durations, kind="stable").tolist()
        self.epochs = epochs
        self.seed = int(os.environ.get("SB_GLOBAL_SEED", 0))  # as SpeechBrain's random sampler
        self.set_epoch(1)

    def set_epoch(self, epoch):
        """Tell the epoch, from 1 on: each has its own draws, the same whenever they are made."""
        self.epoch = epoch

    def __len__(self):
        """Count the draws of an epoch."""
        return len(self.shortest_first)

    def __iter__(self):
        """Tell the index of each draw."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        epochs_before, count = self.epoch - 1, len(self)
        if epochs_before >= self.epochs:
            return iter(torch.randperm(count, generator=generator).tolist())
        done = (epochs_before + torch.arange(count) / count) / self.epochs
        shares = (FIRST_SHARE + (1 - FIRST_SHARE) * done).clamp(max=1)
        ranks = (torch.rand(count, generator=generator) * shares * count).long()
        return iter([self.shortest_first[rank] for rank in ranks.tolist()])


class CorpusSampler(Sampler):
    """Draw the utterances of some corpora more often in an epoch than those of others.

    Of a corpus of n utterances and weight w an epoch draws n * w, rounded: with weight 1 each once,
    with 2.5 each two or three times, with 0.2 a random fifth of them.

    Arguments
    ---------
    dataset : DynamicItemDataset
        As ``make_dataset`` makes it.
    weights : dict[str, float]
        Above 0, by the name of the corpus.

    Example
    -------
    >>> from types import SimpleNamespace
    >>> data = {name: {"corpus": name[0]} for name in ("a1", "a2", "a3", "a4", "b1")}
    >>> dataset = SimpleNamespace(data=data, data_ids=list(data))
    >>> draws = list(CorpusSampler(dataset, {"a": 0.5, "b": 3}))
    >>> len(draws), draws.count(4), len(set(draws))
    (5, 3, 3)
    """

    def __init__(self, dataset, weights):
        self.indices = {name: [] for name in weights}
        for index, name in enumerate(dataset.data_ids):
            self.indices[dataset.data[name]["corpus"]].append(index)
        self.counts = {
            name: max(1, round(len(self.indices[name]) * weight))
            for name, weight in weights.items()
        }
        self.seed = int(os.environ.get("SB_GLOBAL_SEED", 0))  # as SpeechBrain's random sampler
        self.set_epoch(1)

    def set_epoch(self, epoch):
        """Tell the epoch, from 1 on: each has its own draws, the same whenever they are made."""
        self.epoch = epoch

    def __len__(self):
        """Count the draws of an epoch."""
        return sum(self.counts.values())

    def __iter__(self):
        """Tell the index of each draw."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        draws = []
        for name, count in self.counts.items():
            indices = torch.tensor(self.indices[name])
            whole, rest = divmod(count, len(indices))
            chosen = torch.randperm(len(indices), generator=generator)[:rest]
            draws += [indices.repeat(whole), indices[chosen]]
        draws = torch.cat(draws)
        return iter(draws[torch.randperm(len(draws), generator=generator)].tolist())


class VariantSampler(Sampler):
    """Draw one of the copies of each utterance that another sampler draws.

    Arguments
    ---------
    sampler : Sampler
        Of the utterances of a dataset, or of batches of them.
    variants : int
        The most that ``add_variants`` was given for a corpus.

    Example
    -------
    >>> sampler = VariantSampler([[0, 1], [2]], variants=2)
    >>> [[index // 3 for index in batch] for batch in sampler]
    [[0, 1], [2]]
    """

    def __init__(self, sampler, variants):
        self.sampler, self.copies = sampler, variants + 1
        self.seed = int(os.environ.get("SB_GLOBAL_SEED", 0))  # as SpeechBrain's random sampler
        self.epoch = 0

    def set_epoch(self, epoch):
        """Set the epoch: each has its own draws, the same whenever they are made."""
        self.epoch = epoch
        self.sampler.set_epoch(epoch)

    def __len__(self):
        """Count the draws of an epoch."""
        return len(self.sampler)

    def __iter__(self):
        """Yield the index of each draw among all copies, or a list of them for each batch."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        for drawn in self.sampler:
            if isinstance(drawn, list):
                yield [self._draw(index, generator) for index in drawn]
            else:
                yield self._draw(drawn, generator)

    def _draw(self, index, generator):
        return index * self.copies + int(torch.randint(self.copies, (), generator=generator))


class ShareOfBatches(Sampler):
    """The batches of one process of several: all have as many, and no utterance is in two.

    SpeechBrain's own way has the first utterances, or batches, of an epoch twice where they do not
    come out even. Here the largest batches are halved instead. With n processes a step is what it
    is in one process with batches n times as large.

    Arguments
    ---------
    sampler : Sampler
        The same in all processes: of batches, or of utterances.
    rank, processes : int
    batch_size : int, optional
        Where the sampler is of utterances.

    Raises
    ------
    InputError
        If there are fewer utterances than processes.

    Example
    -------
    >>> from speechbrain.dataio.sampler import ReproducibleRandomSampler
    >>> shares = [ShareOfBatches(ReproducibleRandomSampler("abcde"), r, 2, 3) for r in (0, 1)]
    >>> [[len(batch) for batch in share] for share in shares]
    [[3], [2]]
    """

    def __init__(self, sampler, rank, processes, batch_size=None):
        self.sampler, self.batch_size = sampler, batch_size
        self.rank, self.processes = rank, processes
        self.set_epoch(0)
        if not self.batches:
            raise InputError(
                f"fewer training utterances than the {processes} processes: start fewer"
            )

    def set_epoch(self, epoch):
        """Make the batches of an epoch."""
        if hasattr(self.sampler, "set_epoch"):  # one without shuffling is the same in every epoch
            self.sampler.set_epoch(epoch)
        batches = self.sampler
        if self.batch_size is not None:
            batches = BatchSampler(batches, self.batch_size, drop_last=False)
        self.batches = _evenly(list(batches), self.processes)[self.rank :: self.processes]

    def __iter__(self):
        """Tell the indices of each batch."""
        return iter(self.batches)

    def __len__(self):
        """Count the batches."""
        return len(self.batches)


def _evenly(batches, processes):
    """Halve the largest batches until all processes have as many.

    Where batches are single utterances some are left out, in every epoch others.
    """
    while left := len(batches) % processes:
        last = max(range(len(batches)), key=lambda index: (len(batches[index]), index))
        largest = batches[last]
        if len(largest) == 1:
            return batches[:-left]
        batches[last : last + 1] = largest[::2], largest[1::2]
    return batches
