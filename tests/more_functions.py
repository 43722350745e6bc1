"""Thirty test functions of Moré, Garbow and Hillstrom, ACM TOMS 7, 1981.

Each is a sum of squares, numbered as in the paper, with its standard start. Minima are
the published values; where several are known the function may end at any of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

FLOAT = torch.float64


def numbers(*values):
    return torch.tensor(values, dtype=FLOAT)


def count(first, last):
    return torch.arange(first, last + 1, dtype=FLOAT)


@dataclass(frozen=True)
class SumOfSquares:
    """``f(x) = Σ r_i(x)²``."""

    number: int
    name: str
    residuals: Callable[[torch.Tensor], torch.Tensor]
    start: torch.Tensor
    minima: tuple[float, ...] = (0.0,)

    def __call__(self, x):
        return (self.residuals(x) ** 2).sum()


def rosenbrock(x):
    odd, even = x[::2], x[1::2]
    return torch.cat([10 * (even - odd**2), 1 - odd])


def freudenstein_roth(x):
    a, b = x
    return torch.stack(
        [-13 + a + ((5 - b) * b - 2) * b, -29 + a + ((b + 1) * b - 14) * b]
    )


def powell_badly_scaled(x):
    a, b = x
    return torch.stack([1e4 * a * b - 1, torch.exp(-a) + torch.exp(-b) - 1.0001])


def brown_badly_scaled(x):
    a, b = x
    return torch.stack([a - 1e6, b - 2e-6, a * b - 2])


def beale(x):
    a, b = x
    return numbers(1.5, 2.25, 2.625) - a * (1 - b ** count(1, 3))


def jennrich_sampson(x):
    i = count(1, 10)
    return 2 + 2 * i - (torch.exp(i * x[0]) + torch.exp(i * x[1]))


def helical_valley(x):
    a, b, c = x
    theta = torch.atan(b / a) / (2 * math.pi) + 0.5 * (a < 0)
    return torch.stack([10 * (c - 10 * theta), 10 * (torch.hypot(a, b) - 1), c])


BARD = numbers(
    0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39,
    0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39,
)  # fmt: skip


def bard(x):
    u = count(1, 15)
    v = 16 - u
    return BARD - (x[0] + u / (v * x[1] + torch.minimum(u, v) * x[2]))


GAUSSIAN = numbers(
    0.0009, 0.0044, 0.0175, 0.0540, 0.1295, 0.2420, 0.3521, 0.3989,
    0.3521, 0.2420, 0.1295, 0.0540, 0.0175, 0.0044, 0.0009,
)  # fmt: skip


def gaussian(x):
    t = (8 - count(1, 15)) / 2
    return x[0] * torch.exp(-x[1] * (t - x[2]) ** 2 / 2) - GAUSSIAN


MEYER = numbers(
    34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744,
    8261, 7030, 6005, 5147, 4427, 3820, 3307, 2872,
)  # fmt: skip


def meyer(x):
    return x[0] * torch.exp(x[1] / (45 + 5 * count(1, 16) + x[2])) - MEYER


def box_three_dimensional(x):
    t = 0.1 * count(1, 10)
    bracket = torch.exp(-t) - torch.exp(-10 * t)
    return torch.exp(-t * x[0]) - torch.exp(-t * x[1]) - x[2] * bracket


def powell_singular(x):
    a, b, c, d = x
    return torch.stack(
        [
            a + 10 * b,
            math.sqrt(5) * (c - d),
            (b - 2 * c) ** 2,
            math.sqrt(10) * (a - d) ** 2,
        ]
    )


def wood(x):
    a, b, c, d = x
    return torch.stack(
        [
            10 * (b - a**2),
            1 - a,
            math.sqrt(90) * (d - c**2),
            1 - c,
            math.sqrt(10) * (b + d - 2),
            (b - d) / math.sqrt(10),
        ]
    )


KOWALIK = numbers(
    0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246
)  # fmt: skip
KOWALIK_U = numbers(4.0, 2.0, 1.0, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625)


def kowalik_osborne(x):
    u = KOWALIK_U
    return KOWALIK - x[0] * (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3])


def brown_dennis(x):
    t = count(1, 20) / 5
    first = x[0] + t * x[1] - torch.exp(t)
    return first**2 + (x[2] + x[3] * torch.sin(t) - torch.cos(t)) ** 2


OSBORNE_1 = numbers(
    0.844, 0.908, 0.932, 0.936, 0.925, 0.908, 0.881, 0.850, 0.818, 0.784, 0.751,
    0.718, 0.685, 0.658, 0.628, 0.603, 0.580, 0.558, 0.538, 0.522, 0.506, 0.490,
    0.478, 0.467, 0.457, 0.448, 0.438, 0.431, 0.424, 0.420, 0.414, 0.411, 0.406,
)  # fmt: skip


def osborne_1(x):
    t = 10 * count(0, 32)
    return OSBORNE_1 - (x[0] + x[1] * torch.exp(-t * x[3]) + x[2] * torch.exp(-t * x[4]))


def biggs_exp6(x):
    t = 0.1 * count(1, 13)
    y = torch.exp(-t) - 5 * torch.exp(-10 * t) + 3 * torch.exp(-4 * t)
    first = x[2] * torch.exp(-t * x[0]) - x[3] * torch.exp(-t * x[1])
    return first + x[5] * torch.exp(-t * x[4]) - y


OSBORNE_2 = numbers(
    1.366, 1.191, 1.112, 1.013, 0.991, 0.885, 0.831, 0.847, 0.786, 0.725, 0.746,
    0.679, 0.608, 0.655, 0.616, 0.606, 0.602, 0.626, 0.651, 0.724, 0.649, 0.649,
    0.694, 0.644, 0.624, 0.661, 0.612, 0.558, 0.533, 0.495, 0.500, 0.423, 0.395,
    0.375, 0.372, 0.391, 0.396, 0.405, 0.428, 0.429, 0.523, 0.562, 0.607, 0.653,
    0.672, 0.708, 0.633, 0.668, 0.645, 0.632, 0.591, 0.559, 0.597, 0.625, 0.739,
    0.710, 0.729, 0.720, 0.636, 0.581, 0.428, 0.292, 0.162, 0.098, 0.054,
)  # fmt: skip


def osborne_2(x):
    t = count(0, 64) / 10
    model = x[0] * torch.exp(-t * x[4])
    for i in (1, 2, 3):
        model = model + x[i] * torch.exp(-((t - x[7 + i]) ** 2) * x[4 + i])
    return OSBORNE_2 - model


def watson(x):
    n = len(x)
    t = (count(1, 29) / 29)[:, None]
    j = count(1, n)
    slope = ((j[1:] - 1) * x[1:] * t ** (j[1:] - 2)).sum(1)
    level = (x * t ** (j - 1)).sum(1)
    extra = torch.stack([x[0], x[1] - x[0] ** 2 - 1])
    return torch.cat([slope - level**2 - 1, extra])


def penalty_1(x):
    return torch.cat([math.sqrt(1e-5) * (x - 1), ((x**2).sum() - 0.25).reshape(1)])


def penalty_2(x):
    n, a = len(x), math.sqrt(1e-5)
    i = count(2, n)
    y = torch.exp(i / 10) + torch.exp((i - 1) / 10)
    up = torch.exp(x / 10)
    return torch.cat(
        [
            (x[0] - 0.2).reshape(1),
            a * (up[1:] + up[:-1] - y),
            a * (up[1:] - math.exp(-0.1)),
            (count(1, n).flip(0) @ x**2).reshape(1) - 1,
        ]
    )


def variably_dimensioned(x):
    total = (count(1, len(x)) * (x - 1)).sum()
    return torch.cat([x - 1, total.reshape(1), (total**2).reshape(1)])


def trigonometric(x):
    n = len(x)
    return n - torch.cos(x).sum() + count(1, n) * (1 - torch.cos(x)) - torch.sin(x)


def brown_almost_linear(x):
    linear = x[:-1] + x.sum() - (len(x) + 1)
    return torch.cat([linear, (x.prod() - 1).reshape(1)])


def padded(x):
    zero = x.new_zeros(1)
    return torch.cat([zero, x, zero])


def discrete_boundary_value(x):
    n = len(x)
    h = 1 / (n + 1)
    wide = padded(x)
    return 2 * x - wide[:-2] - wide[2:] + h**2 * (x + h * count(1, n) + 1) ** 3 / 2


def discrete_integral_equation(x):
    n = len(x)
    h = 1 / (n + 1)
    t = h * count(1, n)
    cube = (x + t + 1) ** 3
    below = torch.cumsum(t * cube, 0)
    weighted = (1 - t) * cube
    above = weighted.sum() - torch.cumsum(weighted, 0)
    return x + h * ((1 - t) * below + t * above) / 2


def broyden_tridiagonal(x):
    wide = padded(x)
    return (3 - 2 * x) * x - wide[:-2] - 2 * wide[2:] + 1


def broyden_banded(x):
    n = len(x)
    i = torch.arange(n)
    gap = i[None, :] - i[:, None]
    band = ((gap >= -5) & (gap <= 1) & (gap != 0)).to(x)
    return x * (2 + 5 * x**2) + 1 - band @ (x * (1 + x))


def chebyquad(x):
    n = len(x)
    shifted = 2 * x - 1
    before, current = torch.ones_like(x), shifted
    residuals = []
    for i in range(1, n + 1):
        integral = -1 / (i**2 - 1) if i % 2 == 0 else 0.0
        residuals.append(current.mean() - integral)
        before, current = current, 2 * shifted * current - before
    return torch.stack(residuals)


def boundary_start(n):
    t = count(1, n) / (n + 1)
    return t * (t - 1)


FUNCTIONS = (
    SumOfSquares(1, "Rosenbrock", rosenbrock, numbers(-1.2, 1)),
    SumOfSquares(
        2, "Freudenstein-Roth", freudenstein_roth, numbers(0.5, -2), (0.0, 48.98425)
    ),
    SumOfSquares(3, "Powell badly scaled", powell_badly_scaled, numbers(0, 1)),
    SumOfSquares(4, "Brown badly scaled", brown_badly_scaled, numbers(1, 1)),
    SumOfSquares(5, "Beale", beale, numbers(1, 1)),
    SumOfSquares(6, "Jennrich-Sampson", jennrich_sampson, numbers(0.3, 0.4), (124.362,)),
    SumOfSquares(7, "helical valley", helical_valley, numbers(-1, 0, 0)),
    SumOfSquares(8, "Bard", bard, numbers(1, 1, 1), (8.21487e-3, 17.4286)),
    SumOfSquares(9, "Gaussian", gaussian, numbers(0.4, 1, 0), (1.12793e-8,)),
    SumOfSquares(10, "Meyer", meyer, numbers(0.02, 4000, 250), (87.9458,)),
    SumOfSquares(12, "Box", box_three_dimensional, numbers(0, 10, 20)),
    SumOfSquares(13, "Powell singular", powell_singular, numbers(3, -1, 0, 1)),
    SumOfSquares(14, "Wood", wood, numbers(-3, -1, -3, -1)),
    SumOfSquares(
        15,
        "Kowalik-Osborne",
        kowalik_osborne,
        numbers(0.25, 0.39, 0.415, 0.39),
        (3.07505e-4, 1.02734e-3),
    ),
    SumOfSquares(16, "Brown-Dennis", brown_dennis, numbers(25, 5, -5, -1), (85822.2,)),
    SumOfSquares(
        17, "Osborne 1", osborne_1, numbers(0.5, 1.5, -1, 0.01, 0.02), (5.46489e-5,)
    ),
    SumOfSquares(
        18, "Biggs EXP6", biggs_exp6, numbers(1, 2, 1, 1, 1, 1), (0.0, 5.65565e-3)
    ),
    SumOfSquares(
        19,
        "Osborne 2",
        osborne_2,
        numbers(1.3, 0.65, 0.65, 0.7, 0.6, 3, 5, 7, 2, 4.5, 5.5),
        (4.01377e-2,),
    ),
    SumOfSquares(20, "Watson", watson, torch.zeros(9, dtype=FLOAT), (1.39976e-6,)),
    SumOfSquares(21, "extended Rosenbrock", rosenbrock, numbers(*[-1.2, 1.0] * 20)),
    SumOfSquares(23, "penalty I", penalty_1, count(1, 10), (7.08765e-5,)),
    SumOfSquares(
        24, "penalty II", penalty_2, torch.full((10,), 0.5, dtype=FLOAT), (2.93660e-4,)
    ),
    SumOfSquares(25, "variably dimensioned", variably_dimensioned, 1 - count(1, 10) / 10),
    SumOfSquares(
        26,
        "trigonometric",
        trigonometric,
        torch.full((10,), 0.1, dtype=FLOAT),
        (0.0, 2.79506e-5),
    ),
    SumOfSquares(
        27,
        "Brown almost linear",
        brown_almost_linear,
        torch.full((10,), 0.5, dtype=FLOAT),
        (0.0, 1.0),
    ),
    SumOfSquares(
        28, "discrete boundary value", discrete_boundary_value, boundary_start(20)
    ),
    SumOfSquares(
        29, "discrete integral equation", discrete_integral_equation, boundary_start(20)
    ),
    SumOfSquares(
        30, "Broyden tridiagonal", broyden_tridiagonal, -torch.ones(40, dtype=FLOAT)
    ),
    SumOfSquares(31, "Broyden banded", broyden_banded, -torch.ones(40, dtype=FLOAT)),
    SumOfSquares(35, "Chebyquad", chebyquad, count(1, 8) / 9, (3.51687e-3,)),
)
