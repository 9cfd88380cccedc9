import errno
import json
import logging
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers
from torch import nn

from ent_brain.cache import FeatureCache, disk_use, fill, model_digest
from ent_brain.dataio import make_dataset
from ent_brain.emotions import PUBLISHED
from ent_brain.errors import InputError
from ent_brain.frontend import FbankFrontend, SSLFrontend
from ent_brain.tokens import CharTokens

KINDS = ("wav2vec2", "hubert", "wavlm", "wav2vec2-bert", "whisper")
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def noise(samples, seed=0):
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed)) / 10


def padded(*wavs):
    lengths = torch.tensor([float(len(wav)) for wav in wavs])
    return nn.utils.rnn.pad_sequence(wavs, batch_first=True), lengths / lengths.max()


@pytest.fixture
def load_ssl(tiny_ssl, tmp_path):
    """Front ends that cache their features in one folder."""

    def load(kind="wav2vec2", source=None, **options):
        options = {"cache_folder": tmp_path / "kept", **options}
        return SSLFrontend(kind, source or tiny_ssl(kind), tmp_path / "hub", **options)

    return load


@pytest.fixture
def no_encoding(monkeypatch):
    """``no_encoding()`` makes every call of an SSL model fail."""

    def refuse(*args):
        raise AssertionError("an utterance was encoded")

    return lambda: monkeypatch.setattr(SSLFrontend, "encode", refuse)


def files_in(folder):
    return sorted(folder.rglob("*.safetensors"))


# --- what is found is what was computed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", DTYPES)
def test_kept_features_are_those_of_the_utterance_alone_rounded(
    load_ssl, no_encoding, kind, precision
):
    wavs = [noise(16000), noise(11701, 1), noise(3200, 2), noise(560, 3)]
    plain = load_ssl(kind, cache_folder=None)
    expected = [plain(wav[None], torch.ones(1))[0][0].to(DTYPES[precision]) for wav in wavs]
    frontend = load_ssl(kind, cache_precision=precision).train()
    computed, frame_lens = frontend(*padded(*wavs))
    assert computed.dtype == DTYPES[precision]
    assert frame_lens.tolist() == [len(features) for features in expected]
    no_encoding()
    for batch in ([0, 1, 2, 3], [3, 1], [2], [1, 1]):
        found, _ = frontend(*padded(*(wavs[i] for i in batch)))
        for row, index in enumerate(batch):
            frames = len(expected[index])
            assert torch.equal(found[row, :frames], expected[index])
            assert torch.equal(computed[index, :frames], expected[index]), "epochs would differ"
            assert not found[row, frames:].any()


def test_another_front_end_of_the_same_model_finds_them(load_ssl, no_encoding, tiny_ssl, tmp_path):
    expected, _ = load_ssl()(noise(8000)[None], torch.ones(1))
    moved = shutil.copytree(tiny_ssl("wav2vec2"), tmp_path / "moved" / "model")
    no_encoding()
    assert torch.equal(load_ssl(source=moved)(noise(8000)[None], torch.ones(1))[0], expected)


def test_mixed_precision_changes_no_kept_feature(load_ssl):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kept, _ = load_ssl()(noise(8000)[None], torch.ones(1))
    plain, _ = load_ssl(cache_folder=None)(noise(8000)[None], torch.ones(1))
    assert torch.equal(kept, plain.half())


def test_a_folder_that_is_deleted_while_it_is_read_is_no_damage(load_ssl, monkeypatch, caplog):
    frontend = load_ssl()
    wav = noise(8000)
    expected, _ = frontend(wav[None], torch.ones(1))
    monkeypatch.setattr(Path, "exists", lambda _: True)  # as a moment before it was deleted
    shutil.rmtree(frontend.cache.folder)
    caplog.clear()
    assert frontend.cache.look_up(wav).features is None
    assert not caplog.records
    monkeypatch.undo()
    assert torch.equal(frontend(wav[None], torch.ones(1))[0], expected)
    assert frontend.cache.look_up(wav).features is not None


def test_a_folder_without_its_note_gets_one(load_ssl):
    frontend = load_ssl()
    note = frontend.cache.folder / "made_from.json"
    frontend.cache.folder.mkdir(parents=True)  # as a kill leaves it
    frontend(noise(8000)[None], torch.ones(1))
    assert json.loads(note.read_text())


# --- the key


def change_weight(folder):
    model = transformers.AutoModel.from_pretrained(folder)
    next(model.encoder.layers[-1].parameters()).data.view(-1)[0] += 1e-4
    model.save_pretrained(folder)


