"""Where a person watches a run from afar: TensorBoard, and Weights & Biases where it is installed."""

from __future__ import annotations

import netrc
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from swiftformer.files import atomic_file

PROJECT = "swiftformer"
Axis = Literal["epoch", "step"]


class Dashboard(Protocol):
    """What shows numbers over epochs (from 1) or steps (updates of the weights), and PNG files."""

    name: str

    def scalars(self, axis: Axis, place: int, values: dict[str, float]) -> None:
        """Show numbers at a place on an axis."""

    def image(self, tag: str, picture: Path, epoch: int) -> None:
        """Show a PNG at an epoch."""

    def close(self, failed: bool) -> None:
        """End; `failed` tells that the run did not come to its end."""


class TensorBoard:
    """Event files, written in the caller's thread, so that a full disk is noticed; never imports tensorflow.

    Epochs and steps are two runs: each begins with the order to forget what an earlier session wrote from there on,
    and that order holds for a whole run.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary, self._record_writer = event_pb2, summary_pb2.Summary, RecordWriter
        self._folders: dict[Axis, Path] = {"epoch": folder, "step": folder / "steps"}
        self._writers: dict[Axis, Any] = {}

    def scalars(self, axis: Axis, place: int, values: dict[str, float]) -> None:
        value = self._summary.Value
        self._add(axis, place, [value(tag=tag, simple_value=number) for tag, number in values.items()])

    def image(self, tag: str, picture: Path, epoch: int) -> None:
        from PIL import Image

        with Image.open(picture) as opened:
            width, height, channels = *opened.size, len(opened.getbands())
        image = self._summary.Image(
            width=width, height=height, colorspace=channels, encoded_image_string=picture.read_bytes()
        )
        self._add("epoch", epoch, [self._summary.Value(tag=tag, image=image)])

    def close(self, failed: bool) -> None:
        for writer in self._writers.values():
            writer.close()

    def _add(self, axis: Axis, place: int, values: list[Any]) -> None:
        event = self._event.Event
        if axis not in self._writers:
            folder = self._folders[axis]
            folder.mkdir(parents=True, exist_ok=True)
            # Readers take the files in the order of their names; two sessions may start within a second.
            name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
            self._writers[axis] = self._record_writer((folder / name).open("xb"))
            start = self._event.SessionLog(status=self._event.SessionLog.START)
            self._write(axis, event(file_version="brain.Event:2"), event(step=place, session_log=start))
        self._write(axis, event(step=place, summary=self._summary(value=values)))

    def _write(self, axis: Axis, *events: Any) -> None:
        for event in events:
            event.wall_time = time.time()
            self._writers[axis].write(event.SerializeToString())
        self._writers[axis].flush()


class WeightsAndBiases:
    """A run of W&B; made by `weights_and_biases`."""

    name = "Weights & Biases"

    def __init__(self, module: Any, run: Any) -> None:
        self._module, self._run = module, run
        for tags, axis in (("train/*", "epoch"), ("val/*", "epoch"), ("step/*", "step")):
            run.define_metric(tags, step_metric=axis)

    def scalars(self, axis: Axis, place: int, values: dict[str, float]) -> None:
        self._run.log(values | {axis: place})

    def image(self, tag: str, picture: Path, epoch: int) -> None:
        self._run.log({tag: self._module.Image(str(picture)), "epoch": epoch})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def weights_and_biases(output: Path, recipe: dict[str, Any]) -> WeightsAndBiases | None:
    """Start or go on with the W&B run of a folder; None where W&B is not installed or switched off."""
    if os.environ.get("WANDB_MODE") == "disabled":
        return None
    try:
        import wandb
    except ImportError:
        return None
    if not hasattr(wandb, "init"):  # a folder `wandb` that an earlier run left, taken for a package
        return None
    id_file = output / "wandb-id.txt"
    if not id_file.exists():
        with atomic_file(id_file) as file:
            file.write_text(secrets.token_hex(4) + "\n")
    run = wandb.init(
        project=PROJECT,
        name=output.resolve().name,
        id=id_file.read_text().strip(),
        resume="allow",
        config=recipe,
        dir=str(output),
        mode=None if os.environ.get("WANDB_MODE") or _has_wandb_key() else "offline",  # None: as W&B is set up
        settings={"console": "off"},  # its capture of the terminal breaks progress bars
    )
    return WeightsAndBiases(wandb, run)


def _has_wandb_key() -> bool:
    """Whether W&B can log in without asking, which it would do in the middle of a job."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    for name in [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]:
        try:
            if host in netrc.netrc(Path(name).expanduser()).hosts:
                return True
        except (OSError, ValueError, RuntimeError, netrc.NetrcParseError):
            continue
    return False
