"""How pictures are prepared, as a checkpoint of transformers says."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from swiftformer.image_processing import Preprocessing
from swiftformer.messages import one_line

logger = logging.getLogger(__name__)
PREPROCESSING_FILE = "preprocessor_config.json"


def stored_preprocessing(reference: str | os.PathLike, options: Mapping[str, Any]) -> Preprocessing | None:
    """Of a folder or a hub id, with the options of `from_pretrained`."""
    quiet = ("gated_repo", "missing_entries", "connection_errors")
    asked = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
    fields: dict[str, Any] = {name: options[name] for name in asked if options.get(name) is not None}
    fields |= {f"_raise_exceptions_for_{name}": False for name in quiet}
    if Path(reference).is_file():  # weights alone
        return None
    try:
        file = cached_file(reference, PREPROCESSING_FILE, **fields)
        return None if file is None else Preprocessing.from_dict(json.loads(Path(file).read_text(encoding="utf-8")))
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        logger.warning("%s: expected a preprocessing that is known, found none (%s)", reference, one_line(error))
        return None
