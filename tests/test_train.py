import contextlib
import errno
import json
import logging
import resource
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from swiftformer import Preprocessing, SwiftFormerConfig, SwiftFormerForImageClassification, load, save
from swiftformer.data.sources import open_source
from swiftformer.evaluate.classification import evaluate_classifier, evaluate_reference, match_classes
from swiftformer.train import classification, distillation, loop
from swiftformer.train import state as state_module
from swiftformer.train.distributed import Processes
from swiftformer.train.interruption import TrainingStopped
from swiftformer.train.recipes import get_recipe
from swiftformer.train.state import read_state, write_state
from swiftformer.train.step import TrainingStep
from test_cli import cli  # noqa: F401

FILES = {
    *("recipe.json", "metrics.jsonl", "train.log", "tensorboard", "curves.png", "confusion.png", "README.md"),
    *("states", "best", "last", "raw"),
}


@pytest.fixture(autouse=True)
def tiny_variant(monkeypatch):
    """Train a small network under the name of the smallest variant."""

    def build(cls, name, **kwargs):
        return SwiftFormerConfig(depths=[1, 1, 1, 1], embed_dims=[8, 8, 8, 16], global_query_weighting="l2", **kwargs)

    monkeypatch.setattr(SwiftFormerConfig, "from_variant", classmethod(build))


def run(folder, output, *settings, **options):
    recipe = get_recipe("smoke", ["lr=5e-3", *settings])
    options = {"workers": 0} | options
    return loop.train(recipe, open_source(folder, "train"), open_source(folder, "val"), output, **options)


def test_a_run_learns_and_leaves_what_it_promises(image_folder, tmp_path, cli):  # noqa: F811
    metrics = run(image_folder, tmp_path / "run", "epochs=20", "color_jitter=0")
    assert metrics["top1"] == 100.0 and metrics["epoch"] == 20
    assert {f.name for f in (tmp_path / "run").iterdir()} == FILES
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 21))
    assert lines[-1]["loss"] < lines[0]["loss"] and lines[-1]["lr"] < 1e-3
    model = load(tmp_path / "run" / "last")
    assert model.config.id2label == {0: "blue", 1: "red"} and model.config.form == "l2"
    assert model.preprocessing == get_recipe("smoke").preprocessing
    evaluated = evaluate_reference(str(tmp_path / "run"), str(image_folder), workers=0)
    assert evaluated["top1"] == 100.0 and evaluated["images"] == 16 and evaluated["unreadable"] == 0
    for place in (".", "best", "last", "raw"):
        assert json.loads((tmp_path / "run" / place / "recipe.json").read_text())["epochs"] == 20
    averaged, raw = (load(tmp_path / "run" / name).head.weight for name in ("last", "raw"))
    assert not torch.equal(averaged, raw)
    told = [
        json.loads(cli("evaluate", "--model", tmp_path / "run", "--data", image_folder, "--json", *raw)[1])
        for raw in ((), ("--raw",))
    ]
    assert told[0]["calibration_error"] != told[1]["calibration_error"] and told[1]["top1"] == 100.0


@pytest.mark.parametrize(
    "settings",
    [
        ("mixup=0.8", "cutmix=1"),
        ("repeated_augmentation=3",),
        ("precision=bf16", "ema_decay=0", "clip_agc=0"),
        ("progressive_sizes=32", "image_size=64", "channels_last=false"),
        ("optimizer=lion", "drop_path_rate=0.2"),
        ("evaluate_every=2",),
        ("precision=fp16",),
        ("class_weights=balanced",),
        ("sampler=balanced",),
    ],
)
def test_every_ingredient_runs(image_folder, tmp_path, settings):
    metrics = run(image_folder, tmp_path / "run", *settings)
    assert 0 <= metrics["top1"] <= 100 and metrics["loss"] > 0


def stop():
    raise KeyboardInterrupt


