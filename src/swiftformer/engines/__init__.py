"""Run a checkpoint or an exported artifact. Those of native, openvino, onnxruntime and litert import no torch."""

from __future__ import annotations

import logging
from importlib import import_module, util
from pathlib import Path

from swiftformer.artifact import Artifact, ArtifactError, is_artifact, read_artifact
from swiftformer.engines.base import (
    NATIVE,
    Engine,
    EngineError,
    EngineOptions,
    checked_threads,
    expect_torch,
)
from swiftformer.files import expanded
from swiftformer.messages import one_line
from swiftformer.processors import may_have_gpu

__all__ = ["ENGINES", "Engine", "EngineError", "open_engine"]

logger = logging.getLogger(__name__)

# Engine: the module that it needs, what pip installs to have it, and the formats that it runs.
ENGINES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "native": ("swiftformer_native", NATIVE, ("native",)),
    "openvino": ("openvino", "openvino", ("openvino", "onnx", "tensorrt", "qnn")),
    "onnxruntime": ("onnxruntime", "onnxruntime", ("onnx", "tensorrt", "qnn")),
    "executorch": ("executorch", "executorch", ("executorch", "executorch-coreml", "executorch-vulkan")),
    "litert": ("ai_edge_litert", "ai-edge-litert", ("litert",)),
    "coreml": ("coremltools", "coremltools", ("coreml",)),
    "torch": ("torch", "torch", ("torch-export", "aoti")),
}

# Engines for checkpoints alone.
TORCH_MODES = ("torch-compile", "torch-cudagraphs")


def open_engine(
    reference: str | Path,
    engine: str = "auto",
    *,
    device: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    form: str | None = None,
    isa: str | None = None,
    pin: bool = False,
) -> Engine:
    """Load a model into an engine.

    Args:
        reference: the folder of an exported artifact, or anything that `swiftformer.load` takes, which runs in torch,
            and all but detectors also in `native`.
        engine: a key of `ENGINES`, for checkpoints also one of `TORCH_MODES`. `auto` takes the first in the order of
            `ENGINES` that is installed and runs the artifact as asked; for checkpoints `native` where it computes
            them and there is no GPU, otherwise torch. It says in the log which.
        device: `cpu`, `cuda`, ...; by default the engine's own choice.
        precision: `fp32`, `bf16` or `fp16`, where the engine can compute in another one than the artifact is stored in.
        threads: on the CPU; by default the engine's own choice.
        form: numeric form of a checkpoint, where its file cannot tell; of an artifact no other than its own.
        isa: of `native`, which `auto` takes then: instruction set, one of `swiftformer_native.supported()`; by default
            the best.
        pin: of `native`, which `auto` takes then: on Linux, keep each of its threads, but the one that calls, on one
            processor, the second thread on the second that the process may use, and so on. For one engine in a
            process, and one process on a processor.

    Raises:
        ArtifactError: a broken or foreign artifact.
        EngineError: the engine is not installed, or does not run this.
        CheckpointError: a checkpoint that cannot be loaded.
    """
    if threads is not None:
        threads = checked_threads(threads)
    if not isinstance(pin, bool):
        raise EngineError(f"pin: expected True or False, found {pin!r}")
    if engine not in ("auto", *ENGINES, *TORCH_MODES):
        raise EngineError(f"unknown engine {engine!r}: expected auto, {', '.join([*ENGINES, *TORCH_MODES])}")
    options = EngineOptions(device, precision, threads, form, isa, pin)
    open_one = _open_artifact if is_artifact(reference) else _open_checkpoint
    opened = open_one(reference, engine, options)
    if engine == "auto":
        logger.info("%s: running in %s", reference, opened.name)
    return opened


