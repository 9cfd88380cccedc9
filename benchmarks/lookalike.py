"""The ZED look-alike for the benchmarks, prepared by the recipe's script."""

import sys
from pathlib import Path

from ent_brain.emotions import PUBLISHED
from ent_brain.tokens import normalize_transcript

ZED_RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "ZED"


def prepare(zed_folder, save_folder):
    """Write the manifest ``<save_folder>/zed.json`` of a corpus in ZED's layout."""
    sys.path.insert(0, str(ZED_RECIPE))
    from zed_prepare import LABELS, prepare_zed

    labels = {label: label for label in LABELS}
    prepare_zed(zed_folder, save_folder, PUBLISHED, labels, normalize_transcript)
