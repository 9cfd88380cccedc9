import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from hyperpyyaml import resolve_references
from speechbrain.core import RunOptions

from ent_brain.arguments import parse_arguments
from ent_brain.emotions import PUBLISHED
from ent_brain.errors import InputError
from ent_brain.frontend import FbankFrontend, SSLFrontend
from ent_brain.model import ENT, FENT
from ent_brain.settings import (
    KEYS_READ_BY_CODE,
    TRAINED_BY,
    check_device,
    load_recipe,
)

ROOT = Path(__file__).resolve().parents[1]
YAMLS = sorted(ROOT.glob("recipes/*/hparams/*.yaml"))
SMALL_MIX = ("RAVDESS", "hparams", "ent_mix.yaml")
WHISPER_MIX = ("RAVDESS", "hparams", "ent_mix_whisper.yaml")
SMALL = ("_demo", "_fbank", "_librispeech")
PLACES = {
    **{"data_folder": "corpus", "zed_folder": "zed", "librispeech_folder": "libri"},
    "table": "data.csv",
}
PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "str", "null")}


def overrides(folder, **given):
    given = {"output_folder": folder / "out", **given}
    return "".join(f"{key}: {value}\n" for key, value in given.items())


@pytest.fixture
def own_yaml(tmp_path):
    """A copy of a recipe's YAML and its fragments that a test may change."""
    shutil.copytree(ROOT / "hparams", tmp_path / "hparams")
    folder = tmp_path / "recipes" / "RAVDESS" / "hparams"
    folder.mkdir(parents=True)
    original = ROOT / "recipes" / "RAVDESS" / "hparams" / "ent_fbank.yaml"
    return Path(shutil.copy(original, folder))


def built(yaml, overrides, device=None):
    """Objects that a YAML builds; a table's recipe gets the published labels."""
    recipe = load_recipe(yaml, overrides, device)
    if recipe["emotions"] is None:
        recipe.settle(emotions=list(PUBLISHED), neutral=PUBLISHED.neutral, vocab_size=31)
    return recipe.build()


def refused(yaml, folder, **given):
    """Error message for a YAML."""
    with pytest.raises(InputError) as error:
        built(yaml, overrides(folder, **given))
    line = str(error.value)
    assert "\n" not in line
    return line


# --- the recipes' own YAMLs


