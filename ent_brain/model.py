"""The Emotion Neural Transducer (ENT) and its factorised form (FENT).

Shen et al., "Emotion Neural Transducer for Fine-Grained Speech Emotion Recognition", ICASSP 2024.
"""

from inspect import signature
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ent_brain.lattice import Lattice
from ent_brain.tokens import BLANK

MIX_FRAMES = 128
"""Frames whose layers are mixed at a time."""

NORM_BATCHES = 100
"""Batches of training from which the channels' means and deviations are taken; they hardly move
afterwards."""


class Streams(NamedTuple):
    """The two views that the joint networks take of one side; ENT has one tensor for both."""

    emotion: Tensor
    """[B, T or U+1, D], what predicts the emotion (and, in FENT, blank)."""
    vocabulary: Tensor
    """[B, T or U+1, D], what predicts the words."""


class TransducerOutput(NamedTuple):
    """What a forward pass gives to the losses; a part that the model was made without is empty."""

    token_lattices: tuple
    """Lattices whose outputs side by side are the token distribution."""
    emotion_lattice: Lattice | None
    head_logits: Tensor | None
    """[B, E]"""
    lm_logits: Tensor | None
    """[B, U+1, V]"""
    ctc_logits: Tensor | None
    """[B, T, V]"""
    encoded: Streams
    """[B, T, D] each."""
    predicted: Streams
    """[B, U+1, D] each; None where the model has no predictor."""


class ChannelNorm(nn.Module):
    """Mean 0 and deviation 1 for each channel of each layer, over the first batches of training.

    Pretrained encoders have a few channels whose values are many times as large as all others'.

    Arguments
    ---------
    layers, dim : int
    """

    def __init__(self, layers, dim):
        super().__init__()
        self.register_buffer("mean", torch.zeros(layers, dim))
        self.register_buffer("deviation", torch.ones(layers, dim))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def observe(self, features, frame_lens):
        """Take the features [B, T, L, D] of a batch with [B] lengths into the averages."""
        if self.batches >= NORM_BATCHES:
            return
        valid = torch.arange(features.size(1), device=features.device) < frame_lens[:, None]
        frames = features[valid].to(self.mean.dtype)
        self.batches += 1
        variance, mean = torch.var_mean(frames, 0, correction=0)
        self.mean += (mean - self.mean) / self.batches
        self.deviation.square_().lerp_(variance, 1 / self.batches.item()).sqrt_()

    def forward(self):
        """Factor and offset [L, D]: what is normalised is features * factor - offset."""
        factor = 1 / (self.deviation + 1e-5)
        return factor, self.mean * factor


class ScalarMix(nn.Module):
    """``gamma * sum_k softmax(weights)_k * layer_k`` over the layers of a front end.

    Arguments
    ---------
    layers : int
    """

    def __init__(self, layers):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(layers))
        self.gamma = nn.Parameter(torch.ones(1))  # a vector: its weights do not decay

    def forward(self, features, norm=None):
        """Mix [B, T, layers, D] of any precision to [B, T, D] in the weights' own.

        Each channel is normalised before if there is a ``norm`` (ChannelNorm). Neither all features
        in that precision nor what a gradient needs of them are held.
        """
        mix = self.gamma * self.weights.softmax(0)
        if norm is not None:
            mix = torch.stack(norm()) * mix[:, None]
        mixed = [
            checkpoint(_mixed, block, mix, use_reentrant=False, preserve_rng_state=False)
            for block in features.flatten(0, 1).split(MIX_FRAMES)
        ]
        return torch.cat(mixed).unflatten(0, features.shape[:2])


def _mixed(frames, mix):
    """Sum the layers of frames [N, L, D]: [N, D].

    ``mix`` is a weight of each layer, [L]; or a factor and an offset of each channel, [2, L, D].
    """
    with torch.autocast(frames.device.type, enabled=False):
        frames = frames.to(mix.dtype)
        if mix.dim() == 1:  # one product a frame: einsum would copy the features once more
            return (mix.expand(len(frames), 1, -1) @ frames).squeeze(1)
        factor, offset = mix
        return (frames * factor).sum(1) - offset.sum(0)


