"""Common parts of the recipes: tokens, mixed corpora, and the steps of a training."""

import hashlib
import logging
import os
from collections import Counter
from functools import partial
from pathlib import Path

import speechbrain as sb
from speechbrain.dataio.sampler import ReproducibleRandomSampler
from speechbrain.utils.checkpoints import CKPT_PREFIX
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger

from ent_brain.arguments import parse_arguments
from ent_brain.brain import EmotionTransducerBrain
from ent_brain.cache import disk_use, fill
from ent_brain.dataio import (
    CorpusSampler,
    CurriculumSampler,
    VariantSampler,
    add_variants,
    make_batch_sampler,
    make_dataset,
)
from ent_brain.errors import InputError, one_line, raise_problems
from ent_brain.evaluation import report
from ent_brain.files import read_json, sweep, write_json
from ent_brain.lattice import Span
from ent_brain.losses import SUPERVISED_MODES
from ent_brain.manifest import read_manifest
from ent_brain.mixing import mix
from ent_brain.processes import join
from ent_brain.settings import TRAINED_BY, load_recipe
from ent_brain.tokens import (
    CharTokens,
    describe_unknown,
    learn_characters,
    load_characters,
    load_sentencepiece,
    train_sentencepiece,
    unknown_characters,
)

# SpeechBrain's training log warns at import that it cannot plot. We do not use its plots.
logging.getLogger("speechbrain.utils.train_logger").addFilter(
    lambda record: "torchvision is not available" not in record.getMessage()
)

# With a full disk, logging would print a traceback per line. The error message at the end suffices.
logging.raiseExceptions = False

TEST_MIXTURES_SEED = 42
"""Seed of the mixtures for validation and tests. They do not depend on a training's seed."""

logger = get_logger(__name__)


def begin(arguments):
    """Read a recipe's command line and YAML, and create its output folder.

    Arguments
    ---------
    arguments : list[str]
        Path of the YAML, then the options.

    Returns
    -------
    Recipe
    dict
        SpeechBrain's run options.

    Raises
    ------
    InputError
        Errors of ``parse_arguments`` and ``load_recipe``.
    """
    hparams_file, run_opts, overrides = parse_arguments(arguments)
    run_opts = join(run_opts)
    recipe = load_recipe(hparams_file, overrides, run_opts["device"])
    sb.create_experiment_directory(recipe["output_folder"], hparams_file, overrides)
    return recipe, run_opts


def make_tokens(recipe, train):
    """Make the tokens of a recipe, learnt only from training transcripts.

    Arguments
    ---------
    recipe : Recipe
        A recipe whose ``tokens`` are ``char``, ``characters`` or ``bpe``.
    train : dict[str, tuple]
        As for ``train_and_test``.

    Returns
    -------
    CharTokens, CharacterTokens or SentencePieceTokens

    Raises
    ------
    InputError
        If the kind is unknown, if ``vocab_size`` does not match it, or if there is no transcript to
        learn tokens from.
    """
    kind, vocab_size = recipe["tokens"], recipe["vocab_size"]
    if kind == "char":
        tokens = CharTokens(recipe["normalization"])
        if vocab_size not in (None, len(tokens)):
            raise InputError(f"vocab_size: {vocab_size}: char tokens are {len(tokens)}: correct it")
        return tokens
    if kind not in ("characters", "bpe"):
        raise InputError(f"tokens: {kind!r}: choose char, characters or bpe")
    if kind == "bpe" and vocab_size is None:
        raise InputError("vocab_size: null: give the number of tokens of bpe, as 500")
    transcripts = [
        entry["transcript"]
        for manifest, _ in train.values()
        for entry in read_manifest(manifest, recipe.emotions, recipe.normalize).values()
        if entry["transcript"] is not None
    ]
    if not transcripts:
        raise InputError(
            "training set: no utterance has a transcript to learn tokens from: set tokens to char, "
            "and rnnt_weight, lm_weight and ctc_weight to 0, to learn only emotions"
        )
    # The file name depends on the transcripts, so tokens of another fold are never used.
    digest = hashlib.sha256("\n".join(transcripts).encode()).hexdigest()[:12]
    save_folder = Path(recipe["save_folder"])
    # Only the main process checks whether the file exists, because others might do so while it is
    # being written.
    if kind == "characters":
        path = save_folder / f"characters_{digest}.txt"
        run_on_main(_unless_exists, args=[path, learn_characters, transcripts, path])
        return load_characters(path)
    path, normalization = save_folder / f"bpe{vocab_size}_{digest}.model", recipe["normalization"]
    pieces = transcripts, path, vocab_size, normalization
    run_on_main(_unless_exists, args=[path, train_sentencepiece, *pieces])
    return load_sentencepiece(path, normalization)


