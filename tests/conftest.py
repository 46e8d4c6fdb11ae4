"""What the tests share: small models with randomised statistics, real data where it lies beside the project."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of huggingface_hub: tests never touch the network
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before any import of torch: each core has a process of its own

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from swiftformer import SwiftFormerConfig, SwiftFormerForImageClassification

SHARED = Path(__file__).resolve().parents[2] / "shared"
TINY = {"depths": [2, 1, 2, 1], "embed_dims": [16, 24, 32, 48]}


@pytest.fixture(autouse=True, scope="session")
def _no_usage_data() -> None:
    """OpenVINO sends some when a test imports it."""
    with contextlib.suppress(ImportError):
        from openvino_telemetry.main import TelemetrySender

        TelemetrySender.send = lambda *arguments: None


def pytest_configure(config: pytest.Config) -> None:
    """Tests without the marker are of the CPU, also where there is a GPU: some compare bit for bit."""
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = "needs a CUDA GPU, and pytest -m gpu"
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason=reason))


def shared(*parts: str) -> Path:
    """A path under the data shared beside the project; the test is skipped where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)} in the shared folder beside the project")
    return path


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random statistics, affine terms and layer scales, so that nothing hides behind zeros, ones and 1e-5."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            noise = torch.rand(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise)
            elif name.endswith("running_mean") or name.endswith("bias"):
                tensor.copy_(0.4 * noise - 0.2)
            elif "layer_scale" in name:
                tensor.copy_(0.2 + 0.6 * noise)
            elif "norm" in name:
                tensor.copy_(0.5 + noise)
            elif tensor.ndim > 1 and not name.endswith("w_g"):
                fan_in = tensor[0].numel()
                tensor.copy_((2 * noise - 1) * (3 / fan_in) ** 0.5)
    return model


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    return ((found - expected).norm() / expected.norm()).item()


def tiny(**fields: object) -> SwiftFormerForImageClassification:
    """A small classifier in eval mode with randomised statistics."""
    config = SwiftFormerConfig(**({**TINY, "num_labels": 10} | fields))
    return randomize(SwiftFormerForImageClassification(config)).eval()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """What a test changes of the package's logger, such as a run that dies, does not reach the next one."""
    package = logging.getLogger("swiftformer")
    level, handlers = package.level, list(package.handlers)
    yield
    package.setLevel(level)
    package.handlers[:] = handlers


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """An ImageFolder with train/ and val/ trees of two classes, red and blue squares with noise."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8)):
        for name, channel in (("blue", 2), ("red", 0)):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 80, (40, 48, 3), dtype=np.uint8)
                pixels[:, :, channel] += 150
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture
def segmentation_folder(tmp_path: Path) -> Path:
    """`images/SPLIT` and `annotations/SPLIT`, 12 pictures to train on and 4 to validate on; three classes and void."""
    root = tmp_path / "segmentation"
    for split, count in (("train", 12), ("val", 4)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            pixels, mask = picture_with_mask(i)
            Image.fromarray(pixels).save(root / "images" / split / f"{i:02}.png")
            Image.fromarray(mask).save(root / "annotations" / split / f"{i:02}.png")
    return root


def picture_with_mask(seed: int = 0, height: int = 20, width: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Noise `(height, width, 3)`, and a mask of the classes 0, 1, 2 and void."""
    rng = np.random.default_rng(seed)
    mask = rng.choice([0, 1, 2, 255], size=(height, width)).astype(np.uint8)
    mask[0, :4] = 0, 1, 2, 255
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8), mask
