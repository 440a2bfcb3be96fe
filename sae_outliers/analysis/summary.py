"""The aggregation's summary on the console."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sae_outliers.analysis.conditions import conditions_of
from sae_outliers.analysis.select import Mix, describe_mix
from sae_outliers.analysis.tables.recovery import recovery_by_model
from sae_outliers.analysis.tables.spearman import SEVERITIES
from sae_outliers.analysis.write import Table
from sae_outliers.utils.cells import format_for_display


def summary(
    made: Sequence[Table],
    drawn: Sequence[str],
    mixed: Sequence[Mix],
    left_out: Sequence[str],
    results_dir: Path,
    page: Path | None,
) -> str:
    frames = {table.name: table.frame for table in made}
    parts = []
    if "coverage" in frames:
        parts.append(coverage_lines(frames["coverage"]))
    if "reference_spearman" in frames:
        parts.append(spearman_lines("Spearman's ρ, published vs. ours", frames["reference_spearman"]))
    elif "coverage" in frames:
        parts.append(spearman_lines("Spearman's ρ", frames.get("spearman", pd.DataFrame())))
    if "recovery" in frames:
        parts.append(recovery_lines(frames["recovery"]))
    if mixed:
        parts.append(f"Mixed, since allow_mixed=true: {describe_mix(mixed)}")
    if left_out:
        parts.append(f"Left out: {'; '.join(left_out)}")
    parts.append(f"{results_dir}/tables: {', '.join(frames)} (.csv, .md, .tex)")
    if drawn:
        parts.append(f"{results_dir}/figures: {', '.join(drawn)} (.png, .pdf)")
    if page:
        parts.append(f"{page}: all of it on a page, to open in a browser")
    return "\n\n".join(parts)


def coverage_lines(frame: pd.DataFrame) -> str:
    lines = ["Layers measured, by condition (SAE, centering):"]
    for row in frame.to_dict("records"):
        missing = f"; missing: {row['missing']}" if row["missing"] else ""
        counts = f"{row['layers']}/{row['expected']}, {row['trained']} of them trained"
        revivals = {
            str(name).removeprefix("trained "): n for name, n in row.items() if str(name).startswith("trained ")
        }
        counts += "".join(f", {n} with {name}" for name, n in revivals.items() if n)
        lines.append(f"  {row['sae']}, {row['centering']}: {counts}{missing}")
    return "\n".join(lines)


def recovery_lines(frame: pd.DataFrame) -> str:
    """Return a line per model; where several of its layers were trained, their medians."""
    lines = ["Dead by TopK, % of features, at initialisation -> after training:"]
    for row in recovery_by_model(frame).to_dict("records"):
        ends = [
            f"{name} {row[f'{name} init']:.1f} -> {row.get(f'{name} end', float('nan')):.1f}"
            for name in conditions_of(frame)
            if not pd.isna(row[f"{name} init"])
        ]
        gamma = f", γ {row['γ']:.2f}" if "γ" in row else ""
        lines.append(f"  {row['model']} ({row['layers']}{gamma}): {'; '.join(ends)}")
    return "\n".join(lines)


def spearman_lines(title: str, frame: pd.DataFrame) -> str:
    """Show post-LN γ in each domain, and the other severities overall; the file has the rest."""
    if frame.empty:
        return f"{title}: none, for no record has centering=off"
    shown = frame[(frame["severity"] == SEVERITIES["gamma"]) | (frame["domain"] == "all")]
    text = format_for_display(shown).to_markdown(index=False, tablefmt="simple", disable_numparse=True)
    return f"{title}\n{text}"
