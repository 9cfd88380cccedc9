"""Metrics: accuracy, word error rates and emotion diarization error rates, all in percent.

The trackers have the interface of those in ``speechbrain.utils.metric_stats``. They do not derive
from its ``MetricStats``, which averages tensors that a metric function returns for a padded batch.
"""

from pathlib import Path

import jiwer
import numpy as np

from ent_brain.errors import InputError
from ent_brain.segments import fill_neutral, segments_from_frames


class _Stats:
    """A tracker with one row per utterance; a subclass fills ``_rows`` and defines ``_summary``."""

    def __init__(self):
        self.clear()

    def clear(self):
        """Remove all utterances."""
        self._rows = []

    def __len__(self):
        """Count the utterances."""
        return len(self._rows)

    def summarize(self, field=None):
        """Return all statistics as a dict, or the one named ``field``.

        Raises
        ------
        ValueError
            If nothing was appended.
        """
        if not self._rows:
            raise ValueError(f"{type(self).__name__}: no utterance was appended, so no statistics")
        summary = self._summary()
        return summary if field is None else summary[field]


class EmotionStats(_Stats):
    """Utterance emotions: weighted and unweighted accuracy.

    ``summarize`` gives ``WA`` (accuracy), ``UA`` (mean recall of the classes that occur as targets)
    and ``confusion``. The latter is an int array [E, E] of counts, with a row per target and a
    column per prediction.

    Arguments
    ---------
    emotions : EmotionSet

    Example
    -------
    >>> import sys
    >>> from ent_brain.emotions import PUBLISHED
    >>> stats = EmotionStats(PUBLISHED)
    >>> stats.append(["a", "b", "c"], predictions=[0, 3, 2], targets=[0, 0, 2])
    >>> f"{stats.summarize('WA'):.1f} {stats.summarize('UA'):.1f}"
    '66.7 75.0'
    >>> stats.write_stats(sys.stdout)
    WA 66.67 %, UA 75.00 %, utterances: 3
    <BLANKLINE>
    confusion    happy    angry      sad  neutral    recall
    happy            1        0        0        1    50.0 %
    angry            0        0        0        0         -
    sad              0        0        1        0   100.0 %
    neutral          0        0        0        0         -
    <BLANKLINE>
    wrong  target   predicted  id
    *      happy    neutral    b
           happy    happy      a
           sad      sad        c
    """

    label = "emotions"

    def __init__(self, emotions):
        super().__init__()
        self.emotions = emotions

    def append(self, ids, predictions, targets):
        """Add utterances.

        Arguments
        ---------
        ids : sequence of str
        predictions, targets : sequence of int or int tensor [B]
            Class indices.
        """
        self._rows += [
            (utterance, int(prediction), int(target))
            for utterance, prediction, target in zip(ids, predictions, targets, strict=True)
        ]

    def _summary(self):
        confusion = np.zeros((len(self.emotions), len(self.emotions)), dtype=int)
        for _, prediction, target in self._rows:
            confusion[target, prediction] += 1
        hits, counts = confusion.diagonal(), confusion.sum(axis=1)
        occurs = counts > 0
        return {
            "WA": 100 * float(hits.sum() / counts.sum()),
            "UA": 100 * float(np.mean(hits[occurs] / counts[occurs])),
            "confusion": confusion,
        }

    def write_stats(self, filestream):
        """Write the accuracies, the confusion matrix and each utterance, the wrong ones first."""
        summary, names = self.summarize(), self.emotions.names
        widest = max(8, *map(len, names)) + 1  # columns of the published labels have width 9
        filestream.write(
            f"WA {summary['WA']:.2f} %, UA {summary['UA']:.2f} %, utterances: {len(self._rows)}\n"
            f"\n{'confusion':<{widest}}{''.join(f'{name:>{widest}}' for name in names)}"
            f"{'recall':>10}\n"
        )
        for index, counts in enumerate(summary["confusion"]):
            recall = f"{100 * counts[index] / counts.sum():.1f} %" if counts.any() else "-"
            cells = "".join(f"{count:{widest}d}" for count in counts)
            filestream.write(f"{names[index]:<{widest}}{cells}{recall:>10}\n")
        filestream.write(f"\nwrong  {'target':<{widest}}{'predicted':<{widest + 2}}id\n")
        for utterance, prediction, target in sorted(self._rows, key=lambda row: row[1] == row[2]):
            wrong = " " if prediction == target else "*"
            labels = f"{names[target]:<{widest}}{names[prediction]:<{widest + 2}}"
            filestream.write(f"{wrong:<7}{labels}{utterance}\n")


