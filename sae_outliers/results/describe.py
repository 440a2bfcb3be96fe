"""A run's record, and those of a model, in a line."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]  # of a record


def describe_run(row: Row) -> str:
    """Return a run's condition and its main figures in a line."""
    name = f"{row['model']} layer {row['layer']}, {row['sae']}, revival={row['revival']}, centering={row['centering']}"
    parts = [
        f"{name}: γ {row['gamma']:.2f}",
        f"dead at initialisation by TopK {row['dead_pct_init_topk']:.1f} %, by ReLU {row['dead_pct_init_relu']:.1f} %",
    ]
    if row.get("dead_pct_final_topk") is not None:
        parts.append(f"after training {row['dead_pct_final_topk']:.1f} %, {row['dead_pct_final_relu']:.1f} %")
    return "; ".join(parts)


def describe_model(rows: Sequence[Row]) -> str:
    """Return the range of γ, the worst layer, and what the other centerings leave there at most, in a line."""
    gammas = [row["gamma"] for row in rows]
    layers = len({row["layer"] for row in rows})
    parts = [f"{rows[0]['model']}, {layers} layer(s): γ {min(gammas):.2f} to {max(gammas):.2f}"]
    by_centering: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_centering[row["centering"]].append(row)
    for centering in sorted(by_centering, key=lambda name: name != "off"):
        worst = max(by_centering[centering], key=lambda row: row["dead_pct_init_topk"])
        dead = f"dead at initialisation by TopK at most {worst['dead_pct_init_topk']:.1f} %"
        where = f", by ReLU {worst['dead_pct_init_relu']:.1f} %, in layer {worst['layer']}"
        parts.append(dead + where if centering == "off" else f"centering={centering}: {dead}")
    return "; ".join(parts)
