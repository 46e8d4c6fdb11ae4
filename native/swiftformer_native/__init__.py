"""Fused SwiftFormer networks on the CPU, computed depth first. See `Network`."""

from swiftformer_native._core import Network, supported

__all__ = ["Network", "supported"]