class WordErrorStats(_Stats):
    """Word and character error rates over all utterances, by jiwer.

    ``summarize`` gives ``WER`` and ``CER``: errors per reference word (or character, including
    spaces) over all utterances. They can exceed 100.

    Example
    -------
    >>> import sys
    >>> stats = WordErrorStats()
    >>> stats.append(["a", "b"], hypotheses=["TEA TWO", ""], references=["TEA FOR TWO", "YES"])
    >>> stats.summarize("WER")
    50.0
    >>> stats.write_stats(sys.stdout)
    WER 50.00 %, CER 50.00 %, utterances: 2
    <BLANKLINE>
    b: 100.00 %
    REF: YES
    HYP: ***
           D
    <BLANKLINE>
    a: 33.33 %
    REF: TEA FOR TWO
    HYP: TEA *** TWO
               D
    """

    label = "words"

    def append(self, ids, hypotheses, references):
        """Add utterances.

        Arguments
        ---------
        ids : sequence of str
        hypotheses : sequence of str
            Normalised like the references (``ent_brain.tokens.normalize_transcript``).
        references : sequence of str
        """
        self._rows += list(zip(ids, hypotheses, references, strict=True))

    def _summary(self):
        _, hypotheses, references = (list(column) for column in zip(*self._rows, strict=True))
        return {
            "WER": 100 * jiwer.process_words(references, hypotheses).wer,
            "CER": 100 * jiwer.process_characters(references, hypotheses).cer,
        }

    def by_utterance(self):
        """Return (id, WER) of each utterance, in percent."""
        return [(row[0], 100 * jiwer.process_words(row[2], row[1]).wer) for row in self._rows]

    def write_stats(self, filestream):
        """Write the rates and each utterance's alignment, the worst utterances first."""
        rates = ", ".join(f"{name} {rate:.2f} %" for name, rate in self.summarize().items())
        filestream.write(f"{rates}, utterances: {len(self._rows)}\n")
        aligned = [(row[0], jiwer.process_words(row[2], row[1])) for row in self._rows]
        for utterance, words in sorted(aligned, key=lambda row: -row[1].wer):
            picture = jiwer.visualize_alignment(words, show_measures=False, skip_correct=False)
            lines = picture.splitlines()[2:]  # without jiwer's "=== SENTENCE 1 ==="
            filestream.write(f"\n{utterance}: {100 * words.wer:.2f} %\n")
            filestream.writelines(f"{line.rstrip()}\n" for line in lines if line.strip())


class EmotionDiarizationStats(_Stats):
    """Emotion diarization error rate (EDER).

    ``summarize`` gives ``EDER``: the share of an utterance's time with a wrong emotion (Wang,
    Ravanelli, Yacoubi 2023, arXiv 2306.12991), averaged over utterances. Time without a frame
    counts as wrong, as in ``speechbrain.utils.EDER``.

    Arguments
    ---------
    emotions : EmotionSet
    frame_duration : float
        Seconds from one frame to the next.

    Example
    -------
    >>> import sys
    >>> from ent_brain.emotions import PUBLISHED
    >>> from ent_brain.segments import Segment
    >>> stats = EmotionDiarizationStats(PUBLISHED, frame_duration=0.5)
    >>> stats.append(["a"], [[3, 3, 0, 0]], [[Segment(0.5, 2.0, "happy")]], [2.5])
    >>> stats.write_stats(sys.stdout)
    EDER 40.00 %, utterances: 1
    <BLANKLINE>
    a: 40.00 %
      reference: 0.00-0.50 neutral, 0.50-2.00 happy, 2.00-2.50 neutral
      predicted: 0.00-1.00 neutral, 1.00-2.00 happy
    """

    label = "diarization"

    def __init__(self, emotions, frame_duration):
        super().__init__()
        self.emotions, self.frame_duration = emotions, frame_duration

    def append(self, ids, predictions, references, durations):
        """Add utterances.

        Arguments
        ---------
        ids : sequence of str
        predictions : sequence of sequences of int
            Class index of each frame.
        references : sequence of lists of Segment
            Emotional segments; the rest of the utterance is neutral.
        durations : sequence of float
            Seconds.

        Raises
        ------
        InputError
            If an utterance's segments do not fit it or overlap.
        """
        rows = []
        columns = ids, predictions, references, map(float, durations)
        for utterance, frames, segments, duration in zip(*columns, strict=True):
            try:
                reference = fill_neutral(segments, duration, self.emotions)
            except InputError as error:
                raise InputError(f"{utterance}: {error}") from None
            predicted = segments_from_frames(frames, self.frame_duration, self.emotions)
            correct = sum(
                max(0.0, min(a.end, b.end) - max(a.start, b.start))
                for a in predicted
                for b in reference
                if a.emotion == b.emotion
            )
            error_rate = 100 * max(0.0, 1 - correct / duration)  # rounding could give -0.0
            rows.append((utterance, error_rate, reference, predicted))
        self._rows += rows

    def _summary(self):
        return {"EDER": float(np.mean([row[1] for row in self._rows]))}

    def by_utterance(self):
        """Return (id, EDER) of each utterance, in percent."""
        return [row[:2] for row in self._rows]

    def write_stats(self, filestream):
        """Write the rate and each utterance's segments, the worst utterances first."""
        filestream.write(f"EDER {self.summarize('EDER'):.2f} %, utterances: {len(self._rows)}\n")
        for utterance, rate, reference, predicted in sorted(self._rows, key=lambda row: -row[1]):
            filestream.write(
                f"\n{utterance}: {rate:.2f} %\n"
                f"  reference: {', '.join(map(str, reference))}\n"
                f"  predicted: {', '.join(map(str, predicted)) or '-'}\n"
            )