def change_mel_bands(folder):
    transformers.WhisperFeatureExtractor(n_fft=512).save_pretrained(folder)


def change_configuration(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-3}))


def change_normalisation(folder):
    transformers.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("wav2vec2", change_weight),
        ("wav2vec2", change_configuration),
        ("wav2vec2", change_normalisation),
        ("whisper", change_mel_bands),
    ],
)
def test_another_model_finds_nothing(load_ssl, tiny_ssl, tmp_path, kind, change):
    frontend = load_ssl(kind)
    frontend(noise(8000)[None], torch.ones(1))
    folder = shutil.copytree(tiny_ssl(kind), tmp_path / "changed")
    change(folder)
    assert frontend.cache.look_up(noise(8000)).features is not None
    other = load_ssl(kind, source=folder)
    assert other.cache.look_up(noise(8000)).features is None
    kept, _ = other(noise(8000)[None], torch.ones(1))
    alone, _ = load_ssl(kind, source=folder, cache_folder=None)(noise(8000)[None], torch.ones(1))
    assert torch.equal(kept, alone.half())
    assert len(files_in(tmp_path / "kept")) == 2


@pytest.mark.parametrize("options", [{"layers": [0, 2]}, {"cache_precision": "bfloat16"}])
def test_other_settings_find_nothing(load_ssl, options):
    load_ssl()(noise(8000)[None], torch.ones(1))
    assert load_ssl(**options).cache.look_up(noise(8000)).features is None


@pytest.mark.parametrize("change", ["one sample", "one more", "one less"])
def test_other_audio_finds_nothing(load_ssl, change):
    frontend, wav = load_ssl(), noise(8000)
    frontend(wav[None], torch.ones(1))
    other = {"one sample": wav.clone(), "one more": nn.functional.pad(wav, (0, 1))}.get(change)
    other = wav[:-1] if other is None else other
    if change == "one sample":
        other[4000] += 1e-6
    assert frontend.cache.look_up(other).features is None
    assert frontend.cache.look_up(wav.clone()).features is not None


def test_the_digest_of_a_model_is_of_its_content(tiny_ssl, tmp_path):
    digests = {
        kind: model_digest(transformers.AutoModel.from_pretrained(tiny_ssl(kind))) for kind in KINDS
    }
    assert len(set(digests.values())) == len(KINDS)
    moved = shutil.copytree(tiny_ssl("hubert"), tmp_path / "moved")
    assert model_digest(transformers.AutoModel.from_pretrained(moved)) == digests["hubert"]


# --- layers


@pytest.mark.parametrize("kept", [True, False])
def test_chosen_layers_are_those_of_all(load_ssl, tmp_path, kept):
    options = {} if kept else {"cache_folder": None}
    every, frames = load_ssl(**options)(noise(8000)[None], torch.ones(1))
    frontend = load_ssl(**options, layers=[3, 1])
    assert (frontend.feature_layers, frontend.settings["layers"]) == (2, [3, 1])
    chosen, _ = frontend(noise(8000)[None], torch.ones(1))
    assert torch.equal(chosen, every[:, :, [3, 1]])
    if kept:
        small, large = sorted(path.stat().st_size for path in files_in(tmp_path / "kept"))
        assert large - small == 2 * int(frames) * 2 * 24


@pytest.mark.parametrize("layers", [[], [4], [-1], [1, 1]])
def test_layers_are_the_model_s_own(load_ssl, layers):
    with pytest.raises(ValueError, match=r"layers \[.*\]: choose some of 0 to 3, each once"):
        load_ssl(layers=layers)


@pytest.mark.parametrize("options", [{"cache_folder": "kept"}, {"layers": [1]}])
def test_a_model_in_training_keeps_nothing(load_ssl, options):
    with pytest.raises(ValueError, match="need a frozen SSL model"):
        load_ssl(frozen=False, **{"cache_folder": None, **options})


# --- damage


@pytest.fixture
def entry(tmp_path):
    """A cache, one utterance, its features and their file."""
    cache = FeatureCache(tmp_path / "kept", {"model": "a"})
    name, _ = cache.look_up(noise(2000))
    features = cache.keep(name, torch.rand(3, 2, 2))
    [path] = files_in(cache.folder)
    return cache, noise(2000), features, path


def assert_found_or_said(cache, wav, features, caplog):
    """The features are correct, or they are not used and the log has one line."""
    caplog.clear()
    found = cache.look_up(wav).features
    if found is not None:
        assert torch.equal(found, features)
        return True
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "damaged" in record.message
    assert record.message.endswith("Its features are computed again.")
    assert "\n" not in record.message
    return False


