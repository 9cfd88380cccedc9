import itertools

import pytest
import torch
from oracles import PlainModel
from torch import nn

from ent_brain import model as model_module
from ent_brain.losses import ctc_loss, lattice_pooling_loss, next_token_loss, transducer_loss
from ent_brain.model import (
    ENT,
    FENT,
    ChannelNorm,
    Encoder,
    PooledHead,
    Predictor,
    ScalarMix,
    ShortEncoder,
    ShortPredictor,
)

FRAME_LENS = torch.tensor([7, 1, 4])
TOKENS = torch.tensor([[3, 5, 1, 2], [0, 0, 0, 0], [6, 6, 0, 0]])
TOKEN_LENS = torch.tensor([4, 0, 2])
SMALL = {"vocab_size": 8, "feature_dim": 5, "feature_layers": 3, "encoder_dim": 6}
SMALL |= {"embedding_dim": 4, "predictor_dim": 7, "joint_dim": 9, "num_emotions": 4}
PARTS = ("token_joint", "emotion_joint", "pooled_head", "lm_head", "ctc_head")
BOTH = pytest.mark.parametrize("model_class", [ENT, FENT])


def small_model(model_class, seed=0, **options):
    """A small model in eval mode; all its parameters are random, including norms and mixes."""
    model = model_class(**SMALL | {"lm_head": True, "ctc_head": True} | options).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model


def random_features(layers=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 7, layers, 5, generator=generator)


def outputs_of(model, features=None, tokens=TOKENS):
    """All outputs of a forward pass, lattices dense, by name."""
    features = random_features() if features is None else features
    output = model(features, FRAME_LENS, tokens, TOKEN_LENS)
    return {
        "tokens": torch.cat([lattice.dense() for lattice in output.token_lattices], -1),
        "emotions": output.emotion_lattice.dense(),
        "head": output.head_logits,
        "lm": output.lm_logits,
    }


def valid_parts(outputs):
    """Valid part of an utterance's outputs, as one tensor."""
    parts = [outputs["head"].flatten()]
    sizes = zip(FRAME_LENS.tolist(), TOKEN_LENS.tolist(), strict=True)
    for row, (frames, tokens) in enumerate(sizes):
        for name in ("tokens", "emotions"):
            parts.append(outputs[name][row, :frames, : tokens + 1].flatten())
        parts.append(outputs["lm"][row, : tokens + 1].flatten())
    return torch.cat(parts)


