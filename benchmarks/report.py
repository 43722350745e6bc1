"""Write RESULTS.md from results.json: the tables, the machine, the command."""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def machine_lines(data: dict[str, Any]) -> list[str]:
    """Return what the figures were measured on."""
    machine = data["machine_info"]
    cpu = machine["cpu"]
    info = data["benchmarks"][0]["extra_info"]["environment"]
    return [
        f"Machine: {cpu.get('brand_raw', 'unknown')}, {cpu.get('count')} cores, "
        f"{machine['system']}. Python {machine['python_version']}, torch "
        f"{info['torch']}, deepwave {info['deepwave']}, {info['threads']} threads, "
        f"float64. Measured on {data['datetime'][:10]}.",
    ]


def published_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table of the dense script against matrix-free steps."""
    lines = [
        "## The published Newton steps, dense and matrix-free",
        "",
        "Dense is the documentation's script (`torch.autograd.functional.hessian`, "
        '`eigsh`, Cholesky). Matrix-free is `ShiftedNewton(solver="lanczos")`, which '
        "reaches the same losses within 0.1 % and the same λ_min within 1 %, asserted "
        "in the run. Peak memory is the rise over the level at the start.",
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


def main() -> None:
    """Write the page."""
    data = json.loads((HERE / "results.json").read_text())
    rows = [bench["extra_info"] for bench in data["benchmarks"]]
    published = [row for row in rows if "dense_seconds" in row]
    sections = [
        ["# Results", "", "Written by `make bench` from `benchmarks/results.json`."],
        machine_lines(data),
        published_lines(published),
        solver_lines([row for row in rows if "solver" in row], published[0]),
        product_lines([row for row in rows if "product_in_gradients" in row]),
    ]
    page = "\n\n".join("\n".join(section) for section in sections) + "\n"
    (HERE / "RESULTS.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
