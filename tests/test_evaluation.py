import pytest

from ent_brain.errors import InputError
from ent_brain.evaluation import report


def test_without_an_epoch_there_is_nothing_to_report(tmp_path):
    with pytest.raises(InputError) as error:
        report(None, {}, {"output_folder": str(tmp_path)}, [])
    assert str(error.value) == f"{tmp_path}: nothing was trained in it: train for an epoch at least"
