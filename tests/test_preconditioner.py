"""DiagonalPreconditioner: a damped division."""

import pytest
import torch
from tolerances import ROUNDING

from hvpopt import DiagonalPreconditioner

F64 = torch.float64


def test_divides_by_the_damped_diagonal(generator):
    diagonal = torch.rand(8, generator=generator, dtype=F64)
    vector = torch.randn(8, generator=generator, dtype=F64)
    applied = DiagonalPreconditioner(diagonal, damping=0.05).apply(vector)
    expected = vector / (diagonal + 0.05 * diagonal.max())
    torch.testing.assert_close(applied, expected, rtol=ROUNDING, atol=0)


def test_default_damping_is_one_hundredth_of_the_largest_entry():
    applied = DiagonalPreconditioner(torch.tensor([0.0, 4.0], dtype=F64)).apply(
        torch.ones(2, dtype=F64)
    )
    torch.testing.assert_close(
        applied, torch.tensor([1 / 0.04, 1 / 4.04], dtype=F64), rtol=ROUNDING, atol=0
    )


def test_negative_entries_count_as_zero_and_leave_it_definite():
    diagonal = torch.tensor([-100.0, 0.0, 1.0], dtype=F64)
    applied = DiagonalPreconditioner(diagonal).apply(torch.ones(3, dtype=F64))
    assert applied[0] == applied[1]
    assert bool((applied > 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_keeps_the_dtype_of_the_vector(dtype):
    preconditioner = DiagonalPreconditioner(torch.ones(3, dtype=F64))
    assert preconditioner.apply(torch.ones(3, dtype=dtype)).dtype is dtype


def test_diagonal_and_vector_are_left_alone():
    diagonal, vector = torch.tensor([-1.0, 2.0]), torch.ones(2)
    preconditioner = DiagonalPreconditioner(diagonal)
    applied = preconditioner.apply(vector)
    diagonal.fill_(50.0)
    assert vector.tolist() == [1.0, 1.0]
    assert torch.equal(preconditioner.apply(vector), applied)


def test_is_frozen_and_owns_its_diagonal():
    diagonal = torch.ones(3, dtype=F64)
    preconditioner = DiagonalPreconditioner(diagonal)
    diagonal.zero_()
    assert torch.equal(preconditioner.diagonal, torch.ones(3, dtype=F64))
    with pytest.raises(AttributeError):
        preconditioner.damping = 1.0
    with pytest.raises(ValueError, match="has shape"):
        preconditioner.apply(torch.ones(4, dtype=F64))
