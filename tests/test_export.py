"""Content of an export, and safe loading of folders from strangers."""

import json
import pickle
import shutil
import socket
import tempfile
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from speechbrain.inference.interfaces import foreign_class

from ent_brain import export as export_room
from ent_brain.emotions import PUBLISHED
from ent_brain.errors import InputError
from ent_brain.export import HPARAMS_FILE, export
from ent_brain.frontend import SSL_MODELS, SSLFrontend
from ent_brain.inference import EmotionTransducer
from ent_brain.language_model import WordFusion

PRETRAINER = "speechbrain.utils.parameter_transfer.Pretrainer"
SSL = "ent_brain.frontend.SSLFrontend"
WAVS, LENS = 0.1 * torch.randn(2, 8000), torch.tensor([1.0, 0.6])


@pytest.fixture
def folder(tmp_path, trained):
    path = tmp_path / "pretrained"
    table = "| test set | WER |\n| :-- | --: |\n| ZED | 12.3 |"
    export(trained(), path, 2.5, table, utterances=7200, hours=3.21)
    return path


def edit(folder, old, new):
    text = (folder / HPARAMS_FILE).read_text()
    assert old in text
    (folder / HPARAMS_FILE).write_text(text.replace(old, new))


def refusal(folder, **settings):
    with pytest.raises(InputError) as caught:
        EmotionTransducer.from_hparams(source=folder, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_export_is_complete_and_says_what_it_is(folder):
    assert {path.name for path in folder.iterdir()} == {
        *("hyperparams.yaml", "interface.py", "README.md", "frontend.ckpt", "model.ckpt")
    }
    _, front_matter, card = (folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front_matter)["library_name"] == "speechbrain"
    for said in (
        "| ZED | 12.3 |",
        "7200 utterances (3.2 hours)",
        "ENT on FbankFrontend",
        "aligned",
    ):
        assert said in card
    assert all(emotion in card for emotion in PUBLISHED.names)


def test_it_loads_from_wherever_it_is_moved(folder, tmp_path):
    expected = EmotionTransducer.from_hparams(source=folder).annotate_batch(WAVS, LENS)
    moved = tmp_path / "else where" / "model"
    moved.parent.mkdir()
    folder.rename(moved)
    assert EmotionTransducer.from_hparams(source=str(moved)).annotate_batch(WAVS, LENS) == expected


def test_a_language_model_goes_with_it(trained, tmp_path):
    brain = trained()
    alone = export_and_load(brain, tmp_path / "alone")
    brain.hparams.language_model = WordFusion(0.7, 0.3, 0.1)
    fused = export_and_load(brain, tmp_path / "fused")
    assert alone.recognizer.language_model is None
    settings = {"weight": 0.7, "letter_bonus": 0.3, "prior_weight": 0.1}
    assert fused.hparams.language_model.settings == settings
    assert fused.recognizer.language_model is not None
    assert alone.transcribe_batch(WAVS, LENS) != fused.transcribe_batch(WAVS, LENS)
    edit(tmp_path / "fused", " weight: 0.7", " weight: much")
    assert "makes no model" in refusal(tmp_path / "fused")
    edit(tmp_path / "fused", " weight: much", " weight: -1")
    assert "language_model: weight -1: give a number, 0 or more" in refusal(tmp_path / "fused")
    edit(tmp_path / "alone", "emotions: [", "language_model: 3\nemotions: [")
    assert "language_model: 3: no language model of this package" in refusal(tmp_path / "alone")


def export_and_load(brain, path):
    export(brain, path, 2.5)
    return EmotionTransducer.from_hparams(source=path)


def test_speechbrain_s_own_loader_takes_the_same_folder(folder):
    loaded = foreign_class(
        source=str(folder), pymodule_file="interface.py", classname="EmotionTransducer"
    )
    expected = EmotionTransducer.from_hparams(source=folder)
    assert loaded.annotate_batch(WAVS, LENS) == expected.annotate_batch(WAVS, LENS)


@pytest.mark.parametrize("kind", ["hubert", "wav2vec2-bert", "whisper"])
def test_an_ssl_model_goes_with_it(tiny_ssl, tmp_path, trained, kind):
    """Loading needs neither the folder of the original model nor a network."""
    source = tmp_path / "source"
    shutil.copytree(tiny_ssl(kind), source)
    frontend = SSLFrontend(kind, source, tmp_path / "hub", stacked=2)
    export(trained(frontend=frontend), tmp_path / "pretrained", 2.5)
    expected = frontend(WAVS, LENS)[0]
    shutil.rmtree(source)
    loaded = EmotionTransducer.from_hparams(source=tmp_path / "pretrained")
    torch.testing.assert_close(loaded.mods.frontend(WAVS, LENS)[0], expected, rtol=0, atol=0)
    assert loaded.mods.frontend.frame_duration == 0.04
    assert str(tmp_path) not in (tmp_path / "pretrained" / HPARAMS_FILE).read_text()


def test_weights_are_exported_in_float16_if_that_loses_nothing(tiny_ssl, tmp_path, trained):
    """The export contains Whisper's encoder without its decoder."""
    source = shutil.copytree(tiny_ssl("whisper"), tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    halves = {name: values.half() for name, values in weights.items()}
    for given, dtype in ((weights, torch.float32), (halves, torch.float16)):
        save_file(given, source / "model.safetensors", metadata={"format": "pt"})
        frontend = SSLFrontend("whisper", source, tmp_path / "hub")
        export(trained(frontend=frontend), tmp_path / "pretrained", 2.5)
        exported = load_file(tmp_path / "pretrained" / "ssl" / "model.safetensors")
        assert all(torch.equal(exported[name], given[name].to(dtype)) for name in exported)
        assert exported.keys() == {name for name in given if name.startswith("encoder.")}
        loaded = EmotionTransducer.from_hparams(source=tmp_path / "pretrained")
        assert torch.equal(loaded.mods.frontend(WAVS, LENS)[0], frontend(WAVS, LENS)[0])


def test_a_finetuned_whisper_goes_with_it(tiny_ssl, tmp_path, trained):
    augment = {"mask_time_prob": 0.1, "mask_feature_prob": 0.0}
    options = {"frozen": False, "spec_augment": augment}
    frontend = SSLFrontend("whisper", tiny_ssl("whisper"), tmp_path / "hub", **options).eval()
    with torch.no_grad():
        for parameter in frontend.parameters():
            parameter.add_(0.01)
    export(trained(frontend=frontend), tmp_path / "pretrained", 2.5)
    loaded = EmotionTransducer.from_hparams(source=tmp_path / "pretrained")
    assert torch.equal(loaded.mods.frontend(WAVS, LENS)[0], frontend(WAVS, LENS)[0])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("x: !apply:os.system [touch {mark}]", "!apply:os.system is not allowed"),
        ("x: !new:subprocess.Popen [[touch, {mark}]]", "!new:subprocess.Popen is not allowed"),
        ("x: !name:os.system", "!name:os.system is not allowed"),
        ("x: !module:os", "!module:os is not allowed"),
        ("x: !include:other.yaml", "!include:other.yaml is not allowed"),
        ("x: !new:torch.load [x.pkl]", "!new:torch.load is not allowed"),
        (
            "x: !apply:speechbrain.utils.superpowers.run_shell ['touch {mark}']",
            "!apply:speechbrain.utils.superpowers.run_shell is not allowed",
        ),
        (
            "x: !!python/object/apply:os.system ['touch {mark}']",
            "tag:yaml.org,2002:python/object/apply:os.system is not allowed",
        ),
        ("x: [a, {{b: !copy <model>}}]", "!copy is not allowed"),
        ("? !apply:os.getcwd []\n: 1", "!apply:os.getcwd is not allowed"),
        ("x: ../secret", "'../secret' is more than a number or a name"),
        ("x: a/../../b", "'a/../../b' is more than a number or a name"),
        ("x: /etc/passwd", "'/etc/passwd' is more than a number or a name"),
        ("x: ~/secret", "'~/secret' is more than a number or a name"),
        ("x: 'https://host/model'", "'https://host/model' is more than a number or a name"),
        (
            "x: (a/b, !!python/object/apply:os.mkdir [mark])",
            "'(a/b, !!python/object/apply:os.mkdir [mark])' is more than a number or a name",
        ),
        ("x: !ref /etc/passwd", "'/etc/passwd' is more than a number or a name"),
        ("x: !ref <model>/../b", "'<model>/../b' is more than a number or a name"),
        ("x: !ref <frontend.save_ssl>", "'<frontend.save_ssl>' is more than a number or a name"),
        ("x: &a [*a]", "an alias is not allowed"),
        (
            f"x: !new:{PRETRAINER} [null, {{{{model: a}}}}]",
            f"!new:{PRETRAINER} of a list is not allowed",
        ),
        (f"x: !new:{PRETRAINER} {{{{paths: {{{{model: a}}}}}}}}", "paths is not allowed here"),
        (f"x: !new:{PRETRAINER} {{{{collect_in: a}}}}", "collect_in is not allowed here"),
        (f"x: !new:{SSL} {{{{cache_folder: a}}}}", "cache_folder is not allowed here"),
        (f"x: !new:{SSL} {{{{source: someone/evil}}}}", "source can only be <ssl_source>"),
        (f"x: !new:{SSL} {{{{save_path: a}}}}", "save_path can only be ssl"),
        (
            "x: !new:sentencepiece.SentencePieceProcessor {{model_file: a}}",
            "model_file is not allowed here",
        ),
    ],
)
def test_a_yaml_that_would_do_more_is_refused_before_it_is_loaded(
    folder, tmp_path, monkeypatch, line, reason
):
    monkeypatch.chdir(tmp_path)
    path = folder / HPARAMS_FILE
    number = path.read_text().count("\n") + 1
    with path.open("a") as file:
        file.write(line.format(mark="mark") + "\n")
    assert refusal(folder) == (
        f"{path}: line {number}: {reason}: a model from a stranger can run code: look at it, and "
        "give --trust (in Python trust=True) to load it as it is"
    )
    assert not (tmp_path / "mark").exists()


