"""What is compared: this project's engines, and the peers' models as people run them."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swiftformer.benchmark.runtimes import open_file
from swiftformer.convert import convert_state_dict
from swiftformer.deploy import fuse
from swiftformer.environment import import_openvino
from swiftformer.export import export
from swiftformer.export.compare import pictures, samples
from swiftformer.export.graph import silent
from swiftformer.hf import SwiftFormerForImageClassification
from swiftformer.image_processing import AUTHORS, Preprocessing

Call = Callable[..., Any]  # of the number of one of `Case.batches`, by default the first; gives what `to_numpy` takes


class Case:
    """A variant, a batch and a size, with what the candidates share. What was compiled for an earlier one is forgotten.

    Args:
        folder: for what they write; it is removed in the end.

    Attributes:
        batches: all pictures, the last batch filled up with the first ones again.
        pixels: the first batch, which is what candidates are timed with.
    """

    def __init__(
        self,
        variant: str,
        batch: int,
        size: tuple[int, int],
        threads: int | None,
        device: str,
        folder: Path,
    ) -> None:
        self.variant, self.batch, self.size = variant, batch, size
        self.threads, self.device, self.folder = threads, device, folder
        if threads is not None:
            torch.set_num_threads(threads)
        # Dynamo counts the compilations of a function over all cases, and compiles no more than eight.
        torch._dynamo.reset()
        self.nets: dict[str, Any] = {}
        count = -(-len(self.images) // batch)
        self.batches = list(torch.from_numpy(np.resize(self.images, (count, batch, *self.images.shape[1:]))))
        self.pixels = self.batches[0]

    @cached_property
    def images(self) -> np.ndarray:
        """The package's photographs, normalised."""
        return pictures(None, Preprocessing(size=self.size))

    def model(self, form: str = "l2") -> Any:
        """Random weights with which every branch and every picture makes a difference to the logits."""
        if form not in self.nets:
            torch.manual_seed(0)
            make = SwiftFormerForImageClassification.from_variant
            net = make(self.variant, num_labels=1000, global_query_weighting=form)
            randomize(net, torch.from_numpy(self.images))
            self.nets[form] = net.eval()
        return copy.deepcopy(self.nets[form])

    def peer(self, name: str) -> nn.Module:
        """timm's or transformers' model with the same weights; transformers' is of the form of March 2023."""
        net: Any
        if name == "timm":
            import timm

            net = timm.create_model(f"swiftformer_{self.variant}")
            net.load_state_dict(convert_state_dict(self.model().state_dict(), "transformers", "timm"))
        else:
            from transformers.models import swiftformer as stock

            ours = self.model("uniform")
            fields = {k: v for k, v in ours.config.to_dict().items() if k in STOCK_FIELDS}
            with redirect_stdout(sys.stderr):  # where it may print what its docstrings lack: results are printed here
                net = stock.SwiftFormerForImageClassification(stock.SwiftFormerConfig(**fields))
            net.load_state_dict(ours.state_dict())
        return net.eval()

    @cached_property
    def _expected(self) -> dict[str, np.ndarray]:
        found: dict[str, list[np.ndarray]] = {"l2": [], "uniform": []}
        with torch.inference_mode():
            for form, logits in found.items():
                net = self.model(form)
                logits += [net(pixels).logits.numpy() for pixels in self.batches]
        return {form: np.concatenate(logits) for form, logits in found.items()}

    def expected(self, candidate: Candidate) -> np.ndarray:
        """What a candidate should compute of all batches, `(pictures, 1000)`."""
        return self._expected["uniform" if candidate.implementation == "transformers" else "l2"]


