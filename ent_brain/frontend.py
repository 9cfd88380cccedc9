"""Front ends: waveforms to layered features [B, T, L, D], and how long a frame is.

Every front end has ``sample_rate`` (Hz), ``frame_samples`` (samples a frame), ``feature_dim`` (D),
``feature_layers`` (L), ``max_samples`` and ``count_frames``; ``frame_duration`` (seconds) follows
from them, and every time in seconds follows from it.
"""

import copy
import re
from pathlib import Path
from typing import NamedTuple

import torch
from speechbrain.dataio.dataio import length_to_mask
from speechbrain.lobes.features import Fbank
from speechbrain.processing.features import mean_std_update
from speechbrain.utils.checkpoints import mark_as_saver, register_checkpoint_hooks
from torch import nn

from ent_brain.cache import FeatureCache, model_digest, weights_digest
from ent_brain.errors import InputError, one_line
from ent_brain.files import written
from ent_brain.manifest import SAMPLE_RATE
from ent_brain.quiet import quiet_transformers


class SSLKind(NamedTuple):
    """A kind of model in transformers that gives hidden states at a regular rate."""

    base: str
    """The base model's name on the hub."""
    window: int | None = None
    """Samples that an utterance needs for its first frame. None for models of waveforms, where it
    follows from their convolutions; other models take the mel bands of their feature extractor."""
    hop: int | None = None
    """Samples from one frame to the next; None for models of waveforms."""
    pad_to: int | None = None
    """Zeros are appended to an utterance up to a multiple of this number of samples."""
    first_center: int | None = None
    """Samples to the middle of the first hidden state's window; None where that is of ``window``.
    """


SSL_MODELS = {
    "wav2vec2": SSLKind("facebook/wav2vec2-base"),  # XLS-R and MMS are of this kind
    "hubert": SSLKind("facebook/hubert-base-ls960"),
    "wavlm": SSLKind("microsoft/wavlm-base"),
    "data2vec-audio": SSLKind("facebook/data2vec-audio-base"),
    # Two mel frames of 400 samples, 160 apart, make a frame.
    "wav2vec2-bert": SSLKind("facebook/w2v-bert-2.0", window=560, hop=320),
    "whisper": SSLKind("openai/whisper-base", window=1, hop=320, pad_to=320, first_center=0),
}
"""The kinds by their ``model_type`` in transformers."""

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""Names on the Hugging Face hub: owner/name."""

FROZEN_PARTS = (
    "feature_extractor.",
    *(f"encoder.{name}." for name in ("conv1", "conv2", "embed_positions")),
)
"""Prefixes of parameters that fine-tuning leaves as they are: convolutions before the layers, and
Whisper's sinusoids."""

LEAST_DEVIATION = 1e-3
"""That a mel band is divided by: in silence there is none."""


@register_checkpoint_hooks
class Frontend(nn.Module):
    """What the front ends share."""

    sample_rate = SAMPLE_RATE
    settings: dict
    """Arguments that make this front end again, for use after training."""
    frame_samples: int
    feature_dim: int
    feature_layers: int
    level: float | None = None
    """dB of full scale to which the active speech of an utterance or a recording is brought before
    ``forward`` takes it (``level.bring_to_level``); None leaves it as it was recorded."""
    max_samples: int | None = None
    """Samples of the longest utterance that it can encode; None for no limit."""
    frame_offset = 0.0
    """Seconds from when a frame begins by its number to where what it is centred on begins. Below 0
    where windows are centred on the start of their hop, as Whisper's are."""
    cache: FeatureCache | None = None
    """Where features are kept from epoch to epoch; ``forward`` then takes what was found there."""

    @property
    def frame_duration(self):
        """Seconds from one frame to the next."""
        return self.frame_samples / self.sample_rate

    def count_frames(self, samples):
        """Frames of an utterance of so many samples, an int or an int tensor."""
        raise NotImplementedError

    def describe(self):
        """What the features are computed by (dict, to be written as JSON)."""
        return {"frontend": type(self).__name__, **self.settings}

    def sample_lens(self, wavs, wav_lens):
        """Sample counts [B] of waveforms [B, S] with SpeechBrain's relative lengths [B]."""
        return torch.round(wav_lens * wavs.size(1)).long()

    @mark_as_saver
    def _save(self, path):
        """Save as SpeechBrain does, but without its warning that a frozen model saves nothing."""
        torch.save(self.state_dict(), path)


