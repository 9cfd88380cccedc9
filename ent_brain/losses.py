"""The losses of an emotion transducer: their settings, and the terms of a batch."""

from dataclasses import dataclass, fields
from typing import Annotated

import torch
from torch.nn.functional import cross_entropy

from ent_brain.errors import InputError
from ent_brain.events import aligned_event_loss as aligned_event_loss
from ent_brain.events import aligned_events as aligned_events
from ent_brain.events import event_loss, most_probable_events
from ent_brain.lattice import Lattice
from ent_brain.limits import Choices, Range, limits_of
from ent_brain.model import Streams
from ent_brain.pooling import (
    POOLING_MODES,
    SUPERVISED_MODES,
    aligned_emotions,
    aligned_pooling_loss,
    lattice_pooling_loss,
    supervised_aligned_loss,
    supervised_lattice_loss,
)
from ent_brain.transducer import Alignment as Alignment
from ent_brain.transducer import arc_log_probs as arc_log_probs
from ent_brain.transducer import ctc_loss, next_token_loss, transducer_alignment
from ent_brain.transducer import transducer_loss as transducer_loss

LATTICE_MODES = (*POOLING_MODES, "aligned", "aligned_event", *SUPERVISED_MODES)

NEUTRAL_MODES = ("aligned_event",)
"""Lattice modes that look for an emotion in neutral speech, and so need a neutral label."""

WITHOUT_WORDS_MODES = ("aligned_event", "supervised_aligned")
"""Aligned lattice losses that learn from frames alone if no utterance has a transcript."""

ALIGNED_MODES = (*WITHOUT_WORDS_MODES, "aligned")
"""Lattice losses that need the alignment's posteriors, with or without a transcript."""

Weight = Annotated[float, Range()]


