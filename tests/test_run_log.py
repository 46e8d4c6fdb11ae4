import json
import logging
import subprocess
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from swiftformer.train.classification import Classification
from swiftformer.train.detection import Detection
from swiftformer.train.recipes import get_recipe
from swiftformer.train.run_log import RunLog, _forget_lines_after
from swiftformer.train.segmentation import Segmentation

EPOCH = {"loss": 0.5, "train_accuracy": 60.0, "lr": 1e-3, "images_per_second": 100.0, "seconds": 2.0}
VALIDATED = EPOCH | {"top1": 70.0, "top5": 90.0, "calibration_error": 3.0}


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """No real W&B, no key of the person who runs the tests."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed


class FakeRun:
    def __init__(self, **options):
        self.options, self.axes, self.lines, self.exit_code = options, {}, [], None

    def define_metric(self, name, step_metric):
        self.axes[name] = step_metric

    def log(self, values):
        self.lines.append(values)

    def finish(self, exit_code):
        self.exit_code = exit_code


@pytest.fixture
def wandb(monkeypatch):
    fake = types.ModuleType("wandb")
    fake.runs = []
    fake.init = lambda **options: fake.runs.append(FakeRun(**options)) or fake.runs[-1]
    fake.Image = lambda path: ("image", path)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def tensorboard(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(e.step, pytest.approx(e.value, rel=1e-6)) for e in tensorboard(folder).Scalars(tag)]


def test_a_run_and_its_resumption(tmp_path):
    output = tmp_path / "new" / "run"
    with RunLog(output, {"lr": 1e-3}) as log:
        for epoch in (1, 2, 3):
            for step in (3 * epoch - 2, 3 * epoch - 1, 3 * epoch):
                log.step(step, {"loss": 1 / step, "lr": 1e-4 * step})
            log.epoch({"epoch": epoch} | VALIDATED | {"loss": 1 / epoch})
    with (output / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "lo')  # the machine went down here
    with RunLog(output, {}, epochs_done=2) as log:
        assert len((output / "metrics.jsonl").read_text().splitlines()) == 2
        for step in (7, 8):
            log.step(step, {"loss": 5.0})
        log.epoch({"epoch": 3} | EPOCH | {"loss": 7.0})
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[1] == {"epoch": 2} | VALIDATED | {"loss": 0.5} and lines[2] == {"epoch": 3} | EPOCH | {"loss": 7.0}

    board = tensorboard(output / "tensorboard")
    assert set(board.Tags()["scalars"]) == {
        "train/loss", "train/accuracy", "train/lr", "train/images_per_second", "train/seconds",
        "val/top1", "val/top5", "val/calibration_error",
    }  # fmt: skip
    assert scalars(output / "tensorboard", "train/loss") == [(1, 1.0), (2, 0.5), (3, 7.0)]
    assert scalars(output / "tensorboard", "val/top1") == [(1, 70.0), (2, 70.0)]
    once = [(step, 1 / step) for step in range(1, 7)]
    assert scalars(output / "tensorboard" / "steps", "step/loss") == [*once, (7, 5.0), (8, 5.0)]
    assert scalars(output / "tensorboard" / "steps", "step/lr")[-1][0] == 6


@pytest.mark.parametrize(
    ("task", "recipe"),
    [
        (Classification, "smoke"),
        (Segmentation, "smoke_segmentation"),
        (Detection, "smoke_detection"),
        (Detection, "smoke_instances"),
    ],
)
def test_measures_of_every_task_are_told_of_as_validation(tmp_path, task, recipe):
    measures = task(get_recipe(recipe)).measures
    with RunLog(tmp_path, {}, measures=measures) as log:
        log.epoch({"epoch": 1, "loss": 1.0, "val_unreadable": 0, **dict.fromkeys(measures, 50.0)})
    found = set(tensorboard(tmp_path / "tensorboard").Tags()["scalars"])
    assert found == {"train/loss", "val/unreadable", *(f"val/{measure}" for measure in measures)}


def test_names_that_are_no_text_are_written_down(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger("swiftformer"), "propagate", False)  # what pytest captures has to be text
    with RunLog(tmp_path, {}):
        logging.getLogger("swiftformer").warning("cannot read %s", "\udce9t\udce9.jpg")
    assert "cannot read \\udce9t\\udce9.jpg" in (tmp_path / "train.log").read_text()
    assert "Logging error" not in capsys.readouterr().err


def test_begun_again_in_the_same_folder(tmp_path):
    for loss in (1.0, 2.0):
        with RunLog(tmp_path, {}) as log:
            log.step(1, {"loss": loss})
            log.epoch({"epoch": 1, "loss": loss})
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == 2.0
    assert scalars(tmp_path / "tensorboard", "train/loss") == [(1, 2.0)]
    assert scalars(tmp_path / "tensorboard" / "steps", "step/loss") == [(1, 2.0)]


@given(st.lists(st.dictionaries(st.text(), st.floats(allow_nan=False))), st.integers(0, 8), st.binary())
@settings(max_examples=30, deadline=None)
def test_lines_that_are_kept(tmp_path_factory, lines, epochs, torn):
    path = tmp_path_factory.mktemp("cut") / "metrics.jsonl"
    whole = [json.dumps(line).encode() for line in lines]
    path.write_bytes(b"".join(line + b"\n" for line in whole) + torn)
    _forget_lines_after(path, min(epochs, len(whole)))
    assert path.read_bytes().splitlines() == whole[:epochs]


def test_figures(tmp_path):
    picture = tmp_path / "confusion.png"
    for mode in ("L", "RGBA"):
        Image.new(mode, (30, 20)).save(picture)
        with RunLog(tmp_path / mode, {}) as log:
            log.epoch({"epoch": 2, "loss": 1.0})
            log.figure("confusion", picture, 2)
        (image,) = tensorboard(tmp_path / mode / "tensorboard").Images("confusion")
        assert (image.step, image.width, image.height) == (2, 30, 20)
        assert image.encoded_image_string == picture.read_bytes()


def test_the_log_file(tmp_path):
    package, child = logging.getLogger("swiftformer"), logging.getLogger("swiftformer.data.loaders")
    before = package.level, list(package.handlers)

    def run() -> None:
        with RunLog(tmp_path, {}) as log:
            child.warning("näher.jpg cannot be read")
            logging.getLogger("elsewhere").error("not ours")
            package.info("begun")
            log.epoch({"epoch": 1, "loss": 0.25})
            raise FloatingPointError("the loss is nan\nat step 3")

    with pytest.raises(FloatingPointError):
        run()
    package.warning("afterwards")
    assert (package.level, package.handlers) == before
    with RunLog(tmp_path, {}):
        child.info("again")
    stamps, lines = zip(
        *(line.split(",", 1) for line in (tmp_path / "train.log").read_text("utf-8").splitlines()), strict=True
    )
    assert [line.split(" ", 1)[1] for line in lines] == [
        "WARNING näher.jpg cannot be read",
        "INFO begun",
        "INFO epoch 1  loss 0.25",
        "ERROR stopped by FloatingPointError: the loss is nan",
        "INFO again",
    ]
    assert all(len(stamp) == len("2026-01-31 12:00:00") for stamp in stamps)


def test_a_level_that_the_user_set_stays(tmp_path):
    package = logging.getLogger("swiftformer")
    before = package.level
    try:
        package.setLevel(logging.ERROR)
        with RunLog(tmp_path, {}):
            package.warning("not wanted")
        assert package.level == logging.ERROR
    finally:
        package.setLevel(before)
    assert (tmp_path / "train.log").read_text() == ""


def test_other_processes_write_their_warnings_alone(tmp_path, wandb):
    package = logging.getLogger("swiftformer")
    with RunLog(tmp_path, {}, rank=1) as log:
        log.step(1, {"loss": 1.0})
        log.epoch({"epoch": 1, "loss": 1.0})
        log.figure("confusion", tmp_path / "absent.png", 1)
        package.info("not wanted")
    assert list(tmp_path.iterdir()) == [] and wandb.runs == []
    with RunLog(tmp_path, {}, rank=3):
        package.warning("skipped a.jpg")
    assert [file.name for file in tmp_path.iterdir()] == ["train-3.log"] and not package.handlers
    assert (tmp_path / "train-3.log").read_text().endswith("skipped a.jpg\n")


def test_a_disk_that_fills_up(tmp_path, monkeypatch, caplog):
    from tensorboard.summary.writer.record_writer import RecordWriter

    with RunLog(tmp_path, {}) as log:
        log.epoch({"epoch": 1, "loss": 1.0})
        monkeypatch.setattr(RecordWriter, "flush", lambda self: (_ for _ in ()).throw(OSError(28, "No space left")))
        for epoch in (2, 3):
            log.step(epoch, {"loss": 1.0})
            log.epoch({"epoch": epoch, "loss": 1.0})
    (warning,) = caplog.records
    assert warning.getMessage() == "TensorBoard is left out from here on: OSError: [Errno 28] No space left"
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    assert warning.getMessage() in (tmp_path / "train.log").read_text()


def test_no_folder_for_tensorboard(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("a file")
    with RunLog(tmp_path, {}) as log:
        log.epoch({"epoch": 1, "loss": 1.0})
        log.epoch({"epoch": 2, "loss": 1.0})
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_metrics_that_cannot_be_written_are_an_error(tmp_path):
    with RunLog(tmp_path, {}) as log:
        (tmp_path / "metrics.jsonl").mkdir()
        with pytest.raises(OSError):
            log.epoch({"epoch": 1, "loss": 1.0})


def test_weights_and_biases(tmp_path, wandb, monkeypatch):
    output, picture = tmp_path / "flowers", tmp_path / "confusion.png"
    Image.new("RGB", (3, 2)).save(picture)
    recipe = {"lr": 1e-3, "epochs": 2}
    with RunLog(output, recipe) as log:
        log.step(1, {"loss": 2.0, "lr": 1e-3})
        log.epoch({"epoch": 1} | VALIDATED)
        log.figure("confusion", picture, 1)
    (run,) = wandb.runs
    identity = (output / "wandb-id.txt").read_text().strip()
    assert identity and run.options == {
        "project": "swiftformer", "name": "flowers", "id": identity, "resume": "allow", "config": recipe,
        "dir": str(output), "mode": "offline", "settings": {"console": "off"},
    }  # fmt: skip
    assert run.axes == {"train/*": "epoch", "val/*": "epoch", "step/*": "step"}
    assert run.lines[0] == {"step/loss": 2.0, "step/lr": 1e-3, "step": 1}
    assert run.lines[1]["epoch"] == 1 and run.lines[1]["val/top1"] == 70.0 and run.lines[1]["train/loss"] == 0.5
    assert run.lines[2] == {"confusion": ("image", str(picture)), "epoch": 1}
    assert run.exit_code == 0

    monkeypatch.chdir(output)
    with pytest.raises(KeyboardInterrupt), RunLog(Path(), recipe, epochs_done=1):
        raise KeyboardInterrupt
    again = wandb.runs[1]
    assert (again.options["id"], again.options["name"], again.exit_code) == (identity, "flowers", 1)


@pytest.mark.parametrize(
    ("variables", "netrc", "mode"),
    [
        ({}, "", "offline"),
        ({}, "machine example.org login user password x\n", "offline"),
        ({}, "machine api.wandb.ai login user password x\n", None),
        ({"NETRC": "elsewhere"}, "machine api.wandb.ai login user password x\n", "offline"),
        ({"WANDB_BASE_URL": "https://example.org:8080"}, "machine example.org login user password x\n", None),
        ({}, "nonsense\n", "offline"),
        ({"WANDB_API_KEY": "x"}, "", None),
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": "x"}, "", None),  # W&B reads the mode itself
        ({"WANDB_MODE": "online"}, "", None),
    ],
)
def test_offline_without_a_key(variables, netrc, mode, tmp_path, wandb, monkeypatch):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".netrc").write_text(netrc)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with RunLog(tmp_path / "run", {}):
        pass
    assert wandb.runs[0].options["mode"] == mode


def test_weights_and_biases_switched_off_or_absent(tmp_path, wandb, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with RunLog(tmp_path, {}):
        pass
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))  # the folder of an earlier run
    with RunLog(tmp_path, {}):
        pass
    assert wandb.runs == [] and caplog.records == [] and not (tmp_path / "wandb-id.txt").exists()


def test_weights_and_biases_never_stops_a_run(tmp_path, wandb, monkeypatch, caplog):
    def fail(*args, **options):
        raise RuntimeError("no connection\nto the server")

    monkeypatch.setattr(FakeRun, "log", fail)
    with RunLog(tmp_path, {}) as log:
        for epoch in (1, 2):
            log.epoch({"epoch": epoch, "loss": 1.0})
    assert wandb.runs[0].exit_code == 1
    wandb.init = fail
    with RunLog(tmp_path, {}, epochs_done=2) as log:
        log.epoch({"epoch": 3, "loss": 1.0})
    assert [record.getMessage() for record in caplog.records] == [
        "Weights & Biases is left out from here on: RuntimeError: no connection",
        "Weights & Biases is left out: RuntimeError: no connection",
    ]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    assert scalars(tmp_path / "tensorboard", "train/loss") == [(1, 1.0), (2, 1.0), (3, 1.0)]


def test_tensorboard_stays_quiet_and_without_tensorflow(tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('imported')")
    code = (
        "from swiftformer.train.run_log import RunLog\n"
        "with RunLog('run', {}) as log: log.step(1, {'loss': 1.0}); log.epoch({'epoch': 1, 'loss': 1.0})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['wandb'] = None\n" + code],
        cwd=tmp_path, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert scalars(tmp_path / "run" / "tensorboard", "train/loss") == [(1, 1.0)]


def test_processes_that_are_not_forked_write_to_the_log(tmp_path):
    code = (
        "import logging, sys\nfrom swiftformer.data.processes import begin\nbegin([sys.argv[1]], 0)\n"
        "logging.getLogger('swiftformer.data').warning('skipped a.jpg')"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "train.log"], capture_output=True, text=True)
    assert "skipped a.jpg" in done.stderr
    assert (tmp_path / "train.log").read_text().endswith("WARNING skipped a.jpg\n")
