#!/usr/bin/env python3
"""EDER of each decoding of emotion segments, on utterances for validation.

A trained model decodes a new synthetic look-alike of ZED with its own seed. The choice of a
decoding therefore does not depend on a test set.

> python benchmarks/segments.py --model demo/ent/pretrained
"""

import argparse
import tempfile
from pathlib import Path

import lookalike
import torch

from ent_brain.dataio import read_audio
from ent_brain.decoding import greedy_search
from ent_brain.emotions import PUBLISHED
from ent_brain.files import read_json, write_json
from ent_brain.inference import EmotionTransducer
from ent_brain.metrics import EmotionDiarizationStats
from ent_brain.segments import SEGMENT_DECODINGS, Segment, SegmentDecoder
from ent_brain.synth import write_zed

SECONDS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--model", metavar="FOLDER", required=True, help="folder `pretrained` of a training"
    )
    parser.add_argument(
        "--utterances", type=int, default=180, help="number of utterances (default: 180)"
    )
    parser.add_argument("--seed", type=int, default=7, help="seed of the synthetic corpus")
    parser.add_argument("--output", metavar="JSON", type=Path, help="file for the results")
    options = parser.parse_args()
    trained = EmotionTransducer.from_hparams(source=options.model).mods
    heard = list(hear(trained, options.utterances, options.seed))
    rows = []
    for method in SEGMENT_DECODINGS:
        lasting = SECONDS if method in ("median", "min_duration") else (None,)
        for seconds in lasting:
            settings = {} if seconds is None else {"seconds": seconds}
            decoder = SegmentDecoder(PUBLISHED, trained.frontend.frame_duration, method, **settings)
            stats = EmotionDiarizationStats(PUBLISHED, decoder.frame_duration)
            for name, log_probs, segments, duration in heard:
                stats.append([name], [decoder.labels(log_probs)], [segments], [duration])
            rows.append({"method": method, "seconds": seconds, "EDER": stats.summarize("EDER")})
    print(f"{len(heard)} synthetic utterances, seed {options.seed}\n")
    print("| segment_decoding | segment_seconds | EDER |\n| :-- | --: | --: |")
    for row in rows:
        print(f"| {row['method']} | {row['seconds'] or '-'} | {row['EDER']:.1f} |")
    if options.output:
        write_json(rows, options.output)


@torch.no_grad()
def hear(trained, utterances, seed):
    """Yield id, frame log-probabilities [T, E], known segments and seconds of each utterance."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_zed(folder / "zed", utterances, seed=seed)
        lookalike.prepare(folder / "zed", folder)
        for name, entry in read_json(folder / "zed.json").items():
            path = entry["wav"].format(data_root=folder / "zed")
            wav = read_audio(path, trained.frontend.sample_rate)
            [hypothesis] = greedy_search(trained.model, *trained.frontend(wav[None], torch.ones(1)))
            segments = [Segment(**segment) for segment in entry["segments"]]
            yield name, hypothesis.emotion_log_probs, segments, entry["duration"]


if __name__ == "__main__":
    main()