@pytest.fixture(scope="module", params=YAMLS, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def recipe(request, tmp_path_factory, tiny_ssl):
    """Path and hparams of every YAML, with the options that a user must give."""
    folder = tmp_path_factory.mktemp("recipe")
    text = request.param.read_text()
    given = {key: value for key, value in PLACES.items() if f"\n{key}: !PLACEHOLDER" in text}
    if "\nssl_hub:" in text:
        kind = re.search(r"(?m)^frontend: (\S+)", text)
        given["ssl_hub"] = tiny_ssl(kind[1] if kind else "wav2vec2")
    if "\nssl_layers: [" in text:
        given["ssl_layers"] = "[1, 2, 3]"
    if "\nfeature_cache:" in text:
        given["feature_cache"] = folder / "features"
    return request.param, built(request.param, overrides(folder, **given))


def test_every_yaml_loads_and_its_parts_fit(recipe):
    path, hparams = recipe
    frontend, model = hparams["modules"]["frontend"], hparams["modules"]["model"]
    assert type(model) is (FENT if path.stem.startswith("fent") else ENT)
    features, frame_lens = frontend(torch.randn(1, 8000), torch.ones(1))
    output = model(features, frame_lens, torch.tensor([[5]]), torch.tensor([1]))
    if hparams["head_weight"]:
        assert output.head_logits.shape == (1, 4)
    if hparams["rnnt_weight"]:
        outputs = sum(lattice.bias.numel() for lattice in output.token_lattices)
        assert outputs == hparams["vocab_size"]
    kept = hparams["checkpointer"].recoverables
    assert {name: kept[name] for name in hparams["modules"]} == hparams["modules"]
    assert hparams["train_dataloader_opts"]["shuffle"]


def test_what_changes_the_data_or_the_model_is_in_the_output_path(recipe):
    path, _ = recipe
    [line] = [ln for ln in path.read_text().splitlines() if ln.startswith("output_folder:")]
    telling = ("tokens", "vocab_size", "seed", "frontend", "test_session")
    telling += ("max_train_seconds", "keep_neutral")
    assert all(
        f"<{key}>" in line for key in telling if re.search(rf"\n{key}: (?!null)", path.read_text())
    )
    assert f"results/{path.stem}/" in line


NOTED_OTHERWISE = {
    "data": {
        *("test_session", "valid_share", "max_train_seconds", "test_actors", "valid_actors"),
        *("label_map", "zed_label_map", "table", "test_share", "train_parts", "valid_parts"),
        *("valid_speakers", "test_parts", "neutral_share"),
        *("mixed", "keep_neutral", "mixed_speeds", "close_draws"),
    },
    "tokens": {"tokens", "vocab_size", "normalization"},
    "features": {
        "frontend",
        "ssl_hub",
        "ssl_layers",
        "level",
        "stacked",
        "frame_duration",
        "normalize_utterances",
    },
    "model settings": {
        *("encoder_dim", "predictor_dim", "joint_dim", "dropout"),
        *("encoder_layers", "encoder_dropout", "normalize_features"),
        *("encoder_context", "predictor_context"),
    },
    "nothing that is learnt": {
        *("data_folder", "zed_folder", "output_folder", "save_folder", "mixed_folder"),
        *("librispeech_folder", "average_checkpoints"),
        *("feature_cache", "only_fill_cache", "num_workers", "max_tokens_per_frame"),
        "max_unknown_share",
        *("number_of_epochs", "max_symbols", "beam_size", "segment_decoding", "segment_seconds"),
        *("language_model_weight", "letter_bonus", "prior_weight"),
    },
}
"""Parts of ``trained_on.json`` that record keys under other names."""


def test_a_training_notes_every_key_that_decides_what_is_learnt(recipe):
    path, _ = recipe
    keys = {
        key.value
        for key, value in yaml.compose(path.read_text()).value
        if isinstance(value, yaml.SequenceNode) or value.tag in PLAIN_TAGS
    } - {"__set_seed"}
    noted = {key for group in (*TRAINED_BY.values(), *NOTED_OTHERWISE.values()) for key in group}
    assert keys <= noted


def test_the_paper_s_recipes_have_the_paper_s_settings(recipe):
    """SPEC.md sections 3, 4 and 7: the frozen protocol."""
    path, hparams = recipe
    if path.stem not in ("ent", "fent") or path.parts[-3] == "Open":
        small = path.stem.endswith(SMALL) or path.parts[-3:] == SMALL_MIX
        assert isinstance(hparams["modules"]["frontend"], SSLFrontend) != small
        return
    settings = {
        "seed": 42,
        "rnnt_weight": 0.5,
        "head_weight": 0.5,
        "lattice_weight": 0.5,
        "lm_weight": 0,
        "lattice_mode": "one",
        "fastemit": 0,
        "number_of_epochs": 50,
        "warmup_epochs": 5,
        "batch_size": 2,
        "max_grad_norm": 5,
        "remove_vector_weight_decay": True,
        "max_symbols": 32,
    }
    assert {key: hparams[key] for key in settings} == settings
    optimizer = hparams["opt_class"]([torch.nn.Parameter(torch.zeros(2, 2))])
    assert type(optimizer) is torch.optim.AdamW
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"]) == (5e-4, (0.9, 0.999))
    assert (group["eps"], group["weight_decay"]) == (1e-8, 0.05)
    sizes = {
        "encoder_dim": 768,
        "embedding_dim": 640,
        "predictor_dim": 640,
        "joint_dim": 768,
        "dropout": 0.1,
    }
    model = hparams["modules"]["model"]
    assert {key: model.settings[key] for key in sizes} == sizes
    assert hparams["modules"]["frontend"].frozen


def test_the_finetune_recipes_have_the_finetune_protocol_s_settings(recipe):
    """SPEC.md sections 3 and 7."""
    path, hparams = recipe
    if "_finetune" not in path.stem:
        return
    settings = {
        "number_of_epochs": 100,
        "warmup_epochs": 20,
        "decay_epochs": 50,
        "batch_size": 1,
        "head_weight": 1.0,
        "lattice_mode": "one",
    }
    assert {key: hparams[key] for key in settings} == settings
    optimizer = hparams["opt_class"]([torch.nn.Parameter(torch.zeros(2, 2))])
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.param_groups[0]["lr"] == 5e-6
    steps = 7
    schedule = hparams["lr_schedule"](
        optimizer, num_warmup_steps=20 * steps, num_training_steps=100 * steps
    )
    rates = [schedule.lr_lambdas[0](step) for step in range(100 * steps)]
    expected = [epoch / 20 for epoch in range(1, 21)] + [1.0] * 30
    expected += [epoch / 50 for epoch in range(50, 0, -1)]
    assert rates == pytest.approx([rate for rate in expected for _ in range(steps)])

    frontend = hparams["modules"]["frontend"]
    config = frontend.ssl.model.config
    assert (config.mask_time_prob, config.mask_time_length) == (0.08, 15)
    assert (config.mask_feature_prob, config.mask_feature_length) == (0.05, 64)
    trained = {name for name, p in frontend.ssl.model.named_parameters() if p.requires_grad}
    assert trained
    assert not {name for name in trained if name.startswith("feature_extractor.")}
    assert frontend.feature_layers == 1
    assert not hparams["modules"]["model"].mixes


FINETUNED = {"frontend", "ssl", "finetune", "adamw", "modules", "model", "checkpointer"}
FINETUNED |= {"opt_class", "lr_schedule", "number_of_epochs", "warmup_epochs", "decay_epochs"}
FINETUNED |= {
    "batch_size",
    "lr",
    "start_lr",
    "final_lr",
    "weight_decay",
    "remove_vector_weight_decay",
    "head_weight",
}
FINETUNED |= {"ssl_layers", "feature_cache", "feature_precision", "only_fill_cache"}
FINETUNED |= {f"mask_{axis}_{what}" for axis in ("time", "feature") for what in ("prob", "length")}
MIXED = {
    "mixed",
    "curriculum_epochs",
    "keep_neutral",
    "mixed_speeds",
    "mixed_folder",
    "lattice_mode",
}
LIBRISPEECH = {"train_parts", "valid_parts", "valid_speakers", "test_parts"}
WORDS_ALONE = {
    *("test_actors", "valid_actors", "label_map", "normalization"),
    *("rnnt_weight", "head_weight", "lattice_weight"),
}
TABLE = {
    *("table", "data_folder", "test_actors", "valid_actors", "valid_share", "test_share"),
    *("emotions", "neutral", "label_map", "tokens", "vocab_size", "normalization"),
}
VARIANTS = {
    "IEMOCAP/fent": ("IEMOCAP/ent", {"model"}),
    "IEMOCAP/fent_demo": ("IEMOCAP/ent_demo", {"model"}),
    "IEMOCAP/ent_bpe": ("IEMOCAP/ent", {"tokens", "vocab_size"}),
    "IEMOCAP/ent_asr": ("IEMOCAP/ent", {"rnnt_weight", "head_weight", "lattice_weight"}),
    "IEMOCAP/ser": ("IEMOCAP/ent", {"rnnt_weight", "head_weight", "lattice_weight"}),
    "IEMOCAP/ent_finetune": ("IEMOCAP/ent", FINETUNED),
    "IEMOCAP/ent_mix": ("IEMOCAP/ent", MIXED),
    "IEMOCAP/fent_bpe": ("IEMOCAP/ent_bpe", {"model"}),
    "IEMOCAP/fent_asr": ("IEMOCAP/ent_asr", {"model"}),
    "IEMOCAP/fent_finetune": ("IEMOCAP/ent_finetune", {"model"}),
    "IEMOCAP/fent_mix": ("IEMOCAP/ent_mix", {"model"}),
    "ZED/ent": ("IEMOCAP/ent", {"zed_folder", "zed_label_map", "test_session"}),
    "ZED/fent": ("ZED/ent", {"model"}),
    "ZED/ent_demo": ("IEMOCAP/ent_demo", {"zed_folder", "zed_label_map", "segment_decoding"}),
    "ZED/fent_demo": ("ZED/ent_demo", {"model"}),
    "ZED/ent_finetune": ("ZED/ent", FINETUNED),
    "ZED/fent_finetune": ("ZED/ent_finetune", {"model"}),
    "ZED/ent_mix": ("ZED/ent", MIXED),
    "ZED/fent_mix": ("ZED/ent_mix", {"model"}),
    "RAVDESS/ent": (
        "IEMOCAP/ent",
        {"test_session", "valid_share", "max_train_seconds"}
        | {"test_actors", "valid_actors", "label_map"},
    ),
    "RAVDESS/fent_fbank": ("RAVDESS/ent_fbank", {"model"}),
    "RAVDESS/fent_whisper": ("RAVDESS/ent_whisper", {"model"}),
    "RAVDESS/ent_mix_whisper": (
        "RAVDESS/ent_whisper",
        {*MIXED, "rnnt_weight", "lattice_weight", "aligned_seconds", "head_intervals", "speeds"}
        | {"number_of_epochs", "average_checkpoints", "warmup_epochs"}
        | {"segment_decoding", "segment_seconds", "normalize_features", "predictor_context"},
    ),
    "RAVDESS/ent_librispeech": (
        "RAVDESS/ent_fbank",
        {*LIBRISPEECH, "librispeech_folder", "corpus_weights", "normalization"},
    ),
    "LibriSpeech/ent_asr": ("RAVDESS/ent", {*LIBRISPEECH, *WORDS_ALONE}),
    "LibriSpeech/ent_asr_fbank": ("RAVDESS/ent_fbank", {*LIBRISPEECH, *WORDS_ALONE}),
    "LibriSpeech/ent_asr_whisper": (
        "RAVDESS/ent_whisper",
        {*LIBRISPEECH, *WORDS_ALONE, "ctc_weight", "speeds", "ssl_layers", "number_of_epochs"}
        | {"average_checkpoints", "warmup_epochs", "time_masks", "encoder_dim", "joint_dim"}
        | {"encoder_dropout", "dropout", "normalize_features", "predictor_context"}
        | {"beam_size", "language_model_weight", "letter_bonus", "prior_weight", "language_model"},
    ),
    "Open/fent": ("Open/ent", {"model"}),
    "Table/ent": ("RAVDESS/ent", TABLE),
    "Table/fent": ("Table/ent", {"model"}),
    "Table/ent_fbank": ("RAVDESS/ent_fbank", TABLE),
}
"""For each variant: a similar YAML, and the keys that differ, except ``output_folder``."""


def written(name):
    """Text of each key in a YAML, including tags."""
    recipe, stem = name.split("/")
    text = (ROOT / "recipes" / recipe / "hparams" / f"{stem}.yaml").read_text()
    return {key.value: yaml.serialize(value) for key, value in yaml.compose(text).value}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_differs_from_its_model_where_it_says_so_alone(name):
    base, allowed = VARIANTS[name]
    own, others = written(name), written(base)
    differing = {key for key in own.keys() | others.keys() if own.get(key) != others.get(key)}
    assert "output_folder" in differing or base.split("/")[1] == name.split("/")[1]
    assert differing - {"output_folder"} <= allowed


def test_every_yaml_is_a_variant_or_a_model():
    names = {f"{path.parts[-3]}/{path.stem}" for path in YAMLS}
    assert names - set(VARIANTS) == {
        *("IEMOCAP/ent", "IEMOCAP/ent_demo", "RAVDESS/ent_fbank", "RAVDESS/ent_mix"),
        *("RAVDESS/ent_whisper", "Open/ent"),
    }


OWN = {
    "bpe": {"tokens": "bpe", "vocab_size": 5000},
    "asr": {"rnnt_weight": 1, "head_weight": 0, "lattice_weight": 0, "lm_weight": 0},
    "ser": {"rnnt_weight": 0, "head_weight": 1, "lattice_weight": 0, "lm_weight": 0},
    "mix": {"mixed": True, "lattice_mode": "supervised", "mixed_speeds": [100]},
}
"""Keys and values after which variants are named."""


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_a_variant_is_what_its_name_says(path):
    own = OWN.get(path.stem.rpartition("_")[2], {})
    if path.parts[-3:] in (SMALL_MIX, WHISPER_MIX):
        own = {"mixed": True, "lattice_mode": "aligned_event"}
    said = yaml.safe_load(
        "\n".join(line for line in path.read_text().splitlines() if re.match(r"\w+: [^!]", line))
    )
    assert {key: said[key] for key in own} == own


def other_than(node):
    """Another value of the same type as a YAML's scalar."""
    kind = node.tag.rpartition(":")[2]
    if kind == "bool":
        return node.value.lower() != "true"
    return int(node.value) + 1 if kind == "int" else 0.123


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_the_command_line_reaches_every_tunable(path):
    given = {key: "x" for key in PLACES if f"\n{key}: !PLACEHOLDER" in path.read_text()}

    def resolved(**overrides):
        with path.open() as file:
            return yaml.compose(resolve_references(file, given | overrides).getvalue()).value

    def said(nodes):
        return {key.value: yaml.serialize(value) for key, value in nodes}

    as_it_is = said(resolved())
    by_code = KEYS_READ_BY_CODE | set(RunOptions().as_dict())
    for key, node in resolved():
        if key.value in by_code or node.tag not in PLAIN_TAGS:
            continue
        changed = said(resolved(**{key.value: other_than(node)}))
        elsewhere = {name for name in changed if changed[name] != as_it_is[name]} - {key.value}
        assert elsewhere, f"{key.value} reaches nothing"


PLAIN_NAMES = {
    *("seed", "number_of_epochs", "warmup_epochs", "batch_size", "lr", "weight_decay"),
    *("max_grad_norm", "num_workers", "dropout", "encoder_dim", "predictor_dim", "joint_dim"),
    *(
        "rnnt_weight",
        "head_weight",
        "lattice_weight",
        "lm_weight",
        "ctc_weight",
        "mask_feature_length",
    ),
}
"""Keys with names from SpeechBrain or the paper, described only by their section's heading."""


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_what_is_set_is_explained(path):
    for line in path.read_text().splitlines():
        key = re.match(r"(\w+): [^!]", line)
        if key and key[1] not in PLAIN_NAMES:
            assert " # " in line, line


# --- what is refused


def test_a_missing_yaml_is_refused(tmp_path):
    path = tmp_path / "no.yaml"
    assert refused(path, tmp_path) == (
        f"{path}: no such file. Name a YAML of the recipe's hparams/."
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not a YAML of keys and values"),
        ("- a\n- b\n", "not a YAML of keys and values"),
        ("just words", "not a YAML of keys and values"),
        ("lr: [1\n", "not YAML (while parsing a flow sequence"),
    ],
)
def test_what_is_no_yaml_is_refused(tmp_path, content, reason):
    path = tmp_path / "a.yaml"
    path.write_text(content)
    assert refused(path, tmp_path).startswith(f"{path}: {reason}")