def parameters_behind(output, model):
    """Names of the parameters that an output depends on."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(output.sum(), parameters, allow_unused=True, retain_graph=True)
    used = (grad is not None and bool(grad.any()) for grad in grads)
    return set(itertools.compress(names, used))


def prefixes(names, depth=2):
    return {".".join(name.split(".")[:depth]) for name in names}


# Parts.


def test_encoder_equals_a_bidirectional_lstm_on_packed_sequences():
    encoder = Encoder(5, 8)
    reference = nn.LSTM(5, 4, batch_first=True, bidirectional=True)
    reference.load_state_dict(
        encoder.ahead.state_dict()
        | {f"{name}_reverse": value for name, value in encoder.back.state_dict().items()}
    )
    features = random_features()[:, :, 0]
    packed = nn.utils.rnn.pack_padded_sequence(features, FRAME_LENS, True, enforce_sorted=False)
    expected, _ = nn.utils.rnn.pad_packed_sequence(reference(packed)[0], batch_first=True)
    torch.testing.assert_close(encoder(features, FRAME_LENS), expected, rtol=0, atol=1e-6)


def test_encoder_output_does_not_depend_on_the_padding():
    encoder, features = Encoder(5, 8), random_features()[:, :, 0]
    soiled = features.clone()
    for row, frames in enumerate(FRAME_LENS):
        soiled[row, frames:] = 1e3
    assert torch.equal(encoder(soiled, FRAME_LENS), encoder(features, FRAME_LENS))


def test_scalar_mix_is_a_softmax_weighted_sum_of_layers():
    mix, features = ScalarMix(3), random_features()
    torch.testing.assert_close(mix(features), features.mean(2))  # as it starts
    with torch.no_grad():
        mix.weights.copy_(torch.tensor([0.0, 1.0, 2.0]))
        mix.gamma.fill_(0.5)
    a, b, c = (torch.tensor([0.0, 1.0, 2.0]).exp() / (1 + 2.718281828 + 7.389056099)).tolist()
    expected = 0.5 * (a * features[:, :, 0] + b * features[:, :, 1] + c * features[:, :, 2])
    torch.testing.assert_close(mix(features), expected)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float64])
def test_scalar_mix_takes_features_of_any_precision(precision, monkeypatch):
    mix, features = ScalarMix(3), random_features().to(precision)
    target = torch.randn(features[:, :, 0].shape)

    def gradients(mixed):
        return torch.autograd.grad((mixed * target).sum(), [mix.weights, mix.gamma])

    whole = mix.gamma * torch.einsum("btld,l->btd", features.float(), mix.weights.softmax(0))
    monkeypatch.setattr(model_module, "MIX_FRAMES", 4)  # several blocks, the last one shorter
    mixed = mix(features)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, whole)
    torch.testing.assert_close(gradients(mixed), gradients(whole))


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("model_class", [ENT, FENT])
def test_normalized_channels_have_mean_0_and_deviation_1(model_class, layers):
    model = small_model(model_class, feature_layers=layers, normalize_features=True).train()
    features = random_features(layers) * 50 + 7
    valid = [row[:frames] for row, frames in zip(features, FRAME_LENS, strict=True)]
    for row, frames in enumerate(FRAME_LENS):
        features[row, frames:] = 1e6  # padding tells nothing
    model.encode(features, FRAME_LENS)
    factor, offset = model.norm()
    frames = torch.cat(valid) * factor - offset
    torch.testing.assert_close(frames.mean(0), torch.zeros(layers, 5), rtol=0, atol=1e-4)
    torch.testing.assert_close(frames.std(0, correction=0), torch.ones(layers, 5))

    model.eval()
    encoded = model.encode(features, FRAME_LENS)
    assert int(model.norm.batches) == 1  # only training is listened to
    plain = small_model(model_class, feature_layers=layers).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "norm." not in k[:5]})
    expected = plain.encode(features * factor - offset, FRAME_LENS)
    torch.testing.assert_close(encoded, expected)


def test_channel_norm_is_the_mean_over_the_first_batches():
    norm, lens = ChannelNorm(1, 1), torch.tensor([2])
    for batch in ([1.0, 3.0], [5.0, 9.0]):  # means 2 and 7, variances 1 and 4
        norm.observe(torch.tensor(batch).view(1, 2, 1, 1), lens)
    assert (norm.mean.item(), norm.deviation.item()) == pytest.approx((4.5, 2.5**0.5))
    norm.batches.fill_(model_module.NORM_BATCHES)
    norm.observe(torch.full((1, 2, 1, 1), 1e3), lens)
    assert norm.mean.item() == pytest.approx(4.5)  # enough batches were seen


def test_channel_norm_takes_float16_features_in_mixed_precision():
    norm, features = ChannelNorm(1, 1), torch.tensor([1.0, 3.0]).half().view(1, 2, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        norm.observe(features, torch.tensor([2]))
    assert (norm.mean.item(), norm.deviation.item()) == (2.0, 1.0)


@pytest.mark.parametrize("layers", [1, 3])
def test_model_takes_features_as_a_cache_keeps_them(layers):
    model, features = small_model(ENT, feature_layers=layers), random_features(layers).half()
    kept = model.encode(features, FRAME_LENS)
    torch.testing.assert_close(kept, model.encode(features.float(), FRAME_LENS))


@BOTH
def test_a_short_encoder_sees_neighbouring_frames_alone(model_class):
    model = small_model(model_class, encoder_context=3, encoder_layers=2)
    features = random_features().repeat_interleave(2, 1)
    other = features.clone()
    other[0, 6] += 1
    before, after = (model.encode(each, torch.tensor([14, 2, 8])) for each in (features, other))
    changed = (before.vocabulary[0] != after.vocabulary[0]).any(-1)
    assert changed.nonzero().flatten().tolist() == [4, 5, 6, 7, 8]  # two layers of three frames


def test_a_short_encoder_is_a_normalised_convolution():
    encoder, features = ShortEncoder(5, 6, context=3).eval(), random_features()[:, :, 0]
    kernel, bias = encoder.convolution.weight.double(), encoder.convolution.bias.double()
    encoded = encoder(features, FRAME_LENS)
    for row, frames in enumerate(FRAME_LENS.tolist()):
        padded = [
            torch.zeros(5).double(),
            *features[row, :frames].double(),
            torch.zeros(5).double(),
        ]
        for frame in range(frames):
            window = padded[frame : frame + 3]
            hidden = bias + sum(kernel[:, :, i] @ window[i] for i in range(3))
            hidden = (hidden - hidden.mean()) / (hidden.var(correction=0) + 1e-5).sqrt()
            expected = (hidden / (1 + (-hidden).exp())).float()
            torch.testing.assert_close(encoded[row, frame], expected)
        assert not encoded[row, frames:].any()
    wide = ShortEncoder(6, 6, context=1).eval()
    plain = nn.functional.silu(wide.norm(wide.convolution(encoded.transpose(1, 2)).transpose(1, 2)))
    lens = torch.tensor([7, 7, 7])
    torch.testing.assert_close(wide(encoded, lens), encoded + plain)


@pytest.mark.parametrize("context", [None, 1, 2, 9])
def test_predictor_steps_equal_the_whole_sequence(context):
    sizes = 8, 4, 7, 6, 0.1
    predictor = (ShortPredictor(*sizes, context) if context else Predictor(*sizes)).eval()
    whole, _ = predictor(TOKENS)
    state, steps = None, []
    for position in range(TOKENS.size(1)):
        output, state = predictor(TOKENS[:, position : position + 1], state)
        steps.append(output)
    torch.testing.assert_close(torch.cat(steps, 1), whole)


def test_a_short_predictor_sees_the_last_tokens_alone():
    predictor = ShortPredictor(8, 4, 7, 6, 0.1, context=2).eval()
    (one, two), _ = predictor(torch.tensor([[0, 3, 5, 1, 2], [0, 3, 6, 1, 2]]))
    same = [torch.allclose(*pair) for pair in zip(one, two, strict=True)]
    assert same == [True, True, False, False, True]


def test_predictor_drops_embeddings_in_training_only():
    predictor = Predictor(8, 4, 7, 6, dropout=0.5)
    torch.manual_seed(0)
    assert not torch.equal(predictor(TOKENS)[0], predictor(TOKENS)[0])
    predictor.eval()
    assert torch.equal(predictor(TOKENS)[0], predictor(TOKENS)[0])


def test_pooled_head_takes_vectors_of_any_batch_shape():
    head = PooledHead(6, 4)
    encoded, predicted = torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    alone = head(encoded[1, 2], predicted[1, 2])
    torch.testing.assert_close(head(encoded, predicted)[1, 2], alone)


# The whole model, against one utterance at a time computed from the parameters alone.


@BOTH
@pytest.mark.parametrize("layers", [1, 3])
def test_outputs_equal_the_description_of_each_utterance_by_itself(model_class, layers):
    model = small_model(model_class, feature_layers=layers)
    features = random_features(layers)
    outputs = outputs_of(model, features)
    plain = PlainModel(model)
    assert plain.factorised == (model_class is FENT)
    sizes = zip(FRAME_LENS.tolist(), TOKEN_LENS.tolist(), strict=True)
    for row, (frames, count) in enumerate(sizes):
        tokens = TOKENS[row, :count].tolist()
        encoded = [plain.encode(features[row, :frames], stream) for stream in (0, -1)]
        predicted = [plain.predict(tokens, stream) for stream in (0, -1)]
        for t in range(frames):
            for u in range(count + 1):
                node = [each[t] for each in encoded], [each[u] for each in predicted]
                expected = plain.token_logits(*node).float()
                torch.testing.assert_close(outputs["tokens"][row, t, u], expected)
                expected = plain.emotion_logits(*node).float()
                torch.testing.assert_close(outputs["emotions"][row, t, u], expected)
        for u in range(count + 1):
            expected = plain.linear("lm_head", predicted[-1][u]).float()
            torch.testing.assert_close(outputs["lm"][row, u], expected)
        expected = plain.head_logits(encoded[0].mean(0), predicted[0].mean(0)).float()
        torch.testing.assert_close(outputs["head"][row], expected)


@BOTH
def test_padding_of_features_and_tokens_changes_nothing(model_class):
    model, features, tokens = small_model(model_class), random_features(), TOKENS.clone()
    for row, (frames, count) in enumerate(zip(FRAME_LENS, TOKEN_LENS, strict=True)):
        features[row, frames:] = 1e3
        tokens[row, count:] = 7
    expected = valid_parts(outputs_of(model))
    assert torch.equal(valid_parts(outputs_of(model, features, tokens)), expected)


@BOTH
def test_padded_token_ids_may_be_no_ids_at_all(model_class):
    model, tokens = small_model(model_class), TOKENS.clone()
    tokens[1] = -100
    assert torch.equal(
        valid_parts(outputs_of(model, tokens=tokens)), valid_parts(outputs_of(model))
    )


@BOTH
def test_the_history_starts_with_blank_and_grows_by_the_tokens(model_class):
    model = small_model(model_class)
    lm = outputs_of(model)["lm"]
    for position in range(TOKENS.size(1)):
        tokens = TOKENS.clone()
        tokens[0, position] = 4
        changed = (outputs_of(model, tokens=tokens)["lm"][0] != lm[0]).any(-1)
        assert changed.tolist() == [u > position for u in range(TOKENS.size(1) + 1)]


def test_fent_blank_and_emotions_read_one_stream_and_words_the_other():
    model = small_model(FENT)
    outputs = outputs_of(model)
    blank = prefixes(parameters_behind(outputs["tokens"][..., 0], model))
    words = prefixes(parameters_behind(outputs["tokens"][..., 1:], model))
    emotion_side = {"mixes.0", "encoder.ahead", "encoder.back", "predictors.0"}
    vocabulary_side = {"mixes.1", "encoder.ahead", "encoder.back", "predictors.1"}
    assert blank == emotion_side | {"token_joints.0"}
    assert words == vocabulary_side | {"token_joints.1"}
    assert prefixes(parameters_behind(outputs["emotions"], model)) == emotion_side | {
        "emotion_joint.encoder_side",
        "emotion_joint.predictor_side",
        "emotion_joint.output",
    }
    head = {"pooled_head.norm", "pooled_head.output"}
    assert prefixes(parameters_behind(outputs["head"], model)) == emotion_side | head
    lm = {"predictors.1", "lm_head.weight", "lm_head.bias"}
    assert prefixes(parameters_behind(outputs["lm"], model)) == lm


@BOTH
def test_output_shapes(model_class):
    output = small_model(model_class)(random_features(), FRAME_LENS, TOKENS, TOKEN_LENS)
    outputs = [lattice.bias.numel() for lattice in output.token_lattices]
    assert outputs == ([8] if model_class is ENT else [1, 7])
    for lattice in (*output.token_lattices, output.emotion_lattice):
        assert (lattice.enc.shape, lattice.pred.shape) == ((3, 7, 9), (3, 5, 9))
    assert output.emotion_lattice.bias.shape == (4,)
    assert output.head_logits.shape == (3, 4)
    assert output.lm_logits.shape == (3, 5, 8)


# Parameters.


def linear(inputs, outputs):
    return inputs * outputs + outputs


def lstm(inputs, hidden):
    return 4 * hidden * (inputs + hidden + 2)  # PyTorch keeps two biases a gate


def joint(outputs):
    return 2 * linear(768, 768) + linear(768, outputs)


MIX = 13 + 1
ENCODER = 2 * lstm(768, 384)
PREDICTOR = 31 * 640 + lstm(640, 640) + linear(640, 768)
HEAD = 2 * 1536 + linear(1536, 4)


@pytest.mark.parametrize(
    ("model_class", "count"),
    [
        (ENT, MIX + ENCODER + PREDICTOR + joint(31) + joint(4) + HEAD),
        (FENT, 2 * MIX + ENCODER + 2 * PREDICTOR + joint(1) + joint(30) + joint(4) + HEAD),
    ],
)
def test_number_of_parameters_at_the_size_of_the_paper(model_class, count):
    with torch.device("meta"):
        model = model_class(vocab_size=31)
        with_lm = model_class(vocab_size=31, lm_head=True)
    assert sum(p.numel() for p in model.parameters()) == count
    assert sum(p.numel() for p in with_lm.parameters()) == count + linear(768, 31)
    assert model.predictors[0].dropout.p == 0.1


@BOTH
def test_one_layer_of_features_is_not_mixed(model_class):
    model = model_class(**SMALL | {"feature_layers": 1})
    assert not any(name.startswith("mixes") for name, _ in model.named_parameters())


@BOTH
@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_left_out_has_no_parameters_and_no_output(model_class, part):
    # Without words there is no language model either.
    parts = [part, "lm_head"] if part == "token_joint" else [part]
    whole, rest = small_model(model_class), small_model(model_class, **dict.fromkeys(parts, False))
    gone = set(dict(whole.named_parameters())) - set(dict(rest.named_parameters()))
    assert gone
    own = {name for name in dict(whole.named_parameters()) if name.startswith(part)}
    assert own <= gone
    output = rest(random_features(), FRAME_LENS, TOKENS, TOKEN_LENS)
    of_part = {
        "token_joint": output.token_lattices,
        "emotion_joint": output.emotion_lattice,
        "pooled_head": output.head_logits,
        "lm_head": output.lm_logits,
        "ctc_head": output.ctc_logits,
    }
    empty = [name for name, v in of_part.items() if v is None or (isinstance(v, tuple) and not v)]
    assert empty == parts


def training_loss(output):
    """Sum of all losses that the outputs allow."""
    emotions = torch.tensor([0, 3, 2])
    loss = torch.zeros(())
    if output.token_lattices:
        loss = loss + transducer_loss(output.token_lattices, TOKENS, FRAME_LENS, TOKEN_LENS)
    if output.emotion_lattice:
        token_lens = TOKEN_LENS if output.token_lattices else torch.zeros_like(TOKEN_LENS)
        loss = loss + lattice_pooling_loss(output.emotion_lattice, emotions, FRAME_LENS, token_lens)
    if output.head_logits is not None:
        loss = loss + nn.functional.cross_entropy(output.head_logits, emotions)
    if output.lm_logits is not None:
        loss = loss + next_token_loss(output.lm_logits, TOKENS, TOKEN_LENS)
    if output.ctc_logits is not None:
        loss = loss + ctc_loss(output.ctc_logits, TOKENS, FRAME_LENS, TOKEN_LENS).sum()
    return loss


@BOTH
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(
    "left_out",
    [(), ("emotion_joint",), ("pooled_head",), ("lm_head",), ("token_joint", "lm_head")],
    ids=str,
)
def test_every_parameter_is_trained(model_class, layers, left_out):
    model = small_model(model_class, feature_layers=layers, **dict.fromkeys(left_out, False))
    training_loss(model(random_features(layers), FRAME_LENS, TOKENS, TOKEN_LENS)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    if not left_out:
        assert [name for name, p in model.named_parameters() if not p.grad.any()] == []


@BOTH
def test_without_a_token_joint_the_predictor_sees_no_token(model_class):
    model = small_model(model_class, token_joint=False, lm_head=False)
    output = model(random_features(), FRAME_LENS, TOKENS, TOKEN_LENS)
    assert output.emotion_lattice.pred.size(1) == 1
    other = model(random_features(), FRAME_LENS, (TOKENS + 3) % 8, TOKEN_LENS)
    assert torch.equal(output.emotion_lattice.dense(), other.emotion_lattice.dense())
    assert torch.equal(output.head_logits, other.head_logits)


@BOTH
def test_a_language_model_without_words_is_refused(model_class):
    with pytest.raises(ValueError, match="lm_head without token_joint"):
        small_model(model_class, token_joint=False, lm_head=True)


@pytest.mark.parametrize("model_type", [ENT, FENT])
def test_weights_that_must_not_decay_are_vectors(model_type):
    """SpeechBrain's remove_vector_weight_decay excludes vectors, but not single numbers."""
    model = model_type(31, feature_dim=8, feature_layers=3, encoder_dim=6, lm_head=True)
    assert all(parameter.ndim for parameter in model.parameters())
