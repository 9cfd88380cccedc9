"""What input may be wrong, or odd and still right: each wrong one gives one exact line.

``{folder}`` in a message stands for the folder that everything of a case lies in. At the end the
readers are given what nobody thought of.
"""

import importlib.util
import json
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import soundfile
import torch
import yaml
from hypothesis import given as drawn
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from ent_brain.checkpoints import WholeCheckpointer
from ent_brain.dataio import interval_spans, make_batch_sampler, make_dataset, read_audio
from ent_brain.emotions import PUBLISHED
from ent_brain.errors import InputError
from ent_brain.export import export
from ent_brain.files import read_json, write_json
from ent_brain.frontend import FbankFrontend
from ent_brain.inference import EmotionTransducer
from ent_brain.manifest import Interval, Utterance, check_utterances, read_manifest, save_manifests
from ent_brain.model import ENT, FENT
from ent_brain.page import Utterance as Spoken
from ent_brain.page import write_report, write_utterances
from ent_brain.recipe import check_begun, make_tokens
from ent_brain.segments import Segment
from ent_brain.settings import load_recipe
from ent_brain.tokens import (
    CharTokens,
    load_sentencepiece,
    normalize_transcript,
    train_sentencepiece,
)

ROOT = Path(__file__).resolve().parents[1]
TRANSCRIPTS = ["I PUT THE LAMP ON THE TABLE", "SHE FOUND MY OLD BAG", "WE NEED THE KETTLE"]


def tone(seconds=1.0, rate=16000):
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(rate * seconds)) / rate)


# --- kinds of input: each writes what is good into a folder, and returns what reads it


