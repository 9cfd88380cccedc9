#!/usr/bin/env python3
"""Emotion transducers on any corpus, described by a table.

> python train.py hparams/ent.yaml --table data.csv
"""

import sys

from speechbrain.utils.distributed import run_on_main
from table_prepare import prepare_table

from ent_brain.emotions import PUBLISHED
from ent_brain.errors import InputError, exit_on_input_error
from ent_brain.recipe import begin, build, train_and_test


@exit_on_input_error
def main():
    recipe, run_opts = begin(sys.argv[1:])
    prepared = run_on_main(
        prepare_table,
        kwargs={
            "table": recipe["table"],
            "save_folder": recipe["save_folder"],
            "emotions": recipe["emotions"],
            "neutral": recipe["neutral"],
            "label_map": recipe["label_map"] or None,
            "normalize": recipe.normalize,
            "seed": recipe["seed"],
            "valid_share": recipe["valid_share"],
            "test_share": recipe["test_share"],
            "data_folder": recipe["data_folder"],
        },
    )
    emotions = prepared.emotions
    if emotions is None:
        if recipe["head_weight"] or recipe["lattice_weight"]:
            raise InputError(
                f"{recipe['table']}: no row has an emotion. Set head_weight and lattice_weight to "
                "0 to learn only words."
            )
        emotions = PUBLISHED  # unused, because the model learns no emotions
    recipe.settle(emotions=list(emotions), neutral=emotions.neutral)
    splits = {split: (path, prepared.data_root) for split, path in prepared.manifests.items()}
    train = {"table": splits["train"]}
    hparams = build(recipe, train)
    valid, tests = {"table": splits["valid"]}, {"test": splits["test"]}
    train_and_test(hparams, run_opts, train, valid, tests)


if __name__ == "__main__":
    main()
