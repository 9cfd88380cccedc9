"""Front ends: from waveforms to layered features [B, T, L, D].

Every front end has ``sample_rate`` (Hz), ``frame_samples`` (samples per frame), ``feature_dim``
(D), ``feature_layers`` (L), ``max_samples`` and ``count_frames``. They determine
``frame_duration`` (seconds), from which all times in seconds are computed.
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
    """A kind of transformers model with hidden states at a regular rate."""

    base: str
    """The base model's name on the hub."""
    window: int | None = None
    """Samples that an utterance needs for its first frame. None for models of waveforms, whose
    convolutions determine it. The other models take the mel bands of their feature extractor."""
    hop: int | None = None
    """Samples from one frame to the next; None for models of waveforms."""
    pad_to: int | None = None
    """Zeros are appended to an utterance up to a multiple of this number of samples."""
    first_center: int | None = None
    """Samples to the middle of the first hidden state's window; None for the middle of ``window``.
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
"""The kinds of SSL models by their ``model_type`` in transformers."""

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""Pattern of names on the Hugging Face hub: owner/name."""

FROZEN_PARTS = (
    "feature_extractor.",
    *(f"encoder.{name}." for name in ("conv1", "conv2", "embed_positions")),
)
"""Prefixes of parameters that fine-tuning does not change: the convolutions before the layers, and
Whisper's sinusoidal positions."""

LEAST_DEVIATION = 1e-3
"""Lower bound of a mel band's standard deviation. It avoids division by zero in silence."""


@register_checkpoint_hooks
class Frontend(nn.Module):
    """Base class of the front ends."""

    sample_rate = SAMPLE_RATE
    settings: dict
    """Arguments with which an exported model builds this front end again. There is no default: a
    front end built with other arguments would have other features."""
    frame_samples: int
    feature_dim: int
    feature_layers: int
    level: float | None = None
    """Level in dB of full scale to which callers bring the active speech of an utterance or a
    recording before ``forward`` (``level.bring_to_level``); None for no change."""
    max_samples: int | None = None
    """Length in samples of the longest utterance that it can encode; None for no limit."""
    frame_offset = 0.0
    """Seconds from a frame's nominal start (its number times the frame duration) to the start of
    the stretch on which it is centred. It is negative if windows are centred on the start of their
    hop, as in Whisper."""
    cache: FeatureCache | None = None
    """Cache of features between epochs; ``forward`` accepts its entries. None for no cache."""

    @property
    def frame_duration(self):
        """Seconds from one frame to the next."""
        return self.frame_samples / self.sample_rate

    def count_frames(self, samples):
        """Count the frames of an utterance from its samples, an int or an int tensor."""
        raise NotImplementedError

    def describe(self):
        """Describe everything that determines the features (dict of JSON values)."""
        return {"frontend": type(self).__name__, **self.settings}

    def sample_lens(self, wavs, wav_lens):
        """Sample counts [B] of waveforms [B, S] with SpeechBrain's relative lengths [B]."""
        return torch.round(wav_lens * wavs.size(1)).long()

    @mark_as_saver
    def _save(self, path):
        """Save as SpeechBrain does, without its warning that a frozen model has no parameters."""
        torch.save(self.state_dict(), path)