def prepare(recipe, module):
    path = ROOT / "recipes" / recipe / f"{module}.py"
    spec = importlib.util.spec_from_file_location(f"bad_input_{module}", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    function = getattr(loaded, f"prepare_{recipe.lower()}")
    settings = ROOT / "recipes" / recipe / "hparams" / "ent.yaml"
    key = "zed_label_map" if recipe == "ZED" else "label_map"
    label_map = yaml.safe_load(re.search(rf"(?m)^{key}: (.*)", settings.read_text())[1])

    def call(folder, save, **options):
        return function(folder, save, PUBLISHED, label_map, normalize_transcript, **options)

    return call


PREPARE_IEMOCAP = prepare("IEMOCAP", "iemocap_prepare")
PREPARE_ZED = prepare("ZED", "zed_prepare")
PREPARE_RAVDESS = prepare("RAVDESS", "ravdess_prepare")

EVALUATION = "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
TRANSCRIPTION = "Session1/dialog/transcriptions/Ses01F_impro01.txt"
WAVS = "Session1/sentences/wav/Ses01F_impro01"
LABELS = {"F000": "hap", "F001": "fru", "F002": "sad", "M000": "exc", "M001": "ang", "M002": "neu"}
IEMOCAP_EMOTIONS = {"F000": "happy", "F002": "sad", "M000": "happy", "M001": "angry"} | {
    "M002": "neutral"
}


def iemocap(folder, _):
    for k in range(1, 6):
        dialog = f"Ses0{k}F_impro01"
        parts = f"Session{k}/dialog/EmoEvaluation", f"Session{k}/dialog/transcriptions"
        wavs = folder / f"Session{k}" / "sentences" / "wav" / dialog
        for part in (*(folder / part for part in parts), wavs):
            part.mkdir(parents=True)
        evaluation, transcription = (
            "% [START - END] TURN_NAME EMOTION [V, A, D]\n\n",
            "M: Uh-huh.\n",
        )
        for i, (turn, label) in enumerate(LABELS.items()):
            evaluation += f"[{i}.0000 - {i}.5000]\t{dialog}_{turn}\t{label}\t[2.5000, 2.5, 2.5]\n"
            evaluation += "C-E2:\tNeutral;\t()\nA-E3:\tval 3; act 2; dom  2;\t()\n\n"
            transcription += f"{dialog}_{turn} [00{i}.0000-00{i}.5000]: Number {turn[-1]}.\n"
            soundfile.write(wavs / f"{dialog}_{turn}.wav", tone(0.5), 16000)
        (folder / parts[0] / f"{dialog}.txt").write_text(evaluation)
        (folder / parts[1] / f"{dialog}.txt").write_text(transcription)

    def read(**given):
        return PREPARE_IEMOCAP(folder, **{"save": folder / "save", "test_session": 1, **given})

    return read


def zed_entry(**changes):
    interval = {"emo": "happy", "start": 0.5, "end": 1.5}
    whole = {"wav": "datafolder/wav/a.wav", "duration": 2.0, "emotion": [interval]}
    return {**whole, "transcription": "Oh, great!"} | changes


def zed(folder, _):
    (folder / "wav").mkdir(parents=True)
    soundfile.write(folder / "wav" / "a.wav", tone(2.0), 16000)
    (folder / "ZED.json").write_text(json.dumps({"good": zed_entry()}))
    return lambda: PREPARE_ZED(folder, folder / "save")


def ravdess(folder, _):
    for actor in (1, 2, 3):
        (folder / f"Actor_{actor:02}").mkdir(parents=True)
        path = folder / f"Actor_{actor:02}" / f"03-01-05-01-02-01-{actor:02}.wav"
        soundfile.write(path, tone(), 16000)

    def read(**given):
        return PREPARE_RAVDESS(
            folder, folder / "save", **{"test_actors": [3], "valid_actors": [2], **given}
        )

    return read


def utterance(folder, _):
    folder.mkdir()
    soundfile.write(folder / "a.wav", tone(), 16000)
    draft = Utterance("a", folder / "a.wav", "Oh, yes.", "sad", "Ann")

    def read(*others, problems=(), **changes):
        drafts = [replace(draft, **changes), *(replace(draft, **other) for other in others)]
        return check_utterances(drafts, folder, problems)

    return read


def splits(folder, _):
    [checked] = utterance(folder, _)()

    def read(**given):
        return save_manifests(folder / "save", {"train": [checked], **given}, folder)

    return read


GOOD_ENTRY = {"wav": "{data_root}/a.wav", "duration": 1.0, "transcript": "HI", "emotion": "sad"}
GOOD_ENTRY |= {"speaker": "Ann"}


def manifest(folder, _):
    folder.mkdir()
    soundfile.write(folder / "a.wav", tone(), 16000)
    (folder / "train.json").write_text(json.dumps({"a": GOOD_ENTRY}))
    return lambda: read_manifest(folder / "train.json")


def dataset(folder, _):
    manifest(folder, _)

    def read(frontend=None, limit=1.0):
        frontend = frontend or FbankFrontend()
        return make_dataset(
            {"corpus": (folder / "train.json", folder)}, CharTokens(), PUBLISHED, frontend, limit
        )

    return read


def worker(folder, _):
    """What a loader's worker reads."""
    read = dataset(folder, _)
    return lambda: list(DataLoader(read(), batch_size=None, num_workers=1))


def batches(folder, _):
    read = dataset(folder, _)
    return lambda limit=1000: make_batch_sampler(read(), limit)


def spans(folder, _):
    good = [Interval(0, 3000, "sad", "NO"), Interval(3000, 6000, "happy", "OH")]
    return lambda known=good, frames=18: interval_spans(known, CharTokens(), PUBLISHED, 320, frames)


def audio(folder, _):
    folder.mkdir()
    soundfile.write(folder / "a.wav", tone(), 16000)
    return lambda: read_audio(folder / "a.wav", 16000)


def recipe(folder, _):
    """A recipe's YAML, its fragments beside it."""
    shutil.copytree(ROOT / "hparams", folder / "hparams")
    (folder / "out").mkdir()  # as the first run leaves it
    path = folder / YAML
    shutil.copytree((ROOT / YAML).parent, path.parent)

    def read(path=path, device=None, text="", **given):
        given = {"data_folder": "corpus", "output_folder": folder / "out", **given}
        lines = "".join(f"{key}: {value}\n" for key, value in given.items() if value != "absent")
        return load_recipe(path, lines + text, device).build()

    return read


def tokens(folder, _):
    (folder / "out").mkdir(parents=True)
    entries = {f"u{i}": GOOD_ENTRY | {"transcript": text} for i, text in enumerate(TRANSCRIPTS)}
    (folder / "train.json").write_text(json.dumps(entries))

    def read(kind="bpe", vocab_size=45):
        options = {"tokens": kind, "vocab_size": vocab_size, "output_folder": folder / "out"}
        options |= {"data_folder": "corpus", "save_folder": folder}
        lines = "".join(f"{key}: {value}\n" for key, value in options.items())
        return make_tokens(
            load_recipe(ROOT / YAML, lines), {"corpus": (folder / "train.json", folder)}
        )

    return read


def pieces(folder, _):
    folder.mkdir()
    train_sentencepiece(TRANSCRIPTS, folder / "pieces.model", 45)
    return lambda: load_sentencepiece(folder / "pieces.model")


def checkpoint(folder, _):
    """Two checkpoints of a small training, of which the last is gone on from."""

    def checkpointer(size):
        model = torch.nn.Linear(size, 2)
        parts = {"model": model, "optimizer": torch.optim.Adam(model.parameters())}
        made = WholeCheckpointer(folder, parts)
        made.add_recoverable(
            "history",
            [],
            custom_save_hook=lambda value, path: path.write_text(json.dumps(value)),
            custom_load_hook=lambda value, path, _: read_json(path),
        )
        return made

    for name in ("1", "2"):
        checkpointer(3).save_checkpoint(name=name)
    return lambda size=3: checkpointer(size).recover_if_possible()


def training(folder, _):
    """The note of what a training was begun with."""
    begun = {
        "data": {"train.json": "0" * 64, "valid.json": "1" * 64},
        "tokens": {"tokens": "char", "vocab_size": 31},
        "features": FbankFrontend(0.04).describe(),
        "model settings": {"model": "ENT", **ENT(31, 320, 1, encoder_dim=16).settings},
    }
    (folder / "CKPT+1").mkdir(parents=True)
    check_begun(folder, begun)
    return lambda **changes: check_begun(folder, {**begun, **changes})


def evaluated(folder, trained):
    """What an evaluation leaves."""
    said = recording(folder, trained)()
    write_json([{"test set": "songs", "WER": 10.0}], folder / "results.json")
    spoken = [Spoken(said, str(folder / "a.wav"), said)] * 2
    write_utterances(spoken, folder / "utterances.jsonl")
    return lambda: write_report(folder, progressbar=False)


def exported(folder, trained):
    export(trained(), folder, 2.5)
    return lambda source=folder: EmotionTransducer.from_hparams(source=source)


def exported_pieces(folder, trained):
    brain = trained()
    brain.tokens = train_sentencepiece(TRANSCRIPTS, folder.parent / "pieces", 31)
    export(brain, folder, 2.5)
    return lambda: EmotionTransducer.from_hparams(source=folder)


def recording(folder, trained):
    loaded = exported(folder / "pretrained", trained)()
    soundfile.write(folder / "a.wav", tone(), 16000)
    return lambda: loaded.annotate_file(folder / "a.wav")


# --- ways to spoil it: each gives a function of the folder, which may return arguments


def all_of(*spoils):
    def spoil(folder):
        for each in spoils:
            each(folder)

    return spoil


def edit(name, old, new):
    def spoil(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return spoil


def put(name, content):
    content = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(content) and None


def remove(name):
    def spoil(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def rename(name, new):
    return lambda folder: (folder / name).rename(folder / new) and None


def cut(name, share):
    def spoil(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return spoil


def sound(name, samples, **settings):
    return lambda folder: soundfile.write(folder / name, samples, 16000, **settings)


def given(**arguments):
    return lambda folder: arguments


def bad_zed(without=(), **changes):
    """ZED.json with a second utterance, ``bad``."""
    entry = {key: value for key, value in zed_entry(**changes).items() if key not in without}
    return put("ZED.json", json.dumps({"good": zed_entry(), "bad": entry}))


def zed_interval(**changes):
    return bad_zed(emotion=[{"emo": "happy", "start": 0.5, "end": 1.5} | changes])


def bad_entry(without=(), **changes):
    """A manifest with a second utterance, ``b``."""
    entry = {k: v for k, v in (GOOD_ENTRY | changes).items() if k not in without}
    return put("train.json", json.dumps({"a": GOOD_ENTRY, "b": entry}))


def nan_at(index, value=np.nan):
    samples = tone()
    samples[index] = value
    return samples


def sentencepiece_of_others(folder):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRANSCRIPTS * 3),
        model_prefix=str(folder / "pieces"),
        model_type="bpe",
        vocab_size=40,
        minloglevel=2,
    )


def other_pieces(folder):
    train_sentencepiece(TRANSCRIPTS, folder / "processor.ckpt", 25)


def linked_to_itself(name):
    def spoil(folder):
        (folder / name).unlink()
        (folder / name).symlink_to(name)

    return spoil


def no_number(folder):
    weights = torch.load(folder / "model.ckpt")
    weights["emotion_joint.output.bias"][0] = np.nan
    torch.save(weights, folder / "model.ckpt")


def more(name, content):
    def spoil(folder):
        with (folder / name).open("a") as file:
            file.write(content)

    return spoil


def linked_out(name):
    def spoil(folder):
        (folder / name).rename(folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")

    return spoil


def frame_probabilities(change):
    """The first utterance of an evaluation with other probabilities of its frames."""

    def spoil(folder):
        path = folder / "utterances.jsonl"
        first, rest = path.read_text().split("\n", 1)
        fields = json.loads(first)
        annotation = fields["annotation"]
        annotation["frame_probabilities"] = change(annotation["frame_probabilities"])
        path.write_text(f"{json.dumps(fields)}\n{rest}")

    return spoil


def move_yaml(folder):
    return {"path": (folder / YAML).rename(folder / "mine.yaml")}


def yaml_of(content):
    def spoil(folder):
        (folder / "a.yaml").write_text(content)
        return {"path": folder / "a.yaml"}

    return spoil


def of_id(name):
    """A manifest with an utterance of this id."""
    return put("train.json", json.dumps({name: GOOD_ENTRY}))


YAML = "recipes/RAVDESS/hparams/ent_fbank.yaml"
NOTHING = "correct {folder}, nothing was written"
EXPORTED_TOKENS = "tokens: !new:ent_brain.tokens.CharTokens\n    normalization: published\n"
NOT_AGAIN = "write {folder}/train.json again with the recipe's preparation"
BEGUN_WITH = "does not say what the training was begun with"
EVALUATE = "give the training's command again, which evaluates once more"
ID = "an id names files: no / \\ or NUL, not . or .., 1 to 200 bytes"
OTHER_FOLDER = "name another output_folder, or remove this one"
ZED_HAS = "not one of happy, angry, sad"
EMOTIONS_ARE = f"{ZED_HAS}, neutral"
SPEAKING = "Ses01F_impro01_F000"
INTERVALS = [
    {"start": 0, "end": 9000, "emotion": "neutral", "transcript": "OH"},
    {"start": 9000, "end": 16000, "emotion": "sad", "transcript": "NO"},
]
UNSET = "lattice_mode: two: choose one, full_t, full_u, mil, aligned, aligned_event, supervised, "
UNSET += "supervised_aligned"
NO_WEIGHTS = "{'rnnt_weight': 0, 'head_weight': 0, 'lattice_weight': 0, 'lm_weight': 0.0, "
NO_WEIGHTS += "'ctc_weight': 0.0}"
BY_WORDS = "raise it, or set lattice_mode mil and lm_weight 0"

REFUSED = {
    # --- IEMOCAP
    "a missing corpus": (
        iemocap,
        all_of(*(remove(f"Session{k}") for k in range(1, 6))),
        "{folder}: neither it nor IEMOCAP_full_release in it has folders Session1 to Session5: set "
        "data_folder to IEMOCAP_full_release or to the folder it lies in",
    ),
    "a missing test session": (
        iemocap,
        rename("Session1", "Session9"),
        "no folder {folder}/Session1, the test session: restore it, or set test_session to one "
        "that is there (Session2, Session3, Session4, Session5)",
    ),
    "missing folders": (
        iemocap,
        all_of(remove("Session2/dialog/transcriptions"), remove("Session2/sentences/wav")),
        "2 problems: no folder {folder}/Session2/dialog/transcriptions; no folder "
        f"{{folder}}/Session2/sentences/wav: {NOTHING}",
    ),
    "no evaluation": (
        iemocap,
        remove(EVALUATION),
        f"no Ses*.txt in {{folder}}/Session1/dialog/EmoEvaluation: {NOTHING}",
    ),
    "an empty evaluation": (
        iemocap,
        put(EVALUATION, ""),
        f"{{folder}}/{EVALUATION}: no utterance line: {NOTHING}",
    ),
    "an evaluation without utterances": (
        iemocap,
        put(EVALUATION, "% [START - END] TURN_NAME EMOTION [V, A, D]\n\nC-E2:\tNeutral;\t()\n"),
        f"{{folder}}/{EVALUATION}: no utterance line: {NOTHING}",
    ),
    "a line of another session": (
        iemocap,
        edit(EVALUATION, "Ses01F_impro01_F001", "Ses02F_impro01_F001"),
        f"{{folder}}/{EVALUATION} line 7: not an utterance of Session1: {NOTHING}",
    ),
    "a line cut off": (
        iemocap,
        edit(EVALUATION, "\tsad\t[2.5000, 2.5, 2.5]", ""),
        f"{{folder}}/{EVALUATION} line 11: not an utterance of Session1: {NOTHING}",
    ),
    "an unknown label": (
        iemocap,
        edit(EVALUATION, "\tsad\t", "\tsda\t"),
        f"{{folder}}/{EVALUATION} line 11: unknown label 'sda': {NOTHING}",
    ),
    "an utterance evaluated twice": (
        iemocap,
        edit(EVALUATION, "Ses01F_impro01_F002", "Ses01F_impro01_F000"),
        f"{SPEAKING}: 2 utterances of this id: {NOTHING}",
    ),
    "an utterance without a transcript": (
        iemocap,
        edit(TRANSCRIPTION, "Ses01F_impro01_F000 [", "F: ["),
        f"{SPEAKING}: no transcript: {NOTHING}",
    ),
    "an utterance transcribed twice": (
        iemocap,
        edit(
            TRANSCRIPTION,
            "M: Uh-huh.",
            "Ses01F_impro01_F000 [000.0000-000.5000]: Another.",
        ),
        f"{SPEAKING}: 2 transcripts: {NOTHING}",
    ),
    "an utterance without a word": (
        iemocap,
        edit(TRANSCRIPTION, "Number 0.", "..."),
        f"{SPEAKING}: no word in the transcript ' ...': {NOTHING}",
    ),
    "an utterance without audio": (
        iemocap,
        remove(f"{WAVS}/{SPEAKING}.wav"),
        f"{SPEAKING}: no audio file {{folder}}/{WAVS}/{SPEAKING}.wav: {NOTHING}",
    ),
    "bytes that are no text": (
        iemocap,
        put(TRANSCRIPTION, b"M: Caf\xe9\n"),
        f"{{folder}}/{TRANSCRIPTION}: byte 6 is not UTF-8 text: restore the file",
    ),
    "several broken utterances": (
        iemocap,
        all_of(
            put("Session2/dialog/EmoEvaluation/Ses02F_impro01.txt", "\n"),
            edit(TRANSCRIPTION, "Ses01F_impro01_F000 [", "F: ["),
            sound(f"{WAVS}/Ses01F_impro01_F002.wav", tone(0)),
            put(f"{WAVS}/Ses01F_impro01_M000.wav", "no audio"),
            sound(f"{WAVS}/Ses01F_impro01_M001.wav", nan_at(5), subtype="FLOAT"),
            remove(f"{WAVS}/Ses01F_impro01_M002.wav"),
        ),
        "6 problems: Ses01F_impro01_F000: no transcript; {folder}/Session2/dialog/EmoEvaluation/"
        "Ses02F_impro01.txt: no utterance line; Ses01F_impro01_F002: no samples in {folder}/"
        f"{WAVS}/Ses01F_impro01_F002.wav; Ses01F_impro01_M000: unreadable audio {{folder}}/{WAVS}/"
        "Ses01F_impro01_M000.wav (Format not recognised); Ses01F_impro01_M001: samples that are no "
        f"sound in {{folder}}/{WAVS}/Ses01F_impro01_M001.wav; and 1 more: {NOTHING}",
    ),
    "a session that there is not": (
        iemocap,
        given(test_session=6),
        "test_session 6: choose 1 to 5, or none for no test session",
    ),
    "a session that is text": (
        iemocap,
        given(test_session="5"),
        "test_session 5: choose 1 to 5, or none for no test session",
    ),
    "all utterances for validation": (
        iemocap,
        given(valid_share=1.0),
        "valid_share 1.0: choose a share above 0 and below 1",
    ),
    "none short enough to train on": (
        iemocap,
        given(max_train_seconds=0.1),
        "train: no utterance: choose splits that have some each, nothing was written",
    ),
    # --- ZED
    "ZED.json is missing": (
        zed,
        remove("ZED.json"),
        "{folder}/ZED.json: No such file or directory: set zed_folder to the folder that ZED.json "
        "lies in, unchanged",
    ),
    **{
        f"ZED.json is {name}": (
            zed,
            put("ZED.json", content),
            f"{{folder}}/ZED.json: {reason}: set zed_folder to the folder that ZED.json lies in, "
            "unchanged",
        )
        for name, content, reason in (
            ("empty", "", "not JSON (Expecting value: line 1 column 1 (char 0))"),
            ("a list", "[]", "not a JSON object of utterances by id"),
            ("of lists", '{"a": []}', "not a JSON object of utterances by id"),
            ("in Latin-1", b'{"Caf\xe9": {}}', "byte 5 is not UTF-8 text"),
            ("nested too deeply", "[" * 100_000, "not JSON (nested too deeply)"),
            ("of one utterance twice", '{"a": {}, "a": {}}', "a is there more than once"),
            ("of two wavs", '{"a": {"wav": "1", "wav": "2"}}', "wav is there more than once"),
        )
    },
    "ZED.json without an utterance": (
        zed,
        put("ZED.json", "{}"),
        "zed: no utterance: choose splits that have some each, nothing was written",
    ),
    **{
        f"ZED {name}": (zed, spoil, f"bad: {reason}: {NOTHING}")
        for name, spoil, reason in (
            ("without wav", bad_zed(["wav"]), "no wav in ZED.json"),
            ("without duration", bad_zed(["duration"]), "no duration in ZED.json"),
            (
                "without two keys",
                bad_zed(["emotion", "transcription"]),
                "no emotion and no transcription in ZED.json",
            ),
            ("glad", zed_interval(emo="glad"), f"unknown emotion 'glad', {ZED_HAS}"),
            ("two at once", zed_interval(emo=["sad"]), f"unknown emotion ['sad'], {ZED_HAS}"),
            ("no interval", bad_zed(emotion=[]), "emotion is not a list of one interval"),
            (
                "several intervals",
                bad_zed(emotion=zed_entry()["emotion"] * 2),
                "emotion is not a list of one interval",
            ),
            ("no times", bad_zed(emotion="sad"), "emotion is not a list of one interval"),
            (
                "no start and end",
                bad_zed(emotion=[{"emo": "sad"}]),
                "no start and no end in the interval",
            ),
            (
                "start after end",
                zed_interval(start=1.5, end=0.5),
                "segment 1.50-0.50 happy must lie between 0.00 and 2.00 s: sort the segments and "
                "remove empty ones and overlaps",
            ),
            (
                "start at end",
                zed_interval(start=1.0, end=1.0),
                "segment 1.00-1.00 happy must lie between 0.00 and 2.00 s: sort the segments and "
                "remove empty ones and overlaps",
            ),
            (
                "start before 0",
                zed_interval(start=-0.5),
                "segment -0.50-1.50 happy must lie between 0.00 and 2.00 s: sort the segments and "
                "remove empty ones and overlaps",
            ),
            (
                "an interval beyond the duration",
                zed_interval(end=3.0),
                "segment 0.50-3.00 happy must lie between 0.00 and 2.00 s: sort the segments and "
                "remove empty ones and overlaps",
            ),
            (
                "start as text",
                zed_interval(start="0"),
                "interval from '0' to 1.5 is not in seconds",
            ),
            (
                "end no number",
                zed_interval(end=float("nan")),
                "interval from 0.5 to nan is not in seconds",
            ),
            ("end true", zed_interval(end=True), "interval from 0.5 to True is not in seconds"),
            (
                "start of 400 digits",
                zed_interval(start=10**400),
                f"interval from {10**400} to 1.5 is not in seconds",
            ),
            ("duration as text", bad_zed(duration="2 s"), "duration '2 s' is not in seconds"),
            ("duration 0", bad_zed(duration=0), "duration 0 is not in seconds"),
            (
                "another duration",
                bad_zed(duration=2.2),
                "2.00 s of audio, 2.20 s by the corpus's own account",
            ),
            (
                "duration of less than a sample",
                bad_zed(duration=1e-77),
                "2.00 s of audio, 0.00 s by the corpus's own account",
            ),
            ("no text", bad_zed(transcription=None), "transcription None is no text"),
            ("no word", bad_zed(transcription="..."), "no word in the transcript '...'"),
            (
                "a wav elsewhere",
                bad_zed(wav="wav/a.wav"),
                "wav 'wav/a.wav' is not a path inside datafolder/",
            ),
            (
                "no wav",
                bad_zed(wav="datafolder"),
                "wav 'datafolder' is not a path inside datafolder/",
            ),
            ("a number as wav", bad_zed(wav=3), "wav 3 is not a path inside datafolder/"),
            (
                "a wav of the machine",
                bad_zed(wav="/wav/a.wav"),
                "wav '/wav/a.wav' is not a path inside datafolder/",
            ),
            (
                "a wav above the folder",
                bad_zed(wav="datafolder/wav/../../a.wav"),
                "wav 'datafolder/wav/../../a.wav' is not a path inside datafolder/",
            ),
        )
    },
    **{
        f"ZED's {name}": (
            zed,
            bad_zed(wav=f"datafolder/{wav}"),
            f"1 of 2 recordings missing: {{folder}}/{shown}: {NOTHING}",
        )
        for name, wav, shown in (
            ("wav with a zero byte", "a\0.wav", "a\\x00.wav"),
            ("wav that is not there", "b.wav", "b.wav"),
        )
    },
    "ZED with several broken utterances": (
        zed,
        put(
            "ZED.json",
            json.dumps(
                {
                    "u1": {k: v for k, v in zed_entry().items() if k != "wav"},
                    "u2": zed_entry(emotion=[{"emo": "glad", "start": 0, "end": 1}]),
                    "u3": zed_entry(duration=9),
                }
            ),
        ),
        f"3 problems: u1: no wav in ZED.json; u2: unknown emotion 'glad', {ZED_HAS}; u3: "
        f"2.00 s of audio, 9.00 s by the corpus's own account: {NOTHING}",
    ),
    # --- RAVDESS
    "RAVDESS without actors": (
        ravdess,
        all_of(*(remove(f"Actor_0{k}") for k in (1, 2, 3))),
        "{folder}: no folders Actor_01 to Actor_24 in it: set data_folder to the folder of "
        "Audio_Speech_Actors_01-24.zip, unpacked, or of its recordings, with their names, in "
        "any format of sound",
    ),
    "a missing actor and an empty recording": (
        ravdess,
        all_of(remove("Actor_03"), sound("Actor_01/03-01-05-01-02-01-01.wav", tone(0))),
        "2 problems: {folder}: no recordings of Actor_03, whom test_actors names; "
        "03-01-05-01-02-01-01: no samples in "
        f"{{folder}}/Actor_01/03-01-05-01-02-01-01.wav: {NOTHING}",
    ),
    **{
        f"a recording named {name}": (
            ravdess,
            sound(f"Actor_01/{name}", tone()),
            f"{{folder}}/Actor_01/{name}: not named as a recording of Actor_01: {NOTHING}",
        )
        for name in (
            "03-01-05-01-01-01-02.wav",
            "03-01-09-01-01-01-01.wav",
            "03-01-05-01-03-01-01.wav",
            "angry.flac",
        )
    },
    "a recording in two formats": (
        ravdess,
        sound("Actor_01/03-01-05-01-02-01-01.flac", tone()),
        f"03-01-05-01-02-01-01: 2 utterances of this id: {NOTHING}",
    ),
    "impossible actors": (
        ravdess,
        given(test_actors=[0, 7], valid_actors=[7, 8]),
        "2 problems: actor 0 is not one of 1 to 24; actor 7 is named 2 times: correct test_actors "
        "and valid_actors",
    ),
    "actors that are no list": (
        ravdess,
        given(test_actors=3),
        "test_actors 3, valid_actors [2]: give lists, as [19, 20]",
    ),
    "a split without actors": (
        ravdess,
        given(valid_actors=[]),
        "valid: no utterance: choose splits that have some each, nothing was written",
    ),
    # --- what any corpus says of an utterance, and its audio
    **{
        name: (utterance, spoil, f"a: {reason}: {NOTHING}")
        for name, spoil, reason in (
            (
                "an unknown emotion",
                given(emotion="calm"),
                f"unknown emotion 'calm', {EMOTIONS_ARE}",
            ),
            (
                "neither transcript nor emotion",
                given(transcript=None, emotion=None),
                "neither transcript nor emotion",
            ),
            (
                "an unknown emotion of a segment",
                given(segments=(Segment(0, 1, "glad"),)),
                f"unknown emotion 'glad', {EMOTIONS_ARE}",
            ),
            (
                "a segment that starts at no number",
                given(segments=(Segment(float("nan"), 0.5, "sad"),)),
                "segment nan-0.50 sad must lie between 0.00 and 1.00 s: sort the segments and "
                "remove empty ones and overlaps",
            ),
            (
                "another length than the corpus says",
                given(samples=17601),
                "1.00 s of audio, 1.10 s by the corpus's own account",
            ),
            (
                "audio of another kind",
                put("a.wav", "no audio at all"),
                "unreadable audio {folder}/a.wav (Format not recognised)",
            ),
            (
                "audio of no byte",
                put("a.wav", ""),
                "unreadable audio {folder}/a.wav (Format not recognised)",
            ),
            ("audio of no sample", sound("a.wav", tone(0)), "no samples in {folder}/a.wav"),
            (
                "a truncated header",
                cut("a.wav", 20 / 32044),
                "unreadable audio {folder}/a.wav (Error in WAV/W64/RF64 file. Malformed 'fmt ' "
                "chunk)",
            ),
            ("truncated samples", cut("a.wav", 0.5), "0.50 of 1.00 s of audio in {folder}/a.wav"),
            (
                "truncated FLAC",
                all_of(sound("a.wav", tone(9.0), format="FLAC"), cut("a.wav", 0.5)),
                "unreadable audio {folder}/a.wav (Error : flac decoder lost sync)",
            ),
            (
                "a sample that is not a number",
                sound("a.wav", nan_at(15999), subtype="FLOAT"),
                "samples that are no sound in {folder}/a.wav",
            ),
            (
                "an infinite sample",
                sound("a.wav", nan_at(0, np.inf), subtype="DOUBLE"),
                "samples that are no sound in {folder}/a.wav",
            ),
            (
                "a sample beyond any sound",
                sound("a.wav", nan_at(0, 1e18), subtype="FLOAT"),
                "samples that are no sound in {folder}/a.wav",
            ),
            (
                "a folder as audio",
                all_of(remove("a.wav"), lambda f: (f / "a.wav").mkdir()),
                "no audio file {folder}/a.wav",
            ),
        )
    },
    "raw samples": (
        utterance,
        lambda folder: {"wav": (folder / "a.wav").rename(folder / "a.raw")},
        f"a: unreadable audio {{folder}}/a.raw (raw samples, without a rate): {NOTHING}",
    ),
    "an id in another folder": (utterance, given(id="../b"), f"../b: {ID}: {NOTHING}"),
    "a link to nowhere": (
        utterance,
        all_of(remove("a.wav"), lambda folder: (folder / "a.wav").symlink_to("nowhere")),
        f"a: no audio file {{folder}}/a.wav: {NOTHING}",
    ),
    "a split without utterances": (
        splits,
        given(valid=[]),
        "valid: no utterance: choose splits that have some each, nothing was written",
    ),
    # --- audio, where it is read without preparation
    **{
        f"{name}, read": (audio, spoil, f"{{folder}}/a.wav: {reason}")
        for name, spoil, reason in (
            ("audio of no sample", sound("a.wav", tone(0)), "holds no audio: replace or remove it"),
            (
                "audio of no byte",
                put("a.wav", ""),
                "cannot be read as audio (Format not recognised): replace it",
            ),
            (
                "audio of another kind",
                put("a.wav", "RIFF and no more"),
                "cannot be read as audio (Format not recognised): replace it",
            ),
            (
                "audio that is not there",
                remove("a.wav"),
                "no such file: check the path",
            ),
            (
                "a sample that is not a number",
                sound("a.wav", nan_at(8000), subtype="FLOAT"),
                "holds samples that are no sound: replace it",
            ),
            (
                "a sample beyond any sound",
                sound("a.wav", nan_at(3, -1e18), subtype="FLOAT"),
                "holds samples that are no sound: replace it",
            ),
            (
                "an infinite sample of 8 channels",
                sound("a.wav", np.stack([tone()] * 7 + [nan_at(3, -np.inf)], 1), subtype="FLOAT"),
                "holds samples that are no sound: replace it",
            ),
        )
    },
    "audio of a rate that no sound has, read": (
        audio,
        lambda folder: soundfile.write(folder / "a.wav", tone(), 2**30),
        f"{2**30} samples a second in {{folder}}/a.wav: replace it",
    ),
    **{
        f"{name}, heard": (recording, spoil, f"{{folder}}/a.wav: {reason}")
        for name, spoil, reason in (
            ("audio of no sample", sound("a.wav", tone(0)), "holds no audio: replace or remove it"),
            (
                "a sample that is not a number",
                sound("a.wav", nan_at(8), subtype="FLOAT"),
                "holds samples that are no sound: replace it",
            ),
        )
    },
    "a rate of no sound, heard": (
        recording,
        lambda folder: soundfile.write(folder / "a.wav", tone(), 2**30),
        f"{2**30} samples a second in {{folder}}/a.wav: replace it",
    ),
    **{
        f"{name}, read by a loader's worker": (worker, spoil, f"{{folder}}/a.wav: {reason}")
        for name, spoil, reason in (
            ("audio of no sample", sound("a.wav", tone(0)), "holds no audio: replace or remove it"),
            (
                "audio of another kind",
                put("a.wav", "no audio at all"),
                "cannot be read as audio (Format not recognised): replace it",
            ),
        )
    },
    # --- manifests
    **{
        f"a manifest with the id {name[:9]!r}": (
            manifest,
            of_id(name),
            f"{said}: {ID}: {NOT_AGAIN}",
        )
        for name, said in (
            *((name, name) for name in ("../../evil", "/a", "a\\b", ".", "..", "", "\u00e9" * 101)),
            ("a\0b", "a\\x00b"),
        )
    },
    **{
        f"a manifest {name}": (manifest, spoil, f"{{folder}}/train.json: {reason}: {NOT_AGAIN}")
        for name, spoil, reason in (
            ("that is not there", remove("train.json"), "No such file or directory"),
            ("that is no text", put("train.json", b"\xff\xfe\xff"), "byte 0 is not UTF-8 text"),
            (
                "cut off",
                cut("train.json", 1 / 60),
                "not JSON (Expecting property name enclosed in double quotes: line 1 column 2 "
                "(char 1))",
            ),
            ("of a list", put("train.json", "[]"), "not a JSON object of utterances by id"),
            ("of nothing", put("train.json", "{}"), "no utterance"),
            ("of numbers", put("train.json", '{"a": 1}'), "not a JSON object of utterances by id"),
            (
                "of one utterance twice",
                put("train.json", '{"a": {}, "a": {}}'),
                "a is there more than once",
            ),
        )
    },
    **{
        f"an entry {name}": (manifest, spoil, f"b: {reason}: {NOT_AGAIN}")
        for name, spoil, reason in (
            ("without an emotion", bad_entry(["emotion"]), "no emotion"),
            (
                "of neither transcript nor emotion",
                bad_entry(transcript=None, emotion=None),
                "neither transcript nor emotion",
            ),
            (
                "of an unknown emotion",
                bad_entry(emotion="calm"),
                f"unknown emotion 'calm', {EMOTIONS_ARE}",
            ),
            ("of no duration", bad_entry(duration=0), "duration 0 is not in seconds"),
            ("of a duration as text", bad_entry(duration="1"), "duration '1' is not in seconds"),
            (
                "of an infinite duration",
                bad_entry(duration=float("inf")),
                "duration inf is not in seconds",
            ),
            ("of a number as transcript", bad_entry(transcript=3), "transcript 3 is no text"),
            (
                "without a word",
                bad_entry(transcript="--"),
                "transcript '--' is not normalised",
            ),
            ("of no path", bad_entry(wav=None), "wav None is no text"),
            ("of no speaker", bad_entry(speaker=7), "speaker 7 is no text"),
            ("of a number as wav", bad_entry(wav=3), "wav 3 is no text"),
            (
                "of audio elsewhere",
                bad_entry(wav="/etc/a.wav"),
                "wav '/etc/a.wav' is not a path inside {data_root}/",
            ),
            (
                "of audio above its folder",
                bad_entry(wav="{data_root}/b/../../a.wav"),
                "wav '{data_root}/b/../../a.wav' is not a path inside {data_root}/",
            ),
            (
                "of half a segment",
                bad_entry(segments=[{"start": 0}]),
                "segments are not a list of start, end, emotion each",
            ),
            (
                "of segments by name",
                bad_entry(segments={"start": 0}),
                "segments are not a list of start, end, emotion each",
            ),
            (
                "of a segment beyond its end",
                bad_entry(segments=[{"start": 0.5, "end": 2, "emotion": "sad"}]),
                "segment 0.50-2.00 sad must lie between 0.00 and 1.00 s: sort the segments and "
                "remove empty ones and overlaps",
            ),
            (
                "of overlapping intervals",
                bad_entry(
                    transcript="OH NO", intervals=[INTERVALS[0] | {"end": 9001}, INTERVALS[1]]
                ),
                "interval of samples 9000 to 16000 (sad): it must begin at 9001 and not be empty",
            ),
            (
                "of a gap between intervals",
                bad_entry(
                    transcript="OH NO", intervals=[INTERVALS[0] | {"end": 8999}, INTERVALS[1]]
                ),
                "interval of samples 9000 to 16000 (sad): it must begin at 8999 and not be empty",
            ),
            (
                "of intervals that end early",
                bad_entry(transcript="OH", intervals=INTERVALS[:1]),
                "intervals end at sample 9000, the utterance at 16000",
            ),
            (
                "of intervals with other words",
                bad_entry(transcript="OH YES", intervals=INTERVALS),
                "the intervals' words 'OH NO' are not the transcript 'OH YES'",
            ),
            (
                "of an interval without a word",
                bad_entry(transcript="OH", intervals=[INTERVALS[0] | {"transcript": ""}]),
                "interval of samples 0 to 9000 (neutral): no word in it",
            ),
            (
                "of an interval of an unknown emotion",
                bad_entry(transcript="OH", intervals=[INTERVALS[0] | {"emotion": "calm"}]),
                f"interval of samples 0 to 9000 (calm): unknown emotion, {EMOTIONS_ARE}",
            ),
            (
                "of an interval in seconds",
                bad_entry(transcript="OH", intervals=[INTERVALS[0] | {"end": 1.0}]),
                "intervals are not a list of start, end, emotion, transcript each",
            ),
        )
    },
    # --- what does not fit a model
    "transcripts longer than their audio": (
        dataset,
        put(
            "train.json",
            json.dumps(
                {
                    "short": GOOD_ENTRY | {"duration": 0.1, "transcript": "MUCH TOO LONG"},
                    "good": GOOD_ENTRY,
                    "other": GOOD_ENTRY | {"duration": 0.2, "transcript": "ALSO TOO LONG"},
                }
            ),
        ),
        "2 problems: short: 13 tokens in 6 frames; other: 13 tokens in 11 frames: correct or "
        "remove these utterances of {folder}/train.json, or raise max_tokens_per_frame",
    ),
    "an interval without a frame": (
        spans,
        given(
            known=[Interval(0, 3000, "sad", "NO"), Interval(3000, 3100, "happy", "OH")], frames=9
        ),
        "interval of samples 3000 to 3100: no frame",
    ),
    "no room for a lattice": (
        batches,
        given(limit=0),
        "max_batch_nodes: 0: above 0, or null for batch_size",
    ),
    # --- YAML
    "a YAML that is not there": (
        recipe,
        given(path=Path("no.yaml")),
        "no.yaml: no such YAML: name one of the recipe's hparams folder",
    ),
    **{
        f"a YAML of {name}": (recipe, yaml_of(content), f"{{folder}}/a.yaml: {reason}")
        for name, content, reason in (
            ("nothing", "", "not a YAML of keys and values"),
            ("a list", "- a\n- b\n", "not a YAML of keys and values"),
            ("words", "just words", "not a YAML of keys and values"),
            (
                "half a list",
                "lr: [1\n",
                'not YAML (while parsing a flow sequence in "<unicode string>", line 1, column 5: '
                "lr: [1 ^ expected ',' or ']', but got '<stream end>' in \"<unicode string>\", "
                "line 2, column 1: ^)",
            ),
            ("many lists", "lr: " + "[" * 3000, "not YAML (nested too deeply)"),
            ("a list as key", "[1, 2]: 3\n", "not a YAML of keys and values"),
        )
    },
    "a YAML in Latin-1": (
        recipe,
        put(YAML, b"lr: caf\xe9\n"),
        f"{{folder}}/{YAML}: byte 7 is not UTF-8 text: save it as UTF-8",
    ),
    "a YAML without a loss": (
        recipe,
        edit(YAML, "\nrnnt_weight: 0.5", ""),
        f"{{folder}}/{YAML}: no key 'rnnt_weight': take it from the recipe's own YAML",
    ),
    "a key given twice under an include": (
        recipe,
        edit(YAML, "    weight_decay: !ref", "    lr: 1\n    weight_decay: !ref"),
        f"{{folder}}/{YAML}: lr is given 2 times: keep one of them",
    ),
    "a batch of none in a YAML": (
        recipe,
        edit(YAML, "    batch_size: 32", "    batch_size: 0"),
        "test_dataloader_opts[batch_size]: 0: give a whole number above 0",
    ),
    "a class that there is not": (
        recipe,
        edit(YAML, "!new:ent_brain.model.ENT", "!new:ent_brain.model.TNE"),
        f"{{folder}}/{YAML}: There is no such class as ent_brain.model.TNE",
    ),
    "a YAML away from its fragments": (
        recipe,
        move_yaml,
        "2 problems: {folder}/mine.yaml: includes {folder}/../../../hparams/fbank.yaml, which is "
        "not there; {folder}/mine.yaml: includes {folder}/../../../hparams/adamw.yaml, which is "
        "not there: correct the key or remove it",
    ),
    "a key given twice": (
        recipe,
        edit(YAML, "\nlr:", "\nseed: 43\nlr:"),
        f"{{folder}}/{YAML}: seed is given 2 times: keep one of them",
    ),
    "unknown keys": (
        recipe,
        edit(YAML, "\nlr:", "\nleraning_rate: 3\nbatchsize: 2\nlr:"),
        f"2 problems: {{folder}}/{YAML}: nothing reads the key 'leraning_rate'; {{folder}}/{YAML}: "
        "nothing reads the key 'batchsize': correct the key or remove it",
    ),
    "an unknown key under an include": (
        recipe,
        edit(YAML, "    weight_decay: !ref", "    start_rl: 0.1\n    weight_decay: !ref"),
        "{folder}/recipes/RAVDESS/hparams/../../../hparams/adamw.yaml: has no key 'start_rl': "
        "correct the key or remove it",
    ),
    "a missing placeholder": (
        recipe,
        given(data_folder="absent"),
        f"{{folder}}/{YAML}: 'data_folder' is a !PLACEHOLDER and must be replaced.",
    ),
    "an option given twice": (
        recipe,
        given(text="lr: 1\nlr: 2\n"),
        "command line: lr is given 2 times: keep one of them",
    ),
    "a part of an option given twice": (
        recipe,
        given(test_dataloader_opts="{batch_size: 1, batch_size: 2}"),
        "command line: batch_size is given 2 times: keep one of them",
    ),
    "an option nested too deeply": (
        recipe,
        given(test_actors="[" * 3000),
        "command line: not YAML (nested too deeply)",
    ),
    "an option of a day that there is not": (
        recipe,
        given(tokens="2024-13-45"),
        "command line: not YAML (month must be in 1..12)",
    ),
    "a number as option": (
        recipe,
        given(text="5: 3\n"),
        "--5: no such option: correct the option or remove it",
    ),
    **{
        f"{key} {value}": (recipe, given(**{key: value}), message)
        for key, value, message in (
            ("test_actors", "[[1]]", "test_actors[0]: [1]: give a whole number from 0"),
            (
                "test_dataloader_opts",
                "{batch_size: 0}",
                "test_dataloader_opts[batch_size]: 0: give a whole number above 0",
            ),
            (
                "train_dataloader_opts",  # where the YAML refers to another key
                "{batch_size: 0}",
                "train_dataloader_opts[batch_size]: 0: give a whole number above 0",
            ),
            (
                "epoch_counter",
                "{limit: 0}",
                "epoch_counter[limit]: 0: give a whole number above 0",
            ),
            (
                "test_dataloader_opts",
                "{batch_sise: 2}",
                "test_dataloader_opts: has no key 'batch_sise': correct the key or remove it",
            ),
        )
    },
    "an unknown option": (
        recipe,
        given(xyz=3),
        "--xyz: no such option: correct the option or remove it",
    ),
    "misspelt options": (
        recipe,
        given(batchsize=3, lattice_weigth=1),
        "2 problems: --batchsize: no such option (--batch_size is near); --lattice_weigth: no such "
        "option (--lattice_weight is near): correct the option or remove it",
    ),
    **{
        f"{key} {value}": (recipe, given(**{key: value}), f"{key}: {said}: {remedy}")
        for key, value, said, remedy in (
            ("lr", "abc", "abc", "give a number above 0"),
            ("lr", -1, "-1", "give a number above 0"),
            ("lr", True, "True", "give a number above 0"),
            ("lr", "null", "null", "give a number above 0"),
            ("batch_size", 0, "0", "give a whole number above 0"),
            ("batch_size", 1.5, "1.5", "give a whole number above 0"),
            ("number_of_epochs", "abc", "abc", "give a whole number above 0"),
            ("warmup_epochs", -1, "-1", "give a whole number from 0"),
            ("head_weight", -0.5, "-0.5", "give a number from 0"),
            ("head_weight", ".nan", "nan", "give a number from 0"),
            ("head_weight", ".inf", "inf", "give a number from 0"),
            ("aligned_top", 1.2, "1.2", "give a number above 0 to 1"),
            ("aligned_seconds", "1e300", "1e+300", "give a number above 0 to 3600"),
            ("segment_seconds", "1e17", "1e+17", "give a number above 0 to 3600"),
            ("beam_size", 99999999, "99999999", "give a whole number above 0 to 1000"),
            ("paper_protocol", 1, "1", "give True or False"),
            ("lr", "[1]", "[1]", "give a number above 0"),
            ("data_folder", 2024, "2024", "give text"),
            ("data_folder", "null", "null", "give text"),
            ("output_folder", 5, "5", "give text"),
            ("tokens", "[char]", "['char']", "give text"),
            ("test_actors", 3, "3", "give a list, as [1, 2]"),
            ("model", 5, "5", "give keys and values, as {vocab_size: ...}"),
            ("epoch_counter", "null", "null", "give keys and values, as {limit: ...}"),
            ("opt_class", 5, "5", "the YAML makes it: change it there"),
            (
                "segment_decoding",
                "mode",
                "mode",
                "choose argmax, median, min_duration, single_event, lasting_event",
            ),
        )
    },
    "lattice_mode two": (recipe, given(lattice_mode="two"), UNSET),
    "encoder_dim 15": (
        recipe,
        given(encoder_dim=15),
        f"{{folder}}/{YAML}: encoder_dim: 15: give an even number, of two directions",
    ),
    "two wrong values": (
        recipe,
        given(lr="high", seed=0.5),
        "seed: 0.5: give a whole number from 0; lr: high: give a number above 0",
    ),
    "all weights 0": (
        recipe,
        given(rnnt_weight=0, head_weight=0, lattice_weight=0),
        f"{{folder}}/{YAML}: loss weights {NO_WEIGHTS}: one must lie above 0",
    ),
    "an aligned loss without words": (
        recipe,
        given(rnnt_weight=0, lattice_mode="aligned"),
        "rnnt_weight: 0: nothing is transcribed then, so lattice_mode aligned and lm_weight have "
        f"nothing to go by: {BY_WORDS}",
    ),
    "a language model without words": (
        recipe,
        given(rnnt_weight=0, lattice_mode="mil", lm_weight=0.3),
        "rnnt_weight: 0: nothing is transcribed then, so lattice_mode mil and lm_weight have "
        f"nothing to go by: {BY_WORDS}",
    ),
    "shortest first, of like length": (
        recipe,
        lambda folder: {
            "path": folder / YAML.replace("ent_fbank", "ent_mix"),
            "curriculum_epochs": 1,
            "max_batch_nodes": 1000,
        },
        "curriculum_epochs: max_batch_nodes has an order of its own: set the one to 0 or the other "
        "to null",
    ),
    "frames of 25 ms": (
        recipe,
        given(frame_duration=0.025),
        f"{{folder}}/{YAML}: frame_duration 0.025 is not a whole number of 10 ms",
    ),
    # --- tokens
    "too few sentences for the vocabulary": (
        tokens,
        given(vocab_size=5000),
        "{folder}/bpe5000_909e85a46bf6.model: 5000 tokens cannot be learnt from these transcripts "
        "(they give 105 at most): change vocab_size",
    ),
    "a vocabulary of less than the characters": (
        tokens,
        given(vocab_size=20),
        "{folder}/bpe20_909e85a46bf6.model: 20 tokens cannot be learnt from these transcripts "
        "(their characters alone are 23): change vocab_size",
    ),
    "another number of characters": (
        tokens,
        given(kind="char", vocab_size=5000),
        "vocab_size: 5000: char tokens are 31: correct it",
    ),
    "unknown tokens": (
        tokens,
        given(kind="words"),
        "tokens: 'words': choose char, characters or bpe",
    ),
    **{
        f"a model of pieces {name}": (
            pieces,
            spoil,
            "{folder}/pieces.model: not a SentencePiece model: train one first",
        )
        for name, spoil in (
            ("that is not there", remove("pieces.model")),
            ("that is empty", put("pieces.model", "")),
            ("that is none", put("pieces.model", "no model")),
            ("that is cut off", cut("pieces.model", 0.5)),
        )
    },
    "a model of pieces with other ids": (
        pieces,
        sentencepiece_of_others,
        "{folder}/pieces.model: <blank> is not 0 or <unk> is not 1: train the model with "
        "ent_brain.tokens.train_sentencepiece",
    ),
    # --- checkpoints
    **{
        f"a checkpoint's {name}": (
            checkpoint,
            spoil,
            f"{{folder}}/CKPT+2/{file}: damaged ({kind}): remove the folder {{folder}}/CKPT+2 and "
            "start again: the run goes on from the checkpoint before, or from the beginning",
        )
        for name, file, spoil, kind in (
            ("weights cut off", "model.ckpt", cut("CKPT+2/model.ckpt", 0.5), "RuntimeError"),
            ("weights empty", "model.ckpt", put("CKPT+2/model.ckpt", ""), "EOFError"),
            (
                "optimiser cut off",
                "optimizer.ckpt",
                cut("CKPT+2/optimizer.ckpt", 0.9),
                "RuntimeError",
            ),
            ("history cut off", "history.ckpt", cut("CKPT+2/history.ckpt", 0.5), "JSONDecodeError"),
            ("page empty", "CKPT.yaml", put("CKPT+2/CKPT.yaml", ""), "AttributeError"),
            ("page cut off", "CKPT.yaml", cut("CKPT+2/CKPT.yaml", 0.6), "ValueError"),
        )
    },
    "a checkpoint of another model": (
        checkpoint,
        given(size=4),
        "{folder}/CKPT+2/model.ckpt: of another model than this one: give the settings that the "
        "training was begun with, or name another output_folder",
    ),
    **{
        f"a training begun with other {name}": (
            training,
            spoil,
            f"{{folder}}: the training in it was begun with other {what}: {OTHER_FOLDER}",
        )
        for name, spoil, what in (
            (
                "data",
                given(data={"train.json": "0" * 64, "valid.json": "2" * 64}),
                "data (valid.json)",
            ),
            (
                "tokens",
                given(tokens={"tokens": "bpe", "vocab_size": 31}),
                "tokens (tokens was char)",
            ),
            (
                "frames",
                given(features=FbankFrontend(0.02).describe()),
                "features (frame_duration was 0.04)",
            ),
            (
                "sizes",
                given(
                    **{
                        "model settings": {
                            "model": "FENT",
                            **FENT(31, 320, 1, encoder_dim=8).settings,
                        }
                    }
                ),
                "model settings (encoder_dim was 16, model was ENT)",
            ),
        )
    },
    **{
        f"a training's note {name}": (
            training,
            spoil,
            f"{{folder}}/trained_on.json: {reason}: {OTHER_FOLDER}",
        )
        for name, spoil, reason in (
            ("cut off", cut("trained_on.json", 0.5), "damaged (JSONDecodeError)"),
            ("of a list", put("trained_on.json", "[]"), BEGUN_WITH),
            ("of numbers", put("trained_on.json", '{"data": 1}'), BEGUN_WITH),
        )
    },
    # --- evaluations
    **{
        f"an evaluation with {name}": (evaluated, spoil, f"{{folder}}/{reason}: {EVALUATE}")
        for name, spoil, reason in (
            (
                "results cut off",
                cut("results.json", 0.5),
                "results.json: damaged (JSONDecodeError)",
            ),
            ("a number as result", put("results.json", "[1]"), "results.json: no rows of test set"),
            ("no result", put("results.json", "[]"), "results.json: no rows of test set"),
            ("no utterance", put("utterances.jsonl", ""), "utterances.jsonl: no utterance"),
            (
                "utterances cut off",
                cut("utterances.jsonl", 0.9),
                "utterances.jsonl line 2: damaged (JSONDecodeError)",
            ),
            (
                "a number as utterance",
                put("utterances.jsonl", "1\n"),
                "utterances.jsonl line 1: damaged (TypeError)",
            ),
            (
                "half an utterance",
                put("utterances.jsonl", '{"annotation": {}, "reference": null}\n'),
                "utterances.jsonl line 1: damaged (KeyError)",
            ),
        )
    },
    **{
        f"an evaluation with {old} as {new}": (
            evaluated,
            edit("utterances.jsonl", f'"{key}": {old}', f'"{key}": {new}'),
            f"{{folder}}/utterances.jsonl line 1: damaged ({error}): {EVALUATE}",
        )
        for key, old, new, error in (
            ("audio", '"', '3, "strange": "', "TypeError"),
            ("test_set", '""', "[]", "TypeError"),
            ("rates", "{}", "null", "TypeError"),
            ("rates", "{}", '{"WER": "10"}', "TypeError"),
            ("rates", "{}", '{"WER": NaN}', "ValueError"),
            ("name", '"a"', "5", "TypeError"),
            ("name", '"a"', '"\\ud800"', "UnicodeEncodeError"),
            ("rates", "{}", '{"WER": 1e999}', "ValueError"),
            ("test_set", '""', '"\\ud800"', "UnicodeEncodeError"),
            ("duration", "1.0", "Infinity", "ValueError"),
            ("duration", "1.0", "true", "TypeError"),
            ("frame_duration", "0.04", "null", "TypeError"),
            (
                "segments",
                "[{",
                '[{"start": 0.0, "end": 1.0, "emotion": null}, {',
                "TypeError",
            ),
            ("emotion", '"', '"calm", "text": "', "ValueError"),
        )
    },
    **{
        f"an evaluation with frame probabilities {name}": (
            evaluated,
            frame_probabilities(change),
            f"{{folder}}/utterances.jsonl line 1: damaged ({error}): {EVALUATE}",
        )
        for name, change, error in (
            ("of text", lambda p: {**p, "sad": ["0.1"] * len(p["sad"])}, "TypeError"),
            ("above 1", lambda p: {**p, "sad": [1e300] * len(p["sad"])}, "ValueError"),
            ("of fewer frames", lambda p: {**p, "sad": p["sad"][1:]}, "ValueError"),
            ("of three emotions", lambda p: {k: p[k] for k in p if k != "sad"}, "ValueError"),
            ("without emotions", lambda p: list(p.values()), "ValueError"),
            ("of a number", lambda p: {**p, "sad": 0.1}, "TypeError"),
        )
    },
    # --- exported models
    "a model that is not there": (
        exported,
        remove(""),
        "{folder}: no folder: name the one that training left as `pretrained`, or owner/name of a "
        "model on the Hugging Face hub",
    ),
    "a model without weights": (
        exported,
        remove("model.ckpt"),
        "{folder}/model.ckpt: missing: export or fetch again",
    ),
    "a model without any file": (
        exported,
        all_of(remove("model.ckpt"), remove("hyperparams.yaml")),
        "{folder}/hyperparams.yaml: no such file: name a folder that training left as `pretrained`",
    ),
    **{
        f"a model's YAML of {name}": (
            exported,
            put("hyperparams.yaml", content),
            f"{{folder}}/hyperparams.yaml: {reason}: export again",
        )
        for name, content, reason in (
            ("nothing", "", "not a YAML of keys and values"),
            ("a list", "- a list", "not a YAML of keys and values"),
            (
                "half a list",
                "a: [",
                "cannot be read (while parsing a flow node expected the node content, but found "
                "'<stream end>' in \"<unicode string>\", line 1, column 5: a: [ ^)",
            ),
            (
                "no text",
                b"\xff\xfe\xff",
                "cannot be read ('utf-8' codec can't decode byte 0xff in position 0: invalid start "
                "byte)",
            ),
        )
    },
    "a model's weights cut off": (
        exported,
        cut("model.ckpt", 0.9),
        "{folder}/model.ckpt: not the weights of this ENT (PytorchStreamReader failed reading zip "
        "archive: failed finding central directory): export again",
    ),
    "a model of other sizes than its weights": (
        exported,
        edit("hyperparams.yaml", "joint_dim: 12", "joint_dim: 13"),
        "{folder}/model.ckpt: not the weights of this ENT (Error(s) in loading state_dict for ENT: "
        "size mismatch for token_joints.0.encoder_side.weight: copying a param with shape "
        "torch.Size([12, 16]) from checkpoint, t): export again",
    ),
    "a model's YAML without tokens": (
        exported,
        edit("hyperparams.yaml", EXPORTED_TOKENS, ""),
        "{folder}: makes no model (Need hparams['tokens']): export again",
    ),
    "a model's YAML with a number as tokens": (
        exported,
        edit("hyperparams.yaml", EXPORTED_TOKENS, "tokens: 5\n"),
        "{folder}: makes no model (tokens: 5: no tokens of this package): export again",
    ),
    "a model's YAML with an unknown size": (
        exported,
        edit("hyperparams.yaml", "joint_dim: 12", "joint_dims: 12"),
        "{folder}: makes no model (Invalid argument to class ent_brain.model.ENT "
        "TransducerModel.__init__() got an unexpected keyword argument 'joint_dims'): export again",
    ),
    "a model's YAML nested too deep": (
        exported,
        more("hyperparams.yaml", "x: " + 5000 * "[" + 5000 * "]"),
        "{folder}/hyperparams.yaml: nested too deep: export again",
    ),
    "a model's YAML that links to itself": (
        exported,
        linked_to_itself("hyperparams.yaml"),
        "{folder}/hyperparams.yaml: cannot be read ([Errno 40] Too many levels of symbolic links: "
        "'{folder}/hyperparams.yaml'): export again",
    ),
    "a model's weights that link to themselves": (
        exported,
        linked_to_itself("model.ckpt"),
        "{folder}/model.ckpt: missing: export or fetch again",
    ),
    "a model's weights of nothing": (
        exported,
        put("model.ckpt", ""),
        "{folder}/model.ckpt: not the weights of this ENT (EOFError): export again",
    ),
    "a model's weights that are no numbers": (
        exported,
        no_number,
        "{folder}/model.ckpt: not the weights of this ENT (emotion_joint.output.bias holds what is "
        "no number): export again",
    ),
    **{
        f"a model's YAML without {what}": (
            exported_pieces,
            edit("hyperparams.yaml", line, ""),
            f"{{folder}}/hyperparams.yaml: {part}: not as it was exported: export again",
        )
        for what, line, part in (
            ("the model among the modules", "    model: !ref <model>\n", "modules"),
            ("the loading of the model", "        model: !ref <model>\n", "pretrainer"),
            ("the loading of the pieces", "        processor: !ref <processor>\n", "pretrainer"),
            (
                "the way to load the model",
                "        model: !name:ent_brain.export.load_weights\n",
                "pretrainer",
            ),
        )
    },
    **{
        f"a model's pieces, {what}": (
            exported_pieces,
            spoil,
            f"{{folder}}: makes no model ({reason}): export again",
        )
        for what, spoil, reason in (
            ("none", put("processor.ckpt", ""), "INTERNAL: unk is not defined."),
            (
                "cut off",
                cut("processor.ckpt", 0.5),
                "INTERNAL: could not parse ModelProto from {folder}/processor.ckpt",
            ),
            (
                "of another number",
                other_pieces,
                "vocab_size: the model's is 31, it must be 25",
            ),
        )
    },
    **{
        f"a model's YAML with {old} as {new}": (
            exported,
            edit("hyperparams.yaml", old, new),
            f"{{folder}}: makes no model ({reason}): export again",
        )
        for old, new, reason in (
            (
                "joint_dim: 12",
                "joint_dim: -12",
                "Trying to create tensor with negative dimension -12: [-12, 16]",
            ),
            (
                "segment_decoding: median",
                "segment_decoding: foo",
                "segment_decoding: foo: choose argmax, median, min_duration, single_event, "
                "lasting_event",
            ),
            ("beam_size: 2", "beam_size: 0", "beam_size: 0: give a whole number above 0 to 1000"),
            (
                "beam_size: 2",
                "beam_size: two",
                "beam_size: two: give a whole number above 0 to 1000",
            ),
            (
                "max_symbols: 2",
                "max_symbols: lots",
                "max_symbols: lots: give a whole number above 0 to 1000",
            ),
            ("dropout: 0.1", "dropout: .nan", "dropout: nan: give a share, 0 to 1"),
            (
                "longest_window: 2.5",
                "longest_window: 0",
                "longest_window: 0: give a number above 0",
            ),
            (
                "longest_window: 2.5",
                "longest_window: 0.05",
                "longest_window: 0.05: give two frames or more",
            ),
            (
                "segment_seconds: 0.2",
                "segment_seconds: .nan",
                "segment_seconds: nan: give a number above 0 to 3600",
            ),
            (
                "frame_duration: 0.04",
                "frame_duration: 0.02",
                "feature_dim: the model's is 320, it must be 160",
            ),
        )
    },
    "a model linked from elsewhere": (
        exported,
        linked_out("model.ckpt"),
        "{folder}/hyperparams.yaml: model.ckpt leads out of the folder: a model from a stranger "
        "can run code: look at it, and give trust=True to load it as it is",
    ),
}


def contents(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_gives_one_exact_line_and_changes_nothing(case, tmp_path, trained):
    kind, spoil, message = REFUSED[case]
    folder = tmp_path / "in"
    read = kind(folder, trained)
    arguments = spoil(folder) or {}
    before = contents(tmp_path)
    with pytest.raises(InputError) as error:
        read(**arguments)
    assert str(error.value) == message.replace("{folder}", str(folder))
    assert "\n" not in message
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", {case[0]: None for case in REFUSED.values()})
def test_what_is_not_spoilt_is_taken(kind, tmp_path, trained):
    kind(tmp_path / "in", trained)()


# --- odd, and right


def entries_of(manifests):
    return {name: json.loads(path.read_text()) for name, path in manifests.items()}


def each_line(*names, end="\n", before=""):
    def spoil(folder):
        for name in names:
            text = (folder / name).read_text()
            (folder / name).write_bytes((before + text.replace("\n", end)).encode())

    return spoil


def link(name):
    def spoil(folder):
        elsewhere = folder.parent / "another disk"
        elsewhere.mkdir()
        (folder / name).rename(elsewhere / "it")
        (folder / name).symlink_to(elsewhere / "it")

    return spoil


def read_only(folder):
    for path in folder.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)


ODD_CORPORA = {
    "Windows's line ends": each_line(EVALUATION, TRANSCRIPTION, end="\r\n"),
    "spaces at the end of lines": each_line(EVALUATION, TRANSCRIPTION, end=" \n"),
    "a byte order mark": each_line(EVALUATION, TRANSCRIPTION, before="\ufeff"),
    "no line end at the end": lambda folder: (
        (folder / TRANSCRIPTION).write_text((folder / TRANSCRIPTION).read_text().rstrip("\n"))
        and None
    ),
    "a line of no utterance": edit(TRANSCRIPTION, "M: Uh-huh.", "\u2026 [BREATHING] F: Ses\u00e9."),
    "an utterance's line twice": edit(
        TRANSCRIPTION, "M: Uh-huh.", f"{SPEAKING} [000.0000-000.5000]: Number 0."
    ),
    "macOS's files": all_of(
        put("Session1/dialog/EmoEvaluation/._Ses01F_impro01.txt", b"\0\xff\xfe"),
        put("Session1/dialog/transcriptions/._Ses01F_impro01.txt", b"\0\xff\xfe"),
        put(".DS_Store", b"\0"),
    ),
    "single evaluators' folders": all_of(
        lambda folder: (folder / "Session1/dialog/EmoEvaluation/Categorical").mkdir(),
        put("Session1/dialog/EmoEvaluation/Categorical/Ses01F_impro01_e1.txt", "Ses01 :Neutral;"),
    ),
    "a session that is linked": link("Session2"),
    "a dialog's audio that is linked": link(WAVS),
    "recordings that nobody evaluated": sound(f"{WAVS}/Ses01F_impro01_MXX0.wav", tone(0.1)),
    "no right to write": read_only,
}
"""What changes nothing of the manifests."""


@pytest.mark.parametrize("place", ["in", "my corpora (\u00e9t\u00e9 \u65e5\u672c)"])
@pytest.mark.parametrize("case", ODD_CORPORA)
def test_an_odd_corpus_is_read_as_the_good_one(case, place, tmp_path):
    save = tmp_path / "save"
    want = entries_of(iemocap(tmp_path / "good", None)(save=save))
    read = iemocap(tmp_path / place, None)
    ODD_CORPORA[case](tmp_path / place)
    if case == "no right to write":
        (tmp_path / place).chmod(0o555)
    before = contents(tmp_path / place)
    assert entries_of(read(save=save)) == want
    assert contents(tmp_path / place) == before  # whoever may write, as root may


def stereo(*channels):
    return np.stack(channels, 1)


ODD_AUDIO = {
    "8 bits": (sound("a.wav", tone(), subtype="PCM_U8"), 0.01),
    "24 bits": (sound("a.wav", tone(), subtype="PCM_24"), 1e-6),
    "32 bits": (sound("a.wav", tone(), subtype="PCM_32"), 1e-6),
    "float": (sound("a.wav", tone(), subtype="FLOAT"), 1e-6),
    "double": (sound("a.wav", tone(), subtype="DOUBLE"), 1e-6),
    "\u03bc-law": (sound("a.wav", tone(), subtype="ULAW"), 0.05),
    "8 channels": (sound("a.wav", stereo(*[tone()] * 8), subtype="FLOAT"), 1e-6),
    "one channel that is silent": (sound("a.wav", stereo(tone(), 0 * tone())), 1e-3),
    "FLAC under the name of a WAV": (sound("a.wav", tone(), format="FLAC"), 1e-3),
    "Ogg under the name of a WAV": (sound("a.wav", tone(), format="OGG"), 0.1),
    "big-endian AIFF under the name of a WAV": (sound("a.wav", tone(), format="AIFF"), 1e-3),
    "RF64": (sound("a.wav", tone(), format="RF64"), 1e-3),
}
"""How what is heard in it may differ from what it was made of."""


@pytest.mark.parametrize("case", ODD_AUDIO)
def test_odd_audio_is_heard_as_it_is(case, tmp_path):
    spoil, tolerance = ODD_AUDIO[case]
    read = audio(tmp_path / "in", None)
    spoil(tmp_path / "in")
    np.testing.assert_allclose(read().numpy(), tone(), atol=tolerance)
    shutil.rmtree(tmp_path / "in")
    check = utterance(tmp_path / "in", None)
    spoil(tmp_path / "in")
    [checked] = check()
    assert checked.samples == 16000


def test_audio_that_lies_off_the_middle_is_heard_as_it_is(tmp_path):
    read = audio(tmp_path / "in", None)
    soundfile.write(tmp_path / "in" / "a.wav", 0.3 + 0.5 * tone(), 16000)
    np.testing.assert_allclose(read().numpy(), 0.3 + 0.5 * tone(), atol=1e-3)


# --- what nobody thought of

EDITS = st.lists(
    st.tuples(
        st.sampled_from(["remove", "insert", "repeat line", "remove line", "swap lines", "cut"]),
        st.floats(0, 1, exclude_max=True),
        st.one_of(
            st.sampled_from(["\r\n", "\t", " ", "\0", "\ufeff", "[", "]", ":", "{", '"', "Ses0"]),
            st.text(max_size=5),
            st.binary(max_size=3),
        ),
    ),
    min_size=1,
    max_size=4,
)


def edited(content, edits):
    """Spoil bytes, here and there."""
    for kind, where, what in edits:
        what = what.encode("utf-8", "surrogatepass") if isinstance(what, str) else what
        at = int(where * (len(content) + 1))
        lines = content.split(b"\n")
        line = int(where * len(lines))
        if kind == "remove":
            content = content[:at] + content[at + 1 + len(what) :]
        elif kind == "insert":
            content = content[:at] + what + content[at:]
        elif kind == "cut":
            content = content[:at]
        else:
            if kind == "repeat line":
                lines.insert(line, lines[line])
            elif kind == "remove line":
                del lines[line]
            else:
                lines[line - 1], lines[line] = lines[line], lines[line - 1]
            content = b"\n".join(lines)
    return content


def read_or_refused(read):
    """What is read, or None where it is refused as it should be: in one line."""
    try:
        return read()
    except InputError as error:
        assert str(error).isprintable()
        return None


def read_while_edited(path, edits, read):
    """The edited bytes of a file, and what is read while it has them."""
    good = path.read_bytes()
    spoilt = edited(good, edits)
    path.write_bytes(spoilt)
    try:
        return spoilt, read_or_refused(read)
    finally:
        path.write_bytes(good)


@pytest.fixture(scope="module")
def good_iemocap(tmp_path_factory):
    folder = tmp_path_factory.mktemp("iemocap") / "in"
    read = iemocap(folder, None)
    return folder, lambda: entries_of(read(test_session=None))


@drawn(edits=EDITS)
def test_any_evaluation_is_read_rightly_or_refused(good_iemocap, edits):
    folder, read = good_iemocap
    spoilt, found = read_while_edited(folder / EVALUATION, edits, read)
    if found is None:
        return
    found = {name: entry["emotion"] for split in found.values() for name, entry in split.items()}
    found = {name: emotion for name, emotion in found.items() if name.startswith("Ses01")}
    cells = [line.split() for line in spoilt.decode("utf-8-sig").split("\n") if "Ses0" in line]
    said = {name: label for line in cells for name, label in zip(line, line[1:], strict=False)}
    said = {name: label for name, label in said.items() if name.startswith("Ses0")}
    emotions = {"hap": "happy", "exc": "happy", "sad": "sad", "ang": "angry", "neu": "neutral"}
    assert found == {name: emotions[said[name]] for name in said if said[name] in emotions}


@drawn(edits=EDITS)
def test_any_transcription_is_read_rightly_or_refused(good_iemocap, edits):
    folder, read = good_iemocap
    spoilt, found = read_while_edited(folder / TRANSCRIPTION, edits, read)
    if found is None:
        return
    found = {name: entry["transcript"] for split in found.values() for name, entry in split.items()}
    lines = [line.strip() for line in spoilt.decode("utf-8-sig").split("\n")]
    for turn in IEMOCAP_EMOTIONS:
        name = f"Ses01F_impro01_{turn}"
        said = [line.partition("]")[2] for line in lines if re.match(rf"{name}\s+\[", line)]
        assert found[name] in map(normalize_transcript, said)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["datafolder/wav/a.wav", "{data_root}/a.wav", "happy", "neutral", "HI", 1e400]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["emo", "start", "end", "emotion"]), inner, max_size=3)
    ),
    max_leaves=4,
)