def _unless_exists(path, make, *args):
    if not path.exists():
        make(*args)


def build(recipe, train):
    """Build the objects of a recipe's YAML, after the tokens, which set the size of the model.

    Arguments
    ---------
    recipe : Recipe
        A recipe with known labels.
    train : dict[str, tuple]
        As for ``train_and_test``.

    Returns
    -------
    dict
        Values of the YAML's keys, and ``token_set`` and ``emotion_set``.

    Raises
    ------
    InputError
        If an object cannot be built.
    """
    tokens = make_tokens(recipe, train)
    if recipe["tokens"] == "characters" or recipe["vocab_size"] is None:
        recipe.settle(vocab_size=len(tokens))
    hparams = recipe.build()
    frontend, model = (hparams["modules"][name] for name in ("frontend", "model"))
    if not isinstance(getattr(frontend, "settings", None), dict):
        kind = type(frontend)
        raise InputError(
            f"{kind.__module__}.{kind.__name__}: has no settings. In __init__, set self.settings "
            "to a dict of its arguments, with which the exported model builds it again."
        )
    for key, size in (("vocab_size", len(tokens)), ("num_emotions", len(recipe.emotions))):
        if model.settings[key] != size:
            raise InputError(
                f"model: {key} {model.settings[key]}: the recipe has {size}: refer to the "
                "recipe's own keys, as its YAML does"
            )
    return {**hparams, "token_set": tokens, "emotion_set": recipe.emotions}


def mixed_sets(hparams, train, valid, tests, beside=False):
    """Mix the utterances of a recipe's sets if its YAML sets ``mixed``.

    Arguments
    ---------
    hparams : dict
        Values from ``build``.
    train, valid, tests : dict[str, tuple]
        As for ``train_and_test``.
    beside : bool
        Whether the single utterances remain, in addition to corpora named ``mixed ...``.

    Returns
    -------
    tuple
        ``train``, ``valid`` and ``tests``. Names of mixed test sets start with ``mixed``. Without
        ``mixed``, the sets are unchanged.
    """
    if not hparams.get("mixed"):
        return train, valid, tests
    mixed_folder = hparams["mixed_folder"]

    def mixed(manifest, root, seed=TEST_MIXTURES_SEED, **kwargs):
        kwargs |= {"seed": seed, "emotions": hparams["emotion_set"]}
        kwargs["prefix"] = "mixed_" if beside else ""
        kwargs["normalize"] = hparams["token_set"].normalize
        run_on_main(mix, args=[manifest, root, mixed_folder, hparams["save_folder"]], kwargs=kwargs)
        return Path(hparams["save_folder"]) / f"mixed_{Path(manifest).name}", mixed_folder

    of_training = {
        "keep_neutral": hparams["keep_neutral"],
        "speeds": hparams["mixed_speeds"],
        "close_draws": hparams.get("close_draws", 0),
    }
    label = "mixed {}" if beside else "{}"
    sets = (
        {label.format(k): mixed(*v, seed=hparams["seed"], **of_training) for k, v in train.items()},
        {label.format(name): mixed(*each) for name, each in valid.items()},
        {f"mixed {name}": mixed(*test) for name, test in tests.items()},
    )
    if beside:
        sets = tuple(
            single | joined for single, joined in zip((train, valid, tests), sets, strict=True)
        )
    return sets


