"""Core ML packages: in Core ML on macOS, elsewhere in an interpreter, for checking and not for speed.

coremltools imports torch where it is installed; nothing here needs it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from swiftformer.artifact import Artifact
from swiftformer.engines.base import Engine, EngineError, EngineOptions, expect_stored
from swiftformer.engines.mil import MlProgram
from swiftformer.messages import one_line

# Device: coremltools' name of the compute units.
UNITS = {"all": "ALL", "cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "ne": "CPU_AND_NE"}


class CoreMlEngine(Engine):
    """A package, its values as Core ML or the interpreter computes them.

    Args:
        file: the .mlpackage.
        device: a key of `UNITS` on macOS, where Core ML decides among them; `cpu` elsewhere.

    A program that takes images gets whole pixel values: what is between them is rounded.
    """

    def __init__(self, file: Path, artifact: Artifact, device: str | None = None) -> None:
        native = sys.platform == "darwin"
        wanted = tuple(UNITS) if native else ("cpu",)
        device = device or wanted[0]
        if device not in wanted:
            raise EngineError(f"device: expected one of {', '.join(wanted)} for coreml here, found {device!r}")
        with quiet():
            import coremltools

            try:
                spec = coremltools.utils.load_spec(str(file))
                if native:
                    unit = getattr(coremltools.ComputeUnit, UNITS[device])
                    self.run_one: Any = CoreMl(coremltools.models.MLModel(str(file), compute_units=unit), artifact)
                else:
                    self.run_one = Interpreter(MlProgram(spec, file), artifact)
            except EngineError:
                raise
            except Exception as error:  # of many classes, by what is broken
                raise EngineError(f"{file}: coremltools refuses it ({one_line(error)})") from None
        self.takes_images = spec.description.input[0].type.WhichOneof("Type") == "imageType"
        self.name = f"coreml {artifact.precision} {device if native else 'interpreted'}"
        self.preprocessing, self.labels = artifact.preprocessing, artifact.labels
        self.outputs, self.input_shape = artifact.outputs, artifact.input_shape

    def run(self, batch: np.ndarray) -> list[np.ndarray]:
        if self.takes_images:
            batch = np.clip(np.rint(batch), 0, 255)
        return self.run_one(batch, self.takes_images)


class Interpreter:
    """A program in `MlProgram`."""

    def __init__(self, program: MlProgram, artifact: Artifact) -> None:
        self.program, self.outputs = program, artifact.outputs

    def __call__(self, batch: np.ndarray, image: bool) -> list[np.ndarray]:
        found = self.program(pixel_values=batch)
        return [np.asarray(found[name], dtype=np.float32) for name in self.outputs]


class CoreMl:
    """A model in Core ML, which gives the probabilities of a classifier by the names of its classes."""

    def __init__(self, model: Any, artifact: Artifact) -> None:
        self.model, self.outputs, self.classes = model, artifact.outputs, unique(artifact.labels)

    def __call__(self, batch: np.ndarray, image: bool) -> list[np.ndarray]:
        given: Any = batch
        if image:
            from PIL import Image

            given = Image.fromarray(batch[0].transpose(1, 2, 0).astype(np.uint8))  # (H, W, 3)
        found = self.model.predict({"pixel_values": given})
        arrays = []
        for name in self.outputs:
            values = found[name]
            if isinstance(values, dict):
                values = [[values[label] for label in self.classes]]
            arrays.append(np.asarray(values, dtype=np.float32))
        return arrays


def unique(labels: Sequence[str]) -> list[str]:
    """Names of classes, each another one: Core ML gives probabilities by name, and ImageNet has two cranes."""
    counts = Counter(labels)
    while len(counts) < len(labels):  # as a name with a number may be another class's own
        labels = [f"{label} ({i})" if counts[label] > 1 else label for i, label in enumerate(labels)]
        counts = Counter(labels)
    return list(labels)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without coremltools' progress bars and warnings about parts of it that are not needed."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def open_artifact(folder: Path, artifact: Artifact, options: EngineOptions) -> Engine:
    """See `swiftformer.engines.open_engine`. Core ML decides on its threads itself."""
    expect_stored("coreml", artifact, options.precision)
    return CoreMlEngine(folder / artifact.file, artifact, options.device)
