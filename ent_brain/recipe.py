"""What the recipes share: reading the YAML, the tokens, and the results that a run leaves."""

import difflib
import hashlib
import logging
import math
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import ruamel.yaml
import speechbrain as sb
import torch
import yaml
from hyperpyyaml import load_hyperpyyaml
from speechbrain.core import RunOptions
from speechbrain.utils.distributed import main_process_only, run_on_main
from speechbrain.utils.logger import get_logger

from ent_brain.alignment import word_times
from ent_brain.annotation import Heard, annotate
from ent_brain.brain import HISTORY_FILE, EmotionTransducerBrain
from ent_brain.cache import disk_use, fill
from ent_brain.dataio import make_batch_sampler, make_dataset, read_audio
from ent_brain.emotions import EMOTIONS
from ent_brain.errors import InputError, raise_problems
from ent_brain.export import export
from ent_brain.files import read_json, whole_or_nothing, write_json
from ent_brain.losses import POOLING_MODES, SUPERVISED_MODES
from ent_brain.manifest import read_manifest
from ent_brain.mixing import mix
from ent_brain.page import (
    RESULTS_FILE,
    UTTERANCES_FILE,
    Utterance,
    write_report,
    write_utterances,
)
from ent_brain.report import (
    plot_confusion,
    plot_lattice,
    plot_learning_curves,
    plot_timeline,
    results_table,
)
from ent_brain.segments import fill_neutral
from ent_brain.tokens import CharTokens, load_sentencepiece, train_sentencepiece

# At its import SpeechBrain's training log says on the console that it cannot draw; nobody asked it.
logging.getLogger("speechbrain.utils.train_logger").addFilter(
    lambda record: "torchvision is not available" not in record.getMessage()
)

LOSS_WEIGHTS = ("rnnt_weight", "head_weight", "lattice_weight", "lm_weight")
LATTICE_MODES = (*POOLING_MODES, "aligned", "aligned_event", *SUPERVISED_MODES)

TEST_MIXTURES_SEED = 42
"""Of the mixtures for validation and tests, which are the same whatever a training's seed."""

logger = get_logger(__name__)

HEARD_SHARE = 0.95
"""Share of the training utterances that are no longer than what an exported model hears at once:
what is longer than nearly all that it was trained on, it hears badly."""

KEYS_READ_BY_CODE = {
    *LOSS_WEIGHTS,
    *("fastemit", "lattice_mode", "aligned_top", "max_symbols", "beam_size"),
    *("segment_decoding", "segment_seconds"),
    *("seed", "output_folder", "data_folder", "zed_folder", "save_folder", "paper_protocol"),
    *("test_session", "valid_share", "max_train_seconds", "max_tokens_per_frame"),
    *("tokens", "vocab_size", "test_actors", "valid_actors", "calm_as_neutral"),
    *("mixed", "keep_neutral", "mixed_folder", "mixed_speeds"),
    *("number_of_epochs", "warmup_epochs", "opt_class", "lr_schedule", "epoch_counter"),
    *("modules", "checkpointer", "train_logger", "train_dataloader_opts", "test_dataloader_opts"),
    *("max_batch_nodes", "only_fill_cache"),
}
"""Top-level keys that the recipes' code reads, beside SpeechBrain's run options."""


ABOVE_0 = {
    *("number_of_epochs", "batch_size", "lr", "max_grad_norm", "vocab_size"),
    *("max_tokens_per_frame", "max_train_seconds", "max_batch_nodes", "aligned_top"),
    *("frame_duration", "encoder_dim", "predictor_dim", "joint_dim", "max_symbols", "beam_size"),
    "segment_seconds",
    *("mask_time_length", "mask_feature_length"),
}
UP_TO_1 = {"valid_share", "aligned_top", "dropout", "mask_time_prob", "mask_feature_prob"}
"""What the numbers of a recipe are held to; none may lie below 0."""


