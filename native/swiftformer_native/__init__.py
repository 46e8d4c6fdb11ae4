"""Fused SwiftFormer networks on the CPU, computed depth first. See `Network`."""

from swiftformer_native._core import Network, built, product_limit, supported, training

__all__ = ["Network", "built", "product_limit", "supported", "training"]
