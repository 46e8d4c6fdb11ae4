"""The released SwiftFormer variants and the numbers published for them (arXiv 2303.15446, tables 3 and 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """One row of the paper's table 4, and where its ImageNet-1k weights are published.

    Attributes:
        depths: blocks per stage; the last block of each stage is the one with attention.
        embed_dims: channels per stage.
        parameters: exact count with both heads and 1000 classes.
        gmacs: published multiply-accumulates of one 224x224 image, in units of 1e9.
        top1: published ImageNet-1k accuracy in percent.
        neural_engine_ms: published latency of one image on an iPhone 14's Neural Engine.
        a100_images_per_second: published throughput on an A100 at batch 128.
        hub_id: transformers checkpoint, March 2023 form.
        timm_id: timm checkpoint, July 2023 form.
    """

    name: str
    depths: tuple[int, ...]
    embed_dims: tuple[int, ...]
    parameters: int
    gmacs: float
    top1: float
    neural_engine_ms: float
    a100_images_per_second: int
    hub_id: str
    timm_id: str


VARIANTS: dict[str, Variant] = {
    "xs": Variant(
        name="xs",
        depths=(3, 3, 6, 4),
        embed_dims=(48, 56, 112, 220),
        parameters=3_475_360,
        gmacs=0.6,
        top1=75.7,
        neural_engine_ms=0.7,
        a100_images_per_second=6034,
        hub_id="MBZUAI/swiftformer-xs",
        timm_id="timm/swiftformer_xs.dist_in1k",
    ),
    "s": Variant(
        name="s",
        depths=(3, 3, 9, 6),
        embed_dims=(48, 64, 168, 224),
        parameters=6_092_128,
        gmacs=1.0,
        top1=78.5,
        neural_engine_ms=0.8,
        a100_images_per_second=5051,
        hub_id="MBZUAI/swiftformer-s",
        timm_id="timm/swiftformer_s.dist_in1k",
    ),
    "l1": Variant(
        name="l1",
        depths=(4, 3, 10, 5),
        embed_dims=(48, 96, 192, 384),
        parameters=12_057_920,
        gmacs=1.6,
        top1=80.9,
        neural_engine_ms=1.1,
        a100_images_per_second=4469,
        hub_id="MBZUAI/swiftformer-l1",
        timm_id="timm/swiftformer_l1.dist_in1k",
    ),
    "l3": Variant(
        name="l3",
        depths=(4, 4, 12, 6),
        embed_dims=(64, 128, 320, 512),
        parameters=28_494_736,
        gmacs=4.0,
        top1=83.0,
        neural_engine_ms=1.9,
        a100_images_per_second=2890,
        hub_id="MBZUAI/swiftformer-l3",
        timm_id="timm/swiftformer_l3.dist_in1k",
    ),
}


def get_variant(name: str) -> Variant:
    """Look a variant up by name (`xs`, `s`, `l1`, `l3`, in any case).

    Raises:
        ValueError: the name is not a variant.
    """
    try:
        return VARIANTS[name.lower()]
    except KeyError:
        raise ValueError(f"unknown variant {name!r}: expected one of {', '.join(VARIANTS)}") from None


def variant_of(depths: Sequence[int], embed_dims: Sequence[int]) -> Variant | None:
    """The variant with these depths and widths, if there is one."""
    wanted = (tuple(depths), tuple(embed_dims))
    return next((v for v in VARIANTS.values() if (v.depths, v.embed_dims) == wanted), None)
