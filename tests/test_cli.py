"""The command line, called in this process; one test runs it as a program."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from ent_brain import __version__, audio, cli
from ent_brain.annotation import FORMATS, Annotation
from ent_brain.errors import exit_on_input_error
from ent_brain.export import export
from ent_brain.files import write_json
from ent_brain.inference import NO_SPEECH, EmotionTransducer

RATE = 16000
A_MANIFEST = "name a manifest of a recipe, or sound files"
NO_ID = "an id names files: no / \\ or NUL, not . or .., 1 to 200 bytes"


@pytest.fixture(scope="module")
def model(tmp_path_factory, trained):
    """Folder of a small model with random weights and windows of 2 s."""
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


def told(errors):
    """The output without notes on the results of an untrained model for noise."""
    notes = ("none of its segments is", NO_SPEECH)
    lines = errors.splitlines(keepends=True)
    return "".join(line for line in lines if not line.rstrip().endswith(notes))


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
    assert (captured.out, told(captured.err)) == ("", "")
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
    assert last == (
        f"error: 2 of 3 recordings failed: {tmp_path}/in/bad.wav, {tmp_path}/in/nan.wav. See "
        "the errors above. The others are done."
    )
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
        f"error: {tmp_path}/in/{'n' * 251}.wav: the name is too long. Rename the file.",
    ]
    assert last.startswith("error: 2 of 4 recordings failed: ")
    assert last.endswith(". See the errors above. The others are done.")
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
    assert (done.returncode, told(done.stderr)) == (1, "")


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
    assert told(capsys.readouterr().err) == (
        f"error: {other}: {tmp_path}/out already has 'y', a result of {tmp_path}/in/y.wav. Name "
        "another --out.\n"
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
    last = (
        f"error: 1 of 6 recordings failed: {tmp_path}/in/0.wav. See the errors above. The others "
        "are done."
    )
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


@pytest.mark.parametrize("rest", [0.8, 2.2])
def test_a_manifest_s_part_of_a_file_is_annotated_alone(model, tmp_path, capsys, rest):
    """This holds for parts shorter and longer than a window of the model."""
    whole = write(tmp_path / "corpus" / "u.wav", seconds=3.0)
    samples, rate = soundfile.read(whole, dtype="float32")
    first, end = round(0.7 * rate), round((0.7 + rest) * rate)
    soundfile.write(tmp_path / "alone.wav", samples[first:end], rate, subtype="PCM_16")
    entry = {"wav": "{data_root}/u.wav", "start": 0.7, "duration": rest}
    asked = ("--model", model, "--data_root", tmp_path / "corpus", "--out", tmp_path)
    write_json({"part": entry}, tmp_path / "m.json")
    assert run("annotate", tmp_path / "alone.wav", *asked) == 0
    assert run("annotate", tmp_path / "m.json", *asked) == 0
    found, expected = (
        Annotation.from_json((tmp_path / f"{name}.json").read_text()) for name in ("part", "alone")
    )
    assert replace(found, name="alone") == expected
    assert found.duration == rest
    for change in ({"start": 3.0}, {"start": -1.0}, {"duration": None}):
        write_json({"bad": entry | change}, tmp_path / "bad.json")
        assert run("annotate", tmp_path / "bad.json", *asked) == 1
        assert "start" in capsys.readouterr().err.replace("the part starts", "start")


class Pipe(io.BytesIO):
    """Standard input that fails if it is read as a whole."""

    def read(self, size=-1):
        assert 0 < size < 2**21
        return super().read(size)


def test_standard_input_is_a_recording(model, tmp_path, capsys, monkeypatch):
    content = write(tmp_path / "a.wav").read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Pipe(content)))
    assert run("annotate", "-", "--model", model, "--format", "webvtt", "--quiet") == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("WEBVTT")
    assert captured.err == ""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Pipe(b"no sound")))
    assert run("annotate", "-", "--model", model, "--quiet") == 1
    problem, last = capsys.readouterr().err.splitlines()
    assert problem.startswith("error: standard input: cannot be read as audio (")
    assert last == "error: 1 of 1 recordings failed: standard input. See the errors above."


@pytest.mark.parametrize("seconds", [1.2, 5.0], ids=["short", "long"])
def test_what_was_noticed_is_said_once_and_in_the_json(model, tmp_path, capsys, seconds):
    """One recording fits into a window; the other is longer than the model's 2 s."""
    path = write(tmp_path / "stereo.wav", seconds)
    wav, _ = soundfile.read(path)
    soundfile.write(path, np.stack([wav, 0 * wav], 1), RATE)
    assert run("annotate", path, "--model", model, "--quiet") == 0
    captured = capsys.readouterr()
    note = "channel 2 of 2 is silent: left out"
    assert captured.err == f"note: {path}: {note}\n"
    [line] = captured.out.splitlines()
    assert json.loads(line)["notes"] == [note]