def test_who_trusts_a_folder_gets_what_its_yaml_says(folder):
    with (folder / HPARAMS_FILE).open("a") as file:
        file.write("answer: !apply:builtins.max [1, 42]\n")
    refusal(folder)
    loaded = EmotionTransducer.from_hparams(source=folder, trust=True)
    assert loaded.hparams.answer == 42


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize(
    "save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))]
)
@pytest.mark.parametrize("trust", [False, True])
def test_a_pickle_in_place_of_weights_is_not_run(folder, tmp_path, save, trust):
    mark, path = tmp_path / "mark", folder / "model.ckpt"
    save({"x": Touch(str(mark))}, path)
    message = refusal(folder, trust=trust)
    assert message.startswith(f"{path}: not the weights of this ENT (Weights only load failed")
    assert message.endswith("): export again")
    assert not mark.exists()


@pytest.fixture
def ssl_folder(tmp_path, tiny_ssl, trained):
    path = tmp_path / "pretrained"
    frontend = SSLFrontend("hubert", tiny_ssl("hubert"), tmp_path / "hub")
    export(trained(frontend=frontend), path, 2.5)
    return path


def edit_weights(folder, change):
    path = folder / "ssl" / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_an_ssl_model_with_the_names_that_the_hub_has_goes_with_it(tiny_ssl, tmp_path, trained):
    """The hub uses old names for weight normalisation; they are written unchanged."""
    source = tmp_path / "source"
    shutil.copytree(tiny_ssl("hubert"), source)
    weights = load_file(source / "model.safetensors")
    for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
        name = f"encoder.pos_conv_embed.conv.parametrizations.weight.{new}"
        weights[f"encoder.pos_conv_embed.conv.{old}"] = weights.pop(name)
    weights = {f"hubert.{name}": values for name, values in weights.items()}
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    frontend = SSLFrontend("hubert", source, tmp_path / "hub")
    export(trained(frontend=frontend), tmp_path / "pretrained", 2.5)
    loaded = EmotionTransducer.from_hparams(source=tmp_path / "pretrained")
    expected = frontend(WAVS, LENS)[0]
    torch.testing.assert_close(loaded.mods.frontend(WAVS, LENS)[0], expected, rtol=0, atol=0)


