"""Several processes against one, on CPUs; two machines as two network namespaces."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis.strategies import booleans, integers
from torch import nn

from swiftformer import SwiftFormerConfig, SwiftFormerForImageClassificationWithTeacher, load
from swiftformer.data.epoch_loader import seed_generators
from swiftformer.data.loaders import evaluation_loader
from swiftformer.data.sources import open_source
from swiftformer.evaluate.classification import evaluate_reference
from swiftformer.image_processing import Preprocessing
from swiftformer.train import distributed
from swiftformer.train.distributed import join_processes
from swiftformer.train.interruption import TrainingStopped
from swiftformer.train.recipes import get_recipe
from swiftformer.train.start import batches_at_once, expect_agreement
from swiftformer.train.state import read_state
from train_worker import Started

WORKER = str(Path(__file__).parent / "train_worker.py")
# 40 updates in four epochs; nothing random that depends on the process.
SETTINGS = ["epochs=4", "total_batch_size=16", "batch_size=16", "random_erasing=0", "evaluate_every=2"]


def losses(run: Path) -> torch.Tensor:
    """Of each step; the run tells their mean since the beginning of the epoch, which has five."""
    means = torch.tensor(json.loads((run / "losses.json").read_text()), dtype=torch.float64).view(-1, 5)
    return torch.diff(means * torch.arange(1, 6), dim=1, prepend=torch.zeros(len(means), 1)).flatten()


def difference(a: dict, b: dict) -> float:
    """Of two states' matrices and filters, relative to how far the run has moved them."""
    weights = [
        torch.cat([v.flatten().double() for v in state["model"].values() if v.ndim > 1])
        for state in (a, b, beginning())
    ]
    return ((weights[0] - weights[1]).norm() / (weights[0] - weights[2]).norm()).item()


def beginning() -> dict:
    """The weights that the recipe's seed gives."""
    from train_worker import build

    seed_generators(0)
    torch.manual_seed(0)
    config = build(SwiftFormerConfig, "xs", num_labels=2)
    return {"model": SwiftFormerForImageClassificationWithTeacher(config).state_dict()}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 80 training and 13 validation images: 13 is no multiple of two, and one of them is broken."""
    import numpy as np
    from PIL import Image

    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, counts in (("train", (40, 40)), ("val", (7, 6))):
        for name, channel, count in (("blue", 2, counts[0]), ("red", 0, counts[1])):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 200, (40, 48, 3), dtype=np.uint8)
                pixels[:, :, channel] += 30
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    (root / "val" / "red" / "3.png").write_bytes(b"broken")
    return root


@pytest.fixture(scope="module")
def single(images, tmp_path_factory):
    output = tmp_path_factory.mktemp("single")
    Started(output / "log", [images, output, *SETTINGS]).wait()
    return output


@pytest.fixture(scope="module")
def double(images, tmp_path_factory):
    output = tmp_path_factory.mktemp("double")
    Started(output / "log", [images, output, *SETTINGS, "sync_batchnorm=true"], 2).wait()
    return output


def test_two_processes_reproduce_one(single, double):
    assert len(losses(single)) == 20
    assert (losses(single) - losses(double)).abs().max() < 1e-4
    assert difference(read_state(single), read_state(double)) < 0.05
    ours, theirs = (json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]) for run in (single, double))
    assert ours["train_accuracy"] == theirs["train_accuracy"]


def test_the_run_evaluates_what_it_saves(images, tmp_path):
    """Without synchronised statistics each process has others; evaluated are those of the first."""
    Started(tmp_path, [images, tmp_path / "run", *SETTINGS, "epochs=1", "lr=0.02"], 2).wait()
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    found = evaluate_reference(str(tmp_path / "run" / "last"), str(images), workers=0, device="cpu")
    for name in ("top1", "calibration_error"):
        assert json.loads(line)[name] == pytest.approx(found[name], abs=1e-3)


@pytest.mark.exhaustive
def test_accumulating_processes_make_as_many_updates(images, tmp_path):
    Started(tmp_path, [images, tmp_path / "run", *SETTINGS, "epochs=1", "batch_size=4"], 2).wait()
    state = read_state(tmp_path / "run")
    assert {int(entry["step"]) for entry in state["optimizer"]["state"].values()} == {5}


def test_every_picture_is_counted_once(images, single, tmp_path):
    """Thirteen pictures, one unreadable, in two processes: as one process counts them."""
    arguments = ["evaluate", "--data", images, "--model", single / "last", "--workers", 0, "--json", "--device", "cpu"]
    (out, _), (silent, _) = Started(tmp_path, arguments, 2, "cli").wait()
    assert silent == ""  # one process speaks
    found = json.loads(out)
    expected = evaluate_reference(str(single / "last"), str(images), workers=0, device="cpu")
    assert found["images"] == expected["images"] == 12 and found["unreadable"] == 1
    for name in ("top1", "top5", "calibration_error"):
        assert found[name] == pytest.approx(expected[name], abs=1e-4)


def test_torchrun_starts_the_command_line(images, tmp_path):
    train = ["train", "--data", str(images), "--recipe", "smoke", "--device", "cpu", "--workers", "0"]
    train += ["--model", str(tiny_checkpoint(tmp_path)), "--set", "epochs=1", "--output", str(tmp_path / "run")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "swiftformer", *train],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("epoch 1/1") == 1  # one process shows progress
    assert load(tmp_path / "run" / "last").config.id2label == {0: "blue", 1: "red"}
    assert "2 processes" in (tmp_path / "run" / "README.md").read_text()


def tiny_checkpoint(folder: Path) -> Path:
    from conftest import tiny
    from swiftformer import save

    return save(tiny(), folder / "tiny")


@pytest.mark.parametrize("update", [7, pytest.param(10, marks=pytest.mark.exhaustive)])
def test_sigterm_to_all_processes_saves_one_state(images, double, tmp_path, update):
    """To their loader processes as well; update 10 is the last of an epoch, and it is evaluated."""
    output = tmp_path / "run"
    settings = [*SETTINGS, "sync_batchnorm=true"]
    Started(tmp_path, [images, output, *settings], 2, KILL_AT=update, KILL_BY="SIGTERM", WORKERS=1).wait(143, 143)
    state = read_state(output)
    assert (state["epochs"], state["images"]) in ({7: [(1, 32), (1, 48)], 10: [(1, 80)]}[update])
    Started(tmp_path, [images, output, "--resume", *settings], 2).wait()
    a, b = read_state(double), read_state(output)
    assert all(torch.equal(a[part][key], b[part][key]) for part in ("model", "ema") for key in a[part])


@pytest.fixture
def machines():
    """Two network namespaces that see each other through a pair of virtual Ethernet devices."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the ip command")
    names = [f"swift{os.getpid()}{side}" for side in "ab"]
    devices = [f"v{os.getpid() % 100000}{side}" for side in "ab"]

    def ip(*arguments):
        return subprocess.run(["ip", *arguments], capture_output=True, text=True)

    made = [ip("netns", "add", name) for name in names]
    made.append(ip("link", "add", devices[0], "type", "veth", "peer", "name", devices[1]))
    for i, (name, device) in enumerate(zip(names, devices, strict=True), start=1):
        made.append(ip("link", "set", device, "netns", name))
        made.append(ip("-n", name, "addr", "add", f"10.222.0.{i}/24", "dev", device))
        made.append(ip("-n", name, "link", "set", device, "up"))
        made.append(ip("-n", name, "link", "set", "lo", "up"))
    try:
        if failed := [step.stderr.strip() for step in made if step.returncode]:
            pytest.skip(f"this machine makes no network namespaces ({failed[0]})")
        yield list(zip(names, devices, strict=True))
    finally:
        for name in names:
            ip("netns", "delete", name)


