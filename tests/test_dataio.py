import itertools
import json

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.sampler import ReproducibleRandomSampler
from torch.utils.data import BatchSampler

from ent_brain.augment import alter
from ent_brain.cache import fill
from ent_brain.dataio import (
    CurriculumSampler,
    VariantSampler,
    add_variants,
    interval_spans,
    make_batch_sampler,
    make_dataset,
    read_audio,
)
from ent_brain.emotions import PUBLISHED
from ent_brain.errors import InputError
from ent_brain.frontend import FbankFrontend, SSLFrontend
from ent_brain.manifest import Interval
from ent_brain.segments import Segment
from ent_brain.tokens import CharTokens, train_sentencepiece


def tone(rate, seconds=1.0, hertz=440.0):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def write_manifest(folder, **utterances):
    """Write a manifest of (seconds, transcript, emotion, segments) by id, and its audio."""
    manifest = {}
    for name, (seconds, transcript, emotion, segments) in utterances.items():
        soundfile.write(folder / f"{name}.flac", tone(16000, seconds), 16000)
        manifest[name] = {
            "wav": f"{{data_root}}/{name}.flac",
            "duration": seconds,
            "transcript": transcript,
            "emotion": emotion,
            "speaker": "Ann",
        }
        if segments is not None:
            manifest[name]["segments"] = [segment._asdict() for segment in segments]
    (folder / "train.json").write_text(json.dumps(manifest))
    return folder / "train.json"


def dataset_of(manifest, max_tokens_per_frame=1.0, frame_duration=0.02, speeds=(100,)):
    frontend = FbankFrontend(frame_duration)
    return make_dataset(
        {"corpus": (manifest, manifest.parent)},
        CharTokens(),
        PUBLISHED,
        frontend,
        max_tokens_per_frame,
        speeds,
    )


# --- audio


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_audio_of_any_format_is_read(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(16000), 16000)
    audio = read_audio(path, 16000)
    assert audio.shape == (16000,)
    assert audio.dtype == torch.float32
    tolerance = 0.05 if suffix == "ogg" else 1e-4  # one of them drops what is not heard
    np.testing.assert_allclose(audio[500:-500], tone(16000)[500:-500], atol=tolerance)


@pytest.mark.parametrize("rate", [8000, 11127, 22050, 44100, 44101, 48000])
def test_other_rates_are_resampled(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(rate), rate, subtype="FLOAT")
    audio = read_audio(tmp_path / "a.wav", 16000)
    assert audio.shape == (16000,)
    np.testing.assert_allclose(audio[200:-200], tone(16000)[200:-200], atol=5e-3)


@pytest.mark.parametrize("rate", [16000, 48000])
def test_channels_are_mixed_down(tmp_path, rate):
    left, right = tone(rate, hertz=300.0), tone(rate, hertz=500.0)
    soundfile.write(tmp_path / "a.wav", np.stack((left, right), 1), rate, subtype="FLOAT")
    audio = read_audio(tmp_path / "a.wav", 16000)
    expected = (tone(16000, hertz=300.0) + tone(16000, hertz=500.0)) / 2
    np.testing.assert_allclose(audio[200:-200], expected[200:-200], atol=5e-3)


@pytest.mark.parametrize("content", [b"", b"RIFF and no more"])
def test_what_is_no_audio_is_refused(tmp_path, content):
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_audio(path, 16000)
    assert str(error.value).startswith(f"{path}: cannot be read as audio (")
    assert str(error.value).endswith("): replace it")
    assert "\n" not in str(error.value)


def test_empty_audio_is_refused(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(0), 16000)
    with pytest.raises(InputError) as error:
        read_audio(path, 16000)
    assert str(error.value) == f"{path}: holds no audio: replace or remove it"


# --- items


def test_an_item_holds_what_is_learnt_from_it(tmp_path):
    sad = [Segment(0.2, 0.7, "sad")]
    dataset = dataset_of(write_manifest(tmp_path, a=(1.0, "TEA É", "sad", sad)))
    item = dataset[0]
    assert (item["id"], item["emotion_index"], item["token_count"]) == ("a", 2, 5)
    assert item["tokens"].tolist() == [4, 3, 5, 2, 1]
    assert item["tokens"].dtype == torch.int64
    np.testing.assert_allclose(item["sig"], tone(16000), atol=1e-4)
    assert item["entry"]["transcript"] == "TEA É"
    assert item["entry"]["segments"] == sad


