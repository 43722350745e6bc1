"""A plain torch function, no waves: Rosenbrock's in 1000 dimensions.

python examples/rosenbrock.py
"""

import torch

import hvpopt


def rosenbrock(x: torch.Tensor) -> torch.Tensor:
    """Return the extended Rosenbrock function; its minimum is 0, at all ones."""
    return (100 * (x[1::2] - x[::2] ** 2) ** 2 + (1 - x[::2]) ** 2).sum()


def main() -> None:
    """Look at the curvature of the start, then minimise."""
    torch.manual_seed(0)
    start = torch.tensor([-1.2, 1.0] * 500, dtype=torch.float64)
    start += 0.5 * torch.randn_like(start)

    with hvpopt.HessianOperator(rosenbrock, start) as hessian:
        lowest = hvpopt.smallest_eigenvalue(hessian, tol=1e-3)
        print(f"λ_min at the start: {lowest.value:.4f}, {lowest.message}")
        print(f"  bounds [{lowest.lower:.4f}, {lowest.upper:.4f}], ", end="")
        print(f"{lowest.n_products} products")

    result = hvpopt.minimize(rosenbrock, start, gtol=1e-9)
    print(f"\n{'step':>4} {'loss':>11} {'gradient':>11} {'τ':>9} {'λ_min':>10} products")
    for record in result.history:
        print(
            f"{record.iteration:4d} {record.value:11.3e} {record.gradient_norm:11.3e} "
            f"{record.shift:9.2e} {record.smallest_eigenvalue:10.3e} "
            f"{record.counts.products:8d}"
        )
    print(result.message)
    print(f"largest distance from the minimum: {float((result.x - 1).abs().max()):.1e}")


if __name__ == "__main__":
    main()
