"""ExecuTorch programs in ExecuTorch's own runtime, whose Python binding is built on torch's libraries."""

from __future__ import annotations

import warnings
from importlib import metadata
from pathlib import Path

import numpy as np

from swiftformer.artifact import Artifact
from swiftformer.engines.base import BackendMissingError, Engine, EngineError, EngineOptions, expect_cpu, expect_stored
from swiftformer.messages import one_line

# Format: the backend that its programs are lowered for.
BACKENDS = {
    "executorch": "XnnpackBackend",
    "executorch-coreml": "CoreMLBackend",
    "executorch-vulkan": "VulkanBackend",
}

# torch: the executorch that is built against it. No package metadata says so, and a wrong pair fails only at run time.
PAIRS = {"2.11": "1.2", "2.12": "1.3", "2.13": "1.4", "2.14": "1.5", "2.15": "1.5"}


class ExecuTorchEngine(Engine):
    """A program's method `forward`.

    Args:
        file: the .pte file.
        threads: of the pool that all programs of the process share.
    """

    def __init__(self, file: Path, artifact: Artifact, threads: int | None = None) -> None:
        if problem := wrong_pair():
            raise EngineError(problem)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the binding is experimental
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime
        backend = BACKENDS[artifact.format]
        runtime = Runtime.get()
        if not runtime.backend_registry.is_available(backend):
            found = ", ".join(runtime.backend_registry.registered_backend_names)
            raise BackendMissingError(f"expected an executorch with {backend}, found one with {found}")
        if threads is not None:
            portable_lib._unsafe_reset_threadpool(threads)
        try:
            self.program = runtime.load_program(file)
            self.forward = self.program.load_method("forward")
            assert self.forward is not None
            self.forward.metadata.input_tensor_meta(0)
        except (RuntimeError, KeyError, IndexError) as error:
            reason = one_line(error)
            raise EngineError(f"{file}: executorch refuses it ({reason})") from None
        self.name = f"executorch {backend.removesuffix('Backend').lower()} {artifact.precision}"
        self.preprocessing, self.labels = artifact.preprocessing, artifact.labels
        self.outputs, self.input_shape = artifact.outputs, artifact.input_shape

    def run(self, batch: np.ndarray) -> list[np.ndarray]:
        import torch

        assert self.forward is not None
        try:
            return [output.numpy() for output in self.forward.execute([torch.from_numpy(batch)])]
        except RuntimeError as error:
            raise EngineError(f"executorch fails to run the program ({one_line(error)})") from None


def wrong_pair() -> str | None:
    """What is wrong with the installed torch and executorch; None if nothing is, or the torch is not known."""
    torch, found = (metadata.version(package).split("+")[0] for package in ("torch", "executorch"))
    wanted = PAIRS.get(".".join(torch.split(".")[:2]))
    if wanted is None or ".".join(found.split(".")[:2]) == wanted:
        return None
    return f"expected executorch {wanted} beside torch {torch}, found {found}: pip install 'executorch=={wanted}.*'"


def open_artifact(folder: Path, artifact: Artifact, options: EngineOptions) -> Engine:
    """See `swiftformer.engines.open_engine`. The program itself says where it runs."""
    expect_stored("executorch", artifact, options.precision)
    expect_cpu("executorch", options.device)
    return ExecuTorchEngine(folder / artifact.file, artifact, options.threads)