def load_recipe(hparams_file, overrides, device=None):
    """Load a recipe's YAML with the overrides of the command line.

    Arguments
    ---------
    hparams_file : str or Path
    overrides : str
        As ``speechbrain.parse_arguments`` returns them.
    device : str, optional
        What the run is to use, by PyTorch's name.

    Returns
    -------
    dict

    Raises
    ------
    InputError
        If the file is missing or does not load, a key (in the file, under one of its includes, or
        on the command line) is one that nothing reads, a value is of another kind than the file's
        own or out of range, no loss has a positive weight, the weights and the lattice mode do not
        go together, the output folder cannot be written, or the device is not there.
    """
    hparams_file = Path(hparams_file)
    if not hparams_file.is_file():
        raise InputError(f"{hparams_file}: no such YAML: name one of the recipe's hparams folder")
    raise_problems(_unknown_keys(hparams_file), "correct the key or remove it")
    if overrides:
        _key_value_pairs(overrides, "command line")
    # Numbers as hyperpyyaml reads them: 1e-3 is one in YAML 1.2 alone.
    reader = ruamel.yaml.YAML()
    own, given = reader.load(hparams_file), reader.load(overrides) or {}
    raise_problems(_unknown_options(own, given), "correct the option or remove it")
    if wrong := _wrong_values(own, given):
        raise InputError("; ".join(wrong))
    _check_losses({**own, **given}, hparams_file)
    check_device(device)
    try:
        with hparams_file.open(encoding="utf-8") as file:
            hparams = load_hyperpyyaml(file, overrides)
    except (ValueError, TypeError, KeyError, OSError, yaml.YAMLError) as error:
        named = isinstance(error, OSError) and error.filename
        parts = (named, error.strerror) if named else error.args
        reason = " ".join(" ".join(map(str, parts)).split())
        raise InputError(f"{hparams_file}: {reason}") from error
    if not os.access(hparams["output_folder"], os.W_OK):
        raise InputError(f"{hparams['output_folder']}: cannot be written: name another one")
    return hparams


def _unknown_options(own, given):
    """Options of the command line that the YAML does not have, one problem each."""
    known = [*own, *RunOptions()]
    problems = []
    for key in given:
        if key not in own:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" (--{near[0]} is near)" if near else ""
            problems.append(f"--{key}: no such option{hint}")
    return problems


def _wrong_values(own, given):
    """Values that are of another kind than the YAML's own, or out of range, one problem each."""
    choices = {"lattice_mode": LATTICE_MODES, "test_session": (1, 2, 3, 4, 5)}
    if "zed_folder" in own:  # where all of IEMOCAP may be trained on
        choices["test_session"] += (None,)
    problems = []
    for key, value in {**own, **given}.items():
        if key in choices:
            right = repr(value) in map(repr, choices[key])
            remedy = "choose " + ", ".join(map(_as_yaml, choices[key]))
        elif isinstance(own[key], bool):
            right, remedy = isinstance(value, bool), "give True or False"
        elif isinstance(own[key], int | float) or (own[key] is None and key in ABOVE_0):
            right = _is_right_number(key, own[key], value)
            remedy = "give a whole number" if isinstance(own[key], int) else "give a number"
            remedy += " above 0" if key in ABOVE_0 else " from 0"
            remedy += " to 1" if key in UP_TO_1 else ""
        else:
            continue
        if not right:
            problems.append(f"{key}: {_as_yaml(value)}: {remedy}")
    return problems


def _is_right_number(key, own, value):
    if value is None:
        return own is None
    kind = int if isinstance(own, int) else int | float
    if not isinstance(value, kind) or isinstance(value, bool):
        return False
    highest = 1 if key in UP_TO_1 else math.inf
    finite = math.isfinite(value) or key == "max_grad_norm"  # where inf is no limit
    return finite and (0 < value <= highest or (value == 0 and key not in ABOVE_0))


def _as_yaml(value):
    return "null" if value is None else str(value)


def _check_losses(values, hparams_file):
    weights = {name: values[name] for name in LOSS_WEIGHTS}
    if not any(weights.values()):
        raise InputError(f"{hparams_file}: loss weights {weights}: one must lie above 0")
    mode = values["lattice_mode"]
    by_words = weights["lattice_weight"] and mode in ("aligned", "supervised")
    if not weights["rnnt_weight"] and (by_words or weights["lm_weight"]):
        instead = "supervised_aligned" if mode in SUPERVISED_MODES else "mil"
        raise InputError(
            f"rnnt_weight: 0: nothing is transcribed then, so lattice_mode {mode} and lm_weight "
            f"have nothing to go by: raise it, or set lattice_mode {instead} and lm_weight 0"
        )


def check_device(device):
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device: {device!r}: {reason}: name one that is there, cpu is") from error


