"""What a reader of a benchmark wants to know: this project's best candidate over the peers' best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

OURS = "swiftformer"

Row = dict[str, Any]


def against_peers(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """How many times as fast as the peers this project is, round by round.

    Args:
        rows: of `run_benchmark`; those with an `error` do not count.

    Returns:
        For each cell its `variant`, `batch` and `size`, and four comparisons, each of the fastest candidates:
        `float32`, both in float32; `bf16`, both in that; `any_precision`; and `transformers_eager`, this project in
        float32 with transformers' model in torch, not compiled, in float32. A comparison has `ours` and `peer` (engine
        and precision, of the peer with its implementation), their medians `ours_ms` and `peer_ms`, the differences of
        their logits from the model's, `ours_difference` and `peer_difference`, and of the ratios of their times in each
        round, above 1 where this project is faster, the median `ratio` and the quartiles `ratio_quartiles`; or is None
        where one of the two was not measured.
    """
    found = []
    for (variant, batch, size), inside in cells(row for row in rows if "error" not in row).items():
        ours = [row for row in inside if row["implementation"] == OURS]
        peers = [row for row in inside if row["implementation"] != OURS]
        eager = [row for row in peers if (row["implementation"], row["engine"]) == ("transformers", "torch")]
        found.append(
            {
                "variant": variant,
                "batch": batch,
                "size": list(size),
                "float32": _compared(_in("fp32", ours), _in("fp32", peers)),
                "bf16": _compared(_in("bf16", ours), _in("bf16", peers)),
                "any_precision": _compared(ours, peers),
                "transformers_eager": _compared(_in("fp32", ours), _in("fp32", eager)),
            }
        )
    return found


def cells(rows: Iterable[Row]) -> dict[tuple[str, int, tuple[int, int]], list[Row]]:
    """Rows by variant, batch and size."""
    found: dict[tuple[str, int, tuple[int, int]], list[Row]] = {}
    for row in rows:
        height, width = row["size"]
        found.setdefault((row["variant"], row["batch"], (height, width)), []).append(row)
    return found


def _in(precision: str, rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["precision"] == precision]


def _compared(ours: Sequence[Row], peers: Sequence[Row]) -> dict[str, Any] | None:
    if not ours or not peers:
        return None
    mine, other = (min(rows, key=lambda row: row["median_ms"]) for rows in (ours, peers))
    # Within a round both met nearly the same machine, which over a run may change its speed by a factor of two.
    ratios = np.divide(other["rounds_ms"], mine["rounds_ms"])
    low, ratio, high = np.percentile(ratios, (25, 50, 75)).tolist()
    return {
        "ours": f"{mine['engine']} {mine['precision']}",
        "ours_ms": mine["median_ms"],
        "peer": f"{other['implementation']} {other['engine']} {other['precision']}",
        "peer_ms": other["median_ms"],
        "ours_difference": mine["difference"],
        "peer_difference": other["difference"],
        "ratio": ratio,
        "ratio_quartiles": [low, high],
    }
