"""Shell commands, Python examples and claims of the pages in ``docs``, run as written."""

import ast
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from ent_brain import synth
from ent_brain.arguments import parse_arguments
from ent_brain.frontend import FbankFrontend
from ent_brain.model import ENT
from ent_brain.settings import load_recipe

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)


def run_shell(script, folder):
    """Run a script in a copy of the recipes."""
    for part in ("recipes", "hparams"):
        shutil.copytree(REPOSITORY / part, folder / part, dirs_exist_ok=True)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
    }
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout


def test_own_data_from_a_table_to_an_annotated_recording(tmp_path):
    pytest.importorskip("espeakng_loader")
    [script] = blocks("own_data.md", "bash")
    assert len([line for line in script.splitlines() if line]) <= 15
    said = run_shell(script, tmp_path)
    annotation = json.loads((tmp_path / "annotated" / "de_00001.json").read_text())
    assert list(annotation["probabilities"]) == sorted(annotation["probabilities"])
    assert "überraschung" in annotation["probabilities"]
    assert annotation["neutral"] == "neutral"
    assert said.rstrip().startswith("ID,wav,transcript,emotion,speaker,split")
    assert "WEBVTT" in said
    assert "* Training: " in said
    [characters] = (tmp_path / "my_model" / "save").glob("characters_*.txt")
    assert "Ü\tLATIN CAPITAL LETTER U WITH DIAERESIS" in characters.read_text()


def patched(text, diff):
    """A text after a diff without line numbers, whose hunks are separated by ``@@``."""
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        old, new = ("".join(line[1:] for line in lines if line[0] != sign) for sign in "+-")
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def test_a_front_end_of_one_s_own_from_its_class_to_an_annotated_recording(tmp_path, monkeypatch):
    pytest.importorskip("espeakng_loader")
    begin, finish = blocks("architecture.md", "bash")
    command, begin = begin.split("\n", 1)
    monkeypatch.chdir(tmp_path)
    synth.main(shlex.split(command.removeprefix("python -m ent_brain.synth ")))
    [code], [diff] = (blocks("architecture.md", language) for language in ("python", "diff"))
    run_shell(begin, tmp_path)
    own = tmp_path / "my_front_end"
    (own / "my_front.py").write_text(code)
    (own / "mfcc.yaml").write_text(patched((own / "mfcc.yaml").read_text(), diff))
    assert patched((REPOSITORY / "recipes/RAVDESS/hparams/ent_fbank.yaml").read_text(), diff)
    assert "--number_of_epochs 2" in finish
    small = "--number_of_epochs 1 --warmup_epochs 0 --max_symbols 2 --beam_size 1"
    small += " --encoder_dim 16 --predictor_dim 8 --joint_dim 8"
    finish = finish.replace("--number_of_epochs 2", small)
    said = run_shell(f"cd {own.name}\n{finish}", tmp_path)
    annotation = json.loads(said.splitlines()[-1])
    assert annotation["name"] == "de_00001"
    assert sum(annotation["probabilities"].values()) == pytest.approx(1, abs=0.01)
    exported = (own / "trained" / "pretrained" / "hyperparams.yaml").read_text()
    assert "frontend: !new:my_front.MfccFrontend\n    coefficients: 20\n" in exported

    names = {}
    exec(code, names)
    frontend = names["MfccFrontend"](coefficients=13).eval()
    wavs = torch.randn(2, 16000)
    wavs[1, 7000:] = 0
    features, frame_lens = frontend(wavs, torch.tensor([1.0, 7000 / 16000]))
    assert features.shape == (2, 26, frontend.feature_layers, frontend.feature_dim)
    assert frame_lens.tolist() == [26, 11]
    single, [count] = frontend(wavs[1:, :7000], torch.ones(1))
    assert count == 11
    torch.testing.assert_close(features[1:, :11], single)


def test_training_s_command_is_one_of_a_recipe():
    [script] = blocks("training.md", "bash")
    folder, command = script.replace("\\\n", "").splitlines()
    arguments = shlex.split(command)
    assert arguments[:2] == ["python", "train.py"]
    file, _, overrides = parse_arguments(arguments[2:])
    recipe = load_recipe(REPOSITORY / folder.removeprefix("cd ") / file, overrides)
    assert recipe["number_of_epochs"] == 1


