"""Front ends: waveforms to layered features [B, T, L, D], and how long a frame is.

Every front end has ``sample_rate`` (Hz), ``frame_samples`` (samples a frame), ``feature_dim`` (D),
``feature_layers`` (L) and ``count_frames``; ``frame_duration`` (seconds) follows from them, and
every time in seconds follows from it.
"""

from importlib import import_module
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from speechbrain.lobes.features import Fbank
from speechbrain.processing.features import mean_std_update
from speechbrain.utils.checkpoints import mark_as_saver, register_checkpoint_hooks
from torch import nn

from ent_brain.cache import FeatureCache, model_digest
from ent_brain.files import written
from ent_brain.manifest import SAMPLE_RATE

SSL_MODELS = {
    "wav2vec2": ("Wav2Vec2", "facebook/wav2vec2-base"),
    "hubert": ("HuBERT", "facebook/hubert-base-ls960"),
    "wavlm": ("WavLM", "microsoft/wavlm-base"),
}
"""SpeechBrain's wrapper of each kind of model, in the module of its name; the base model's own name
on the hub."""

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

    def __init__(self, frame_duration=0.02, normalize_utterances=False, augment=()):
        super().__init__()
        self.settings = {
            "frame_duration": frame_duration,
            "normalize_utterances": normalize_utterances,
        }
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
    """A self-supervised speech model through SpeechBrain's wrappers, frozen or fine-tuned.

    Frozen, it gives all hidden states, or the chosen ones; it stays in eval mode, has no gradient,
    and is no part of this module's parameters, so neither optimiser nor checkpoint holds it. Its
    features can be kept, so that each utterance is encoded once for all epochs.

    Fine-tuned, it gives the last hidden state; the convolutions are frozen, and the model's own
    SpecAugment masks its input in training.

    But for training a fine-tuned model, each utterance is encoded alone: the base models' group
    normalisation makes features depend on padding.

    Arguments
    ---------
    model : str
        ``wav2vec2``, ``hubert`` or ``wavlm``.
    source : str or Path, optional
        Hub name, after an ``@`` a revision to pin; or a local folder, which needs no network. The
        hub's base model if None.
    save_path : str or Path
        Where a model from the hub is kept.
    frozen : bool
    spec_augment : dict, optional
        Settings of the model's own SpecAugment for fine-tuning, by their names in its
        configuration: ``mask_time_prob``, ``mask_time_length``, ``mask_feature_prob``,
        ``mask_feature_length``.
    layers : list of int, optional
        Which hidden states a frozen model gives, 0 for the input of the first layer; all if None.
    cache_folder : str or Path, optional
        Where the features of a frozen model are kept, so that each utterance is encoded once.
    cache_precision : str
        ``float16`` or ``bfloat16``: what kept features are rounded to.

    Raises
    ------
    ValueError
        If the model is not one of the three, its source holds one of another kind, a layer is not
        one of its own or given twice, or layers or a cache are asked of a model that is not frozen.
    """

    def __init__(
        self,
        model,
        source,
        save_path,
        frozen=True,
        spec_augment=None,
        layers=None,
        cache_folder=None,
        cache_precision="float16",
    ):
        super().__init__()
        if model not in SSL_MODELS:
            raise ValueError(f"unknown SSL model {model!r}: use one of {', '.join(SSL_MODELS)}")
        if not frozen and (layers is not None or cache_folder is not None):
            raise ValueError("layers are chosen, and features are kept, of a frozen SSL model only")
        wrapper, base = SSL_MODELS[model]
        source = str(base if source is None else source)
        self.settings = {
            "model": model,
            "source": source,
            "save_path": str(save_path),
            "frozen": frozen,
            "layers": layers,
        }
        # Only here: transformers' models take seconds to import, and log-mel energies need none.
        wrappers = import_module(f"speechbrain.integrations.huggingface.{model}")
        ssl = getattr(wrappers, wrapper)(
            source=_pinned(source, save_path),
            save_path=str(save_path),
            freeze=frozen,
            freeze_feature_extractor=not frozen,
            apply_spec_augment=not frozen,
            output_all_hiddens=frozen,
        )
        config = ssl.model.config
        if config.model_type != model:  # the wrappers load whatever there is
            raise ValueError(f"{source}: holds a {config.model_type} model, not a {model} one")
        # In transformers 5 WavLM's model asks for this, its configuration does not have it.
        config.mask_feature_min_masks = getattr(config, "mask_feature_min_masks", 0)
        for key, value in (spec_augment or {}).items():
            setattr(config, key, value)
        self.frozen = frozen
        self.kernels, self.strides = config.conv_kernel, config.conv_stride
        self.frame_samples = int(torch.tensor(self.strides).prod())
        self.feature_dim = config.hidden_size
        self.layers = _check_layers(layers, config.num_hidden_layers)
        self.feature_layers = len(self.layers) if frozen else 1
        # A list hides the frozen model from parameters(), state_dict() and train().
        self._ssl = [ssl.eval()]
        if not frozen:
            self.ssl = ssl
        if cache_folder is not None:
            self.cache = FeatureCache(cache_folder, self.describe(), cache_precision)

    @property
    def ssl_model(self):
        """The model of transformers, frozen or not."""
        return self._ssl[0].model

    def describe(self):
        """What the features are computed by (dict): wherever the model was read from."""
        return {
            "model": self.settings["model"],
            "weights": model_digest(self.ssl_model),
            "normalize_wav": self._ssl[0].normalize_wav,
            "layers": self.layers,
        }

    def _apply(self, fn, recurse=True):
        """Move the hidden model too, wherever this module goes."""
        if self.frozen:
            self._ssl[0]._apply(fn)
        return super()._apply(fn, recurse)

    def save_ssl(self, folder):
        """Save the SSL model as the hub has it, so that ``source`` can name this folder."""
        with written():
            self.ssl_model.save_pretrained(folder)
            self._ssl[0].feature_extractor.save_pretrained(folder)

    def count_frames(self, samples):
        """Frames of an utterance: the floor of each convolution in turn."""
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples

    def forward(self, wavs, wav_lens, kept=None):
        """Compute features.

        Arguments
        ---------
        wavs : Tensor
            [B, S] at 16 kHz; an utterance needs 400 samples.
        wav_lens : Tensor
            [B] relative lengths.
        kept : list of Kept, optional
            What the cache's ``look_up`` found for each utterance, as a loader's worker has done it;
            without it, it is done here.

        Returns
        -------
        (Tensor, Tensor)
            Features [B, T, L, D], 0 in the padding but for training a fine-tuned model, in the
            precision in which they are kept where they are, and frame counts [B].
        """
        samples = self.sample_lens(wavs, wav_lens)
        frame_lens = self.count_frames(samples)
        [ssl] = self._ssl
        if not self.frozen and self.training:
            # A mask must fit: what is shorter is not masked.
            config, frames = ssl.model.config, self.count_frames(wavs.size(1))
            config.apply_spec_augment = frames >= config.mask_time_length
            return ssl(wavs, wav_lens)[:, :, None], frame_lens
        alone = [wav[:count] for wav, count in zip(wavs, samples.tolist(), strict=True)]
        if self.cache is None:
            alone = [self._encode(wav) for wav in alone]
        else:
            kept = kept or [self.cache.look_up(wav) for wav in alone]
            alone = [self._complete(*p).to(wavs.device) for p in zip(kept, alone, strict=True)]
        return nn.utils.rnn.pad_sequence(alone, batch_first=True), frame_lens

    def _encode(self, wav):
        """Hidden states [T, L, D] of one utterance [S]."""
        [ssl] = self._ssl
        if self.frozen:
            return ssl(wav[None])[self.layers, 0].transpose(0, 1)
        return ssl(wav[None])[0, :, None]

    def _complete(self, kept, wav):
        """Features of one utterance as the cache has them, or will have them."""
        if kept.features is not None:
            return kept.features
        # In full precision: what is kept is the same whatever the precision of the training.
        with torch.autocast(wav.device.type, enabled=False):
            return self.cache.keep(kept.name, self._encode(wav))


def _pinned(source, save_path):
    """A source (str) that SpeechBrain's wrappers take: of what names a revision, its files."""
    name, _, revision = source.partition("@")
    if not revision or Path(source).exists():
        return source
    return snapshot_download(name, revision=revision, cache_dir=save_path)


def _check_layers(layers, last):
    """Indices of hidden states, of ``last + 1``; all where None are chosen."""
    if layers is None:
        return list(range(last + 1))
    if not layers or len(set(layers)) < len(layers) or not set(layers) <= set(range(last + 1)):
        raise ValueError(f"layers {layers}: choose some of 0 to {last}, each once")
    return list(layers)


def make_frontend(model, **settings):
    """Make the front end of a name, for recipes in which a word on the command line chooses it.

    Arguments
    ---------
    model : str
        ``wav2vec2``, ``hubert``, ``wavlm``, or ``fbank`` for log-mel energies of 20 ms frames.
    **settings
        Of ``SSLFrontend``; log-mel energies have no use for them.

    Returns
    -------
    Frontend
        Another name raises ``ValueError``.

    Example
    -------
    >>> make_frontend("fbank", source="the source of no SSL model").frame_duration
    0.02
    """
    return FbankFrontend() if model == "fbank" else SSLFrontend(model, **settings)
