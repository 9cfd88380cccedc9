"""The command line, called in this process; one test starts it as a program."""

import io
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from ent_brain import cli
from ent_brain.annotation import FORMATS, Annotation
from ent_brain.export import export
from ent_brain.files import write_json
from ent_brain.inference import EmotionTransducer

RATE = 16000
A_MANIFEST = "name a manifest of a recipe, or sound files"
NO_ID = "an id names files: no / \\ or NUL, not . or .., 1 to 200 bytes"


@pytest.fixture(scope="module")
def model(tmp_path_factory, trained):
    """Folder of a small model with random weights that hears 2 s at once."""
    folder = tmp_path_factory.mktemp("model") / "pretrained"
    export(trained(), folder, 2.0)
    return folder


def write(path, seconds=0.6, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    wav = 0.1 * np.random.default_rng(seed).normal(size=int(seconds * RATE))
    soundfile.write(path, wav, RATE)
    return path


def run(*arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return caught.value.code


def test_a_recording_is_one_line_of_json(model, tmp_path, capsys):
    path = write(tmp_path / "a.wav")
    assert run("annotate", path, "--model", model) == 0
    [line] = capsys.readouterr().out.splitlines()
    expected = EmotionTransducer.from_hparams(source=model).annotate_file(path)
    assert Annotation.from_json(line) == expected


def test_a_folder_is_written_as_it_is_laid_out_and_only_once(model, tmp_path, capsys):
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    for index, name in enumerate(("x.wav", "a/x.wav", "b/x.FLAC", "b/long.wav")):
        write(corpus / name, seconds=5.0 if "long" in name else 0.5 + 0.3 * index, seed=index)
    (corpus / "a" / "._x.wav").write_bytes(b"macOS")
    (corpus / "notes.txt").write_text("no sound")
    formats = ("json", "textgrid", "webvtt", "rttm", "audacity")
    asked = ("annotate", corpus, "--model", model, "--out", out, "--format", ",".join(formats))
    assert run(*asked, "--quiet") == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    names = {"x", "a/x", "b/x", "b/long"}
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert found == {cli.INDEX, *(f"{name}.{FORMATS[f][0]}" for name in names for f in formats)}
    loaded = EmotionTransducer.from_hparams(source=model)
    for name, path in (("x", "x.wav"), ("a/x", "a/x.wav"), ("b/long", "b/long.wav")):
        said = Annotation.from_json((out / f"{name}.json").read_text())
        alone = loaded.annotate_file(corpus / path)
        assert (said.name, said.text, said.segments) == (alone.name, alone.text, alone.segments)
    (out / "a" / "x.vtt").unlink()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.json")}
    assert run(*asked) == 0
    assert "1/1" in capsys.readouterr().err
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*.json")}
    assert [path for path in before if before[path] != after[path]] == [out / "a" / "x.json"]


def test_a_bad_file_is_told_and_the_rest_is_done(model, tmp_path, capsys):
    write(tmp_path / "in" / "good.wav")
    (tmp_path / "in" / "bad.wav").write_bytes(b"no sound")
    soundfile.write(tmp_path / "in" / "nan.wav", np.full(9000, np.nan), RATE, subtype="FLOAT")
    asked = ("annotate", tmp_path / "in", "--model", model, "--out", tmp_path / "out", "--quiet")
    assert run(*asked) == 1
    bad, nan, last = capsys.readouterr().err.splitlines()
    assert bad.startswith(f"error: {tmp_path}/in/bad.wav: cannot be read as audio (")
    assert nan == f"error: {tmp_path}/in/nan.wav: holds samples that are no sound: replace it"
    assert last == "error: 2 of 3 recordings failed: see above; the rest is done"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"good.json", cli.INDEX}


def test_a_name_that_cannot_be_written_is_told_and_the_rest_is_done(model, tmp_path, capsys):
    write(tmp_path / "in" / "good.wav")
    for name in (os.fsdecode(b"caf\xe9"), "n" * 240, "n" * 251):
        shutil.copy(tmp_path / "in" / "good.wav", tmp_path / "in" / f"{name}.wav")
    asked = ("annotate", tmp_path / "in", "--model", model, "--out", tmp_path / "out", "--quiet")
    assert run(*asked) == 1
    *told, last = capsys.readouterr().err.splitlines()
    assert sorted(told) == [
        f"error: {tmp_path}/in/caf\\udce9.wav: its name is no text: rename it",
        f"error: {tmp_path}/in/{'n' * 251}.wav: its name has no room for an ending: rename it",
    ]
    assert last == "error: 2 of 4 recordings failed: see above; the rest is done"
    done = {path.name for path in (tmp_path / "out").iterdir()}
    assert done == {"good.json", f"{'n' * 240}.json", cli.INDEX}


def test_who_reads_the_output_may_stop(model, tmp_path):
    write(tmp_path / "a.wav")
    program = [sys.executable, "-m", "ent_brain.cli", "annotate", tmp_path / "a.wav"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*map(str, program), "--model", str(model), "--quiet"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_files_of_one_name_are_kept_apart(model, tmp_path, capsys):
    write(tmp_path / "in" / "x.wav", seconds=0.4, seed=1)
    write(tmp_path / "in" / "x.flac", seconds=0.8, seed=2)
    write(tmp_path / "in" / "y.wav", seconds=0.5, seed=3)
    asked = ("annotate", "--model", model, "--out", tmp_path / "out", "--quiet")
    assert run(*asked, tmp_path / "in") == 0
    said = [Annotation.from_json(path.read_text()) for path in (tmp_path / "out").glob("*.json")]
    assert {each.name: each.duration for each in said} == {"x.wav": 0.4, "x.flac": 0.8, "y": 0.5}
    other = write(tmp_path / "other" / "y.wav")
    assert run(*asked, other) == 1
    assert capsys.readouterr().err == (
        f"error: {other}: {tmp_path}/out holds 'y', made of {tmp_path}/in/y.wav: name another "
        "--out\n"
    )


def test_an_index_with_damaged_lines_tells_what_it_still_tells(model, tmp_path, capsys):
    path = write(tmp_path / "a.wav")
    asked = ("annotate", path, "--model", model, "--out", tmp_path / "out")
    assert run(*asked) == 0
    index = tmp_path / "out" / cli.INDEX
    damaged = [b"1", b"[]", b'{"name": []}', b'{"name": [], "source": 1}', b"\xff", b"[" * 100_000]
    index.write_bytes(b"\n".join([*damaged, index.read_bytes(), b'{"na']))
    capsys.readouterr()
    assert run(*asked) == 0
    assert "0file" in capsys.readouterr().err


def test_a_bad_file_of_one_process_leaves_the_others_to_their_work(model, tmp_path):
    for index in range(6):
        write(tmp_path / "in" / f"{index}.wav", seed=index)
    (tmp_path / "in" / "0.wav").write_bytes(b"no sound")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    asked = ["annotate", tmp_path / "in", "--model", model, "--out", tmp_path / "out", "--quiet"]
    command = [*torchrun, "-m", "ent_brain.cli", *map(str, asked)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"error: {tmp_path}/in/0.wav: cannot be read as audio (" in done.stderr
    last = "error: 1 of 6 recordings failed: see above; the rest is done"
    assert done.stderr.count(last) == 1
    assert {path.stem for path in (tmp_path / "out").glob("*.json")} == set("12345")


def test_a_manifest_names_the_files(model, tmp_path, capsys):
    write(tmp_path / "corpus" / "s" / "u1.wav")
    write_json({"one": {"wav": "{data_root}/s/u1.wav"}}, tmp_path / "m.json")
    asked = ("annotate", tmp_path / "m.json", "--model", model)
    assert run(*asked) == 1
    assert "say where that is by --data_root" in capsys.readouterr().err
    write_json({"one": {"wav": "{data_root}/../u1.wav"}}, tmp_path / "other.json")
    asked_other = ("annotate", tmp_path / "other.json", "--model", model)
    assert run(*asked_other, "--data_root", tmp_path / "corpus") == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/other.json: one: wav '{{data_root}}/../u1.wav' is not a path inside "
        "{data_root}/: correct it\n"
    )
    out = tmp_path / "out"
    assert run(*asked, "--data_root", tmp_path / "corpus", "--out", out) == 0
    assert Annotation.from_json((out / "one.json").read_text()).name == "one"


def test_standard_input_is_a_recording(model, tmp_path, capsys, monkeypatch):
    content = write(tmp_path / "a.wav").read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    assert run("annotate", "-", "--model", model, "--format", "webvtt", "--quiet") == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("WEBVTT")
    assert captured.err == ""


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_files(model, tmp_path, monkeypatch, processes):
    """As torchrun starts them; each file is done by one."""
    for index in range(5):
        write(tmp_path / "in" / f"{index}.wav", seed=index)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    done = []
    for rank in range(processes):
        monkeypatch.setenv("RANK", str(rank))
        out = tmp_path / f"out{rank}"
        assert run("annotate", tmp_path / "in", "--model", model, "--out", out) == 0
        done += [path.stem for path in out.glob("*.json")]
    assert sorted(done) == list("01234")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/no.wav"], "{tmp}/no.wav: no such file or folder: check the path"),
        (["{tmp}/empty"], "{tmp}/empty: no recordings there: name files or their folder"),
        (["{tmp}/x.json"], f"{{tmp}}/x.json: not a JSON object of utterances by id: {A_MANIFEST}"),
        (["{tmp}/deep.json"], f"{{tmp}}/deep.json: not JSON (nested too deeply): {A_MANIFEST}"),
        (
            ["{tmp}/zero.json", "--data_root", "{tmp}"],
            f"{{tmp}}/zero.json: a\\x00b: {NO_ID}: correct it",
        ),
        (
            ["{tmp}/long.json", "--data_root", "{tmp}"],
            f"{{tmp}}/long.json: {'a' * 300}: {NO_ID}: correct it",
        ),
        (
            ["{tmp}/none.json", "--data_root", "{tmp}"],
            "{tmp}/none.json: a: wav None is not a path inside {data_root}/: correct it",
        ),
        (
            ["{tmp}/nothing.json", "--data_root", "{tmp}"],
            "{tmp}/nothing.json: no recordings there: name files or their folder",
        ),
        (
            ["{tmp}/a.wav", "{tmp}/b/a.wav"],
            "{tmp}/a.wav and {tmp}/b/a.wav: both would be 'a.wav': name the folder that holds "
            "both, or give them in two calls, each with its --out",
        ),
        (
            ["{tmp}/a.wav", "--format", "textgird"],
            "--format: unknown format 'textgird': did you mean textgrid?",
        ),
        (
            ["{tmp}/a.wav", "--format", "docx"],
            "--format: unknown format 'docx': use some of json, rttm, textgrid, webvtt, audacity, "
            "srt, csv, frames.csv, eaf",
        ),
        (
            ["{tmp}/a.wav", "--format", "json,rttm"],
            "--format: several formats need --out, a folder to write them to",
        ),
        (
            ["{tmp}/a.wav", "--out", "{tmp}/a.wav"],
            "{tmp}/a.wav: cannot be written to (File exists): name another --out",
        ),
        (
            ["{tmp}/a.wav", "--model", "{tmp}/no"],
            "{tmp}/no: no folder: name the one that training left as `pretrained`, or owner/name "
            "of a model on the Hugging Face hub",
        ),
        (
            ["{tmp}/a.wav", "--model", "{tmp}/trained"],
            "{tmp}/trained: what a training left: name its model, {tmp}/trained/pretrained",
        ),
    ],
)
def test_what_is_wrong_is_one_line(model, tmp_path, capsys, arguments, message):
    write(tmp_path / "a.wav")
    write(tmp_path / "b" / "a.wav")
    (tmp_path / "empty").mkdir()
    shutil.copytree(model, tmp_path / "trained" / "pretrained")
    for name, content in (
        *(("x", "[1]"), ("nothing", "{}"), ("none", '{"a": {}}'), ("deep", "[" * 100_000)),
        ("zero", json.dumps({"a\0b": {"wav": "{data_root}/a.wav"}})),
        ("long", json.dumps({"a" * 300: {"wav": "{data_root}/a.wav"}})),
    ):
        (tmp_path / f"{name}.json").write_text(content)
    given = [text.replace("{tmp}", str(tmp_path)) for text in arguments]
    assert run("annotate", "--model", model, *given) == 1
    assert capsys.readouterr().err == f"error: {message.replace('{tmp}', str(tmp_path))}\n"


def test_an_unknown_device_is_one_line(model, tmp_path, capsys):
    assert run("annotate", write(tmp_path / "a.wav"), "--model", model, "--device", "gpu") == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: device: 'gpu': ")


def test_a_report_of_nothing_is_refused(tmp_path, capsys):
    assert run("report", tmp_path) == 1
    assert "name the output folder of a finished evaluation" in capsys.readouterr().err


def test_the_demo_is_the_repository_s(monkeypatch, capsys):
    called = []
    monkeypatch.setattr(
        cli.subprocess, "call", lambda command, cwd: called.append((command, cwd)) or 0
    )
    assert run("demo") == 0
    [(command, cwd)] = called
    assert command == ["make", "demo"]
    assert (cwd / "Makefile").is_file()
    monkeypatch.setattr(cli, "__file__", "/site-packages/ent_brain/cli.py")
    assert run("demo") == 1
    assert "clone the repository and run make demo in it" in capsys.readouterr().err


def test_it_is_a_program_that_says_json_and_nothing_else(model, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "ent_brain.cli", "annotate", str(write(tmp_path / "a.wav"))]
        + ["--model", str(model), "--quiet"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["name"] == "a"
