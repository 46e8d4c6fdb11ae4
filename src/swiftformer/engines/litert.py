"""LiteRT's .tflite models in ai-edge-litert. Nothing here needs torch."""

from __future__ import annotations

from pathlib import Path
from threading import Lock

import numpy as np

from swiftformer.artifact import Artifact
from swiftformer.engines.base import Engine, EngineError, EngineOptions, expect_cpu, expect_stored
from swiftformer.messages import one_line
from swiftformer.processors import processors


class LiteRtEngine(Engine):
    """An interpreter with XNNPACK. Threads that call it at once take turns.

    Args:
        file: the .tflite file.
        threads: by default one for each processor that this process may run on; LiteRT itself would take one.
    """

    def __init__(self, file: Path, artifact: Artifact, threads: int | None = None) -> None:
        from ai_edge_litert.interpreter import Interpreter

        try:
            interpreter = Interpreter(str(file), num_threads=threads or processors())
            interpreter.allocate_tensors()
            self.runner = interpreter.get_signature_runner()
            found = [*self.runner.get_input_details(), *self.runner.get_output_details()]
        except (ValueError, RuntimeError) as error:
            raise EngineError(f"{file}: litert refuses it ({one_line(error)})") from None
        if missing := {"pixel_values", *artifact.outputs} - set(found):
            raise EngineError(f"{file}: expected {', '.join(sorted(missing))} in its signature, found none there")
        self.turn = Lock()  # all callers' values go through the same tensors
        self.name = f"litert {artifact.precision} cpu"
        self.preprocessing, self.labels = artifact.preprocessing, artifact.labels
        self.outputs, self.input_shape = artifact.outputs, artifact.input_shape

    def run(self, batch: np.ndarray) -> list[np.ndarray]:
        with self.turn:
            found = self.runner(pixel_values=batch)
        return [found[name] for name in self.outputs]


def open_artifact(folder: Path, artifact: Artifact, options: EngineOptions) -> Engine:
    """See `swiftformer.engines.open_engine`."""
    expect_stored("litert", artifact, options.precision)
    expect_cpu("litert", options.device)
    return LiteRtEngine(folder / artifact.file, artifact, options.threads)
