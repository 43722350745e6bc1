"""Krylov methods. They import operators and vectors, neither waves nor autograd."""