def train_and_test(hparams, run_opts, train, valid, tests, whole=()):
    """Train a recipe's model, or resume its training, and evaluate it on the test sets.

    With the key ``only_fill_cache``, only the features of all sets are computed.

    Arguments
    ---------
    hparams : dict
        Values from ``build``.
    run_opts : dict
        Run options from ``parse_arguments``.
    train, valid : dict[str, tuple]
        For each corpus by name: the manifest, and the folder for which ``{data_root}`` stands in
        it. ``corpus_weights`` in the YAML gives the draws per epoch of an utterance of each
        training corpus by these names; the default is 1.
    tests : dict[str, tuple]
        The same for each test set, by its name in the results.
    whole : sequence of str
        Corpora whose utterances have one emotion from start to end. The supervised lattice modes
        treat each utterance as one interval.
    """
    tokens, emotions = hparams["token_set"], hparams["emotion_set"]
    frontend, model = (hparams["modules"][name] for name in ("frontend", "model"))
    begun_with = {
        "data": {
            Path(manifest).name: hashlib.sha256(Path(manifest).read_bytes()).hexdigest()
            for manifest, _ in (*train.values(), *valid.values())
        },
        "tokens": {key: hparams[key] for key in ("tokens", "vocab_size", "normalization")},
        "features": frontend.describe(),
        "model settings": {"model": type(model).__name__, **model.settings},
        **{
            kind: {key: hparams[key] for key in keys if key in hparams}
            for kind, keys in TRAINED_BY.items()
        },
    }
    run_on_main(check_begun, args=[hparams["save_folder"], begun_with])
    shared = [] if frontend.cache is None else [frontend.cache.folder]
    for folder in (hparams["output_folder"], *shared):
        run_on_main(sweep, args=[folder, shared])
    speeds = hparams.get("speeds", [100])
    read = partial(
        make_dataset,
        tokens=tokens,
        emotions=emotions,
        frontend=frontend,
        max_tokens_per_frame=hparams["max_tokens_per_frame"],
    )
    train_set = read(train, speeds=speeds)
    valid_set, *test_sets = map(read, (valid, *({name: test} for name, test in tests.items())))
    _check_labels(train_set, valid_set, hparams)
    _tell_unknown([train_set, valid_set, *test_sets], tokens, hparams["max_unknown_share"])
    if hparams["lattice_mode"] in SUPERVISED_MODES:
        _add_whole_intervals([train_set, valid_set], whole, emotions)
        _check_intervals([train_set, valid_set], hparams["lattice_mode"])
    # Sorted by length, batches have little padding, and a lack of memory shows at the start.
    valid_set, *test_sets = (
        dataset.filtered_sorted(sort_key="duration", reverse=True)
        for dataset in (valid_set, *test_sets)
    )
    test_sets = dict(zip(tests, test_sets, strict=True))
    train_opts = dict(hparams["train_dataloader_opts"])
    weights = _corpus_weights(hparams, train)
    if set(weights.values()) != {1}:
        sampler = CorpusSampler(train_set, weights)
        train_opts |= {"shuffle": False, "sampler": sampler}
    elif hparams["max_batch_nodes"] is not None:
        most = hparams.get("max_batch_utterances")
        sampler = make_batch_sampler(train_set, hparams["max_batch_nodes"], most)
        train_opts |= {"batch_size": 1, "shuffle": False, "batch_sampler": sampler}
    elif hparams.get("curriculum_epochs"):
        sampler = CurriculumSampler(train_set, hparams["curriculum_epochs"])
        train_opts |= {"shuffle": False, "sampler": sampler}
    drawn_from, copies = train_set, _by_corpus(hparams, "variants", train, 0)
    variants = {name: count for name, count in copies.items() if count}
    if variants:
        drawn_from = add_variants(train_set, variants)
        kind = "batch_sampler" if "batch_sampler" in train_opts else "sampler"
        sampler = train_opts.get(kind) or _random_sampler(train_set)
        train_opts |= {"shuffle": False, kind: VariantSampler(sampler, max(variants.values()))}
    try:
        brain = EmotionTransducerBrain(
            tokens,
            emotions,
            modules=hparams["modules"],
            opt_class=hparams["opt_class"],
            hparams=hparams,
            run_opts=run_opts,
            checkpointer=hparams["checkpointer"],
        )
    except ValueError as error:  # run options that contradict each other or the device
        raise InputError(f"run options: {one_line(error)}") from error
    at_each_speed = [read(train, speeds=[speed]) for speed in speeds] if speeds[1:] else [train_set]
    if variants:
        at_each_speed = [add_variants(dataset, variants) for dataset in at_each_speed]
    datasets = [*at_each_speed, valid_set, *test_sets.values()]
    if frontend.cache is not None:
        logger.info(disk_use(frontend, datasets))
    if hparams.get("only_fill_cache"):
        if frontend.cache is None:
            raise InputError("only_fill_cache: there is no cache: name a folder in feature_cache")
        fill(frontend, datasets, brain.device)
        logger.info("All features are cached. Run this command without only_fill_cache to train.")
        return
    if hparams["paper_protocol"]:
        brain.paper_sets = {
            name: brain.make_dataloader(
                dataset, sb.Stage.TEST, ckpt_prefix=None, **hparams["test_dataloader_opts"]
            )
            for name, dataset in test_sets.items()
        }
    train_loader = _make_train_loader(brain, drawn_from, train_opts)
    brain.fit(
        hparams["epoch_counter"],
        train_loader,
        valid_set,
        valid_loader_kwargs=hparams["test_dataloader_opts"],
    )
    report(brain, train_set, valid_set, test_sets, hparams)


