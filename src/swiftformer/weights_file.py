"""Read the tensors of a weights file without executing anything in it."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swiftformer.locate import CheckpointError

# How training scripts wrap a model's state dict, and what wrappers put in front of its keys.
CONTAINERS = ("model", "state_dict", "state_dict_ema", "module")
PREFIXES = ("module.", "_orig_mod.")


def read_weights(path: Path, *, ema: bool = False) -> dict[str, Tensor]:
    """The state dict in a .safetensors file or a PyTorch pickle.

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
        return _clean(_read_safetensors(path), path)
    content = _read_pickle(path)
    if isinstance(content, Mapping):
        if ema:
            if not isinstance(content.get("model_ema"), Mapping):
                raise CheckpointError(
                    f"{path}: expected averaged weights (model_ema), found {', '.join(map(str, content))}"
                )
            return _clean(content["model_ema"], path)
        for name in CONTAINERS:
            if isinstance(content.get(name), Mapping):
                content = content[name]
                break
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected a state dict, found {type(content).__name__}")
    return _clean(content, path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
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
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, OSError) as error:
        raise CheckpointError(f"{path}: truncated, or no PyTorch checkpoint ({type(error).__name__})") from error


def _clean(state_dict: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    tensors = {key: value for key, value in state_dict.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: expected named tensors, found none")
    for prefix in PREFIXES * 2:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