def test_two_machines(images, single, machines, tmp_path):
    """A torchrun on each of two machines, found over the network."""
    output = tmp_path / "run"
    arguments = [WORKER, str(images), str(output), *SETTINGS, "sync_batchnorm=true"]
    nodes = []
    for rank, (name, device) in enumerate(machines):
        command = [
            *("ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"),
            *("--nproc-per-node", "1", "--node-rank", str(rank), "--master-addr", "10.222.0.1"),
            *("--master-port", "29511", *arguments),
        ]
        env = os.environ | {"GLOO_SOCKET_IFNAME": device, "TP_SOCKET_IFNAME": device, "OMP_NUM_THREADS": "1"}
        nodes.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    try:
        errors = [node.communicate(timeout=120)[1] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(errors)
    assert (losses(single) - losses(output)).abs().max() < 1e-4


def test_the_total_batch_is_kept_whatever_the_number_of_processes():
    for world_size in (1, 2, 4, 8, 16, 32, 64):
        batch_size, accumulation = get_recipe("paper_l1").batches(world_size)
        assert batch_size * accumulation * world_size == 2048 and batch_size <= 128 and batch_size % 2 == 0
    assert get_recipe("smoke", ["batch_size=10"]).batches(4) == (10, 1)
    assert get_recipe("smoke", ["total_batch_size=96", "batch_size=64"]).batches() == (48, 2)
    assert get_recipe("smoke", ["total_batch_size=2", "batch_size=64"]).batches(2) == (1, 1)


@given(
    total=integers(1, 5000),
    batch_size=integers(1, 150).map(lambda number: 2 * number),
    world_size=integers(1, 70),
    mix=booleans(),
)
def test_a_total_batch_that_cannot_be_shared_equally_is_kept_as_nearly_as_it_can_be(total, batch_size, world_size, mix):
    settings = [f"total_batch_size={total}", f"batch_size={batch_size}", f"mixup={float(mix)}"]
    size, count = get_recipe("smoke", settings).batches(world_size)
    assert 1 <= size <= batch_size and not (mix and size % 2)
    step, fewest = 2 if mix else 1, -(-total // (world_size * batch_size))
    if total % (2 * world_size) == 0:  # then batches of two can share it
        assert size * count * world_size == total
    else:  # by no more than changing all batches by half an image, or a pair, or one of them in each process at least
        most = max(world_size * fewest * step / 2, world_size * step - total, world_size * step / 2)
        assert abs(size * count * world_size - total) <= most


def test_a_total_batch_that_changes_is_told():
    size, count, told = batches_at_once(get_recipe("paper_xs"), 3, 10_000)
    assert 3 * size * count == 2046 and size >= 60
    assert told == "batches of 3 processes cannot share total_batch_size 2048 equally: taking 2046"
    assert batches_at_once(get_recipe("paper_xs"), 8, 10_000) == (128, 2, "")


def test_synchronised_batchnorm_in_one_process_is_batchnorm(tmp_path):
    """Against torch's own, with gradients and running statistics."""
    from swiftformer.train.sync_batchnorm import synchronize_batchnorm

    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "s")), rank=0, world_size=1
    )
    try:
        plain = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
        nn.init.normal_(plain[1].weight)
        synced = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
        synced.load_state_dict(plain.state_dict())
        synchronize_batchnorm(synced, torch.device("cpu"))
        assert list(synced.state_dict()) == list(plain.state_dict())
        x, weight = 100 + torch.randn(4, 3, 9, 8), torch.randn(4, 6, 7, 6)
        for net in (plain, synced):
            (net(x) * weight).sum().backward()
        for (name, a), b in zip(plain.named_parameters(), synced.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-2, msg=name)
        for (name, a), b in zip(plain.named_buffers(), synced.buffers(), strict=True):
            torch.testing.assert_close(a, b, msg=name)
        torch.testing.assert_close(plain.eval()(x), synced.eval()(x))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_sharding_is_refused_rather_than_ignored(monkeypatch, kind):
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with (
        pytest.raises(ValueError, match=f"expected copies of the network in all processes.*found {kind}"),
        join_processes("cpu"),
    ):
        pass