def test_no_changed_byte_is_ever_used(entry, caplog):
    cache, wav, features, path = entry
    content = path.read_bytes()
    for change in (0x01, 0x20, 0xFF):
        for position in range(len(content)):
            damaged = bytearray(content)
            damaged[position] ^= change
            path.write_bytes(damaged)
            found = assert_found_or_said(cache, wav, features, caplog)
            assert not found or content[position : position + 1] == b" "  # what fills the header up


def test_no_part_of_a_file_is_used(entry, caplog):
    cache, wav, features, path = entry
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert not assert_found_or_said(cache, wav, features, caplog)
    path.write_bytes(content + b"\0")
    assert not assert_found_or_said(cache, wav, features, caplog)


def test_a_file_of_another_utterance_or_model_is_not_used(entry, tmp_path, caplog):
    cache, wav, features, path = entry
    other_name = cache.look_up(noise(2001)).name
    shutil.copy(path, path.with_stem(other_name))
    assert not assert_found_or_said(cache, noise(2001), features, caplog)
    other = FeatureCache(tmp_path / "kept", {"model": "b"})
    other.folder.mkdir()
    shutil.copy(path, other.folder)
    assert not assert_found_or_said(other, wav, features, caplog)
    assert assert_found_or_said(cache, wav, features, caplog)


def test_damaged_features_are_computed_again(load_ssl, tmp_path, caplog):
    frontend = load_ssl()
    expected, _ = frontend(noise(8000)[None], torch.ones(1))
    [path] = files_in(tmp_path / "kept")
    content = path.read_bytes()
    path.write_bytes(content[:-100] + bytes(100))
    caplog.clear()
    assert torch.equal(frontend(noise(8000)[None], torch.ones(1))[0], expected)
    assert [record.message.partition(":")[0] for record in caplog.records] == [str(path)]
    assert path.read_bytes() == content


# --- writing


def test_what_cannot_be_written_leaves_nothing(tmp_path, file_limit):
    cache = FeatureCache(tmp_path / "kept", {"model": "a"})
    cache.keep(cache.look_up(noise(500)).name, torch.rand(3, 2, 2))
    before = sorted(cache.folder.iterdir())
    name, _ = cache.look_up(noise(2000))
    file_limit(10_000)
    with pytest.raises(InputError) as error:
        cache.keep(name, torch.rand(100, 13, 24))
    assert str(error.value) == (
        f"{cache.folder}: features cannot be written ({os.strerror(errno.EFBIG)}). Free disk "
        "space, choose fewer ssl_layers, or set feature_cache to another folder or to null."
    )
    assert sorted(cache.folder.iterdir()) == before
    assert cache.look_up(noise(2000)).features is None


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    cache = FeatureCache(tmp_path / "file", {"model": "a"})
    with pytest.raises(InputError, match="features cannot be written"):
        cache.keep("name", torch.rand(3, 2, 2))


def test_what_float16_does_not_hold_is_refused(tmp_path):
    features = torch.tensor([[[1.0, -70000.0]]])
    with pytest.raises(InputError) as error:
        FeatureCache(tmp_path, {}).keep("name", features)
    assert str(error.value) == (
        "features of up to 7e+04 do not fit into torch.float16. Set feature_precision bfloat16."
    )
    assert FeatureCache(tmp_path, {}, "bfloat16").keep("name", features)[0, 0, 1] == -70144


def test_an_unknown_precision_is_refused(load_ssl):
    with pytest.raises(ValueError, match="'float32': use one of float16, bfloat16"):
        load_ssl(cache_precision="float32")


def keep_all(folder, seed):
    cache = FeatureCache(folder, {"model": "a"})
    for index in np.random.default_rng(seed).permutation(30):
        name, features = cache.look_up(noise(2000, int(index)))
        expected = torch.full((50, 4, 24), float(index)).half()
        if features is None:
            features = cache.keep(name, expected)
        assert torch.equal(features, expected)


