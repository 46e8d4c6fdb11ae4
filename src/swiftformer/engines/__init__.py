"""Run a checkpoint or an exported artifact. Those of native, openvino, onnxruntime and litert import no torch."""

from __future__ import annotations

import logging
from importlib import import_module, util
from pathlib import Path

from swiftformer.artifact import Artifact, ArtifactError, is_artifact, read_artifact
from swiftformer.engines.base import Engine, EngineError

__all__ = ["ENGINES", "Engine", "EngineError", "open_engine"]

logger = logging.getLogger(__name__)

# Engine: the module that it needs, the extra that installs it, and the formats that it runs.
ENGINES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "native": ("swiftformer_native", "native", ("native",)),
    "openvino": ("openvino", "openvino", ("openvino", "onnx", "tensorrt", "qnn")),
    "onnxruntime": ("onnxruntime", "onnx", ("onnx", "tensorrt", "qnn")),
    "executorch": ("executorch", "executorch", ("executorch", "executorch-coreml", "executorch-vulkan")),
    "litert": ("ai_edge_litert", "litert", ("litert",)),
    "coreml": ("coremltools", "coreml", ("coreml",)),
    "torch": ("torch", "", ("torch-export", "aoti")),
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
) -> Engine:
    """Load a model into an engine.

    Args:
        reference: the folder of an exported artifact, or anything that `swiftformer.load` takes, which runs in torch,
            and classifiers also in `native`.
        engine: a key of `ENGINES`, for checkpoints also one of `TORCH_MODES`; `auto` takes the fastest that
            is installed and runs the artifact, in the order of `ENGINES`, and says which in the log.
        device: `cpu`, `cuda`, ...; by default the engine's own choice.
        precision: `fp32`, `bf16` or `fp16`, where the engine can compute in another one than the artifact is stored in.
        threads: on the CPU; by default the engine's own choice.
        form: numeric form of a checkpoint, where its file cannot tell.
        isa: of the engine `native`: instruction set, one of `swiftformer_native.supported()`; by default the best.

    Raises:
        ArtifactError: a broken or foreign artifact.
        EngineError: the engine is not installed, or does not run this.
        CheckpointError: a checkpoint that cannot be loaded.
    """
    if threads is not None and threads < 1:
        raise EngineError(f"expected at least 1 thread, found {threads}")
    if engine not in ("auto", *ENGINES, *TORCH_MODES):
        raise EngineError(f"unknown engine {engine!r}: expected auto, {', '.join([*ENGINES, *TORCH_MODES])}")
    only_native: dict[str, str] = {} if isa is None else {"isa": isa}
    if not is_artifact(reference):
        if engine == "native":
            _expect_installed(engine)
            from swiftformer.engines.native import from_reference

            return from_reference(reference, device, precision, threads, form, isa)
        if only_native:
            raise EngineError(f"isa: expected the engine native, found {engine}")
        if engine not in ("auto", "torch", *TORCH_MODES):
            raise EngineError(f"{reference}: expected an exported artifact for the engine {engine}, found none there")
        from swiftformer.engines.torch import TorchEngine

        mode = "torch" if engine == "auto" else engine
        return TorchEngine.from_reference(reference, mode, device, precision, threads, form)
    if engine in TORCH_MODES:
        raise EngineError(f"{reference}: expected a checkpoint for the engine {engine}, found an exported artifact")
    artifact = read_artifact(reference)
    name = _fastest(artifact, device) if engine == "auto" else engine
    formats = ENGINES[name][2]
    if artifact.format not in formats:
        raise EngineError(
            f"{reference}: expected an artifact that {name} runs ({', '.join(formats)}), found {artifact.format}"
        )
    if only_native and name != "native":
        raise EngineError(f"isa: expected the engine native, found {name}")
    _expect_installed(name)
    module_of_engine = import_module(f"swiftformer.engines.{name}")
    opened: Engine = module_of_engine.open_artifact(
        Path(reference), artifact, device, precision, threads, **only_native
    )
    if engine == "auto":
        logger.info("%s: running in %s", reference, opened.name)
    return opened


def _expect_installed(name: str) -> None:
    module, extra, _ = ENGINES[name]
    if util.find_spec(module) is None:
        raise EngineError(f"the engine {name} needs {module}: pip install 'swiftformer[{extra}]'")


def _fastest(artifact: Artifact, device: str | None) -> str:
    able = [name for name, (_, _, formats) in ENGINES.items() if artifact.format in formats]
    if device is not None and device.startswith("cuda"):
        able = [name for name in able if name != "openvino"]  # it knows no CUDA
    if not able:
        raise ArtifactError(f"expected a format that runs on this system, found {artifact.format}")
    for name in able:
        if util.find_spec(ENGINES[name][0]) is not None:
            return name
    modules = " or ".join(ENGINES[name][0] for name in able)
    extras = " or ".join(f"'swiftformer[{ENGINES[name][1]}]'" for name in able)
    raise EngineError(f"an artifact of {artifact.format} needs {modules}: pip install {extras}")
