"""What is compared: this project's engines, and the peers' models as people run them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swiftformer.convert import convert_state_dict
from swiftformer.deploy import fuse
from swiftformer.engines import open_engine
from swiftformer.engines.openvino import shared_core
from swiftformer.export import export
from swiftformer.export.compare import pictures, samples
from swiftformer.export.graph import silent
from swiftformer.hf import SwiftFormerForImageClassification
from swiftformer.image_processing import AUTHORS, Preprocessing

Call = Callable[[], np.ndarray]


class Case:
    """A variant, a batch and a size, with what the candidates share.

    Args:
        folder: for what they write; it is removed in the end.
    """

    def __init__(
        self, variant: str, batch: int, size: tuple[int, int], threads: int | None, device: str, folder: Path
    ) -> None:
        self.variant, self.batch, self.size = variant, batch, size
        self.threads, self.device, self.folder = threads, device, folder
        if threads is not None:
            torch.set_num_threads(threads)
        self.pixels = torch.from_numpy(np.resize(self.images, (batch, *self.images.shape[1:])))

    @cached_property
    def images(self) -> np.ndarray:
        """The package's photographs, normalised."""
        return pictures(None, Preprocessing(size=self.size))

    def model(self, form: str = "l2") -> Any:
        """Random weights, with layer scales that let every branch be seen."""
        torch.manual_seed(0)
        net = SwiftFormerForImageClassification.from_variant(self.variant, num_labels=1000, global_query_weighting=form)
        for name, parameter in net.named_parameters():
            if "layer_scale" in name:
                parameter.data.fill_(0.1)
        return net.eval()

    @cached_property
    def peers(self) -> dict[str, nn.Module]:
        """The models of timm and transformers with the same weights; transformers' is of the form of March 2023."""
        import timm
        import transformers

        theirs: Any = timm.create_model(f"swiftformer_{self.variant}")
        theirs.load_state_dict(convert_state_dict(self.model().state_dict(), "transformers", "timm"))
        ours = self.model("uniform")
        stock: Any = transformers.SwiftFormerForImageClassification(
            transformers.SwiftFormerConfig(**{k: v for k, v in ours.config.to_dict().items() if k in STOCK_FIELDS})
        )
        stock.load_state_dict(ours.state_dict())
        return {"timm": theirs.eval(), "transformers": stock.eval()}

    @cached_property
    def _expected(self) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            return {form: self.model(form)(self.pixels).logits.numpy() for form in ("l2", "uniform")}

    def expected(self, candidate: Candidate) -> np.ndarray:
        """What a candidate should compute, `(batch, 1000)`."""
        return self._expected["uniform" if candidate.implementation == "transformers" else "l2"]


STOCK_FIELDS = ("depths", "embed_dims", "mlp_ratio", "downsamples", "num_labels", "id2label", "label2id")


@dataclass(frozen=True)
class Candidate:
    """An implementation in an engine at a precision.

    Attributes:
        build: makes a call that runs one batch and returns its logits.
        needs: packages.
        devices: where it runs.
    """

    implementation: str
    engine: str
    precision: str
    build: Callable[[Case], Call]
    needs: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu", "cuda")

    def installed(self, device: str) -> bool:
        return device.split(":")[0] in self.devices and all(util.find_spec(name) for name in self.needs)

    def __str__(self) -> str:
        return f"{self.implementation} in {self.engine}, {self.precision}"


def ours_in_torch(mode: str, dtype: torch.dtype) -> Callable[[Case], Call]:
    return lambda case: torch_call(fuse(case.model()), case, dtype, channels_last=True, mode=mode)


def ours_in_engine(format_: str, precision: str, engine: str) -> Callable[[Case], Call]:
    def build(case: Case) -> Call:
        folder = case.folder / f"{format_}-{precision}"
        model = case.model()
        model.preprocessing = AUTHORS
        stored = "fp32" if precision == "bf16" else precision
        pictures_for_int8 = samples() if precision == "int8" else None
        export(
            model,
            folder,
            format_,
            precision=stored,
            batch=case.batch,
            size=case.size,
            calibration=pictures_for_int8,
        )
        computed = precision if engine == "openvino" and precision != "int8" else None
        opened = open_engine(folder, engine, precision=computed, threads=case.threads)
        images = case.pixels.numpy()
        return lambda: opened(images)["logits"]

    return build


def peer_in_torch(
    name: str, mode: str, dtype: torch.dtype, channels_last: bool = False, frozen: bool = False
) -> Callable[[Case], Call]:
    return lambda case: torch_call(copy.deepcopy(case.peers[name]), case, dtype, channels_last, mode, frozen)


