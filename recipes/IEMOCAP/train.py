#!/usr/bin/env python3
"""Emotion transducers on IEMOCAP, tested on a held-out session.

> python train.py hparams/ent.yaml --data_folder IEMOCAP_full_release --test_session 5
"""

import sys

from iemocap_prepare import prepare_iemocap
from speechbrain.utils.distributed import run_on_main

from ent_brain.errors import exit_on_input_error
from ent_brain.recipe import begin, build, mixed_sets, train_and_test


@exit_on_input_error
def main():
    recipe, run_opts = begin(sys.argv[1:])
    corpus, manifests = recipe["data_folder"], recipe["save_folder"]
    run_on_main(
        prepare_iemocap,
        kwargs={
            "data_folder": corpus,
            "save_folder": manifests,
            "emotions": recipe.emotions,
            "label_map": recipe["label_map"],
            "normalize": recipe.normalize,
            "test_session": recipe["test_session"],
            "valid_share": recipe["valid_share"],
            "seed": recipe["seed"],
            "max_train_seconds": recipe["max_train_seconds"],
        },
    )
    train = {"IEMOCAP": (f"{manifests}/train.json", corpus)}
    hparams = build(recipe, train)
    session = recipe["test_session"]
    # Without a test session, results are those of the validation set, which selected the model.
    name, split = (f"session {session}", "test") if session else ("validation", "valid")
    train, valid, tests = mixed_sets(
        hparams,
        train=train,
        valid={"IEMOCAP": (f"{manifests}/valid.json", corpus)},
        tests={name: (f"{manifests}/{split}.json", corpus)},
    )
    train_and_test(hparams, run_opts, train, valid, tests)


if __name__ == "__main__":
    main()
