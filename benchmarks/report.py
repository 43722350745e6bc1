"""Write RESULTS.md from published.json and waveform.json: tables and machine."""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def machine_lines(data: dict[str, Any]) -> list[str]:
    """Return what a run was measured on."""
    machine = data["machine_info"]
    cpu = machine["cpu"]
    info = data["benchmarks"][0]["extra_info"]["environment"]
    return [
        f"Machine: {cpu.get('brand_raw', 'unknown')}, {cpu.get('count')} cores, "
        f"{machine['system']}. Python {machine['python_version']}, torch "
        f"{info['torch']}, deepwave {info['deepwave']}, torch threads: "
        f"{info['threads']}. Measured on {data['datetime'][:10]}.",
    ]


def published_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table of the dense script against matrix-free steps."""
    lines = [
        "## The published Newton steps, dense and matrix-free",
        "",
        "Dense is the documentation's script (`torch.autograd.functional.hessian`, "
        '`eigsh`, Cholesky). Matrix-free is `ShiftedNewton(solver="lanczos")`, which '
        "reaches the same losses within 0.1 % and the same λ_min within 1 %, asserted "
        "in the run. Float64. Peak memory is the rise over the level at the start.",
        "",
        "| cells | steps | dense | double backprop | ratio | Born pass | ratio | "
        "products dense / matrix-free | peak MB dense / double backprop / Born |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        plain, born = row["runs"]
        lines.append(
            f"| {row['cells']} | {row['steps']} | {row['dense_seconds']:.1f} s "
            f"| {plain['seconds']:.1f} s | {row['dense_seconds'] / plain['seconds']:.0f} "
            f"| {born['seconds']:.1f} s | {row['dense_seconds'] / born['seconds']:.0f} "
            f"| {row['cells'] * row['steps']} / {born['products']} "
            f"| {row['dense_peak_bytes'] / 1e6:.0f} / {plain['peak_bytes'] / 1e6:.0f} / "
            f"{born['peak_bytes'] / 1e6:.0f} |"
        )
    return lines


def solver_lines(rows: list[dict[str, Any]], dense: dict[str, Any]) -> list[str]:
    """Return the table of the three solvers beside the dense script."""
    lines = [
        "## Three steps with each solver, 600 cells",
        "",
        "| | products | loss 0 | loss 1 | loss 2 | loss 3 "
        "| λ_min 1 | λ_min 2 | λ_min 3 |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    table = [("dense script", 1800, dense["dense_losses"], dense["dense_eigenvalues"])]
    table += [(r["solver"], r["products"], r["losses"], r["eigenvalues"]) for r in rows]
    for name, products, losses, eigenvalues in table:
        cells = [f"{x:.4e}" for x in losses] + [f"{x:.3e}" for x in eigenvalues]
        lines.append(f"| {name} | {products} | " + " | ".join(cells) + " |")
    return lines


def product_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table of costs in gradients."""
    lines = [
        "## Cost in gradients of the same run",
        "",
        "| cells | engine | value | product | one gradient |",
        "|--:|---|--:|--:|--:|",
    ]
    lines += [
        f"| {row['cells']} | {row['engine']} | {row['value_in_gradients']:.2f} "
        f"| {row['product_in_gradients']:.2f} "
        f"| {row['gradient_seconds'] * 1e3:.0f} ms |"
        for row in rows
    ]
    return lines


def waveform_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Return the tables of Born products against gradients and double backprop."""
    lines = [
        "## A waveform product, in gradients and in peak memory",
        "",
        "One scalar survey, float32, 300 steps. Medians of ratios within each round; "
        "memory is the most that torch's tensors held at once, MB (exact), and in "
        "brackets the rise of the resident set (repeats differ by 1 to 2 %). Double "
        "backprop's seconds are of a product alone, its graph kept; its memory is of "
        "graph and product, all shots in one graph. Gradients and Born products run in "
        "groups of shots (the default "
        "on a CPU: as many as there are threads).",
        "",
        "| cells | shots (a group) | gradient | value | Born product "
        "| double backprop product | `autograd.functional.hvp` "
        "| MB Born | MB double backprop "
        "| Born / double backprop |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        ratio, peak = row["ratios"], row["peak_bytes"]
        tensors = row["peak_tensor_bytes"]
        lines.append(
            f"| {row['waveform_cells']} | {row['shots']} ({row['shots_per_group']}) "
            f"| {row['gradient_seconds']:.2f} s | {ratio['value']:.2f} "
            f"| {ratio['born']:.2f} | {ratio['double backprop, graph kept']:.2f} "
            f"| {ratio['autograd.functional.hvp']:.2f} "
            f"| {tensors['born'] / 1e6:.0f} ({peak['born'] / 1e6:.0f}) "
            f"| {tensors['double backprop'] / 1e6:.0f} "
            f"({peak['double backprop'] / 1e6:.0f}) "
            f"| {tensors['born'] / tensors['double backprop']:.3f} |"
        )
    return lines


def limit_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Return what a memory limit was kept at."""
    return [
        f"With `memory_limit` at {row['limit_bytes'] / 1e6:.1f} MB, a quarter of the "
        f"{row['ungrouped_bytes'] / 1e6:.1f} MB that 8 shots take together on 68 × 202 "
        f"cells, a gradient and three products rose by {row['used_bytes'] / 1e6:.1f} MB "
        f"(plan: {row['plan']})."
        for row in rows
    ]


def floor_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Return the rounding of products in float32."""
    return [
        f"A product of float32 waves differs from one of float64 waves by "
        f"{row['float32_floor']:.1e} (relative, 68 × 202 cells, 1 shot)."
        for row in rows
    ]


def main() -> None:
    """Write the page."""
    runs = {
        name: json.loads((HERE / f"{name}.json").read_text())
        for name in ("published", "waveform")
    }
    first, second = (
        [bench["extra_info"] for bench in data["benchmarks"]] for data in runs.values()
    )
    dense = [row for row in first if "dense_seconds" in row]
    sections = [
        [
            "# Results",
            "",
            "Written by `make bench` from the JSON files beside this page.",
        ],
        machine_lines(runs["published"]),
        published_lines(dense),
        solver_lines([row for row in first if "solver" in row], dense[0]),
        product_lines([row for row in first if "product_in_gradients" in row]),
        waveform_lines([row for row in second if "waveform_cells" in row]),
        limit_lines([row for row in second if "limit_bytes" in row]),
        floor_lines([row for row in second if "float32_floor" in row]),
        machine_lines(runs["waveform"]),
    ]
    page = "\n\n".join("\n".join(section) for section in sections) + "\n"
    (HERE / "RESULTS.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