def test_a_yaml_away_from_its_fragments_is_refused(own_yaml, tmp_path):
    moved = own_yaml.rename(tmp_path / "mine.yaml")
    line = refused(moved, tmp_path, data_folder="x")
    fragments = [f"{tmp_path}/../../../hparams/{name}.yaml" for name in ("fbank", "adamw")]
    problems = "; ".join(f"{moved}: includes {name}, which does not exist" for name in fragments)
    assert line == f"2 problems: {problems}: correct the key or remove it"


def test_a_key_given_twice_is_refused(own_yaml, tmp_path):
    own_yaml.write_text(own_yaml.read_text() + "\nseed: 43\n")
    assert refused(own_yaml, tmp_path, data_folder="x") == (
        f"{own_yaml}: seed is given 2 times: keep one of them"
    )


def test_an_option_given_twice_is_refused(own_yaml):
    with pytest.raises(InputError) as error:
        built(own_yaml, "data_folder: x\nlr: 1\nlr: 2\n")
    assert str(error.value) == "command line: lr is given 2 times: keep one of them"


def test_a_key_that_nothing_reads_is_refused(own_yaml, tmp_path):
    own_yaml.write_text(own_yaml.read_text() + "\nleraning_rate: 3\nbatchsize: 2\n")
    assert refused(own_yaml, tmp_path, data_folder="x") == (
        f"2 problems: {own_yaml}: nothing uses the key 'leraning_rate'; "
        f"{own_yaml}: nothing uses the key 'batchsize': correct the key or remove it"
    )


