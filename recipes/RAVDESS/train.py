#!/usr/bin/env python3
"""Emotion transducers on RAVDESS, tested on actors that training never heard.

> python train.py hparams/ent_fbank.yaml --data_folder RAVDESS
"""

import sys

import speechbrain as sb
from ravdess_prepare import prepare_ravdess
from speechbrain.utils.distributed import run_on_main

from ent_brain.errors import exit_on_input_error
from ent_brain.processes import join
from ent_brain.recipe import mixed_sets, train_and_test
from ent_brain.settings import load_recipe, parse_arguments


@exit_on_input_error
def main():
    hparams_file, run_opts, overrides = parse_arguments(sys.argv[1:])
    run_opts = join(run_opts)
    hparams = load_recipe(hparams_file, overrides, run_opts["device"])
    sb.create_experiment_directory(hparams["output_folder"], hparams_file, overrides)

    corpus, manifests = hparams["data_folder"], hparams["save_folder"]
    run_on_main(
        prepare_ravdess,
        kwargs={
            "data_folder": corpus,
            "save_folder": manifests,
            "test_actors": hparams["test_actors"],
            "valid_actors": hparams["valid_actors"],
            "calm_as_neutral": hparams["calm_as_neutral"],
        },
    )
    train, valid, tests = mixed_sets(
        hparams,
        train=(f"{manifests}/train.json", corpus),
        valid=(f"{manifests}/valid.json", corpus),
        tests={"test actors": (f"{manifests}/test.json", corpus)},
    )
    train_and_test(hparams, run_opts, train, valid, tests)


if __name__ == "__main__":
    main()
