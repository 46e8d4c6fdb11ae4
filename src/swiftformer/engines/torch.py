"""Checkpoints and exported programs in torch: eager, compiled, or as CUDA graphs."""

from __future__ import annotations

import copy
import io
import logging
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from swiftformer.artifact import Artifact
from swiftformer.device import select_device
from swiftformer.engines.base import Engine, EngineError, EngineOptions, checked_threads, expect_stored
from swiftformer.image_processing import HUB
from swiftformer.labels import labels_of
from swiftformer.messages import one_line

if TYPE_CHECKING:
    from swiftformer.deploy import DeployModel

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Engine: mode of torch.compile.
MODES = {"torch": None, "torch-compile": "default", "torch-cudagraphs": "reduce-overhead"}


class TorchEngine(Engine):
    """A module that maps `(B, C, H, W)` to a tensor, a tuple of tensors, or an output with `logits`.

    Args:
        net: in eval mode; it is moved to the device, and changed to the precision, in place.
        mode: a key of `MODES`.
        precision: a key of `DTYPES`; by default that of the weights. Inputs and outputs stay float32.
    """

    reason = 0  # below it torch tells how to find out more

    def __init__(
        self,
        net: Any,
        labels: tuple[str, ...],
        *,
        mode: str = "torch",
        device: str | torch.device | None = None,
        precision: str | None = None,
        threads: int | None = None,
        outputs: tuple[str, ...] = ("logits",),
        input_shape: tuple[int | None, int | None, int | None, int | None] = (None, None, None, None),
    ) -> None:
        if mode not in MODES:
            raise EngineError(f"unknown engine {mode!r}: expected one of {', '.join(MODES)}")
        if precision not in (None, *DTYPES):
            raise EngineError(f"precision: expected one of {', '.join(DTYPES)} for torch, found {precision!r}")
        self.device = select_device(device)
        if mode == "torch-cudagraphs" and self.device.type != "cuda":
            raise EngineError(f"device: expected cuda for CUDA graphs, found {self.device.type}")
        if threads is not None:
            torch.set_num_threads(checked_threads(threads))
        self.preprocessing = getattr(net, "preprocessing", None) or HUB
        self.labels, self.outputs, self.input_shape = labels, outputs, input_shape
        self.problem_type = getattr(getattr(net, "config", None), "problem_type", None)
        self.net, self.dtype = net, torch.float32
        if isinstance(net, torch.nn.Module):
            self.net = net.to(self.device, DTYPES[precision] if precision else None)
            self.dtype = next((p.dtype for p in net.parameters()), torch.float32)
        names = {dtype: name for name, dtype in DTYPES.items()}
        self.name = f"{mode} {names.get(self.dtype, str(self.dtype).removeprefix('torch.'))} {self.device}"
        if MODES[mode] is not None:
            # By default the second size of pictures is compiled for all others too; a CUDA graph has one size.
            dynamic = False if mode == "torch-cudagraphs" else None
            self.net = torch.compile(self.net, mode=MODES[mode], dynamic=dynamic)

    @classmethod
    def from_reference(cls, reference: str | Path, mode: str, options: EngineOptions) -> TorchEngine:
        """A checkpoint of a model with a head, fused. See `swiftformer.engines.open_engine`."""
        net = load_fused(reference, options.form)
        return cls.fused(net, mode=mode, device=options.device, precision=options.precision, threads=options.threads)

    @classmethod
    def of_model(
        cls,
        model: Any,
        engine: str = "auto",
        device: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
        **options: Any,
    ) -> TorchEngine:
        """A model as it is; a copy where it would have to be moved, cast, or put into eval mode."""
        if precision in (None, *DTYPES):  # others are refused below
            model = _ready(model, select_device(device), DTYPES[precision] if precision else None)
        mode = "torch" if engine == "auto" else engine
        shared: Any = {"mode": mode, "device": device, "precision": precision, "threads": threads}
        return cls(model, labels_of(model.config), **shared, **options)

    @classmethod
    def fused(cls, net: DeployModel, **options: Any) -> TorchEngine:
        """A fused model with a head; options are those of the class.

        Raises:
            EngineError: a detector in another precision than float32, in which its boxes would be too coarse.
        """
        labels = labels_of(net.config)
        if net.detection_head is None:
            return cls(net, labels, outputs=net.outputs, **options)
        if options.get("precision") not in (None, "fp32"):
            raise EngineError(f"precision: expected fp32 for a detector, found {options['precision']}")
        return cls(net, labels, outputs=net.outputs, input_shape=(1, net.config.num_channels, None, None), **options)

    @torch.inference_mode()
    def run(self, batch: np.ndarray) -> list[np.ndarray]:
        pixels = torch.from_numpy(batch).to(self.device, self.dtype)
        found = self.net(pixels.contiguous(memory_format=torch.channels_last))
        found = getattr(found, "logits", found)
        return [output.float().cpu().numpy() for output in (found if isinstance(found, (tuple, list)) else (found,))]