def test_processes_write_the_same_entries_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    arguments = [(tmp_path / "kept", seed) for seed in range(4)]
    processes = [context.Process(target=keep_all, args=args) for args in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    cache = FeatureCache(tmp_path / "kept", {"model": "a"})
    assert all(cache.look_up(noise(2000, index)).features is not None for index in range(30))
    assert len(list(cache.folder.iterdir())) == 31  # and what they were made from


# --- datasets


@pytest.fixture
def manifest(tmp_path):
    """Five utterances, one of them at another rate."""
    entries = {}
    for index in range(5):
        rate = 8000 if index == 2 else 16000
        wav = noise(rate // 4 * (index + 1), index).numpy()
        soundfile.write(tmp_path / f"u{index}.wav", wav, rate)
        entries[f"u{index}"] = {
            "wav": f"{{data_root}}/u{index}.wav",
            "duration": len(wav) / rate,
            "transcript": "HI",
            "emotion": "sad",
            "speaker": "Ann",
        }
    (tmp_path / "train.json").write_text(json.dumps(entries))
    return tmp_path / "train.json"


def dataset_of(manifest, frontend):
    return make_dataset(
        {"corpus": (manifest, manifest.parent)}, CharTokens(), PUBLISHED, frontend, 1.0
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_loader_s_workers_read_what_is_kept(load_ssl, no_encoding, manifest, num_workers):
    from speechbrain.dataio.dataloader import make_dataloader

    frontend = load_ssl()
    dataset = dataset_of(manifest, frontend)

    def epoch():
        for batch in make_dataloader(dataset, batch_size=3, num_workers=num_workers):
            yield [kept.features for kept in batch.kept], frontend(*batch.sig, batch.kept)[0]

    first = list(epoch())
    assert all(features is None for kept, _ in first for features in kept)
    no_encoding()
    second = list(epoch())
    assert all(features is not None for kept, _ in second for features in kept)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(first, second, strict=True))


def test_without_a_cache_nothing_is_looked_up(load_ssl, manifest):
    for frontend in (load_ssl(cache_folder=None), FbankFrontend()):
        assert "kept" not in dataset_of(manifest, frontend)[0]


def test_filling_ahead_encodes_what_is_missing(load_ssl, no_encoding, manifest, capfd):
    frontend = load_ssl()
    dataset = dataset_of(manifest, frontend)
    item = dataset[3]
    frontend(item["sig"][None], torch.ones(1))
    [there] = files_in(frontend.cache.folder)
    written = there.stat().st_mtime_ns
    fill(frontend, [dataset, dataset])
    assert "10/10" in capfd.readouterr().err
    assert len(files_in(frontend.cache.folder)) == 5
    assert there.stat().st_mtime_ns == written
    no_encoding()
    fill(frontend, [dataset])


def test_the_longest_utterance_is_filled_first(load_ssl, manifest, monkeypatch):
    frontend = load_ssl()
    honest, lengths = frontend.encode, []
    monkeypatch.setattr(
        frontend, "encode", lambda wavs: lengths.append(wavs.size(1)) or honest(wavs)
    )
    dataset = dataset_of(manifest, frontend)
    fill(frontend, [dataset.filtered_sorted(select_n=2), dataset])
    assert len(set(lengths)) > 1
    assert lengths == sorted(lengths, reverse=True)


def test_processes_share_the_filling(load_ssl, manifest, monkeypatch, capfd):
    frontend = load_ssl()
    monkeypatch.setenv("WORLD_SIZE", "2")
    counts = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        fill(frontend, [dataset_of(manifest, frontend)])
        counts.append(len(files_in(frontend.cache.folder)))
    assert counts == [3, 5]
    assert "5/5" in capfd.readouterr().err


def test_the_room_that_features_take_is_told(load_ssl, manifest, tmp_path):
    frontend = load_ssl()
    dataset = dataset_of(manifest, frontend)
    line = disk_use(frontend, [dataset])
    frames = sum(len(frontend(item["sig"][None], torch.ones(1))[0][0]) for item in dataset)
    used = sum(path.stat().st_size for path in files_in(tmp_path / "kept"))
    assert 0 <= used - frames * 4 * 24 * 2 < 5 * 300
    assert line.startswith("features of 5 utterances, 0.0 hours, 4 layers of 24: 0.00 GB in all")
    assert line.endswith(" GB are free")
    assert str(frontend.cache.folder) in line


def test_iemocap_takes_25_gigabytes(load_ssl, tmp_path):
    class Corpus:
        """5,531 utterances, 7 hours (SPEC.md section 6; the release's own durations)."""

        data = {index: {"duration": 7 * 3600 / 5531} for index in range(5531)}

    frontend = load_ssl()
    frontend.feature_layers, frontend.feature_dim = 13, 768
    assert "5531 utterances, 7.0 hours, 13 layers of 768: 25." in disk_use(frontend, [Corpus])
    assert not Path(tmp_path / "kept").exists()
