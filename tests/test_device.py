"""Where to compute, and with how many processes to load pictures."""

import pytest
import torch

from conftest import tiny
from swiftformer import fuse
from swiftformer import processors as processors_module
from swiftformer.device import select_device
from swiftformer.engines.base import EngineError
from swiftformer.engines.torch import TorchEngine, on_device
from swiftformer.export import aoti
from swiftformer.export.formats import ExportError, Options
from swiftformer.messages import is_out_of_memory
from swiftformer.processors import loaders


@pytest.mark.parametrize(("rank", "gpu"), [("0", "cuda:0"), ("3", "cuda:3"), ("5", "cuda:1"), (None, "cuda")])
def test_each_process_takes_the_gpu_of_its_rank(rank, gpu, monkeypatch):
    """Slurm may start more processes than a machine has GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch, "empty", lambda *shape, device: None)
    monkeypatch.setenv("WORLD_SIZE", "8")
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert [str(select_device(name)) for name in (None, "cuda", "cuda:2", "cpu")] == [gpu, gpu, "cuda:2", "cpu"]
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert str(select_device(None)) == "cuda"


@pytest.mark.parametrize(("there", "on_cpu", "beside_gpu"), [(1, 1, 1), (2, 2, 2), (16, 2, 16), (96, 2, 16)])
def test_processes_that_load_pictures(there, on_cpu, beside_gpu, monkeypatch):
    monkeypatch.setattr(processors_module, "processors", lambda: there)
    assert [loaders(beside_gpu=False), loaders(beside_gpu=True)] == [on_cpu, beside_gpu]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert loaders(beside_gpu=True) == max(1, min(16, there // 8))


def test_a_program_names_no_other_device_than_it_is_moved_to():
    program = torch.export.export(Cast(), (torch.randn(2, 3),))
    assert any("cpu" in str(node.kwargs) for node in program.graph.nodes)
    assert on_device(program, torch.device("cpu")) is program
    moved = on_device(program, torch.device("meta"))
    assert not any("cpu" in str((node.args, node.kwargs)) for node in moved.graph.nodes)
    assert moved.module()(torch.randn(2, 3, device="meta")).shape == (2, 3)


class Cast(torch.nn.Module):
    """A weight, a cast and a new tensor, as exported networks have them."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x.double().float() * self.weight + torch.arange(3, device=x.device)


def test_a_package_for_a_gpu_needs_a_toolkit(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None)
    options = Options("aoti", "fp32", 2, (64, 64), False, False, (), torch.randn(2, 3, 64, 64), device="cuda:1")
    with pytest.raises(ExportError, match="aoti: expected a CUDA toolkit, where CUDA_HOME says or nvcc is, found none"):
        aoti.write(None, options, tmp_path)


def test_the_line_of_an_error_that_says_why(monkeypatch):
    engine = TorchEngine(fuse(tiny().eval()), tuple("abcdefghij"), device="cpu")

    def fail(batch):
        raise RuntimeError("CUDA error: an illegal memory access\nCompile with `TORCH_USE_CUDA_DSA` to find out")

    monkeypatch.setattr(engine, "run", fail)
    with pytest.raises(EngineError, match=r"fails on an input .* \(CUDA error: an illegal memory access\)$"):
        engine(torch.zeros(1, 3, 64, 64).numpy())


def test_no_memory_is_told_by_its_text():
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))