class TransducerStats:
    """All statistics of hypotheses: words, utterance emotions, and emotion diarization.

    Arguments
    ---------
    tokens : CharTokens, SentencePieceTokens or None
        None if the model has no words; words are then not scored.
    decoder : SegmentDecoder
        Decoder of frame emotions.
    """

    def __init__(self, tokens, decoder):
        self.tokens, self.decoder = tokens, decoder
        self.words = WordErrorStats()
        self.emotions = EmotionStats(decoder.emotions)
        # The model and its baselines: neutral everywhere, and the utterance's emotion everywhere.
        # Also the model's frames without a segment decoding.
        names = ["model", "utterance emotion everywhere"]
        names[1:1] = ["all neutral"] if decoder.emotions.neutral else []
        names += ["each frame by itself"] if decoder.method != "argmax" else []
        self.diarization = {
            name: EmotionDiarizationStats(decoder.emotions, decoder.frame_duration)
            for name in names
        }
        self.hypotheses = {}

    def append(self, ids, hypotheses, entries):
        """Add utterances.

        Arguments
        ---------
        ids : sequence of str
        hypotheses : sequence of Hypothesis
        entries : sequence of dict
            Labels from the manifest: ``transcript``, ``emotion``, ``segments`` (an unknown one is
            None and is not scored) and ``duration`` (seconds).
        """
        for name, hypothesis, entry in zip(ids, hypotheses, entries, strict=True):
            self.hypotheses[name] = hypothesis
            if self.tokens is not None and entry["transcript"] is not None:
                words = self.tokens.decode(hypothesis.tokens)
                self.words.append([name], [words], [entry["transcript"]])
            if hypothesis.utterance_log_probs is None:
                continue
            emotion, emotions = int(hypothesis.utterance_log_probs.argmax()), self.decoder.emotions
            if entry["emotion"] is not None:
                self.emotions.append([name], [emotion], [emotions.index(entry["emotion"])])
            if entry["segments"] is None:
                continue
            frames = self.decoder.labels(hypothesis.emotion_log_probs, hypothesis.event_log_probs)
            tracks = {
                "model": frames,
                "all neutral": [emotions.neutral_index] * len(frames),
                "utterance emotion everywhere": [emotion] * len(frames),
                "each frame by itself": hypothesis.emotion_log_probs.argmax(1).tolist(),
            }
            for track, stats in self.diarization.items():
                stats.append([name], [tracks[track]], [entry["segments"]], [entry["duration"]])

    def summarize(self):
        """Return WER, CER, WA, UA, EDER and ``error``, as far as the labels allow.

        Returns
        -------
        dict[str, float]
            Percent. ``error`` is the mean of the error rates WER, 100 - UA and EDER. Empty if no
            utterance has labels for any of them.
        """
        summary = {}
        for stats in self._filled():
            summary.update(stats.summarize())
        summary.pop("confusion", None)
        rates = {**summary, "UA": 100 - summary["UA"]} if "UA" in summary else summary
        errors = [rates[name] for name in ("WER", "UA", "EDER") if name in rates]
        return {**summary, "error": float(np.mean(errors))} if errors else summary

    def baselines(self):
        """Return the EDER of each baseline by its name (dict); empty without known intervals."""
        _, *baselines = self.diarization.items()
        return {name: stats.summarize("EDER") for name, stats in baselines if stats}

    def by_utterance(self):
        """Return the known WER and EDER of each utterance in percent (dict of dicts)."""
        rates = {name: {} for name in self.hypotheses}
        for metric, stats in (("WER", self.words), ("EDER", self.diarization["model"])):
            for name, rate in stats.by_utterance():
                rates[name][metric] = rate
        return rates

    def write(self, folder, name):
        """Write each statistic with its utterances to ``<folder>/<statistic>_<name>.txt``."""
        for stats in self._filled():
            with (Path(folder) / f"{stats.label}_{name}.txt").open("w", encoding="utf-8") as file:
                stats.write_stats(file)

    def _filled(self):
        return [s for s in (self.words, self.emotions, self.diarization["model"]) if s]
