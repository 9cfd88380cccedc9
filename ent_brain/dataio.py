"""Datasets, samplers and batches from manifests."""

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
from ent_brain.lattice import Span
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
"""Share of the utterances, shortest first, from which a curriculum draws at its start."""

MAX_BUCKETS = 16
"""Upper limit of the number of buckets. More buckets do not fill batches better, and they put the
same utterances together too often."""


def read_audio(path, sample_rate, start=None, duration=None):
    """Read a file, or a part of it, as mono audio at a sample rate.

    Arguments
    ---------
    path : str or Path
        A file in any format that FFmpeg or soundfile reads.
    sample_rate : int
        Sample rate of the result in Hz.
    start, duration : float, optional
        Start and duration of the part in seconds. If ``start`` is None, the whole file is read.

    Returns
    -------
    Tensor
        [S] float32.

    Raises
    ------
    InputError
        If the file cannot be read, is truncated, damaged or empty, or has NaN or absurd samples.
    """
    audio, samples = load_audio(path) if start is None else load_part(path, start, duration)
    if audio.lost:
        raise InputError(f"{path}: {'; '.join(audio.notes)}: replace it")
    return torch.from_numpy(resample(samples, audio.samplerate, sample_rate))


def make_dataset(corpora, tokens, emotions, frontend, max_tokens_per_frame, speeds=(100,)):
    """Make a SpeechBrain dataset from the manifests of one or more corpora.

    Arguments
    ---------
    corpora : dict[str, tuple]
        For each corpus by name: a manifest (``ent_brain.manifest``), and the folder for which
        ``{data_root}`` stands in the manifest.
    tokens : CharTokens, CharacterTokens or SentencePieceTokens
    emotions : EmotionSet
    frontend : Frontend
        Defines the sample rate, the number of frames of an utterance, and the feature cache.
    max_tokens_per_frame : float
        Upper limit of an utterance's tokens per frame. An utterance above it probably has the
        transcript of another recording and is refused.
    speeds : sequence of int
        Speeds in percent. Each time that an utterance is read, one of them is drawn, which changes
        speed and pitch. The duration in ``entry`` remains that of the recording.

    Returns
    -------
    DynamicItemDataset
        Items: id; sig [S] float; tokens [U] int64; token_count (U, or ``UNKNOWN`` without
        transcript); emotion_index (or ``UNKNOWN``); and entry, the fields of the manifest. They are
        transcript, duration (seconds), emotion, segments (list of Segment, None if unknown), and
        intervals for ``losses.supervised_lattice_loss`` (None if unknown). If the front end has a
        cache, also kept, the utterance's cache entry, which the loader's workers read. ``data``
        has fields for samplers. They are corpus, the name of the utterance's corpus; positions,
        U + 1; and nodes, frames * (U + 1), the size of the utterance's lattice.

    Raises
    ------
    InputError
        If an utterance is too short for a frame or too long for the front end. If it has too many
        tokens or an interval without a frame. The message names all such utterances. If two corpora
        have an utterance with the same id. If there is no speed, or a speed other than 100 although
        utterances have known intervals.
    """
    if not speeds:
        raise InputError("speeds: []: the list is empty. Give at least one, 100 for no change.")
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
            f"speeds: {list(speeds)}: speeds would shift the known intervals of {len(spans)} "
            "utterances. Set speeds to [100]."
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
    # No local functions, because workers that are not forked cannot unpickle them.
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
    """Yield an utterance's samples and its cache entry (None without a cache)."""
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
    """Make a dataset in which altered copies follow each utterance.

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
    """Compute the frames and the token positions that each interval has in an utterance's lattice.

    A frame belongs to the interval that covers at least half of it (Wang, Ravanelli, Yacoubi
    2023). Position u is the predictor's state after u tokens. An interval's first position is the
    one that emits its first token, so a space between two intervals belongs to the earlier one.

    Arguments
    ---------
    intervals : list of Interval
        Intervals that pass ``manifest.check_intervals``.
    tokens : CharTokens, CharacterTokens or SentencePieceTokens
    emotions : EmotionSet
    frame_samples : int
        Samples per frame at 16 kHz.
    frames : int
        Number of the utterance's frames.

    Returns
    -------
    list[Span]
        Together they cover all frames and all positions.

    Raises
    ------
    InputError
        If an interval has no frame, or if its text has other tokens within the utterance than
        alone.

    Example
    -------
    >>> from ent_brain.emotions import PUBLISHED
    >>> from ent_brain.tokens import CharTokens
    >>> known = [Interval(0, 470, "neutral", "OH"), Interval(470, 1600, "sad", "NO")]
    >>> _, sad = interval_spans(known, CharTokens(), PUBLISHED, frame_samples=320, frames=5)
    >>> sad
    Span(emotion=2, frame_start=1, frame_end=5, token_start=3, token_end=6)
    """
    ids = tokens.encode(" ".join(interval.transcript for interval in intervals))
    spans, frame, position = [], 0, 0
    for index, interval in enumerate(intervals):
        last = index == len(intervals) - 1
        # A frame that two intervals cover equally belongs to the earlier one.
        end = frames if last else (2 * interval.end + frame_samples) // (2 * frame_samples)
        end = min(end, frames)
        words = tokens.encode(interval.transcript if last else interval.transcript + " ")
        stop = position + len(words)
        if ids[position:stop] != words:
            raise InputError(f"{interval.transcript!r} has other tokens within the utterance")
        if not frame < end:
            raise InputError(f"interval of samples {interval.start} to {interval.end}: no frame")
        spans.append(Span(emotions.index(interval.emotion), frame, end, position, stop + last))
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
    """Make batches of utterances with lattices of similar size, up to a limit of nodes.

    Arguments
    ---------
    dataset : DynamicItemDataset
        A dataset from ``make_dataset``.
    max_batch_nodes : int
        Upper limit of the nodes of a batch's lattices together. An utterance with more nodes forms
        a batch alone.
    max_utterances : int, optional
        Upper limit of the utterances of a batch, which keeps batches of short ones small.

    Returns
    -------
    DynamicBatchSampler
        SpeechBrain's sampler. Every epoch has each utterance once. Epochs have equally many, but
        different, batches.

    Raises
    ------
    InputError
        If the limit is not above 0.
    """
    if not max_batch_nodes > 0:
        raise InputError(
            f"max_batch_nodes: {max_batch_nodes} is not above 0. Give a positive number, or null "
            "to use batch_size."
        )
    nodes = np.array([dataset.data[name]["nodes"] for name in dataset.data_ids])
    # No more buckets than full batches, because each bucket may leave an incomplete batch. All
    # buckets have equally many nodes, so that they fill equally many batches.
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
    """Draw training utterances from the shortest ones at first, and gradually from all.

    A short utterance leaves little doubt about the time of its emotion. A model that learns from
    utterance labels and starts with long utterances may learn an average time instead. Source:
    Platanios et al., "Competence-based Curriculum Learning for Neural Machine Translation" (NAACL
    2019), with linear competence.

    Arguments
    ---------
    dataset : DynamicItemDataset
        A dataset from ``make_dataset``.
    epochs : float
        Epochs until the sampler draws from all utterances. An epoch has as many draws as there are
        utterances. During the curriculum, an epoch may repeat utterances and lack others; later, it
        has each utterance once.
    """

    def __init__(self, dataset, epochs):
        durations = [dataset.data[name]["duration"] for name in dataset.data_ids]
        self.shortest_first = np.argsort(durations, kind="stable").tolist()
        self.epochs = epochs
        self.seed = int(os.environ.get("SB_GLOBAL_SEED", 0))  # as SpeechBrain's random sampler
        self.set_epoch(1)

    def set_epoch(self, epoch):
        """Set the epoch, from 1 on, which alone seeds the draws."""
        self.epoch = epoch

    def __len__(self):
        """Count the draws of an epoch."""
        return len(self.shortest_first)

    def __iter__(self):
        """Iterate over the index of each draw."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        epochs_before, count = self.epoch - 1, len(self)
        if epochs_before >= self.epochs:
            return iter(torch.randperm(count, generator=generator).tolist())
        done = (epochs_before + torch.arange(count) / count) / self.epochs
        shares = (FIRST_SHARE + (1 - FIRST_SHARE) * done).clamp(max=1)
        ranks = (torch.rand(count, generator=generator) * shares * count).long()
        return iter([self.shortest_first[rank] for rank in ranks.tolist()])


