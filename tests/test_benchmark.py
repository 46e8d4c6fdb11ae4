"""The benchmark on small settings: what it measures, that peers agree, and what it says of itself."""

import dataclasses
import itertools
import json
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from swiftformer.attention import SelfAttention
from swiftformer.benchmark import latency, layers
from swiftformer.benchmark.attention import peak, run_attention_benchmark, slopes
from swiftformer.benchmark.candidates import CANDIDATES, Case, torch_call
from swiftformer.benchmark.footprint import footprint
from swiftformer.benchmark.latency import run_benchmark, summary, time_calls
from swiftformer.benchmark.layers import profile_layers
from swiftformer.benchmark.peers import against_peers
from swiftformer.benchmark.report import benchmark_table, plot_benchmark
from swiftformer.deploy import fuse
from swiftformer.detection import SwiftFormerForObjectDetection
from test_cli import cli  # noqa: F401
from test_detection import detector


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
        [(64, 64)],
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
        if "error" in row:  # of a processor that has no bf16
            assert precision == "bf16" and row["error"] == "float32 was computed instead"
            continue
        assert row["difference"] < (1e-4 if precision == "fp32" else 0.15)
        assert row["median_ms"] > 0 and 0 < row["p95_ms"] <= row["p99_ms"] and row["calls"] >= 2
        assert row["images_per_second"] == pytest.approx(2000 / row["median_ms"]) and row["size"] == [64, 64]
        assert len(row["rounds_ms"]) == options["rounds"]
    assert result["machine"]["cores"] == result["machine"]["threads"] >= 1 and result["not_installed"] == []
    assert result["machine"]["torch"] == torch.__version__.split("+")[0]


QUICK = {"rounds": 1, "seconds": 0.01, "footprints": False}


def test_one_that_computes_something_else_is_an_error_and_costs_no_other(monkeypatch, tmp_path, caplog):
    wrong = dataclasses.replace(
        CANDIDATES[0], engine="wrong", build=lambda case: lambda number=0: np.ones((1, 1000), "f")
    )
    monkeypatch.setattr(latency, "CANDIDATES", [wrong, CANDIDATES[0]])
    result = run_benchmark(["xs"], [1], [(64, 64), (32, 96)], **QUICK)
    message = "expected a relative difference of at most 0.001 from the model, found"
    assert [message in row.get("error", "") for row in result["rows"]] == [False, True, False, True]
    assert [row["size"] for row in result["rows"]] == [[64, 64], [64, 64], [32, 96], [32, 96]]
    assert "xs, batch 1, 32x96: swiftformer in wrong, fp32 fails (expected a relative" in caplog.text
    monkeypatch.setattr(latency, "CANDIDATES", [wrong])
    result = run_benchmark(["xs"], [1], [(64, 64)], **QUICK)
    benchmark_table(result)
    plot_benchmark(result, tmp_path / "plot.png")
    assert len(result["rows"]) == 1 and result["against_peers"] == [] and not (tmp_path / "plot.png").exists()


