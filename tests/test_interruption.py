"""Runs that are killed, asked to stop, or lose their loader processes: nothing is lost, and nothing changes."""

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from conftest import tiny
from swiftformer import save
from swiftformer.data.lasting_loader import LoaderError
from swiftformer.data.loaders import TrainingLoader, evaluation_loader
from swiftformer.data.single_loader import SingleLoader
from swiftformer.data.sources import open_source
from swiftformer.image_processing import Preprocessing
from swiftformer.train.interruption import StopRequest
from swiftformer.train.recipes import get_recipe
from swiftformer.train.state import read_state, write_state
from train_worker import Started

# 48 images, 8 batches of 6 in each of three epochs; everything that is random is on.
SETTINGS = ["epochs=3", "batch_size=6", "auto_augment=rand-m9-mstd0.5-inc1", "mixup=0.5", "drop_path_rate=0.2"]
SETTINGS += ["random_erasing=0.5", "total_batch_size=12", "evaluate_every=2"]


def train(folder, output, *settings, expect=0, **environment):
    ((_, err),) = Started(output / "log", [folder, output, *SETTINGS, *settings], **environment).wait(expect)
    return err


def equal(a, b):
    a, b = read_state(a), read_state(b)
    for part in ("model", "ema"):
        assert all(torch.equal(a[part][key], b[part][key]) for key in a[part])
    moments = zip(a["optimizer"]["state"].values(), b["optimizer"]["state"].values(), strict=True)
    assert all(torch.equal(x[key], y[key]) for x, y in moments for key in x)
    assert a["best"] == b["best"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import numpy as np
    from PIL import Image

    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 4)):
        for name in ("blue", "red"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(
                    root / split / name / f"{i}.png"
                )
    return root


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    train(folder, output)
    return output


@pytest.mark.parametrize(
    ("update", "by", "code"),
    [(2, "SIGTERM", 143), pytest.param(6, "SIGTERM", 143, marks=pytest.mark.exhaustive), (8, "SIGINT", 130)],
)
def test_a_stopped_run_saves_where_it_is_and_goes_on_as_if_nothing_had_happened(
    folder, whole, tmp_path, update, by, code
):
    """Four updates an epoch: in the first epoch, in the second, and in the evaluation behind that."""
    workers = 2 if update == 6 else 0
    text = train(folder, tmp_path, KILL_AT=update, KILL_BY=by, WORKERS=workers, expect=code)
    assert "Traceback" not in text and "stopped in epoch" in text
    state = read_state(tmp_path)
    assert state["epochs"] * 48 + state["images"] == {2: 36, 6: 84, 8: 96}[update]
    train(folder, tmp_path, "--resume", WORKERS=workers)
    equal(whole, tmp_path)
    whole_lines, lines = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (whole, tmp_path)
    )
    for a, b in zip(whole_lines, lines, strict=True):
        assert {**a, "seconds": 0, "images_per_second": 0} == {**b, "seconds": 0, "images_per_second": 0}


@pytest.mark.parametrize("update", [pytest.param(3, marks=pytest.mark.exhaustive), 6])
def test_a_killed_run_goes_on_from_its_last_state(folder, whole, tmp_path, update):
    """SIGKILL, with a state after every reading of the loss and without one but at the epoch's end."""
    every = 0 if update == 6 else 30
    train(folder, tmp_path, KILL_AT=update, KILL_BY="SIGKILL", SAVE_MINUTES=every, expect=-signal.SIGKILL)
    if update == 6:
        assert read_state(tmp_path)["images"] == 12  # the state behind update 5; update 6 died before its own
    train(folder, tmp_path, *(["--resume"] if update == 6 else []))
    equal(whole, tmp_path)


