"""Fused networks in `swiftformer_native`, this project's own engine for CPUs, mostly without torch.

It uses the best instruction set that the processor has, unless another one of those that
`swiftformer_native.supported()` names is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from swiftformer.artifact import Artifact
from swiftformer.engines.base import Engine, EngineError, EngineOptions, expect_cpu, expect_torch
from swiftformer.image_processing import HUB, Preprocessing
from swiftformer.labels import labels_of
from swiftformer.locate import locate
from swiftformer.messages import one_line

NETWORK, WEIGHTS = "network.json", "weights.safetensors"
PRECISIONS = ("fp32", "bf16", "int8")

# Kind of a layer, which is the method that adds it to a network: the arguments, in order.
LAYERS: dict[str, tuple[str, ...]] = {
    "stem": ("weight1", "bias1", "weight2", "bias2", "mean", "std"),
    "downsampling": ("weight", "bias"),
    "branch": ("depth_wise", "depth_wise_bias", "expand", "expand_bias", "project", "project_bias"),
    "encoder": (
        *("depth_wise", "depth_wise_bias", "local_expand", "local_expand_bias", "local_project", "local_project_bias"),
        *("key_query", "key_query_bias", "score", "output", "output_bias", "normalize", "pooled_scale"),
        *("expand", "expand_bias", "project", "project_bias"),
    ),
    "output": ("factor", "shift"),
    "head": ("weight", "bias"),
    "lateral": ("weight", "bias"),
    "pyramid_level": ("index",),
    "convolution": ("weight", "bias", "relu"),
    "enlarging": ("level",),
    "scores": ("weight", "bias"),
    "scores_output": (),
}
OUTPUTS = ("output", "head", "scores_output")  # kinds that give one

# Kind and name of a layer, and the arguments that `LAYERS` lists for the kind.
Member = tuple[str, str, dict[str, Any]]
Layers = Sequence[Mapping[str, Any]]
Tensors = Mapping[str, np.ndarray]


class NativeEngine(Engine):
    """A `swiftformer_native.Network`.

    Args:
        layers, tensors: as `swiftformer.export.native.network_of` gives them.
        raw: take pixels from 0 to 255.
        precision: one of `PRECISIONS`, to compute in.
        isa: instruction set; by default the best.
        pin: keep each thread, but the caller's, on one processor, see `open_engine`.
    """

    def __init__(
        self,
        layers: Layers,
        tensors: Tensors,
        *,
        preprocessing: Preprocessing,
        labels: tuple[str, ...],
        outputs: tuple[str, ...],
        input_shape: tuple[int | None, int | None, int | None, int | None] = (None, 3, None, None),
        raw: bool = False,
        precision: str = "fp32",
        threads: int | None = None,
        isa: str | None = None,
        pin: bool = False,
    ) -> None:
        if precision not in PRECISIONS:
            raise EngineError(f"precision: expected one of {', '.join(PRECISIONS)} for native, found {precision!r}")
        self.network = build(layers, tensors, isa or "auto", precision, threads, pin)
        found = sum(layer["kind"] in OUTPUTS for layer in layers)
        if found != len(outputs):
            raise EngineError(f"native: expected {len(outputs)} outputs ({', '.join(outputs)}), found {found}")
        self.preprocessing, self.labels = preprocessing, labels
        self.outputs, self.input_shape = outputs, input_shape
        self.name = f"native {self.network.precision} {self.network.isa}"
        mean, std = tensors.get("stem.mean"), tensors.get("stem.std")
        self.takes_pixels = mean is not None and std is not None
        if raw and not self.takes_pixels:
            raise EngineError("native: expected a network that knows its normalisation, found one without")
        self.normalization = (mean[:, None, None], std[:, None, None]) if raw else None  # type: ignore[index]

    def run(self, batch: np.ndarray) -> list[np.ndarray]:
        if self.normalization is not None and batch.dtype != np.uint8:
            mean, std = self.normalization
            batch = (batch / np.float32(255) - mean) / std
        return self.network(batch)

    def from_pixels(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """`(N, H, W, 3)` uint8, of the right size and not normalised, to what a call returns.

        Raises:
            EngineError: an input of another type or shape, or a network that does not know its normalisation.
        """
        sizes = zip((*self.input_shape[2:], 3), pixels.shape[1:], strict=False)
        if (
            pixels.dtype != np.uint8
            or pixels.ndim != 4
            or len(pixels) == 0
            or any(wanted not in (None, found) for wanted, found in sizes)
        ):
            height, width = (size or "any" for size in self.input_shape[2:])
            raise EngineError(
                f"expected uint8 pixels of shape (N, {height}, {width}, 3), found {pixels.dtype} {pixels.shape}"
            )
        if not self.takes_pixels:
            raise EngineError("native: expected a network that knows its normalisation, found one without")
        return dict(zip(self.outputs, self._guarded(np.ascontiguousarray(pixels)), strict=True))


def build(layers: Layers, tensors: Tensors, isa: str, precision: str, threads: int | None, pin: bool = False) -> Any:
    """The `swiftformer_native.Network` of these layers.

    Raises:
        EngineError: an instruction set or a precision that the processor does not have, or layers that do not fit.
    """
    import swiftformer_native

    kind, arguments_of = "network", {"network": ("isa", "precision", "threads", "pin"), **LAYERS}
    known = ("auto", *swiftformer_native.supported())
    if isa not in known:
        raise EngineError(f"isa: expected one of {', '.join(known)} on this processor, found {isa!r}")
    try:
        network = swiftformer_native.Network(isa=isa, precision=precision, threads=threads or 0, pin=pin)
        for layer in layers:
            named = layer["tensors"]
            for place in named.values():
                if tensors[place].dtype != np.float32:
                    raise ValueError(f"{place}: expected float32, found {tensors[place].dtype}")
            kind = layer["kind"]
            if not hasattr(network, kind):
                raise ValueError(f"expected a newer swiftformer_native, found one without the layer {kind}")
            arguments = (tensors[named[a]] if a in named else layer.get(a) for a in LAYERS[kind])
            getattr(network, kind)(*arguments)
    except KeyError as error:
        raise EngineError(f"native: expected the layers of a network and their tensors, found no {error}") from None
    except TypeError:
        raise EngineError(f"native: {kind}: expected {', '.join(arguments_of[kind])}, found other arguments") from None
    except (ValueError, RuntimeError) as error:
        raise EngineError(f"native refuses the network ({one_line(error)})") from None
    return network


def named(members: Iterable[Member]) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Layers in order, and their tensors by name, C-contiguous float32.

    A layer is `{"kind", "name", "tensors": {argument: name of the tensor}}`, with its other arguments beside them.
    """
    layers: list[dict[str, Any]] = []
    tensors: dict[str, np.ndarray] = {}
    for kind, name, arguments in members:
        arrays = {argument: value for argument, value in arguments.items() if isinstance(value, np.ndarray)}
        tensors |= {f"{name}.{argument}": np.ascontiguousarray(array, np.float32) for argument, array in arrays.items()}
        others = {argument: value for argument, value in arguments.items() if argument not in arrays}
        layers.append({"kind": kind, "name": name, "tensors": {a: f"{name}.{a}" for a in arrays}, **others})
    return layers, tensors


