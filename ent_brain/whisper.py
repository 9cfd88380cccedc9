"""Whisper's encoder for utterances of any length up to 30 s, and its decoder."""

import copy
from functools import cached_property

import torch
from transformers import (
    StoppingCriteria,
    WhisperForConditionalGeneration,
    WhisperModel,
    WhisperTokenizerFast,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder, WhisperPreTrainedModel

from ent_brain.errors import InputError
from ent_brain.quiet import quiet_transformers

MOST_TOKENS = 8
"""Upper limit of tokens per second, because a decoder that repeats itself would not stop."""

FEWEST_TOKENS = 16
"""Number of tokens that even the shortest recording may have."""

REPEATED, BEFORE = 8, 2
"""Number of tokens that a decoder that repeats itself says again, and how many times it must have
said them before. Decoding stops there. Once is not enough, because people say sentences twice."""

TAIL = 0.5
"""Seconds of silence that the decoder reads after an utterance. Without them, it often repeats
itself."""


class WhisperSpeechEncoder(WhisperPreTrainedModel):
    """Whisper's encoder without its decoder; it encodes each utterance at its own length.

    ``from_pretrained`` reads the encoder's weights from a file of any Whisper model. The encoder in
    transformers accepts only 30 s. It would spend most time on silence, because the cost of
    attention grows with the square of the length.

    Arguments
    ---------
    config : transformers.WhisperConfig

    Example
    -------
    >>> import torch
    >>> from transformers import WhisperConfig
    >>> sizes = {"d_model": 8, "encoder_layers": 1, "encoder_attention_heads": 2}
    >>> encoder = WhisperSpeechEncoder(WhisperConfig(**sizes))
    >>> encoder(torch.randn(2, 80, 100)).last_hidden_state.shape
    torch.Size([2, 50, 8])
    """

    _keys_to_ignore_on_load_unexpected = [r"decoder\.", r"proj_out\."]

    def __init__(self, config):
        super().__init__(config)
        # A copy, because ``forward`` changes its number of positions.
        self.encoder = WhisperEncoder(copy.deepcopy(config))
        self.post_init()

    def forward(self, input_features, **kwargs):
        """Encode utterances of one length.

        Arguments
        ---------
        input_features : Tensor
            [B, mel bands, 2 * T] from ``WhisperFeatureExtractor``. In training, the model's own
            SpecAugment overwrites parts of them with zeros.
        **kwargs
            Arguments of the encoder in transformers, such as ``output_hidden_states=True``.

        Returns
        -------
        BaseModelOutput
            Hidden states [B, T, d_model]; the last one has passed the final layer norm.
        """
        features = WhisperModel._mask_input_features(self, input_features)
        encoder = self.encoder
        frames = features.size(-1) // 2
        encoder.config.max_source_positions = encoder.embed_positions.num_embeddings = frames
        return encoder(features, **kwargs)


class WhisperDecoder:
    """Whisper's decoder; it uses the encoder of a front end.

    The decoder was trained on 30 s, mostly with silence at the end. With the states of an utterance
    alone, it repeats itself. Therefore, the utterance is encoded with ``TAIL``, and states of
    silence follow up to 30 s: the encoder's states of 30 s of zeros, at the same positions,
    computed once. If the decoder still repeats itself, the utterance is encoded again with silence
    up to 30 s, as in Whisper. The front end's features cannot be used: ``TAIL`` changes them, and
    the emotions would not be those of the model's own words.

    Arguments
    ---------
    folder : str or Path
        A whole Whisper model in the format of transformers, with ``export.DECODER_FILES``.
    frontend : SSLFrontend
        A front end with the encoder of the same Whisper model.

    Raises
    ------
    InputError
        If the folder lacks the decoder.
    """

    def __init__(self, folder, frontend):
        with quiet_transformers():  # missing weights are reported below
            model, report = WhisperForConditionalGeneration.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True
            )
        if missing := sorted(set(report["missing_keys"]) - {"proj_out.weight"}):  # tied weights
            raise InputError(
                f"{folder}: holds Whisper's encoder, but no decoder ({missing[0]} is missing). "
                "Name a folder with the whole model."
            )
        # The same ban in another form: that of ``suppress_tokens`` takes milliseconds at each step.
        settings = model.generation_config
        settings.bad_words_ids = [[token] for token in settings.suppress_tokens or []] or None
        settings.suppress_tokens = None
        self.frontend = frontend
        self.model = model.to(frontend.ssl_model.device).eval()
        self.tokenizer = WhisperTokenizerFast.from_pretrained(folder)

    @cached_property
    def silence(self):
        """States [1500, D] of 30 s of silence."""
        return self._encode(torch.zeros(0, device=self.model.device), self.frontend.max_samples)

    def prepare(self):
        """Compute ``silence`` now; otherwise the first utterance waits for it."""
        _ = self.silence

    @torch.no_grad()
    def encode(self, wavs):
        """Encode utterances, each with silence at its end.

        Arguments
        ---------
        wavs : list of Tensor
            [S] samples of each utterance.

        Returns
        -------
        list of Tensor
            [T, D] last hidden states of each utterance, every 20 ms.
        """
        tail = int(TAIL * self.frontend.sample_rate)
        return [self._encode(wav, len(wav) + tail) for wav in wavs]

    def _encode(self, wav, samples):
        """Last hidden states [T, D] of an utterance [S] with silence, ``samples`` in all."""
        rest = min(samples, self.frontend.max_samples) - len(wav)
        padded = torch.nn.functional.pad(wav, (0, max(0, rest)))
        return self.frontend.encode_last(padded[None])[0].float()

    @torch.no_grad()
    def transcribe(self, wavs, states, language="en"):
        """Transcribe utterances, with Whisper's case, punctuation and numbers.

        Arguments
        ---------
        wavs : list of Tensor
            [S] samples of each utterance.
        states : list of Tensor
            [T, D] states of each utterance, from ``encode``.
        language : str
            Code of the language.

        Returns
        -------
        list[str]

        Raises
        ------
        InputError
            If the model does not support the language.
        """
        known = getattr(self.model.generation_config, "lang_to_id", {})
        if f"<|{language}|>" not in known:
            raise InputError(f"language: {language!r}: not one of Whisper's, such as en or de")
        padded = torch.stack([torch.cat((each, self.silence[len(each) :])) for each in states])
        most = FEWEST_TOKENS + int(MOST_TOKENS * max(map(len, wavs)) / self.frontend.sample_rate)
        decoded = self._decode(padded, language, most, stopping_criteria=[_Repetition()])
        for row, ids in enumerate(decoded):
            if bool(_end_in_repetition(torch.tensor([ids]))):
                whole = self._encode(wavs[row], self.frontend.max_samples)
                [decoded[row]] = self._decode(whole[None], language, most)
        return [" ".join(text.split()) for text in self.tokenizer.batch_decode(decoded)]

    def _decode(self, states, language, most, **settings):
        """Decode states [B, 1500, D] to ids (list[list[int]]) of at most ``most`` tokens."""
        with quiet_transformers():  # transformers warns of its own generation settings
            decoded = self.model.generate(
                encoder_outputs=BaseModelOutput(states),
                language=language,
                task="transcribe",
                max_new_tokens=most,
                **settings,
            )
        special = set(self.tokenizer.all_special_ids)
        return [[index for index in ids if index not in special] for ids in decoded.tolist()]


class _Repetition(StoppingCriteria):
    """Ends the decoding of each utterance that repeats itself."""

    def __call__(self, input_ids, scores, **kwargs):
        return _end_in_repetition(input_ids)


def _end_in_repetition(ids):
    """Whether the last ``REPEATED`` of ids [B, N] were there ``BEFORE`` times before: [B] bool."""
    if ids.size(1) <= REPEATED:
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    windows = ids.unfold(1, REPEATED, 1)
    return (windows[:, :-1] == windows[:, -1:]).all(-1).sum(-1) >= BEFORE
