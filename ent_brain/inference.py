"""A trained model in use: from a sound file to its words, its emotions and their times."""

from itertools import islice

import torch
from speechbrain.inference.interfaces import Pretrained
from tqdm import tqdm

from ent_brain.alignment import align, word_times
from ent_brain.annotation import Heard, annotate
from ent_brain.audio import LOUDEST, scan_audio
from ent_brain.decoding import judge_events, search
from ent_brain.emotions import EmotionSet
from ent_brain.errors import InputError, one_line
from ent_brain.export import (
    SSL_FOLDER,
    SSL_WEIGHTS,
    check_model,
    check_ssl_weights,
    find_model,
)
from ent_brain.segments import SegmentDecoder
from ent_brain.settings import check_device, wrong_values
from ent_brain.tokens import CharacterTokens, CharTokens, SentencePieceTokens
from ent_brain.windows import join, read_windows

SHORTEST = 0.1
"""Seconds below which a recording gets no words and no emotion. Shorter windows are padded to it
with silence: no front end needs more."""

SILENCE = -60.0
"""dB of full scale. Nothing is said where no 20 ms are louder, and the emotion is neutral, if the
model has such a label."""

CERTAIN = 1 - 1e-6
"""Probability of what no model was asked for: that silence is neutral."""

SETTINGS = {
    **{"max_symbols": 1, "beam_size": 1, "longest_window": 1.0},
    **{"segment_decoding": "argmax", "segment_seconds": 1.0},
}
"""What an export says of how it is used: keys, and values of their kind."""

WINDOWS_AT_ONCE = 8
"""Windows of a long recording that the model hears together."""


