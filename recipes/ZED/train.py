#!/usr/bin/env python3
"""Emotion transducers trained on IEMOCAP and tested on ZED, the Zaion Emotion Dataset.

> python train.py hparams/ent.yaml --data_folder IEMOCAP_full_release --zed_folder ZED
"""

import sys

from iemocap_prepare import prepare_iemocap
from speechbrain.utils.distributed import run_on_main
from zed_prepare import prepare_zed

from ent_brain.errors import exit_on_input_error
from ent_brain.recipe import begin, build, mixed_sets, train_and_test


@exit_on_input_error
def main():
    recipe, run_opts = begin(sys.argv[1:])
    iemocap, zed, manifests = (recipe[k] for k in ("data_folder", "zed_folder", "save_folder"))
    run_on_main(
        prepare_iemocap,
        kwargs={
            "data_folder": iemocap,
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
    run_on_main(
        prepare_zed,
        kwargs={
            "zed_folder": zed,
            "save_folder": manifests,
            "emotions": recipe.emotions,
            "label_map": recipe["zed_label_map"],
            "normalize": recipe.normalize,
        },
    )

    train = {"IEMOCAP": (f"{manifests}/train.json", iemocap)}
    tests = {}
    if recipe["test_session"]:
        tests[f"IEMOCAP session {recipe['test_session']}"] = (f"{manifests}/test.json", iemocap)
    hparams = build(recipe, train)
    train, valid, tests = mixed_sets(
        hparams,
        train=train,
        valid={"IEMOCAP": (f"{manifests}/valid.json", iemocap)},
        tests=tests,
    )
    tests["ZED"] = (f"{manifests}/zed.json", zed)
    train_and_test(hparams, run_opts, train, valid, tests)


if __name__ == "__main__":
    main()
