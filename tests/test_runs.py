import re
import statistics

import pytest

from ent_brain.errors import InputError
from ent_brain.files import read_json
from ent_brain.runs import Run, compare, is_finished, run_all

TRAIN = """
import json, os, pathlib, sys
from hyperpyyaml import resolve_references

options = {k[2:]: v for k, v in zip(sys.argv[2::2], sys.argv[3::2])}
folder, device = pathlib.Path(options["output_folder"]), options.pop("device", None)
seed, rate = int(options["seed"]), int(options.get("rate", 50))
with open("calls.txt", "a") as calls:
    calls.write(f"{folder.parent.name} {seed} {device}\\n")
pathlib.Path("threads").write_text(os.environ.get("OMP_NUM_THREADS", "all"))
folder.mkdir(parents=True, exist_ok=True)
if rate == 13 and not pathlib.Path("repaired").exists():
    sys.exit(3)
with open(sys.argv[1]) as file:
    overrides = options | {"seed": seed} | ({"rate": rate} if "rate" in options else {})
    (folder / "hyperparams.yaml").write_text(resolve_references(file, overrides).getvalue())
rows = [{"test set": "songs", "protocol": "valid", "WER": 2.0 * seed, "EDER": float(rate + seed)}]
rows += [{"test set": "songs", "protocol": "all neutral", "WER": None, "EDER": 57.0}]
(folder / "results.json").write_text(json.dumps(rows))
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A script that trains nothing, with its YAML."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "small.yaml").write_text("seed: 0\nrate: 50\noutput_folder: !PLACEHOLDER\n")
    return tmp_path


def calls(recipe):
    return sorted((recipe / "calls.txt").read_text().splitlines())


def test_variants_are_compared_over_seeds(recipe):
    variants = {"plain": ["small.yaml"], "other": ["small.yaml", "--rate", "20"]}
    table = compare(variants, [1, 2, 6], recipe / "train.py", recipe / "out", ["cpu", "cpu"])
    assert calls(recipe) == sorted(f"{name} {seed} cpu" for name in variants for seed in (1, 2, 6))
    plain, other = read_json(recipe / "out" / "comparison.json")
    assert (plain["model"], plain["test set"], plain["seeds"]) == ("plain", "songs", [1, 2, 6])
    assert plain["mean"]["EDER"] == pytest.approx(statistics.mean([51, 52, 56]))
    assert other["deviation"]["EDER"] == pytest.approx(statistics.stdev([21, 22, 26]))
    assert plain["mean"]["EDER, all neutral"] == 57
    assert plain["mean"]["minutes"] > 0
    assert (recipe / "out" / "comparison.md").read_text() == table + "\n"
    assert re.search(r"\| plain +\| songs +\| 6.0 ± 5.3 \| 53.0 ± 2.6 \| 57.0 ± 0.0", table)


def test_what_is_finished_is_not_run_again_and_what_failed_is(recipe):
    variants = {"plain": ["small.yaml"], "bad": ["small.yaml", "--rate", "13"]}
    with pytest.raises(InputError, match="bad, seed 1: status 3: see the errors above"):
        compare(variants, [1], recipe / "train.py", recipe / "out")
    (recipe / "repaired").touch()
    compare(variants, [1], recipe / "train.py", recipe / "out")
    assert calls(recipe) == ["bad 1 None", "bad 1 None", "plain 1 None"]


def test_a_seed_given_twice_or_a_yaml_that_is_none_is_told_before_anything_runs(recipe):
    script, folder = recipe / "train.py", recipe / "out"
    with pytest.raises(InputError, match=r"^seeds: 1 is given more than once: give each once$"):
        compare({"plain": ["small.yaml"]}, [1, 2, 1], script, folder)
    variants = {"plain": ["small.yaml"], "gone": ["gone.yaml"]}
    with pytest.raises(InputError, match=r"^gone\.yaml: .*No such file.*: correct it$"):
        compare(variants, [1], script, folder)
    (recipe / "bad.yaml").write_text("a: [\n")
    with pytest.raises(InputError, match=r"^bad\.yaml: .*: correct it$"):
        compare({"bad": ["bad.yaml"]}, [1], script, folder)
    assert not (recipe / "calls.txt").exists()


@pytest.mark.parametrize("damaged", ["{}", "[]", "5", "{", '{"settings": "a", "seconds": "x"}'])
@pytest.mark.parametrize("name", ["finished.json", "results.json"])
def test_what_a_finished_training_left_may_be_damaged(recipe, name, damaged):
    compare({"plain": ["small.yaml"]}, [1], recipe / "train.py", recipe / "out")
    path = recipe / "out" / "plain" / "seed_1" / name
    path.write_text(damaged)
    with pytest.raises(InputError, match=rf"^{path}: .*: remove it and run the command that"):
        compare({"plain": ["small.yaml"]}, [1], recipe / "train.py", recipe / "out")
    path.unlink()
    assert "| plain " in compare(
        {"plain": ["small.yaml"]}, [1], recipe / "train.py", recipe / "out"
    )


def test_what_was_stopped_has_no_minutes(recipe):
    variants = {"bad": ["small.yaml", "--rate", "13"]}
    with pytest.raises(InputError):
        compare(variants, [1], recipe / "train.py", recipe / "out")
    (recipe / "repaired").touch()
    compare(variants, [1], recipe / "train.py", recipe / "out")
    [figures] = read_json(recipe / "out" / "comparison.json")
    assert "minutes" not in figures["mean"]


def test_trainings_on_a_cpu_share_its_cores(recipe, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    for devices, threads in ((None, "all"), (["cuda:0"], "all"), (["cpu"] * 2, "3")):
        folder = recipe / f"out_{threads}_{devices}"
        compare({"plain": ["small.yaml"]}, [1], recipe / "train.py", folder, devices)
        assert (recipe / "threads").read_text() == threads


def test_a_corpus_may_lie_in_a_folder_of_any_name(recipe):
    (recipe / "small.yaml").write_text("data_folder: x\noutput_folder: !PLACEHOLDER\n")
    run = Run("a", recipe / "train.py", ["small.yaml", "--data_folder", "/a: b #2"], recipe / "out")
    assert "data_folder: '/a: b #2'" in run.settings()


def test_results_of_other_settings_are_refused(recipe):
    run = Run("a", recipe / "train.py", ["small.yaml", "--seed", "1"], recipe / "out" / "a")
    assert not is_finished(run)
    run_all([run])
    assert is_finished(run)
    with pytest.raises(InputError, match="out/a: was run with other settings"):
        is_finished(run._replace(arguments=["small.yaml", "--seed", "2"]))
    # A training of other settings that was refused leaves its YAML in the folder.
    (run.folder / "hyperparams.yaml").write_text("seed: 2\n")
    assert is_finished(run)
    with pytest.raises(InputError, match="out/a: was run with other settings"):
        is_finished(run._replace(arguments=["small.yaml", "--seed", "2"]))