def _is_layer(layer: Any) -> bool:
    tensors = layer.get("tensors") if isinstance(layer, dict) else None
    return (
        isinstance(tensors, dict) and layer.get("kind") in LAYERS and all(isinstance(t, str) for t in tensors.values())
    )


def open_artifact(folder: Path, artifact: Artifact, options: EngineOptions) -> Engine:
    """See `swiftformer.engines.open_engine`."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    expect_cpu("native", options.device)
    try:
        layers = json.loads((folder / artifact.file).read_text())["layers"]
        tensors = load_file(folder / WEIGHTS)
        if not isinstance(layers, list):
            raise ValueError(f"no list of layers in {artifact.file}")
        if others := [layer for layer in layers if not _is_layer(layer)]:
            raise ValueError(f"no layer of a known kind in {artifact.file}: {str(others[0])[:80]}")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise EngineError(f"{folder}: expected a network and its weights, found {error}") from None
    return NativeEngine(
        layers,
        tensors,
        preprocessing=artifact.preprocessing,
        labels=artifact.labels,
        outputs=artifact.outputs,
        input_shape=artifact.input_shape,
        raw=artifact.value_range == "0-255",
        precision=options.precision or artifact.precision,
        threads=options.threads,
        isa=options.isa,
        pin=options.pin,
    )


def from_reference(reference: str | Path, options: EngineOptions) -> Engine:
    """A checkpoint of a classifier or a segmentation model, fused without torch where that is known to be right. See
    `swiftformer.engines.open_engine`."""
    from swiftformer.engines.checkpoint import read_fused

    expect_cpu("native", options.device)
    if fused := read_fused(locate(reference), options.form):
        return NativeEngine(
            fused.layers,
            fused.tensors,
            preprocessing=fused.preprocessing,
            labels=fused.labels,
            outputs=("logits",),
            precision=options.precision or "fp32",
            threads=options.threads,
            isa=options.isa,
            pin=options.pin,
        )
    expect_torch(reference)
    from swiftformer.engines.torch import load_fused
    from swiftformer.export.formats import ExportError
    from swiftformer.export.native import network_of

    net = load_fused(reference, options.form)
    try:
        layers, tensors = network_of(net)
    except ExportError as error:
        raise EngineError(f"{reference}: {error}") from None
    engine = NativeEngine(
        layers,
        tensors,
        preprocessing=net.preprocessing or HUB,
        labels=labels_of(net.config),
        outputs=net.outputs,
        precision=options.precision or "fp32",
        threads=options.threads,
        isa=options.isa,
        pin=options.pin,
    )
    engine.problem_type = net.config.problem_type
    return engine