def _unknown_keys(hparams_file):
    """Keys of a YAML that nothing reads, one problem each."""
    text = hparams_file.read_text(encoding="utf-8")
    pairs = _key_value_pairs(text, hparams_file)
    referred = set(re.findall(r"<([A-Za-z_]\w*)", text))
    known = KEYS_READ_BY_CODE | referred | set(RunOptions().as_dict())
    problems = []
    for key, value in pairs:
        if key.value not in known and not key.value.startswith("__"):
            problems.append(f"{hparams_file}: nothing reads the key {key.value!r}")
        if value.tag.startswith("!include:"):
            fragment = hparams_file.parent / value.tag.removeprefix("!include:")
            if not fragment.is_file():
                problems.append(f"{hparams_file}: includes {fragment}, which is not there")
                continue
            defined = {k.value for k, _ in _key_value_pairs(fragment.read_text("utf-8"), fragment)}
            given = {k.value for k, _ in value.value} if value.value else set()
            problems += [f"{fragment}: has no key {name!r}" for name in sorted(given - defined)]
    return problems


def _key_value_pairs(text, origin):
    """Nodes of keys and values of a YAML mapping; a key given twice is refused."""
    try:
        node = yaml.compose(text)
    except yaml.YAMLError as error:
        raise InputError(f"{origin}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{origin}: not a YAML of keys and values")
    uses = Counter(key.value for key, _ in node.value)
    repeated = [f"{key} is given {count} times" for key, count in uses.items() if count > 1]
    raise_problems([f"{origin}: {problem}" for problem in repeated], "keep one of them")
    return node.value


def make_tokens(kind, vocab_size, train_manifest, save_folder):
    """Make the tokens of a recipe; pieces are learnt from the training transcripts alone.

    Arguments
    ---------
    kind : str
        ``char`` or ``bpe``.
    vocab_size : int
        Number of tokens, which the model is built for.
    train_manifest, save_folder : str or Path

    Returns
    -------
    CharTokens or SentencePieceTokens

    Raises
    ------
    InputError
        If the kind is unknown, or its tokens are not ``vocab_size``.
    """
    if kind == "char":
        tokens = CharTokens()
    elif kind == "bpe":
        transcripts = [entry["transcript"] for entry in read_manifest(train_manifest).values()]
        # Pieces of other transcripts have another name, so a model is never of another fold.
        digest = hashlib.sha256("\n".join(transcripts).encode()).hexdigest()[:12]
        model_file = Path(save_folder) / f"bpe{vocab_size}_{digest}.model"
        if not model_file.exists():
            run_on_main(train_sentencepiece, args=[transcripts, model_file, vocab_size])
        tokens = load_sentencepiece(model_file)
    else:
        raise InputError(f"tokens: {kind!r}: choose char or bpe")
    if len(tokens) != vocab_size:
        raise InputError(f"vocab_size: {vocab_size}: {kind} tokens are {len(tokens)}: correct it")
    return tokens


def mixed_sets(hparams, train, valid, tests):
    """Mix the utterances of a recipe's sets where its YAML says so (``mixed``).

    Arguments
    ---------
    hparams, train, valid, tests
        As for ``train_and_test``.

    Returns
    -------
    tuple
        ``train``, ``valid`` and ``tests``, those of mixed utterances named so; the same as they
        came where nothing is to be mixed.
    """
    if not hparams.get("mixed"):
        return train, valid, tests
    mixed_folder = hparams["mixed_folder"]

    def mixed(manifest, root, seed=TEST_MIXTURES_SEED, **kwargs):
        kwargs["seed"] = seed
        run_on_main(mix, args=[manifest, root, mixed_folder, hparams["save_folder"]], kwargs=kwargs)
        return Path(hparams["save_folder"]) / f"mixed_{Path(manifest).name}", mixed_folder

    of_training = {"keep_neutral": hparams["keep_neutral"], "speeds": hparams["mixed_speeds"]}
    return (
        mixed(*train, seed=hparams["seed"], **of_training),
        mixed(*valid),
        {f"mixed {name}": mixed(*test) for name, test in tests.items()},
    )


