"""Latency, memory and start-up of this project and its peers; attention modules; layers. See docs/benchmark.md."""
