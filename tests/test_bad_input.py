"""What input may be wrong, or odd and still right: each wrong one gives one exact line.

``bad_input.yaml`` is the table of what is refused. At the end the readers are given what nobody
thought of.
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


def tone(seconds=1.0, at=None, value=np.nan, channels=None):
    """Samples of a tone; one sample, in the last channel, may have another value."""
    samples = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(16000 * seconds)) / 16000)
    spoilt = samples.copy()
    if at is not None:
        spoilt[at] = value
    return spoilt if channels is None else np.stack([samples] * (channels - 1) + [spoilt], 1)


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
        changes |= {"segments": [Segment(*each) for each in changes.get("segments", ())]}
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
    """Read a dataset in a loader's worker."""
    read = dataset(folder, _)
    return lambda: list(DataLoader(read(), batch_size=None, num_workers=1))


def batches(folder, _):
    read = dataset(folder, _)
    return lambda limit=1000: make_batch_sampler(read(), limit)


def spans(folder, _):
    good = [(0, 3000, "sad", "NO"), (3000, 6000, "happy", "OH")]

    def read(known=good, frames=18):
        known = [Interval(*each) for each in known]
        return interval_spans(known, CharTokens(), PUBLISHED, 320, frames)

    return read


def audio(folder, _):
    folder.mkdir()
    soundfile.write(folder / "a.wav", tone(), 16000)
    return lambda: read_audio(folder / "a.wav", 16000)


def recipe(folder, _):
    """A recipe's YAML with its fragments."""
    shutil.copytree(ROOT / "hparams", folder / "hparams")
    (folder / "out").mkdir()  # as the first run leaves it
    path = folder / YAML
    shutil.copytree((ROOT / YAML).parent, path.parent)

    def read(path=path, device=None, text="", **given):
        given = {"data_folder": "corpus", "output_folder": folder / "out", **given}
        lines = "".join(f"{key}: {value}\n" for key, value in given.items() if value != "absent")
        return load_recipe(Path(path), lines + text, device).build()

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
    """Two checkpoints of a small training, which resumes from the last one."""

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
    """The recorded settings of a training."""
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
    """The files of an evaluation."""
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
        arguments = {}
        for each in spoils:
            arguments |= each(folder) or {}
        return arguments

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


def put_bytes(name, content):
    return put(name, content.encode("latin-1"))


def mkdir(name):
    return lambda folder: (folder / name).mkdir()


def symlink(name, target):
    return lambda folder: (folder / name).symlink_to(target)


def as_raw(folder):
    return {"wav": (folder / "a.wav").rename(folder / "a.raw")}


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


def sound(name, samples, settings=()):
    """``samples`` are an array, or the arguments of ``tone``."""
    samples = tone(**samples) if isinstance(samples, dict) else samples
    settings = {"samplerate": 16000, **dict(settings)}
    return lambda folder: soundfile.write(folder / name, samples, **settings)


def given(**arguments):
    return lambda folder: arguments


def bad_zed(without=(), **changes):
    """ZED.json with a second utterance ``bad``."""
    entry = {key: value for key, value in zed_entry(**changes).items() if key not in without}
    return put("ZED.json", json.dumps({"good": zed_entry(), "bad": entry}))


def zed_interval(**changes):
    return bad_zed(emotion=[{"emo": "happy", "start": 0.5, "end": 1.5} | changes])


def bad_entry(without=(), **changes):
    """A manifest with a second utterance ``b``."""
    entry = {k: v for k, v in (GOOD_ENTRY | changes).items() if k not in without}
    return put("train.json", json.dumps({"a": GOOD_ENTRY, "b": entry}))


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


FRAME_PROBABILITIES = {
    "of text": lambda p: {**p, "sad": ["0.1"] * len(p["sad"])},
    "above 1": lambda p: {**p, "sad": [1e300] * len(p["sad"])},
    "of fewer frames": lambda p: {**p, "sad": p["sad"][1:]},
    "of three emotions": lambda p: {k: p[k] for k in p if k != "sad"},
    "without emotions": lambda p: list(p.values()),
    "of a number": lambda p: {**p, "sad": 0.1},
}


def frame_probabilities(name):
    """The first utterance of an evaluation, with other frame probabilities."""
    change = FRAME_PROBABILITIES[name]

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


def yaml_named(stem):
    return lambda folder: {"path": folder / YAML.replace("ent_fbank", stem)}


def other_frames(_):
    return {"features": FbankFrontend(0.02).describe()}


def other_sizes(_):
    return {"model settings": {"model": "FENT", **FENT(31, 320, 1, encoder_dim=8).settings}}