class Encoder(nn.Module):
    """One bidirectional LSTM over true lengths.

    The two directions are LSTMs of their own: the backward one reads each utterance from its own
    last frame, which gives what a bidirectional LSTM gives on a packed batch, several times faster
    where there is no GPU.

    Arguments
    ---------
    input_dim, output_dim : int
        The output holds output_dim / 2 numbers of each direction.
    """

    def __init__(self, input_dim, output_dim):
        super().__init__()
        self.ahead = nn.LSTM(input_dim, output_dim // 2, batch_first=True)
        self.back = nn.LSTM(input_dim, output_dim // 2, batch_first=True)

    def forward(self, features, frame_lens):
        """Encode [B, T, input_dim] with [B] int lengths to [B, T, output_dim], 0 in the padding."""
        frame = torch.arange(features.size(1), device=features.device)
        valid = frame < frame_lens[:, None]
        mirrored = torch.where(valid, frame_lens[:, None] - 1 - frame, frame)
        rows = torch.arange(len(features), device=features.device)[:, None]
        ahead, _ = self.ahead(features)
        back, _ = self.back(features[rows, mirrored])
        return torch.cat((ahead, back[rows, mirrored]), -1) * valid[..., None]


class ShortEncoder(nn.Module):
    """One convolution over neighbouring frames, where an LSTM sees the whole utterance.

    The words of a frame come from what was said around it: a model of few sentences cannot learn
    them by heart and emit them at the start of the utterance.

    Arguments
    ---------
    input_dim, output_dim : int
        The input is added to the output if the two are equal.
    context : int
        Frames that an output frame sees; odd.
    """

    def __init__(self, input_dim, output_dim, context):
        super().__init__()
        self.convolution = nn.Conv1d(input_dim, output_dim, context, padding=context // 2)
        self.norm = nn.LayerNorm(output_dim)
        self.is_residual = input_dim == output_dim

    def forward(self, features, frame_lens):
        """As ``Encoder.forward``."""
        frame = torch.arange(features.size(1), device=features.device)
        valid = (frame < frame_lens[:, None])[..., None]
        features = features * valid
        encoded = self.convolution(features.transpose(1, 2)).transpose(1, 2)
        encoded = nn.functional.silu(self.norm(encoded))
        return (features + encoded if self.is_residual else encoded) * valid


class Predictor(nn.Module):
    """The prediction network: embedding, dropout, one LSTM, projection.

    Arguments
    ---------
    vocab_size, embedding_dim, predictor_dim, output_dim : int
    dropout : float
    """

    def __init__(self, vocab_size, embedding_dim, predictor_dim, output_dim, dropout):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.dropout = nn.Dropout(dropout)
        self.rnn = nn.LSTM(embedding_dim, predictor_dim, batch_first=True)
        self.projection = nn.Linear(predictor_dim, output_dim)

    def forward(self, tokens, state=None):
        """Predict from [B, N] tokens, the first of them blank where a sequence starts.

        Returns
        -------
        (Tensor, tuple)
            [B, N, output_dim] and the LSTM's state, two tensors [1, B, predictor_dim].
        """
        hidden, state = self.read(tokens, state)
        return self.projection(hidden), state

    def read(self, tokens, state=None):
        """As ``forward``, before the projection: [B, N, predictor_dim] and the LSTM's state."""
        embedded = self.dropout(self.embedding(tokens))
        if state is None or tokens.size(1) > 1:
            return self.rnn(embedded, state)
        # A search asks for one token after another; a whole layer costs a CPU much more.
        cell = torch.lstm_cell(embedded[:, 0], [part[0] for part in state], *self.rnn.parameters())
        state = tuple(part[None] for part in cell)
        return state[0].transpose(0, 1), state


class ShortPredictor(nn.Module):
    """A prediction network that sees the last few tokens alone: their embeddings, dropout, a layer.

    It knows less by heart than an LSTM, which can count what it has written. Source: Ghodsi et al.,
    "RNN-Transducer with Stateless Prediction Network" (ICASSP 2020).

    Arguments
    ---------
    vocab_size, embedding_dim, predictor_dim, output_dim : int
    dropout : float
    context : int
        Tokens that it sees.
    """

    def __init__(self, vocab_size, embedding_dim, predictor_dim, output_dim, dropout, context):
        super().__init__()
        self.context = context
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.dropout = nn.Dropout(dropout)
        self.mix = nn.Linear(context * embedding_dim, predictor_dim)
        self.projection = nn.Linear(predictor_dim, output_dim)

    def forward(self, tokens, state=None):
        """As ``Predictor.forward``; the state is one tensor [context, B, embedding_dim]."""
        hidden, state = self.read(tokens, state)
        return self.projection(hidden), state

    def read(self, tokens, state=None):
        """As ``forward``, before the projection."""
        embedded = self.dropout(self.embedding(tokens)).transpose(0, 1)
        if state is None:
            state = (embedded.new_zeros(self.context, *embedded.shape[1:]),)
        seen = torch.cat((*state, embedded))
        windows = seen[1:].unfold(0, self.context, 1).permute(1, 0, 3, 2).flatten(2)
        return self.mix(windows).tanh(), (seen[-self.context :],)


class Joint(nn.Module):
    """Joint network: project both sides, add, tanh, project to the outputs.

    Arguments
    ---------
    input_dim : int
        Size of either side.
    joint_dim, outputs : int
    """

    def __init__(self, input_dim, joint_dim, outputs):
        super().__init__()
        self.encoder_side = nn.Linear(input_dim, joint_dim)
        self.predictor_side = nn.Linear(input_dim, joint_dim)
        self.output = nn.Linear(joint_dim, outputs)

    def lattice(self, encoded, predicted):
        """The lattice of [B, T, input_dim] and [B, U+1, input_dim]."""
        return Lattice(
            self.encoder_side(encoded),
            self.predictor_side(predicted),
            self.output.weight,
            self.output.bias,
        )


class PooledHead(nn.Module):
    """Utterance emotion from mean encoder and predictor outputs.

    Arguments
    ---------
    input_dim : int
        Size of either side.
    num_emotions : int
    """

    def __init__(self, input_dim, num_emotions):
        super().__init__()
        self.norm = nn.LayerNorm(2 * input_dim)
        self.output = nn.Linear(2 * input_dim, num_emotions)

    def forward(self, encoded, predicted):
        """Logits [..., E] of pooled (or single) encoder and predictor outputs [..., D]."""
        return self.output(self.norm(torch.cat((encoded, predicted), -1)))


class TransducerModel(nn.Module):
    """What ENT and FENT share; they differ in how many streams there are and who reads which.

    Arguments
    ---------
    vocab_size : int
        V, blank and ``<sos/eos>`` included.
    feature_dim, feature_layers : int
        D and L of the front end's features [B, T, L, D]; several layers are mixed.
    encoder_dim : int
        Size of the encoder's and of the predictor's output; even.
    embedding_dim, predictor_dim, joint_dim, num_emotions : int
    dropout : float
        Of the predictor's embedding, in training.
    lm_head : bool
        Whether the vocabulary predictor also predicts the next token by itself.
    token_joint, emotion_joint, pooled_head : bool
        False (or a loss weight of 0) leaves the part out: no parameters, no computation. Without a
        token joint the predictor never sees a token; without any of the three there is none.
    ctc_head : bool
        Whether the vocabulary stream also predicts the tokens frame by frame, for a CTC loss. In a
        model without token joint this head alone transcribes.
    encoder_layers : int
        Bidirectional LSTMs, or convolutions, one upon the other.
    encoder_dropout : float
        Of the encoder's input and of the output of each of its layers, in training.
    encoder_context : int, optional
        Frames that each layer of the encoder sees (``ShortEncoder``), an odd number; None: all, by
        bidirectional LSTMs.
    predictor_context : int, optional
        Tokens that the predictor sees (``ShortPredictor``); None: all, by an LSTM.
    normalize_features : bool
        Whether each channel of each layer of the features has mean 0 and deviation 1 over the
        first ``NORM_BATCHES`` batches of training.

    Raises
    ------
    ValueError
        If there is a language-model head without a token joint, or a size or share cannot be.

    Example
    -------
    >>> model = ENT(vocab_size=31, feature_dim=8, feature_layers=2, encoder_dim=6, joint_dim=5)
    >>> tokens, token_lens = torch.tensor([[3, 4, 5]]), torch.tensor([3])
    >>> output = model(torch.randn(1, 9, 2, 8), torch.tensor([9]), tokens, token_lens)
    >>> output.emotion_lattice.dense().shape, output.head_logits.shape
    (torch.Size([1, 9, 4, 4]), torch.Size([1, 4]))
    """

    token_streams: tuple
    """The stream that each token joint reads, in the order of their outputs."""

    def __init__(
        self,
        vocab_size,
        feature_dim=768,
        feature_layers=13,
        encoder_dim=768,
        embedding_dim=640,
        predictor_dim=640,
        joint_dim=768,
        num_emotions=4,
        dropout=0.1,
        lm_head=False,
        token_joint=True,
        emotion_joint=True,
        pooled_head=True,
        ctc_head=False,
        encoder_layers=1,
        encoder_dropout=0.0,
        encoder_context=None,
        predictor_context=None,
        normalize_features=False,
    ):
        flags = lm_head, token_joint, emotion_joint, pooled_head, ctc_head  # or weights of losses
        lm_head, token_joint, emotion_joint, pooled_head, ctc_head = map(bool, flags)
        given = locals()
        super().__init__()
        if lm_head and not token_joint:
            raise ValueError("lm_head without token_joint: it would have no tokens to learn from")
        if encoder_dim % 2:
            raise ValueError(f"encoder_dim: {encoder_dim}: give an even number, of two directions")
        for name, share in (("dropout", dropout), ("encoder_dropout", encoder_dropout)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name}: {share}: give a share, 0 to 1")
        if encoder_layers < 1:
            raise ValueError(f"encoder_layers: {encoder_layers}: give a whole number above 0")
        if encoder_context is not None and (encoder_context < 1 or encoder_context % 2 == 0):
            raise ValueError(f"encoder_context: {encoder_context}: give an odd number, or null")
        if predictor_context is not None and predictor_context < 1:
            raise ValueError(f"predictor_context: {predictor_context}: give 1 or more, or null")
        self.settings = {name: given[name] for name in signature(TransducerModel).parameters}
        """Arguments that make this model again."""
        # Without words there is no vocabulary stream: its parts would never be trained.
        streams = len(self.token_streams) if token_joint else 1
        self.mixes = nn.ModuleList(
            ScalarMix(feature_layers) for _ in range(streams) if feature_layers > 1
        )
        self.norm = ChannelNorm(feature_layers, feature_dim) if normalize_features else None
        layers = [
            ShortEncoder(size, encoder_dim, encoder_context)
            if encoder_context
            else Encoder(size, encoder_dim)
            for size in (feature_dim, *[encoder_dim] * (encoder_layers - 1))
        ]
        self.encoder, self.upper_encoders = layers[0], nn.ModuleList(layers[1:])
        self.encoder_dropout = nn.Dropout(encoder_dropout)
        has_reader = token_joint or emotion_joint or pooled_head
        sizes = vocab_size, embedding_dim, predictor_dim, encoder_dim, dropout
        self.predictors = nn.ModuleList(
            ShortPredictor(*sizes, predictor_context) if predictor_context else Predictor(*sizes)
            for _ in range(streams)
            if has_reader
        )
        outputs = [vocab_size] if streams == 1 else [1, vocab_size - 1]
        self.token_joints = nn.ModuleList(
            Joint(encoder_dim, joint_dim, count) for count in outputs if token_joint
        )
        self.emotion_joint = Joint(encoder_dim, joint_dim, num_emotions) if emotion_joint else None
        self.pooled_head = PooledHead(encoder_dim, num_emotions) if pooled_head else None
        self.lm_head = nn.Linear(encoder_dim, vocab_size) if lm_head else None
        self.ctc_head = nn.Linear(encoder_dim, vocab_size) if ctc_head else None
        self.apply(_initialize)

    def forward(self, features, frame_lens, tokens, token_lens):
        """Describe the lattices of a batch and classify its utterances.

        Arguments
        ---------
        features : Tensor
            [B, T, L, D] of a front end, in any precision.
        frame_lens : Tensor
            [B] int.
        tokens : Tensor
            [B, U] ids; padding is fed as blank.
        token_lens : Tensor
            [B] int. 0 without a transcript: the lattice then has one position, u = 0, which is the
            predictor after blank, as where nothing is transcribed.

        Returns
        -------
        TransducerOutput
        """
        if not self.token_joints:
            tokens, token_lens = tokens[:, :0], torch.zeros_like(token_lens)
        encoded = self.encode(features, frame_lens)
        predicted = self.predict(tokens, token_lens)
        return TransducerOutput(
            self.token_lattices(encoded, predicted),
            self.emotion_lattice(encoded, predicted),
            self.classify(encoded, frame_lens, predicted, token_lens),
            self.lm_head(predicted.vocabulary) if self.lm_head else None,
            self.ctc_head(encoded.vocabulary) if self.ctc_head else None,
            encoded,
            predicted,
        )

    def encode(self, features, frame_lens):
        """Encoder streams [B, T, D] of features [B, T, L, D] with [B] lengths."""
        if self.norm and self.training:
            self.norm.observe(features, frame_lens)
        # All mixes pass through the one encoder, as one batch.
        mixed = [mix(features, self.norm) for mix in self.mixes] or [self._only_layer(features)]
        encoded = self._encode(torch.cat(mixed), frame_lens.repeat(len(mixed))).chunk(len(mixed))
        return Streams(encoded[0], encoded[-1])

    def _only_layer(self, features):
        """Return the only layer of features [B, T, 1, D], normalised on request: [B, T, D]."""
        if self.norm:
            mixed = _mixed(features.flatten(0, 1), torch.stack(self.norm()))
            return mixed.unflatten(0, features.shape[:2])
        return features.squeeze(2).to(next(self.parameters()).dtype)

    def _encode(self, features, frame_lens):
        """Encode mixed features [B, T, D], layer upon layer."""
        encoded = self.encoder_dropout(features)
        for layer in (self.encoder, *self.upper_encoders):
            encoded = self.encoder_dropout(layer(encoded, frame_lens))
        return encoded

    def predict(self, tokens, token_lens):
        """Predictor streams [B, U+1, D] of token ids [B, U] with [B] lengths.

        If the model has no token joint, all positions are the first one, without tokens. Training
        never shows tokens to such a predictor, so a CTC head's tokens would mislead it.
        """
        if not self.predictors:
            return Streams(None, None)
        positions = tokens.size(1) + 1
        if not self.token_joints:
            tokens = tokens[:, :0]
        valid = torch.arange(tokens.size(1), device=tokens.device) < token_lens[:, None]
        history = nn.functional.pad(tokens.masked_fill(~valid, BLANK), (1, 0), value=BLANK)
        predicted = [
            predictor(history)[0].expand(-1, positions, -1) for predictor in self.predictors
        ]
        return Streams(predicted[0], predicted[-1])

    def token_lattices(self, encoded, predicted):
        """Lattices of the token joints; none where the model has no token joint."""
        return tuple(
            joint.lattice(getattr(encoded, stream), getattr(predicted, stream))
            for joint, stream in zip(self.token_joints, self.token_streams, strict=False)
        )

    def emotion_lattice(self, encoded, predicted):
        """Lattice of the emotion joint; None where the model has none."""
        if self.emotion_joint is None:
            return None
        return self.emotion_joint.lattice(encoded.emotion, predicted.emotion)

    def classify(self, encoded, frame_lens, predicted, token_lens):
        """Logits [B, E] of the pooled head over valid frames and positions; None without a head."""
        if self.pooled_head is None:
            return None
        return self.pooled_head(
            _mean(encoded.emotion, frame_lens), _mean(predicted.emotion, token_lens + 1)
        )

    def classify_intervals(self, encoded, predicted, intervals):
        """Logits of the pooled head over the frames and positions of each interval.

        Arguments
        ---------
        encoded, predicted : Streams
            [B, T, D] and [B, U+1, D] each.
        intervals : list[list[Span]]
            Of each utterance.

        Returns
        -------
        Tensor
            [K, E] of the intervals of all utterances.
        """
        spans = [(row, span) for row, known in enumerate(intervals) for span in known]
        return self.pooled_head(
            torch.stack([encoded.emotion[row, a:b].mean(0) for row, (_, a, b, _, _) in spans]),
            torch.stack([predicted.emotion[row, c:d].mean(0) for row, (*_, c, d) in spans]),
        )


class ENT(TransducerModel):
    __doc__ = (
        "Emotion Neural Transducer: one stream, one predictor, one token joint.\n"
        + (TransducerModel.__doc__.partition("\n")[2])
    )
    token_streams = ("vocabulary",)


class FENT(TransducerModel):
    __doc__ = (
        "Factorised Emotion Neural Transducer: blank and emotion read a stream of their own.\n"
        + TransducerModel.__doc__.partition("\n")[2].replace("ENT(", "FENT(")
    )
    token_streams = ("emotion", "vocabulary")


def _initialize(module):
    """Open forget gates, orthogonal recurrences, Xavier elsewhere: the transducer aligns sooner."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LSTM):
        for name, parameter in module.named_parameters():
            gates = parameter.data.chunk(4)  # input, forget, cell, output
            if "bias" in name:
                parameter.data.zero_()
                if "bias_ih" in name:
                    gates[1].fill_(1.0)
            else:
                fill = nn.init.orthogonal_ if "weight_hh" in name else nn.init.xavier_uniform_
                for gate in gates:
                    fill(gate)


def _mean(values, lens):
    """Mean over the valid part of [B, N, D], [B, D]."""
    valid = torch.arange(values.size(1), device=values.device) < lens[:, None]
    return (values * valid[..., None]).sum(1) / lens[:, None]
