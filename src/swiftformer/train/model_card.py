"""The card of a trained model: a README.md that the hub understands, written from what the run knows."""

from __future__ import annotations

import os
import platform
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import swiftformer
from swiftformer.files import atomic_file
from swiftformer.train.dense_recipe import DetectionRecipe, InstanceRecipe, SegmentationRecipe
from swiftformer.train.recipe import Recipe
from swiftformer.variants import VARIANTS

RESULTS = {  # our name: the hub's name of the metric, and how a person calls it
    "top1": ("accuracy", "top-1 accuracy"),
    "top5": ("top_5_accuracy", "top-5 accuracy"),
    "calibration_error": ("expected_calibration_error", "calibration error"),
    "miou": ("mean_iou", "mean intersection over union"),
    "pixel_accuracy": ("accuracy", "pixel accuracy"),
    "mean_accuracy": ("mean_accuracy", "mean accuracy of the classes"),
    "mask_AP": ("mask_ap", "mask AP"),
    "mask_AP50": ("mask_ap50", "mask AP50"),
    "mask_AP75": ("mask_ap75", "mask AP75"),
    "AP": ("box_ap", "box AP"),
    "AP50": ("box_ap50", "box AP50"),
    "AP75": ("box_ap75", "box AP75"),
}
MAIN_FIELDS = ["epochs", "batch_size", "total_batch_size", "lr", "optimizer", "weight_decay", "image_size", "precision"]
MAX_CLASSES = 50


@dataclass(frozen=True)
class Wording:
    """How a card speaks of a task.

    Attributes:
        pipeline: the hub's name of the task.
        kind: of model.
        best: what the best epoch is best in.
        verb: of the command line.
        code: lines of Python that use the model.
        limits: what to know of its answers.
    """

    pipeline: str
    kind: str
    best: str
    verb: str
    code: tuple[str, ...]
    limits: str


DETECT = (
    'for picture in swiftformer.detect("picture.jpg", model="best"):',
    "    print(picture.objects())",
)
WORDINGS = {
    "classify": Wording(
        "image-classification",
        "an image classifier",
        "top-1 accuracy",
        "classify",
        (
            'for picture in swiftformer.classify("picture.jpg", model="best"):',
            "    for prediction in picture.predictions:",
            "        print(prediction.label, prediction.probability)",
        ),
        "Whatever it is shown, it answers with one of them.",
    ),
    "segment": Wording(
        "image-segmentation",
        "a semantic segmenter",
        "mean intersection over union",
        "segment",
        (
            'for picture in swiftformer.segment("picture.jpg", model="best"):',
            "    print(picture.mask.shape, picture.classes)",
        ),
        "Every pixel gets one of them, whatever it shows.",
    ),
    "detect": Wording(
        "object-detection",
        "an object detector",
        "average precision of its boxes",
        "detect",
        DETECT,
        "Objects of other kinds are overlooked, or taken for one of them.",
    ),
    "instances": Wording(
        "image-segmentation",
        "an instance segmenter",
        "average precision of its masks",
        "detect",
        DETECT,
        "Objects of other kinds are overlooked, or taken for one of them.",
    ),
}
DEFAULTS = {"classify": Recipe, "segment": SegmentationRecipe, "detect": DetectionRecipe, "instances": InstanceRecipe}
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
PICTURES = {"curves.png": "Loss, quality and learning rate", "confusion.png": "Confusion matrix"}


def write_model_card(
    output: Path,
    *,
    recipe: dict[str, Any],
    metrics: dict[str, float],
    model_name: str,
    data: str,
    classes: list[str],
    train_images: int,
    val_images: int,
    command: str | None,
    started_from: str | None,
    world_size: int,
    seconds: float,
    last_epoch: int | None = None,
    device: str | None = None,
    task: str = "classify",
) -> Path:
    """Write `output/README.md` and return its path. Of paths only the last part is told.

    Args:
        output: the run folder; `curves.png` and `confusion.png` are shown where they are in it.
        recipe: the fields of the task's recipe.
        metrics: of the weights in `best/`, those of `RESULTS` in percent, and their `epoch`.
        model_name: a variant (`xs`), or another name.
        data: the data set: a path, or a name on the hub; empty where nobody said.
        command: the command line, where there was one.
        started_from: reference of the checkpoint that training began with; None for random weights.
        world_size: number of processes.
        seconds: duration of the run.
        last_epoch: number of the epoch that `last/` is from.
        device: type of the device, such as `cpu`; None for CUDA if there is one.
        task: a key of `WORDINGS`.

    Raises:
        OSError: it cannot be written; an earlier card is then as it was.
    """
    data_name, wording = _data_name(data), WORDINGS[task]
    if model_name.lower() in VARIANTS:
        model_name = f"SwiftFormer-{model_name.upper()}"
    named = ", ".join(map(_escape, classes[:MAX_CLASSES]))
    if len(classes) > MAX_CLASSES:
        named += f" and {len(classes) - MAX_CLASSES} more"
    epoch = f", epoch {metrics['epoch']:g}" if "epoch" in metrics else ""
    origin = f"starting from {_text(started_from)}" if started_from else "from random weights"
    lines = [
        "---",
        _front_matter(metrics, model_name, data, data_name, started_from, wording.pipeline),
        "---",
        "",
        f"# {_text(model_name)}",
        "",
        f"{_text(model_name)}, {wording.kind} for {len(classes)} classes, trained on {_text(data_name)} with the "
        f"recipe below, {origin}.",
        "",
        "## Results",
        "",
        *_table(
            (f"on {val_images:,} validation images{epoch}", "%"),
            ((name, f"{metrics[key]:.2f}") for key, (_, name) in RESULTS.items() if key in metrics),
        ),
        "",
        "The weights in `best/` were chosen by these images, so that their accuracy on new ones may be lower.",
        "",
        *(line for file, title in PICTURES.items() if (output / file).exists() for line in (f"![{title}]({file})", "")),
        "## Use",
        "",
        f"`best/` holds the weights of the epoch with the best {wording.best}, which are those that were measured; "
        f"`last/` those of the last epoch{f', {last_epoch}' if last_epoch else ''}. In this folder:",
        "",
        "```console",
        f"$ swiftformer {wording.verb} --model best picture.jpg",
        "```",
        "",
        "```python",
        "import swiftformer",
        "",
        *wording.code,
        "```",
        "",
        f"The {len(classes)} classes: {named}. {wording.limits}",
        "",
        "## Training",
        "",
        f"- Data: {_text(data_name)}, {train_images:,} training images, {val_images:,} validation images.",
        f"- Hardware: {_text(_hardware(device, world_size))}.",
        f"- Versions: {_versions()}.",
        f"- Duration: {_duration(seconds)}.",
        *(["- Command:", "", "  ```console", f"  $ {_command(command)}", "  ```"] if command else []),
        "",
        "The recipe; fields that are not here have their default values.",
        "",
        *_table(("field", "value"), ((f"`{key}`", _value(value)) for key, value in _shown(recipe, task).items())),
    ]
    # Names of folders may hold bytes that are no text.
    content = _without_home("\n".join(lines) + "\n").encode("utf-8", "replace")
    path = output / "README.md"
    with atomic_file(path) as file:
        file.write_bytes(content)
    return path