@pytest.mark.parametrize("batch", [1, 4])
def test_one_that_ignores_its_pictures_is_refused(monkeypatch, batch):
    """Even with the best answer that does so, in every precision; a batch has as little as one picture."""

    def build(case):
        answer = case.expected(CANDIDATES[0]).mean(axis=0, keepdims=True)
        return lambda number=0: np.repeat(answer, batch, axis=0)

    blind = [
        dataclasses.replace(CANDIDATES[0], precision=precision, build=build) for precision in ("fp32", "bf16", "int8")
    ]
    monkeypatch.setattr(latency, "CANDIDATES", blind)
    result = run_benchmark(["xs"], [batch], [(64, 64)], **QUICK)
    assert ["from the model, found 1" in row["error"] for row in result["rows"]] == [True] * 3


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_every_batch_of_pictures_is_checked(batch):
    """All photographs are in the batches; one that is right about the first batch alone is not enough."""
    case = Case("xs", batch, (32, 32), None, "cpu", None)
    every = np.concatenate([pixels.numpy() for pixels in case.batches])
    assert len(every) == {1: 9, 4: 12, 16: 16}[batch] and np.array_equal(every[:9], case.images)
    assert np.array_equal(case.pixels.numpy(), every[:batch]) and np.array_equal(every[9:], every[: len(every) - 9])
    expected = case.expected(CANDIDATES[0])
    assert latency._agreeing(expected, expected, "fp32") == 0
    if batch < 9:
        wrong = expected.copy()
        wrong[batch:] = expected[:1]
        with pytest.raises(ValueError, match="expected a relative difference"):
            latency._agreeing(wrong, expected, "int8")
    with pytest.raises(ValueError, match="found nan"):
        latency._agreeing(expected * np.nan, expected, "int8")


@pytest.mark.parametrize("form", ["l2", "uniform"])
def test_random_weights_let_everything_be_seen(form):
    """Logits that differ from picture to picture as much as they are large, and from a model without a branch."""
    case = Case("xs", 9, (64, 64), None, "cpu", None)
    net = case.model(form)
    with torch.inference_mode():
        logits = net(case.pixels).logits
        apart = logits - logits.mean(dim=0)
        assert apart.abs().max() > 0.5 * logits.abs().max()
        for name, parameter in net.named_parameters():
            if name.endswith("layer_scale_1") or name.endswith("network.0.blocks.0.layer_scale"):
                before = parameter.clone()
                parameter.zero_()
                changed = net(case.pixels).logits - logits
                assert changed.abs().max() > 0.05 * logits.abs().max(), name
                parameter.copy_(before)


def test_a_plot_of_many_cells_is_a_grid(tmp_path):
    rows = [
        {"implementation": name, "engine": "torch", "precision": "fp32", "median_ms": 1.0, "size": [224, 224]}
        | {"variant": variant, "batch": batch}
        for name in ("swiftformer", "timm")
        for variant in ("xs", "s", "l1", "l3")
        for batch in (1, 16)
    ]
    plot_benchmark({"rows": rows}, tmp_path / "plot.png")
    width, height = Image.open(tmp_path / "plot.png").size
    assert width < 2000 and height < 2000


def compiled_candidate(dtype, graphs):
    """Compiled by dynamo alone, which is quick; `graphs` grows by what was compiled."""

    def build(case):
        with pytest.MonkeyPatch.context() as patch:
            backend = lambda graph, inputs: graphs.append(case.batch) or graph  # noqa: E731
            patch.setattr(torch, "compile", partial(torch.compile, backend=backend))
            return torch_call(fuse(case.model()), case, dtype, True, "default")

    names = {torch.float32: "fp32", torch.bfloat16: "bf16"}
    return dataclasses.replace(CANDIDATES[0], engine="torch-compile", precision=names[dtype], build=build)