def test_a_misspelt_key_under_an_include_is_refused(own_yaml, tmp_path):
    text = own_yaml.read_text()
    old = "    weight_decay: !ref <weight_decay>\n"
    assert old in text
    own_yaml.write_text(text.replace(old, old + "    start_rl: 0.1\n"))
    fragment = own_yaml.parent / "../../../hparams/adamw.yaml"
    assert refused(own_yaml, tmp_path, data_folder="x") == (
        f"{fragment}: has no key 'start_rl': correct the key or remove it"
    )


def test_an_option_that_nothing_reads_is_refused(own_yaml, tmp_path):
    line = refused(own_yaml, tmp_path, data_folder="x", xyz=3)
    assert line == "--xyz: no such option: correct the option or remove it"
    line = refused(own_yaml, tmp_path, data_folder="x", batchsize=3, lattice_weigth=1)
    assert line == (
        "2 problems: --batchsize: no such option (did you mean --batch_size?); "
        "--lattice_weigth: no such option (did you mean --lattice_weight?): "
        "correct the option or remove it"
    )


ODD_FOLDERS = [
    *("/my corpora #2", "/a: b", "2024", "2024-13-45", "1e3", "true", "/a=b", "--x", "-", "[1]"),
    *(
        "{a: b}",
        "*a",
        "!new:a",
        "(3)",
        'a "b"',
        "it's",
        "a\\nb",
        "two\nlines",
        "\u00e9t\u00e9 \u65e5",
        "# ",
    ),
]


