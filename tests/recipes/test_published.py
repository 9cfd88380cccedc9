"""The published recipes do not change: manifests, tokens, initial weights, ten steps.

``published.json`` was written by this test with ``RECORD_PUBLISHED=1``, before labels, tokens and
corpora became settings of a recipe. Floating-point sums depend on the processor: weights are
compared bit for bit where its vendor and its vector instructions are those of the recording, and
losses to five digits elsewhere.
"""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from recipe_runs import RECIPES, run_recipe

RECORDED = Path(__file__).with_name("published.json")
STEPS = 10
SMALL = {"encoder_dim": 32, "predictor_dim": 16, "joint_dim": 16, "batch_size": 2}
CASES = {
    "IEMOCAP ent": ("IEMOCAP", "ent.yaml", {}),
    "IEMOCAP fent": ("IEMOCAP", "fent.yaml", {}),
    "IEMOCAP ent_bpe": ("IEMOCAP", "ent_bpe.yaml", {"vocab_size": 80}),
    "IEMOCAP fent_mix": ("IEMOCAP", "fent_mix.yaml", {}),
    "IEMOCAP ser": ("IEMOCAP", "ser.yaml", {}),
    "IEMOCAP ent_finetune": (
        "IEMOCAP",
        "ent_finetune.yaml",
        {"mask_time_length": 4, "mask_feature_length": 8},
    ),
    "ZED ent_demo": ("ZED", "ent_demo.yaml", {}),
    "RAVDESS ent_fbank": ("RAVDESS", "ent_fbank.yaml", {}),
    "RAVDESS ent_mix": ("RAVDESS", "ent_mix.yaml", {"mixed_speeds": "[100]"}),
}
RECORDED_WITH = Version("5.24")  # of transformers


def _digest(content):
    return hashlib.sha256(content).hexdigest()[:16]


def _weights_digest(module):
    hashed = hashlib.sha256()
    for name, values in sorted(module.state_dict().items()):
        hashed.update(name.encode() + values.contiguous().numpy().tobytes())
    return hashed.hexdigest()[:16]


def _processor():
    """Properties of the CPU that determine the order of floating-point sums."""
    version, capability = (
        torch.__version__.partition("+")[0],
        torch.backends.cpu.get_cpu_capability(),
    )
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    vendors = {line.partition(": ")[2] for line in lines if line.startswith("vendor_id")}
    return ", ".join([f"torch {version}", capability, *vendors])


def _record(recipe, argv, result):
    """Run a recipe to its tenth step, and write its manifests, tokens, weights and losses."""
    from ent_brain.brain import EmotionTransducerBrain as Brain

    fit, fit_batch = Brain.fit, Brain.fit_batch
    record = {"losses": []}

    def recorded_fit(brain, *args, **kwargs):
        model = brain.raw_modules.model
        record["initial weights"] = _weights_digest(model)
        save = Path(brain.hparams.save_folder)
        manifests = [p for p in save.glob("*.json") if p.name != "trained_on.json"]
        record["manifests"] = {p.name: _digest(p.read_bytes()) for p in sorted(manifests)}
        record["tokens"] = [len(brain.tokens), brain.tokens.encode("TEA FOR TWO'S")]
        fit(brain, *args, **kwargs)

    def recorded_fit_batch(brain, batch):
        record["losses"].append(float(fit_batch(brain, batch)))
        if len(record["losses"]) == STEPS:
            record["trained weights"] = _weights_digest(brain.raw_modules.model)
            Path(result).write_text(json.dumps(record))
            os._exit(0)
        return torch.tensor(record["losses"][-1])

    Brain.fit, Brain.fit_batch = recorded_fit, recorded_fit_batch
    torch.set_num_threads(1)
    run_recipe(recipe, argv)


@pytest.fixture
def measure(processes, tmp_path, iemocap, zed, tiny_ssl, request):
    def run(case):
        recipe, yaml, options = CASES[case]
        corpus = request.getfixturevalue("ravdess") if recipe == "RAVDESS" else iemocap
        text = (RECIPES / recipe / "hparams" / yaml).read_text()
        small = {key: value for key, value in SMALL.items() if f"\n{key}:" in text}
        options = {**small, **options, "data_folder": corpus, "output_folder": tmp_path / "out"}
        if "ssl_hub:" in text:
            options["ssl_hub"] = tiny_ssl("wav2vec2")
        if "feature_cache:" in text:
            options["feature_cache"] = "null"
        if "mixed_folder:" in text:
            options["mixed_folder"] = tmp_path / "mixed"
        if recipe == "ZED":
            options["zed_folder"] = zed
        pairs = [part for key, value in options.items() for part in (f"--{key}", str(value))]
        argv = ["train.py", f"hparams/{yaml}", "--noprogressbar", "--device", "cpu", *pairs]
        result = tmp_path / "record.json"
        process = processes.Process(target=_record, args=(recipe, argv, result))
        process.start()
        process.join()
        return json.loads(result.read_text())

    return run


@pytest.mark.parametrize("case", CASES)
def test_published_recipe_is_what_it_was(measure, case):
    measured = measure(case)
    if os.environ.get("RECORD_PUBLISHED"):
        recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
        recorded = {**recorded, "processor": _processor(), case: measured}
        RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")
    recorded = json.loads(RECORDED.read_text())
    expected = recorded[case]
    for part in ("manifests", "tokens"):
        assert measured[part] == expected[part], part
    if Version(transformers.__version__) < RECORDED_WITH:
        pytest.skip(f"transformers below {RECORDED_WITH} draws other weights for small SSL models")
    assert measured["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    if recorded["processor"] == _processor():
        assert measured["initial weights"] == expected["initial weights"]
        assert measured["losses"] == expected["losses"]
        assert measured["trained weights"] == expected["trained weights"]