def test_known_to_be_neutral_is_not_the_same_as_not_known(tmp_path):
    manifest = write_manifest(
        tmp_path, known=(1.0, "HI", "neutral", []), unknown=(1.0, "HI", "neutral", None)
    )
    known, unknown = dataset_of(manifest)
    assert known["entry"]["segments"] == []
    assert unknown["entry"]["segments"] is None


@pytest.mark.parametrize("emotion", PUBLISHED.names)
def test_emotions_become_their_indices(tmp_path, emotion):
    [item] = dataset_of(write_manifest(tmp_path, a=(0.5, "HI", emotion, None)))
    assert PUBLISHED.names[item["emotion_index"]] == emotion


def test_a_batch_is_what_the_brain_takes(tmp_path):
    sad = [Segment(0.2, 0.7, "sad")]
    manifest = write_manifest(tmp_path, a=(1.0, "TEA", "sad", sad), b=(0.5, "A", "happy", None))
    batch = PaddedBatch(list(dataset_of(manifest)))
    assert batch.sig.data.shape == (2, 16000)
    assert batch.sig.lengths.tolist() == [1.0, 0.5]
    assert batch.tokens.data.tolist() == [[4, 3, 5], [5, 0, 0]]
    assert batch.token_count.tolist() == [3, 1]
    assert batch.emotion_index.tolist() == [2, 0]
    assert [entry["segments"] for entry in batch.entry] == [sad, None]


def test_the_corpus_may_lie_elsewhere(tmp_path):
    manifest = write_manifest(tmp_path, a=(0.5, "HI", "sad", None))
    corpus = tmp_path / "moved here"
    corpus.mkdir()
    (tmp_path / "a.flac").rename(corpus / "a.flac")
    [item] = make_dataset(
        {"corpus": (manifest, corpus)}, CharTokens(), PUBLISHED, FbankFrontend(), 1.0
    )
    assert len(item["sig"]) == 8000


# --- what does not fit


def test_more_tokens_than_frames_are_refused_with_their_ids(tmp_path):
    manifest = write_manifest(
        tmp_path,
        short=(0.1, "MUCH TOO LONG", "sad", None),
        good=(1.0, "FINE", "sad", None),
        other=(0.2, "ALSO TOO LONG", "sad", None),
    )
    with pytest.raises(InputError) as error:
        dataset_of(manifest)
    assert str(error.value) == (
        "2 problems: short: 13 tokens in 6 frames; other: 13 tokens in 11 frames: "
        f"correct or remove these utterances of {manifest}, or raise max_tokens_per_frame"
    )


@pytest.mark.parametrize(("tokens", "fits"), [(12, True), (13, False)])
def test_the_limit_is_tokens_a_frame(tmp_path, tokens, fits):
    manifest = write_manifest(tmp_path, a=(0.1, "A" * tokens, "sad", None))
    if fits:
        assert len(dataset_of(manifest, max_tokens_per_frame=2.0)) == 1
    else:
        with pytest.raises(InputError, match="a: 13 tokens in 6 frames: correct or remove"):
            dataset_of(manifest, max_tokens_per_frame=2.0)


def test_audio_without_a_frame_is_refused(tmp_path, tiny_ssl):
    frontend = SSLFrontend("wav2vec2", tiny_ssl("wav2vec2"), tmp_path)
    manifest = write_manifest(tmp_path, a=(0.0249, "A", "sad", None), b=(0.025, "A", "sad", None))
    with pytest.raises(InputError) as error:
        make_dataset({"corpus": (manifest, tmp_path)}, CharTokens(), PUBLISHED, frontend, 1.0)
    assert str(error.value).startswith("a: 0.025 s is too short for one frame: correct or remove")


# --- batches of similar lattices


