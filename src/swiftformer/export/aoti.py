"""AOTInductor: machine code for the device that exports, in a package that runs without Python."""

from __future__ import annotations

from pathlib import Path

import torch

from swiftformer.export.formats import ExportError, Options
from swiftformer.export.graph import DeployGraph
from swiftformer.export.torch_export import to_program
from swiftformer.messages import one_line


def write(graph: DeployGraph, options: Options, folder: Path) -> str:
    """See `swiftformer.export.Format`.

    Raises:
        ExportError: there is no C++ compiler, or for a GPU no CUDA toolkit.
    """
    if options.device.startswith("cuda"):
        from torch.utils.cpp_extension import CUDA_HOME

        if CUDA_HOME is None and torch.version.hip is None:
            raise ExportError("aoti: expected a CUDA toolkit, where CUDA_HOME says or nvcc is, found none")
    program = to_program(graph, options)
    try:
        torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "model.pt2"))
    except Exception as error:
        reason = getattr(error, "inner_exception", error)
        if type(reason).__name__ not in ("InvalidCxxCompiler", "CppCompileError"):
            raise
        raise ExportError(f"aoti: expected a C++ compiler that works, found {one_line(reason)}") from None
    return "model.pt2"
