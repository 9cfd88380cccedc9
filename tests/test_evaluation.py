import pytest

from ent_brain.errors import InputError
from ent_brain.evaluation import report


def test_without_an_epoch_there_is_nothing_to_report(tmp_path):
    with pytest.raises(InputError) as error:
        report(None, None, None, {}, {"output_folder": str(tmp_path)})
    assert str(error.value) == f"{tmp_path}: nothing was trained in it: train for an epoch at least"


@pytest.mark.parametrize("damaged", ["[]", "{}", "5", "[5]", '[{"lr": 1}]', "[{"])
def test_epochs_that_are_none_are_refused(tmp_path, damaged):
    (tmp_path / "history.json").write_text(damaged)
    with pytest.raises(InputError) as error:
        report(None, None, None, {}, {"output_folder": str(tmp_path)})
    what, _, remedy = str(error.value).rpartition(": ")
    assert what.startswith(f"{tmp_path}/history.json: ")
    assert remedy == "bring it back, or train again in another output_folder"
