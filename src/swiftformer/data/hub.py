"""Data sets that the `datasets` library loads by name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from PIL import Image

from swiftformer.data.parquet import LABEL_COLUMNS, check_labels, numbered_classes, open_entry
from swiftformer.data.splits import Splits, usual
from swiftformer.files import is_path

logger = logging.getLogger(__name__)


class DatasetsSource:
    """A split of a data set that the `datasets` library loads by name or path.

    Raises:
        ValueError: it has no image column, no label column, or images without a label that is a whole number.
    """

    def __init__(self, dataset: Any, name: str) -> None:
        import datasets

        features = dataset.features
        image = next((n for n, f in features.items() if isinstance(f, datasets.Image)), None)
        named = [n for n, f in features.items() if isinstance(f, datasets.ClassLabel)]
        usual_ones = [n for n in LABEL_COLUMNS if n in features]
        label = next((n for n in (*(n for n in usual_ones if n in named), *named, *usual_ones)), None)
        if image is None or label is None:
            raise ValueError(
                f"{name}: expected an Image column and one of labels ({', '.join(LABEL_COLUMNS)}), found {features}"
            )
        self._images = dataset.cast_column(image, datasets.Image(decode=False)).select_columns([image])
        self._column, self._name = image, name
        self.labels: list[int] = [int(v) if isinstance(v, bool) else v for v in dataset[label]]
        names = list(features[label].names) if label in named else None
        check_labels(self.labels, names, name)
        self.classes = names or numbered_classes(self.labels, name)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int, short_side: int | None = None) -> Image.Image:
        return open_entry(self._images[index][self._column], self.name(index), short_side)

    def name(self, index: int) -> str:
        return f"{self._name} row {index}"

    def key(self, index: int) -> str:
        return str(index)


def find(name: str) -> Splits:
    """The splits of a data set by its name on the hub.

    Raises:
        ValueError: there is none of that name, or the library is missing.
    """
    if is_path(name):
        raise ValueError(f"{name}: no such file or folder")
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"{name}: no such folder; loading it by name needs the datasets library (pip install datasets)"
        ) from None
    logger.info("%s: no such file or folder here; asking the hub for a data set of this name", name)
    try:
        _ask_once(name)
        available = datasets.get_dataset_split_names(name)
    except Exception as error:
        raise _cannot_load(name, error) from error
    return {usual(split): lambda split=split: _load(name, split) for split in available}  # type: ignore[misc]


def _ask_once(name: str) -> None:
    """Raise what keeps the hub from knowing a name that is not cached: the library tries again for half a minute."""
    from datasets import config
    from datasets.naming import camelcase_to_snakecase
    from huggingface_hub import HfApi

    *owner, own = name.split("/")
    if not Path(config.HF_DATASETS_CACHE, "___".join([*owner, camelcase_to_snakecase(own)])).exists():
        HfApi().dataset_info(name, timeout=10)


def _load(name: str, split: str) -> DatasetsSource:
    import datasets

    try:
        dataset = datasets.load_dataset(name, split=split)
    except Exception as error:
        raise _cannot_load(name, error) from error
    return DatasetsSource(dataset, f"{name} {split}")


def _cannot_load(name: str, error: Exception) -> ValueError:
    details = next(iter(str(error).splitlines()), "no details")
    return ValueError(
        f"{name}: no such folder, and the datasets library cannot load it ({type(error).__name__}: {details})"
    )
