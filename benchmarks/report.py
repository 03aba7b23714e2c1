"""A record as Markdown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import efficiency
from targets import Record, grid_cells, ours

LABELS = {"fastmmd": "**fastmmd**"}


def markdown(record: Record, figures: dict[str, str]) -> str:
    """`figures`: "time", "memory", "accuracy", "grid" -> file name, those that the run has."""
    parts = [_header(record), _targets(record)]
    if record["against_n"]:
        parts += [_against_n(record, figures), _headline(record), _memory(record), _accuracy(record, figures)]
    kinds = defaultdict(list)
    for group in record["groups"]:
        kinds[group["rows"][0]["case"]["operation"]].append(group)
    scaling, dispatch, grid, contention = (
        kinds.pop(kind, []) for kind in ("scaling", "dispatch", "grid", "contention")
    )
    if any(kinds.values()):
        parts += ["## Times", *(_group(group, record) for groups in kinds.values() for group in groups)]
        parts += [_efficiency(record)] if record["yardstick"] else []
    parts += [_grid(record, figures)] if grid else []
    parts += [_contention(group) for group in contention]
    parts += [_scaling(scaling)] if scaling else []
    parts += [_dispatch(group) for group in dispatch]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _header(record: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return "\n".join(
        [
            f"# Benchmarks on {record['hardware']}",
            "",
            f"{record['threads']} threads, {record['memory_gigabytes']:.0f} GB. {record['date']}, revision "
            f"{record['revision']}, `{record['command']}`, {record['seconds'] / 60:.0f} minutes. {versions}.",
            "",
            "float32, medians. Every implementation gets the same tensors, and its result is compared with float64 "
            "before it is timed: ours to the documented bounds, the peers to 1%. The first calls of torch.compile, "
            "KeOps and GeomLoss, which compile for 5 to 60 seconds, are not in the times. KeOps compiles with its "
            "own default flags.",
        ]
    )


def _targets(record: Record) -> str:
    rows = [
        [
            row["work"],
            row["against"],
            row["required"],
            "not in this run" if row["value"] is None else f"{row['value']:{_digits(row['value'])}}{row['unit']}",
            "" if row["reached"] is None else "yes" if row["reached"] else "**no**",
        ]
        for row in record["targets"]
    ]
    return "## Targets\n\n" + table(("work", "against", "required", "measured", "reached"), rows)


def _digits(value: float) -> str:
    return ".3f" if value < 2 else ".2f" if value < 10 else ".1f" if value < 100 else ".0f"


def _label(name: str, record: Record) -> str:
    return f"**fastmmd** {name}" if name in record["backends"] else LABELS.get(name, name)


def _group(group: dict[str, Any], record: Record) -> str:
    rows = group["rows"]
    mine = next((row["median_ms"] for row in rows if row["name"] == ours(record)), None)
    turns = [row for row in rows if "ratio" in row]
    head = ["implementation", "median, ms", "quartiles apart, ms", "rounds", "times fastmmd"]
    head += [f"times {turns[0]['baseline']} (95% interval)", f"{turns[0]['baseline']}, ms"] if turns else []
    lines = []
    for row in rows:
        spread = _ms(row["iqr_ms"]) if row["rounds"] > 1 else ""
        line = [_label(row["name"], record), _ms(row["median_ms"]), spread, str(row["rounds"])]
        line.append(f"{row['median_ms'] / mine:{_digits(row['median_ms'] / mine)}}" if mine else "")
        if "ratio" in row:
            low, high = row["interval"]
            line += [f"{row['ratio']:.3f} ({low:.3f} to {high:.3f})", _ms(1e3 * row["baseline_s"])]
        elif turns:
            line += ["", ""]
        lines.append(line)
    return f"### {group['title']}\n\n{table(head, lines)}"


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"


def _seconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _outcome(row: dict[str, Any]) -> list[str]:
    return [f"† {row['died']}", ""] if "died" in row else [_seconds(row["seconds"]), f"{row['megabytes']:.1f} MB"]


def _against_n(record: Record, figures: dict[str, str]) -> str:
    limits = record["limits"]
    sizes = sorted({row["n"] for row in record["against_n"]})
    names = list(dict.fromkeys(row["implementation"] for row in record["against_n"]))
    by_cell = {(row["implementation"], row["n"]): row for row in record["against_n"]}

    def cell(name: str, n: int) -> str:
        row = by_cell.get((name, n))
        return "" if row is None else f"† {row['died']}" if "died" in row else ", ".join(_outcome(row))

    body = [[_label(name, record), *(cell(name, n) for n in sizes)] for name in names]
    return "\n".join(
        [
            "## mmd2 forward+backward against N, D=6, six bandwidths",
            "",
            "One process each: the time of a call, and by how much it raises the peak of the process's memory. "
            f"†: where it needs more than {limits['bytes'] >> 30} GB or {limits['seconds']:.0f} seconds.",
            "",
            table(["N = M", *(f"{n:,}" for n in sizes)], body),
            "",
            *(f"![{kind} against N]({figures[kind]})" for kind in ("time", "memory")),
        ]
    )


def _headline(record: Record) -> str:
    rows = [row for row in record["memory"] if row["dim"] == 79]
    full, small = rows[:-1], rows[-1]
    n, m = full[0]["n"], full[0]["m"]
    lines = [[_label(row["implementation"], record), *_outcome(row)] for row in full]
    text = [
        f"## {n:,} x 79 against {m:,} x 79, one bandwidth, forward+backward",
        "",
        "The case of users who ran out of 64 GB (alibi-detect, issue 597).",
        "",
        table(["implementation", "time", "growth of the process"], lines),
    ]
    if "died" not in small:
        pairs, needed = (n * m) / (small["n"] * small["m"]), small["megabytes"] / 1e3
        text += [
            "",
            f"Eager would need {needed * pairs:,.0f} GB: {needed:.2f} GB measured at {small['n']:,} x 79 against "
            f"{small['m']:,} x 79, times {pairs:.0f}.",
        ]
    return "\n".join(text)


def _memory(record: Record) -> str:
    rows = []
    for row in record["memory"]:
        if row["dim"] != 79:
            size = f"D={row['dim']}, N=M={row['n']:,}, bandwidths: {len(row['bandwidths'])}"
            rows.append([size, _label(row["implementation"], record), *_outcome(row)])
            rows[-1].append(f"{row['n'] * row['dim'] * 4e-6:.1f} MB")
    return "## Memory of mmd2 forward+backward\n\n" + table(
        ["size", "implementation", "time", "growth of the process", "of it, the gradient"], rows
    )


def _accuracy(record: Record, figures: dict[str, str]) -> str:
    parts = [
        "## Accuracy of mmd2 as MMD^2 shrinks",
        f"Against float64, D=6, six bandwidths, N=M={record['accuracy'][0]['n']}: relative error of the value; "
        "error of the worst row of the gradient over the largest row.",
    ]
    names = list(dict.fromkeys(row["implementation"] for row in record["accuracy"]))
    kinds = {
        "independent draws": "Independent normal draws, one sample shifted",
        "the same points": "The same normal points, one copy shifted",
    }
    for kind, title in kinds.items():
        rows = defaultdict(dict)
        for row in record["accuracy"]:
            if row["samples"] == kind:
                rows[row["shift"], row["mmd2"]][row["implementation"]] = row
        head = ["shift", "MMD^2", *(f"value: {name}" for name in names), *(f"gradient: {name}" for name in names)]
        body = [
            [f"{shift:g}", f"{exact:.1e}"]
            + [f"{errors[name][key]:.0e}" for key in ("value_error", "gradient_error") for name in names]
            for (shift, exact), errors in rows.items()
        ]
        parts.append(f"{title}:\n\n{table(head, body)}")
    return "\n\n".join([*parts, f"![accuracy]({figures['accuracy']})"])


def _efficiency(record: Record) -> str:
    peaks = "; ".join(
        f"{threads} thread{'s' if threads != '1' else ''}: {peak['gflops']:.0f} GFLOP/s, {peak['gigabytes']:.0f} GB/s"
        for threads, peak in record["yardstick"].items()
    )
    rows = [
        [
            ", ".join(str(value) if key == "operation" else f"{key}={value:,}" for key, value in row["case"].items()),
            f"{row['operations'] * 1e-9:.2f}",
            f"{row['gflops']:.0f}",
            f"{100 * row['fraction']:.0f}%",
        ]
        for row in efficiency.rows(record)
    ]
    note = " ".join((efficiency.__doc__ or "").split("\n\n", 1)[1].split())
    head = ["work", "useful operations, 10^9", "GFLOP/s", "of the yardstick"]
    return "\n\n".join(
        [
            "## Fraction of the machine's peak",
            f"The yardstick, `yardstick.cpp`: independent float32 fused multiply-adds, and STREAM's triad. {peaks}.",
            note,
            table(head, rows),
        ]
    )


def _grid(record: Record, figures: dict[str, str]) -> str:
    cells = grid_cells(record)
    batches, sizes = sorted({at[0] for at in cells}), sorted({at[1] for at in cells if at[0] == 1})
    dims = sorted({at[2] for at in cells if at[0] == 1})
    body = [[str(dim), *(f"{cells[1, n, dim]:.1f}" for n in sizes)] for dim in dims]
    members = [[f"[{b}, {n}, {dim}]", f"{ratio:.1f}"] for (b, n, dim), ratio in cells.items() if b > 1]
    parts = [
        "## mmd2 forward+backward beside eager, batch sizes and dimensions of training",
        "How many times faster than eager PyTorch, which takes turns with ours: medians, a gradient in x, five "
        "bandwidths from a quarter to four times the square root of D. The record has the times.",
        table(["D", *(f"N = M = {n:,}" for n in sizes)], body),
        f"![times faster than eager]({figures['grid']})",
    ]
    if len(batches) > 1:
        parts += ["Batches, [members, N, D]:", table(["batch", "times faster"], members)]
    return "\n\n".join(parts)


def _contention(group: dict[str, Any]) -> str:
    rows = [
        [
            row["name"],
            *(f"{row[key]:.3g}" for key in ("median_ms", "busy_ms", "busy_ms_of_eager")),
            *(f"{row[key]:.2f}" for key in ("slowdown", "slowdown_of_eager")),
        ]
        for row in group["rows"]
    ]
    return "\n".join(
        [
            "## Beside other processes",
            "",
            "As many busy processes as threads; ours and eager PyTorch, busy and idle rounds in turn. Half of the "
            "cores is twice the time.",
            "",
            table(["work", "alone, ms", "beside, ms", "eager beside, ms", "slowdown", "eager's slowdown"], rows),
        ]
    )


def _scaling(groups: list[dict[str, Any]]) -> str:
    parts = ["## How the cost of mmd2 forward+backward grows"]
    for group in groups:
        against = group["rows"][0]["case"]["against"]
        head = [against, *(row["name"] for row in group["rows"])]
        body = [["ms", *(_ms(row["median_ms"]) for row in group["rows"])]]
        parts.append(f"{group['title'].partition(against + ', ')[2]}:\n\n{table(head, body)}")
    return "\n\n".join(parts)


def _dispatch(group: dict[str, Any]) -> str:
    rows = [
        [row["case"]["operator"], row["case"]["layer"], f"{1e3 * row['median_ms']:.1f}", f"{1e3 * row['min_ms']:.1f}"]
        for row in group["rows"]
    ]
    return f"## Cost of a call: {group['title']}\n\n" + table(["operator", "layer", "median, us", "minimum, us"], rows)