@pytest.mark.parametrize("equals", [False, True])
@pytest.mark.parametrize("name", ODD_FOLDERS)
def test_a_folder_may_have_any_name(own_yaml, tmp_path, monkeypatch, name, equals):
    monkeypatch.chdir(tmp_path)
    given = {"--data_folder": name, "--output_folder": f"out/{name}", "--lr": "1e-4"}
    pairs = [(f"{k}={v}",) if equals else (k, v) for k, v in given.items()]
    arguments = [str(own_yaml), *(text for pair in pairs for text in pair), "--device", "cpu"]
    path, run_opts, overrides = parse_arguments(arguments)
    hparams = built(path, overrides, run_opts["device"])
    assert (hparams["data_folder"], hparams["output_folder"]) == (name, f"out/{name}")
    assert (hparams["save_folder"], hparams["lr"]) == (f"out/{name}/save", 1e-4)


def test_a_limit_of_steps_is_a_number():
    given = ["ent.yaml", "--optimizer_step_limit"]
    _, run_opts, _ = parse_arguments([*given, "7"])
    assert run_opts["optimizer_step_limit"] == 7
    assert run_opts.overridden_args == {"optimizer_step_limit"}
    for wrong in ("0", "-1", "1.5", "many"):
        message = f"--optimizer_step_limit: {wrong}. Give a whole number above 0."
        with pytest.raises(InputError, match=f"^{message}$"):
            parse_arguments([*given, wrong])


