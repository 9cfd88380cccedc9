#!/usr/bin/env python3
"""Emotion transducers trained on IEMOCAP and tested on ZED, the Zaion Emotion Dataset.

> python train.py hparams/ent.yaml --data_folder IEMOCAP_full_release --zed_folder ZED
"""

import sys

import speechbrain as sb
from iemocap_prepare import prepare_iemocap
from speechbrain.utils.distributed import run_on_main
from zed_prepare import prepare_zed

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

    iemocap, zed, manifests = (hparams[k] for k in ("data_folder", "zed_folder", "save_folder"))
    run_on_main(
        prepare_iemocap,
        kwargs={
            "data_folder": iemocap,
            "save_folder": manifests,
            "test_session": hparams["test_session"],
            "valid_share": hparams["valid_share"],
            "seed": hparams["seed"],
            "max_train_seconds": hparams["max_train_seconds"],
        },
    )
    run_on_main(prepare_zed, kwargs={"zed_folder": zed, "save_folder": manifests})

    tests = {}
    if hparams["test_session"]:
        tests[f"IEMOCAP session {hparams['test_session']}"] = (f"{manifests}/test.json", iemocap)
    train, valid, tests = mixed_sets(
        hparams,
        train=(f"{manifests}/train.json", iemocap),
        valid=(f"{manifests}/valid.json", iemocap),
        tests=tests,
    )
    tests["ZED"] = (f"{manifests}/zed.json", zed)
    train_and_test(hparams, run_opts, train, valid, tests)


if __name__ == "__main__":
    main()
