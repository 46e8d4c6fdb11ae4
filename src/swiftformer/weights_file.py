"""Read the tensors of a weights file without executing anything in it, and write them."""

from __future__ import annotations

import argparse
import errno
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swiftformer.locate import CheckpointError

# How training scripts wrap a model's state dict, and what wrappers put in front of its keys.
CONTAINERS = ("model", "state_dict", "module")
AVERAGED = ("model_ema", "state_dict_ema", "ema")
PREFIXES = ("module.", "_orig_mod.")
# What `swiftformer.save` writes beside a state dict in another release's naming, as JSON.
NOTES = "swiftformer"


def read_weights(path: Path, *, ema: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict in a .safetensors file or a PyTorch pickle, and the notes that this package left with it.

    Args:
        ema: take the averaged weights of a training checkpoint.

    Raises:
        CheckpointError: empty, truncated, corrupt, hostile, without tensors, or without averaged weights.
    """
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: expected weights, found an empty file")
    if path.suffix == ".safetensors":
        if ema:
            raise CheckpointError(f"{path}: expected a training checkpoint with averaged weights, found safetensors")
        tensors, notes = _read_safetensors(path)
        return _clean(tensors, path), _parse(notes, path)
    content = _read_pickle(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected a state dict, found {type(content).__name__}")
    notes = content.get(NOTES)
    containers = AVERAGED if ema else CONTAINERS
    found = next((content[name] for name in containers if isinstance(content.get(name), Mapping)), None)
    if ema and found is None:
        keys = ", ".join(map(str, list(content)[:5]))
        raise CheckpointError(f"{path}: expected averaged weights ({', '.join(AVERAGED)}), found {keys}")
    return _clean(content if found is None else found, path), _parse(notes, path)


def _parse(notes: Any, path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(notes) if notes is not None else {}
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: expected its notes as JSON ({error})") from error
    return parsed if isinstance(parsed, dict) else {}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, (file.metadata() or {}).get(NOTES)  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: truncated or no safetensors file ({error})") from error


def _read_pickle(path: Path) -> Any:
    try:
        # Training checkpoints of the authors keep their arguments in a namespace: attributes, no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "GLOBAL" in str(error):
            raise CheckpointError(
                f"{path}: refused, because it holds more than tensors and plain values and loading it would run code"
            ) from error
        raise CheckpointError(f"{path}: truncated, or no PyTorch checkpoint") from error
    except PermissionError as error:
        raise CheckpointError(f"{path}: no permission to read it") from error
    except Exception as error:  # the reader answers damage with whatever it stumbled over
        raise CheckpointError(f"{path}: truncated, or no PyTorch checkpoint ({type(error).__name__})") from error


def _clean(state_dict: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    tensors = {key: value for key, value in state_dict.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: expected named tensors, found none")
    for prefix in PREFIXES * 2:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def write_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: it cannot be written, as on a full disk.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, f"{path}: cannot be written ({error})") from error
