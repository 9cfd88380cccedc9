"""The commands in the README and its page on recordings work."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ent_brain import cli
from ent_brain.annotation import Annotation
from ent_brain.export import export
from ent_brain.files import write_json
from ent_brain.page import RESULTS_FILE, UTTERANCES_FILE, Utterance, write_utterances

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
ANNOTATING = (REPOSITORY / "docs" / "annotating.md").read_text(encoding="utf-8")
IN_USE = ANNOTATING.split("## From the shell and from Python")[1].split("\n## ")[0]


@pytest.fixture
def demo(tmp_path, trained, monkeypatch):
    """Working folder with the demo's results and some recordings."""
    monkeypatch.chdir(tmp_path)
    noise = 0.1 * np.random.default_rng(0).normal(size=20000)
    Path("recordings").mkdir()
    for path in ("speech.wav", "recordings/one.wav", "recordings/two.flac"):
        soundfile.write(path, noise, 16000)
    export(trained(), Path("demo/ent/pretrained"), longest_window=2.0)
    said = Annotation("u1", 1.25, "", (), None, None, (), (), (), 0.04, ())
    write_utterances(
        [Utterance(said, str(Path("speech.wav").resolve()))], Path("demo/ent") / UTTERANCES_FILE
    )
    write_json(
        [{"test set": "ZED", "protocol": "valid", "WER": 10.0}], Path("demo/ent") / RESULTS_FILE
    )


def test_the_command_line_does_what_the_readme_says(demo, capsys):
    lines = [line for line in IN_USE.splitlines() if line.startswith("ent-brain ")]
    said = []
    for line in lines:
        with pytest.raises(SystemExit) as ended:
            cli.main(shlex.split(line)[1:])
        assert ended.value.code == 0
        said.append(capsys.readouterr().out)
    speech, recordings, report = said
    assert Annotation.from_json(speech).name == "speech"
    assert recordings == ""
    written = {path.name for path in Path("said").iterdir()} - {cli.INDEX}
    assert written == {
        f"{name}.{end}" for name in ("one", "two") for end in ("json", "TextGrid", "vtt")
    }
    assert Path(report.strip()).read_text().startswith("<!doctype html>")


def test_the_python_example_does_what_the_readme_says(demo, capsys):
    names = {}
    exec(re.search(r"```python\n(.*?)```", IN_USE, re.DOTALL)[1], names)
    assert Annotation.from_json(Path("said/speech.json").read_text()) == names["annotation"]
    assert Path("said/speech.TextGrid").is_file()
    text, *segments, word = capsys.readouterr().out.splitlines()
    assert text == names["annotation"].text
    assert segments == [str(segment) for segment in names["annotation"].segments]
    assert word == str(names["annotation"].words[0])


def test_what_the_readme_shows_is_there():
    links = re.findall(r"\]\((?!https?://)([^)]+)\)", README)
    assert links
    assert all((REPOSITORY / link).is_file() for link in links)


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150