@dataclass(frozen=True)
class Losses:
    """The loss terms of a batch and their weights. A term of weight 0 is not computed.

    Arguments
    ---------
    rnnt_weight, head_weight, lattice_weight, lm_weight, ctc_weight : float
        Weights of the terms. At least one is above 0.
    fastemit : float
        As for ``transducer_loss``.
    lattice_mode : str
        Lattice loss. A supervised mode learns from the intervals in the manifest.
    aligned_top : float
        ``aligned``: share of the frames that train the emotion of the utterance.
    aligned_seconds : float
        ``aligned_event``: duration of the shortest event.
    head_intervals : bool
        Whether the pooled head also learns from the intervals in the manifest, or from the detected
        events.

    Raises
    ------
    ValueError
        If a value is out of range, or all weights are 0.
    InputError
        If ``rnnt_weight`` is 0 and another term needs it.
    """

    rnnt_weight: Weight
    head_weight: Weight
    lattice_weight: Weight
    lm_weight: Weight
    ctc_weight: Weight
    fastemit: Annotated[float, Range()]
    lattice_mode: Annotated[str, Choices(LATTICE_MODES)]
    aligned_top: Annotated[float, Range(highest=1, excluded=True)]
    aligned_seconds: Annotated[float, Range(highest=3600, excluded=True)]
    head_intervals: bool

    @classmethod
    def from_settings(cls, settings):
        """Take the arguments out of all settings of a recipe (dict)."""
        return cls(**{field.name: settings[field.name] for field in fields(cls)})

    def __post_init__(self):
        for name, limits in limits_of(self).items():
            if limits and (remedy := limits.remedy(getattr(self, name))):
                raise ValueError(f"{name}: {getattr(self, name)}: {remedy}")
        if not self.weights:
            weights = {name: each for name, each in vars(self).items() if name.endswith("_weight")}
            raise ValueError(f"loss weights {weights}: one must lie above 0")
        by_words = self.mode in ("aligned", "supervised")
        if not self.rnnt_weight and (by_words or self.lm_weight):
            instead = "supervised_aligned" if self.lattice_mode in SUPERVISED_MODES else "mil"
            raise InputError(
                f"rnnt_weight: 0: nothing is transcribed then, so lattice_mode {self.lattice_mode} "
                "and lm_weight have nothing to go by: raise it, or set lattice_mode "
                f"{instead} and lm_weight 0"
            )

    @property
    def weights(self):
        """Weights above 0 by the names of their terms (dict)."""
        weights = {name: each for name, each in vars(self).items() if name.endswith("_weight")}
        return {name.removesuffix("_weight"): each for name, each in weights.items() if each}

    @property
    def mode(self):
        """``lattice_mode``, or None if the lattice loss has no weight."""
        return self.lattice_mode if self.lattice_weight else None

    def check_labels(self, emotions):
        """Raise ``InputError`` if the lattice loss needs a neutral label that ``emotions`` lack."""
        if self.mode in NEUTRAL_MODES:
            emotions.need_neutral(f"lattice_mode {self.mode}")

    def terms(self, predictions, batch, modules, emotions):
        """Compute the unweighted terms of a batch (dict of tensors by name).

        Each term is the mean over the utterances that have its label. Terms without a weight or
        without such an utterance are missing. ``predictions`` are those of ``compute_forward``, and
        ``modules`` are ``frontend`` and ``model``.
        """
        output, tokens = predictions.output, batch.tokens.data
        worded, labelled = batch.token_count >= 0, batch.emotion_index >= 0
        terms, posteriors = {}, None
        if self.rnnt_weight and (worded.any() or self.mode in ALIGNED_MODES):
            lens = predictions.frame_lens, predictions.token_lens
            alignment = transducer_alignment(
                output.token_lattices, tokens, *lens, fastemit=self.fastemit
            )
            posteriors = alignment.posteriors
            if worded.any():
                terms["rnnt"] = alignment.nll[worded].mean()
        if labelled.any():
            terms |= self._emotion_terms(predictions, batch, posteriors, modules, emotions)
        if self.lm_weight and worded.any():
            rows = _rows(worded, output.lm_logits, tokens, predictions.token_lens)
            terms["lm"] = next_token_loss(*rows)
        if self.ctc_weight and worded.any():
            # ``predictions.token_lens`` are 0 if rnnt_weight is 0, but CTC needs all tokens.
            token_lens = batch.token_count.clamp(min=0)
            nll = ctc_loss(output.ctc_logits, tokens, predictions.frame_lens, token_lens)
            terms["ctc"] = nll[worded].mean()
        return terms

    def _emotion_terms(self, predictions, batch, posteriors, modules, emotions):
        """Lattice and head terms over the utterances with a known emotion."""
        mode, neutral = self.mode, emotions.neutral_index
        output, intervals, terms = predictions.output, None, {}
        labelled = batch.emotion_index >= 0
        tokens, lens = batch.tokens.data, (predictions.frame_lens, predictions.token_lens)
        labels, tokens, *lens = _rows(labelled, batch.emotion_index, tokens, *lens)
        emotion_lattice, posteriors = _rows(labelled, output.emotion_lattice, posteriors)
        if self.lattice_mode in SUPERVISED_MODES:
            intervals = self._known_intervals(batch)
        if mode in WITHOUT_WORDS_MODES and posteriors is None:  # one position, with probability 1
            posteriors = torch.ones(*emotion_lattice.enc.shape[:2], 1, device=labels.device)
        if mode == "supervised":
            terms["lattice"] = supervised_lattice_loss(emotion_lattice, intervals, *lens)
        elif mode == "supervised_aligned":
            aligned = emotion_lattice, posteriors
            terms["lattice"] = supervised_aligned_loss(*aligned, intervals, *lens)
        elif mode == "aligned_event":
            frame_lens, token_lens = lens
            frame_probs = aligned_emotions(emotion_lattice, posteriors, token_lens)
            shortest = max(1, round(self.aligned_seconds / modules.frontend.frame_duration))
            terms["lattice"] = event_loss(frame_probs, labels, frame_lens, shortest, neutral)
            if self.head_weight and self.head_intervals:
                known = labels, *lens, shortest, neutral
                intervals = most_probable_events(frame_probs, posteriors, *known)
        elif mode == "aligned":
            known = {"top": self.aligned_top, "neutral": neutral, "posteriors": posteriors}
            lattices = [_rows(labelled, each) for each in output.token_lattices], emotion_lattice
            terms["lattice"] = aligned_pooling_loss(*lattices, tokens, labels, *lens, **known)
        elif mode is not None:
            known = {"mode": mode, "neutral": neutral}
            terms["lattice"] = lattice_pooling_loss(emotion_lattice, labels, *lens, **known)
        if self.head_weight:
            head = _rows(labelled, output.head_logits, output.encoded, output.predicted)
            known = intervals if self.head_intervals else None
            terms["head"] = _head_loss(modules.model, *head, labels, known)
        return terms

    def _known_intervals(self, batch):
        """Intervals from the manifest of each utterance with a known emotion."""
        known = [entry["intervals"] for entry in batch.entry if entry["emotion"] is not None]
        if not self.rnnt_weight:  # the lattice has only one position
            known = [[s._replace(token_start=0, token_end=1) for s in spans] for spans in known]
        return known


def _head_loss(model, head_logits, encoded, predicted, emotions, intervals):
    """Cross-entropy of the pooled head over utterances and their known or detected intervals.

    Each utterance contributes the mean over the whole utterance and its intervals, because the head
    classifies both.
    """
    if intervals is None:
        return cross_entropy(head_logits, emotions)
    of_intervals = model.classify_intervals(encoded, predicted, intervals)
    owners = [row for row, spans in enumerate(intervals) for _ in spans]
    labels = [span.emotion for spans in intervals for span in spans]
    rows = torch.tensor([*range(len(intervals)), *owners], device=emotions.device)
    losses = cross_entropy(
        torch.cat((head_logits, of_intervals)),
        torch.cat((emotions, emotions.new_tensor(labels))),
        reduction="none",
    )
    return (losses / rows.bincount()[rows]).sum() / len(intervals)


def _rows(keep, *values):
    """Select rows of tensors, lattices and streams. If all rows are selected, nothing is copied."""
    if not keep.all():
        values = [_row_part(keep, value) for value in values]
    return values[0] if len(values) == 1 else values


def _row_part(keep, value):
    if value is None:
        return None
    if isinstance(value, Lattice):
        return value._replace(enc=value.enc[keep], pred=value.pred[keep])
    if isinstance(value, Streams):
        return Streams(*(stream[keep] for stream in value))
    return value[keep]
