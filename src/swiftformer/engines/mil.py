"""An interpreter of saved ML Programs, which checks them where Core ML does not run. It is right rather than fast.

It reads the package itself, its graph and its file of weights, so that what is compared is what a phone gets. Values
are rounded to float16 wherever the program says float16; sums inside an operator are kept in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from swiftformer.engines.base import EngineError
from swiftformer.engines.mil_ops import OPS

Array = NDArray[Any]

# Of the enumeration DataType in MIL.proto.
DTYPES: dict[int, Any] = {
    1: np.bool_,
    10: np.float16,
    11: np.float32,
    21: np.int8,
    22: np.int16,
    23: np.int32,
    24: np.int64,
    31: np.uint8,
    32: np.uint16,
    33: np.uint32,
    34: np.uint64,
}
FLOAT16 = 10
SENTINEL = 0xDEADBEEF  # in front of every array in a file of weights


class MlProgram:
    """The main function of a saved program.

    Args:
        spec: of the package, as `coremltools.utils.load_spec` gives it.
        package: the .mlpackage.

    Attributes:
        inputs, outputs: their names.

    Raises:
        EngineError: not an ML Program, broken weights, or an operator that is not in `OPS`.
    """

    def __init__(self, spec: Any, package: Path) -> None:
        if spec.WhichOneof("Type") != "mlProgram":
            raise EngineError(f"{package}: expected an ML Program, found a {spec.WhichOneof('Type')}")
        self.package = package
        self._files: dict[str, Array] = {}
        block = main_block(spec)
        self.inputs = [feature.name for feature in spec.description.input]
        self.outputs = list(block.outputs)
        self._constants: dict[str, Any] = {}
        self._steps = []
        for op in block.operations:
            attributes = {name: self._value(value) for name, value in op.attributes.items() if name != "name"}
            name = op.outputs[0].name
            if op.type == "const":
                self._constants[name] = attributes["val"]
                continue
            if op.type not in OPS:
                raise EngineError(f"{package}: expected operators of {', '.join(OPS)}, found {op.type} ({name})")
            if op.type.startswith("constexpr_"):
                given = attributes | {key: self._argument(key, a, {}) for key, a in op.inputs.items()}
                self._constants[name] = rounded(OPS[op.type](**given), op.outputs[0].type)
            else:
                self._steps.append(op)

    def __call__(self, **values: Array) -> dict[str, Any]:
        """Arrays by the names of the inputs, to arrays by the names of the outputs; a label is None.

        Raises:
            EngineError: an operator with options that are not supported.
        """
        known: dict[str, Any] = dict(values)
        # Half precision overflows; the comparison is what finds it.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for op in self._steps:
                given = {key: self._argument(key, argument, known) for key, argument in op.inputs.items()}
                try:
                    found = OPS[op.type](**given)
                except (NotImplementedError, TypeError) as error:
                    raise EngineError(f"{self.package}: {op.type} ({op.outputs[0].name}): {error}") from None
                for output, array in zip(op.outputs, found if isinstance(found, list) else [found], strict=True):
                    known[output.name] = rounded(array, output.type)
        return {name: known[name] for name in self.outputs}

    def _argument(self, key: str, argument: Any, known: dict[str, Any]) -> Any:
        found = [
            (known[b.name] if b.name in known else self._constants[b.name])
            if b.WhichOneof("binding") == "name"
            else self._value(b.value)
            for b in argument.arguments
        ]
        return found if key == "values" else found[0]

    def _value(self, value: Any) -> Any:
        """A literal, or an array from the file of weights; half precision as float32."""
        if value.type.WhichOneof("type") != "tensorType":
            return None  # the list of classes
        kind, shape = value.type.tensorType.dataType, dimensions(value.type)
        if value.WhichOneof("value") == "blobFileValue":
            array = self._blob(value.blobFileValue, DTYPES[kind], shape)
        else:
            tensor = value.immediateValue.tensor
            literal = getattr(tensor, tensor.WhichOneof("value")).values
            if tensor.WhichOneof("value") == "strings":
                return literal[0]
            raw = isinstance(literal, bytes)
            array = np.frombuffer(literal, DTYPES[kind]) if raw else np.array(list(literal), DTYPES[kind])
            array = array.reshape(shape)
        return array.astype(np.float32) if kind == FLOAT16 else array

    def _blob(self, place: Any, dtype: Any, shape: list[int]) -> Array:
        """An array from behind its header: sentinel, type (32 bits each), bytes and offset (64 bits each)."""
        name = place.fileName.replace("@model_path", "Data/com.apple.CoreML")
        if name not in self._files:
            try:
                self._files[name] = np.memmap(self.package / name, mode="r")
            except (OSError, ValueError):
                raise EngineError(f"{self.package}: expected weights in {name}, found none") from None
        file = self._files[name]
        header = file[place.offset : place.offset + 24].tobytes()
        if len(header) < 24 or np.frombuffer(header, "<u4")[0] != SENTINEL:
            raise EngineError(f"{self.package}: expected an array at byte {place.offset} of {name}, found none")
        size, start = (int(n) for n in np.frombuffer(header, "<u8")[1:])
        array = np.frombuffer(file[start : start + size].tobytes(), dtype)
        if array.size != np.prod(shape):
            raise EngineError(f"{self.package}: expected {np.prod(shape)} numbers in {name}, found {array.size}")
        return array.reshape(shape)


def main_block(spec: Any) -> Any:
    """The operations of the main function, of a protobuf Model."""
    function = spec.mlProgram.functions["main"]
    return function.block_specializations[function.opset]


def dimensions(kind: Any) -> list[int]:
    """The shape in a protobuf ValueType, whose dimensions are known."""
    return [d.constant.size for d in kind.tensorType.dimensions]


def rounded(array: Any, kind: Any) -> Any:
    """An array as precise as its protobuf ValueType says, in float32."""
    if array is None or kind.WhichOneof("type") != "tensorType" or kind.tensorType.dataType != FLOAT16:
        return array
    return array.astype(np.float16).astype(np.float32)
