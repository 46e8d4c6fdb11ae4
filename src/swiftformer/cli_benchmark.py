"""The command line's `swiftformer benchmark ...`. Heavy imports sit inside the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from swiftformer.cli_options import (
    MODEL_HELP,
    AsJson,
    Threads,
    listed,
    parse_batch,
    parse_count,
    parse_size,
    print_json,
)

benchmark_app = typer.Typer(rich_markup_mode=None, help="Latency and throughput, side by side with the peers.")
Variants = Annotated[str, typer.Option(help="xs, s, l1, l3, with commas.")]
Size = Annotated[str, typer.Option(help="Pixels: 224, or 480x640 for height x width.")]
Output = Annotated[Optional[Path], typer.Option(help="Folder for results.json, a plot and tables.")]


@benchmark_app.callback(invoke_without_command=True)
def benchmark(
    context: typer.Context,
    variants: Variants = "xs",
    batch: Annotated[str, typer.Option(help="Images per call, with commas.")] = "1,16",
    size: Annotated[str, typer.Option(help="Pixels: 224, or 480x640 for height x width, with commas.")] = "224",
    implementations: Annotated[str, typer.Option(help="swiftformer, timm, transformers; all by default.")] = "",
    engines: Annotated[str, typer.Option(help="Such as native,openvino; all by default.")] = "",
    precisions: Annotated[str, typer.Option(help="fp32, bf16, int8; all by default.")] = "",
    threads: Threads = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of every candidate.")] = 10,
    footprints: Annotated[bool, typer.Option(help="Start-up and memory, each in a process of its own.")] = True,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Time this project and every peer that is installed, in turn, with random weights."""
    if context.invoked_subcommand is not None:
        expect_no_options(context)
        return
    from swiftformer.benchmark.latency import run_benchmark
    from swiftformer.benchmark.markdown import benchmark_markdown
    from swiftformer.benchmark.report import benchmark_table, plot_benchmark

    check_output(output)
    result = run_benchmark(
        [name.lower() for name in listed(variants)],
        [parse_batch(text) for text in listed(batch)],
        [parse_size(text) for text in listed(size)],
        implementations=listed(implementations),
        engines=listed(engines),
        precisions=listed(precisions),
        threads=threads,
        device=device,
        rounds=rounds,
        footprints=footprints,
        progress=lambda text: typer.echo(text, err=True),
        save=lambda result: write_results(result, output, plot_benchmark, benchmark_markdown),
    )
    print_json(result) if as_json else benchmark_table(result)
    if all("error" in row for row in result["rows"]):
        typer.echo(f"error: expected a candidate that can be timed, found {len(result['rows'])} that fail", err=True)
        raise typer.Exit(1)


@benchmark_app.command()
def attention(
    tokens: Annotated[str, typer.Option(help="Numbers of tokens, with commas; 49 to 16,384 by default.")] = "",
    dim: Annotated[int, typer.Option(min=1, help="Width of a token.")] = 64,
    threads: Threads = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of every module.")] = 5,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """The four attention modules of the paper's figure 2, over the number of tokens."""
    from swiftformer.benchmark.attention import TOKENS, plot_attention, run_attention_benchmark
    from swiftformer.benchmark.report import attention_table

    counts = [parse_count(text, "tokens", "tokens") for text in listed(tokens)] or TOKENS
    check_output(output)
    show = lambda text: typer.echo(text, err=True)  # noqa: E731
    result = run_attention_benchmark(counts, dim, device=device, threads=threads, rounds=rounds, progress=show)
    write_results(result, output, plot_attention)
    print_json(result) if as_json else attention_table(result)


@benchmark_app.command()
def layers(
    model: Annotated[str, typer.Argument(help=f"xs, s, l1, l3, or a checkpoint. {MODEL_HELP}")] = "xs",
    batch: Annotated[int, typer.Option(min=1, help="Images per call.")] = 1,
    size: Size = "224",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Where the time of the fused network goes, layer by layer."""
    from swiftformer.benchmark.layers import profile_layers
    from swiftformer.benchmark.report import layers_table
    from swiftformer.checkpoints import load
    from swiftformer.deploy import fuse
    from swiftformer.hf import SwiftFormerForImageClassification
    from swiftformer.variants import VARIANTS

    known = model.lower() in VARIANTS
    net: Any = SwiftFormerForImageClassification.from_variant(model.lower()).eval() if known else load(model)
    result = profile_layers(fuse(net), batch, parse_size(size), device=device)
    print_json(result) if as_json else layers_table(result)


def expect_no_options(context: typer.Context) -> None:
    """A command of the group has options of its own; those before its name would be lost without a word."""
    given = [
        (option.secondary_opts if context.params[option.name] is False else option.opts)[0]
        for option in context.command.params
        if option.name and getattr(context.get_parameter_source(option.name), "name", "") == "COMMANDLINE"
    ]
    if given:
        name = context.invoked_subcommand
        raise ValueError(
            f"benchmark: expected the options of {name} behind its name, found {', '.join(given)} before it"
        )


def check_output(output: Path | None) -> None:
    """Before the first of many measurements, not behind it."""
    from swiftformer.files import check_writable

    if output is not None:
        check_writable(output)


def write_results(result: Any, output: Path | None, plot: Any, markdown: Any = None) -> None:
    if output is None:
        return
    from swiftformer.files import atomic_file

    with atomic_file(output / "results.json") as file:
        file.write_text(json.dumps(result, indent=2) + "\n")
    if markdown is not None:
        with atomic_file(output / "results.md") as file:
            file.write_text(markdown(result))
    plot(result, output / "plot.png")