@pytest.mark.exhaustive
def test_compiled_candidates_are_compiled_in_every_cell(monkeypatch):
    """Dynamo runs a function eagerly beyond a limit of compilations, and only logs that."""
    graphs = []
    monkeypatch.setattr(latency, "CANDIDATES", [compiled_candidate(torch.float32, graphs)])
    monkeypatch.setattr(latency, "footprint", lambda *_: pytest.fail("compiled once more"))
    with torch._dynamo.config.patch(recompile_limit=1):
        result = run_benchmark(["xs"], [1, 2, 3], [(32, 32)], **QUICK | {"footprints": True})
        assert graphs == [1, 2, 3] and not any("error" in row for row in result["rows"])
        monkeypatch.setattr(
            latency, "CANDIDATES", [compiled_candidate(t, graphs) for t in (torch.float32, torch.bfloat16)]
        )
        result = run_benchmark(["xs"], [1], [(32, 32)], **QUICK)
    assert [row["precision"] for row in result["rows"] if "error" in row] == ["bf16"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_all_are_compiled_in_the_same_ways(device):
    found = {}
    for candidate in CANDIDATES:
        if candidate.compiled and device in candidate.devices:
            found.setdefault(candidate.implementation, set()).add((candidate.engine, candidate.precision))
    engines = ["torch-compile frozen"] if device == "cpu" else ["torch-compile", "torch-cudagraphs"]
    ways = {(engine, precision) for engine in engines for precision in ("fp32", "bf16")}
    ways |= {("torch max-autotune", "bf16")} if device == "cuda" else set()
    assert found == {"swiftformer": ways, "timm": ways, "transformers": ways}


def test_every_engine_of_a_cpu_is_there():
    found = {(c.engine, c.precision) for c in CANDIDATES if c.implementation == "swiftformer" and "cpu" in c.devices}
    assert found >= {(name, p) for name in ("onnxruntime", "executorch", "litert") for p in ("fp32", "int8")}
    assert found >= {(name, p) for name in ("native", "openvino") for p in ("fp32", "bf16", "int8")}


@pytest.mark.exhaustive
@pytest.mark.parametrize("engine", ["onnxruntime", "executorch", "litert"])
def test_engines_of_phones(engine):
    pytest.importorskip({"litert": "litert_torch"}.get(engine, engine))
    options = {"implementations": ["swiftformer"], "engines": [engine]}
    result = run_benchmark(["xs"], [2], [(64, 64)], **options, **QUICK | {"footprints": True})
    assert [row["precision"] for row in result["rows"]] == ["fp32", "int8"]
    for row in result["rows"]:
        assert row["median_ms"] > 0 and row["load_seconds"] > 0 and "error" not in row
        assert row["difference"] < {"fp32": 1e-4, "int8": latency.AGREEMENT["int8"] / 2}[row["precision"]]


def row_of(implementation, engine, precision, median_ms, **fields):
    row = {"implementation": implementation, "engine": engine, "precision": precision, "median_ms": median_ms}
    row |= {"rounds_ms": [median_ms] * 3, "difference": 0.25 if precision == "int8" else 1e-6}
    return row | {"variant": "xs", "batch": 1, "size": [224, 224]} | fields


def test_against_peers(capsys):
    rows = [
        row_of("swiftformer", "native", "fp32", 8.0),
        row_of("swiftformer", "native", "int8", 4.0),
        row_of("timm", "openvino", "fp32", 10.0),
        row_of("timm", "openvino", "int8", 6.0),
        row_of("transformers", "torch", "fp32", 20.0),
        row_of("transformers", "torch channels_last", "fp32", 16.0),
        row_of("swiftformer", "native", "fp32", 8.0, batch=16),
        {**row_of("timm", "openvino", "fp32", 1.0), "error": "it fails"},
    ]
    first, second = against_peers(rows)
    assert [first[name]["ratio"] for name in ("float32", "any_precision", "transformers_eager")] == [1.25, 1.5, 2.5]
    assert first["any_precision"]["peer"] == "timm openvino int8" and first["float32"]["ours"] == "native fp32"
    assert (second["batch"], second["float32"], second["transformers_eager"]) == (16, None, None)
    assert first["any_precision"]["peer_difference"] == 0.25 and first["bf16"] is None
    measured = {"p95_ms": 77.0, "p99_ms": 99.0, "images_per_second": 1.0, "calls": 20}
    result = {"rows": [row | measured for row in rows], "against_peers": [first, second]}
    benchmark_table(result | {"not_installed": ["timm in onnxruntime, fp32"]})
    out = capsys.readouterr().out
    assert "1.25x (1.25 to 1.25)" in out and "timm openvino fp32" in out.split("times as fast as the peers")[1]
    assert "77.00" in out and "99.00" not in out  # of 20 calls
    assert out.splitlines()[-2:] == [
        "xs, batch 1, 224x224: timm openvino fp32 fails (it fails)",
        "not installed: timm in onnxruntime, fp32",
    ]


def test_rounds_are_compared_one_by_one():
    """A slow moment of the machine hits both in the same round, and medians of different rounds."""
    ours = row_of("swiftformer", "native", "fp32", 4.0, rounds_ms=[2.0, 4.0, 4.0, 2.0, 2.0])
    peer = row_of("timm", "openvino", "fp32", 3.0, rounds_ms=[3.0, 6.0, 8.0, 3.0, 2.5])
    (found,) = against_peers([ours, peer])
    assert found["float32"]["ratio"] == 1.5 and found["float32"]["ratio_quartiles"] == [1.5, 1.5]
    assert (found["float32"]["ours_ms"], found["float32"]["peer_ms"]) == (4.0, 3.0)


def test_a_candidate_that_fails_later_costs_no_other(monkeypatch, caplog):
    """Prepared and compared, in its second round."""
    torchs = next(c for c in CANDIDATES if str(c) == "swiftformer in torch, fp32")
    calls = []

    def build(case):
        call = torchs.build(case)

        def failing(*arguments):
            calls.append(1)
            if len(calls) > 14:
                raise MemoryError("no room")
            return call(*arguments)

        return failing

    monkeypatch.setattr(latency, "CANDIDATES", [dataclasses.replace(torchs, engine="late", build=build), torchs])
    result = run_benchmark(["xs"], [1], [(32, 32)], rounds=4, seconds=0.001, footprints=False)
    late, whole = result["rows"]
    assert late["error"] == "no room" and "median_ms" not in late and whole["calls"] >= 8
    assert "swiftformer in late, fp32 fails (no room)" in caplog.text


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
    result = run_benchmark(["xs"], [2], [(64, 64)], **QUICK)
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
    with pytest.raises(ValueError, match="expected a candidate that runs on cpu, found none of timm, torch-compile"):
        run_benchmark(["xs"], [1], implementations=["timm"], engines=["torch-compile"])
    with pytest.raises(ValueError, match="unknown variant 'zz'"):
        run_benchmark(["xs", "zz"])
    with pytest.raises(ValueError, match="size: expected at least 32 pixels, found 5x5"):
        run_benchmark(["xs"], sizes=[(5, 5)])
    with pytest.raises(ValueError, match="implementations: expected some of swiftformer, timm, .*, found keras"):
        run_benchmark(["xs"], [1], implementations=["keras"])
    with pytest.raises(ValueError, match="batches: expected at least one, found none"):
        run_benchmark(["xs"], [])
    assert len({str(candidate) for candidate in CANDIDATES}) == len(CANDIDATES)


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(latency, "CANDIDATES", [dataclasses.replace(CANDIDATES[0], needs=("swift_keras",))])
    with pytest.raises(ValueError, match="one of these packages for what was asked for, found none: swift_keras"):
        run_benchmark(["xs"], [1])
    monkeypatch.setattr(latency, "CANDIDATES", [*latency.CANDIDATES, CANDIDATES[0]])
    result = run_benchmark(["xs", "xs"], [1, 1], [(32, 32)] * 2, **QUICK)
    assert result["not_installed"] == ["swiftformer in torch, fp32"] and len(result["rows"]) == 1  # of the same cell


rounds_of_calls = st.lists(st.lists(st.floats(1e-4, 10), min_size=2, max_size=20), min_size=1, max_size=9)


@given(rounds_of_calls, st.integers(1, 64))
def test_summary(by_round, batch):
    found = summary(by_round, batch)
    median = np.median([np.median(calls) for calls in by_round])
    assert found["median_ms"] == pytest.approx(1e3 * median) == pytest.approx(np.median(found["rounds_ms"]))
    assert found["images_per_second"] == pytest.approx(batch / median)
    assert found["p95_ms"] <= found["p99_ms"] <= 1e3 * max(map(max, by_round)) + 1e-6
    assert found["calls"] == sum(map(len, by_round))


def test_a_slow_moment_counts_as_much_as_a_quick_one():
    """Though it has fewer calls."""
    assert summary([[0.1] * 30, [0.3] * 10, [0.3] * 10], 1)["median_ms"] == 300


def test_time_calls_counts_no_warm_up():
    calls = []
    assert len(time_calls(lambda: calls.append(1), 0)) == 2 and len(calls) == 3


def test_attention():
    result = run_attention_benchmark((64, 1024, 2048), 16, rounds=1, seconds=0.001)
    rows = {(row["module"], row["tokens"]): row for row in result["rows"]}
    assert len(rows) == 12 and set(result["slopes"]) == {"self", "transposed", "separable", "additive"}
    # Bytes are exact where time is not: the additive module takes them in proportion to the tokens.
    assert rows["additive", 2048]["peak_mb"] == pytest.approx(2 * rows["additive", 1024]["peak_mb"], rel=0.01)


class AllPairs(torch.nn.Module):
    """Holds a map of all pairs of tokens, then two of them, and ends with the tokens alone."""

    def forward(self, x):
        pairs = x @ x.transpose(1, 2)
        return pairs.softmax(dim=-1) @ x


@torch.inference_mode()
def test_memory_by_hand():
    """The most that is held at a time; what is given back before is not counted again."""
    x = torch.zeros(1, 128, 16)
    assert peak(torch.nn.Linear(16, 48), x) == 128 * 48 * 4
    assert peak(torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(5))), x) == 2 * 128 * 16 * 4
    assert peak(AllPairs(), x) == 2 * 128 * 128 * 4 + 128 * 16 * 4
    assert peak(SelfAttention(16), x) >= 128 * (48 + 16) * 4  # what the kernel takes inside comes on top