def _front_matter(
    metrics: Mapping[str, float], model_name: str, data: str, data_name: str, origin: str | None, pipeline: str
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    dataset = data if _is_hub_name(data) else data_name
    results = [
        EvalResult(
            task_type=pipeline,
            dataset_type=dataset,
            dataset_name=data_name,
            dataset_split="validation",
            metric_type=kind,
            metric_name=name,
            metric_value=round(metrics[key] / 100, 6),
        )
        for key, (kind, name) in RESULTS.items()
        if key in metrics
    ]
    card = ModelCardData(
        library_name="swiftformer",
        pipeline_tag=pipeline,
        tags=["swiftformer", pipeline, "vision"],
        datasets=[data] if _is_hub_name(data) else None,
        base_model=origin if origin and _is_hub_name(origin) else None,
        model_name=_without_folders(model_name),
        eval_results=results or None,
    )
    return card.to_yaml()


def _is_hub_name(reference: str) -> bool:
    return HUB_NAME.fullmatch(reference) is not None and not Path(reference).exists()


def _data_name(data: str) -> str:
    if _is_hub_name(data):
        return data
    if not data:
        return "images"
    name = Path(data).name
    return (name if name not in ("", "..") else Path(data).resolve().name) or "images"


def _without_folders(text: str) -> str:
    """An absolute path, alone or behind `key=` or `kind:`, cut to its last part."""
    found = re.fullmatch(r"([^/~]*?[=:])?((?:/(?!/)|~|\.\./|[A-Za-z]:\\).*)", text, re.DOTALL)
    if found is None:
        return text
    last = re.split(r"[/\\]", found[2].rstrip("/\\"))[-1]
    return (found[1] or "") + (last or "/")


def _without_home(text: str) -> str:
    home = os.path.expanduser("~")  # noqa: PTH111 Path.home() raises where there is none
    return re.sub(re.escape(home) + r"(?![\w.-])", "~", text) if home.count("/") + home.count("\\") > 1 else text


def _command(command: str) -> str:
    try:
        words = shlex.split(command)
    except ValueError:  # a quotation mark that is not closed
        words = command.split()
    return shlex.join(_without_folders(word) for word in words).replace("\n", " ")


def _text(text: str) -> str:
    return _escape(_without_folders(text))


def _escape(text: str) -> str:
    """A line of Markdown that reads as `text` in a paragraph and in a table."""
    return re.sub(r"([\\`*_{}\[\]<>|#~&$])", r"\\\1", " ".join(text.split()))


def _table(header: tuple[str, str], rows: Iterable[tuple[str, str]]) -> list[str]:
    return [f"| {header[0]} | {header[1]} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def _shown(recipe: Mapping[str, Any], task: str) -> dict[str, Any]:
    defaults = asdict(DEFAULTS[task]())
    return {
        key: value
        for key, value in recipe.items()
        if key in MAIN_FIELDS or key not in defaults or _value(value) != _value(defaults[key])
    }


def _value(value: Any) -> str:
    if isinstance(value, tuple | list):  # JSON makes lists of tuples
        return ", ".join(map(_value, value)) or "none"
    return "none" if value is None or value == "" else _text(str(value))


def _versions() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm"))
    return f"swiftformer {swiftformer.__version__}, {packages}, Python {platform.python_version()}"


def _hardware(device: str | None, world_size: int) -> str:
    import torch

    kind = (device or ("cuda" if torch.cuda.is_available() else "cpu")).partition(":")[0]
    if kind == "cuda":
        return f"{world_size} x {torch.cuda.get_device_name(device)}"
    name = _processor() if kind == "cpu" else f"{kind}, {_processor()}"
    return f"{name}, {os.cpu_count()} cores" + (f", {world_size} processes" if world_size > 1 else "")


def _processor() -> str:
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