def changed(entry, seed, value):
    """An entry with one of its values, at any depth, replaced or removed."""
    generator = random.Random(seed)
    entry = json.loads(json.dumps(entry))
    inside = entry
    while True:
        key = generator.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
        if not (isinstance(inside[key], dict | list) and inside[key] and generator.random() < 0.7):
            break
        inside = inside[key]
    if generator.random() < 0.1:
        del inside[key]
    else:
        inside[key] = value
    return entry


@pytest.fixture(scope="module")
def good_zed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zed") / "in"
    read = zed(folder, None)
    return folder, lambda: entries_of(read())["zed"]


def is_zed(entry):
    """Whether an entry says what one of ZED has to say of two seconds of audio."""
    [interval] = entry["emotion"]
    assert interval["emo"] in ("happy", "angry", "sad")
    assert 0 <= interval["start"] < interval["end"] <= 2.1
    assert abs(entry["duration"] - 2) <= 0.1
    assert entry["wav"].startswith("datafolder/")
    assert entry["transcription"]
    return True


@drawn(seed=st.integers(0, 999), value=JSON)
def test_any_entry_of_zed_is_read_rightly_or_refused(good_zed, seed, value):
    folder, read = good_zed
    entry = changed(zed_entry(), seed, value)
    (folder / "ZED.json").write_text(json.dumps({"good": zed_entry(), "bad": entry}))
    found = read_or_refused(read)
    if found is not None:
        assert is_zed(entry)
        [segment] = found["bad"]["segments"]
        assert segment["start"] == entry["emotion"][0]["start"]
        assert segment["end"] == pytest.approx(min(entry["emotion"][0]["end"], 2.0))
        assert segment["emotion"] == found["bad"]["emotion"] == entry["emotion"][0]["emo"]
        assert found["good"]["transcript"] == "OH GREAT"


