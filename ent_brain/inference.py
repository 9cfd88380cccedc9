"""A trained model in use: from a sound file to its words, its emotions and their times."""

import copy
import ctypes
import math
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from speechbrain.inference.interfaces import Pretrained
from speechbrain.utils.data_utils import batch_pad_right
from tqdm import tqdm

from ent_brain.alignment import MOST_NODES, align, align_tokens, word_times
from ent_brain.annotation import Heard, annotate
from ent_brain.audio import LOUDEST, Inspection, read_blocks, scan_audio
from ent_brain.decoding import TokenPath, finds_tokens
from ent_brain.emotions import EmotionSet
from ent_brain.errors import InputError, first_names, one_line
from ent_brain.export import (
    OPEN_ENGLISH,
    SSL_WEIGHTS,
    check_model,
    check_ssl_weights,
    find_encoder,
    find_model,
    has_decoder,
)
from ent_brain.frontend import SSLFrontend
from ent_brain.language_model import WordFusion
from ent_brain.level import STEP, gain, step_means, step_powers
from ent_brain.model import Streams
from ent_brain.recognizer import Recognizer
from ent_brain.segments import TimedWord
from ent_brain.settings import check_device, wrong_values
from ent_brain.speakers import Turn, name_speakers
from ent_brain.speech import NARROW, Speech, find_speech, highest_frequency
from ent_brain.tokens import CharacterTokens, CharTokens, SentencePieceTokens
from ent_brain.transcripts import Passage, check_passages, spell
from ent_brain.windows import cut, in_batches, join, join_rows

WORDS = ("own", "whisper")
"""Sources of the words: the transducer itself, or Whisper's decoder."""

SHORTEST = 0.1
"""Seconds of speech below which a recording gets no words and no emotion. Shorter windows are
padded to it with silence: no front end needs more."""

NO_SPEECH = f"less than {SHORTEST} s of speech was found: no words and no emotion"

OFFSET = 0.1
"""Constant offset of samples, as a share of their standard deviation, from which on it is removed.
Smaller offsets stay, as in training."""

CERTAIN = 1 - 1e-6
"""Probability of the neutral label where nobody speaks."""

SETTINGS = {
    **{"max_symbols": 1, "beam_size": 1, "longest_window": 1.0},
    **{"segment_decoding": "argmax", "segment_seconds": 1.0},
}
"""Settings that an export must have, each with a value of the right type."""

PRECISIONS = "fp32", "bf16", "fp16"
"""SpeechBrain's names of the precisions that the front end may compute in."""

IMPLAUSIBLE = -3.0
"""Mean log-probability (nats) of a word's tokens on the best path, below which the recording may
not have the word. Measured by ``benchmarks/wrong_words.py``."""


class Encoded(NamedTuple):
    """A waveform after the encoder."""

    streams: Streams
    """[T, D] each."""
    samples: int


