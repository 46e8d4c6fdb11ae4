"""Where to compute, with how many processes to load pictures, and what other systems need."""

import contextlib
import multiprocessing
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from conftest import tiny
from swiftformer import CheckpointError, files, fuse, load, processors
from swiftformer.benchmark import latency
from swiftformer.data import hub, lasting_loader, processes
from swiftformer.device import moved, select_device
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
    monkeypatch.setattr(processors, "processors", lambda: there)
    monkeypatch.setattr(processors, "may_have_gpu", lambda: False)
    assert [loaders(device) for device in (None, "cpu", "cuda:1")] == [on_cpu, on_cpu, beside_gpu]
    monkeypatch.setattr(processors, "may_have_gpu", lambda: True)
    assert [loaders(device) for device in (None, "cpu")] == [beside_gpu, on_cpu]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setattr(processors.os, "cpu_count", lambda: 96)  # of which Slurm gives a process its part
    assert loaders(None) == (12 if there == 96 else beside_gpu)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")  # torchrun's processes share theirs
    assert loaders(None) == max(1, there // 8)


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


def test_pictures_of_several_sizes_are_compiled_for_few(monkeypatch):
    sizes = []

    def backend(graph, inputs):
        sizes.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    engine = TorchEngine(fuse(tiny().eval()), tuple("abcdefghij"), mode="torch-compile", device="cpu")
    for side in range(64, 289, 32):
        assert np.isfinite(engine(np.zeros((1, 3, side, side), np.float32))["logits"]).all()
    assert 1 < len(sizes) < 6  # of 8


@pytest.mark.parametrize("fails", [False, True])
def test_float32_of_a_benchmark_on_a_gpu(fails, monkeypatch):
    before = torch.get_float32_matmul_precision()
    with contextlib.suppress(ZeroDivisionError), latency._tf32():
        assert torch.get_float32_matmul_precision() == "high"
        1 / (not fails)
    assert torch.get_float32_matmul_precision() == before == "highest"


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
    for text in (
        "DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes",
        "MPS backend out of memory (8)",
    ):
        assert is_out_of_memory(RuntimeError(text))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))


def test_only_cuda_is_not_waited_for():
    class Seen:
        def to(self, device, non_blocking):
            return device, non_blocking

    seen = [moved(Seen(), device)[1] for device in ("cpu", "mps", torch.device("cuda", 1), "cuda")]
    assert seen == [False, False, True, True]


@pytest.mark.parametrize("path", ["C:/runs/a", "c:\\runs\\a", "runs\\a", "./a", "~/a", "/a"])
def test_what_can_only_be_a_path_is_not_asked_for(path):
    with pytest.raises(CheckpointError, match="no such file or folder$"):
        load(path)
    with pytest.raises(ValueError, match="no such file or folder$"):
        hub.find(path)


def test_windows_waits_for_who_looks_at_a_file(tmp_path, monkeypatch):
    """Of its rules, those that matter here: nothing replaces a file that is open, and folders cannot be opened."""
    replace, refused = Path.replace, [PermissionError(), PermissionError()]

    def busy(self, target):
        if refused:
            raise refused.pop()
        return replace(self, target)

    monkeypatch.setattr(files, "ON_WINDOWS", True)
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(Path, "replace", busy)
    with files.atomic_file(tmp_path / "a") as file:
        file.write_text("b")
    with files.atomic_folder(tmp_path / "folder") as folder:
        (folder / "c").write_text("d")
    assert (tmp_path / "a").read_text() == "b" and (tmp_path / "folder" / "c").read_text() == "d" and not refused
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(PermissionError("held")))
    with pytest.raises(PermissionError, match="held"), files.atomic_file(tmp_path / "a") as file:
        file.write_text("e")
    assert (tmp_path / "a").read_text() == "b"


def test_loaders_start_where_there_is_no_signal_of_dead_processes(monkeypatch):
    there = {name: getattr(signal, name) for name in dir(signal) if name != "SIGCHLD"}
    monkeypatch.setattr(processes, "signal", SimpleNamespace(**there))
    assert [int(batch) for batch in processes.quietly_started(DataLoader(range(3)))] == [0, 1, 2]


@pytest.mark.parametrize(("method", "expected"), [("fork", "/dev/shm"), ("spawn", "__main__")])
def test_what_loaders_that_die_need(method, expected, monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: None)
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: [method, "forkserver"])
    assert expected in lasting_loader._expected()
