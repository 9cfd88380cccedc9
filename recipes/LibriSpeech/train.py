#!/usr/bin/env python3
"""Transducers of words alone on LibriSpeech.

> python train.py hparams/ent_asr.yaml --data_folder LibriSpeech
"""

import sys

from librispeech_prepare import prepare_librispeech
from speechbrain.utils.distributed import run_on_main

from ent_brain.errors import exit_on_input_error
from ent_brain.recipe import begin, build, train_and_test


@exit_on_input_error
def main():
    recipe, run_opts = begin(sys.argv[1:])
    corpus, parts = recipe["data_folder"], ("train_parts", "valid_parts", "test_parts")
    manifests = run_on_main(
        prepare_librispeech,
        kwargs={
            "data_folder": corpus,
            "save_folder": recipe["save_folder"],
            "emotions": recipe.emotions,
            "normalize": recipe.normalize,
            **{key: recipe[key] for key in parts},
            "valid_speakers": recipe["valid_speakers"],
            "seed": recipe["seed"],
        },
    )
    train = {"LibriSpeech": (manifests["train"], corpus)}
    hparams = build(recipe, train)
    valid = {"LibriSpeech": (manifests["valid"], corpus)}
    tests = {" ".join(recipe["test_parts"]): (manifests["test"], corpus)}
    train_and_test(hparams, run_opts, train, valid, tests)


if __name__ == "__main__":
    main()