@drawn(edits=EDITS)
def test_any_zed_json_is_read_rightly_or_refused(good_zed, edits):
    folder, read = good_zed
    content = edited(json.dumps({"a": zed_entry(), "b": zed_entry()}, indent=0).encode(), edits)
    (folder / "ZED.json").write_bytes(content)
    found = read_or_refused(read)
    if found is not None:
        entries = json.loads(content.decode("utf-8-sig"))
        assert all(is_zed(entry) for entry in entries.values())
        assert list(found) == sorted(entries)


MIXED = GOOD_ENTRY | {
    "transcript": "OH NO",
    "intervals": INTERVALS,
    "segments": [{"start": 0.5, "end": 1.0, "emotion": "sad"}],
}


@pytest.fixture(scope="module")
def good_manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("manifest") / "in"
    manifest(folder, None)
    return folder / "train.json"


def make_use_of(path):
    """Read a manifest, and each utterance as training does."""
    entries = read_manifest(path)
    data = make_dataset(
        {"corpus": (path, path.parent)}, CharTokens(), PUBLISHED, FbankFrontend(), 10.0
    )
    for index in range(len(data)):
        data[index]
    return entries


@drawn(seed=st.integers(0, 999), value=JSON)
def test_any_entry_of_a_manifest_is_of_use_or_refused(good_manifest, seed, value):
    entries = {"a": MIXED, "b": changed(MIXED, seed, value)}
    good_manifest.write_text(json.dumps(entries))
    found = read_or_refused(lambda: make_use_of(good_manifest))
    assert found is None or found == json.loads(json.dumps(entries))


@drawn(edits=EDITS)
def test_any_manifest_is_of_use_or_refused(good_manifest, edits):
    content = edited(json.dumps({"a": MIXED, "b": GOOD_ENTRY}, indent=0).encode(), edits)
    good_manifest.write_bytes(content)
    found = read_or_refused(lambda: make_use_of(good_manifest))
    assert found is None or found == json.loads(content.decode("utf-8-sig"))