def test_sizes_grow_as_the_recipe_says(image_folder, tmp_path, monkeypatch):
    """Also behind an interruption."""
    seen, call = [], TrainingStep.__call__

    def spy(self, pixels, *arguments, **options):
        seen.append(tuple(pixels.shape[2:]))
        return call(self, pixels, *arguments, **options)

    monkeypatch.setattr(TrainingStep, "__call__", spy)
    settings = ("epochs=5", "progressive_sizes=32,64", "image_size=96", "batch_size=24")
    run(image_folder, tmp_path / "run", *settings)
    sides = [side for side, _ in seen[::2]]
    assert seen == [(side, side) for side in sides for _ in range(2)] and sides == [32, 32, 64, 96, 96]
    calls = iter([True, False])
    monkeypatch.setattr(
        classification, "evaluate_classifier", lambda *a, **k: evaluate_classifier(*a, **k) if next(calls) else stop()
    )
    with pytest.raises(KeyboardInterrupt):
        run(image_folder, tmp_path / "cut", *settings)
    monkeypatch.setattr(classification, "evaluate_classifier", evaluate_classifier)
    seen.clear()
    run(image_folder, tmp_path / "cut", *settings, resume=True)
    assert [side for side, _ in seen[::2]] == [64, 96, 96]


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.exhaustive), 2])
def test_resumed_run_equals_an_uninterrupted_one(image_folder, tmp_path, monkeypatch, workers):
    settings = ("epochs=4", "auto_augment=rand-m9-mstd0.5-inc1", "mixup=0.5", "drop_path_rate=0.1")
    whole = run(image_folder, tmp_path / "whole", *settings, workers=workers)
    calls = iter([True, True, False])

    def interrupted(*args, **kwargs):
        if not next(calls):
            raise KeyboardInterrupt
        return evaluate_classifier(*args, **kwargs)

    monkeypatch.setattr(classification, "evaluate_classifier", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(image_folder, tmp_path / "parts", *settings, workers=workers)
    monkeypatch.setattr(classification, "evaluate_classifier", evaluate_classifier)
    parts = run(image_folder, tmp_path / "parts", *settings, workers=workers, resume=True)
    assert parts["loss"] == whole["loss"] and parts["top1"] == whole["top1"]
    a, b = (read_state(tmp_path / name) for name in ("whole", "parts"))
    for part in ("model", "ema"):
        assert all(torch.equal(a[part][key], b[part][key]) for key in a[part])


def test_resuming_keeps_the_numeric_form(image_folder, tmp_path, caplog):
    config = SwiftFormerConfig(depths=[1, 1, 1, 1], embed_dims=[8, 8, 8, 16], num_labels=5)
    save(SwiftFormerForImageClassification(config), tmp_path / "uniform")
    run(image_folder, tmp_path / "run", model=str(tmp_path / "uniform"))
    state = read_state(tmp_path / "run")
    state["recipe"] |= {"epochs": 3}
    write_state(tmp_path / "run", state["epochs"], 0, state)
    metrics = run(image_folder, tmp_path / "run", "epochs=3", resume=True)  # without naming the model again
    assert metrics["epoch"] == 3 and load(tmp_path / "run" / "last").config.form == "uniform"
    again = run(image_folder, tmp_path / "run", "epochs=3", resume=True)
    assert again == metrics and "behind 3 epochs and 0 images: nothing is left to train" in caplog.text
    (image_folder / "train" / "red").rename(image_folder / "train" / "green")
    (image_folder / "val" / "red").rename(image_folder / "val" / "green")
    with pytest.raises(ValueError, match=r"started with, found 1 only in the run \(red\) and 1 only in the data"):
        run(image_folder, tmp_path / "run", "epochs=3", resume=True)


def test_a_damaged_state_falls_back_to_the_one_before(image_folder, tmp_path, caplog):
    output = tmp_path / "run"
    run(image_folder, output, "epochs=4")
    states = sorted(path.name for path in (output / "states").glob("*.pt"))
    assert states == ["epoch-0003-images-000000048.pt", "epoch-0004.pt"]
    last = output / "states" / states[-1]
    content = last.read_bytes()
    last.write_bytes(content[: len(content) // 2])
    assert read_state(output)["epochs"] == 3 and "epoch-0004.pt is damaged" in caplog.text
    assert run(image_folder, output, "epochs=4", resume=True)["epoch"] == 4
    assert read_state(output)["epochs"] == 4
    for path in (output / "states").glob("*.pt"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="expected a state that is whole, found 2 damaged ones"):
        run(image_folder, output, "epochs=4", resume=True)


def test_a_full_disk_keeps_the_state_before(image_folder, tmp_path, monkeypatch):
    """The system itself refuses to write: here because of a limit on the size of files."""
    output = tmp_path / "run"
    original = state_module.write_state

    def full(run, epochs, *rest):
        if epochs < 2:
            return original(run, epochs, *rest)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            return original(run, epochs, *rest)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(loop, "write_state", full)
    with pytest.raises(OSError, match="File too large"):
        run(image_folder, output)
    monkeypatch.setattr(loop, "write_state", original)
    assert read_state(output)["epochs"] == 1 and not list((output / "states").glob(".*"))
    assert run(image_folder, output, resume=True)["epoch"] == 2


def test_a_kill_before_the_first_evaluation_can_be_resumed(image_folder, tmp_path, monkeypatch):
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    whole = run(image_folder, tmp_path / "whole")
    monkeypatch.setattr(classification, "evaluate_classifier", killed)
    with pytest.raises(KeyboardInterrupt):
        run(image_folder, tmp_path / "run")
    monkeypatch.setattr(classification, "evaluate_classifier", evaluate_classifier)
    assert run(image_folder, tmp_path / "run", resume=True)["top1"] == whole["top1"]


class Silent(Processes):
    """One that writes nothing."""

    main = False


@pytest.mark.parametrize("writes", [True, False])
def test_weights_that_are_not_finite_are_not_saved(image_folder, tmp_path, monkeypatch, writes):
    """The loss of the last batch was still finite; its update was not. A process that writes nothing stops as well."""
    processes = (Processes if writes else Silent)(0, 1, torch.device("cpu"))
    monkeypatch.setattr(loop, "join_processes", lambda device: contextlib.nullcontext(processes))
    update = TrainingStep._update

    def overflow(self, number):
        update(self, number)
        if number == 6:  # the last of the second epoch
            with torch.no_grad():
                next(self.net.parameters()).fill_(float("inf"))

    monkeypatch.setattr(TrainingStep, "_update", overflow)
    with pytest.raises(FloatingPointError, match="weights in epoch 2, step 3 are not finite"):
        run(image_folder, tmp_path / "run")
    assert not writes or read_state(tmp_path / "run")["epochs"] == 1


def test_fewer_images_than_a_batch(image_folder, tmp_path, caplog):
    assert run(image_folder, tmp_path / "run", "batch_size=64")["loss"] > 0
    assert "48 training images: taking 48 at once instead of 64" in caplog.text


def test_loader_processes(image_folder, tmp_path):
    recipe = get_recipe("smoke", ["auto_augment=rand-m9-mstd0.5-inc1", "mixup=0.5"])
    train, val = open_source(image_folder, "train"), open_source(image_folder, "val")
    metrics = loop.train(recipe, train, val, tmp_path / "run", workers=2)
    assert metrics["epoch"] == 2


def test_metrics_by_hand():
    """Against the definitions, in two batches."""
    logits = torch.randn(40, 7)
    labels = torch.randint(0, 7, (40,))

    class Table(torch.nn.Module):
        def forward(self, rows):
            return SimpleNamespace(logits=logits[rows.long()])

    batches = [(torch.arange(0, 25), labels[:25], None), (torch.arange(25, 40), labels[25:], None)]
    metrics, confusion = evaluate_classifier(Table(), batches)
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert metrics["top1"] == pytest.approx(100 * (ranks == 0).float().mean().item())
    assert metrics["top5"] == pytest.approx(100 * (ranks < 5).float().mean().item())
    expected = torch.zeros(7, 7, dtype=torch.long)
    for label, found in zip(labels.tolist(), logits.argmax(1).tolist(), strict=True):
        expected[label, found] += 1
    assert torch.equal(confusion, expected)
    confidence, hits, error = logits.softmax(1).amax(1), ranks == 0, 0.0
    for i in range(15):
        inside = (confidence >= i / 15) & (confidence < (i + 1) / 15)
        if inside.any():
            error += inside.float().mean() * (confidence[inside].mean() - hits[inside].float().mean()).abs()
    assert metrics["calibration_error"] == pytest.approx(100 * float(error), abs=1e-4)


def test_of_equally_good_epochs_the_later_is_kept(image_folder, tmp_path, monkeypatch):
    """With few pictures to validate on, the first epochs are as good as trained ones by chance."""
    result = {"top1": 50.0, "top5": 50.0, "calibration_error": 0.0}
    monkeypatch.setattr(classification, "evaluate_classifier", lambda *_: (result, None))
    run(image_folder, tmp_path / "run")
    best, last = (load_file(tmp_path / "run" / name / "model.safetensors") for name in ("best", "last"))
    assert all(torch.equal(best[key], last[key]) for key in last)


def test_accuracy_per_class(image_folder, tmp_path):
    run(image_folder, tmp_path / "run")
    metrics = evaluate_reference(str(tmp_path / "run"), str(image_folder), workers=0, per_class=True)
    assert metrics["top1"] == pytest.approx((metrics["top1/blue"] + metrics["top1/red"]) / 2)


def test_classes_are_matched_by_name_only_where_names_are_unique(caplog):
    imagenet = ["crane", "heron", "crane"]
    assert match_classes(imagenet, ["crane", "heron", "crane"], [0, 1, 2]) == [0, 1, 2]
    assert match_classes(["a", "b", "c"], ["c", "a"], [0, 1]) == [2, 0]
    assert not caplog.records
    assert match_classes(imagenet, ["n1", "n2", "n3"], [2, 1]) == [2, 1]
    assert [record.getMessage() for record in caplog.records] == [
        "no class of the data (n1, n2, n3) is called like one of the model's (crane, heron, crane): they are matched "
        "by position"
    ]
    with pytest.raises(ValueError, match="several called crane"):
        match_classes(imagenet, ["heron", "crane"], [0])
    with pytest.raises(ValueError, match=r"found 2 others \(x, y\)"):
        match_classes(imagenet, ["x", "y"], [0])


@pytest.mark.parametrize("kind", ["hard", pytest.param("soft", marks=pytest.mark.exhaustive)])
def test_distillation_from_a_teacher(image_folder, tmp_path, kind):
    run(image_folder, tmp_path / "teacher", "epochs=8")
    settings = (f"distillation={kind}", f"teacher={tmp_path / 'teacher'}", "distillation_alpha=1", "ema_decay=0")
    metrics = run(image_folder, tmp_path / "student", *settings)
    assert metrics["loss"] > 0
    start = load(tmp_path / "student" / "last")
    # With alpha 1 nothing trains the class head but weight decay; the distillation head learns.
    assert start.head.bias.abs().max() == 0 and start.dist_head.bias.abs().max() > 0
    assert json.loads((tmp_path / "student" / "last" / "config.json").read_text())["architectures"] == [
        "SwiftFormerForImageClassification"
    ]
    run(image_folder, tmp_path / "tuned", *settings, model=str(tmp_path / "student"))


def test_gradients_are_accumulated_to_the_total_batch(image_folder, tmp_path):
    metrics = run(image_folder, tmp_path / "run", "batch_size=12", "total_batch_size=48")
    state = read_state(tmp_path / "run")
    steps = {int(entry["step"]) for entry in state["optimizer"]["state"].values()}
    assert steps == {2} and metrics["epoch"] == 2  # one update in each of two epochs
    with pytest.raises(ValueError, match="expected at least 96 training images for one update, found 48"):
        run(image_folder, tmp_path / "large", "batch_size=12", "total_batch_size=96")


def test_resuming_needs_the_same_run(image_folder, tmp_path):
    with pytest.raises(ValueError, match="expected a state to resume from, found none"):
        run(image_folder, tmp_path / "run", resume=True)
    run(image_folder, tmp_path / "run")
    with pytest.raises(ValueError, match="holds a run already"):
        run(image_folder, tmp_path / "run")
    with pytest.raises(ValueError, match=r"another recipe \(epochs 2 -> 3\)"):
        run(image_folder, tmp_path / "run", "epochs=3", resume=True)


def test_a_loss_that_is_not_finite_stops_the_run(image_folder, tmp_path):
    with pytest.raises(FloatingPointError, match="the loss is (nan|inf) in epoch 1"):
        run(image_folder, tmp_path / "run", "lr=1e30", "warmup_epochs=0", "clip_agc=0")


def test_classes_must_agree(image_folder, tmp_path):
    (image_folder / "val" / "red").rename(image_folder / "val" / "green")
    with pytest.raises(ValueError, match=r"train and val, found 1 only in train \(red\) and 1 only in val \(green\)$"):
        run(image_folder, tmp_path / "run")
    for i in range(7):
        shutil.copytree(image_folder / "train" / "red", image_folder / "val" / f"red{i}")
    (image_folder / "val" / "green").rename(image_folder / "val" / "red")
    with pytest.raises(ValueError, match=r"found 7 only in val \(red0, red1, red2, red3, red4, ...\)$"):
        run(image_folder, tmp_path / "run")


def test_fine_tuning_keeps_the_form_and_takes_the_new_names(image_folder, tmp_path):
    config = SwiftFormerConfig(depths=[1, 1, 1, 1], embed_dims=[8, 8, 8, 16], num_labels=5)
    save(SwiftFormerForImageClassification(config), tmp_path / "start")
    run(image_folder, tmp_path / "run", model=str(tmp_path / "start"))
    model = load(tmp_path / "run")
    assert model.config.form == "uniform" and model.config.label2id == {"blue": 0, "red": 1}


def test_evaluation_matches_classes_by_name(image_folder, tmp_path):
    run(image_folder, tmp_path / "run", "epochs=20", "color_jitter=0")
    model = load(tmp_path / "run" / "last")
    model.config.id2label, model.config.label2id = {0: "red", 1: "blue"}, {"red": 0, "blue": 1}
    with torch.no_grad():
        for head in (model.head, model.dist_head):
            head.weight.copy_(head.weight.flip(0))
            head.bias.copy_(head.bias.flip(0))
    save(model, tmp_path / "swapped")
    assert evaluate_reference(str(tmp_path / "swapped"), str(image_folder), workers=0)["top1"] == 100.0
    (image_folder / "val" / "red").rename(image_folder / "val" / "green")
    with pytest.raises(ValueError, match=r"found 1 others \(green\)"):
        evaluate_reference(str(tmp_path / "swapped"), str(image_folder), workers=0)


def test_weight_decay_spares_biases_and_norms(image_folder, tmp_path, monkeypatch):
    import timm.optim

    seen = {}
    original = timm.optim.create_optimizer_v2

    def spy(*args, **kwargs):
        seen["optimizer"] = original(*args, **kwargs)
        return seen["optimizer"]

    monkeypatch.setattr(timm.optim, "create_optimizer_v2", spy)
    run(image_folder, tmp_path / "run")
    plain, decayed = seen["optimizer"].param_groups
    assert plain["weight_decay"] == 0 and decayed["weight_decay"] > 0
    assert all(p.ndim <= 1 for p in plain["params"]) and all(p.ndim > 1 for p in decayed["params"])


def test_unreadable_pictures_are_counted_and_named(image_folder, tmp_path):
    broken = image_folder / "train" / "red" / "5.png"
    broken.write_bytes(b"broken")
    assert run(image_folder, tmp_path / "run", workers=1)["unreadable"] == 1
    assert str(broken) in (tmp_path / "run" / "train.log").read_text()


def test_classes_and_pictures_called_in_another_code(image_folder, tmp_path, monkeypatch):
    """By bytes that are no UTF-8; an unreadable one of them is told of."""
    monkeypatch.setattr(logging.getLogger("swiftformer"), "propagate", False)  # what pytest captures has to be text
    for split in ("train", "val"):
        (image_folder / split / "red").rename(image_folder / split / "ros\udce9")
    (image_folder / "train" / "blue" / "\udce9t\udce9.png").write_bytes(b"no picture")
    metrics = run(image_folder, tmp_path / "run", "epochs=2")
    assert metrics["epoch"] == 2 and load(tmp_path / "run").config.id2label[1] == "ros\udce9"
    assert "\\udce9t\\udce9.png" in (tmp_path / "run" / "train.log").read_text()
    assert (tmp_path / "run" / "confusion.png").is_file()


def test_a_folder_without_splits_is_cut(image_folder, tmp_path):
    flat = str(image_folder / "train")
    metrics = run(flat, tmp_path / "run", "epochs=10")
    held_out = evaluate_reference(str(tmp_path / "run"), flat, "val", workers=0)
    assert held_out["images"] == 4 and held_out["top1"] == metrics["top1"]
    assert evaluate_reference(str(tmp_path / "run"), flat, workers=0)["images"] == 48


@pytest.mark.parametrize("kind", ["hard", pytest.param("soft", marks=pytest.mark.exhaustive)])
def test_cached_teacher(image_folder, tmp_path, monkeypatch, kind):
    """Without augmentation the cache tells what the teacher would; a second run over the same images reads it."""
    run(image_folder, tmp_path / "teacher", "epochs=8")
    asked = []
    forward = distillation.Teacher.forward
    monkeypatch.setattr(distillation.Teacher, "forward", lambda self, x: asked.append(len(x)) or forward(self, x))
    settings = [f"distillation={kind}", f"teacher={tmp_path / 'teacher'}", "crop_scale=1,1", "crop_ratio=1.2,1.2"]
    settings += ["horizontal_flip=0", "color_jitter=0", "random_erasing=0", "interpolation=bicubic"]
    run(image_folder, tmp_path / "cached", *settings, "cache_teacher=true")
    assert sum(asked) == 48
    logits = load_file(tmp_path / "cached" / "teacher.safetensors")["logits"]
    assert logits.shape == (48, 2) and logits.dtype == torch.float16
    assert (logits.argmax(1) == torch.tensor(open_source(image_folder, "train").labels)).float().mean() > 0.9
    (tmp_path / "again").mkdir()
    shutil.copy(tmp_path / "cached" / "teacher.safetensors", tmp_path / "again")
    asked.clear()
    moved = shutil.copytree(image_folder, tmp_path / "moved")  # the same pictures, wherever they lie
    first = run(moved, tmp_path / "again", *settings, "cache_teacher=true")
    assert asked == [] and first["loss"] > 0
    Image.new("RGB", (40, 48)).save(image_folder / "train" / "red" / "new.png")
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "cached" / "teacher.safetensors", tmp_path / "other")
    run(image_folder, tmp_path / "other", *settings, "cache_teacher=true")
    assert sum(asked) == 49
    with pytest.raises(ValueError, match="a cached teacher knows nothing of mixed images"):
        get_recipe("paper_l1", ["cache_teacher=true"])


def test_a_teacher_who_is_interrupted_goes_on(image_folder, tmp_path, monkeypatch):
    """And a picture that could not be read then is learned from without a teacher."""
    teacher = save(SwiftFormerForImageClassification.from_variant("xs", num_labels=2), tmp_path / "teacher")
    model = load(teacher)
    model.config.id2label, model.config.label2id = {0: "blue", 1: "red"}, {"blue": 0, "red": 1}
    save(model, teacher)
    (image_folder / "train" / "red" / "0.png").write_bytes(b"damaged")
    asked, forward = [], distillation.Teacher.forward

    def answer(self, pixels):
        asked.append(len(pixels))
        if len(asked) == 2:
            signal.raise_signal(signal.SIGTERM)
        return forward(self, pixels)

    monkeypatch.setattr(distillation.Teacher, "forward", answer)
    settings = ["distillation=hard", f"teacher={teacher}", "cache_teacher=true", "epochs=1", "batch_size=12"]
    with pytest.raises(TrainingStopped, match="its answers are kept, nothing is trained yet"):
        run(image_folder, tmp_path / "run", *settings)
    assert asked == [12, 12]
    run(image_folder, tmp_path / "run", *settings)
    assert sum(asked) == 47
    logits = load_file(tmp_path / "run" / "teacher.safetensors")["logits"]
    assert logits.isfinite().all(dim=1).sum() == 47 and not list((tmp_path / "run").glob("teacher-begun*"))
    assert (tmp_path / "run" / "best" / "model.safetensors").exists()


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_nothing_is_learned_from_a_teacher_who_did_not_see_the_picture(kind):
    recipe = get_recipe("finetune", [f"distillation={kind}", "cache_teacher=true", "teacher=x"])
    known = torch.tensor([[torch.nan, torch.nan], [2.0, -2.0]])
    objective = classification.ClassificationObjective(recipe, torch.device("cpu"), object(), known)
    logits = torch.tensor([[0.5, 0.0], [0.5, 0.0]], requires_grad=True)
    objective._distil(torch.tensor(0.0), logits, logits, torch.tensor([0, 1])).backward()
    assert logits.grad[0].abs().max() == 0 < logits.grad[1].abs().max()
    assert objective._distil(torch.tensor(0.5), logits, logits, torch.tensor([0, 0])) == 0.5


def test_logits_that_are_not_finite_have_no_accuracy(image_folder, tmp_path):
    model = SwiftFormerForImageClassification.from_variant("xs", num_labels=2)
    next(model.parameters()).data.fill_(torch.nan)
    model.preprocessing = Preprocessing(size=(32, 32))
    with pytest.raises(FloatingPointError, match="expected finite logits, found others"):
        evaluate_reference(model, str(image_folder), workers=0)


def test_one_good_state_stays_behind_the_last(image_folder, tmp_path):
    for keep in (2, 3):
        output = tmp_path / str(keep)
        run(image_folder, output, save_minutes=0, keep_states=keep)
        states = sorted((output / "states").glob("*.pt"))
        assert len(states) == keep and states[-1].name == "epoch-0002.pt"
        states[-1].write_bytes(b"damaged")
        assert read_state(output)["epochs"] == 1
        assert run(image_folder, output, resume=True)["epoch"] == 2


@pytest.mark.parametrize("folders", [("images", "annotations"), ("images", "labels"), ("JPEGImages", "Annotations")])
def test_a_forgotten_task_is_told(cli, tmp_path, folders):  # noqa: F811
    for name in folders:
        (tmp_path / "data" / name / "train").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / folders[0] / "train" / "a.png")
    code, _, stderr = cli("train", "--data", tmp_path / "data", "--recipe", "smoke", "--output", tmp_path / "run")
    assert code == 2 and "--task segment, detect or instances" in stderr and not (tmp_path / "run").exists()


def test_a_variant_beside_a_checkpoint_is_refused(cli, image_folder, tmp_path):  # noqa: F811
    options = ("--variant", "l3", "--model", "swiftformer-xs-cifar10", "--output", tmp_path / "run")
    code, _, stderr = cli("train", "--data", image_folder, *options)
    assert code == 2 and "--variant to train from scratch or --model, found both (l3 and swiftformer-xs" in stderr


def test_a_folder_above_the_classes_is_no_class(cli, image_folder, tmp_path):  # noqa: F811
    (tmp_path / "above").mkdir()
    image_folder.rename(tmp_path / "above" / "photos")
    options = ("--recipe", "smoke", "--output", tmp_path / "run")
    code, _, stderr = cli("train", "--data", tmp_path / "above", *options)
    assert code == 2 and "expected two or more classes to tell apart, found one (photos)" in stderr


def test_an_output_that_cannot_be_written_is_told_first(cli, image_folder, tmp_path):  # noqa: F811
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "run"):
        code, _, stderr = cli("train", "--data", image_folder, "--recipe", "smoke", "--output", output)
        assert code == 2 and "expected a folder, found a file" in stderr.splitlines()[-1]