@pytest.mark.gpu
@torch.inference_mode()
def test_memory_of_a_gpu():
    x = torch.zeros(1, 1024, 16, device="cuda")
    assert 2 * 1024 * 1024 * 4 <= peak(AllPairs(), x) < 3 * 1024 * 1024 * 4 + 2**25  # of a workspace


@given(st.floats(0.5, 3))
def test_slopes(power):
    rows = [{"module": "m", "tokens": n, "median_ms": 3 * n**power} for n in (64, 1024, 4096, 16384)]
    assert slopes(rows) == {"m": pytest.approx(power)}


def test_layers_that_run_on_several_maps_have_their_sum(monkeypatch):
    """Every call takes a second of this clock."""
    ticks = itertools.count()
    monkeypatch.setattr(layers, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    net = fuse(detector(SwiftFormerForObjectDetection))
    rows = {row["layer"]: row["median_ms"] for row in profile_layers(net, size=(64, 64), calls=5)["rows"]}
    (once,) = (found for name, found in rows.items() if name == "stem.0")
    shared = [found for name, found in rows.items() if "rpn_head" in name]
    assert once == 1e3 and shared and min(shared) == 5e3
    with pytest.raises(ValueError, match="batch: expected 1 for this detector, which takes one picture at a time"):
        profile_layers(net, batch=2)


def test_command_line(cli, tmp_path):  # noqa: F811
    options = ["--variants", "xs", "--size", 64, "--batch", "1", "--rounds", 1, "--engines", "torch"]
    options += ["--no-footprints"]
    code, out, err = cli("benchmark", *options, "--output", tmp_path / "r", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert {row["implementation"] for row in document["rows"]} == {"swiftformer", "timm", "transformers"}
    assert json.loads((tmp_path / "r" / "results.json").read_text()) == document
    assert (tmp_path / "r" / "plot.png").stat().st_size > 5000
    tables = (tmp_path / "r" / "results.md").read_text()
    assert "| XS, 1, 64x64 |" in tables and "| swiftformer torch | fp32 |" in tables and "torch fp32 | " in tables
    code, out, _ = cli("benchmark", *options, "--implementations", "swiftformer")
    assert code == 0 and "median ms" in out and "swiftformer torch" in out
    code, out, _ = cli("benchmark", "attention", "--tokens", "1024,2048", "--rounds", 1, "--output", tmp_path / "a")
    assert code == 0 and "slope" in out and (tmp_path / "a" / "plot.png").stat().st_size > 5000
    code, out, _ = cli("benchmark", "layers", "xs", "--size", 64)
    assert code == 0 and "layers.0.0.expand" in out and "DeployAttention" in out
    threads = torch.get_num_threads()
    code, _, err = cli("benchmark", "attention", "--tokens", "64", "--rounds", 1, "--threads", threads)
    assert code == 0, err


def test_what_transformers_says_of_itself_is_no_result():
    """Where its classes are registered anew, it prints that a docstring lacks something as it is imported."""
    code = (
        "from pathlib import Path; import swiftformer; swiftformer.register()\n"
        "from swiftformer.benchmark.candidates import Case\n"
        "Case('xs', 1, (32, 32), 1, 'cpu', Path()).peer('transformers')"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == ""


def test_candidates_that_all_fail(cli, tmp_path, monkeypatch):  # noqa: F811
    """Their errors are saved and printed, and the exit code tells."""
    broken = dataclasses.replace(CANDIDATES[0], build=lambda case: 1 / 0)
    monkeypatch.setattr(latency, "CANDIDATES", [broken])
    options = ["--size", 32, "--rounds", 1, "--no-footprints"]
    code, out, err = cli("benchmark", *options, "--batch", "1,2", "--output", tmp_path / "r", "--json")
    assert code == 1 and err.splitlines()[-1] == "error: expected a candidate that can be timed, found 2 that fail"
    assert [row["error"] for row in json.loads(out)["rows"]] == ["division by zero"] * 2
    assert json.loads((tmp_path / "r" / "results.json").read_text()) == json.loads(out)
    monkeypatch.setattr(latency, "CANDIDATES", [broken, CANDIDATES[0]])
    assert cli("benchmark", *options, "--batch", 1)[0] == 0


def test_bad_options(cli, tmp_path, monkeypatch):  # noqa: F811
    """Each in one line, before anything is measured."""
    monkeypatch.setattr(latency, "_measure", lambda *_: pytest.fail("measured"))
    (tmp_path / "file").write_text("")
    device = "device: expected one that this machine has, found 'cuda:7'"
    for options, message in [
        (["--batch", "none"], "batch: expected a number"),
        (["--batch", ","], "batches: expected at least one, found none"),
        (["--threads", 100_000], "threads: expected a number from 1 to 1024, found 100000"),
        (["attention", "--threads", 100_000], "threads: expected a number from 1 to 1024, found 100000"),
        (["--size", "224,big"], "size: expected pixels such as 224 or 480x640, found 'big'"),
        (["--device", "cuda:7"], device),
        (["attention", "--device", "cuda:7"], device),
        (["attention", "--tokens", "64,0"], "tokens: expected a number of tokens, found '0'"),
        (["layers", "--device", "cuda:7"], device),
        (
            ["--device", "cuda", "--no-footprints", "layers", "xs"],
            "benchmark: expected the options of layers behind its name, found --device, --no-footprints before it",
        ),
        (["--rounds", 10, "attention"], "found --rounds before it"),
        (["--json", "attention", "--tokens", "64"], "found --json before it"),
        (["--output", tmp_path / "file"], "file: expected a folder, found a file"),
        (["attention", "--output", tmp_path / "file" / "more"], "file: expected a folder, found a file"),
    ]:
        code, out, err = cli("benchmark", *options)
        assert (code, out) == (2, "") and message in err and err.count("\n") == 1