def test_an_ssl_model_is_that_of_the_folder_alone(ssl_folder, tiny_ssl, tmp_path, monkeypatch):
    """Neither a model in the working directory nor one on the hub replaces it."""
    shutil.rmtree(ssl_folder / "ssl")
    shutil.copytree(tiny_ssl("hubert"), tmp_path / "ssl")
    monkeypatch.chdir(tmp_path)
    names = ("config.json", "model.safetensors", "preprocessor_config.json")
    missing = "; ".join(f"{ssl_folder}/ssl/{name}: missing" for name in names)
    assert refusal(ssl_folder) == f"3 problems: {missing}: export or fetch again"


def test_an_ssl_model_keeps_no_features(ssl_folder, tmp_path):
    edit(
        ssl_folder, "  save_path: ssl", f"  save_path: ssl\n    cache_folder: !ref {tmp_path}/../x"
    )
    assert "cache_folder is not allowed here" in refusal(ssl_folder)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("config.json", lambda text: text[:99], "/ssl/config.json: cannot be read ("),
        (
            "config.json",
            lambda text: text.replace('"hubert"', '"bert"'),
            f"/ssl/config.json: model_type 'bert': not one of {', '.join(SSL_MODELS)}: export",
        ),
        (
            "config.json",
            lambda text: text.replace('"hidden_size": 24', '"hidden_size": 32'),
            ": makes no model (",
        ),
        ("preprocessor_config.json", lambda text: text[:9], ": makes no model ("),
    ],
)
def test_what_is_damaged_of_an_ssl_model_is_one_line(ssl_folder, name, change, reason):
    path = ssl_folder / "ssl" / name
    path.write_text(change(path.read_text()))
    assert refusal(ssl_folder).startswith(f"{ssl_folder}{reason}")


