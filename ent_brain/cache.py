"""Cache of a frozen front end's features: one file per utterance, computed once.

Files are named ``<folder>/<digest of the front end>/<digest of the audio>.safetensors``. The names
contain no corpus, fold or trained model, so all trainings share the cache. The folder can be
deleted at any time.
"""

import hashlib
import json
import shutil
import zlib
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from speechbrain.utils.logger import get_logger
from torch import Tensor
from tqdm import tqdm

from ent_brain.errors import InputError
from ent_brain.files import whole_or_nothing, write_json
from ent_brain.processes import rank_and_count

FORMAT = 1
"""Version of the cache. Raise it whenever the content of a file or the computation of features
changes."""

PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16}

logger = get_logger(__name__)


class Kept(NamedTuple):
    """Cache entry of an utterance."""

    name: str
    """Digest of its audio."""
    features: Tensor | None
    """[T, L, D] in the cache's precision; None if they are not cached yet."""


def model_digest(model):
    """Digest (str) of the weights and the configuration of a transformers model.

    It does not depend on the model's source or on the library's version.
    """
    origin = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")
    config = {k: v for k, v in model.config.to_diff_dict().items() if k not in origin}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, weights in sorted(model.state_dict().items()):
        digest.update(f"{name} {weights.dtype} {tuple(weights.shape)}".encode())
        digest.update(_bytes(weights))
    return digest.hexdigest()


def weights_digest(model):
    """Digest (str) of the weights of a transformers model, rounded to float16.

    Files that hold the same model in float16 and in float32 have the same digest.
    """
    digest = hashlib.sha256()
    for name, weights in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weights.shape)}".encode())
        digest.update(_bytes(weights.half()))
    return digest.hexdigest()


def _bytes(tensor):
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


class FeatureCache:
    """A folder of features that any number of processes can read and write at the same time.

    Features are rounded to half precision from their first use on, so all epochs use identical
    values. Files are written atomically. A file that is damaged, or belongs to another model, is
    not used.

    Arguments
    ---------
    folder : str or Path
        Created when the first features are stored.
    made_from : dict
        Everything except the audio that determines the features, as JSON values.
    precision : str
        ``float16`` or ``bfloat16``.

    Raises
    ------
    ValueError
        If the precision is not one of the two.

    Example
    -------
    >>> cache = FeatureCache(getfixture("tmp_path"), {"model": "an example"})
    >>> wav = torch.zeros(16000)
    >>> name, features = cache.look_up(wav)
    >>> features is None
    True
    >>> features = cache.keep(name, torch.rand(49, 13, 768))
    >>> torch.equal(cache.look_up(wav).features, features), features.dtype
    (True, torch.float16)
    """

    def __init__(self, folder, made_from, precision="float16"):
        if precision not in PRECISIONS:
            raise ValueError(f"cache precision {precision!r}: use one of {', '.join(PRECISIONS)}")
        self.dtype = PRECISIONS[precision]
        self.made_from = {**made_from, "precision": precision, "format": FORMAT}
        self.key = hashlib.sha256(json.dumps(self.made_from, sort_keys=True).encode()).hexdigest()
        self.folder = Path(folder) / self.key[:16]

    def look_up(self, wav, copy=""):
        """Look up the features of an utterance, or of an altered copy of it.

        Arguments
        ---------
        wav : Tensor
            [S] samples of the utterance, before a copy is altered.
        copy : str
            Name of the copy; empty for the utterance itself.

        Returns
        -------
        Kept
            Its features are None if they are not cached, or if the file is damaged. The log names
            damaged files.
        """
        digest = hashlib.sha256(_bytes(wav))
        digest.update(copy.encode())
        name = digest.hexdigest()
        path = self._path(name)
        try:
            with safe_open(path, "pt") as file:
                features = file.get_tensor("features")
                checksum = file.metadata()["checksum"]
        except FileNotFoundError:
            return Kept(name, None)
        except (SafetensorError, KeyError, TypeError) as error:
            logger.warning(f"{path}: damaged ({error}). Its features are computed again.")
            return Kept(name, None)
        if checksum != self._checksum(name, features):
            logger.warning(
                f"{path}: damaged, or of another model. Its features are computed again."
            )
            return Kept(name, None)
        return Kept(name, features)

    def keep(self, name, features):
        """Store the features of an utterance.

        Arguments
        ---------
        name : str
            Name from ``look_up``.
        features : Tensor
            [T, L, D]

        Returns
        -------
        Tensor
            The features on the CPU, rounded as they are stored.

        Raises
        ------
        InputError
            If the file cannot be written, for example because the disk is full, or if the features
            are too large for the precision. No partial file remains.
        """
        rounded = features.detach().to("cpu", self.dtype).contiguous()
        if not rounded.isfinite().all():
            raise InputError(
                f"features of up to {features.abs().max():.3g} do not fit into {self.dtype}. "
                "Set feature_precision bfloat16."
            )
        checksum = {"checksum": self._checksum(name, rounded)}
        content = safetensors.torch.save({"features": rounded}, checksum)
        try:
            note = self.folder / "made_from.json"
            if not note.is_file():
                self.folder.mkdir(parents=True, exist_ok=True)
                write_json(self.made_from, note)
            with whole_or_nothing(self._path(name)) as partial:
                partial.write_bytes(content)
        except OSError as error:
            raise InputError(
                f"{self.folder}: features cannot be written ({error.strerror}). Free disk space, "
                "choose fewer ssl_layers, or set feature_cache to another folder or to null."
            ) from error
        return rounded

    def _path(self, name):
        return self.folder / f"{name}.safetensors"

    def _checksum(self, name, features):
        about = f"{self.key} {name} {features.dtype} {tuple(features.shape)}"
        return f"{zlib.crc32(_bytes(features), zlib.crc32(about.encode())):08x}"


