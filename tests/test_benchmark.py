"""The benchmark on small settings: what it measures, that peers agree, and what it says of itself."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swiftformer.attention import SelfAttention
from swiftformer.benchmark import latency
from swiftformer.benchmark.attention import allocated, run_attention_benchmark, slopes
from swiftformer.benchmark.candidates import CANDIDATES, Case
from swiftformer.benchmark.footprint import footprint
from swiftformer.benchmark.latency import run_benchmark, summary, time_calls
from test_cli import cli  # noqa: F401


@pytest.mark.parametrize(
    ("implementations", "engines"),
    [
        (("swiftformer", "timm"), ("torch", "openvino")),
        pytest.param((), ("torch", "torch channels_last", "onnxruntime", "openvino"), marks=pytest.mark.exhaustive),
    ],
)
def test_every_peer_computes_the_same(implementations, engines):
    """Eager and exported candidates on XS; compiled ones differ by the engine alone."""
    pytest.importorskip("openvino")
    options = {"precisions": ("fp32", "bf16"), "rounds": 1, "seconds": 0.01, "footprints": False}
    saved = []
    result = run_benchmark(
        ["xs"],
        [2],
        (64, 64),
        implementations=implementations,
        engines=engines,
        save=lambda found: saved.append(len(found["rows"])),
        **options,
    )
    rows = {(r["implementation"], r["engine"], r["precision"]): r for r in result["rows"]}
    assert ("timm", "openvino", "bf16") in rows and ("swiftformer", "openvino", "fp32") in rows
    assert implementations or ("transformers", "onnxruntime", "fp32") in rows
    assert saved == [len(rows)]
    for (_, _, precision), row in rows.items():
        assert row["difference"] < (1e-4 if precision == "fp32" else 0.15)
        assert 0 < row["median_ms"] <= row["p95_ms"] <= row["p99_ms"] and row["calls"] >= 2
        assert row["images_per_second"] == pytest.approx(2000 / row["median_ms"]) and row["size"] == [64, 64]
    assert result["machine"]["cores"] >= 1 and result["machine"]["torch"] == torch.__version__.split("+")[0]


def test_a_peer_that_computes_something_else_is_refused(monkeypatch):
    monkeypatch.setitem(latency.AGREEMENT, "fp32", 0.0)
    with pytest.raises(ValueError, match="swiftformer in torch, fp32: expected a relative difference of at most 0"):
        run_benchmark(
            ["xs"],
            [1],
            (64, 64),
            implementations=["swiftformer"],
            engines=["torch"],
            rounds=1,
            seconds=0.01,
            footprints=False,
        )


@pytest.mark.exhaustive
def test_a_candidate_that_fails_costs_no_other(monkeypatch, caplog):
    """And int8 of a batch, compiled and frozen ones are what they say."""
    broken = dataclasses.replace(CANDIDATES[0], engine="openvino", build=lambda case: 1 / 0)
    wanted = [
        c
        for c in CANDIDATES
        if (c.implementation, c.engine, c.precision)
        in {("swiftformer", "openvino", "int8"), ("timm", "torch-compile frozen", "bf16"), ("timm", "openvino", "int8")}
    ]
    monkeypatch.setattr(latency, "CANDIDATES", [broken, *wanted])
    result = run_benchmark(["xs"], [2], (64, 64), rounds=1, seconds=0.01, footprints=False)
    assert [row.get("error") for row in result["rows"]] == [None, None, None, "division by zero"]
    assert "swiftformer in openvino, fp32 fails (division by zero)" in caplog.text
    assert torch._inductor.config.freezing is False


@pytest.mark.exhaustive
def test_footprint(tmp_path):
    """A runtime's process holds its own packages only."""
    pytest.importorskip("onnxruntime")
    found = {}
    for candidate in CANDIDATES:
        if candidate.implementation == "swiftformer" and candidate.engine in ("torch", "onnxruntime"):
            found[candidate.engine] = footprint(candidate, Case("xs", 1, (64, 64), None, "cpu", tmp_path))
    for row in found.values():
        assert 0 < row["load_seconds"] < row["start_seconds"] < 60 and row["memory_mb"] > 50
    assert found["onnxruntime"]["memory_mb"] < found["torch"]["memory_mb"] / 2
    broken = dataclasses.replace(CANDIDATES[0], file=lambda case: tmp_path / "none.onnx", engine="onnxruntime")
    with pytest.raises(RuntimeError, match=r"none.onnx"):
        footprint(broken, Case("xs", 1, (64, 64), None, "cpu", tmp_path))