def test_resuming_with_other_pictures_is_refused(image_folder, tmp_path):
    train, val = (open_source(image_folder, split) for split in ("train", "val"))
    loop.train(get_recipe("smoke", ["epochs=1"]), train, val, tmp_path / "run", device="cpu", workers=0)
    next((image_folder / "train" / "red").glob("*.png")).unlink()
    fewer = open_source(image_folder, "train")
    with pytest.raises(ValueError, match="expected the 48 training and 16 validation images .* found 47 and 16"):
        loop.train(get_recipe("smoke", ["epochs=1"]), fewer, val, tmp_path / "run", resume=True, workers=0)


def test_unreadable_validation_images_are_counted(image_folder, tmp_path):
    broken = sorted((image_folder / "val" / "red").glob("*.png"))[:3]
    for file in broken:
        file.write_bytes(b"no picture")
    for file in sorted((image_folder / "train" / "red").glob("*.png"))[:5]:  # neighbours
        file.write_bytes(b"no picture")
    train, val = (open_source(image_folder, split) for split in ("train", "val"))
    recipe = get_recipe("smoke", ["epochs=1", "batch_size=16"])
    metrics = loop.train(recipe, train, val, tmp_path / "run", device="cpu", workers=0)
    assert metrics["val_unreadable"] == 3 and metrics["unreadable"] == 5
    assert "on 13 validation images" in (tmp_path / "run" / "README.md").read_text()
    log = (tmp_path / "run" / "train.log").read_text()
    assert "48 training and 16 validation images of 2 classes" in log and str(broken[0]) in log


