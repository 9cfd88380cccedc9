"""Alignment of known words: transcript files, spelling, and times."""

import codecs
import itertools
import json

import numpy as np
import pytest
import soundfile
import torch

from ent_brain import alignment, cli
from ent_brain.alignment import align_tokens, word_times
from ent_brain.annotation import FORMATS, Annotation
from ent_brain.decoding import TokenPath, judge_frames
from ent_brain.errors import InputError
from ent_brain.export import export
from ent_brain.inference import NO_SPEECH, EmotionTransducer
from ent_brain.tokens import CharTokens, train_sentencepiece
from ent_brain.transcripts import (
    Passage,
    find_transcript,
    read_table,
    read_transcript,
    spell,
)

RATE = 16000
TEXT = "“Well” – it's 42 naïve, tea!"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, trained):
    """Folder of a small model with random weights and windows of 2 s."""
    folder = tmp_path_factory.mktemp("model") / "pretrained"
    export(trained(), folder, 2.0)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return EmotionTransducer.from_hparams(source=folder)


def write(path, seconds=1.2, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    wav = 0.1 * generator.normal(size=int(seconds * RATE))
    wav *= np.repeat(generator.uniform(0.2, 1.0, int(seconds) + 1), RATE)[: len(wav)]
    soundfile.write(path, wav, RATE, subtype="FLOAT")
    return path


def run(*arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return caught.value.code


def textgrid(tiers, end=4.0):
    """Write a TextGrid in Praat's short form, from intervals (start, end, text) by tier."""
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", 0, end, "<exists>"]
    lines.append(len(tiers))
    for name, intervals in tiers.items():
        lines += ['"IntervalTier"', f'"{name}"', 0, end, len(intervals)]
        for start, stop, text in intervals:
            quoted = text.replace('"', '""')
            lines += [start, stop, f'"{quoted}"']
    return "\n".join(map(str, lines)) + "\n"


def test_words_keep_their_text_and_have_the_tokens_of_their_spoken_form():
    spelling = spell(TEXT, CharTokens())
    # “ and ” are no characters of the published normalisation, and no tokens either.
    assert [text for text, _, _ in spelling.words] == ["“Well” –", "it's", "42", "naïve,", "tea!"]
    assert spelling.unspelled == ["“Well”", "naïve,"]
    assert CharTokens().decode(spelling.tokens) == "WELL IT'S FORTY TWO NAVE TEA"
    spoken = [CharTokens().decode(spelling.tokens[a:b]) for _, a, b in spelling.words]
    assert spoken == ["WELL", "IT'S", "FORTY TWO", "NAVE", "TEA"]


@pytest.mark.parametrize("pieces", [False, True])
def test_a_text_that_tokens_can_spell_is_encoded_as_a_whole(tmp_path, pieces):
    tokens = CharTokens()
    if pieces:
        texts = ["WELL I DON'T KNOW", "IN THE KITCHEN", "THE BAKER LEFT"]
        tokens = train_sentencepiece(texts, tmp_path / "m.model", 30)
    text = "The baker, in-the-kitchen; don't!"
    spelling = spell(text, tokens)
    assert spelling.tokens == tokens.encode(tokens.normalize(text))
    of_words = [tokens.decode(spelling.tokens[a:b]) for _, a, b in spelling.words]
    assert of_words == ["THE", "BAKER", "IN THE KITCHEN", "DON'T"]
    assert not spelling.unspelled


def test_a_word_without_tokens_is_between_its_neighbours():
    words = [("a", 0, 1), ("5", 1, 1), ("b", 2, 3), ("6", 3, 3), ("7", 3, 3)]
    times = word_times(words, [1, 8, 10], 0.04, 0.6)
    rounded = [(text, round(start, 4), round(end, 4)) for text, start, end in times]
    assert rounded == [
        ("a", 0.04, 0.08),
        ("5", 0.08, 0.26),
        ("b", 0.4, 0.44),
        ("6", 0.44, 0.46),
        ("7", 0.46, 0.6),
    ]
    assert word_times([("5", 0, 0)], [], 0.04, 0.6) == [("5", 0.0, pytest.approx(0.18))]


def test_the_path_does_not_depend_on_how_many_nodes_are_in_memory(model, monkeypatch):
    torch.manual_seed(0)
    streams = model.mods.model.encode(torch.randn(1, 50, 1, 320), torch.tensor([50]))
    tokens = CharTokens().encode("ALL OF THE WORDS")
    at_once = align_tokens(model.mods.model, streams, tokens)
    monkeypatch.setattr(alignment, "NODES_AT_ONCE", 7 * 17)
    in_blocks = align_tokens(model.mods.model, streams, tokens)
    assert in_blocks[0] == at_once[0]
    assert len(set(at_once[0])) > 3
    np.testing.assert_allclose(in_blocks[1], at_once[1], rtol=1e-5)
    assert align_tokens(model.mods.model, streams, []) == ([], [])


def test_a_transcript_beside_a_recording_is_found_and_read(tmp_path):
    path = tmp_path / "a.b.wav"
    with pytest.raises(InputError, match=r"a\.b\.wav: no transcript beside it\. Write a\.b\.txt"):
        find_transcript(path)
    grid = textgrid({"anna": [(0, 1.5, ""), (1.5, 2, 'Say "hi"')], "bo": [(0, 1.75, "Oh")]})
    (tmp_path / "a.b.TextGrid").write_text(grid, encoding="utf-16")
    assert read_transcript(find_transcript(path)) == (
        Passage("Oh", 0.0, 1.75, "bo"),
        Passage('Say "hi"', 1.5, 2.0, "anna"),
    )
    (tmp_path / "a.b.txt").write_bytes(codecs.BOM_UTF8 + "Grüße\n".encode())
    assert read_transcript(find_transcript(path)) == (Passage("Grüße\n"),)
    (tmp_path / "a.b.lab").write_text(" \n")
    with pytest.raises(InputError, match=r"a\.b\.lab: has no words"):
        read_transcript(find_transcript(path))


@pytest.mark.parametrize("speakers", [False, True])
def test_a_tier_of_words_counts_alone(tmp_path, speakers):
    before = "anna - " if speakers else ""
    path = tmp_path / "a.TextGrid"
    tiers = {f"{before}words": [(0, 0.5, "oh"), (0.5, 4, "")], f"{before}phones": [(0, 0.5, "OW")]}
    if speakers:
        tiers["bo - words"] = [(1, 2, "yes")]
    path.write_text(textgrid(tiers))
    expected = [Passage("oh", 0.0, 0.5, "anna" if speakers else None, True)]
    expected += [Passage("yes", 1.0, 2.0, "bo", True)] if speakers else []
    assert list(read_transcript(path)) == expected


@pytest.mark.parametrize("content", ["", "words", textgrid({"a": [(2, 1, "oh")]})])
def test_a_damaged_textgrid_is_one_line(tmp_path, content):
    path = tmp_path / "a.TextGrid"
    path.write_text(content)
    with pytest.raises(InputError, match=r"a\.TextGrid: not a TextGrid \(.+\)\. Save it again"):
        read_transcript(path)


def test_a_table_has_texts_by_file(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text('\ufeffFile-Name;Sentence;x\na.wav;"Oh; yes";1\nb/c.wav;;2\n')
    assert read_table(table) == {(tmp_path / "a.wav").resolve(): (Passage("Oh; yes"),)}
    table.write_text("wav\na.wav\n")
    with pytest.raises(InputError, match=r"no column transcript or wrd or .*\. Add it\."):
        read_table(table)
    table.write_text("wav\ttext\na.wav\toh\n./a.wav\tah\n")
    with pytest.raises(InputError, match=r"\./a\.wav: in two rows"):
        read_table(table)


def test_every_known_word_gets_times_and_an_emotion(model, tmp_path):
    path = write(tmp_path / "a.wav")
    annotation = model.align_file(path, TEXT)
    assert (annotation.text, annotation.words_by, annotation.name) == (TEXT, "transcript", "a")
    assert [word.text for word in annotation.words] == ["“Well” –", "it's", "42", "naïve,", "tea!"]
    assert all(word.emotion in annotation.emotions for word in annotation.words)
    bounds = [time for word in annotation.words for time in (word.start, word.end)]
    assert bounds == sorted(bounds)
    assert bounds[-1] <= annotation.duration == 1.2
    assert annotation.notes[0] == "the model's tokens cannot spell 2 words: “Well”, naïve,"
    [start] = {word.start for word in annotation.words if word.text == "it's"}
    encoded = model._encode_each(torch.as_tensor(soundfile.read(path)[0])[None], torch.ones(1))
    streams = type(encoded[0].streams)(*(stream[None] for stream in encoded[0].streams))
    frames, _ = align_tokens(model.mods.model, streams, spell(TEXT, CharTokens()).tokens)
    assert start == pytest.approx(0.04 * frames[5], abs=0.04)
    heard = model.annotate_file(path)
    assert heard.words_by == "model"
    assert Annotation.from_json(annotation.to_json()) == annotation
    assert json.loads(annotation.to_json())["words_by"] == "transcript"


def test_known_words_are_where_they_would_be_if_the_model_had_heard_them(
    model, tmp_path, monkeypatch
):
    path = write(tmp_path / "a.wav")
    tokens = CharTokens().encode("SOME OTHER WORDS")

    def search(mods, encoded, frame_lens, *_, **__):
        [found] = judge_frames(mods, encoded, frame_lens, [TokenPath(tokens, [0] * 16, 0.0)])
        return [[found]]

    monkeypatch.setattr("ent_brain.recognizer.search", search)
    heard, aligned = model.annotate_file(path), model.align_file(path, "some other words")
    assert [word.text for word in heard.words] == ["SOME", "OTHER", "WORDS"]
    assert [word[1:3] for word in aligned.words] == [word[1:3] for word in heard.words]


def test_a_batch_is_aligned_as_its_recordings_alone(model, tmp_path):
    files = [write(tmp_path / f"{i}.wav", 0.7 + 0.3 * i, i) for i in range(3)]
    wavs = [torch.as_tensor(soundfile.read(path, dtype="float32")[0]) for path in files]
    lens = torch.tensor([len(wav) for wav in wavs])
    padded = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    texts = ["one two", "", [Passage("three", 0.5, 1.0)]]
    found = model.align_batch(padded, texts, lens / lens.max(), "012")
    for path, text, annotation in zip(files, texts, found, strict=True):
        alone = model.align_file(path, text)
        assert (annotation.words, annotation.segments) == (alone.words, alone.segments)
    wider = torch.nn.functional.pad(padded, (0, 4000))  # padding behind the longest, too
    assert model.align_batch(wider, texts, lens / wider.size(1), "012") == found
    assert [len(annotation.words) for annotation in found] == [2, 0, 1]
    assert 0.48 <= found[2].words[0].start < found[2].words[0].end <= 1.0
    for wrong in ("one two three", ["one"]):
        with pytest.raises(InputError, match="texts: .* for 3 waveforms"):
            model.align_batch(padded, wrong, lens / lens.max())


def test_a_long_recording_is_aligned_as_a_whole(model, tmp_path):
    """9 s in windows of 2 s: the frames are complete, and words in order across windows."""
    path = write(tmp_path / "long.wav", 9.0)
    text = " ".join(["Some words, and more of them."] * 6)
    annotation = model.align_file(path, text, progressbar=False)
    heard = model.annotate_file(path, progressbar=False)
    assert annotation.text == text
    assert len(annotation.frame_probabilities) == len(heard.frame_probabilities)
    assert annotation.segments[-1].end == annotation.duration == 9.0
    bounds = [time for word in annotation.words for time in (word.start, word.end)]
    assert bounds == sorted(bounds)
    passages = [Passage("to be", 1.0, 2.5), Passage("or not", 6.0, 7.04)]
    placed = model.align_file(path, passages, progressbar=False).words
    assert [word.text for word in placed] == ["to", "be", "or", "not"]
    assert 1.0 <= placed[0].start < placed[1].end <= 2.52
    assert 6.0 <= placed[2].start < placed[3].end <= 7.04
    assert all(a.end <= b.start for a, b in itertools.pairwise(placed))


def test_what_cannot_be_aligned_is_refused(model, tmp_path, monkeypatch):
    path = write(tmp_path / "a.wav")
    with pytest.raises(InputError, match=r"a\.wav: its transcript has words at 1\.5 s, but"):
        model.align_file(path, [Passage("oh", 1.5, 2.0)])
    monkeypatch.setattr("ent_brain.inference.MOST_NODES", 80)
    model.align_file(path, "oh")
    with pytest.raises(InputError, match=r"a\.wav: 1 s with 5 tokens are too long to align at onc"):
        model.align_file(path, "oh no")
    short = model.align_file(write(tmp_path / "b.wav", 0.05), "oh")
    assert (short.words, short.emotion) == ((), None)
    assert short.notes == (NO_SPEECH,)


def test_words_of_a_textgrid_keep_their_times(model, tmp_path):
    path = write(tmp_path / "a.wav")
    passages = [Passage("Oh", 0.1, 0.3, None, True), Passage("yes", 0.55, 0.7, None, True)]
    words = model.align_file(path, passages).words
    assert [(word.text, word.start, word.end) for word in words] == [
        ("Oh", 0.1, 0.3),
        ("yes", 0.55, 0.7),
    ]
    assert all(word.emotion for word in words)


def test_passages_of_speakers_may_overlap(model, tmp_path):
    passages = [Passage("one two", 0.0, 0.9, "anna"), Passage("three", 0.3, 1.2, "bo")]
    annotation = model.align_file(write(tmp_path / "a.wav"), passages)
    spoken = {word.text: word.speaker for word in annotation.words}
    assert spoken == {"one": "anna", "two": "anna", "three": "bo"}
    seconds = {speaker.name: sum(speaker.seconds) for speaker in annotation.speakers}
    assert seconds == pytest.approx({"anna": 0.9, "bo": 0.9}, abs=1e-3)


def test_a_folder_is_aligned_with_the_transcripts_in_it(folder, tmp_path, capsys):
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    for seed, name in enumerate(("a.wav", "s/b.wav", "s/long.wav", "none.wav", "late.wav")):
        write(corpus / name, 5.0 if "long" in name else 1.0, seed)
    (corpus / "a.lab").write_text("Oh, no!")
    (corpus / "s" / "b.txt").write_text("Yes.")
    (corpus / "s" / "long.TextGrid").write_text(textgrid({"anna": [(1, 3, "So long")]}, 5.0))
    (corpus / "late.TextGrid").write_text(textgrid({"bo": [(3, 4, "late")]}))
    asked = ("align", corpus, "--model", folder, "--out", out, "--quiet", "--format")
    assert run(*asked, ",".join(FORMATS)) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert errors == [
        f"error: {corpus}/none.wav: no transcript beside it. Write none.txt, or name a --table.",
        f"error: {corpus}/late.wav: its transcript has words at 3.0 s, but the recording ends at "
        "1.000 s. Give the transcript of this recording.",
        f"error: 2 of 5 recordings failed: {corpus}/none.wav, {corpus}/late.wav. See the "
        "errors above. The others are done.",
    ]
    said = {
        name: Annotation.from_json((out / f"{name}.json").read_text())
        for name in ("a", "s/b", "s/long")
    }
    assert [each.text for each in said.values()] == ["Oh, no!", "Yes.", "So long"]
    assert {each.words_by for each in said.values()} == {"transcript"}
    assert "Oh,," not in (out / "a.csv").read_text()
    assert (out / "s" / "b.csv").read_text().splitlines()[1].startswith("Yes.,0")
    assert "no!" in (out / "a.vtt").read_text()

    (out / "a.json").write_text("old")
    assert run(*asked, "json") == 1
    assert (out / "a.json").read_text() == "old"
    (corpus / "a.lab").write_text("Oh, yes!")
    assert run(*asked, "json") == 1
    assert Annotation.from_json((out / "a.json").read_text()).text == "Oh, yes!"


def test_a_table_names_the_transcripts(folder, tmp_path, capsys):
    write(tmp_path / "in" / "a.wav")
    write(tmp_path / "in" / "b.wav")
    table = tmp_path / "data.csv"
    table.write_text("wav,transcript\nin/a.wav,Oh no\n")
    asked = ("align", tmp_path / "in", "--model", folder, "--quiet", "--table")
    assert run(*asked, table) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["text"] == "Oh no"
    assert f"error: {tmp_path}/in/b.wav: no text in {table}. Add a row." in captured.err
    assert run(*asked, table, "--channel", "each") == 1
    assert capsys.readouterr().err.startswith("error: --channel: align cannot use each.")


def test_a_result_never_replaces_a_transcript(folder, tmp_path, capsys):
    write(tmp_path / "a.wav")
    grid = textgrid({"anna": [(0, 1, "Oh")]})
    (tmp_path / "a.TextGrid").write_text(grid)
    asked = ("align", tmp_path, "--model", folder, "--out", tmp_path, "--format", "textgrid")
    assert run(*asked) == 1
    assert f"{tmp_path}/a.TextGrid: the result would replace it." in capsys.readouterr().err
    assert (tmp_path / "a.TextGrid").read_text() == grid