@pytest.fixture
def decodings(monkeypatch):
    """Names of the files that are decoded, each as often as it is (list)."""
    names = []

    class Counted:
        def __init__(self, source):
            self.source = source

        def __getattr__(self, name):
            return getattr(self.source, name)

        def __iter__(self):
            names.append(self.source.path.name)
            return iter(self.source)

    open_source = audio.open_source
    monkeypatch.setattr(audio, "open_source", lambda *args: Counted(open_source(*args)))
    return names


@pytest.mark.parametrize(
    ("name", "seconds", "gains", "options", "count"),
    [
        ("long.flac", 5.0, (1,), [], 2),
        ("long.mp3", 5.0, (1, 0.5), [], 2),
        ("long.wav", 5.0, (1,), [], 2),
        ("long.wav", 5.0, (1, 0.5), [], 2),
        ("short.flac", 0.6, (1, 0.5), [], 2),
        ("short.wav", 0.6, (1,), [], 1),  # its header tells the length
        ("silent channel.flac", 5.0, (1, 0), [], 3),
        ("inverted channel.flac", 5.0, (1, -1), [], 3),
        ("one channel.flac", 5.0, (1, -1), ["--channel", "2"], 2),
        ("each channel.flac", 5.0, (1, -1), ["--channel", "each"], 2 * 2),
        ("each channel.flac", 0.6, (1, -1), ["--channel", "each"], 2 * 2),
    ],
)
def test_a_recording_is_decoded_once_to_look_through_it_and_once_to_hear_it(
    model, tmp_path, decodings, name, seconds, gains, options, count
):
    """How channels are mixed is known at the end alone: if one is left out, once more."""
    wav, _ = soundfile.read(write(tmp_path / "mono.wav", seconds))
    path = tmp_path / name
    soundfile.write(path, np.outer(wav, gains), RATE)
    assert run("annotate", path, "--model", model, "--out", tmp_path / "out", *options) == 0
    assert decodings == [name] * count