def disk_use(frontend, datasets):
    """Describe the disk space that the features of datasets need.

    Arguments
    ---------
    frontend : Frontend
        A front end with a cache.
    datasets : list of DynamicItemDataset
        Datasets from ``make_dataset``.

    Returns
    -------
    str
        One line, which also gives the free disk space.
    """
    durations = [item["duration"] for dataset in datasets for item in dataset.data.values()]
    frames = sum(frontend.count_frames(round(s * frontend.sample_rate)) for s in durations)
    size = frames * frontend.feature_layers * frontend.feature_dim * frontend.cache.dtype.itemsize
    folder = frontend.cache.folder
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return (
        f"features of {len(durations)} utterances, {sum(durations) / 3600:.1f} hours, "
        f"{frontend.feature_layers} layers of {frontend.feature_dim}: {size / 1e9:.2f} GB in all, "
        f"kept in {folder}, where {shutil.disk_usage(existing).free / 1e9:.1f} GB are free"
    )


def fill(frontend, datasets, device="cpu"):
    """Compute all features of datasets that are not cached yet, with a progress bar.

    The longest utterance comes first, so that a lack of memory shows at the start. In a distributed
    launch, the processes share the utterances.

    Arguments
    ---------
    frontend : Frontend
        A front end with a cache, on ``device``.
    datasets : list of DynamicItemDataset
        Datasets from ``make_dataset`` with this front end.
    device : str or torch.device
    """
    rank, processes = rank_and_count()
    utterances = sorted(
        (
            (dataset, index, dataset.data[name]["duration"])
            for dataset in datasets
            for index, name in enumerate(dataset.data_ids)
        ),
        key=lambda utterance: -utterance[2],
    )
    total, whole = len(utterances), torch.ones(1, device=device)
    with tqdm(total=total, unit="utterance", disable=rank > 0, dynamic_ncols=True) as progress:
        for place in range(rank, total, processes):
            dataset, index, _ = utterances[place]
            item = dataset[index]
            if item["kept"].features is None:
                frontend(item["sig"][None].to(device), whole, [item["kept"]])
            progress.update(min(processes, total - place))