def test_a_switch_takes_no_value():
    for value in ("False", "true"):
        message = "--remove_vector_weight_decay: takes no value. Give it alone to switch it on, or "
        with pytest.raises(InputError, match=f"^{message}set it to {value} in the YAML.$"):
            parse_arguments(["ent.yaml", "--remove_vector_weight_decay", value])
    _, run_opts, _ = parse_arguments(["ent.yaml", "--remove_vector_weight_decay", "--lr", "1"])
    assert run_opts["remove_vector_weight_decay"]


def test_checkpoints_may_lie_elsewhere(own_yaml, tmp_path):
    folders = {"data_folder": "x", "save_folder": tmp_path / "elsewhere"}
    built(own_yaml, overrides(tmp_path / "new", **folders))
    assert (tmp_path / "elsewhere").is_dir()


def test_what_a_yaml_computes_may_be_given(own_yaml, tmp_path):
    text = own_yaml.read_text().replace(
        "\njoint_dim: 96\n", "\njoint_dim: !ref <encoder_dim> // 4\n"
    )
    own_yaml.write_text(text)
    for given, expected in (({}, 96), ({"joint_dim": 64}, 64)):
        hparams = built(own_yaml, overrides(tmp_path, data_folder="x", **given))
        assert hparams["model"].settings["joint_dim"] == expected


def test_a_cache_is_a_folder_or_none(tmp_path):
    path = ROOT / "recipes" / "IEMOCAP" / "hparams" / "ent.yaml"
    for text, expected in (("null", None), ("my features #2", "my features #2")):
        given = ["--data_folder", "x", "--frontend", "fbank", "--feature_cache", text]
        arguments = [str(path), *given, "--output_folder", str(tmp_path / "out")]
        assert built(path, parse_arguments(arguments)[2])["feature_cache"] == expected


def test_a_corpus_must_be_named(own_yaml, tmp_path):
    line = refused(own_yaml, tmp_path)
    assert line.startswith(f"{own_yaml}: ")
    assert "data_folder" in line


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("lr", "abc", "give a number above 0"),
        ("lr", -1, "give a number above 0"),
        ("lr", True, "give a number above 0"),
        ("lr", "null", "give a number above 0"),
        ("batch_size", 0, "give a whole number above 0"),
        ("batch_size", 1.5, "give a whole number above 0"),
        ("number_of_epochs", 0, "give a whole number above 0"),
        ("number_of_epochs", "abc", "give a whole number above 0"),
        ("warmup_epochs", -1, "give a whole number from 0"),
        ("head_weight", -0.5, "give a number from 0"),
        ("head_weight", "much", "give a number from 0"),
        ("head_weight", ".nan", "give a number from 0"),
        ("head_weight", ".inf", "give a number from 0"),
        ("aligned_top", 1.2, "give a number above 0 to 1"),
        ("paper_protocol", 1, "give True or False"),
        (
            "lattice_mode",
            "two",
            "choose one, full_t, full_u, mil, aligned, aligned_event, supervised, "
            "supervised_aligned",
        ),
        (
            "segment_decoding",
            "mode",
            "choose argmax, median, min_duration, single_event, lasting_event",
        ),
    ],
)
def test_a_value_of_another_kind_or_out_of_range_is_refused(own_yaml, tmp_path, key, value, remedy):
    said = str(value).removeprefix(".")
    assert refused(own_yaml, tmp_path, data_folder="x", **{key: value}) == (
        f"{key}: {said}: {remedy}"
    )