@pytest.mark.parametrize("gains", [(1,), (1, 0.5), (1, 0), (1, -1)])
@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "ogg"])
def test_what_is_found_while_a_file_is_looked_through_is_what_another_look_finds(
    model, tmp_path, kind, gains
):
    loaded = EmotionTransducer.from_hparams(source=model)
    wav, _ = soundfile.read(write(tmp_path / "mono.wav", 23.3), dtype="float32")
    wav[5 * RATE : 7 * RATE] = 0
    path = tmp_path / f"a.{kind}"
    soundfile.write(path, np.outer(wav, gains) + 0.01, RATE * 3 // 2)
    found, plain = loaded.scan(path), audio.scan_audio(path)
    assert found == plain
    (expected, *numbers), (speech, *others) = loaded._survey(plain), found.inspected[1]
    assert numbers == others
    assert expected[:3] == speech[:3]
    np.testing.assert_array_equal(expected.spectrum, speech.spectrum)
    assert loaded.scan(path, least=found.seconds).inspected == (None, None)


def test_what_is_too_short_for_words_is_noted(model, tmp_path, capsys):
    path = write(tmp_path / "a.wav", 0.05)
    assert run("annotate", path, "--model", model, "--quiet") == 0
    captured = capsys.readouterr()
    assert captured.err == f"note: {path}: {NO_SPEECH}\n"
    said = json.loads(captured.out)
    assert (said["text"], said["emotion"], said["segments"]) == ("", None, [])


def test_videos_of_a_folder_are_taken_and_other_media_are_counted(model, tmp_path, capsys):
    for name in ("a.wav", "b.mp4", "c.M4A"):  # what they hold tells the format
        write(tmp_path / "in" / "w.wav").rename(tmp_path / "in" / name)
    for name in ("x.dss", "y.DSS", "z.pcm", "notes.txt", "._z.pcm"):
        (tmp_path / "in" / name).write_bytes(b"?")
    asked = ("annotate", tmp_path / "in", "--model", model, "--quiet")
    assert run(*asked) == 0
    captured = capsys.readouterr()
    assert [json.loads(line)["name"] for line in captured.out.splitlines()] == ["a", "b", "c"]
    assert captured.err == (
        f"note: {tmp_path}/in: left out, but perhaps sound or video: 2 .dss, 1 .pcm\n"
    )


def test_channels_are_annotated_alone(model, tmp_path, capsys):
    path = write(tmp_path / "call.wav")
    wavs = np.stack([soundfile.read(write(tmp_path / f"{s}.wav", seed=s))[0] for s in (1, 2)], 1)
    soundfile.write(path, wavs, RATE)
    asked = ("annotate", path, "--model", model, "--quiet", "--channel")
    loaded = EmotionTransducer.from_hparams(source=model)
    expected = [loaded.annotate_file(tmp_path / f"{seed}.wav") for seed in (1, 2)]
    assert expected[0].frame_probabilities != expected[1].frame_probabilities
    assert run(*asked, "2") == 0
    said = Annotation.from_json(capsys.readouterr().out)
    assert (said.name, said.words) == ("call", expected[1].words)
    assert run(*asked, "each", "--out", tmp_path / "out") == 0
    assert run(*asked, "3") == 1
    problem = told(capsys.readouterr().err).splitlines()[0]
    assert problem == f"error: {path}: has no channel 3: give one from 1 to 2"
    assert run(*asked, "0") == 1
    assert capsys.readouterr().err == "error: --channel: '0'. Give a number from 1, or each.\n"
    said = Annotation.from_json((tmp_path / "out" / "call.json").read_text())
    assert [path.name for path in (tmp_path / "out").glob("*.json")] == ["call.json"]
    assert said.name == "call"
    for number, alone in enumerate(expected, 1):
        own = [word for word in said.words if word.speaker == f"channel{number}"]
        assert tuple(word._replace(speaker=None) for word in own) == alone.words
        assert said.speakers[number - 1].frame_probabilities == alone.frame_probabilities
        assert sum(said.speakers[number - 1].seconds) == pytest.approx(0.6)
    assert len(said.words) == sum(len(alone.words) for alone in expected)


def test_turns_of_an_rttm_name_the_speakers(model, tmp_path, capsys):
    write(tmp_path / "in" / "a.wav")
    write(tmp_path / "in" / "long.wav", 5.0)
    write(tmp_path / "in" / "other.wav")
    rttm = tmp_path / "turns.rttm"
    lines = ["a 1 0.1 0.2 <NA> <NA> bo", "long 1 0 4.5 <NA> <NA> anna", "a 1 0.3 0.1 <NA> <NA> cy"]
    rttm.write_text("".join(f"SPEAKER {line} <NA> <NA>\n" for line in lines))
    asked = ("annotate", tmp_path / "in", "--model", model, "--quiet", "--speakers", rttm)
    assert run(*asked, "--out", tmp_path / "out") == 1
    said = [
        Annotation.from_json((tmp_path / "out" / f"{n}.json").read_text()) for n in ["a", "long"]
    ]
    assert [[speaker.name for speaker in each.speakers] for each in said] == [
        ["bo", "cy"],
        ["anna"],
    ]
    totals = [sum(speaker.seconds) for each in said for speaker in each.speakers]
    assert totals == pytest.approx([0.2, 0.1, 4.5], abs=1e-3)
    assert capsys.readouterr().err.splitlines()[0] == (
        f"error: other: no turns in {rttm}. Add them under this name."
    )
    rttm.write_text(rttm.read_text().replace("anna", "Anna"))
    assert run(*asked, "--out", tmp_path / "out") == 1
    again = Annotation.from_json((tmp_path / "out" / "long.json").read_text())
    assert [speaker.name for speaker in again.speakers] == ["Anna"]
    assert run(*asked, "--channel", "each") == 1
    assert "error: --speakers: --channel each names the speakers." in capsys.readouterr().err


def test_a_page_shows_all_recordings_of_the_folder(model, tmp_path, capsys):
    for name in ("a/call.wav", "b/call.wav"):
        path = write(tmp_path / "in" / name)
        soundfile.write(path, np.stack([soundfile.read(path)[0]] * 2, 1), RATE)
    (tmp_path / "in" / "broken.wav").write_text("no sound")
    out = tmp_path / "out"
    asked = ("annotate", tmp_path / "in", "--model", model, "--quiet", "--out", out)
    channels = ("--channel", "each", "--format", "html")
    assert run(*asked, *channels) == 1  # for the broken file; the page is there nevertheless
    assert capsys.readouterr().out == f"{out / 'recordings.html'}\n"
    text = (out / "recordings.html").read_text("utf-8")
    assert "<title>Recordings in in</title>" in text
    data = text.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    data = json.loads(data)
    names = [f"{folder}/call" for folder in "ab"]
    assert [each["id"] for each in data["utterances"]] == names
    assert [name for name, _ in data["summary"]["seconds"]] == ["channel1", "channel2"]
    said = [Annotation.from_json((out / f"{name}.json").read_text()) for name in names]
    for index, emotion in enumerate(said[0].emotions):
        expected = sum(
            segment.end - segment.start
            for each in said
            for segment in each.segments
            if (segment.speaker, segment.emotion) == ("channel1", emotion)
        )
        assert data["summary"]["seconds"][0][1][index] == pytest.approx(expected)
    (out / "a" / "call.json").write_text("{")
    assert run(*asked, *channels, "--keep") == 1
    assert "call.json: damaged (JSONDecodeError)" in capsys.readouterr().err


def test_a_page_is_named_after_the_only_folder_or_file(tmp_path, monkeypatch):
    (tmp_path / "calls.2024").mkdir()
    monkeypatch.chdir(tmp_path / "calls.2024")
    for files, title in (
        (["."], "Recordings in calls.2024"),
        ([str(tmp_path / "calls.2024")], "Recordings in calls.2024"),
        (["a/talk.one.wav"], "talk.one"),
        (["test.json"], "Recordings in test.json"),
        (["a.wav", "b.wav"], "Recordings"),
        (["-"], "Recordings"),
    ):
        assert cli._title(files) == title


def test_other_formats_that_are_out_of_date_are_made_again_too(model, tmp_path):
    path, out = tmp_path / "a.wav", tmp_path / "out"
    asked = ("annotate", path, "--model", model, "--out", out, "--quiet", "--format")
    write(path)
    assert run(*asked, "json,csv,srt") == 0
    (out / "a.srt").unlink()
    before = (out / "a.csv").read_text()
    write(path, seed=1)
    assert run(*asked, "rttm", "--keep") == 0
    assert (out / "a.csv").read_text() == before
    assert run(*asked, "json") == 0
    assert (out / "a.csv").read_text() != before
    assert not (out / "a.srt").exists()


def test_results_that_are_out_of_date_are_made_again(model, tmp_path):
    path, out, other = tmp_path / "a.wav", tmp_path / "out", tmp_path / "model"
    shutil.copytree(model, other)
    (other / "README.md").write_text("Another card is no other model.")

    def is_made(*extra, model=other):
        """Whether a call replaces the result, which the test marks before."""
        result = out / "a.json"
        result.write_text("old") if result.is_file() else None
        assert run("annotate", path, "--model", model, "--out", out, "--quiet", *extra) == 0
        return result.read_text() != "old"

    write(path)
    assert is_made()
    assert not is_made()
    assert not is_made(model=model)
    write(path, seed=1)
    assert not is_made("--keep")
    assert is_made()
    assert not is_made()
    assert is_made("--overwrite")
    assert is_made("--channel", "1")
    assert not is_made("--channel", "1")
    assert is_made("--precision", "bf16")
    yaml = other / "hyperparams.yaml"
    yaml.write_text(yaml.read_text().replace("beam_size: 2", "beam_size: 1"))
    assert is_made()
    assert is_made("--format", "json,rttm")  # there is no RTTM yet
    write(path, seed=2)
    (out / "a.rttm").write_text("old")
    assert is_made("--format", "json")
    assert (out / "a.rttm").read_text() != "old"
    index = out / cli.INDEX
    last = json.loads(index.read_text().splitlines()[-1])
    index.write_text(json.dumps({key: last[key] for key in ("name", "source")}) + "\n")
    assert not is_made("--keep")
    assert is_made()
    assert not is_made()


def test_a_folder_with_all_results_may_be_read_only(model, tmp_path, capsys, monkeypatch):
    path, out = write(tmp_path / "a.wav"), tmp_path / "out"
    asked = ("annotate", path, "--model", model, "--out", out, "--quiet")
    assert run(*asked) == 0

    def refuse(**_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(cli.tempfile, "TemporaryFile", refuse)
    assert run(*asked) == 0
    assert capsys.readouterr().err == ""
    write(path, seed=1)
    assert run(*asked) == 1
    assert capsys.readouterr().err == (
        f"error: {out}: cannot be written (Read-only file system). Name another --out.\n"
    )


def test_the_first_of_many_bad_files_are_named_at_the_end(model, tmp_path, capsys):
    for index in range(7):
        (tmp_path / f"{index}.wav").write_bytes(b"no sound")
    assert run("annotate", tmp_path, "--model", model, "--quiet") == 1
    names = ", ".join(f"{tmp_path}/{index}.wav" for index in range(5))
    assert capsys.readouterr().err.splitlines()[7:] == [
        f"error: 7 of 7 recordings failed: {names} and 2 more. See the errors above."
    ]


def test_missing_files_of_a_manifest_are_counted_once(model, tmp_path, capsys):
    write(tmp_path / "corpus" / "there.wav")
    entries = {f"u{i}": {"wav": f"{{data_root}}/{i}.wav"} for i in range(7)}
    write_json(entries | {"v": {"wav": "{data_root}/there.wav"}}, tmp_path / "m.json")
    asked = ("annotate", tmp_path / "m.json", "--model", model, "--quiet", "--data_root")
    names = ", ".join(f"{tmp_path}/corpus/{index}.wav" for index in range(5))
    assert run(*asked, tmp_path / "corpus") == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["name"] == "v"
    assert captured.err.splitlines() == [
        f"error: 7 of 8 recordings are missing: {names} and 2 more. Check --data_root.",
        f"error: 7 of 8 recordings failed: {names} and 2 more. See the errors above. The others "
        "are done.",
    ]
    assert run(*asked, tmp_path / "wrong") == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: 8 of 8 recordings are missing: {tmp_path}/wrong/0.wav, ")


def test_ctrl_c_is_one_line_and_the_rest_is_done_later(model, tmp_path, capsys, monkeypatch):
    for index in range(3):
        write(tmp_path / "in" / f"{index}.wav", seed=index)
    asked = ("annotate", tmp_path / "in", "--model", model, "--out", tmp_path / "out", "--quiet")
    annotate_batch, calls = EmotionTransducer.annotate_batch, []

    def interrupted(self, *args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return annotate_batch(self, *args)

    monkeypatch.setattr(cli, "BATCH_SECONDS", 1.0)  # each file is a batch
    monkeypatch.setattr(EmotionTransducer, "annotate_batch", interrupted)
    assert run(*asked) == 130
    assert told(capsys.readouterr().err) == (
        "interrupted: 1 of 3 recordings were annotated. Run the same command again for the "
        "others.\n"
    )
    [first] = (tmp_path / "out").glob("*.json")
    first.write_text("kept")
    assert run(*asked) == 0
    assert len(calls) == 4
    assert first.read_text() == "kept"


def test_ctrl_c_in_any_program_is_one_line(capsys):
    @exit_on_input_error
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted: run the same command again to resume\n"


def test_ctrl_c_while_pytorch_is_imported_is_one_line(tmp_path):
    stub = "import os, signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    (tmp_path / "torch.py").write_text(f"{stub}os.kill(os.getpid(), signal.SIGINT)\n")
    path = f"{tmp_path}{os.pathsep}{Path(cli.__file__).parents[1]}"
    command = [sys.executable, "-m", "ent_brain", "--version"]
    ended = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert ended.returncode == 130
    assert ended.stderr == "interrupted: run the same command again to resume\n"


def test_the_version_is_told_with_those_that_results_depend_on(capsys):
    assert run("--version") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"ent_brain {__version__}, speechbrain 1.")
    assert f"torch {torch.__version__.partition('+')[0]}" in said


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_files(model, tmp_path, monkeypatch, processes):
    """Processes as from torchrun; each file is annotated by one of them."""
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
            "--format: unknown format 'textgird'. Did you mean textgrid?",
        ),
        (
            ["{tmp}/a.wav", "--format", "docx"],
            "--format: unknown format 'docx'. Choose from json, rttm, textgrid, webvtt, audacity, "
            "srt, csv, frames.csv, eaf, html.",
        ),
        (
            ["{tmp}/a.wav", "--format", "json,rttm"],
            "--format: several formats need a folder. Give --out.",
        ),
        (
            ["{tmp}/a.wav", "--format", "html"],
            "--format: html needs a folder for the page. Give --out.",
        ),
        (
            ["{tmp}/a.wav", "--out", "{tmp}/a.wav"],
            "{tmp}/a.wav: cannot be written (File exists). Name another --out.",
        ),
        (
            ["{tmp}/a.wav", "--model", "{tmp}/no"],
            "{tmp}/no: no such folder. Name the `pretrained` folder of a training, or owner/name "
            "of a model on the Hugging Face hub.",
        ),
        (
            ["{tmp}/a.wav", "--model", "{tmp}/trained"],
            "{tmp}/trained: output folder of a training. Name its model, {tmp}/trained/pretrained.",
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


@pytest.mark.parametrize("command", ["annotate", "listen", "app"])
def test_an_unknown_device_is_one_line(model, tmp_path, capsys, command):
    source = {"annotate": [write(tmp_path / "a.wav")], "listen": ["-"], "app": []}[command]
    assert run(command, *source, "--model", model, "--device", "gpu") == 1
    [line] = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("error: device: 'gpu': ")


def test_a_report_of_nothing_is_refused(tmp_path, capsys):
    assert run("report", tmp_path) == 1
    assert "Name the output folder of a finished evaluation" in capsys.readouterr().err


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
    assert "Clone the repository and run make demo in it." in capsys.readouterr().err


def test_it_is_a_program_that_says_json_and_nothing_else(model, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "ent_brain.cli", "annotate", str(write(tmp_path / "a.wav"))]
        + ["--model", str(model), "--quiet"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, told(done.stderr)) == (0, "")
    assert json.loads(done.stdout)["name"] == "a"
