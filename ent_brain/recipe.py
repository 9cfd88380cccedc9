"""What the recipes share: the tokens, the mixed corpora, and the order of a training."""

import hashlib
import logging
from pathlib import Path

import speechbrain as sb
from speechbrain.utils.checkpoints import CKPT_PREFIX
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger

from ent_brain.brain import EmotionTransducerBrain
from ent_brain.cache import disk_use, fill
from ent_brain.dataio import CurriculumSampler, make_batch_sampler, make_dataset
from ent_brain.errors import InputError, one_line, raise_problems
from ent_brain.evaluation import report
from ent_brain.files import read_json, sweep, write_json
from ent_brain.losses import SUPERVISED_MODES
from ent_brain.manifest import read_manifest
from ent_brain.mixing import mix
from ent_brain.settings import TRAINED_BY
from ent_brain.tokens import CharTokens, load_sentencepiece, train_sentencepiece

# At its import SpeechBrain's training log says on the console that it cannot draw; nobody asked it.
logging.getLogger("speechbrain.utils.train_logger").addFilter(
    lambda record: "torchvision is not available" not in record.getMessage()
)

# Where a full disk stops the log, one line says so in the end, not a traceback for each of its own.
logging.raiseExceptions = False

TEST_MIXTURES_SEED = 42
"""Of the mixtures for validation and tests, which are the same whatever a training's seed."""

logger = get_logger(__name__)


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
        # Whether it is there is for one process to say: another may look when it is just made.
        run_on_main(_learn_pieces, args=[transcripts, model_file, vocab_size])
        tokens = load_sentencepiece(model_file)
    else:
        raise InputError(f"tokens: {kind!r}: choose char or bpe")
    if len(tokens) != vocab_size:
        raise InputError(f"vocab_size: {vocab_size}: {kind} tokens are {len(tokens)}: correct it")
    return tokens


def _learn_pieces(transcripts, model_file, vocab_size):
    if not model_file.exists():
        train_sentencepiece(transcripts, model_file, vocab_size)


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
        As ``parse_arguments`` returns them.
    train, valid : tuple
        Manifest, and the folder that ``{data_root}`` in it stands for.
    tests : dict[str, tuple]
        The same for each test set, by the name that the results show.
    """
    frontend, model = (hparams["modules"][name] for name in ("frontend", "model"))
    begun_with = {
        "data": {
            Path(manifest).name: hashlib.sha256(Path(manifest).read_bytes()).hexdigest()
            for manifest in (train[0], valid[0])
        },
        "tokens": {key: hparams[key] for key in ("tokens", "vocab_size")},
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
    tokens = make_tokens(hparams["tokens"], hparams["vocab_size"], train[0], hparams["save_folder"])
    if model.settings["vocab_size"] != len(tokens):
        raise InputError(
            f"model: vocab_size {model.settings['vocab_size']}: there are {len(tokens)} tokens: "
            "set the recipe's own vocab_size, which is that of both"
        )
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
    elif hparams.get("curriculum_epochs"):
        sampler = CurriculumSampler(train_set, hparams["curriculum_epochs"])
        train_opts |= {"shuffle": False, "sampler": sampler}
    try:
        brain = EmotionTransducerBrain(
            tokens,
            modules=hparams["modules"],
            opt_class=hparams["opt_class"],
            hparams=hparams,
            run_opts=run_opts,
            checkpointer=hparams["checkpointer"],
        )
    except ValueError as error:  # of run options that do not suit each other or the device
        raise InputError(f"run options: {one_line(error)}") from error
    datasets = [train_set, valid_set, *test_sets.values()]
    if frontend.cache is not None:
        logger.info(disk_use(frontend, datasets))
    if hparams.get("only_fill_cache"):
        if frontend.cache is None:
            raise InputError("only_fill_cache: there is no cache: name a folder in feature_cache")
        fill(frontend, datasets, brain.device)
        logger.info("all features are kept: the same command without only_fill_cache reads them")
        return
    if hparams["paper_protocol"]:
        brain.paper_sets = {
            name: brain.make_dataloader(
                dataset, sb.Stage.TEST, ckpt_prefix=None, **hparams["test_dataloader_opts"]
            )
            for name, dataset in test_sets.items()
        }
    train_loader = _make_train_loader(brain, train_set, train_opts)
    brain.fit(
        hparams["epoch_counter"],
        train_loader,
        valid_set,
        valid_loader_kwargs=hparams["test_dataloader_opts"],
    )
    report(brain, test_sets, hparams, [item["duration"] for item in train_set.data.values()])


def _make_train_loader(brain, train_set, train_opts):
    """The loader of the training set, of an epoch with a step at least (``InputError`` if not)."""
    batches_a_step = brain.grad_accumulation_factor
    if batches_a_step < 1:
        raise InputError(f"grad_accumulation_factor: {batches_a_step}: give a whole number above 0")
    loader = brain.make_dataloader(train_set, sb.Stage.TRAIN, **train_opts)
    if not brain.steps_per_epoch:
        raise InputError(
            f"grad_accumulation_factor: {batches_a_step}: no step is ever taken, as an epoch has "
            f"{len(loader)} batches: give {len(loader)} at most"
        )
    return loader


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


def check_begun(save_folder, begun_with):
    """Refuse to go on with a training that was begun with something else; note what this one is.

    Checkpoints alone do not tell: other tokens or another frozen SSL model may have their sizes.
    Before the first of them there is nothing to go on with.

    Arguments
    ---------
    save_folder : str or Path
        Of the training; ``trained_on.json`` in it has what it was begun with.
    begun_with : dict[str, dict]
        By what they are settings of: settings and digests by name.

    Raises
    ------
    InputError
        Which names what is other now; or if ``trained_on.json`` is damaged.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> check_begun(folder, {"model settings": {"joint_dim": 640}})
    >>> (folder / "CKPT+1").mkdir()
    >>> check_begun(folder, {"model settings": {"joint_dim": 320}})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ent_brain.errors.InputError: ...: the training in it was begun with other model settings \
(joint_dim was 640): name another output_folder, or remove this one
    """
    path = Path(save_folder) / "trained_on.json"
    begun = path.exists() and any(Path(save_folder).glob(f"{CKPT_PREFIX}+*"))
    remedy = "name another output_folder, or remove this one"
    before = read_json(path, remedy) if begun else begun_with
    if not isinstance(before, dict) or not all(isinstance(v, dict) for v in before.values()):
        raise InputError(f"{path}: does not say what the training was begun with: {remedy}")
    others = []
    for kind, settings in begun_with.items():
        was = before.get(kind, {})
        names = [n for n in was.keys() | settings.keys() if was.get(n) != settings.get(n)]
        if names:
            said = (_say_setting(name, was.get(name)) for name in sorted(names))
            others.append(f"other {kind} ({', '.join(said)})")
    if others:
        raise InputError(
            f"{save_folder}: the training in it was begun with {', '.join(others)}: {remedy}"
        )
    write_json(begun_with, path)


def _say_setting(name, value):
    is_digest = isinstance(value, str) and len(value) == hashlib.sha256().digest_size * 2
    return name if is_digest else f"{name} was {value}"
