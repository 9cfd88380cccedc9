#!/usr/bin/env python3
"""Emotion transducers on RAVDESS, tested on actors that are not in the training set.

> python train.py hparams/ent_fbank.yaml --data_folder RAVDESS
"""

import sys

from librispeech_prepare import prepare_corpora
from ravdess_prepare import prepare_ravdess
from speechbrain.utils.distributed import run_on_main

from ent_brain.errors import exit_on_input_error
from ent_brain.recipe import begin, build, mixed_sets, train_and_test


@exit_on_input_error
def main():
    recipe, run_opts = begin(sys.argv[1:])
    corpus, manifests = recipe["data_folder"], recipe["save_folder"]
    run_on_main(
        prepare_ravdess,
        kwargs={
            "data_folder": corpus,
            "save_folder": manifests,
            "emotions": recipe.emotions,
            "label_map": recipe["label_map"],
            "normalize": recipe.normalize,
            "test_actors": recipe["test_actors"],
            "valid_actors": recipe["valid_actors"],
        },
    )
    train = {"RAVDESS": (f"{manifests}/train.json", corpus)}
    words = {}
    if recipe.get("librispeech_folder"):
        words = run_on_main(prepare_corpora, args=[recipe, recipe["librispeech_folder"]])
    hparams = build(recipe, train | words.get("train", {}))
    train, valid, tests = mixed_sets(
        hparams,
        train=train,
        valid={"RAVDESS": (f"{manifests}/valid.json", corpus)},
        tests={"test actors": (f"{manifests}/test.json", corpus)},
    )
    train |= words.get("train", {})
    valid |= words.get("valid", {})
    tests |= words.get("test", {})
    train_and_test(hparams, run_opts, train, valid, tests)


if __name__ == "__main__":
    main()
