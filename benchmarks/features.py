#!/usr/bin/env python3
"""Time that each front end needs for the features of the sound files in a folder.

All models have the size of their base model and random weights, which take the same time as
trained ones. For each file, all front ends take turns.

> python benchmarks/features.py RAVDESS [--bf16] [--output features.json]
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
import transformers

from ent_brain.dataio import read_audio
from ent_brain.evaluation import hardware
from ent_brain.files import write_json
from ent_brain.frontend import FbankFrontend, SSLFrontend

HALF_A_MINUTE = 480_000
"""Number of samples to which the published Whisper models pad every utterance."""

MODELS = {
    "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2FeatureExtractor),
    "hubert": (transformers.HubertConfig, transformers.Wav2Vec2FeatureExtractor),
    "whisper": (transformers.WhisperConfig, transformers.WhisperFeatureExtractor),
}
BASE_WHISPER = {
    **{"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048},
    **{"decoder_layers": 1, "decoder_attention_heads": 8},
}
PADDED = "whisper, padded to 30 s"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder with sound files")
    parser.add_argument(
        "--files", type=int, default=60, help="number of files, evenly spaced (default: 60)"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--bf16", action="store_true", help="use SpeechBrain's mixed precision")
    parser.add_argument("--output", metavar="JSON", type=Path, help="file for the results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    paths = sorted(path for path in options.folder.rglob("*") if path.suffix in (".flac", ".wav"))
    paths = [paths[i * len(paths) // options.files] for i in range(options.files)]
    wavs = [read_audio(path, FbankFrontend.sample_rate) for path in paths]
    with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16), torch.no_grad():
        seconds = measure(wavs)
    speech = sum(map(len, wavs)) / FbankFrontend.sample_rate
    facts = (
        f"{len(wavs)} files, {speech:.1f} s, mean {speech / len(wavs):.2f} s; "
        f"{'bfloat16' if options.bf16 else 'float32'}; {hardware('cpu')}"
    )
    print(facts + "\n")
    print("| front end | s | ms a second of audio | share of padded Whisper |")
    print("| :-- | --: | --: | --: |")
    rows = {
        name: {
            "seconds": spent,
            "ms a second of audio": 1000 * spent / speech,
            "times faster than padded Whisper": seconds[PADDED] / spent,
        }
        for name, spent in seconds.items()
    }
    for name, row in rows.items():
        spent, cost, faster = row.values()
        print(f"| {name} | {spent:.2f} | {cost:.1f} | 1/{faster:.1f} |")
    if options.output:
        write_json({"made with": facts, "rows": rows}, options.output)


def measure(wavs):
    """Measure the seconds of each front end for all waveforms (dict)."""
    frontends = {"fbank": FbankFrontend().eval()}
    with tempfile.TemporaryDirectory() as folder:
        for kind, (config, extractor) in MODELS.items():
            path = Path(folder) / kind
            sizes = BASE_WHISPER if kind == "whisper" else {}
            transformers.AutoModel.from_config(config(**sizes)).save_pretrained(path)
            extractor().save_pretrained(path)
            frontends[kind] = SSLFrontend(kind, path, folder)
    calls = {name: lambda wav, f=f: f(wav[None], torch.ones(1)) for name, f in frontends.items()}
    calls[PADDED] = lambda wav: calls["whisper"](
        torch.nn.functional.pad(wav, (0, HALF_A_MINUTE - len(wav)))
    )
    seconds = dict.fromkeys(calls, 0.0)
    for call in calls.values():
        call(wavs[0])
    for wav in wavs:
        for name, call in calls.items():
            begin = time.perf_counter()
            call(wav)
            seconds[name] += time.perf_counter() - begin
    return seconds


if __name__ == "__main__":
    main()