def _ready(net: torch.nn.Module, device: torch.device, dtype: torch.dtype | None) -> torch.nn.Module:
    place = torch.empty(0, device=device).device  # with its index
    tensors = [*net.parameters(), *net.buffers()]
    is_there = all(tensor.device == place for tensor in tensors)
    is_cast = all(tensor.dtype in (dtype or tensor.dtype, torch.int64) for tensor in tensors)
    if is_there and is_cast and not any(module.training for module in net.modules()):
        return net
    return copy.deepcopy(net).eval()


def load_fused(reference: str | Path, form: str | None = None) -> DeployModel:
    """A checkpoint in the form in which it is run; a backbone's as a classifier."""
    from swiftformer.checkpoints import load
    from swiftformer.deploy import fuse
    from swiftformer.locate import stored_task

    task: Any = stored_task(reference)
    model: Any = load(reference, form=form, task="classification" if task == "backbone" else task)
    return fuse(model)


def on_device(program: torch.export.ExportedProgram, device: torch.device) -> torch.export.ExportedProgram:
    """A program exported on the CPU, with its weights moved and the devices changed that its operators name."""
    if device.type == "cpu":
        return program
    from torch.export.passes import move_to_device_pass

    return move_to_device_pass(program, str(torch.empty(0, device=device).device))  # with its index


def refuse_pickles(file: Path) -> None:
    """Raise EngineError for a program in which torch would unpickle anything but tensors, which can run code."""
    try:
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                content = archive.read(name)
                pickled = name.endswith(".json") and b'"use_pickle":true' in content.replace(b" ", b"")
                if name.endswith(".pt"):
                    try:
                        torch.load(io.BytesIO(content), weights_only=True)
                    except Exception:  # of many classes; torch itself would go on and unpickle
                        pickled = True
                if pickled:
                    raise EngineError(f"{file}: expected tensors alone, found a pickle ({name}), which is not opened")
    except zipfile.BadZipFile as error:
        raise EngineError(f"{file}: expected a program of torch.export, found {error}") from None


def _check_versions(folder: Path, artifact: Artifact) -> None:
    """Raise EngineError for machine code made by another torch or for another processor, which would end the process;
    warn of a program that a newer torch wrote."""
    made, here = artifact.versions.get("torch", torch.__version__), torch.__version__
    made_series, series = (re.findall(r"\d+", version)[:2] for version in (made, here))
    if artifact.format == "aoti":
        if made_series != series:
            raise EngineError(f"{folder}: expected torch {made}, which compiled it, found {here}: export it anew")
        processor = torch.backends.cpu.get_cpu_capability()
        if artifact.versions.get("cpu", processor) != processor:
            raise EngineError(
                f"{folder}: expected a processor with {artifact.versions['cpu']}, for which it was compiled, found "
                f"{processor}: export it anew"
            )
    elif list(map(int, made_series)) > list(map(int, series)):
        logger.warning("%s: written by torch %s, which is newer than the %s here", folder, made, here)


def open_artifact(folder: Path, artifact: Artifact, options: EngineOptions) -> Engine:
    """See `swiftformer.engines.open_engine`."""
    expect_stored("torch", artifact, options.precision)
    file = folder / artifact.file
    where = select_device(options.device or (artifact.device if artifact.format == "aoti" else None))
    _check_versions(folder, artifact)
    if artifact.format == "torch-export":
        refuse_pickles(file)
    if artifact.device.split(":")[0] != where.type and artifact.format == "aoti":
        raise EngineError(f"device: expected {artifact.device}, for which the package was compiled, found {where}")
    try:
        if artifact.format == "aoti":
            index = -1 if where.index is None else where.index  # the current device, or this one
            net: Any = torch._inductor.aoti_load_package(str(file), device_index=index)
        else:
            if artifact.task in ("detection", "instances"):
                import torchvision  # noqa: F401  whose operators the program calls
            net = on_device(torch.export.load(file), where).module()
    except Exception as error:  # of many classes, by what is broken
        raise EngineError(f"{file}: torch refuses it ({one_line(error)})") from None
    engine = TorchEngine(
        net,
        artifact.labels,
        device=where,
        threads=options.threads,
        outputs=artifact.outputs,
        input_shape=artifact.input_shape,
    )
    engine.dtype = torch.float32  # the program converts its input itself
    engine.name = f"torch {artifact.format} {artifact.precision} {where}"
    engine.preprocessing = artifact.preprocessing
    return engine