def test_ssl_weights_cut_off_are_one_line(ssl_folder):
    path = ssl_folder / "ssl" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    assert refusal(ssl_folder).startswith(f"{ssl_folder}: makes no model (")


def test_no_ssl_weight_is_made_up(ssl_folder):
    edit_weights(ssl_folder, lambda weights: {"x": weights["masked_spec_embed"]})
    assert refusal(ssl_folder).startswith(
        f"{ssl_folder}: makes no model ({ssl_folder}/ssl: 66 weights are missing, "
        "encoder.layer_norm.bias for one: "
    )


def test_ssl_weights_are_numbers(ssl_folder):
    edit_weights(ssl_folder, lambda weights: {k: v * torch.nan for k, v in weights.items()})
    assert refusal(ssl_folder) == (
        f"{ssl_folder}/ssl/model.safetensors: not the weights of this HubertModel "
        "(masked_spec_embed contains NaN or infinity): export again"
    )


def test_an_ssl_configuration_fetches_nothing(ssl_folder, monkeypatch):
    """transformers reads names of kernels, classes and quantisers from some of these keys."""

    def refuse(*args):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    expected = EmotionTransducer.from_hparams(source=ssl_folder).annotate_batch(WAVS, LENS)
    path = ssl_folder / "ssl" / "config.json"
    strange = {
        "_attn_implementation": "someone/kernel",
        "attn_implementation": "someone/kernel",
        "auto_map": {"AutoConfig": "someone/model--code.Config", "AutoModel": "code.Model"},
        "quantization_config": {"quant_method": "awq"},
    }
    path.write_text(json.dumps({**json.loads(path.read_text()), **strange}))
    model = EmotionTransducer.from_hparams(source=ssl_folder)
    assert not strange.keys() & model.mods.frontend.ssl_model.config.to_dict().keys()
    assert model.annotate_batch(WAVS, LENS) == expected


def test_a_pickled_ssl_model_is_not_run(ssl_folder, tmp_path):
    (ssl_folder / "ssl" / "model.safetensors").unlink()
    torch.save({"x": Touch(str(tmp_path / "mark"))}, ssl_folder / "ssl" / "pytorch_model.bin")
    assert "ssl/pytorch_model.bin is not allowed" in refusal(ssl_folder)
    assert not (tmp_path / "mark").exists()