class FbankFrontend(Frontend):
    """80 log-mel energies every 10 ms, normalised, stacked to frames of 20 or 40 ms.

    The shape of an utterance's average spectrum, which tells the voice and the microphone, is taken
    out; its average level stays, as loudness tells emotions apart. Then each mel band is normalised
    by the mean and deviation of all training audio that all processes have seen so far.

    Arguments
    ---------
    frame_duration : float
        Seconds a frame: 0.02 or 0.04.
    normalize_utterances : bool
        Whether the level and its changes are taken out, too: each mel band of an utterance then has
        mean 0 and deviation 1, and emotions are told by what changes within it.
    level : float, optional
        dB of full scale of active speech, as ``Frontend.level``.
    augment : list of nn.Module, optional
        SpeechBrain augmenters of spectrograms [B, time, 80] (``SpectrogramDrop``, ``Warping``),
        applied in training.

    Raises
    ------
    ValueError
        If the frame duration is not a whole number of 10 ms.

    Example
    -------
    >>> frontend = FbankFrontend(frame_duration=0.04)
    >>> features, frame_lens = frontend(torch.randn(2, 16000), torch.tensor([1.0, 0.5]))
    >>> features.shape, frame_lens.tolist()
    (torch.Size([2, 26, 1, 320]), [26, 13])
    """

    mel_bands = 80
    hop_samples = 160

    def __init__(self, frame_duration=0.02, normalize_utterances=False, level=None, augment=()):
        super().__init__()
        self.settings = {
            "frame_duration": frame_duration,
            "normalize_utterances": normalize_utterances,
            **({} if level is None else {"level": level}),
        }
        self.level = level
        self.normalize_utterances = normalize_utterances
        self.stacked = round(frame_duration * self.sample_rate / self.hop_samples)
        self.frame_samples = self.stacked * self.hop_samples
        if self.stacked < 1 or abs(self.frame_samples / self.sample_rate - frame_duration) > 1e-9:
            raise ValueError(f"frame_duration {frame_duration} is not a whole number of 10 ms")
        self.feature_dim = self.mel_bands * self.stacked
        self.feature_layers = 1
        self.augment = nn.ModuleList(augment)
        self.fbank = Fbank(sample_rate=self.sample_rate, n_mels=self.mel_bands)
        self.register_buffer("mean", torch.zeros(self.mel_bands))
        self.register_buffer("deviation", torch.ones(self.mel_bands))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def count_frames(self, samples):
        """Frames of an utterance: every 10 ms step that begins in it, stacked, rounded up."""
        return -(-(samples // self.hop_samples + 1) // self.stacked)

    @torch.no_grad()
    def forward(self, wavs, wav_lens):
        """Compute features.

        Arguments
        ---------
        wavs : Tensor
            [B, S] at 16 kHz.
        wav_lens : Tensor
            [B] relative lengths.

        Returns
        -------
        (Tensor, Tensor)
            Features [B, T, 1, 80 * stacked] and frame counts [B].
        """
        samples = self.sample_lens(wavs, wav_lens)
        frame_lens = self.count_frames(samples)
        # Zeros up to the last window that any frame sees, so that the batch changes nothing.
        steps = int(frame_lens.max()) * self.stacked
        wavs = nn.functional.pad(wavs, (0, steps * self.hop_samples - wavs.size(1)))
        mels = self.fbank(wavs)[:, :steps]
        used = torch.arange(steps, device=mels.device) * self.hop_samples <= samples[:, None]
        used = used[..., None]
        average = (mels * used).sum(1, keepdim=True) / used.sum(1, keepdim=True)
        if self.normalize_utterances:
            mels = mels - average
            variance = (mels.square() * used).sum(1, keepdim=True) / used.sum(1, keepdim=True)
            mels = mels / variance.sqrt().clamp(min=LEAST_DEVIATION)
        else:
            mels = mels - (average - average.mean(2, keepdim=True))
        if self.training:
            self._observe(mels, used)
        mels = (mels - self.mean) / self.deviation
        if self.training:
            for augment in self.augment:
                mels = augment(mels)
        return mels.reshape(len(mels), -1, 1, self.feature_dim), frame_lens

    def _observe(self, mels, used):
        count, mean, deviation = mean_std_update(
            mels, used, (0, 1), self.count, self.mean, self.deviation
        )
        self.count.fill_(count)
        self.mean.copy_(mean)
        self.deviation.copy_(deviation.clamp(min=LEAST_DEVIATION))


class SSLFrontend(Frontend):
    """A pretrained speech encoder of transformers, frozen or fine-tuned.

    Frozen, it gives all hidden states, or the chosen ones; it stays in eval mode, has no gradient,
    and is no part of this module's parameters, so neither optimiser nor checkpoint holds it. Its
    features can be cached, so that each utterance is encoded once for all epochs.

    Fine-tuned, it gives the last hidden state; the convolutions are frozen, and the model's own
    SpecAugment masks its input in training (Whisper: the mel spectrogram, in frames of 10 ms).

    Each utterance is encoded alone, because the base models' group normalisation makes features
    depend on padding. The exception is the training of a fine-tuned model of waveforms.

    Whisper encodes an utterance at its own length, up to 30 s; the published models pad every
    utterance to 30 s. Its decoder is not loaded. Its features depend on the recording's level.

    Arguments
    ---------
    model : str
        A key of ``SSL_MODELS``.
    source : str or Path, optional
        Hub name, after an ``@`` a revision to pin; or a local folder, which needs no network. The
        hub's base model if None.
    save_path : str or Path
        Cache folder for models from the hub.
    frozen : bool
    spec_augment : dict, optional
        Settings of the model's own SpecAugment for fine-tuning, by their names in its
        configuration: ``mask_time_prob``, ``mask_time_length``, ``mask_feature_prob``,
        ``mask_feature_length``.
    layers : list of int, optional
        Which hidden states a frozen model gives, 0 for the input of the first layer; all if None.
    stacked : int
        Neighbouring frames that are concatenated into one. Zeros fill up the last one.
    level : float, optional
        dB of full scale of active speech, as ``Frontend.level``.
    cache_folder : str or Path, optional
        Where the features of a frozen model are cached, so that each utterance is encoded once.
        They are cached before stacking.
    cache_precision : str
        ``float16`` or ``bfloat16``: the precision of cached features.
    augment : list of nn.Module, optional
        SpeechBrain's ``SpectrogramDrop``s, which mask in training, with zeros, stretches of frames
        (dim 1) or groups of channels (dim 2) of the features of a frozen model: after the cache and
        stacking, the same in all layers.
    digest : str, optional
        ``weights_digest`` of the only weights that are accepted.

    Raises
    ------
    InputError
        If the weights have another digest.
    ValueError
        If the model is not in ``SSL_MODELS``, its source does not exist or holds one of another
        kind or lacks weights, a layer is not one of its own or given twice, ``stacked`` is below 1,
        or layers, a cache or such masks are asked of a model that is not frozen.
    """

    def __init__(
        self,
        model,
        source,
        save_path,
        frozen=True,
        spec_augment=None,
        layers=None,
        stacked=1,
        level=None,
        cache_folder=None,
        cache_precision="float16",
        augment=(),
        digest=None,
    ):
        super().__init__()
        if model not in SSL_MODELS:
            raise ValueError(f"unknown SSL model {model!r}: use one of {', '.join(SSL_MODELS)}")
        if not frozen and (layers is not None or cache_folder is not None):
            raise ValueError("layers are chosen, and features are kept, of a frozen SSL model only")
        # One that never masks must not draw a number of masks either: trainings would be others.
        self.augment = nn.ModuleList(drop for drop in augment if drop.drop_count_high)
        if self.augment and not frozen:
            raise ValueError("augment masks the features of a frozen SSL model: use spec_augment")
        if not isinstance(stacked, int) or stacked < 1:
            raise ValueError(f"stacked {stacked}: give a whole number of frames, at least 1")
        self.kind = SSL_MODELS[model]
        source = str(self.kind.base if source is None else source)
        self.settings = {
            "model": model,
            "source": source,
            "save_path": str(save_path),
            "frozen": frozen,
            "layers": layers,
            "stacked": stacked,
            **({} if level is None else {"level": level}),
        }
        self.level = level
        augment = {**(spec_augment or {}), "apply_spec_augment": not frozen}
        ssl, self.feature_extractor = _load(model, source, save_path, augment)
        if digest is not None:
            _check_digest(ssl, source, digest)
            self.settings["digest"] = digest
        config = ssl.config
        self.frozen, self.stacked = frozen, stacked
        window, hop = self.kind.window, self.kind.hop
        if self.takes_waveforms:
            window, hop = _receptive_field(config.conv_kernel, config.conv_stride)
        self._window, self._hop = window, hop
        center = window / 2 if self.kind.first_center is None else self.kind.first_center
        self.frame_offset = (center - hop / 2) / self.sample_rate  # stacking changes nothing
        self.frame_samples = hop * stacked
        self.feature_dim = config.hidden_size * stacked
        self.layers = _check_layers(layers, config.num_hidden_layers)
        self.feature_layers = len(self.layers) if frozen else 1
        if model == "whisper":
            self.max_samples = config.max_source_positions * hop
        for name, parameter in ssl.named_parameters():
            if frozen or name.startswith(FROZEN_PARTS):
                parameter.requires_grad = False
        # A list hides the frozen model from parameters(), state_dict() and train().
        self._ssl = [ssl.eval()]
        if not frozen:
            self.ssl = nn.ModuleDict({"model": ssl})
        if cache_folder is not None:
            self.cache = FeatureCache(cache_folder, self._made_from(), cache_precision)

    @property
    def ssl_model(self):
        """The model of transformers, frozen or not."""
        return self._ssl[0]

    @property
    def takes_waveforms(self):
        """Whether the model takes the waveform itself, not mel bands."""
        return self.kind.hop is None

    def describe(self):
        """What the features are computed by (dict); where the model was read from is no part."""
        stacked = {} if self.stacked == 1 else {"stacked": self.stacked}
        level = {} if self.level is None else {"level": self.level}
        return {**self._made_from(), **stacked, **level}

    def _made_from(self):
        """What cached features are computed by (dict)."""
        extractor = self.feature_extractor
        if self.takes_waveforms:
            normalization = {"normalize_wav": extractor.do_normalize}
        else:
            # Its filters follow from its settings.
            filters = ("mel_filters", "window")
            settings = {k: v for k, v in extractor.to_dict().items() if k not in filters}
            normalization = {"extractor": settings}
        return {
            "model": self.settings["model"],
            "weights": model_digest(self.ssl_model),
            **normalization,
            "layers": self.layers,
        }

    def _apply(self, fn, recurse=True):
        """Move the hidden model too, wherever this module goes."""
        if self.frozen:
            self.ssl_model._apply(fn)
        return super()._apply(fn, recurse)

    def save_ssl(self, folder):
        """Save the SSL model as the hub has it, so that ``source`` can name this folder.

        Weights are saved in float16 if that loses nothing, as with all published Whisper models.
        """
        model = self.ssl_model
        half = copy.deepcopy(model).half()
        pairs = zip(half.state_dict().values(), model.state_dict().values(), strict=True)
        lossless = all(torch.equal(rounded.to(exact), exact) for rounded, exact in pairs)
        with written():
            (half if lossless else model).save_pretrained(folder)
            self.feature_extractor.save_pretrained(folder)

    def count_frames(self, samples):
        """Frames of an utterance: every window that fits into it, stacked, rounded up."""
        return -(-self._count_states(samples) // self.stacked)

    def _count_states(self, samples):
        """Hidden states of an utterance, before stacking."""
        return (samples - self._window) // self._hop + 1

    def forward(self, wavs, wav_lens, kept=None):
        """Compute features.

        Arguments
        ---------
        wavs : Tensor
            [B, S] at 16 kHz; an utterance needs 400 samples (w2v-bert: 560; Whisper: 1).
        wav_lens : Tensor
            [B] relative lengths.
        kept : list of Kept, optional
            What the cache's ``look_up`` found for each utterance, as a loader's worker has done it;
            without it, it is done here.

        Returns
        -------
        (Tensor, Tensor)
            Features [B, T, L, D], 0 in the padding, in the precision of the cache if there is one,
            and frame counts [B].

        Raises
        ------
        InputError
            If an utterance is longer than ``max_samples``.
        """
        samples = self.sample_lens(wavs, wav_lens)
        longest = int(samples.max())
        if self.max_samples is not None and longest > self.max_samples:
            raise InputError(
                f"an utterance of {longest / self.sample_rate:.2f} s: {self.settings['model']} "
                f"encodes at most {self.max_samples / self.sample_rate:g} s: cut it"
            )
        if self.takes_waveforms and self.training and not self.frozen:
            features = self.encode(wavs, wav_lens)
            valid = length_to_mask(self._count_states(samples), features.size(1))
            features = features.masked_fill(valid[..., None, None] == 0, 0)
            return self._stack(features), self.count_frames(samples)
        alone = [wav[:count] for wav, count in zip(wavs, samples.tolist(), strict=True)]
        if self.cache is None:
            alone = [self.encode(wav[None])[0] for wav in alone]
        else:
            kept = kept or [self.cache.look_up(wav) for wav in alone]
            alone = [self._complete(*p).to(wavs.device) for p in zip(kept, alone, strict=True)]
        features = self._stack(nn.utils.rnn.pad_sequence(alone, batch_first=True))
        if self.training and self.augment:
            kept_parts = torch.ones_like(features[:, :, 0])
            for drop in self.augment:
                kept_parts = drop(kept_parts)
            features = features * kept_parts[:, :, None]
        return features, self.count_frames(samples)

    def encode(self, wavs, wav_lens=None):
        """Encode utterances together.

        Arguments
        ---------
        wavs : Tensor
            [B, S] at 16 kHz.
        wav_lens : Tensor, optional
            [B] relative lengths, for a model of waveforms; all utterances are whole if None.

        Returns
        -------
        Tensor
            Hidden states [B, T, L, D] before stacking.
        """
        if not self.frozen:  # a mask must fit: utterances shorter than a mask are not masked
            config, states = self.ssl_model.config, self._count_states(wavs.size(1))
            config.apply_spec_augment = states >= config.mask_time_length
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            if self.takes_waveforms:
                if self.feature_extractor.do_normalize:
                    wavs = nn.functional.layer_norm(wavs, wavs.shape[1:])
                mask = None
                if wav_lens is not None:
                    mask = length_to_mask(torch.round(wav_lens * wavs.size(1))).bool()
                given = {"input_values": wavs, "attention_mask": mask}
            else:
                with torch.autocast("cpu", enabled=False):  # it takes no half precision
                    mels = self.feature_extractor(
                        wavs.float().cpu().numpy(),
                        sampling_rate=self.sample_rate,
                        padding=True,
                        truncation=False,
                        pad_to_multiple_of=self.kind.pad_to,
                        return_tensors="pt",
                    )["input_features"]
                given = {"input_features": mels.to(wavs)}
            output = self.ssl_model(**given, output_hidden_states=self.frozen)
            if self.frozen:
                return torch.stack([output.hidden_states[layer] for layer in self.layers], 2)
            return output.last_hidden_state[:, :, None]

    @property
    def has_last_states(self):
        """Whether its features hold the last hidden states of a Whisper encoder (bool)."""
        last = self.ssl_model.config.num_hidden_layers
        return self.settings["model"] == "whisper" and last in self.layers

    def encode_last(self, wavs):
        """Last hidden states [B, T, D] of utterances [B, S] of one length, before stacking."""
        layer = self.layers.index(self.ssl_model.config.num_hidden_layers)
        return self.encode(wavs)[:, :, layer]

    def last_states(self, features, samples):
        """Last hidden states of utterances from their features.

        Arguments
        ---------
        features : Tensor
            [B, T, L, D] of ``forward``.
        samples : sequence of int
            Of each utterance.

        Returns
        -------
        list of Tensor
            [T, D] before stacking.

        Raises
        ------
        ValueError
            If the last hidden state is none of ``layers``.
        """
        layer = self.layers.index(self.ssl_model.config.num_hidden_layers)
        states = features[:, :, layer].unflatten(-1, (self.stacked, -1)).flatten(1, 2)
        return [
            row[: self._count_states(count)] for row, count in zip(states, samples, strict=True)
        ]

    def _complete(self, kept, wav):
        """Features of one utterance as the cache has them, or will have them."""
        if kept.features is not None:
            return kept.features
        # In full precision, so that the cache does not depend on the precision of the training.
        with torch.autocast(wav.device.type, enabled=False):
            return self.cache.keep(kept.name, self.encode(wav[None])[0])

    def _stack(self, features):
        """Concatenate neighbouring frames of [B, T, L, D], which are 0 in the padding."""
        if self.stacked == 1:
            return features
        padding = -features.size(1) % self.stacked
        features = nn.functional.pad(features, (0, 0, 0, 0, 0, padding))
        return features.unflatten(1, (-1, self.stacked)).transpose(2, 3).flatten(3)


def _load(kind, source, save_path, spec_augment):
    """Load a model and its feature extractor; settings of SpecAugment replace the model's own."""
    # Only here: transformers takes seconds to import, and log-mel energies do not need it.
    import transformers

    name, _, revision = source.partition("@")
    if Path(source).is_dir():
        name, revision = source, ""
    elif not HUB_NAME.fullmatch(name):
        raise ValueError(
            f"{source}: no folder, and no name on the Hugging Face hub (owner/name or "
            "owner/name@revision): correct the path or the name"
        )
    place = {"cache_dir": str(save_path), "revision": revision or "main"}
    try:
        given, _ = transformers.PreTrainedConfig.get_config_dict(name, **place)
    except OSError as error:  # whose message does not always name the model
        raise ValueError(
            f"{source}: cannot be read as a {kind} model ({one_line(error)}): check the name, the "
            "files and the network"
        ) from error
    if (held := given.get("model_type")) != kind:
        raise ValueError(f"{source}: holds a {held} model, not a {kind} one")
    config_class = transformers.CONFIG_MAPPING[kind]
    # The architecture's own settings only: others can name code and kernels on the hub.
    own = config_class().to_dict().keys() - transformers.PreTrainedConfig().to_dict().keys()
    config = config_class(**{key: value for key, value in given.items() if key in own})
    # Before the model is made: it has no vector for masked frames if it is not to mask any.
    for key, value in spec_augment.items():
        setattr(config, key, value)
    # In transformers 5 WavLM's model asks for this, its configuration does not have it.
    config.mask_feature_min_masks = getattr(config, "mask_feature_min_masks", 0)
    model_class = transformers.MODEL_MAPPING[config_class]
    if kind == "whisper":
        from ent_brain.whisper import WhisperSpeechEncoder

        model_class = WhisperSpeechEncoder
    with quiet_transformers(Path(source).is_dir()):  # what is missing is checked below
        model, report = model_class.from_pretrained(
            name, config=config, dtype=torch.float32, output_loading_info=True, **place
        )
    missing = set(report["missing_keys"])
    if "masked_spec_embed" in missing:
        # Many published models lack it. transformers would draw it at random.
        nn.init.zeros_(model.masked_spec_embed)
        missing.remove("masked_spec_embed")
    if missing:
        raise ValueError(
            f"{source}: {len(missing)} weights are missing, {min(missing)} for one: fetch the "
            f"{kind} model again"
        )
    extractor = transformers.AutoFeatureExtractor.from_pretrained(
        name, trust_remote_code=False, **place
    )
    return model, extractor


def _check_digest(ssl, source, digest):
    if (found := weights_digest(ssl)) != digest:
        raise InputError(
            f"{source}: not the encoder that this model was trained with (digest {found[:12]}, not "
            f"{digest[:12]}). Name the folder of the right one."
        )


def _receptive_field(kernels, strides):
    """Samples that the first frame of stacked convolutions sees, and samples a frame."""
    window, hop = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        window += (kernel - 1) * hop
        hop *= stride
    return window, hop


def _check_layers(layers, last):
    """Indices of hidden states, of ``last + 1``; all where None are chosen."""
    if layers is None:
        return list(range(last + 1))
    if not layers or len(set(layers)) < len(layers) or not set(layers) <= set(range(last + 1)):
        raise ValueError(f"layers {layers}: choose some of 0 to {last}, each once")
    return list(layers)


def make_frontend(model, stacked=1, level=None, **settings):
    """Make the front end of a name, for recipes in which a word on the command line chooses it.

    Arguments
    ---------
    model : str
        A key of ``SSL_MODELS``, or ``fbank`` for log-mel energies.
    stacked : int
        Frames of 20 ms that are concatenated into one.
    level : float, optional
        dB of full scale of active speech, as ``Frontend.level``.
    **settings
        Of ``SSLFrontend``; log-mel energies have no use for them.

    Returns
    -------
    Frontend
        Another name raises ``ValueError``.

    Example
    -------
    >>> make_frontend("fbank", stacked=2, source="the source of no SSL model").frame_duration
    0.04
    """
    if model == "fbank":
        return FbankFrontend(frame_duration=0.02 * stacked, level=level)
    return SSLFrontend(model, stacked=stacked, level=level, **settings)
