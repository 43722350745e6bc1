"""Write RESULTS.md from the JSON files of ``make bench``: tables and machine."""

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
        "on a CPU for shots of this size: as many as there are threads).",
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


def scaling_lines(row: dict[str, Any]) -> list[str]:
    """Return the table of ranks beside threads."""
    survey, cores, ways = row["survey"], row["cores"], row["scaling"]
    kinds = list(ways[0]["seconds"])
    lines = [
        "## Strong scaling over ranks",
        "",
        f"One scalar survey on {survey['ny']} × {survey['nx']} cells, "
        f"{survey['n_shots']} shots, {survey['steps']} steps, float32, shared out by "
        "`hvpopt.distributed.shard` over processes of one machine (gloo). All ways run "
        "in each round; seconds are of the slowest rank, speed-ups are over one process "
        "of one thread in the same round, both medians over rounds. What uses more "
        f"threads than the {cores} cores is marked, and says nothing of scaling. All "
        "ways find the same product, and what a rank reduces for it is one model vector, "
        "asserted in the run.",
        "",
        "| ranks × threads | "
        + " | ".join(f"{kind} | speed-up" for kind in kinds)
        + " | bytes reduced in a product | in model vectors |",
        "|---|" + "--:|" * (2 * len(kinds) + 2),
    ]
    for way in ways:
        many = way["ranks"] * way["threads"] > cores
        mark = " (more than the cores)" if many else ""
        cells = [f"{way['ranks']} × {way['threads']}{mark}"]
        for kind in kinds:
            cells += [f"{way['seconds'][kind]:.2f} s", f"{way['speed_up'][kind]:.2f}"]
        reduced = way["bytes_reduced_per_product"]
        cells += [f"{reduced}", f"{reduced / row['bytes_of_a_model_vector']:g}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def percent(share: float) -> str:
    """Return a share in words."""
    return f"{100 * share:.2f} %"


def checkpoint_lines(pairs: dict[str, Any], products: dict[str, Any]) -> list[str]:
    """Return the table of what saving costs, and where its time goes."""
    full, found, kept = pairs["full"], pairs["pairs"], products["products"]
    every = products["every_seconds"]
    lines = [
        "## What saving a run costs",
        "",
        f"An inversion of Marmousi's size: {full['cells'][0]} × {full['cells'][1]} cells "
        f"({found['unknowns']} unknowns), {full['n_shots']} shots of "
        f"{full['recorded']:g} s, float32. The file is on "
        f"{found['file_system'] or 'an unknown file system'}. A share is of an iteration "
        "of the same run, without what saving adds to it; all are under 2 %, asserted in "
        "the run. `QuasiNewton` saves once an iteration, and recording is the hashing "
        "and keeping of the iteration's products, besides. `TrustRegionNewton` also "
        f"saves the products of the step under way, every {every:g} s by default: the "
        "share is of that time.",
        "",
        "| method | in the file | size | a save (worst) | recording | an iteration "
        "| share |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| `QuasiNewton` | {held} pairs | {row['bytes'] / 1e6:.1f} MB "
        f"| {row['seconds'] * 1e3:.0f} ({row['worst_seconds'] * 1e3:.0f}) ms "
        f"| {found['recording_seconds'] * 1e3:.1f} ms "
        f"| {found['iteration_seconds']:.2f} s | {percent(row['share'])} |"
        for held, row in found["saves"].items()
    ]
    lines += [
        f"| `TrustRegionNewton` | {held} products | {row['bytes'] / 1e6:.1f} MB "
        f"| {row['seconds'] * 1e3:.0f} ({row['worst_seconds'] * 1e3:.0f}) ms | "
        f"| {every:g} s between saves | {percent(row['share'])} |"
        for held, row in kept["saves"].items()
    ]
    both, short = found["alternated"], pairs["short"]
    low, high = both["quartiles"]
    parts = list(found["saves"].values())[-1]["parts"]
    told = ", ".join(
        f"{name} {seconds * 1e3:.0f} ms"
        for name, seconds in sorted(parts.items(), key=lambda part: -part[1])
    )
    lines += [
        "",
        "In the runs themselves, saving and recording together took "
        f"{percent(found['share'])} of an iteration of `QuasiNewton` with its first "
        f"pairs, and {percent(kept['share'])} of one of `TrustRegionNewton` with "
        f"{kept['products']} products that saved every {kept['checkpoint_seconds']:g} s "
        f"(recording: {kept['recording_seconds'] * 1e3:.0f} ms).",
        "",
        f"Runs with and without a checkpoint in turn, on {short['n_shots']} shots of "
        f"{short['recorded']:g} s with as many cells, from no pair to "
        f"{next(iter(found['saves']))}: an iteration of "
        f"{both['iteration_seconds']:.2f} s took {both['added_seconds'] * 1e3:.0f} ms "
        f"more (the faster of two runs each way; median, quartiles {low * 1e3:.0f} and "
        f"{high * 1e3:.0f} ms), {percent(both['share'])} of the iteration above.",
        "",
        f"A save of {list(found['saves'])[-1]} pairs: {told}.",
    ]
    return lines


def main() -> None:
    """Write the page."""
    runs = {
        name: json.loads((HERE / f"{name}.json").read_text())
        for name in ("published", "waveform", "distributed", "checkpoint")
    }
    first, second, third, fourth = (
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
        scaling_lines(third[0]),
        machine_lines(runs["distributed"]),
        checkpoint_lines(
            *[row for row in fourth if "pairs" in row],
            *[row for row in fourth if "products" in row and "every_seconds" in row],
        ),
        machine_lines(runs["checkpoint"]),
    ]
    page = "\n\n".join("\n".join(section) for section in sections) + "\n"
    (HERE / "RESULTS.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
