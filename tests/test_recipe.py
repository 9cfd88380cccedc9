import json
from pathlib import Path

import pytest

from ent_brain.emotions import PUBLISHED
from ent_brain.errors import InputError
from ent_brain.frontend import Frontend
from ent_brain.recipe import build
from ent_brain.recipe import make_tokens as make_recipe_tokens
from ent_brain.settings import load_recipe

TRANSCRIPTS = ["THE LAMP IS ON THE TABLE", "SHE FOUND THE OLD BAG", "DON'T PUT IT THERE"] * 3


def write_manifest(path, transcripts):
    manifest = {
        f"u{index}": {
            "wav": "{data_root}/a.wav",
            "duration": 1.0,
            "transcript": transcript,
            "emotion": "sad",
            "speaker": "Ann",
        }
        for index, transcript in enumerate(transcripts)
    }
    path.write_text(json.dumps(manifest))
    return path


def make_tokens(kind, vocab_size, manifest, folder):
    """Tokens of a recipe, or of a table's recipe if it leaves ``vocab_size`` open."""
    name = "RAVDESS" if vocab_size else "Table"
    yaml = Path(__file__).parents[1] / "recipes" / name / "hparams" / "ent_fbank.yaml"
    options = {"tokens": kind, "output_folder": folder / "out", "save_folder": folder}
    options |= {"vocab_size": vocab_size, "data_folder": "corpus"} if vocab_size else {"table": "x"}
    lines = "".join(f"{key}: {value}\n" for key, value in options.items())
    recipe = load_recipe(yaml, lines)
    recipe.settle(emotions=list(PUBLISHED), neutral=PUBLISHED.neutral)
    return make_recipe_tokens(recipe, {"corpus": (manifest, manifest.parent)})


def test_the_published_characters_need_no_manifest(tmp_path):
    assert len(make_tokens("char", 31, tmp_path / "no.json", tmp_path)) == 31


def test_pieces_are_learnt_from_the_training_transcripts_alone(tmp_path):
    train = write_manifest(tmp_path / "train.json", TRANSCRIPTS)
    for other in ("valid", "test"):
        write_manifest(tmp_path / f"{other}.json", ["QUIZ QUIZ ZEBRA"] * 50)
    tokens = make_tokens("bpe", 50, train, tmp_path)
    assert len(tokens) == 50
    assert 1 not in tokens.encode(TRANSCRIPTS[0])
    assert tokens.encode("Q")[-1] == tokens.encode("Z")[-1] == 1


def test_pieces_are_learnt_once_and_again_where_transcripts_change(tmp_path):
    train = write_manifest(tmp_path / "train.json", TRANSCRIPTS)
    make_tokens("bpe", 50, train, tmp_path)
    [first] = tmp_path.glob("*.model")
    written = first.stat().st_mtime_ns
    make_tokens("bpe", 50, train, tmp_path)
    assert [first] == list(tmp_path.glob("*.model"))
    assert first.stat().st_mtime_ns == written

    write_manifest(train, [*TRANSCRIPTS, "ZEBRA"])
    tokens = make_tokens("bpe", 50, train, tmp_path)
    assert len(list(tmp_path.glob("*.model"))) == 2
    assert 1 not in tokens.encode("ZEBRA")
    make_tokens("bpe", 45, train, tmp_path)
    assert len(list(tmp_path.glob("*.model"))) == 3


def test_the_vocabulary_s_size_must_be_right(tmp_path):
    with pytest.raises(InputError) as error:
        make_tokens("char", 5000, tmp_path / "train.json", tmp_path)
    assert str(error.value) == "vocab_size: 5000: char tokens are 31: correct it"


def test_unknown_tokens_are_refused(tmp_path):
    with pytest.raises(InputError) as error:
        make_tokens("words", 31, tmp_path / "train.json", tmp_path)
    assert str(error.value) == "tokens: 'words': choose char, characters or bpe"


def test_characters_are_learnt_from_the_training_transcripts_alone(tmp_path):
    train = write_manifest(tmp_path / "train.json", ["ÄPFEL UND ÖL", "DON'T"])
    write_manifest(tmp_path / "test.json", ["QUIZ"])
    tokens = make_tokens("characters", 31, train, tmp_path)
    assert tokens.decode(tokens.encode("ÖL UND ÄPFEL DON'T")) == "ÖL UND ÄPFEL DON'T"
    assert tokens.encode("Q") == [1]
    [file] = tmp_path.glob("characters_*.txt")
    letters = set("ÄPFELUNDÖLDON'T")
    assert len(tokens) == len(letters) + 4
    assert {line[0] for line in file.read_text(encoding="utf-8").splitlines()[1:]} == letters


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (
            "characters",
            "training set: no utterance has a transcript to learn tokens from: set tokens to char, "
            "and rnnt_weight, lm_weight and ctc_weight to 0, to learn only emotions",
        ),
        ("bpe", "vocab_size: null: give the number of tokens of bpe, as 500"),
    ],
)
def test_tokens_need_transcripts_and_pieces_a_number(tmp_path, kind, line):
    train = write_manifest(tmp_path / "train.json", [None, None])
    with pytest.raises(InputError) as error:
        make_tokens(kind, None, train, tmp_path)
    assert str(error.value) == line


def test_the_published_characters_are_counted_where_the_yaml_leaves_it_open(tmp_path):
    assert len(make_tokens("char", None, tmp_path / "no.json", tmp_path)) == 31


def test_a_front_end_that_an_export_could_not_build_again_is_refused(tmp_path, monkeypatch):
    class Bare(Frontend):
        pass

    yaml = Path(__file__).parents[1] / "recipes" / "RAVDESS" / "hparams" / "ent_fbank.yaml"
    recipe = load_recipe(yaml, f"data_folder: x\noutput_folder: {tmp_path}\n")
    monkeypatch.setattr(recipe, "build", lambda: {"modules": {"frontend": Bare(), "model": None}})
    with pytest.raises(InputError) as error:
        build(recipe, {})
    assert str(error.value) == (
        f"{__name__}.Bare: has no settings. In __init__, set self.settings to a dict of its "
        "arguments, with which the exported model builds it again."
    )
