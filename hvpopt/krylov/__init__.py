"""Krylov methods. They know operators and vectors, never waves or autograd."""