def test_single_pixels_need_batches_of_two(image_folder, tmp_path):
    train, val = (open_source(image_folder, split) for split in ("train", "val"))
    with pytest.raises(ValueError, match="expected 2 or more images at once where they have 32 pixels"):
        loop.train(get_recipe("smoke", ["batch_size=1"]), train, val, tmp_path / "run", device="cpu", workers=0)


@pytest.mark.parametrize("failing", ["state", "weights"])
def test_a_full_disk_is_told_with_what_is_left(image_folder, tmp_path, monkeypatch, failing):
    def full(*arguments, **options):
        raise {
            "state": OSError(errno.ENOSPC, "No space left on device"),
            "weights": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        }[failing]

    train, val = (open_source(image_folder, split) for split in ("train", "val"))
    monkeypatch.setattr(*{"state": (loop, "write_state"), "weights": (safetensors.torch, "save_file")}[failing], full)
    left = "run holds no state to resume yet" if failing == "state" else "the last state stays in .*run, for --resume"
    with pytest.raises(OSError, match=f"run: no space left to write to; .*{left}"):
        loop.train(get_recipe("smoke"), train, val, tmp_path / "run", device="cpu", workers=0)


def test_optimizers_of_the_second_order_are_refused(image_folder, tmp_path):
    train, val = (open_source(image_folder, split) for split in ("train", "val"))
    recipe = get_recipe("smoke", ["optimizer=adahessian"])
    with pytest.raises(ValueError, match="needs no second derivatives, found adahessian"):
        loop.train(recipe, train, val, tmp_path / "run", device="cpu", workers=0)


def test_two_processes_do_not_train_in_one_folder(image_folder, tmp_path):
    train, val = (open_source(image_folder, split) for split in ("train", "val"))
    recipe, run = get_recipe("smoke", ["epochs=1"]), tmp_path / "run"
    loop.train(recipe, train, val, run, device="cpu", workers=0)
    metrics = (run / "metrics.jsonl").read_text()
    code = (
        "import sys\nfrom swiftformer.train.run_log import RunLog\n"
        "with RunLog(sys.argv[1], {}, epochs_done=1):\n    print('has it', flush=True)\n    sys.stdin.readline()"
    )
    with subprocess.Popen([sys.executable, "-c", code, run], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout.readline() == "has it\n"
        with pytest.raises(ValueError, match="run: another process trains in this folder"):
            loop.train(recipe, train, val, run, device="cpu", workers=0, resume=True)
        other.communicate("\n")
    assert (run / "metrics.jsonl").read_text() == metrics
    loop.train(recipe, train, val, run, device="cpu", workers=0, resume=True)
