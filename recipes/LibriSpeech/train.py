#!/usr/bin/env python3
"""Transducers for words only on LibriSpeech.

> python train.py hparams/ent_asr.yaml --data_folder LibriSpeech
"""

import sys

from librispeech_prepare import prepare_corpora
from speechbrain.utils.distributed import run_on_main

from ent_brain.errors import exit_on_input_error
from ent_brain.recipe import begin, build, train_and_test


@exit_on_input_error
def main():
    recipe, run_opts = begin(sys.argv[1:])
    corpora = run_on_main(prepare_corpora, args=[recipe, recipe["data_folder"]])
    hparams = build(recipe, corpora["train"])
    train_and_test(hparams, run_opts, corpora["train"], corpora["valid"], corpora["test"])


if __name__ == "__main__":
    main()