def _random_sampler(dataset):
    """SpeechBrain's sampler of a shuffled training set."""
    return ReproducibleRandomSampler(dataset, int(os.environ.get("SB_GLOBAL_SEED", 0)))


def _check_labels(train_set, valid_set, hparams):
    """Refuse sets without any label for a loss, or for the selection of the checkpoint."""
    needs = {
        "transcript": ("rnnt_weight", "lm_weight", "ctc_weight"),
        "emotion": ("head_weight", "lattice_weight"),
    }
    learnt = {label: [key for key in keys if hparams[key]] for label, keys in needs.items()}
    for label, weights in learnt.items():
        if weights and not _count_known(train_set, label):
            raise InputError(
                f"training set: no utterance has a known {label}: set {' and '.join(weights)} to 0"
            )
    if not any(_count_known(valid_set, label) for label, weights in learnt.items() if weights):
        raise InputError(
            "validation set: no utterance has a label that this recipe learns, so no checkpoint "
            f"can be chosen. Add some with a {' or '.join(k for k, v in learnt.items() if v)}."
        )


def _count_known(dataset, label):
    return sum(item["entry"][label] is not None for item in dataset.data.values())


def _tell_unknown(datasets, tokens, most):
    """Log in one line which characters the tokens lack.

    Refuse the data if more than a share ``most`` of the training utterances has such characters.
    The training set is the first dataset.
    """
    total, utterances, characters, shares = 0, 0, Counter(), []
    for dataset in datasets:
        texts = [item["entry"]["transcript"] for item in dataset.data.values()]
        texts = [text for text in texts if text is not None]
        found, counts = unknown_characters(texts, tokens)
        total, utterances = total + len(texts), utterances + found
        characters += counts
        shares.append(found / max(len(texts), 1))
    line = describe_unknown(utterances, total, characters, tokens)
    if shares[0] > most:
        raise InputError(f"{line}; or raise max_unknown_share, which is {most}")
    if line:
        logger.warning(line)


def _by_corpus(hparams, key, train, default):
    """Value of a setting for each training corpus (dict)."""
    given = hparams.get(key) or {}
    if unknown := given.keys() - train.keys():
        raise InputError(f"{key}: {', '.join(sorted(unknown))}: the corpora are {', '.join(train)}")
    return {name: given.get(name, default) for name in train}