def test_all_wrong_values_are_told_together(own_yaml, tmp_path):
    assert refused(own_yaml, tmp_path, data_folder="x", lr="high", seed=0.5) == (
        "seed: 0.5: give a whole number from 0; lr: high: give a number above 0"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [("lr", "1e-3"), ("lr", 1), ("weight_decay", 0), ("max_grad_norm", ".inf"), ("dropout", 0.0)],
)
def test_a_number_may_be_written_in_any_way(own_yaml, tmp_path, key, value):
    hparams = built(own_yaml, overrides(tmp_path, data_folder="x", **{key: value}))
    assert hparams[key] == float(str(value).removeprefix("."))


def test_preparation_gets_the_number_that_the_yaml_builds_with(own_yaml, tmp_path):
    recipe = load_recipe(own_yaml, overrides(tmp_path, data_folder="x", max_unknown_share="1e-1"))
    assert recipe["max_unknown_share"] == recipe.build()["max_unknown_share"] == 0.1


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            {"corpus_weights": "{RAVDESS: 0}"},
            "corpus_weights[RAVDESS]: 0: give a number above 0 to ",
        ),
        (
            {"corpus_weights": "{RAVDESS: a}"},
            "corpus_weights[RAVDESS]: a: give a number above 0 to ",
        ),
        ({"label_map": "{calm: 5}"}, "label_map[calm]: 5: give text"),
        ({"label_map": "null"}, "label_map: null: give keys and values, as {neutral: ...}"),
        ({"label_map": "[calm]"}, "label_map: ['calm']: give keys and values, as {neutral: ...}"),
    ],
)
def test_keys_of_a_corpus_are_free_but_not_their_values(tmp_path, given, problem):
    path = ROOT / "recipes" / "RAVDESS" / "hparams" / "ent_librispeech.yaml"
    places = {"data_folder": "x", "librispeech_folder": "y"}
    assert refused(path, tmp_path, **places, **given).startswith(problem)
    free = {"label_map": "{calm: neutral, any: null}", "corpus_weights": "{any: 0.5}"}
    recipe = load_recipe(path, overrides(tmp_path, **places, **free))
    assert recipe["corpus_weights"]["any"] == 0.5


@pytest.mark.parametrize("session", [7, "abc", 2.0, True])
def test_a_session_is_one_of_five(tmp_path, session):
    path = ROOT / "recipes" / "IEMOCAP" / "hparams" / "ent_demo.yaml"
    line = refused(path, tmp_path, data_folder="x", test_session=session)
    assert line == f"test_session: {session}: choose 1, 2, 3, 4, 5, null"


@pytest.mark.parametrize("speakers", [0.2, [1088, 118], []])
def test_validation_speakers_are_a_share_or_a_list(tmp_path, speakers):
    yaml = ROOT / "recipes" / "LibriSpeech" / "hparams" / "ent_asr_fbank.yaml"
    given = overrides(tmp_path, data_folder=tmp_path, valid_speakers=speakers)
    assert load_recipe(yaml, given)["valid_speakers"] == speakers


def test_zed_s_recipe_trains_on_all_sessions_too(tmp_path):
    path = ROOT / "recipes" / "ZED" / "hparams" / "ent_demo.yaml"
    given = {"data_folder": "x", "zed_folder": "y"}
    hparams = built(path, overrides(tmp_path, test_session="null", **given))
    assert hparams["test_session"] is None
    line = refused(path, tmp_path, test_session=7, **given)
    assert line == "test_session: 7: choose 1, 2, 3, 4, 5, null"


def test_no_limit_or_a_number_where_the_yaml_has_none(tmp_path):
    path = ROOT / "recipes" / "IEMOCAP" / "hparams" / "ent_demo.yaml"
    for seconds in ("null", 18.75, 20):
        assert built(path, overrides(tmp_path, data_folder="x", max_train_seconds=seconds))
    line = refused(path, tmp_path, data_folder="x", max_train_seconds="long")
    assert line == "max_train_seconds: long: give a number above 0"


def test_a_device_that_is_not_there_is_refused(own_yaml, tmp_path):
    for device in ("cuda:99", "gpu", "meta"):
        with pytest.raises(InputError) as error:
            built(own_yaml, overrides(tmp_path, data_folder="x"), device)
        line = str(error.value)
        assert "\n" not in line
        assert line.startswith(f"device: '{device}': ")
        assert line.endswith(". Name an available one, for example cpu.")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="the device is there")
