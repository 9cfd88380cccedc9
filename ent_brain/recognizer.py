"""Words, emotions and their times from encoded speech: the steps that tests and use share."""

from dataclasses import dataclass

from ent_brain.alignment import align, word_times
from ent_brain.annotation import Heard
from ent_brain.decoding import TokenPath, find_paths, judge_events, judge_frames, search
from ent_brain.language_model import TokenScorer
from ent_brain.model import Streams, TransducerModel
from ent_brain.segments import SegmentDecoder


@dataclass(frozen=True)
class Recognizer:
    """Searches for words, aligns them, judges emotions, and gives both their times.

    Arguments
    ---------
    model : ENT or FENT
        In eval mode.
    decoder : SegmentDecoder
        Chooses the emotions of frames.
    frame_offset : float
        Seconds: ``Frontend.frame_offset``.
    beam_size, max_symbols, language_model
        As for ``decoding.search``.
    """

    model: TransducerModel
    decoder: SegmentDecoder
    frame_offset: float
    beam_size: int
    max_symbols: int
    language_model: TokenScorer | None

    @classmethod
    def from_hparams(cls, modules, tokens, emotions, hparams):
        """Combine ``frontend`` and ``model`` with the settings of a recipe or an export."""
        frontend = modules["frontend"]
        decoding = hparams.segment_decoding, hparams.segment_seconds
        decoder = SegmentDecoder(emotions, frontend.frame_duration, *decoding)
        sizes = hparams.beam_size, hparams.max_symbols
        fusion = getattr(hparams, "language_model", None)
        language_model = None if fusion is None else fusion.scorer(tokens)
        return cls(modules["model"], decoder, frontend.frame_offset, *sizes, language_model)

    def search(self, encoded, frame_lens):
        """Find the best hypothesis (Hypothesis) of each utterance, as ``decoding.search`` does."""
        sizes = {"beam_size": self.beam_size, "max_symbols": self.max_symbols}
        found = search(self.model, encoded, frame_lens, **sizes, language_model=self.language_model)
        return [best for (best,) in found]

    def recognize(self, encoded, frame_lens, aligned=True):
        """Find the tokens and emotions of encoder streams [B, T, D] with [B] lengths.

        Returns list[Hypothesis]. ``aligned`` moves the tokens to their frames on the best path.
        """
        hypotheses = self.search(encoded, frame_lens)
        if aligned:
            hypotheses = align(self.model, encoded, frame_lens, hypotheses)
        return judge_events(self.model, encoded, hypotheses, self.decoder)

    def go_on(self, encoded, frame_lens, before, frame):
        """Find the tokens of one utterance from a frame on, after the tokens ``before`` it.

        Returns a Hypothesis with all tokens of the utterance, aligned.
        """
        rest = Streams(*(stream[:, frame:] for stream in encoded))
        sizes = self.beam_size, 1, self.max_symbols
        [[found]] = find_paths(
            self.model, rest, frame_lens - frame, *sizes, self.language_model, before
        )
        tokens = [*before, *found.tokens]
        frames = [*[frame] * len(before), *(frame + t for t in found.frames)]
        [whole] = align(self.model, encoded, frame_lens, [TokenPath(tokens, frames, found.score)])
        # As in ``recognize``, the search decides which token the predictor has read at a frame.
        frames[: len(before)] = [min(frame, t) for t in whole.frames[: len(before)]]
        [judged] = judge_frames(self.model, encoded, frame_lens, [whole._replace(frames=frames)])
        judged = judged._replace(frames=whole.frames)
        return judge_events(self.model, encoded, [judged], self.decoder)[0]

    def judge(self, encoded, frame_lens, paths):
        """Judge the emotions of known tokens (list[TokenPath]): list[Hypothesis]."""
        hypotheses = judge_frames(self.model, encoded, frame_lens, paths)
        return judge_events(self.model, encoded, hypotheses, self.decoder)

    def heard(self, hypothesis, words, seconds):
        """Label the frames of an utterance (Hypothesis) and time its words: Heard.

        ``words`` are those of ``tokens.words``; ``seconds`` is the utterance's duration.
        """
        log_probs, labels = hypothesis.emotion_log_probs, None
        if log_probs is not None:
            labels = self.decoder.labels(log_probs, hypothesis.event_log_probs)
        placed = self.decoder.frame_duration, seconds, self.frame_offset
        times = word_times(words, hypothesis.frames, *placed)
        return Heard(seconds, times, log_probs, labels, hypothesis.utterance_log_probs)