LIMIT = 20_000


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """400 utterances of 1 to 6 seconds; the longest one's lattice is larger than the limit."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    seconds = [*rng.uniform(1, 4, 399), 6.0]
    entry = {"wav": "{data_root}/a.flac", "emotion": "sad", "speaker": "Ann"}
    manifest = {
        f"u{i:03}": {**entry, "duration": s, "transcript": "A" * int(12 * s)}
        for i, s in enumerate(seconds)
    }
    (folder / "train.json").write_text(json.dumps(manifest))
    return dataset_of(folder / "train.json")


def nodes_of(dataset, index):
    """Number of frames of 20 ms times the number of positions, from the manifest's transcript."""
    entry = dataset.data[dataset.data_ids[index]]["entry"]
    hops = 1 + round(entry["duration"] * 16000) // 160
    return -(-hops // 2) * (len(entry["transcript"]) + 1)


def test_a_batch_holds_the_lattices_that_the_limit_allows(many):
    batches = list(make_batch_sampler(many, LIMIT))
    sizes = [[nodes_of(many, index) for index in batch] for batch in batches]
    assert all(sum(size) <= LIMIT or len(size) == 1 for size in sizes)
    assert [len(size) for size in sizes if max(size) > LIMIT] == [1]
    assert sum(map(sum, sizes)) > 0.7 * LIMIT * (len(sizes) - 1), "batches are not filled"
    random = np.random.default_rng(0).permutation(400)
    unlike = [nodes_of(many, index) for index in random]
    pairs = zip(unlike[::2], unlike[1::2], strict=True)
    spread = np.mean([max(pair) - min(pair) for pair in pairs])
    assert np.mean([max(size) - min(size) for size in sizes]) < spread / 2


def test_every_epoch_has_every_utterance_once_in_other_batches(many):
    sampler = make_batch_sampler(many, LIMIT)
    epochs = []
    for epoch in (1, 2, 3):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        assert len(sampler) == len(epochs[0]), "the schedule counts on it"
    assert all(sorted(sum(batches, [])) == list(range(400)) for batches in epochs)
    first, second, third = ({frozenset(batch) for batch in batches} for batches in epochs)
    assert all(len(a & b) < len(a) / 4 for a, b in ((first, second), (second, third)))
    again = make_batch_sampler(many, LIMIT)
    again.set_epoch(2)
    assert list(again) == epochs[1]


def test_a_curriculum_begins_with_the_shortest(many):
    seconds = np.array([many.data[name]["duration"] for name in many.data_ids])
    sampler, epochs = CurriculumSampler(many, 1.5), []
    for epoch in (1, 2, 3):
        sampler.set_epoch(epoch)
        epochs.append(np.array(list(sampler)))
        assert len(epochs[-1]) == len(sampler) == 400
    drawn = np.concatenate(epochs[:2])
    # After a half of 1.5 epochs the shortest 0.2 + 0.8 / 2 of all.
    assert seconds[drawn[:10]].max() <= np.quantile(seconds, 0.22)
    assert np.quantile(seconds, 0.5) < seconds[drawn[:300]].max() <= np.quantile(seconds, 0.61)
    assert seconds[drawn].max() == seconds.max()
    assert (np.bincount(drawn[600:], minlength=400) > 1).any()
    assert sorted(epochs[2]) == list(range(400))
    again = CurriculumSampler(many, 1.5)
    again.set_epoch(2)
    assert list(again) == epochs[1].tolist() != epochs[0].tolist()


@pytest.mark.parametrize("limit", [1, 10**9])
def test_any_limit_serves_any_number_of_utterances(tmp_path, limit):
    one = {"a": (0.5, "HI", "sad", None)}
    for utterances in (one, one | {"b": (1.0, "WHAT IS IT", "sad", None)}):
        dataset = dataset_of(write_manifest(tmp_path, **utterances))
        batches = list(make_batch_sampler(dataset, limit))
        assert sorted(sum(batches, [])) == list(range(len(utterances)))


@pytest.mark.parametrize("limit", [0, -5])
def test_a_limit_of_nodes_is_above_0(many, limit):
    with pytest.raises(InputError) as error:
        make_batch_sampler(many, limit)
    assert str(error.value) == (
        f"max_batch_nodes: {limit} is not above 0. Give a positive number, or null to use "
        "batch_size."
    )


# --- intervals


def brute_force_spans(intervals, frame_samples, frames):
    """Frames of each interval, found by counting the samples of every frame."""
    owner = [index for index, i in enumerate(intervals) for _ in range(i.start, i.end)]
    labels = []
    for frame in range(frames):
        inside = owner[frame * frame_samples : (frame + 1) * frame_samples]
        inside = inside or owner[-1:]
        # More samples than another's, and of two with as many the earlier.
        labels.append(max(sorted(set(inside)), key=inside.count))
    return [
        (labels.index(index), len(labels) - labels[::-1].index(index))
        for index in range(len(intervals))
    ]


@settings(max_examples=50)
@given(
    lengths=st.lists(st.integers(30, 90), min_size=1, max_size=3),
    cut=st.integers(0, 1),
)
def test_a_frame_is_of_the_interval_that_covers_half_of_it(lengths, cut):
    ends = list(itertools.accumulate(lengths))
    starts = [0, *ends[:-1]]
    known = [
        Interval(start, end, PUBLISHED.names[index], "NO")
        for index, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]
    frames = ends[-1] // 10 + 1 - cut  # log-mel energies have one more than an SSL model
    spans = interval_spans(known, CharTokens(), PUBLISHED, 10, frames)
    assert [span[1:3] for span in spans] == brute_force_spans(known, 10, frames)


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_the_positions_of_an_interval_are_those_of_its_words(kind, tmp_path):
    texts = ["THE OLD LAMP", "IT'S BROKEN", "THE LAMP"]
    tokens = CharTokens() if kind == "char" else train_sentencepiece(texts * 3, tmp_path / "m", 30)
    known = [Interval(2000 * k, 2000 * (k + 1), "sad", text) for k, text in enumerate(texts)]
    ids = tokens.encode(" ".join(texts))
    spans = interval_spans(known, tokens, PUBLISHED, 320, 18)
    assert [tokens.decode(ids[c:d]) for *_, c, d in spans] == texts
    covered = [position for *_, c, d in spans for position in range(c, d)]
    assert covered == list(range(len(ids) + 1))


def test_an_interval_without_a_frame_is_refused():
    known = [Interval(0, 3000, "sad", "NO"), Interval(3000, 3100, "happy", "OH")]
    with pytest.raises(InputError) as error:
        interval_spans(known, CharTokens(), PUBLISHED, 320, 9)
    assert str(error.value) == "interval of samples 3000 to 3100: no frame"


def test_intervals_reach_the_batch_and_tell_the_segments(tmp_path):
    manifest = write_manifest(tmp_path, a=(1.0, "OH NO", "sad", None))
    entries = json.loads(manifest.read_text())
    entries["a"]["intervals"] = [
        {"start": 0, "end": 6400, "emotion": "neutral", "transcript": "OH"},
        {"start": 6400, "end": 16000, "emotion": "sad", "transcript": "NO"},
    ]
    manifest.write_text(json.dumps(entries))
    batch = PaddedBatch([dataset_of(manifest)[0]])
    assert batch.entry[0]["segments"] == [Segment(0.4, 1.0, "sad")]
    assert batch.entry[0]["intervals"] == [(3, 0, 20, 0, 3), (2, 20, 51, 3, 6)]


# --- speeds


def test_an_utterance_is_read_at_one_of_the_speeds(tmp_path):
    manifest = write_manifest(tmp_path, a=(1.0, "A", "sad", None))
    torch.manual_seed(0)
    at_its_own = dataset_of(manifest)[0]["sig"]
    before = torch.get_rng_state()
    assert torch.equal(dataset_of(manifest)[0]["sig"], at_its_own)
    assert torch.equal(torch.get_rng_state(), before)
    dataset = dataset_of(manifest, speeds=(80, 100, 125))
    seen = {}
    for _ in range(30):
        sig = dataset[0]["sig"]
        assert torch.equal(seen.setdefault(len(sig), sig), sig)  # so that a cache knows it again
    assert set(seen) == {20000, 16000, 12800}
    assert torch.equal(seen[16000], at_its_own)
    for samples, sig in seen.items():  # a tone of 440 Hz, higher where it is faster
        hertz = np.abs(np.fft.rfft(sig.numpy())).argmax() * 16000 / samples
        assert hertz == pytest.approx(440 * 16000 / samples, abs=2)


@pytest.mark.parametrize(
    ("seconds", "speeds", "said"),
    [
        (1.0, (), "speeds: []: the list is empty. Give at least one, 100 for no change."),
        (9.5, (80, 100), "a: 11.88 s, the front end takes 10"),
    ],
)
def test_speeds_that_cannot_be_are_refused(tmp_path, monkeypatch, seconds, speeds, said):
    monkeypatch.setattr(FbankFrontend, "max_samples", 160000)
    manifest = write_manifest(tmp_path, a=(seconds, "A", "sad", None))
    with pytest.raises(InputError) as error:
        dataset_of(manifest, speeds=speeds)
    assert str(error.value).startswith(said)


def test_known_intervals_keep_their_speed(tmp_path):
    manifest = write_manifest(tmp_path, a=(1.0, "OH NO", "sad", None))
    content = json.loads(manifest.read_text())
    content["a"]["intervals"] = [
        {"start": 0, "end": 8000, "emotion": "neutral", "transcript": "OH"},
        {"start": 8000, "end": 16000, "emotion": "sad", "transcript": "NO"},
    ]
    manifest.write_text(json.dumps(content))
    assert dataset_of(manifest)[0]["entry"]["intervals"]
    with pytest.raises(InputError) as error:
        dataset_of(manifest, speeds=(90, 100))
    assert str(error.value) == (
        "speeds: [90, 100]: speeds would shift the known intervals of 1 utterances. Set speeds "
        "to [100]."
    )


# --- altered copies


@pytest.fixture
def three(tmp_path):
    return write_manifest(tmp_path, a=(0.5, "A", "sad", None), b=(0.6, "B", "sad", None), c=(
        0.7, "C", "sad", None
    ))  # fmt: skip


def test_copies_are_altered_by_their_names(three):
    dataset = dataset_of(three)
    copies = add_variants(dataset, {"corpus": 2})
    assert copies.data_ids == ["a", "a#1", "a#2", "b", "b#1", "b#2", "c", "c#1", "c#2"]
    assert len(dataset) == 3
    for index, name in enumerate(copies.data_ids):
        item, original = copies[index], dataset[index // 3]["sig"]
        altered = original if "#" not in name else alter(original, 16000, name)
        assert torch.equal(item["sig"], altered)
        assert item["entry"]["transcript"] == name[0].upper()


def test_copies_are_of_the_corpora_named(three, tmp_path):
    (tmp_path / "other").mkdir()
    other = write_manifest(tmp_path / "other", d=(0.5, "D", "sad", None))
    corpora = {"first": (three, three.parent), "other": (other, other.parent)}
    dataset = make_dataset(corpora, CharTokens(), PUBLISHED, FbankFrontend(0.02), 1.0)
    copies = add_variants(dataset, {"first": 1, "other": 2})
    altered = {name: item["variant"] for name, item in copies.data.items() if name[0] in "ad"}
    assert altered == {"a": 0, "a#1": 1, "a#2": 0, "d": 0, "d#1": 1, "d#2": 2}


def test_features_of_copies_are_kept_without_altering_again(three, tiny_ssl, tmp_path, monkeypatch):
    frontend = SSLFrontend(
        "whisper", tiny_ssl("whisper"), tmp_path / "hub", cache_folder=tmp_path / "kept"
    )
    corpora = {"corpus": (three, three.parent)}
    copies = add_variants(
        make_dataset(corpora, CharTokens(), PUBLISHED, frontend, 1.0), {"corpus": 1}
    )
    fill(frontend, [copies])
    original = read_audio(three.parent / "a.flac", 16000)
    expected = frontend.encode(alter(original, 16000, "a#1")[None])[0]
    monkeypatch.setattr("ent_brain.augment.alter", None)
    found = {item["id"]: item["kept"].features for item in copies}
    torch.testing.assert_close(found["a#1"].float(), expected, rtol=0, atol=2e-3)
    assert not torch.equal(found["a#1"], found["a"])
    monkeypatch.setattr("ent_brain.augment.FORMAT", 0)
    with pytest.raises(TypeError):  # they are made again
        copies[1]


@pytest.mark.parametrize("batches", [False, True])
def test_an_epoch_draws_a_copy_of_each_utterance(batches):
    sampler = ReproducibleRandomSampler(range(200), 1)
    if batches:
        sampler = BatchesOf(sampler)
    drawn = VariantSampler(sampler, 2)
    epochs = []
    for epoch in (1, 2, 1):
        drawn.set_epoch(epoch)
        assert len(drawn) == len(list(drawn))
        epochs.append(list(itertools.chain(*drawn)) if batches else list(drawn))
        assert sorted(index // 3 for index in epochs[-1]) == list(range(200))
    assert epochs[0] == epochs[2] != epochs[1]
    counts = np.bincount([index % 3 for index in epochs[0] + epochs[1]])
    assert all(100 < count < 170 for count in counts)


class BatchesOf(BatchSampler):
    def __init__(self, sampler):
        super().__init__(sampler, 8, drop_last=False)

    def set_epoch(self, epoch):
        self.sampler.set_epoch(epoch)
