#!/usr/bin/env python3
"""Emotion transducers on IEMOCAP, one session left out.

> python train.py hparams/ent.yaml --data_folder IEMOCAP_full_release --test_session 5
"""

import sys

import speechbrain as sb
from iemocap_prepare import prepare_iemocap
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
        prepare_iemocap,
        kwargs={
            "data_folder": corpus,
            "save_folder": manifests,
            "test_session": hparams["test_session"],
            "valid_share": hparams["valid_share"],
            "seed": hparams["seed"],
            "max_train_seconds": hparams["max_train_seconds"],
        },
    )
    train, valid, tests = mixed_sets(
        hparams,
        train=(f"{manifests}/train.json", corpus),
        valid=(f"{manifests}/valid.json", corpus),
        tests={f"session {hparams['test_session']}": (f"{manifests}/test.json", corpus)},
    )
    train_and_test(hparams, run_opts, train, valid, tests)


if __name__ == "__main__":
    main()