def yaml_of(content):
    def spoil(folder):
        (folder / "a.yaml").write_text(content)
        return {"path": folder / "a.yaml"}

    return spoil


def of_id(name):
    """A manifest with an utterance of this id."""
    return put("train.json", json.dumps({name: GOOD_ENTRY}))


YAML = "recipes/RAVDESS/hparams/ent_fbank.yaml"
SPEAKING = "Ses01F_impro01_F000"
INTERVALS = [
    {"start": 0, "end": 9000, "emotion": "neutral", "transcript": "OH"},
    {"start": 9000, "end": 16000, "emotion": "sad", "transcript": "NO"},
]


# --- what is refused

TABLE = yaml.safe_load(Path(__file__).with_name("bad_input.yaml").read_text("utf-8"))
TEXTS = {
    **TABLE.pop("texts"),
    **{"EVALUATION": EVALUATION, "TRANSCRIPTION": TRANSCRIPTION, "WAVS": WAVS},
    **{"SPEAKING": SPEAKING, "YAML": YAML},
}
REFUSED = {name: (kind, *case) for kind, cases in TABLE.items() for name, case in cases.items()}


def spelt_out(value):
    """Expand the texts and repetitions (``<x*9>``) in a value of the table."""
    if isinstance(value, dict):
        return {key: spelt_out(each) for key, each in value.items()}
    if isinstance(value, list):
        return [spelt_out(each) for each in value]
    if not isinstance(value, str):
        return value
    value = re.sub(r"<(.)\*(\d+)>", lambda found: found[1] * int(found[2]), value)
    return re.sub(r"<([A-Z_]+)>", lambda found: spelt_out(TEXTS[found[1]]), value)


def spoiler(step):
    """Return the function of a step in the table; it takes the folder."""
    if isinstance(step, str):
        return globals()[step]
    [(name, arguments)] = step.items()
    if isinstance(arguments, dict):
        return globals()[name](**arguments)
    return globals()[name](*(arguments if isinstance(arguments, list) else [arguments]))


def contents(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_gives_one_exact_line_and_changes_nothing(case, tmp_path, trained):
    kind, steps, message = REFUSED[case]
    steps, message = spelt_out(steps), spelt_out(message)
    folder = tmp_path / "in"
    read = globals()[kind](folder, trained)
    spoil = all_of(*map(spoiler, steps if isinstance(steps, list) else [steps]))
    arguments = spoil(folder)
    before = contents(tmp_path)
    with pytest.raises(InputError) as error:
        read(**arguments)
    assert str(error.value) == message.replace("{folder}", str(folder))
    assert "\n" not in message
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", TABLE)
def test_what_is_not_spoilt_is_taken(kind, tmp_path, trained):
    globals()[kind](tmp_path / "in", trained)()


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
"""Unusual corpora with the same manifests."""


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
    "8 bits": (sound("a.wav", tone(), {"subtype": "PCM_U8"}), 0.01),
    "24 bits": (sound("a.wav", tone(), {"subtype": "PCM_24"}), 1e-6),
    "32 bits": (sound("a.wav", tone(), {"subtype": "PCM_32"}), 1e-6),
    "float": (sound("a.wav", tone(), {"subtype": "FLOAT"}), 1e-6),
    "double": (sound("a.wav", tone(), {"subtype": "DOUBLE"}), 1e-6),
    "\u03bc-law": (sound("a.wav", tone(), {"subtype": "ULAW"}), 0.05),
    "8 channels": (sound("a.wav", stereo(*[tone()] * 8), {"subtype": "FLOAT"}), 1e-6),
    "one channel that is silent": (sound("a.wav", stereo(tone(), 0 * tone())), 1e-3),
    "FLAC under the name of a WAV": (sound("a.wav", tone(), {"format": "FLAC"}), 1e-3),
    "Ogg under the name of a WAV": (sound("a.wav", tone(), {"format": "OGG"}), 0.1),
    "big-endian AIFF under the name of a WAV": (sound("a.wav", tone(), {"format": "AIFF"}), 1e-3),
    "RF64": (sound("a.wav", tone(), {"format": "RF64"}), 1e-3),
}
"""Unusual audio, and the allowed difference between decoded and original samples."""


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
    """Change bytes at random places."""
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
    """Return the value that is read, or None if it is refused with one line."""
    try:
        return read()
    except InputError as error:
        assert str(error).isprintable()
        return None


def read_while_edited(path, edits, read):
    """Return a file's edited bytes, and the value that is read from them."""
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
    """An entry with one value, at any depth, replaced or removed."""
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
    """Whether an entry is valid in ZED.json for two seconds of audio."""
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
    """Read a manifest and its utterances as training does."""
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
