"""What a training leaves: results, pictures, the page, and the model for others."""

import platform
import re
from contextlib import suppress
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import torch
from speechbrain.utils.distributed import if_main_process, main_process_only

from ent_brain import versions
from ent_brain.annotation import annotate
from ent_brain.brain import HISTORY_FILE
from ent_brain.dataio import read_audio
from ent_brain.emotions import describe_label_map
from ent_brain.errors import InputError
from ent_brain.export import export
from ent_brain.files import read_rows, whole_or_nothing, write_json
from ent_brain.page import (
    RESULTS_FILE,
    UTTERANCES_FILE,
    Utterance,
    write_report,
    write_utterances,
)
from ent_brain.report import (
    plot_confusion,
    plot_lattice,
    plot_learning_curves,
    plot_timeline,
    results_table,
)
from ent_brain.segments import fill_neutral

HEARD_SHARE = 0.95
"""Share of the training utterances that are no longer than what an exported model hears at once:
what is longer than nearly all that it was trained on, it hears badly."""


def report(brain, train_set, valid_set, test_sets, hparams):
    """Score the chosen checkpoint on each test set once; print and write what came out.

    ``<output_folder>`` receives ``results.json``, ``results.md``, the learning curves, the model in
    ``pretrained``, and for each test set its statistics by utterance, the confusion matrix and,
    where emotional intervals are known, the timeline and lattice of one utterance of each emotion;
    ``utterances.jsonl`` and, to look at and listen to, ``report.html``.

    Arguments
    ---------
    brain : EmotionTransducerBrain
    train_set, valid_set : DynamicItemDataset
    test_sets : dict[str, DynamicItemDataset]
        By the name that the table shows.
    hparams : dict
    """
    folder = Path(hparams["output_folder"])
    if not (folder / HISTORY_FILE).is_file():
        raise InputError(f"{folder}: nothing was trained in it: train for an epoch at least")
    # The Brain's own list will end with the epoch of the checkpoint that is loaded below.
    remedy = "bring it back, or train again in another output_folder"
    history = read_rows(folder / HISTORY_FILE, ["epoch"], remedy)
    if if_main_process():
        plot_learning_curves(history, folder / "learning_curves.png")
    rows, scored = [], []
    brain.on_evaluate_start(min_key="error")  # once for all test sets
    for name, dataset in test_sets.items():
        brain.evaluate(dataset, test_loader_kwargs=dict(hparams["test_dataloader_opts"]))
        rows += _rows(name, brain.stats, history)
        _describe(brain, name, dataset, folder)
        scored.append((name, dataset, brain.stats))
    trained_on = [item["duration"] for item in train_set.data.values()]
    export(
        brain,
        folder / "pretrained",
        longest_window=round(float(np.quantile(trained_on, HEARD_SHARE)), 2),
        results=results_table(rows),
        utterances=len(trained_on),
        hours=sum(trained_on) / 3600,
    )
    sets = {"Training": train_set, "Validation": valid_set}
    sets |= {f"Test set {name}": dataset for name, dataset in test_sets.items()}
    facts = describe_training(sets, hparams, brain.device)
    _publish(rows, facts, scored, brain.recognizer, folder, progressbar=not brain.noprogressbar)


def _rows(name, stats, history):
    """Rows of the results table of one test set."""
    measured = {k: v for k, v in stats.summarize().items() if k != "error"}
    if "EDER" in measured:
        measured["segments"] = stats.decoder.method
    rows = [{"test set": name, "protocol": "valid", **measured}]
    if f"{name} error" in history[-1]:
        best = {}
        for metric in stats.summarize().keys() - {"error"}:
            choose = max if metric in ("WA", "UA") else min
            best[metric] = choose(epoch[f"{name} {metric}"] for epoch in history)
        rows.append({**rows[0], "protocol": "paper", **best})
    columns = rows[0].keys()
    for baseline, rate in stats.baselines().items():
        row = {**dict.fromkeys(columns), "test set": name, "protocol": baseline, "EDER": rate}
        rows.append(row)
    return rows


@main_process_only
def _describe(brain, name, dataset, folder):
    """Write the statistics and pictures of the test set that the brain has just scored."""
    stats, label = brain.stats, name.replace(" ", "_")
    stats.write(folder, label)
    if stats.emotions:
        confusion = stats.emotions.summarize("confusion")
        picture = folder / f"confusion_{label}.png"
        plot_confusion(confusion, picture, f"Utterance emotion, {name}", brain.emotions)
    if not stats.diarization["model"]:
        return
    sample_rate = brain.raw_modules.frontend.sample_rate
    for emotion in brain.emotions:
        of_emotion = [u for u in stats.hypotheses if dataset.data[u]["entry"]["emotion"] == emotion]
        for utterance in sorted(of_emotion)[:1]:
            item, hypothesis = dataset.data[utterance], stats.hypotheses[utterance]
            annotation = _annotation(stats, utterance, item["entry"], brain.recognizer)
            wav = read_audio(item["wav"], sample_rate, item["start"], item["duration"])
            picture = folder / f"timeline_{label}_{emotion.replace(' ', '_')}.png"
            plot_timeline(picture, wav.numpy(), sample_rate, annotation, item["entry"]["segments"])
            if brain.raw_modules.model.emotion_joint is not None:
                plot_lattice(
                    picture.with_name(picture.name.replace("timeline_", "lattice_", 1)),
                    brain.emotion_lattice(wav, hypothesis.tokens).numpy(),
                    hypothesis.frames,
                    _words(stats, hypothesis),
                    annotation.frame_duration,
                    utterance,
                    brain.emotions,
                )