def test_a_folder_may_lie_right_below_the_root(folder):
    try:
        root = Path(tempfile.mkdtemp(dir="/"))
    except OSError:
        pytest.skip("/ is not writable")
    try:
        shutil.copytree(folder, root, dirs_exist_ok=True)
        EmotionTransducer.from_hparams(source=root)
    finally:
        shutil.rmtree(root)


def test_a_link_to_itself_is_no_part_of_a_model(folder):
    (folder / "loop").symlink_to("loop")
    EmotionTransducer.from_hparams(source=folder)


def test_a_device_that_is_not_there_is_no_fault_of_the_folder(folder):
    assert refusal(folder, run_opts={"device": "abacus"}).startswith("device: 'abacus': ")


def test_what_is_damaged_or_of_another_model_is_named(folder):
    content = (folder / "model.ckpt").read_bytes()
    (folder / "model.ckpt").write_bytes(content[: len(content) // 2])
    assert refusal(folder).startswith(f"{folder / 'model.ckpt'}: not the weights of this ENT (")
    (folder / "model.ckpt").write_bytes(content)
    edit(folder, "joint_dim: 12", "joint_dim: 13")
    assert "size mismatch for token_joints" in refusal(folder)


def test_what_is_missing_is_named(folder, tmp_path):
    (folder / "model.ckpt").unlink()
    assert refusal(folder) == f"{folder}/model.ckpt: missing: export or fetch again"
    (folder / HPARAMS_FILE).unlink()
    assert refusal(folder) == (
        f"{folder}/hyperparams.yaml: no such file. Name the `pretrained` folder of a training."
    )
    assert refusal(tmp_path / "no") == (
        f"{tmp_path}/no: no such folder. Name the `pretrained` folder of a training, or owner/name "
        "of a model on the Hugging Face hub."
    )


@pytest.mark.parametrize("content", ["", "- a list", "a: [", "\0"])
def test_what_is_no_yaml_is_refused(folder, content):
    (folder / HPARAMS_FILE).write_text(content)
    assert refusal(folder).startswith(f"{folder}/hyperparams.yaml: ")


def test_a_key_that_is_given_twice_is_refused(folder):
    edit(folder, "beam_size: 2", "max_symbols: 2")
    message = refusal(folder)
    assert message.startswith(f"{folder}: makes no model (while constructing a mapping in ")


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path):
    (folder / "model.ckpt").rename(tmp_path / "elsewhere.ckpt")
    (folder / "model.ckpt").symlink_to(tmp_path / "elsewhere.ckpt")
    assert "model.ckpt leads out of the folder" in refusal(folder)


def test_links_into_the_blobs_of_a_hub_s_cache_are_none_of_those(folder, tmp_path):
    snapshot = tmp_path / "models--someone--ent" / "snapshots" / "0123abcd"
    blob = snapshot.parents[1] / "blobs" / "4567"
    shutil.copytree(folder, snapshot)
    blob.parent.mkdir()
    (snapshot / "model.ckpt").rename(blob)
    (snapshot / "model.ckpt").symlink_to(blob)
    EmotionTransducer.from_hparams(source=snapshot)
    elsewhere = snapshot.parents[1] / "copies" / snapshot.name
    shutil.copytree(snapshot, elsewhere, symlinks=True)
    assert "model.ckpt leads out of the folder" in refusal(elsewhere)


def test_a_hub_s_model_is_fetched_at_the_revision_that_is_asked_for(folder, monkeypatch):
    asked = []

    def fetch(name, revision, local_dir):
        asked.append((name, revision, local_dir))
        return str(folder)

    monkeypatch.setattr(export_room, "snapshot_download", fetch)
    EmotionTransducer.from_hparams(source="someone/ent", revision="v1.0")
    assert asked == [("someone/ent", "v1.0", None)]


def test_without_a_network_a_hub_s_model_is_one_line():
    """The tests are offline."""
    assert refusal("someone/ent-that-is-not-cached").startswith(
        "someone/ent-that-is-not-cached: neither a folder nor available on the hub ("
    )