def test_nothing_to_measure():
    with pytest.raises(ValueError, match="expected at least one candidate"):
        run_benchmark(["xs"], [1], implementations=["timm"], engines=["torch-cudagraphs"])
    with pytest.raises(ValueError, match="expected some of swiftformer, timm, transformers, found keras"):
        run_benchmark(["xs"], [1], implementations=["keras"])
    assert len({str(candidate) for candidate in CANDIDATES}) == len(CANDIDATES)


@given(st.lists(st.floats(1e-4, 10), min_size=1, max_size=50), st.integers(1, 64))
def test_summary(measured, batch):
    found = summary(measured, batch)
    assert found["median_ms"] == pytest.approx(1e3 * np.median(measured))
    assert found["images_per_second"] == pytest.approx(batch / np.median(measured))
    assert found["median_ms"] <= found["p95_ms"] <= found["p99_ms"] <= 1e3 * max(measured) + 1e-6


def test_time_calls_counts_no_warm_up():
    calls = []
    assert len(time_calls(lambda: calls.append(1), 0)) == 2 and len(calls) == 3


def test_attention():
    result = run_attention_benchmark((64, 1024, 2048), 16, rounds=1, seconds=0.001)
    rows = {(row["module"], row["tokens"]): row for row in result["rows"]}
    assert len(rows) == 12 and set(result["slopes"]) == {"self", "transposed", "separable", "additive"}
    # Memory is exact where time is not: the additive module allocates in proportion to the tokens.
    assert rows["additive", 2048]["memory_mb"] == pytest.approx(2 * rows["additive", 1024]["memory_mb"], rel=0.01)


def test_memory_by_hand():
    """Query, key and value in one map, and the output; what the kernel allocates inside comes on top."""
    x = torch.zeros(1, 128, 16)
    assert allocated(torch.nn.Linear(16, 48), x) == 128 * 48 * 4
    assert allocated(SelfAttention(16), x) >= 128 * (48 + 16 + 16) * 4


@given(st.floats(0.5, 3))
def test_slopes(power):
    rows = [{"module": "m", "tokens": n, "median_ms": 3 * n**power} for n in (64, 1024, 4096, 16384)]
    assert slopes(rows) == {"m": pytest.approx(power)}


def test_command_line(cli, tmp_path):  # noqa: F811
    options = ["--variants", "xs", "--size", 64, "--batch", "1", "--rounds", 1, "--engines", "torch"]
    options += ["--no-footprints"]
    code, out, err = cli("benchmark", *options, "--output", tmp_path / "r", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert {row["implementation"] for row in document["rows"]} == {"swiftformer", "timm", "transformers"}
    assert json.loads((tmp_path / "r" / "results.json").read_text()) == document
    assert (tmp_path / "r" / "plot.png").stat().st_size > 5000
    code, out, _ = cli("benchmark", *options, "--implementations", "swiftformer")
    assert code == 0 and "median ms" in out and "swiftformer torch" in out
    code, out, _ = cli("benchmark", "attention", "--tokens", "1024,2048", "--rounds", 1, "--output", tmp_path / "a")
    assert code == 0 and "slope" in out and (tmp_path / "a" / "plot.png").stat().st_size > 5000
    code, out, _ = cli("benchmark", "layers", "xs", "--size", 64)
    assert code == 0 and "layers.0.0.expand" in out and "DeployAttention" in out
    code, _, err = cli("benchmark", "--batch", "none")
    assert code == 2 and "batch: expected a number" in err