def torch_call(
    net: nn.Module, case: Case, dtype: torch.dtype, channels_last: bool, mode: str, frozen: bool = False
) -> Call:
    """A call of a module in eval mode: eager, compiled in a mode of torch.compile, or compiled with frozen weights."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = net.to(device=case.device, dtype=dtype, memory_format=layout).eval()  # type: ignore[call-overload]
    pixels = case.pixels.to(device=case.device, dtype=dtype, memory_format=layout)
    on_gpu = case.device.startswith("cuda")
    run: Any = net
    if frozen:
        run = torch.compile(net, dynamic=False, options={"freezing": True})
    elif mode != "eager":
        run = torch.compile(net, mode=mode, dynamic=False)

    def call() -> np.ndarray:
        with torch.no_grad() if frozen else torch.inference_mode():
            found = run(pixels)
            found = found if isinstance(found, Tensor) else found.logits
            if on_gpu:
                torch.cuda.synchronize()
                return found.float().cpu().numpy()
            return found.float().numpy()

    return call


def peer_in_onnxruntime(name: str) -> Callable[[Case], Call]:
    return lambda case: _onnxruntime(case, name)


def _onnxruntime(case: Case, name: str) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if case.threads is not None:
        options.intra_op_num_threads = case.threads
    session = onnxruntime.InferenceSession(str(_onnx(case, name)), options, providers=["CPUExecutionProvider"])
    images, entry = case.pixels.numpy(), session.get_inputs()[0].name
    return lambda: session.run(None, {entry: images})[0]


def peer_in_openvino(name: str, precision: str) -> Callable[[Case], Call]:
    def build(case: Case) -> Call:
        import openvino

        with silent():
            model = openvino.convert_model(
                WithLogits(case.peers[name]), example_input=case.pixels, input=[tuple(case.pixels.shape)]
            )
        if precision == "int8":
            import nncf

            with silent():
                model = nncf.quantize(
                    model,
                    nncf.Dataset([np.resize(image, case.pixels.shape) for image in case.images]),
                    subset_size=len(case.images),
                    # It helps the July 2023 form, and breaks that of March, which transformers has.
                    model_type=nncf.ModelType.TRANSFORMER if name == "timm" else None,
                )
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            # Left to itself OpenVINO computes the rest of an int8 model in bf16 where the processor can.
            **({} if precision == "int8" else {"INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision]}),
        }
        if case.threads is not None:
            config["INFERENCE_NUM_THREADS"] = case.threads
        request = shared_core().compile_model(model, "CPU", config).create_infer_request()
        images = case.pixels.numpy()
        return lambda: np.array(request.infer([images], share_inputs=True)[0], np.float32)

    return build


class WithLogits(nn.Module):
    """A network whose output is a tensor."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor) -> Tensor:
        found = self.net(pixels)
        return found if isinstance(found, Tensor) else found.logits


def _onnx(case: Case, name: str) -> Path:
    file = case.folder / f"{name}.onnx"
    if not file.exists():
        with silent():
            net = WithLogits(case.peers[name])
            program = torch.onnx.export(net, (case.pixels,), dynamo=True, opset_version=20, optimize=True)
        assert program is not None
        program.save(str(file), external_data=False)
    return file


F32, BF16 = torch.float32, torch.bfloat16
CPU, OPENVINO = ("cpu",), ("openvino",)
ONNX = ("onnxscript", "onnxruntime")

CANDIDATES = [
    Candidate("swiftformer", "torch", "fp32", ours_in_torch("eager", F32)),
    Candidate("swiftformer", "torch-compile", "fp32", ours_in_torch("default", F32)),
    Candidate("swiftformer", "torch-compile", "bf16", ours_in_torch("default", BF16)),
    Candidate("swiftformer", "torch-cudagraphs", "bf16", ours_in_torch("reduce-overhead", BF16), (), ("cuda",)),
    Candidate("swiftformer", "onnxruntime", "fp32", ours_in_engine("onnx", "fp32", "onnxruntime"), ONNX, CPU),
    Candidate("swiftformer", "openvino", "fp32", ours_in_engine("openvino", "fp32", "openvino"), OPENVINO, CPU),
    Candidate("swiftformer", "openvino", "bf16", ours_in_engine("openvino", "bf16", "openvino"), OPENVINO, CPU),
    Candidate(
        "swiftformer", "openvino", "int8", ours_in_engine("openvino", "int8", "openvino"), ("openvino", "nncf"), CPU
    ),
]

for peer in ("timm", "transformers"):
    CANDIDATES += [
        Candidate(peer, "torch", "fp32", peer_in_torch(peer, "eager", F32), (peer,)),
        Candidate(peer, "torch channels_last", "fp32", peer_in_torch(peer, "eager", F32, True), (peer,)),
        Candidate(peer, "torch channels_last", "bf16", peer_in_torch(peer, "eager", BF16, True), (peer,), ("cuda",)),
        Candidate(peer, "torch-compile", "fp32", peer_in_torch(peer, "default", F32, True), (peer,)),
        Candidate(peer, "torch-compile frozen", "fp32", peer_in_torch(peer, "default", F32, True, True), (peer,), CPU),
        Candidate(peer, "torch-compile frozen", "bf16", peer_in_torch(peer, "default", BF16, True, True), (peer,), CPU),
        Candidate(
            peer, "torch max-autotune", "bf16", peer_in_torch(peer, "max-autotune", BF16, True), (peer,), ("cuda",)
        ),
        Candidate(peer, "onnxruntime", "fp32", peer_in_onnxruntime(peer), (peer, *ONNX), CPU),
        Candidate(peer, "openvino", "fp32", peer_in_openvino(peer, "fp32"), (peer, "openvino"), CPU),
        Candidate(peer, "openvino", "bf16", peer_in_openvino(peer, "bf16"), (peer, "openvino"), CPU),
        Candidate(peer, "openvino", "int8", peer_in_openvino(peer, "int8"), (peer, "openvino", "nncf"), CPU),
    ]
