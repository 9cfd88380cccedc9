#!/usr/bin/env python3
"""Emotion transducers on open data: words from LibriSpeech, emotions from RAVDESS.

> python train.py hparams/ent.yaml --data_folder RAVDESS --librispeech_folder LibriSpeech
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
    keys = ("label_map", "test_actors", "valid_actors")
    run_on_main(
        prepare_ravdess,
        args=[corpus, manifests, recipe.emotions],
        kwargs={"normalize": recipe.normalize, **{key: recipe[key] for key in keys}},
    )
    words = run_on_main(prepare_corpora, args=[recipe, recipe["librispeech_folder"]])
    train = {"RAVDESS": (f"{manifests}/train.json", corpus)}
    hparams = build(recipe, train | words["train"])
    train, valid, tests = mixed_sets(
        hparams,
        train=train,
        valid={"RAVDESS": (f"{manifests}/valid.json", corpus)},
        tests={"test actors": (f"{manifests}/test.json", corpus)},
        beside=True,
    )
    train_and_test(
        hparams,
        run_opts,
        train=train | words["train"],
        valid=valid | words["valid"],
        tests=tests | words["test"],
        whole=("RAVDESS", "LibriSpeech"),
    )


if __name__ == "__main__":
    main()
