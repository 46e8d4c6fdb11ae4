"""From a segmentation model's scores to a class for every pixel, whole images or windows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from swiftformer.heads.semantic_fpn import upsampled
from swiftformer.sliding_windows import windows


def post_process_semantic_segmentation(
    outputs: Any, target_sizes: Sequence[tuple[int, int]] | Tensor | None = None
) -> list[Tensor]:
    """The class of every pixel, as transformers' image processors give it.

    Args:
        outputs: with `logits` `(B, num_labels, h, w)`.
        target_sizes: height and width wanted of each image; by default those of the logits.

    Returns:
        A map `(height, width)` of class indices for each image.

    Raises:
        ValueError: another number of sizes than of images.
    """
    logits: Tensor = outputs.logits
    if target_sizes is None:
        return list(logits.argmax(dim=1))
    sizes = target_sizes.tolist() if isinstance(target_sizes, Tensor) else target_sizes
    if len(sizes) != len(logits):
        raise ValueError(f"expected {len(logits)} target sizes, one for each image, found {len(sizes)}")
    return [upsampled(logits[i : i + 1], size)[0].argmax(dim=0) for i, size in enumerate(sizes)]


@torch.inference_mode()
def segment_logits(
    model: Callable[[Tensor], Any],
    pixels: Tensor,
    mode: str = "whole",
    window: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
) -> Tensor:
    """The scores of every class at every pixel, `(B, num_labels, H, W)` float32.

    Args:
        model: in eval mode; gives logits `(B, num_labels, h, w)` or an output that has them.
        pixels: `(B, num_channels, H, W)`, normalised.
        mode: `whole`, all of the images at once; or `slide`, windows that overlap, whose scores are averaged.
        window: height and width of the windows in pixels; images that are smaller are taken whole.
        stride: distance of the windows, at most their size; two thirds of it by default. Windows that would stand out
            are moved in, so that every pixel is covered.

    Raises:
        ValueError: another mode, or windows that are missing, or with gaps between them.
    """
    if mode == "whole":
        return _scores(model, pixels)
    if mode != "slide":
        raise ValueError(f"mode must be 'whole' or 'slide', found {mode!r}")
    if window is None:
        raise ValueError("expected a window of at least 1x1 pixels to slide, found None")
    height, width = pixels.shape[2:]
    total: Tensor | None = None
    count = torch.zeros(height, width, device=pixels.device)
    for place in windows((height, width), window, stride):
        scores = _scores(model, pixels[..., *place])
        if total is None:
            total = scores.new_zeros(*scores.shape[:2], height, width)
        total[..., *place] += scores
        count[place] += 1
    assert total is not None
    return total / count


def _scores(model: Callable[[Tensor], Any], pixels: Tensor) -> Tensor:
    output = model(pixels)
    return upsampled(getattr(output, "logits", output).float(), pixels.shape[2:])