def _open_checkpoint(reference: str | Path, engine: str, options: EngineOptions) -> Engine:
    if engine not in ("auto", "native", "torch", *TORCH_MODES):
        raise EngineError(
            f"{reference}: expected an artifact of `swiftformer export` for the engine {engine}, found none"
        )
    if options.only_for_native and engine not in ("auto", "native"):
        raise EngineError(f"{options.only_for_native}: expected the engine native, found {engine}")
    if engine == "native" or options.only_for_native:
        _expect_installed("native")
        from swiftformer.engines.native import from_reference

        return from_reference(reference, options)
    refusal = ""
    if engine == "auto" and _native_may_run(reference, options.device):
        from swiftformer.engines.native import from_reference

        try:
            return from_reference(reference, options)
        except (EngineError, ImportError) as error:  # a network or a precision that it does not compute: torch does
            if isinstance(error, EngineError) and util.find_spec("torch") is None:
                raise
            refusal = f"; {one_line(error)}"
    expect_torch(reference)
    from swiftformer.engines.torch import TorchEngine

    mode = "torch" if engine == "auto" else engine
    try:
        return TorchEngine.from_reference(reference, mode, options)
    except EngineError as error:
        raise EngineError(f"{error}{refusal}") from None


def _native_may_run(reference: str | Path, device: str | None) -> bool:
    """Whether a checkpoint for the CPU is no detector, told without its weights."""
    from swiftformer.locate import stored_task

    on_cpu = device == "cpu" or (device is None and not _has_gpu())
    return on_cpu and _installed("native") and stored_task(reference) in ("classification", "backbone", "segmentation")


def _has_gpu() -> bool:
    if not may_have_gpu() or util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def _open_artifact(reference: str | Path, engine: str, options: EngineOptions) -> Engine:
    if engine in TORCH_MODES:
        raise EngineError(f"{reference}: expected a checkpoint for the engine {engine}, found an exported artifact")
    artifact = read_artifact(reference)
    if options.form not in (None, artifact.source.get("form")):
        raise EngineError(
            f"{reference}: form: expected that of the artifact, {artifact.source.get('form')}, found {options.form}"
        )
    refused: dict[str, EngineError] = {}
    for name in _able(artifact) if engine == "auto" else [engine]:
        try:
            opened = _open_in(name, expanded(reference), artifact, options)
            opened.problem_type, opened.task = artifact.source.get("problem_type"), artifact.task
            return opened
        except EngineError as error:
            refused[name] = error
            if engine == "auto":
                logger.info("%s: not in %s (%s)", reference, name, error)
    if len(refused) == 1:
        raise next(iter(refused.values()))
    reasons = "; ".join(f"{name}: {error}" for name, error in refused.items())
    raise EngineError(f"{reference}: expected an engine that runs this, found none ({reasons})")


def _open_in(name: str, folder: Path, artifact: Artifact, options: EngineOptions) -> Engine:
    formats = ENGINES[name][2]
    if artifact.format not in formats:
        raise EngineError(
            f"{folder}: expected an artifact that {name} runs ({', '.join(formats)}), found {artifact.format}"
        )
    if options.only_for_native and name != "native":
        raise EngineError(f"{options.only_for_native}: expected the engine native, found {name}")
    _expect_installed(name)
    try:
        opened: Engine = import_module(f"swiftformer.engines.{name}").open_artifact(folder, artifact, options)
    except ImportError as error:
        raise EngineError(f"{ENGINES[name][0]} is installed, but cannot be imported ({one_line(error)})") from None
    return opened


def _installed(name: str) -> bool:
    return util.find_spec(ENGINES[name][0]) is not None


def _expect_installed(name: str) -> None:
    if not _installed(name):
        raise EngineError(f"the engine {name} needs {ENGINES[name][0]}: pip install {ENGINES[name][1]}")


def _able(artifact: Artifact) -> list[str]:
    """The engines that are installed and run the format, in the order of `ENGINES`, as a rule the fastest first."""
    able = [name for name, (_, _, formats) in ENGINES.items() if artifact.format in formats]
    if not able:
        raise ArtifactError(f"expected a format that runs on this system, found {artifact.format}")
    if installed := [name for name in able if _installed(name)]:
        return installed
    modules = " or ".join(ENGINES[name][0] for name in able)
    packages = " or ".join(ENGINES[name][1] for name in able)
    raise EngineError(f"an artifact of {artifact.format} needs {modules}: pip install {packages}")