def train_and_test(hparams, run_opts, train, valid, tests):
    """Train a recipe's model, or go on where a run stopped, and report on its test sets.

    With the key ``only_fill_cache`` nothing is trained: the features of all sets are computed.

    Arguments
    ---------
    hparams : dict
        As ``load_recipe`` returns them.
    run_opts : dict
        As ``speechbrain.parse_arguments`` returns them.
    train, valid : tuple
        Manifest, and the folder that ``{data_root}`` in it stands for.
    tests : dict[str, tuple]
        The same for each test set, by the name that the results show.
    """
    run_on_main(_check_data, args=[[train[0], valid[0]], hparams["save_folder"]])
    tokens = make_tokens(hparams["tokens"], hparams["vocab_size"], train[0], hparams["save_folder"])
    frontend = hparams["modules"]["frontend"]
    train_set, valid_set, *test_sets = (
        make_dataset(manifest, root, tokens, frontend, hparams["max_tokens_per_frame"])
        for manifest, root in (train, valid, *tests.values())
    )
    if hparams["lattice_mode"] in SUPERVISED_MODES:
        _check_intervals([train_set, valid_set], hparams["lattice_mode"])
    # Alike in length they pad little, and what does not fit into memory shows at the start.
    valid_set, *test_sets = (
        dataset.filtered_sorted(sort_key="duration", reverse=True)
        for dataset in (valid_set, *test_sets)
    )
    test_sets = dict(zip(tests, test_sets, strict=True))
    train_opts = dict(hparams["train_dataloader_opts"])
    if hparams["max_batch_nodes"] is not None:
        sampler = make_batch_sampler(train_set, hparams["max_batch_nodes"])
        train_opts |= {"batch_size": 1, "shuffle": False, "batch_sampler": sampler}
    brain = EmotionTransducerBrain(
        tokens,
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    datasets = [train_set, valid_set, *test_sets.values()]
    if frontend.cache is not None:
        logger.info(disk_use(frontend, datasets))
    if hparams.get("only_fill_cache"):
        if frontend.cache is None:
            raise InputError("only_fill_cache: there is no cache: name a folder in feature_cache")
        fill(frontend, datasets, brain.device)
        return
    if hparams["paper_protocol"]:
        brain.paper_sets = {
            name: brain.make_dataloader(
                dataset, sb.Stage.TEST, ckpt_prefix=None, **hparams["test_dataloader_opts"]
            )
            for name, dataset in test_sets.items()
        }
    brain.fit(
        hparams["epoch_counter"],
        train_set,
        valid_set,
        train_loader_kwargs=train_opts,
        valid_loader_kwargs=hparams["test_dataloader_opts"],
    )
    report(brain, test_sets, hparams, [item["duration"] for item in train_set.data.values()])


def _check_intervals(datasets, lattice_mode):
    unknown = [
        name
        for dataset in datasets
        for name, item in dataset.data.items()
        if item["entry"]["intervals"] is None
    ]
    raise_problems(
        [f"{name}: no known intervals" for name in unknown],
        f"lattice_mode {lattice_mode} needs them: train on mixed utterances, as ent_mix.yaml does",
    )


def _check_data(manifests, save_folder):
    """Refuse to go on with a training that was begun on other manifests."""
    digests = {Path(m).name: hashlib.sha256(Path(m).read_bytes()).hexdigest() for m in manifests}
    begun_with = Path(save_folder) / "trained_on.json"
    if begun_with.exists() and read_json(begun_with) != digests:
        raise InputError(
            f"{save_folder}: the training in it was begun on other data than is there now: "
            "name another output_folder, or remove this one"
        )
    write_json(digests, begun_with)


def report(brain, test_sets, hparams, trained_on):
    """Score the chosen checkpoint on each test set once; print and write what came out.

    ``<output_folder>`` receives ``results.json``, ``results.md``, the learning curves, the model in
    ``pretrained``, and for each test set its statistics by utterance, the confusion matrix and,
    where emotional intervals are known, the timeline and lattice of one utterance of each emotion;
    ``utterances.jsonl`` and, to look at and listen to, ``report.html``.

    Arguments
    ---------
    brain : EmotionTransducerBrain
    test_sets : dict[str, DynamicItemDataset]
        By the name that the table shows.
    hparams : dict
    trained_on : list[float]
        Seconds of each training utterance.
    """
    folder = Path(hparams["output_folder"])
    if not (folder / HISTORY_FILE).is_file():
        raise InputError(f"{folder}: nothing was trained in it: train for an epoch at least")
    history = read_json(folder / HISTORY_FILE)
    plot_learning_curves(history, folder / "learning_curves.png")
    rows, utterances = [], []
    brain.on_evaluate_start(min_key="error")  # once for all test sets
    for name, dataset in test_sets.items():
        brain.evaluate(dataset, test_loader_kwargs=dict(hparams["test_dataloader_opts"]))
        rows += _rows(name, brain.stats, history)
        of_set = _utterances(brain, name, dataset)
        _describe(brain, name, of_set, folder)
        utterances += of_set
    export(
        brain,
        folder / "pretrained",
        longest_window=round(float(np.quantile(trained_on, HEARD_SHARE)), 2),
        results=results_table(rows),
        utterances=len(trained_on),
        hours=sum(trained_on) / 3600,
    )
    _publish(rows, utterances, folder, progressbar=not brain.noprogressbar)


def _rows(name, stats, history):
    """Rows of the results table of one test set."""
    measured = {k: v for k, v in stats.summarize().items() if k != "error"}
    if "EDER" in measured:
        measured["segments"] = stats.decoder.method
    rows = [{"test set": name, "protocol": "valid", **measured}]
    if f"{name} error" in history[-1]:
        best = {}
        for metric in stats.summarize().keys() - {"error"}:
            choose = max if metric in ("WA", "UA") else min
            best[metric] = choose(epoch[f"{name} {metric}"] for epoch in history)
        rows.append({**rows[0], "protocol": "paper", **best})
    columns = rows[0].keys()
    for baseline, rate in stats.baselines().items():
        row = {**dict.fromkeys(columns), "test set": name, "protocol": baseline, "EDER": rate}
        rows.append(row)
    return rows


@main_process_only
def _describe(brain, name, utterances, folder):
    """Write the statistics and pictures of the test set that the brain has just scored."""
    label = name.replace(" ", "_")
    brain.stats.write(folder, label)
    if brain.stats.emotions:
        confusion = brain.stats.emotions.summarize("confusion")
        plot_confusion(confusion, folder / f"confusion_{label}.png", f"Utterance emotion, {name}")
    if not brain.stats.diarization["model"]:
        return
    sample_rate = brain.raw_modules.frontend.sample_rate
    for emotion in EMOTIONS:
        of_emotion = [each for each in utterances if each.reference.emotion == emotion]
        for utterance in sorted(of_emotion, key=lambda each: each.annotation.name)[:1]:
            annotation = utterance.annotation
            wav = read_audio(utterance.audio, sample_rate)
            picture = folder / f"timeline_{label}_{emotion}.png"
            segments = utterance.reference.segments
            plot_timeline(picture, wav.numpy(), sample_rate, annotation, segments)
            if brain.raw_modules.model.emotion_joint is not None:
                hypothesis = brain.stats.hypotheses[annotation.name]
                plot_lattice(
                    folder / f"lattice_{label}_{emotion}.png",
                    brain.emotion_lattice(wav, hypothesis.tokens).numpy(),
                    hypothesis.frames,
                    brain.tokens.words(hypothesis.tokens),
                    annotation.frame_duration,
                    annotation.name,
                )


def _utterances(brain, name, dataset):
    """What the brain has heard in the test set that it has just scored, beside what is known."""
    frame_duration = brain.raw_modules.frontend.frame_duration
    rates = brain.stats.by_utterance()
    utterances = []
    for utterance, hypothesis in brain.stats.hypotheses.items():
        item = dataset.data[utterance]
        entry = item["entry"]
        seconds, segments = entry["duration"], entry["segments"]
        words = brain.tokens.words(hypothesis.tokens)
        log_probs = hypothesis.emotion_log_probs
        heard = Heard(
            seconds,
            word_times(words, hypothesis.frames, frame_duration, seconds),
            log_probs,
            None if log_probs is None else brain.segment_decoder.labels(log_probs),
            hypothesis.utterance_log_probs,
        )
        annotation = annotate(utterance, heard, frame_duration)
        reference = replace(
            annotation,
            text=entry["transcript"] if brain.stats.words else "",
            emotion=entry["emotion"],
            probabilities=(),
            words=(),
            segments=() if segments is None else tuple(fill_neutral(segments, seconds)),
            frame_probabilities=(),
        )
        utterances.append(Utterance(annotation, item["wav"], reference, name, rates[utterance]))
    return utterances


@main_process_only
def _publish(rows, utterances, folder, progressbar):
    table = results_table(rows)
    write_json(rows, folder / RESULTS_FILE)
    with whole_or_nothing(folder / "results.md") as partial:
        partial.write_text(table + "\n", encoding="utf-8")
    write_utterances(utterances, folder / UTTERANCES_FILE)
    page = write_report(folder, progressbar)
    print(
        f"\n{table}\n\nAll in percent. Pictures, results by utterance and the model: {folder}\n"
        f"To look at and listen to, in a browser: {page}"
    )