def test_the_command_line_says_in_one_line_how_to_go_on(folder, tmp_path):
    save(tiny(), tmp_path / "tiny")
    output = tmp_path / "run"
    arguments = ["train", "--data", folder, "--recipe", "smoke", "--workers", 0, "--output", output, "--device", "cpu"]
    arguments += ["--model", tmp_path / "tiny", "--set", "epochs=10000"]
    started = Started(tmp_path, arguments, function="cli")
    deadline = time.monotonic() + 60
    while not (output / "states").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started.processes[0].terminate()
    ((_, err),) = started.wait(143)
    assert "Traceback" not in err and err.splitlines()[-1].startswith("stopped: stopped in epoch")
    assert "resume" in err
    state = read_state(output)
    done = state["epochs"] + 2
    state["recipe"] |= {"epochs": done}
    write_state(output, state["epochs"], state["images"], state)
    arguments[arguments.index("epochs=10000")] = f"epochs={done}"
    Started(tmp_path, [*arguments, "--resume"], function="cli").wait()
    lines = [json.loads(line)["epoch"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(1, done + 1))


def test_a_second_signal_acts_as_usual():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler
    with ThreadPoolExecutor(1) as threads:  # where Python takes no handlers
        assert threads.submit(lambda: StopRequest().__enter__().__exit__(None, None, None)).result() is None


class Deadly:
    """A source whose `index`-th picture kills the process that reads it, `times` times."""

    def __init__(self, source, index, times, folder):
        self.source, self.index, self.times, self.folder = source, index, times, folder
        self.classes, self.labels = source.classes, source.labels

    def __len__(self):
        return len(self.source)

    def image(self, index, short_side=None):
        if index == self.index and len(list(self.folder.iterdir())) < self.times:
            (self.folder / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.source.image(index)

    def name(self, index):
        return self.source.name(index)


def test_a_dead_loader_process_is_replaced(folder, tmp_path, caplog):
    """The batches are those of a loader to which nothing happened."""
    recipe = get_recipe("smoke", ["batch_size=6", "auto_augment=rand-m9-mstd0.5-inc1", "mixup=0.5"])
    source = open_source(folder, "train")
    expected = list(TrainingLoader(source, recipe, 32, 6, workers=2).batches(0))
    loader = TrainingLoader(Deadly(source, 30, 2, tmp_path), recipe, 32, 6, workers=2)
    found = list(loader.batches(0))
    assert len(found) == len(expected) == 8 and caplog.text.count("a process that loads images died") == 2
    for a, b in zip(expected, found, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_loader_processes_that_keep_dying_end_the_run_with_a_state(folder, tmp_path):
    from swiftformer.train import loop

    (tmp_path / "deaths").mkdir()
    source = open_source(folder, "train")
    # The picture of the fourth batch in this order.
    recipe = get_recipe("smoke", ["batch_size=6"])
    order = TrainingLoader(source, recipe, 32, 6, workers=0)
    order.sampler.set_epoch(0)
    index = [draw[0] for draw in order.sampler][20]
    deadly = Deadly(source, index, 100, tmp_path / "deaths")
    save(tiny(), tmp_path / "tiny")
    options = {"model": str(tmp_path / "tiny"), "device": "cpu", "workers": 1}
    with pytest.raises(LoaderError, match=r"died 3 times at batch [23] of epoch 1: expected enough memory"):
        loop.train(recipe, deadly, open_source(folder, "val"), tmp_path / "run", **options)
    assert read_state(tmp_path / "run")["images"] in (12, 18)  # the batch before may die in the queue as well
    assert (
        loop.train(recipe, source, open_source(folder, "val"), tmp_path / "run", resume=True, **options)["epoch"] == 2
    )


def test_a_dead_process_of_an_evaluation_is_replaced(folder, tmp_path, caplog):
    """Every picture comes once and in order, also in the evaluations behind."""
    source, preprocessing = open_source(folder, "train"), Preprocessing(size=(32, 32))
    expected = list(evaluation_loader(source, preprocessing, 6, workers=0, rank=1, world_size=2))
    deadly = Deadly(source, 25, 2, tmp_path)  # rank 1's third batch
    loader = evaluation_loader(deadly, preprocessing, 6, workers=2, rank=1, world_size=2)
    for _ in range(2):
        found = list(loader)
        assert len(found) == len(expected) == 4
        for a, b in zip(expected, found, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert caplog.text.count("a process that loads images died") == 2


def test_a_dead_process_that_loads_single_pictures_is_replaced(folder, tmp_path, caplog):
    deadly = Deadly(open_source(folder, "val"), 5, 1, tmp_path)
    assert list(SingleLoader(deadly, ReadPlace(deadly), workers=2)) == list(range(8))
    assert caplog.text.count("a process that loads images died") == 1


class ReadPlace:
    """Reads a picture of a source and gives its index."""

    def __init__(self, source):
        self.source = source

    def __call__(self, index):
        self.source.image(index)
        return index


@pytest.mark.exhaustive
def test_processes_of_an_evaluation_that_keep_dying_end_the_run_with_a_state(folder, tmp_path):
    from swiftformer.train import loop

    (tmp_path / "deaths").mkdir()
    save(tiny(), tmp_path / "tiny")
    train, val = open_source(folder, "train"), open_source(folder, "val")
    deadly = Deadly(val, 4, 100, tmp_path / "deaths")
    recipe, output = get_recipe("smoke", ["batch_size=2"]), tmp_path / "run"
    options = {"model": str(tmp_path / "tiny"), "device": "cpu", "workers": 1}
    with pytest.raises(LoaderError, match=r"died 3 times at batch [01] of the evaluation: expected enough memory"):
        loop.train(recipe, train, deadly, output, **options)
    assert read_state(output)["images"] == 48  # of the first epoch
    assert loop.train(recipe, train, val, output, resume=True, **options)["epoch"] == 2