def randomize(net: nn.Module, images: Tensor) -> None:
    """Weights that keep the size of what they multiply, layer scales of a half, and BatchNorms that know pictures.

    With the weights and statistics that training begins with, a branch is a thousandth of what it is added to, and all
    pictures have nearly the same logits: in low precision, one who leaves out both would still agree.
    """
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "layer_scale" in name:  # what attention gives is not as large as its width, but of length 1
                parameter.fill_(0.5 * (len(parameter) ** 0.5 if name.endswith("layer_scale_1") else 1))
            elif parameter.ndim > 1 and not name.endswith("w_g"):
                parameter.normal_(std=parameter[0].numel() ** -0.5)
        norms = [module for module in net.eval().modules() if isinstance(module, nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.train().momentum = 1.0  # statistics of this pass alone
        net(images)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval().momentum = momentum


STOCK_FIELDS = ("depths", "embed_dims", "mlp_ratio", "downsamples", "num_labels", "id2label", "label2id")


@dataclass(frozen=True)
class Candidate:
    """An implementation in an engine at a precision.

    Attributes:
        build: of those in torch, makes a call that runs one of the batches and returns its logits, where they are.
        file: of the others, writes the model unless it is there, and says where.
        needs: packages.
        devices: where it runs.
    """

    implementation: str
    engine: str
    precision: str
    build: Callable[[Case], Call] | None = None
    file: Callable[[Case], Path] | None = None
    needs: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu", "cuda")

    def call(self, case: Case) -> Call:
        """What runs one of the batches and returns its logits `(batch, 1000)`, for `to_numpy`."""
        if self.file is None:
            assert self.build is not None
            return self.build(case)
        run = open_file(self.file(case), self.engine, self.precision, case.threads)
        batches = [pixels.numpy() for pixels in case.batches]
        return lambda number=0: run(batches[number])

    def missing(self) -> list[str]:
        """Packages of `needs` that are not installed."""
        return [name for name in self.needs if util.find_spec(name) is None]

    @property
    def compiled(self) -> bool:
        """Whether making the call takes many seconds of compilation."""
        return self.engine.startswith("torch") and self.engine not in ("torch", "torch channels_last")

    def __str__(self) -> str:
        return f"{self.implementation} in {self.engine}, {self.precision}"


def ours_in_torch(mode: str, dtype: torch.dtype, frozen: bool = False) -> Callable[[Case], Call]:
    return lambda case: torch_call(fuse(case.model()), case, dtype, True, mode, frozen)


def ours_in_file(format_: str, precision: str) -> Callable[[Case], Path]:
    def write(case: Case) -> Path:
        folder = case.folder / f"{format_}-{precision}"
        if not folder.exists():
            model = case.model()
            model.preprocessing = AUTHORS
            calibration = samples() if precision == "int8" else None
            fixed: dict[str, Any] = {"batch": case.batch, "size": case.size}
            export(model, folder, format_, precision=precision, calibration=calibration, **fixed)
        return folder

    return write


def peer_in_torch(
    name: str, mode: str, dtype: torch.dtype, channels_last: bool = False, frozen: bool = False
) -> Callable[[Case], Call]:
    return lambda case: torch_call(case.peer(name), case, dtype, channels_last, mode, frozen)


def torch_call(
    net: nn.Module, case: Case, dtype: torch.dtype, channels_last: bool, mode: str, frozen: bool = False
) -> Call:
    """A call of a module in eval mode: eager, compiled in a mode of torch.compile, or compiled with frozen weights."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = net.to(device=case.device, dtype=dtype, memory_format=layout).eval()  # type: ignore[call-overload]

    def prepared(number: int) -> Tensor:
        return case.batches[number].to(device=case.device, dtype=dtype, memory_format=layout)

    without_gradients = torch.no_grad if frozen else torch.inference_mode
    with without_gradients():  # torch.compile tells tensors made elsewhere from those made here
        timed = prepared(0)
    on_gpu = case.device.startswith("cuda")
    run: Any = net
    if frozen:
        run = torch.compile(net, dynamic=False, options={"freezing": True})
    elif mode != "eager":
        run = torch.compile(net, mode=mode, dynamic=False)

    def call(number: int = 0) -> Tensor:
        with without_gradients():
            found = run(timed if number == 0 else prepared(number))
        if on_gpu:
            torch.cuda.synchronize(case.device)
        return found if isinstance(found, Tensor) else found.logits

    return call


def to_numpy(found: Tensor | np.ndarray) -> np.ndarray:
    """A copy in float32 of what a call gives, which may be overwritten by the next one."""
    return np.array(found.float().cpu().numpy() if isinstance(found, Tensor) else found)


def peer_in_onnx(name: str) -> Callable[[Case], Path]:
    def write(case: Case) -> Path:
        file = case.folder / f"{name}.onnx"
        if not file.exists():
            with silent():
                net = WithLogits(case.peer(name))
                program = torch.onnx.export(net, (case.pixels,), dynamo=True, opset_version=20, optimize=True)
            assert program is not None
            program.save(str(file), external_data=False)
        return file

    return write


def peer_in_openvino(name: str, int8: bool = False) -> Callable[[Case], Path]:
    def write(case: Case) -> Path:
        openvino = import_openvino()
        file = case.folder / f"{name}{'-int8' if int8 else ''}.xml"
        if file.exists():
            return file
        shape = tuple(case.pixels.shape)
        with silent():
            model = openvino.convert_model(
                WithLogits(case.peer(name)), example_input=case.pixels, input=[("pixels", shape)]
            )
            if int8:
                import nncf

                model = nncf.quantize(
                    model,
                    nncf.Dataset(case.images, lambda image: np.resize(image, shape)),
                    subset_size=len(case.images),
                    # It helps the July 2023 form, and breaks that of March, which transformers has.
                    model_type=nncf.ModelType.TRANSFORMER if name == "timm" else None,
                )
            openvino.save_model(model, file, compress_to_fp16=False)
        return file

    return write


class WithLogits(nn.Module):
    """A network whose output is a tensor."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor) -> Tensor:
        found = self.net(pixels)
        return found if isinstance(found, Tensor) else found.logits


F32, BF16 = torch.float32, torch.bfloat16
CPU = ("cpu",)
ONNX = ("onnxscript", "onnxruntime")
NATIVE = ("swiftformer_native",)
OPENVINO = ("openvino",)
NNCF = ("openvino", "nncf")
EXECUTORCH = ("executorch",)
LITERT = ("litert_torch", "ai_edge_litert")


def in_torch(name: str, engine: str, precision: str, build: Callable[[Case], Call], *devices: str) -> Candidate:
    needs = () if name == "swiftformer" else (name,)
    return Candidate(name, engine, precision, build=build, needs=needs, devices=devices or ("cpu", "cuda"))


def in_runtime(
    name: str, engine: str, precision: str, file: Callable[[Case], Path], needs: tuple[str, ...]
) -> Candidate:
    needs += () if name == "swiftformer" else (name,)
    return Candidate(name, engine, precision, file=file, needs=needs, devices=CPU)


CANDIDATES = [
    in_torch("swiftformer", "torch", "fp32", ours_in_torch("eager", F32)),
    in_torch("swiftformer", "torch-compile", "fp32", ours_in_torch("default", F32), "cuda"),
    in_torch("swiftformer", "torch-compile", "bf16", ours_in_torch("default", BF16), "cuda"),
    in_torch("swiftformer", "torch-compile frozen", "fp32", ours_in_torch("default", F32, True), "cpu"),
    in_torch("swiftformer", "torch-compile frozen", "bf16", ours_in_torch("default", BF16, True), "cpu"),
    in_torch("swiftformer", "torch-cudagraphs", "fp32", ours_in_torch("reduce-overhead", F32), "cuda"),
    in_torch("swiftformer", "torch-cudagraphs", "bf16", ours_in_torch("reduce-overhead", BF16), "cuda"),
    in_torch("swiftformer", "torch max-autotune", "bf16", ours_in_torch("max-autotune", BF16), "cuda"),
    in_runtime("swiftformer", "native", "fp32", ours_in_file("native", "fp32"), NATIVE),
    in_runtime("swiftformer", "native", "bf16", ours_in_file("native", "fp32"), NATIVE),
    in_runtime("swiftformer", "native", "int8", ours_in_file("native", "fp32"), NATIVE),
    in_runtime("swiftformer", "onnxruntime", "fp32", ours_in_file("onnx", "fp32"), ONNX),
    in_runtime("swiftformer", "onnxruntime", "int8", ours_in_file("onnx", "int8"), ONNX),
    in_runtime("swiftformer", "openvino", "fp32", ours_in_file("openvino", "fp32"), OPENVINO),
    in_runtime("swiftformer", "openvino", "bf16", ours_in_file("openvino", "fp32"), OPENVINO),
    in_runtime("swiftformer", "openvino", "int8", ours_in_file("openvino", "int8"), NNCF),
    in_runtime("swiftformer", "executorch", "fp32", ours_in_file("executorch", "fp32"), EXECUTORCH),
    in_runtime("swiftformer", "executorch", "int8", ours_in_file("executorch", "int8"), EXECUTORCH),
    in_runtime("swiftformer", "litert", "fp32", ours_in_file("litert", "fp32"), LITERT),
    in_runtime("swiftformer", "litert", "int8", ours_in_file("litert", "int8"), LITERT),
]

for peer in ("timm", "transformers"):
    CANDIDATES += [
        in_torch(peer, "torch", "fp32", peer_in_torch(peer, "eager", F32)),
        in_torch(peer, "torch channels_last", "fp32", peer_in_torch(peer, "eager", F32, True)),
        in_torch(peer, "torch channels_last", "bf16", peer_in_torch(peer, "eager", BF16, True), "cuda"),
        in_torch(peer, "torch-compile", "fp32", peer_in_torch(peer, "default", F32, True), "cuda"),
        in_torch(peer, "torch-cudagraphs", "fp32", peer_in_torch(peer, "reduce-overhead", F32, True), "cuda"),
        in_torch(peer, "torch-compile", "bf16", peer_in_torch(peer, "default", BF16, True), "cuda"),
        in_torch(peer, "torch-cudagraphs", "bf16", peer_in_torch(peer, "reduce-overhead", BF16, True), "cuda"),
        in_torch(peer, "torch-compile frozen", "fp32", peer_in_torch(peer, "default", F32, True, True), "cpu"),
        in_torch(peer, "torch-compile frozen", "bf16", peer_in_torch(peer, "default", BF16, True, True), "cpu"),
        in_torch(peer, "torch max-autotune", "bf16", peer_in_torch(peer, "max-autotune", BF16, True), "cuda"),
        in_runtime(peer, "onnxruntime", "fp32", peer_in_onnx(peer), ONNX),
        in_runtime(peer, "openvino", "fp32", peer_in_openvino(peer), OPENVINO),
        in_runtime(peer, "openvino", "bf16", peer_in_openvino(peer), OPENVINO),
        in_runtime(peer, "openvino", "int8", peer_in_openvino(peer, int8=True), NNCF),
    ]