class CorpusSampler(Sampler):
    """Draw the utterances of some corpora more often than those of others in an epoch.

    From a corpus with n utterances and weight w, an epoch draws n * w, rounded. With weight 1, it
    draws each utterance once; with 2.5, two or three times; with 0.2, a random fifth of them.

    Arguments
    ---------
    dataset : DynamicItemDataset
        A dataset from ``make_dataset``.
    weights : dict[str, float]
        Weight of each corpus by its name, above 0.

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
        """Set the epoch, from 1 on, which alone seeds the draws."""
        self.epoch = epoch

    def __len__(self):
        """Count the draws of an epoch."""
        return sum(self.counts.values())

    def __iter__(self):
        """Iterate over the index of each draw."""
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
        Sampler of a dataset's utterances or batches.
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
        """Set the epoch, which alone seeds the draws."""
        self.epoch = epoch
        self.sampler.set_epoch(epoch)

    def __len__(self):
        """Count the draws of an epoch."""
        return len(self.sampler)

    def __iter__(self):
        """Yield the index of each draw among all copies, or a list of indices for each batch."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        for drawn in self.sampler:
            if isinstance(drawn, list):
                yield [self._draw(index, generator) for index in drawn]
            else:
                yield self._draw(drawn, generator)

    def _draw(self, index, generator):
        return index * self.copies + int(torch.randint(self.copies, (), generator=generator))


class ShareOfBatches(Sampler):
    """The batches of one process in distributed training.

    All processes have equally many batches, and no utterance is in two of them. If the number of
    batches is not a multiple of the number of processes, SpeechBrain repeats the first ones; this
    sampler halves the largest ones instead. A step with n processes equals a step of one process
    with batches n times as large.

    Arguments
    ---------
    sampler : Sampler
        Sampler of batches or utterances, the same in all processes.
    rank, processes : int
    batch_size : int, optional
        Size of the batches if the sampler yields utterances.

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
                f"fewer training utterances than the {processes} processes. Start fewer processes."
            )

    def set_epoch(self, epoch):
        """Make the batches of an epoch."""
        if hasattr(self.sampler, "set_epoch"):  # samplers without shuffling lack it
            self.sampler.set_epoch(epoch)
        batches = self.sampler
        if self.batch_size is not None:
            batches = BatchSampler(batches, self.batch_size, drop_last=False)
        self.batches = _evenly(list(batches), self.processes)[self.rank :: self.processes]

    def __iter__(self):
        """Iterate over the indices of each batch."""
        return iter(self.batches)

    def __len__(self):
        """Count the batches."""
        return len(self.batches)


def _evenly(batches, processes):
    """Halve the largest batches until all processes have equally many.

    If all batches are single utterances, some are dropped, different ones in each epoch.
    """
    while left := len(batches) % processes:
        last = max(range(len(batches)), key=lambda index: (len(batches[index]), index))
        largest = batches[last]
        if len(largest) == 1:
            return batches[:-left]
        batches[last : last + 1] = largest[::2], largest[1::2]
    return batches