class Told:
    """A process whose neighbour says the numbers of another one."""

    rank = 1

    def __init__(self):
        self.numbers, self.theirs = [], None

    def agree(self, number):
        self.numbers.append(number)
        return self.theirs is None or self.theirs[len(self.numbers) - 1] == number


class Counted:
    def __init__(self, classes, count):
        self.classes, self.count = classes, count

    def __len__(self):
        return self.count


def test_what_processes_have_to_agree_on(images, tmp_path):
    """Otherwise they would wait for each other in different places."""
    train, val, recipe = open_source(images, "train"), open_source(images, "val"), get_recipe("smoke")
    first, same = Told(), Told()
    expect_agreement(first, tmp_path, None, recipe, train, val)
    same.theirs = first.numbers
    expect_agreement(same, tmp_path, None, recipe, train, val)
    fewer, renamed = Counted(train.classes, len(train) - 1), Counted(["other", *train.classes[1:]], len(train))
    for other_recipe, other in ((recipe, fewer), (recipe, renamed), (get_recipe("smoke", ["precision=bf16"]), train)):
        other_process = Told()
        other_process.theirs = first.numbers
        with pytest.raises(ValueError, match="expected the same recipe, classes and number of images in all processes"):
            expect_agreement(other_process, tmp_path, None, other_recipe, other, val)
    other_process = Told()
    other_process.theirs = first.numbers
    with pytest.raises(ValueError, match="expected that all processes see the same states, found different ones"):
        expect_agreement(other_process, tmp_path, {"epochs": 1, "images": 0}, recipe, train, val)


@pytest.mark.parametrize(
    ("backend", "error", "left"),
    [
        ("gloo", ValueError("one"), True),
        ("nccl", ValueError("one"), False),
        ("nccl", KeyboardInterrupt(), False),
        ("nccl", TrainingStopped("all", 15), True),
    ],
)
def test_a_process_that_fails_alone_does_not_wait_for_the_others(monkeypatch, backend, error, left):
    """As NCCL would in the end of its group, while they wait for it."""
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: backend)
    assert distributed._may_leave(error) is left


def test_a_wrong_device_gets_one_line_with_several_processes_too(monkeypatch):
    places = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in {"WORLD_SIZE": "2", **places}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="device: expected one that this machine has, found 'gpu'"):
        distributed.join_processes("gpu").__enter__()


def test_only_who_computes_on_a_gpu_pins_memory(images, monkeypatch):
    """Elsewhere it would begin with one."""
    loader = evaluation_loader(open_source(images, "val"), Preprocessing(size=(32, 32)), 4, 0, 0, 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loader._loader._new_loader().pin_memory is False
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert loader._loader._new_loader().pin_memory is True