class EmotionTransducer(Pretrained):
    """A trained emotion transducer; ``from_hparams(source=FOLDER)`` loads what training exported.

    The ``_file`` methods take sound files of any format, rate, number of channels and length that
    ``scan_audio`` reads: a long one is heard in windows, in memory that does not grow with it.

    The ``_batch`` methods take floating-point waveforms [B, S], or one waveform [S], at the model's
    rate, and SpeechBrain's relative lengths [B]; without lengths all waveforms are whole. They
    raise ``InputError`` for other shapes, an empty batch, and samples that are no sound, as NaN.

    A recording shorter than 0.1 s has no words and no emotion.

    Example
    -------
    >>> model = EmotionTransducer.from_hparams(source="pretrained")  # doctest: +SKIP
    >>> model.transcribe_file("speech.wav")  # doctest: +SKIP
    "WHERE'S YOUR TICKET"
    >>> model.classify_file("speech.wav")[1]  # doctest: +SKIP
    'angry'
    >>> model.annotate_file("speech.wav").words[0]  # doctest: +SKIP
    Word(text="WHERE'S", start=0.16, end=0.4, emotion='angry', probability=0.91)
    """

    HPARAMS_NEEDED = ["modules", "tokens", "emotions", "neutral", *SETTINGS]
    MODULES_NEEDED = ["frontend", "model"]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.emotions = EmotionSet(self.hparams.emotions, self.hparams.neutral)
        """The labels that the model tells apart, in the order of its probabilities."""
        self._check()

    def _check(self):
        """Raise ValueError where parts or settings are none that go together."""
        problems = wrong_values(SETTINGS, {key: getattr(self.hparams, key) for key in SETTINGS})
        frontend, model, tokens = self.mods.frontend, self.mods.model, self.hparams.tokens
        if not isinstance(tokens, CharTokens | CharacterTokens | SentencePieceTokens):
            problems.append(f"tokens: {tokens}: no tokens of this package")
        else:
            sizes = {
                "vocab_size": len(tokens),
                "feature_dim": frontend.feature_dim,
                "feature_layers": frontend.feature_layers,
                "num_emotions": len(self.emotions),
            }
            problems += [
                f"{key}: the model's is {model.settings[key]}, it must be {size}"
                for key, size in sizes.items()
                if model.settings[key] != size
            ]
        if not problems and self.hparams.longest_window < 2 * frontend.frame_duration:
            problems.append(
                f"longest_window: {self.hparams.longest_window}: give two frames or more"
            )
        if problems:
            raise ValueError("; ".join(problems))

    @classmethod
    def from_hparams(cls, source, savedir=None, revision=None, trust=False, **kwargs):
        """Load a model that training exported.

        Arguments
        ---------
        source : str or Path
            Folder, or name on the Hugging Face hub, which is fetched.
        savedir : str or Path, optional
            Where a fetched model is put; the hub's cache where it is not given.
        revision : str, optional
            Branch, tag or commit of a model on the hub.
        trust : bool
            Whether the folder's YAML may construct, call, read and fetch whatever it names.
            Without, a YAML that asks for more than a model of this package is refused.
        **kwargs
            Of SpeechBrain's ``from_hparams``: ``run_opts={"device": "cuda"}``, for one.

        Returns
        -------
        EmotionTransducer

        Raises
        ------
        InputError
            If there is no model, or one that is incomplete, damaged or not to be trusted.
        """
        if isinstance(run_opts := kwargs.get("run_opts"), dict):
            device = run_opts.get("device")
            check_device(device)
            if isinstance(device, torch.device):  # SpeechBrain takes its name alone
                kwargs["run_opts"] = run_opts | {"device": str(device)}
        folder = find_model(source, savedir, revision)
        ssl = folder / SSL_FOLDER
        overrides = {"ssl_source": str(ssl)} if ssl.is_dir() else {}
        overrides |= kwargs.pop("overrides", {})
        try:
            if not trust:
                check_model(folder)
            model = super().from_hparams(source=str(folder), overrides=overrides, **kwargs)
            frontend, weights = model.mods.frontend, ssl / SSL_WEIGHTS
            if frontend.settings.get("source") == str(ssl) and weights.is_file():
                check_ssl_weights(frontend.ssl_model, weights)
            return model
        except (InputError, torch.OutOfMemoryError):  # a GPU that is full is no fault of the folder
            raise
        except Exception as error:  # there is no one kind for what a damaged folder can do
            parts = error.args if isinstance(error, TypeError) else [error]  # hyperpyyaml adds one
            reason = " ".join(map(one_line, parts))
            raise InputError(f"{folder}: makes no model ({reason}): export again") from error

    def transcribe_file(self, path):
        """Words of a sound file (str), normalised as in training."""
        return _text(self._hear_file(scan_audio(path), progressbar=False))

    def transcribe_batch(self, wavs, wav_lens=None):
        """Words of waveforms [B, S] with relative lengths [B], list[str]."""
        return [_text(heard) for heard in self._hear_batch(wavs, wav_lens)]

    def classify_file(self, path):
        """Emotion of a sound file.

        Returns
        -------
        (Tensor, str)
            Probabilities [E] in the order of ``self.emotions``, and the name of the largest.

        Raises
        ------
        InputError
            If the file cannot be read, is shorter than 0.1 s, or the model has no emotions.
        """
        audio = scan_audio(path)
        probabilities = _probabilities(self._hear_file(audio, progressbar=False), audio.label)
        return probabilities, self.emotions.names[int(probabilities.argmax())]

    def classify_batch(self, wavs, wav_lens=None):
        """Emotions of waveforms [B, S] with relative lengths [B].

        SpeechBrain's ``EncoderClassifier.classify_batch`` returns four values: log-probabilities,
        the largest of each row, its index, and its name. This method returns two: probabilities,
        which sum to 1, and names. ``probabilities.max(-1)`` gives the other two.

        Returns
        -------
        (Tensor, list[str])
            Probabilities [B, E] in the order of ``self.emotions``, and the names of the largest.

        Raises
        ------
        InputError
            Also if a waveform is shorter than 0.1 s, or the model has no emotions.
        """
        heard = self._hear_batch(wavs, wav_lens)
        probabilities = torch.stack(
            [_probabilities(one, f"wavs: waveform {index}") for index, one in enumerate(heard)]
        )
        best = probabilities.argmax(-1).tolist()
        return probabilities, [self.emotions.names[index] for index in best]

    def diarize_file(self, path):
        """Emotions of a sound file in time (list[Segment]), from 0 to its end without gaps."""
        return list(self.annotate_file(path, progressbar=False).segments)

    def diarize_batch(self, wavs, wav_lens=None):
        """Emotions in time of waveforms [B, S] with relative lengths [B], list[list[Segment]]."""
        return [list(each.segments) for each in self.annotate_batch(wavs, wav_lens)]

    def annotate_file(self, path, progressbar=True, channel=None):
        """Everything that the model makes of a sound file.

        Arguments
        ---------
        path : str, Path or Audio
            ``-`` is standard input.
        progressbar : bool or callable
            Whether to show one where the file is long. A callable gets the share that is done, from
            0 to 1, after some windows each, and may raise an error to stop.
        channel : int, optional
            The channel to use, from 1 on. By default the channels are mixed.

        Returns
        -------
        Annotation
            Its ``notes`` say if part of the file is lost, or how its channels were mixed.

        Raises
        ------
        InputError
            If the file cannot be read, holds no audio or lacks the channel.
        """
        audio = scan_audio(path, channel)
        heard = self._hear_file(audio, progressbar)
        return self._annotate(audio.path.stem, heard, audio.notes)

    def annotate_batch(self, wavs, wav_lens=None, names=None):
        """Everything that the model makes of waveforms.

        Arguments
        ---------
        wavs : Tensor
            [B, S] or [S] at the front end's ``sample_rate``.
        wav_lens : Tensor, optional
            [B] relative lengths; all 1 where they are not given.
        names : sequence of str, optional
            Of the recordings; their numbers from 0 where it is not given.

        Returns
        -------
        list[Annotation]
        """
        heard = self._hear_batch(wavs, wav_lens)
        names = list(map(str, range(len(heard))) if names is None else names)
        if len(names) != len(heard):
            raise InputError(f"names: {len(names)} for {len(heard)} waveforms. Give one for each.")
        return [self._annotate(*named) for named in zip(names, heard, strict=True)]

    def _annotate(self, name, heard, notes=()):
        if heard.seconds < SHORTEST:
            notes = *notes, f"{heard.seconds:.3f} s are too short for words and an emotion"
        return annotate(name, heard, self.mods.frontend.frame_duration, self.emotions, notes)

    @property
    def segment_decoder(self):
        """What tells the emotions of frames from their probabilities (SegmentDecoder)."""
        decoding = self.hparams.segment_decoding, self.hparams.segment_seconds
        return SegmentDecoder(self.emotions, self.mods.frontend.frame_duration, *decoding)

    def _hear_file(self, audio, progressbar):
        """What the model makes of a sound file (``Audio``), ``Heard``."""
        frontend, longest = self.mods.frontend, self.hparams.longest_window
        seconds = audio.seconds
        stream = read_windows(audio, frontend.sample_rate, longest, frontend.frame_samples)
        spans, heard = [], []
        hidden = progressbar is not True or seconds <= longest
        with tqdm(total=round(seconds), desc=audio.path.name, unit="s", disable=hidden) as bar:
            while windows := list(islice(stream, WINDOWS_AT_ONCE)):
                wavs = [window.wav for window in windows]
                lens = torch.tensor([len(wav) for wav in wavs])
                padded = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
                heard += self._hear(padded, lens / padded.size(1))
                spans += [(window.start, window.start + len(window.wav)) for window in windows]
                bar.update(round(spans[-1][1] / frontend.sample_rate) - bar.n)
                if callable(progressbar):
                    progressbar(min(1.0, spans[-1][1] / frontend.sample_rate / seconds))
        frames = frontend.count_frames(max(spans[-1][1], int(SHORTEST * frontend.sample_rate)))
        joined = join(spans, heard, frontend.sample_rate, frontend.frame_samples, frames)
        return _unless_too_short(joined)

    def _hear_batch(self, wavs, wav_lens):
        """What the model makes of waveforms [B, S] or [S] that somebody gives, list[Heard]."""
        wavs = torch.as_tensor(wavs)
        shape = list(wavs.shape)
        wavs = wavs[None] if wavs.dim() == 1 else wavs
        if wavs.dim() != 2 or not wavs.numel() or not wavs.is_floating_point():
            raise InputError(
                f"wavs: {wavs.dtype} of shape {shape}. Give floating-point samples from -1 to 1, "
                "[S] or [B, S], none of them 0."
            )
        lens = torch.ones(len(wavs)) if wav_lens is None else torch.as_tensor(wav_lens)
        if lens.shape != (len(wavs),) or not ((lens > 0) & (lens <= 1)).all():
            raise InputError(
                f"wav_lens: {lens.tolist()} for {len(wavs)} waveforms. Give each a share of the "
                "longest, above 0 and up to 1."
            )
        return [_unless_too_short(heard) for heard in self._hear(wavs, lens)]

    @torch.no_grad()
    def _hear(self, wavs, wav_lens):
        """What the model makes of waveforms, list[Heard]."""
        frontend, model = self.mods.frontend, self.mods.model
        if (dtype := next(model.parameters()).dtype) != torch.float32:  # as SpeechBrain's Fbank is
            raise InputError(f"model: weights are {dtype}. Call model.float() first.")
        wavs = torch.as_tensor(wavs, dtype=torch.float32, device=self.device)
        samples = frontend.sample_lens(wavs, torch.as_tensor(wav_lens, device=self.device))
        beyond = torch.arange(wavs.size(1), device=self.device) >= samples[:, None]
        wavs = wavs.masked_fill(beyond, 0.0)
        no_sound = ~(wavs.abs() <= LOUDEST).all(1)  # NaN is not below it
        if no_sound.any():
            index = int(no_sound.nonzero()[0])
            raise InputError(f"wavs: waveform {index} has samples that are no sound. Replace it.")
        silent = _loudest(wavs, frontend.sample_rate // 50) < SILENCE
        shortest = int(SHORTEST * frontend.sample_rate)
        wavs = torch.nn.functional.pad(wavs, (0, max(0, shortest - wavs.size(1))))
        features, frame_lens = frontend(wavs, samples.clamp(min=shortest) / wavs.size(1))
        encoded = model.encode(features, frame_lens)
        hypotheses = [
            best
            for (best,) in search(
                model,
                encoded,
                frame_lens,
                self.hparams.beam_size,
                max_symbols=self.hparams.max_symbols,
            )
        ]
        hypotheses = align(model, encoded, frame_lens, hypotheses)
        hypotheses = judge_events(model, encoded, hypotheses, self.segment_decoder)
        lengths = [count / frontend.sample_rate for count in samples.tolist()]  # not in float32
        return [
            self._heard(*parts) for parts in zip(hypotheses, lengths, silent.tolist(), strict=True)
        ]

    def _heard(self, hypothesis, seconds, silent):
        frame_duration = self.mods.frontend.frame_duration
        of_frames, of_utterance = hypothesis.emotion_log_probs, hypothesis.utterance_log_probs
        words, labels = self.hparams.tokens.words(hypothesis.tokens), None
        if silent:
            words, neutral = [], self.emotions.neutral_index
            of_frames, of_utterance = (
                log_probs
                if log_probs is None or neutral is None
                else _certain_like(log_probs, neutral)
                for log_probs in (of_frames, of_utterance)
            )
            hypothesis = hypothesis._replace(event_log_probs=None)
        if of_frames is not None:
            labels = self.segment_decoder.labels(of_frames, hypothesis.event_log_probs)
        times = word_times(words, hypothesis.frames, frame_duration, seconds)
        return Heard(seconds, times, of_frames, labels, of_utterance)


def _text(heard):
    return " ".join(text for text, _, _ in heard.words)


def _unless_too_short(heard):
    return Heard(heard.seconds, [], None, None, None) if heard.seconds < SHORTEST else heard


def _probabilities(heard, label):
    """Probabilities [E] of the emotions of a recording."""
    if heard.utterance_log_probs is None:
        if heard.seconds < SHORTEST:
            raise InputError(
                f"{label}: {heard.seconds:.3f} s are too short for an emotion. Give {SHORTEST} s "
                "or more."
            )
        raise InputError(f"{label}: the model has no emotions. Load one that has.")
    return heard.utterance_log_probs.exp()


def _certain_like(log_probs, emotion):
    rest = (1 - CERTAIN) / (log_probs.size(-1) - 1)
    probabilities = torch.full_like(log_probs, rest)
    probabilities[..., emotion] = CERTAIN
    return probabilities.log()


def _loudest(wavs, samples):
    """Level of the loudest run of samples of each waveform, dB of full scale, [B]."""
    padded = torch.nn.functional.pad(wavs, (0, -wavs.size(1) % samples))
    power = padded.unflatten(1, (-1, samples)).square().mean(-1).amax(-1)
    return 10 * power.log10()