def _corpus_weights(hparams, train):
    """Draws per epoch of an utterance of each training corpus (dict of float)."""
    weights = _by_corpus(hparams, "corpus_weights", train, 1)
    others = ("max_batch_nodes", "curriculum_epochs")
    if set(weights.values()) != {1} and any(hparams.get(key) for key in others):
        raise InputError(
            "corpus_weights: cannot be combined with max_batch_nodes or curriculum_epochs. Set "
            "them to null and 0, or all weights to 1."
        )
    return weights


def _make_train_loader(brain, train_set, train_opts):
    """Make the loader of the training set; ``InputError`` if an epoch has no step."""
    batches_a_step = brain.grad_accumulation_factor
    if batches_a_step < 1:
        raise InputError(f"grad_accumulation_factor: {batches_a_step}: give a whole number above 0")
    loader = brain.make_dataloader(train_set, sb.Stage.TRAIN, **train_opts)
    if not brain.steps_per_epoch:
        raise InputError(
            f"grad_accumulation_factor: {batches_a_step}: an epoch has {len(loader)} batches, so "
            f"no step is taken. Give at most {len(loader)}."
        )
    return loader


def _add_whole_intervals(datasets, corpora, emotions):
    for dataset in datasets:
        for item in dataset.data.values():
            entry, positions = item["entry"], item["positions"]
            if item["corpus"] in corpora and entry["emotion"] and entry["intervals"] is None:
                frames = item["nodes"] // positions
                span = Span(emotions.index(entry["emotion"]), 0, frames, 0, positions)
                entry["intervals"] = [span]


def _check_intervals(datasets, lattice_mode):
    unknown = [
        name
        for dataset in datasets
        for name, item in dataset.data.items()
        if item["entry"]["emotion"] is not None and item["entry"]["intervals"] is None
    ]
    raise_problems(
        [f"{name}: no known intervals" for name in unknown],
        f"lattice_mode {lattice_mode} needs them: train on mixed utterances, as ent_mix.yaml does",
    )


def check_begun(save_folder, begun_with):
    """Refuse to resume a training that was started with other data or settings; else record them.

    Checkpoints do not reveal such a change, because other tokens or another frozen SSL model may
    have the same sizes. Without a checkpoint, there is nothing to resume.

    Arguments
    ---------
    save_folder : str or Path
        Folder of the training. Its ``trained_on.json`` records the data and settings.
    begun_with : dict[str, dict]
        Settings and digests by name, for each kind of setting.

    Raises
    ------
    InputError
        If settings have changed; the message names them. Also if ``trained_on.json`` is damaged.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> check_begun(folder, {"model settings": {"joint_dim": 640}})
    >>> (folder / "CKPT+1").mkdir()
    >>> check_begun(folder, {"model settings": {"joint_dim": 320}})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ent_brain.errors.InputError: ...: this training was started with other model settings \
(joint_dim was 640): name another output_folder, or remove this one
    """
    path = Path(save_folder) / "trained_on.json"
    begun = path.exists() and any(Path(save_folder).glob(f"{CKPT_PREFIX}+*"))
    remedy = "name another output_folder, or remove this one"
    before = read_json(path, remedy) if begun else begun_with
    if not isinstance(before, dict) or not all(isinstance(v, dict) for v in before.values()):
        raise InputError(f"{path}: does not contain the settings of a training: {remedy}")
    others = []
    for kind, settings in begun_with.items():
        was = before.get(kind, {})
        names = [n for n in was.keys() | settings.keys() if was.get(n) != settings.get(n)]
        if names:
            said = (_say_setting(name, was.get(name)) for name in sorted(names))
            others.append(f"other {kind} ({', '.join(said)})")
    if others:
        raise InputError(
            f"{save_folder}: this training was started with {', '.join(others)}: {remedy}"
        )
    write_json(begun_with, path)


def _say_setting(name, value):
    is_digest = isinstance(value, str) and len(value) == hashlib.sha256().digest_size * 2
    return name if is_digest else f"{name} was {value}"
