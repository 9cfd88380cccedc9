import errno
import os
import pickle
import random
import re
import shutil

import numpy as np
import pytest
import torch
from speechbrain.utils.epoch_loop import EpochCounter

from ent_brain.checkpoints import WholeCheckpointer, load_random_state, save_random_state
from ent_brain.errors import InputError, exit_on_input_error


@pytest.fixture
def checkpointer(tmp_path):
    parts = {"model": torch.nn.Linear(2, 2), "other": torch.nn.Linear(2, 2)}
    return WholeCheckpointer(tmp_path / "save", parts)


def folders(checkpointer):
    return sorted(path.name for path in checkpointer.checkpoints_dir.iterdir())


def test_what_was_saved_is_recovered(checkpointer):
    model = checkpointer.recoverables["model"]
    weight = model.weight.clone()
    saved = checkpointer.save_checkpoint(meta={"epoch": 3})
    assert saved.meta["epoch"] == 3
    assert saved.path.name.startswith("CKPT+")
    assert set(saved.paramfiles) == {"model", "other"}
    torch.nn.init.zeros_(model.weight)
    assert checkpointer.recover_if_possible() == saved
    assert torch.equal(model.weight, weight)


def test_checkpoints_of_one_second_and_of_a_name_are_kept_apart(checkpointer):
    for name in (None, None, "best"):
        checkpointer.save_checkpoint(name=name)
    assert len(checkpointer.list_checkpoints()) == 3
    assert "CKPT+best" in folders(checkpointer)


def test_a_checkpoint_half_written_is_passed_over_and_removed(checkpointer, monkeypatch):
    whole = checkpointer.save_checkpoint()
    monkeypatch.setattr(torch, "save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        checkpointer.save_checkpoint()
    assert len(folders(checkpointer)) == 2
    assert checkpointer.list_checkpoints() == [whole]
    assert checkpointer.recover_if_possible() == whole
    assert folders(checkpointer) == [whole.path.name]


@pytest.mark.parametrize("deleted", ["CKPT.yaml", "model.ckpt", "other.ckpt"])
def test_a_checkpoint_half_deleted_is_passed_over_and_removed(checkpointer, monkeypatch, deleted):
    checkpointer.save_checkpoint(meta={"error": 1.0})
    monkeypatch.setattr(shutil, "rmtree", lambda folder: (folder / deleted).unlink())
    checkpointer.save_and_keep_only(meta={"error": 2.0})
    monkeypatch.undo()
    assert len(folders(checkpointer)) == 2
    found = checkpointer.find_checkpoint(min_key="error")
    assert found.meta["error"] == 2.0
    assert checkpointer.recover_if_possible(min_key="error") == found
    assert folders(checkpointer) == [found.path.name]


def test_what_cannot_be_written_leaves_the_checkpoint_before(checkpointer, file_limit):
    whole = checkpointer.save_checkpoint()
    weights = whole.paramfiles["other"].read_bytes()
    checkpointer.recoverables["other"] = torch.nn.Linear(200, 200)
    file_limit(10_000)
    with pytest.raises(InputError) as error:
        checkpointer.save_checkpoint()
    assert str(error.value) == (
        f"{checkpointer.checkpoints_dir}: no checkpoint can be written (a file could not be "
        "written to its end). Free disk space or make the folder writable, then run the same "
        "command again to resume from the last checkpoint."
    )
    assert folders(checkpointer) == [whole.path.name]
    assert whole.paramfiles["other"].read_bytes() == weights


@pytest.mark.parametrize(
    "code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM]
)
def test_what_a_disk_refuses_is_one_line(capsys, tmp_path, code):
    @exit_on_input_error
    def main():
        raise OSError(code, os.strerror(code), str(tmp_path / "log.txt"))

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/log.txt: {os.strerror(code)}. Free disk space, or give the permission, "
        "and start again.\n"
    )


def test_what_else_a_system_says_is_no_fault_of_the_input():
    @exit_on_input_error
    def main():
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        main()


def test_the_average_is_the_mean_of_the_best(tmp_path):
    model, other = torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)
    checkpointer = WholeCheckpointer(
        tmp_path, {"model": model, "norm": other, "counter": EpochCounter(4)}
    )
    saved = []
    for epoch, error in enumerate((9.0, 2.0, 5.0, 3.0), 1):
        with torch.no_grad():
            model.weight.normal_()
            other.num_batches_tracked.fill_(epoch)
        saved.append(model.weight.clone())
        meta = {"epoch": epoch, "error": error}
        checkpointer.save_and_keep_only(meta, num_to_keep=3, min_keys=["error"])
    # The three best, and the three latest.
    assert {c.meta["epoch"] for c in checkpointer.list_checkpoints()} == {2, 3, 4}
    checkpointer.load_average(2, min_key="error")
    torch.testing.assert_close(model.weight.detach(), (saved[1] + saved[3]) / 2)
    assert other.num_batches_tracked == 3
    checkpointer.load_average(8, min_key="error")
    torch.testing.assert_close(model.weight.detach(), sum(saved[1:]) / 3)

    path = checkpointer.find_checkpoint(min_key="error").paramfiles["model"]
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match=re.escape(f"{path}: damaged")):
        checkpointer.load_average(2, min_key="error")


def test_the_random_generators_go_on_where_they_were(tmp_path):
    def draw():
        return random.random(), np.random.normal(), float(torch.randn(()))

    draw()
    save_random_state(None, tmp_path / "state")
    expected = draw()
    assert draw() != expected
    load_random_state(None, tmp_path / "state", end_of_epoch=True)
    assert draw() == expected


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("part", ["model", "random_state"])
def test_a_pickle_in_a_checkpoint_is_not_run(checkpointer, tmp_path, part):
    hooks = {"custom_save_hook": save_random_state, "custom_load_hook": load_random_state}
    checkpointer.add_recoverable("random_state", None, **hooks)
    path = checkpointer.save_checkpoint().paramfiles[part]
    torch.save({"x": Touch(str(tmp_path / "mark"))}, path)
    with pytest.raises(InputError) as error:
        checkpointer.recover_if_possible()
    assert str(error.value) == (
        f"{path}: damaged (UnpicklingError). Remove the folder {path.parent} and run the same "
        "command again to resume from the checkpoint before it, or from the beginning."
    )
    assert not (tmp_path / "mark").exists()


def test_random_states_are_not_unpickled_whatever_torch_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save([Touch(str(tmp_path / "mark"))], tmp_path / "state")
    with pytest.raises(pickle.UnpicklingError):
        load_random_state(None, tmp_path / "state", end_of_epoch=True)
    assert not (tmp_path / "mark").exists()