def test_the_lattice_s_python_swaps_the_loss_of_a_model_of_speechbrain_layers(capsys):
    names = {}
    torch.manual_seed(0)
    for code in blocks("the_lattice.md", "python"):
        exec(code, names)
    shown = re.findall(r"# (torch\.Size.*)", (DOCS / "the_lattice.md").read_text("utf-8"))
    assert capsys.readouterr().out.splitlines() == shown
    torch.testing.assert_close(names["loss"], names["dense_loss"], rtol=1e-5, atol=0)
    layers = [names[name] for name in ("encoder", "embedding", "predictor", "output")]
    parameters = [each for layer in layers for each in layer.parameters()]
    ours, dense = (
        torch.autograd.grad(names[name], parameters, retain_graph=True)
        for name in ("loss", "dense_loss")
    )
    for found, expected in zip(ours, dense, strict=True):
        scale = expected.abs().max().item()  # sums cancel
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-5 * scale)


def test_the_lattice_s_figure_shows_the_angry_word_alone(tmp_path):
    script = runpy.run_path(str(DOCS / "the_lattice.py"))
    along, (start, end) = script["draw"](script["train"](), tmp_path / "a.png")
    inside = torch.zeros(len(along), dtype=torch.bool)
    inside[start:end] = True
    assert along[inside].mean() > 0.9
    assert along[~inside].mean() < 0.1
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


# --- ONNX and TorchScript, as training.md says


class Encoded(torch.nn.Module):
    """The encoder of a model without its search."""

    def __init__(self):
        super().__init__()
        self.frontend = FbankFrontend(0.04)
        sizes = {"encoder_dim": 16, "embedding_dim": 8, "predictor_dim": 12, "joint_dim": 12}
        self.model = ENT(31, self.frontend.feature_dim, 1, **sizes)

    def forward(self, wavs, wav_lens):
        return self.model.encode(*self.frontend(wavs, wav_lens)).emotion


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_torchscript_and_torch_export_do_not_take_the_model():
    model, example = Encoded().eval(), (torch.randn(1, 16000), torch.ones(1))
    with pytest.raises((RuntimeError, ValueError)):
        torch.jit.script(model)
    with pytest.raises(GuardOnDataDependentSymNode):
        torch.export.export(model, example)


@pytest.mark.filterwarnings("ignore")  # of what a trace holds constant
def test_a_traced_model_is_right_for_its_example_s_shape_alone():
    model = Encoded().eval()
    traced = torch.jit.trace(model, (torch.randn(1, 16000), torch.ones(1)), check_trace=False)
    same = torch.randn(1, 16000), torch.ones(1)
    torch.testing.assert_close(traced(*same), model(*same))
    for other in ((torch.randn(1, 32000), torch.ones(1)), (torch.randn(2, 16000), torch.ones(2))):
        assert model(*other).isfinite().all()
        with pytest.raises(RuntimeError):
            traced(*other)


# --- what the pages name


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_what_a_page_names_is_there(page):
    text = page.read_text("utf-8")
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", text)
    assert all((DOCS / link).is_file() for link in links), links
    names = set(re.findall(r"[`\" ]((?:\w+/)*\w+\.py)\b", text))
    places = (REPOSITORY, REPOSITORY / "ent_brain", *REPOSITORY.glob("recipes/*"))
    missing = {name for name in names if not any((place / name).is_file() for place in places)}
    examples = {"recipes/X/x_prepare.py", "x_prepare.py", "recipes/NAME/name_prepare.py"}
    assert missing <= examples | {"my_front.py"}


def test_imports_go_one_way():
    imports = {}
    for path in (REPOSITORY / "ent_brain").glob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text("utf-8")))
        of_us = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.module.startswith("ent_")]
        modules = {n.module.removeprefix("ent_brain").strip(".") or "__init__" for n in of_us}
        imports[path.stem] = modules
    assert len(list(TopologicalSorter(imports).static_order())) >= 35
