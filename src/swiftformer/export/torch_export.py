"""torch.export's .pt2: a program without Python, for torch and for other tools."""

from __future__ import annotations

from pathlib import Path

import torch

from swiftformer.export.formats import Options
from swiftformer.export.graph import DeployGraph, dynamic_shapes, example_for, silent
from swiftformer.export.half import fit_half

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def write(graph: DeployGraph, options: Options, folder: Path) -> str:
    """See `swiftformer.export.Format`."""
    with silent():
        torch.export.save(to_program(graph, options), folder / "model.pt2")
    return "model.pt2"


def to_program(graph: DeployGraph, options: Options) -> torch.export.ExportedProgram:
    """The program of a graph, with the free dimensions that are asked for."""
    dtype = DTYPES[options.precision]
    if dtype == torch.float16:
        fit_half(graph, options.example)
    if dtype != torch.float32:
        graph = graph.to(dtype)
    graph = graph.to(options.device)
    with torch.no_grad():
        return torch.export.export(
            graph,
            (example_for(options).to(options.device),),
            dynamic_shapes=dynamic_shapes(options.batch, options.size),
        )
