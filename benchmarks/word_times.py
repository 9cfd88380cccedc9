#!/usr/bin/env python3
"""How far the times of words are from where the words are: on synthetic speech, which knows.

A trained model annotates a look-alike of ZED that is spoken anew. Of the words that it has found
(aligned with those that were said), the distance of both boundaries from the truth counts.

> python benchmarks/word_times.py --model demo/ent/pretrained
"""

import argparse
import tempfile
from pathlib import Path

import jiwer
import numpy as np

from ent_brain.files import read_json, write_json
from ent_brain.inference import EmotionTransducer
from ent_brain.synth import write_zed


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", metavar="FOLDER", required=True, help="left by training")
    parser.add_argument("--utterances", type=int, default=180)
    parser.add_argument("--seed", type=int, default=7, help="of the corpus that is spoken")
    parser.add_argument("--output", metavar="JSON", type=Path, help="where the figures are kept")
    options = parser.parse_args()
    model = EmotionTransducer.from_hparams(source=options.model)
    errors, said = [], 0
    with tempfile.TemporaryDirectory() as folder:
        write_zed(folder, options.utterances, seed=options.seed)
        truth = read_json(Path(folder) / "ground_truth.json")
        for path in sorted(Path(folder).rglob("*.wav")):
            known = truth[path.stem]["words"]
            errors += boundary_errors(known, model.annotate_file(path, progressbar=False).words)
            said += len(known)
    errors = 1000 * np.array(errors)
    found = len(errors) / said
    row = {"words": said, "found": found}
    for name, values in (("starts", errors[:, 0]), ("ends", errors[:, 1]), ("both", errors)):
        row[name] = {str(q): float(np.quantile(np.abs(values), q)) for q in (0.5, 0.9)}
    print(f"{said} words said, {100 * found:.1f} % of them found\n")
    print("| boundaries | median error, ms | of 9 in 10 less than, ms |\n| :-- | --: | --: |")
    for name in ("starts", "ends", "both"):
        print(f"| {name} | {row[name]['0.5']:.0f} | {row[name]['0.9']:.0f} |")
    if options.output:
        write_json(row, options.output)


def boundary_errors(known, words):
    """Seconds by which start and end of each word that was found are too late, [(start, end)]."""
    output = jiwer.process_words(
        " ".join(text for text, _, _ in known), " ".join(word.text for word in words) or " "
    )
    return [
        (words[there].start - known[here][1], words[there].end - known[here][2])
        for chunk in output.alignments[0]
        if chunk.type == "equal"
        for here, there in zip(
            range(chunk.ref_start_idx, chunk.ref_end_idx),
            range(chunk.hyp_start_idx, chunk.hyp_end_idx),
            strict=True,
        )
    ]


if __name__ == "__main__":
    main()