def test_a_device_of_another_system_is_refused_in_a_short_line():
    with pytest.raises(InputError) as error:
        check_device("mps")
    assert str(error.value) == (
        "device: 'mps': Could not run 'aten::empty.memory_format' with arguments from the 'MPS' "
        "backend. Name an available one, for example cpu."
    )


@pytest.mark.parametrize("place", ["file/out", "/proc/out"])
def test_an_output_folder_that_cannot_be_written_is_refused(own_yaml, tmp_path, place):
    (tmp_path / "file").touch()
    folder = tmp_path / place
    line = refused(own_yaml, tmp_path, data_folder="x", output_folder=folder)
    assert str(folder) in line


def test_an_output_folder_that_is_read_only_is_refused(own_yaml, tmp_path, monkeypatch):
    # The tests' user may be one whom no permission stops.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    line = refused(own_yaml, tmp_path, data_folder="x")
    assert line == f"{tmp_path}/out: cannot be written. Name another output_folder."


def test_some_loss_must_have_a_weight(own_yaml, tmp_path):
    none = {"rnnt_weight": 0, "head_weight": 0, "lattice_weight": 0}
    line = refused(own_yaml, tmp_path, data_folder="x", **none)
    assert line.endswith(": one must lie above 0")
    assert built(own_yaml, overrides(tmp_path, data_folder="x", **none | {"head_weight": 1}))


@pytest.mark.parametrize(
    "given", [{"lattice_mode": "aligned"}, {"lattice_mode": "supervised"}, {"lm_weight": 0.3}]
)
def test_what_needs_words_is_refused_without_them(own_yaml, tmp_path, given):
    given = {"data_folder": "x", "rnnt_weight": 0, "lattice_mode": "mil", **given}
    assert refused(own_yaml, tmp_path, **given).startswith("rnnt_weight: 0: nothing is transcribed")


def test_log_mel_energies_take_an_ssl_model_s_place(tmp_path):
    path = ROOT / "recipes" / "IEMOCAP" / "hparams" / "fent.yaml"
    hparams = built(path, overrides(tmp_path, data_folder="x", frontend="fbank"))
    frontend, model = hparams["modules"]["frontend"], hparams["modules"]["model"]
    assert type(frontend) is FbankFrontend
    assert frontend.frame_duration == 0.02
    assert (model.settings["feature_dim"], model.settings["feature_layers"]) == (160, 1)
    assert hparams["checkpointer"].recoverables["frontend"] is frontend


def test_an_unknown_front_end_is_refused(tmp_path, tiny_ssl):
    path = ROOT / "recipes" / "IEMOCAP" / "hparams" / "ent.yaml"
    given = {"data_folder": "x", "ssl_hub": tiny_ssl("wav2vec2"), "frontend": "data2vec"}
    line = refused(path, tmp_path, **given)
    assert line.startswith(f"{path}: ")
    assert "unknown SSL model 'data2vec': use one of wav2vec2, hubert, wavlm" in line


def test_a_front_end_s_missing_model_is_refused(tmp_path):
    path = ROOT / "recipes" / "IEMOCAP" / "hparams" / "ent.yaml"
    line = refused(path, tmp_path, data_folder="x", ssl_hub=tmp_path / "nowhere")
    assert line.startswith(f"{path}: ")
    assert "nowhere" in line


def test_damaged_weights_of_a_front_end_are_refused(tmp_path, tiny_ssl):
    path = ROOT / "recipes" / "IEMOCAP" / "hparams" / "ent.yaml"
    source = shutil.copytree(tiny_ssl("wav2vec2"), tmp_path / "ssl")
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    line = refused(path, tmp_path, data_folder="x", ssl_hub=source)
    assert line.startswith(f"{path}: weights of {source}: damaged (")
    assert line.endswith("). Download them again.")


@pytest.mark.parametrize("size", [10**10, 10**30])
def test_a_model_that_no_memory_holds_is_refused(own_yaml, tmp_path, size):
    line = refused(own_yaml, tmp_path, data_folder="x", encoder_dim=size)
    assert line.startswith(f"{own_yaml}: ")
    assert len(line) < 400


def test_a_frame_duration_that_does_not_go_is_refused(own_yaml, tmp_path):
    line = refused(own_yaml, tmp_path, data_folder="x", frame_duration=0.025)
    assert "frame_duration 0.025 is not a whole number of 10 ms" in line