METRICS = {
    "WER": "words that are wrong, missing or too many, by reference words",
    "CER": "the same of characters",
    "WA": "utterances with the right emotion",
    "UA": "mean over the emotions of the share that is right",
    "EDER": "time with the wrong emotion, the mean over utterances",
}
"""What the columns of the table of results say, in percent."""

SHOWN_SPEAKERS = 12
"""Speakers of a set that are named; more are counted."""


def describe_training(sets, hparams, device):
    """Say what a table of results was made with.

    Arguments
    ---------
    sets : dict[str, DynamicItemDataset]
        Training, validation and test sets by name.
    hparams : dict
    device : torch.device or str

    Returns
    -------
    str
        A Markdown list: the metrics, what the labels are made of, the utterances, hours and
        speakers of each set, seed, versions, hardware and date.
    """
    lines = ["In percent. " + "; ".join(f"{name}: {what}" for name, what in METRICS.items()) + "."]
    emotions = hparams["emotion_set"]
    maps = {key: hparams[key] for key in ("label_map", "zed_label_map") if hparams.get(key)}
    for key, label_map in maps.items():
        used = {label: name for label, name in label_map.items() if name is not None}
        lines.append(f"Labels ({key}): {describe_label_map(used, emotions)}.")
    if not maps:
        lines.append(f"Labels: {', '.join(emotions)}.")
    for name, dataset in sets.items():
        items = dataset.data.values()
        hours = sum(item["duration"] for item in items) / 3600
        speakers = sorted({item["entry"]["speaker"] for item in items})
        more = f" and {len(speakers) - SHOWN_SPEAKERS} more" * (len(speakers) > SHOWN_SPEAKERS)
        named = ", ".join(speakers[:SHOWN_SPEAKERS]) + more
        lines.append(f"{name}: {len(items)} utterances, {hours:.2f} h, of {named}.")
    lines.append(f"Seed {hparams['seed']}; {versions()}; {hardware(device)}; {date.today()}.")
    return "\n".join(f"* {line}" for line in lines)


def hardware(device):
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = platform.processor() or platform.machine()
    with suppress(OSError):  # Linux alone names the processor here
        names = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        cpu = names[1] if names else cpu
    threads = torch.get_num_threads()
    return f"{cpu}, {threads} thread{'s' if threads > 1 else ''}"


def _words(stats, hypothesis):
    """Words as ``tokens.words`` gives them; none where nothing is transcribed."""
    return stats.tokens.words(hypothesis.tokens) if stats.words else []


def _annotation(stats, utterance, entry, recognizer):
    """What was heard in an utterance of a test set that has been scored."""
    hypothesis, decoder = stats.hypotheses[utterance], recognizer.decoder
    heard = recognizer.heard(hypothesis, _words(stats, hypothesis), entry["duration"])
    return annotate(utterance, heard, decoder.frame_duration, decoder.emotions)


def _utterances(name, dataset, stats, recognizer):
    """Yield what was heard in each utterance of a test set, beside what is known of it."""
    rates = stats.by_utterance()
    for utterance in stats.hypotheses:
        item = dataset.data[utterance]
        entry = item["entry"]
        annotation = _annotation(stats, utterance, entry, recognizer)
        emotions = stats.decoder.emotions
        segments = entry["segments"]
        reference = replace(
            annotation,
            text=(entry["transcript"] or "") if stats.words else "",
            emotions=emotions.names,
            neutral=emotions.neutral,
            emotion=entry["emotion"],
            probabilities=(),
            words=(),
            segments=tuple(
                () if segments is None else fill_neutral(segments, entry["duration"], emotions)
            ),
            frame_probabilities=(),
        )
        audio = str(Path(item["wav"]).absolute())
        yield Utterance(annotation, audio, reference, name, rates[utterance], item["start"])


@main_process_only
def _publish(rows, facts, scored, recognizer, folder, progressbar):
    text = f"{results_table(rows)}\n\n{facts}\n"
    write_json(rows, folder / RESULTS_FILE)
    with whole_or_nothing(folder / "results.md") as partial:
        partial.write_text(text, encoding="utf-8")
    # One after the other: as Python's numbers, frames need ten times what they do in tensors.
    utterances = (each for test_set in scored for each in _utterances(*test_set, recognizer))
    write_utterances(utterances, folder / UTTERANCES_FILE)
    page = write_report(folder, progressbar)
    print(
        f"\n{text}\nPictures, results by utterance and the model: {folder}\n"
        f"To look at and listen to, in a browser: {page}"
    )