class EmotionTransducer(Pretrained):
    """A trained emotion transducer; ``from_hparams(source=FOLDER)`` loads what training exported.

    The ``_file`` methods take sound files of any format, rate, number of channels and length that
    ``scan_audio`` reads: a long one is heard in windows, in memory that does not grow with it.

    The ``_batch`` methods take floating-point waveforms [B, S], or one waveform [S], at the model's
    rate, and SpeechBrain's relative lengths [B]; without lengths all waveforms are whole. They
    raise ``InputError`` for other shapes, an empty batch, and samples that are no sound, as NaN.

    The model hears the stretches of a recording in which silero-vad finds speech, with a second
    around them. Frames without speech are neutral. A recording with less than 0.1 s of speech has
    no words and no emotion.

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
    whisper = None
    """Whisper's decoder (WhisperDecoder), if it writes the words."""
    language = "en"
    """Code of the language of texts, for the spoken forms of their numbers."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.emotions = EmotionSet(self.hparams.emotions, self.hparams.neutral)
        """The labels that the model tells apart, in the order of its probabilities."""
        self._check()

    def _check(self):
        """Raise ValueError if parts or settings do not fit together."""
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
        fusion = getattr(self.hparams, "language_model", None)
        if not isinstance(fusion, WordFusion | None):
            problems.append(f"language_model: {fusion}: no language model of this package")
        if not problems and self.hparams.longest_window < 2 * frontend.frame_duration:
            problems.append(
                f"longest_window: {self.hparams.longest_window}: give two frames or more"
            )
        if problems:
            raise ValueError("; ".join(problems))

    @classmethod
    def open_english(cls, ssl=None, words=None, **kwargs):
        """Load the model of English that the package holds; its card says what it was trained on.

        Arguments
        ---------
        ssl : str or Path, optional
            Folder of openai/whisper-base, its encoder. Without it ``ENT_BRAIN_SSL`` names the
            folder, or it comes from the Hugging Face hub.
        words : str, optional
            As ``from_hparams`` takes it.
        **kwargs
            As for ``from_hparams``.

        Returns
        -------
        EmotionTransducer

        Raises
        ------
        InputError
            If the encoder cannot be found, or the folder has another one.
        """
        return cls.from_hparams(source=OPEN_ENGLISH, ssl=ssl, words=words, **kwargs)

    @classmethod
    def from_hparams(
        cls,
        source,
        savedir=None,
        revision=None,
        trust=False,
        ssl=None,
        words=None,
        language="en",
        **kwargs,
    ):
        """Load a model that training exported.

        Arguments
        ---------
        source : str or Path
            Folder, or name on the Hugging Face hub, which is fetched.
        savedir : str or Path, optional
            Folder for a fetched model (default: the hub's cache).
        revision : str, optional
            Branch, tag or commit of a model on the hub.
        trust : bool
            Whether the folder's YAML may construct, call, read and fetch whatever it names.
            Without, a YAML that asks for more than a model of this package is refused.
        ssl : str or Path, optional
            Folder of the SSL model of a packed model, as ``open_english`` takes it.
        words : str, optional
            Who writes the words: ``own``, the model; ``whisper``, Whisper's decoder, whose words
            the model aligns. The latter needs a packed model of words with Whisper's encoder, and
            the whole Whisper in the SSL model's folder. If None, Whisper writes where it can, as
            its words are much better (``benchmarks/peers.py``).
        language : str
            Code of the language that Whisper's decoder is to write.
        **kwargs
            Of SpeechBrain's ``from_hparams``: ``run_opts={"device": "cuda"}``, for one. With
            ``run_opts={"precision": "bf16"}``, the front end computes in bfloat16.

        Returns
        -------
        EmotionTransducer

        Raises
        ------
        InputError
            If there is no model, or one that is incomplete, damaged or not to be trusted.
        """
        if words not in (None, *WORDS):
            raise InputError(f"words: {words!r}: choose {' or '.join(WORDS)}")
        if isinstance(run_opts := kwargs.get("run_opts"), dict):
            device = run_opts.get("device")
            check_device(device)
            if (precision := run_opts.get("precision", "fp32")) not in PRECISIONS:
                raise InputError(f"precision: {precision!r}: choose {' or '.join(PRECISIONS)}")
            if isinstance(device, torch.device):  # SpeechBrain takes its name alone
                kwargs["run_opts"] = run_opts | {"device": str(device)}
        folder = find_model(source, savedir, revision)
        try:
            if not trust:
                check_model(folder)
            encoder = find_encoder(folder, ssl, {"own": False, "whisper": True}.get(words))
            overrides = {} if encoder is None else {"ssl_source": str(encoder)}
            overrides |= kwargs.pop("overrides", {})
            model = super().from_hparams(source=str(folder), overrides=overrides, **kwargs)
            frontend = model.mods.frontend
            if encoder is not None and frontend.settings.get("source") == str(encoder):
                check_ssl_weights(frontend.ssl_model, encoder / SSL_WEIGHTS)
            can_write = (
                model.mods.model.token_joints
                and isinstance(frontend, SSLFrontend)
                and frontend.has_last_states
            )
            if words == "whisper" and not can_write:
                raise InputError(
                    "words: whisper: needs a model of words with Whisper's encoder. Choose own."
                )
            if words == "whisper" or (words is None and can_write and has_decoder(encoder)):
                from ent_brain.whisper import WhisperDecoder  # transformers takes seconds to import

                model.whisper, model.language = WhisperDecoder(encoder, frontend), language
            return model
        except (InputError, torch.OutOfMemoryError):  # a GPU that is full is no fault of the folder
            raise
        except Exception as error:  # there is no one kind for what a damaged folder can do
            parts = error.args if isinstance(error, TypeError) else [error]  # hyperpyyaml adds one
            reason = " ".join(map(one_line, parts))
            remedy = "export again"
            if isinstance(error, ImportError):  # a class of another project
                remedy = "install its module, or add the module's folder to PYTHONPATH"
            raise InputError(f"{folder}: makes no model ({reason}): {remedy}") from error

    def scan(self, path, channel=None, least=0.0):
        """Look through a sound file as ``scan_audio`` does, and find its speech on the way.

        The ``_file`` methods do this first. They take the result in place of the path, and then
        decode the file once more.

        Arguments
        ---------
        path, channel
            As for ``scan_audio``.
        least : float
            Seconds; speech is found only in a recording that is longer.

        Returns
        -------
        Audio

        Raises
        ------
        InputError
            As ``scan_audio`` does.
        """
        inspection = Inspection(self._survey_blocks, self.mods.frontend.sample_rate, least)
        return scan_audio(path, channel, inspection)

    def transcribe_file(self, path):
        """Words of a sound file (str), normalised as in training."""
        return _text(self._hear_file(self.scan(path), progressbar=False))

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
            If the file cannot be read, has less than 0.1 s of speech, or the model has no emotions.
        """
        audio = self.scan(path)
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
            Also if a waveform has less than 0.1 s of speech, or the model has no emotions.
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
        audio = self.scan(path, channel)
        heard = self._hear_file(audio, progressbar)
        return self._annotate(audio.path.stem, heard, audio.notes)

    def annotate_batch(self, wavs, wav_lens=None, names=None):
        """Everything that the model makes of waveforms.

        Arguments
        ---------
        wavs : Tensor
            [B, S] or [S] at the front end's ``sample_rate``.
        wav_lens : Tensor, optional
            [B] relative lengths (default: all 1).
        names : sequence of str, optional
            Names of the recordings (default: their numbers from 0).

        Returns
        -------
        list[Annotation]
        """
        heard = self._hear_batch(wavs, wav_lens)
        names = list(map(str, range(len(heard))) if names is None else names)
        if len(names) != len(heard):
            raise InputError(f"names: {len(names)} for {len(heard)} waveforms. Give one for each.")
        return [self._annotate(*named) for named in zip(names, heard, strict=True)]

    def align_file(self, path, text, progressbar=True, channel=None):
        """Times and emotions of the known words of a sound file.

        The words are aligned by the most probable path through the model's lattice of the whole
        recording, or of each passage. Their text is kept as it is written.

        Arguments
        ---------
        path, progressbar, channel
            As for ``annotate_file``.
        text : str or sequence of Passage
            What is said. Each passage is aligned in its own part of the recording.

        Returns
        -------
        Annotation
            Its ``notes`` name the words that the tokens cannot spell, and those that the recording
            may not have.

        Raises
        ------
        InputError
            Also if the model has no words, a passage is not within the recording, or one is too
            long to align at once.
        """
        audio = self.scan(path, channel)
        spans, encoded = [], []
        survey = self._survey(audio)
        for windows, wavs, lens in self._read(audio, survey, progressbar):
            encoded += self._encode_each(wavs, lens)
            spans += [(window.start, window.start + len(window.wav)) for window in windows]
        return self._align(
            audio.path.stem, spans, encoded, survey.speech, text, audio.label, audio.notes
        )

    def align_batch(self, wavs, texts, wav_lens=None, names=None):
        """Times and emotions of the known words of waveforms.

        Arguments
        ---------
        wavs, wav_lens, names
            As for ``annotate_batch``.
        texts : sequence
            Of each waveform, as for ``align_file``.

        Returns
        -------
        list[Annotation]
        """
        alone = self._check_batch(wavs, wav_lens)
        surveys = [self._survey_blocks([wav]) for wav in alone]
        prepared = [survey.apply(wav) for survey, wav in zip(surveys, alone, strict=True)]
        encoded = self._encode_each(*batch_pad_right(prepared))
        names = list(map(str, range(len(encoded))) if names is None else names)
        for key, values in (("names", names), ("texts", texts)):
            if isinstance(values, str) or len(values) != len(encoded):
                raise InputError(
                    f"{key}: {len(values)} for {len(encoded)} waveforms. Give one for each."
                )
        return [
            self._align(name, [(0, each.samples)], [each], survey.speech, text, name)
            for name, each, survey, text in zip(names, encoded, surveys, texts, strict=True)
        ]

    def with_own_words(self):
        """Make a model that writes its own words, in place of Whisper's, and shares the weights.

        Returns
        -------
        EmotionTransducer
        """
        own = copy.copy(self)
        own.whisper = None
        return own

    def _annotate(self, name, heard, notes=(), words_by=None):
        words_by = words_by or ("model" if self.whisper is None else "whisper")
        notes = *notes, *heard.notes
        emotions, frame_duration = self.emotions, self.mods.frontend.frame_duration
        return annotate(name, heard, frame_duration, emotions, notes, words_by)

    @property
    def recognizer(self):
        """The steps from encoded speech to words, emotions and times (Recognizer)."""
        return Recognizer.from_hparams(self.mods, self.hparams.tokens, self.emotions, self.hparams)

    def _survey(self, audio):
        """Survey of a sound file: that of ``scan``, or from decoding the file once more."""
        function, survey = audio.inspected
        if function == self._survey_blocks:
            return survey
        return self._survey_blocks(read_blocks(audio, self.mods.frontend.sample_rate))

    def _survey_blocks(self, blocks):
        """Look through the samples of a recording, in blocks at 16 kHz (``Survey``)."""
        rate, level = self.mods.frontend.sample_rate, self.mods.frontend.level
        means, powers = [], []

        def measured():
            for block in blocks:
                means.append(step_means(block, rate))
                powers.append(step_powers(block, rate))
                yield block

        speech = find_speech(measured())
        means, powers = torch.cat(means), torch.cat(powers)
        mean, power = float(means.mean()), float(powers.mean())
        deviation = max(power - mean**2, 0.0) ** 0.5
        offset = mean if abs(mean) > OFFSET * deviation else 0.0
        if level is None:
            return Survey(speech, offset, 1.0)
        powers = powers - 2 * offset * means + offset**2
        spoken = speech.spoken_frames(len(powers), round(STEP * rate))
        if spoken.any():
            powers = powers[torch.from_numpy(spoken)]
        return Survey(speech, offset, gain(powers.clamp(min=0), level))

    def _hear_file(self, audio, progressbar):
        """What the model makes of a sound file (``Audio``), ``Heard``."""
        rate, seconds = self.mods.frontend.sample_rate, audio.seconds
        survey = self._survey(audio)
        [heard] = self._hear_speech(
            [(survey, read_blocks(audio, rate))], self._progress(audio, progressbar)
        )
        return heard._replace(seconds=seconds)

    def _progress(self, audio, progressbar):
        """Make a function that takes the seconds done, and shows the progress."""
        seconds = audio.seconds
        hidden = progressbar is not True or seconds <= self.hparams.longest_window
        bar = tqdm(total=round(seconds), desc=audio.path.name, unit="s", disable=hidden)

        def tell(done):
            bar.update(round(done) - bar.n)
            if callable(progressbar):
                progressbar(min(1.0, done / seconds))
            if done >= seconds:
                bar.close()

        return tell

    def _hear_speech(self, recordings, tell=None):
        """What the model makes of pairs of a Survey and blocks of samples, list[Heard].

        The model hears the stretches with speech alone.
        """
        frontend, longest = self.mods.frontend, self.hparams.longest_window
        rate, step = frontend.sample_rate, frontend.frame_samples
        spans = [[] for _ in recordings]

        def windows():
            for row, (survey, blocks) in enumerate(recordings):
                blocks = map(survey.apply, blocks)  # an offset would hide the pauses
                stretches = survey.speech.stretches() if survey.speech.seconds >= SHORTEST else []
                for window in cut(blocks, stretches, rate, longest, step):
                    spans[row].append((window.start, window.start + len(window.wav)))
                    yield window

        results = []
        for batch in in_batches(windows(), len(recordings) * longest * rate):
            if results:  # a short recording does not need it
                return_memory()
            results += self._hear(*batch_pad_right([window.wav for window in batch]))
            if tell:
                tell((batch[-1].start + len(batch[-1].wav)) / rate)
        if tell:
            tell(recordings[0][0].speech.samples / rate)
        rest = iter(results)
        return [
            self._whole(survey.speech, own, list(islice(rest, len(own))))
            for (survey, _), own in zip(recordings, spans, strict=True)
        ]

    def _whole(self, speech, spans, results):
        """Join what the model makes of the windows of a recording, ``Heard``."""
        frontend = self.mods.frontend
        rate, step = frontend.sample_rate, frontend.frame_samples
        seconds = speech.samples / rate
        if not spans:
            return Heard(seconds, [], None, None, None, (NO_SPEECH,))
        frames = self._count_frames(speech.samples)
        spoken = speech.spoken_frames(frames, step)
        joined = join(spans, results, rate, step, frames, spoken)
        return self._only_speech(joined._replace(seconds=seconds), speech)

    def _read(self, audio, survey, progressbar):
        """Yield windows of a whole file in batches: windows, waveforms [B, S] and lengths [B]."""
        frontend, longest = self.mods.frontend, self.hparams.longest_window
        rate, tell = frontend.sample_rate, self._progress(audio, progressbar)
        blocks = map(survey.apply, read_blocks(audio, rate))
        stream = cut(blocks, [(0, math.inf)], rate, longest, frontend.frame_samples)
        for windows in in_batches(stream, longest * rate):
            yield windows, *batch_pad_right([window.wav for window in windows])
            tell((windows[-1].start + len(windows[-1].wav)) / rate)

    def _count_frames(self, samples):
        """Number of frames (int) of a recording with this number of samples."""
        frontend = self.mods.frontend
        return frontend.count_frames(max(samples, int(SHORTEST * frontend.sample_rate)))

    def _hear_batch(self, wavs, wav_lens):
        """Results (list[Heard]) for a caller's waveforms [B, S] or [S]."""
        alone = self._check_batch(wavs, wav_lens)
        return self._hear_speech([(self._survey_blocks([wav]), [wav]) for wav in alone])

    def _hear_on(self, wav, before, seconds):
        """What the model makes of samples [S] whose first words are known (``Heard``).

        The words ``before`` (list[str]) are said up to ``seconds``.
        """
        frontend, recognizer, tokens = self.mods.frontend, self.recognizer, self.hparams.tokens
        survey = self._survey_blocks([wav])
        encoded, frame_lens, _ = self._encode(*batch_pad_right([survey.apply(wav)]))
        if self.mods.model.token_joints:
            frame = min(int(seconds / frontend.frame_duration), int(frame_lens) - 1)
            found = recognizer.go_on(encoded, frame_lens, tokens.encode(" ".join(before)), frame)
        else:
            [found] = recognizer.recognize(encoded, frame_lens)
        heard = recognizer.heard(found, tokens.words(found.tokens), len(wav) / frontend.sample_rate)
        if not self.mods.model.token_joints:
            # A CTC head cannot continue after known tokens: it would repeat a token, or lose the
            # space before a word. So it reads the whole, and gives the words after ``seconds``.
            known = [TimedWord(text, 0.0, seconds) for text in before]
            new = [word for word in heard.words if word.start + word.end > 2 * seconds]
            heard = heard._replace(words=[*known, *new])
        return self._only_speech(heard, survey.speech)

    def _check_batch(self, wavs, wav_lens):
        """Check a caller's batch; return its waveforms (list of [S]) without padding."""
        try:
            wavs = torch.as_tensor(wavs)
        except (TypeError, ValueError) as error:  # a list of waveforms of several lengths
            raise InputError(
                "wavs: no tensor. Pad waveforms to one length, and give wav_lens."
            ) from error
        shape = list(wavs.shape)
        wavs = wavs[None] if wavs.dim() == 1 else wavs
        if wavs.dim() != 2 or not wavs.numel() or not wavs.is_floating_point():
            raise InputError(
                f"wavs: {wavs.dtype} of shape {shape}. Give floating-point samples from -1 to 1, "
                "[S] or [B, S], with at least one sample."
            )
        lens = torch.ones(len(wavs)) if wav_lens is None else torch.as_tensor(wav_lens).cpu()
        if lens.shape != (len(wavs),) or not ((lens > 0) & (lens <= 1)).all():
            raise InputError(
                f"wav_lens: {lens.tolist()} for {len(wavs)} waveforms. Give each a share of the "
                "longest, above 0 and up to 1."
            )
        wavs = wavs.float().cpu()
        samples = self.mods.frontend.sample_lens(wavs, lens).tolist()
        alone = [wav[:count] for wav, count in zip(wavs, samples, strict=True)]
        for index, wav in enumerate(alone):
            if not (wav.abs() <= LOUDEST).all():  # NaN is not below it
                raise InputError(
                    f"wavs: waveform {index} has samples that are NaN or absurdly large. Replace "
                    "it."
                )
        return alone

    def _only_speech(self, heard, speech):
        """What was heard of a recording, with neutral frames where nobody speaks."""
        neutral = self.emotions.neutral_index
        heard = heard._replace(notes=(*heard.notes, *_note_band(speech)))
        if heard.frame_log_probs is None or neutral is None:
            return heard
        rows, labels = heard.frame_log_probs.clone(), np.array(heard.labels)
        silent = ~speech.spoken_frames(len(rows), self.mods.frontend.frame_samples)
        rest = torch.full((rows.size(1),), (1 - CERTAIN) / (rows.size(1) - 1))
        rest[neutral] = CERTAIN
        rows[torch.from_numpy(silent)] = rest.log().to(rows)
        labels[silent] = neutral
        return heard._replace(frame_log_probs=rows, labels=labels.tolist())

    def _encode_each(self, wavs, wav_lens):
        """Encode waveforms (list[Encoded])."""
        streams, frame_lens, samples = self._encode(wavs, wav_lens)
        return [
            Encoded(Streams(*(stream[row, :frames] for stream in streams)), count)
            for row, (frames, count) in enumerate(
                zip(frame_lens.tolist(), samples.tolist(), strict=True)
            )
        ]

    def _align(self, name, spans, encoded, speech, text, label, notes=()):
        """Annotate a recording whose words are known, from its encoded windows."""
        frontend, recognizer = self.mods.frontend, self.recognizer
        if not self.mods.model.token_joints:
            raise InputError("model: has no words to align. Load one that has.")
        rate, frame_samples = frontend.sample_rate, frontend.frame_samples
        seconds = spans[-1][1] / rate
        if seconds < SHORTEST:
            without = Heard(seconds, [], None, None, None, (NO_SPEECH,))
            return self._annotate(name, without, notes, "transcript")
        counts = [len(each.streams.emotion) for each in encoded]
        rows, parts = join_rows(spans, counts, frame_samples, self._count_frames(spans[-1][1]))
        joined = zip(*(each.streams for each in encoded), strict=True)
        streams = Streams(*(torch.cat(stream)[rows][None] for stream in joined))
        passages = [Passage(text)] if isinstance(text, str) else text
        words, emissions, told = self._place(streams, passages, seconds, label)
        heard = []
        for each, (begin, end) in zip(encoded, parts, strict=True):
            if begin < end:
                within = [(token, t - begin) for token, t in emissions if begin <= t < end]
                path = TokenPath(*map(list, zip(*within, strict=True)) if within else ([], []), 0.0)
                part = Streams(*(stream[:, begin:end] for stream in streams))
                lens = torch.tensor([end - begin], device=self.device)
                [found] = recognizer.judge(part, lens, [path])
                words_of = self.hparams.tokens.words(found.tokens)
                heard.append(recognizer.heard(found, words_of, each.samples / rate))
        parts = [
            (begin * frame_samples, end * frame_samples) for begin, end in parts if begin < end
        ]
        parts[-1] = parts[-1][0], spans[-1][1]
        joined = join(parts, heard, rate, frame_samples, len(rows))
        joined = self._only_speech(joined, speech)
        joined = joined._replace(words=[word for word, _ in words], seconds=seconds)
        annotation = self._annotate(name, joined, (*notes, *told), "transcript")
        turns = [
            Turn(each.start, seconds if each.end is None else each.end, each.speaker)
            for each in passages
            if each.speaker is not None
        ]
        if not turns:
            return annotation
        annotation = name_speakers(annotation, turns)
        return replace(  # whoever speaks at the same time
            annotation,
            words=tuple(
                word._replace(speaker=speaker)
                for word, (_, speaker) in zip(annotation.words, words, strict=True)
            ),
        )

    def _place(self, streams, passages, seconds, label):
        """Align the words of passages with encoder streams [1, T, D].

        Returns
        -------
        list, list, list[str]
            Each word (TimedWord) with its speaker; (token, frame) of each token; notes. The first
            two by time.
        """
        frame_duration, tokens = self.mods.frontend.frame_duration, self.hparams.tokens
        words, emissions, unspelled, implausible = [], [], [], []
        check_passages(passages, seconds, label)
        for passage in passages:
            until = seconds if passage.end is None else min(passage.end, seconds)
            count = streams.emotion.size(1)
            begin = min(round(passage.start / frame_duration), count - 1)
            end = count if until == seconds else round(until / frame_duration)
            end = min(max(end, begin + 1), count)
            spelling = spell(passage.text, tokens, self.language)
            if (end - begin) * len(spelling.tokens) > MOST_NODES:
                raise InputError(
                    f"{label}: {until - passage.start:.0f} s with {len(spelling.tokens)} tokens "
                    "are too long to align at once. Give a TextGrid with utterances, or cut it."
                )
            part = Streams(*(stream[:, begin:end] for stream in streams))
            frames, scores = align_tokens(self.mods.model, part, spelling.tokens)
            offset = begin * frame_duration
            limit = min(seconds, end * frame_duration) - offset
            frame_offset = self.mods.frontend.frame_offset
            times = word_times(spelling.words, frames, frame_duration, limit, frame_offset)
            for (_, first, last), word in zip(spelling.words, times, strict=True):
                word = word.moved(offset)
                if passage.is_word:
                    word = word._replace(start=passage.start, end=until)
                words.append((word, passage.speaker))
                if first < last and sum(scores[first:last]) < IMPLAUSIBLE * (last - first):
                    implausible.append(f"{word.text} at {word.start:.2f} s")
            if emissions and frames:  # the space between two passages, where tokens have one
                emissions += [(token, begin + frames[0]) for token in tokens.encode(" ")]
            emissions += zip(spelling.tokens, [begin + frame for frame in frames], strict=True)
            unspelled += spelling.unspelled
        notes = []
        if unspelled:
            notes.append(f"the model's tokens cannot spell {_count(unspelled)}")
        if implausible:
            notes.append(f"the recording may not have {_count(implausible)}")
        words.sort(key=lambda pair: pair[0].start)
        return words, sorted(emissions, key=lambda emission: emission[1]), notes

    @torch.no_grad()
    def _encode(self, wavs, wav_lens):
        """Encode waveforms.

        Returns
        -------
        (Streams, Tensor, Tensor)
            [B, T, D] each; [B] frames; and [B] samples.
        """
        frontend, model = self.mods.frontend, self.mods.model
        if (dtype := next(model.parameters()).dtype) != torch.float32:  # as SpeechBrain's Fbank is
            raise InputError(f"model: weights are {dtype}. Call model.float() first.")
        wavs = torch.as_tensor(wavs, dtype=torch.float32, device=self.device)
        samples = frontend.sample_lens(wavs, torch.as_tensor(wav_lens, device=self.device))
        beyond = torch.arange(wavs.size(1), device=self.device) >= samples[:, None]
        wavs = wavs.masked_fill(beyond, 0.0)
        shortest = int(SHORTEST * frontend.sample_rate)
        wavs = torch.nn.functional.pad(wavs, (0, max(0, shortest - wavs.size(1))))
        with self.inference_ctx:
            features, frame_lens = frontend(wavs, samples.clamp(min=shortest) / wavs.size(1))
        return model.encode(features.float(), frame_lens), frame_lens, samples

    @torch.no_grad()
    def _hear(self, wavs, wav_lens):
        """What the model makes of waveforms, list[Heard]."""
        recognizer, rate = self.recognizer, self.mods.frontend.sample_rate
        encoded, frame_lens, samples = self._encode(wavs, wav_lens)
        if self.whisper is None:
            hypotheses = recognizer.recognize(encoded, frame_lens)
            words = [self.hparams.tokens.words(hypothesis.tokens) for hypothesis in hypotheses]
        else:
            # Where the model itself finds no word, Whisper invents some.
            found = finds_tokens(self.mods.model, encoded, frame_lens).tolist()
            rows = [row for row, any_token in enumerate(found) if any_token]
            texts = self._ask_whisper(wavs, samples, rows)
            spelled = [spell(text, self.hparams.tokens, self.language) for text in texts]
            words = [each.words for each in spelled]
            paths = [TokenPath(each.tokens, [], 0.0) for each in spelled]
            paths = align(self.mods.model, encoded, frame_lens, paths)
            hypotheses = recognizer.judge(encoded, frame_lens, paths)
        lengths = [count / rate for count in samples.tolist()]  # not in float32
        return [recognizer.heard(*parts) for parts in zip(hypotheses, words, lengths, strict=True)]

    def _ask_whisper(self, wavs, samples, rows):
        """Whisper's texts (list[str]) of waveforms [B, S]; empty except for ``rows``."""
        texts = [""] * len(wavs)
        if rows:
            alone = [wavs[row, : samples[row]] for row in rows]
            with self.inference_ctx:
                states = self.whisper.encode(alone)
            found = self.whisper.transcribe(alone, states, self.language)
            for row, text in zip(rows, found, strict=True):
                texts[row] = text
        return texts


class Survey(NamedTuple):
    """Properties of a recording, measured before the model hears it."""

    speech: Speech
    offset: float
    """Constant to subtract from all samples."""
    gain: float
    """Factor that brings the speech to the front end's level; 1 if it has none."""

    def apply(self, wav):
        """Samples [S] as the model is to hear them."""
        return (wav - self.offset) * self.gain


def return_memory():
    """Return freed memory to the system. glibc keeps it, some hundred MB in an hour of sound."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _note_band(speech):
    """A note (in a tuple) if the speech has no high frequencies."""
    highest = highest_frequency(speech.spectrum)
    if highest >= NARROW:
        return ()
    return (
        f"the recording holds nothing above {highest:.0f} Hz. The model learnt from speech "
        "with higher frequencies, so words will be worse",
    )


def _count(names):
    """How many words there are, and the first of them (str)."""
    number = "1 word" if len(names) == 1 else f"{len(names)} words"
    return f"{number}: {first_names(names)}"


def _text(heard):
    return " ".join(text for text, _, _ in heard.words)


def _probabilities(heard, label):
    """Probabilities [E] of the emotions of a recording."""
    if heard.utterance_log_probs is None:
        if NO_SPEECH in heard.notes:
            raise InputError(f"{label}: {NO_SPEECH}. Give more speech.")
        raise InputError(f"{label}: the model has no emotions. Load one that has.")
    return heard.utterance_log_probs.exp()
