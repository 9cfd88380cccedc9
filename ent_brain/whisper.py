"""Whisper's encoder for utterances of any length up to 30 s."""

import copy

from transformers import WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder, WhisperPreTrainedModel


class WhisperSpeechEncoder(WhisperPreTrainedModel):
    """Whisper's encoder without its decoder; it encodes each utterance at its own length.

    ``from_pretrained`` reads the encoder's weights from a file of any Whisper model. transformers'
    own encoder accepts 30 s only. Most of its time would go into silence, as the cost of attention
    grows with the square of the length.

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
            [B, mel bands, 2 * T], as ``WhisperFeatureExtractor`` makes them. In training the
            model's own SpecAugment overwrites parts of them with zeros.
        **kwargs
            For transformers' encoder: ``output_hidden_states=True``, for one.

        Returns
        -------
        BaseModelOutput
            Hidden states [B, T, d_model]; the last one is behind the final layer norm.
        """
        features = WhisperModel._mask_input_features(self, input_features)
        encoder = self.encoder
        frames = features.size(-1) // 2
        encoder.config.max_source_positions = encoder.embed_positions.num_embeddings = frames
        return encoder(features, **kwargs)