class FbankFrontend(Frontend):
    """80 log-mel energies every 10 ms, normalised, stacked to frames of 20 or 40 ms.

    The shape of an utterance's average spectrum, which depends on voice and microphone, is removed.
    Its average level stays, because loudness distinguishes emotions. Then each mel band is
    normalised by the mean and deviation of all training audio so far, in all processes.

    Arguments
    ---------
    frame_duration : float
        Seconds per frame: 0.02 or 0.04.
    normalize_utterances : bool
        Whether the level and its range are removed, too. Each mel band of an utterance then has
        mean 0 and deviation 1, so only changes within the utterance distinguish emotions.
    level : float, optional
        Level of active speech in dB of full scale, as ``Frontend.level``.
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
        """Count the frames of an utterance: its steps of 10 ms, stacked, rounded up."""
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
        # Zeros up to the end of the last window, so that the result does not depend on the batch.
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

    A frozen encoder gives all hidden states, or selected ones. It stays in eval mode and has no
    gradient. Its weights are not among this module's parameters, so neither the optimiser nor the
    checkpoints contain them. Its features can be cached, so that each utterance is encoded once for
    all epochs.

    A fine-tuned encoder gives the last hidden state. Its convolutions are frozen, and the model's
    own SpecAugment masks its input in training (Whisper: the mel spectrogram, in frames of 10 ms).

    Each utterance is encoded separately, because the base models' group normalisation makes
    features depend on padding. The exception is the training of a fine-tuned model of waveforms.

    Whisper encodes an utterance at its own length, up to 30 s; the published models pad every
    utterance to 30 s. Its decoder is not loaded. Its features depend on the recording's level.

    Arguments
    ---------
    model : str
        A key of ``SSL_MODELS``.
    source : str or Path, optional
        Name on the hub, optionally with ``@`` and a revision; or a local folder, which needs no
        network. The hub's base model if None.
    save_path : str or Path
        Cache folder for models from the hub.
    frozen : bool
    spec_augment : dict, optional
        Settings of the model's own SpecAugment for fine-tuning, by their names in its
        configuration: ``mask_time_prob``, ``mask_time_length``, ``mask_feature_prob``,
        ``mask_feature_length``.
    layers : list of int, optional
        Hidden states that a frozen model gives; 0 is the input of the first layer. All if None.
    stacked : int
        Number of neighbouring frames that are concatenated into one. Zeros fill up the last one.
    level : float, optional
        Level of active speech in dB of full scale, as ``Frontend.level``.
    cache_folder : str or Path, optional
        Cache of a frozen model's features, so that each utterance is encoded once. Features are
        cached before stacking.
    cache_precision : str
        ``float16`` or ``bfloat16``: the precision of cached features.
    augment : list of nn.Module, optional
        SpeechBrain's ``SpectrogramDrop``s. In training, they set stretches of frames (dim 1) or
        groups of channels (dim 2) of a frozen model's features to zero. They apply after the cache
        and stacking, equally in all layers.
    digest : str, optional
        Required ``weights_digest`` of the model.

    Raises
    ------
    InputError
        If the weights have another digest.
    ValueError
        If the model is not in ``SSL_MODELS``. If its source does not exist, has another kind of
        model, or lacks weights. If a layer does not exist or is repeated. If ``stacked`` is below
        1. If layers, a cache or augment are given for a model that is not frozen.
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
            raise ValueError(
                "layers and cache_folder need a frozen SSL model. Leave them out to fine-tune."
            )
        # A drop that never masks must not draw random numbers either: that would change trainings.
        self.augment = nn.ModuleList(drop for drop in augment if drop.drop_count_high)
        if self.augment and not frozen:
            raise ValueError("augment needs a frozen SSL model. Use spec_augment to fine-tune.")
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
        # In a list, the frozen model is not in parameters() and state_dict(), nor affected by
        # train().
        self._ssl = [ssl.eval()]
        if not frozen:
            self.ssl = nn.ModuleDict({"model": ssl})
        if cache_folder is not None:
            self.cache = FeatureCache(cache_folder, self._made_from(), cache_precision)

    @property
    def ssl_model(self):
        """The transformers model, frozen or not."""
        return self._ssl[0]

    @property
    def takes_waveforms(self):
        """Whether the model takes waveforms rather than mel bands."""
        return self.kind.hop is None

    def describe(self):
        """Describe everything that determines the features (dict), without the model's source."""
        stacked = {} if self.stacked == 1 else {"stacked": self.stacked}
        level = {} if self.level is None else {"level": self.level}
        return {**self._made_from(), **stacked, **level}

    def _made_from(self):
        """Everything that determines the cached features (dict)."""
        extractor = self.feature_extractor
        if self.takes_waveforms:
            normalization = {"normalize_wav": extractor.do_normalize}
        else:
            # The settings determine the filters.
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
        """Move the frozen model together with this module."""
        if self.frozen:
            self.ssl_model._apply(fn)
        return super()._apply(fn, recurse)

    def save_ssl(self, folder):
        """Save the SSL model in the hub's format, so that ``source`` can name this folder.

        Weights are saved in float16 if that is lossless, as for all published Whisper models.
        """
        model = self.ssl_model
        half = copy.deepcopy(model).half()
        pairs = zip(half.state_dict().values(), model.state_dict().values(), strict=True)
        lossless = all(torch.equal(rounded.to(exact), exact) for rounded, exact in pairs)
        with written():
            (half if lossless else model).save_pretrained(folder)
            self.feature_extractor.save_pretrained(folder)

    def count_frames(self, samples):
        """Count the frames of an utterance: the windows that fit into it, stacked, rounded up."""
        return -(-self._count_states(samples) // self.stacked)

    def _count_states(self, samples):
        """Count the hidden states of an utterance before stacking."""
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
            Cache entry of each utterance, if a loader's worker has looked it up. If None, it is
            looked up here.

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
        wavs = [wav[:count] for wav, count in zip(wavs, samples.tolist(), strict=True)]
        if self.cache is None:
            rows = [self.encode(wav[None])[0] for wav in wavs]
        else:
            kept = kept or [self.cache.look_up(wav) for wav in wavs]
            rows = [
                self._complete(entry, wav).to(wav.device)
                for entry, wav in zip(kept, wavs, strict=True)
            ]
        features = self._stack(nn.utils.rnn.pad_sequence(rows, batch_first=True))
        if self.training and self.augment:
            mask = torch.ones_like(features[:, :, 0])
            for drop in self.augment:
                mask = drop(mask)
            features = features * mask[:, :, None]
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
        if not self.frozen:  # utterances shorter than a mask cannot be masked
            config, states = self.ssl_model.config, self._count_states(wavs.size(1))
            config.apply_spec_augment = states >= config.mask_time_length
        with (
            torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen),
            # Some models draw random numbers that they do not use. Features that come from a cache
            # draw none, and the training must be the same.
            torch.random.fork_rng(devices=[], enabled=self.frozen),
        ):
            if self.takes_waveforms:
                if self.feature_extractor.do_normalize:
                    wavs = nn.functional.layer_norm(wavs, wavs.shape[1:])
                mask = None
                if wav_lens is not None:
                    mask = length_to_mask(torch.round(wav_lens * wavs.size(1))).bool()
                given = {"input_values": wavs, "attention_mask": mask}
            else:
                with torch.autocast("cpu", enabled=False):  # it does not accept half precision
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

    def _complete(self, kept, wav):
        """Return the cached features of an utterance, or compute and cache them."""
        if kept.features is not None:
            return kept.features
        # In full precision, so that the cache does not depend on the training's precision.
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
    """Load a model and its feature extractor; the settings of SpecAugment replace the model's."""
    # Imported only here, because it takes seconds and log-mel energies do not need it.
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
    except OSError as error:  # its message does not always name the model
        raise ValueError(
            f"{source}: cannot be read as a {kind} model ({one_line(error)}): check the name, the "
            "files and the network"
        ) from error
    if (held := given.get("model_type")) != kind:
        raise ValueError(f"{source}: holds a {held} model, not a {kind} one")
    config_class = transformers.CONFIG_MAPPING[kind]
    # Only the architecture's own settings, because others can name code and kernels on the hub.
    own = config_class().to_dict().keys() - transformers.PreTrainedConfig().to_dict().keys()
    config = config_class(**{key: value for key, value in given.items() if key in own})
    # Before the model is built, because only a model that masks has a vector for masked frames.
    for key, value in spec_augment.items():
        setattr(config, key, value)
    # WavLM's model in transformers 5 needs this setting, which its configuration lacks.
    config.mask_feature_min_masks = getattr(config, "mask_feature_min_masks", 0)
    model_class = transformers.MODEL_MAPPING[config_class]
    if kind == "whisper":
        from ent_brain.whisper import WhisperSpeechEncoder

        model_class = WhisperSpeechEncoder
    with quiet_transformers(Path(source).is_dir()):  # missing weights are reported below
        model, report = model_class.from_pretrained(
            name, config=config, dtype=torch.float32, output_loading_info=True, **place
        )
    missing = set(report["missing_keys"])
    if "masked_spec_embed" in missing:
        # Many published models lack it, and transformers would initialise it at random.
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
    """Compute the window and the hop of stacked convolutions in samples (int, int)."""
    window, hop = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        window += (kernel - 1) * hop
        hop *= stride
    return window, hop


def _check_layers(layers, last):
    """Check indices of hidden states from 0 to ``last`` (list[int]); all if None."""
    if layers is None:
        return list(range(last + 1))
    if not layers or len(set(layers)) < len(layers) or not set(layers) <= set(range(last + 1)):
        raise ValueError(f"layers {layers}: choose some of 0 to {last}, each once")
    return list(layers)


def make_frontend(model, stacked=1, level=None, **settings):
    """Make a front end by name, for recipes with an option that chooses it.

    Arguments
    ---------
    model : str
        A key of ``SSL_MODELS``, or ``fbank`` for log-mel energies.
    stacked : int
        Number of frames of 20 ms that are concatenated into one.
    level : float, optional
        Level of active speech in dB of full scale, as ``Frontend.level``.
    **settings
        Arguments of ``SSLFrontend``; ``fbank`` ignores them.

    Returns
    -------
    Frontend
        An unknown name raises ``ValueError``.

    Example
    -------
    >>> make_frontend("fbank", stacked=2, source="the source of no SSL model").frame_duration
    0.04
    """
    if model == "fbank":
        return FbankFrontend(frame_duration=0.02 * stacked, level=level)
    return SSLFrontend(model, stacked=stacked, level=level, **settings)
