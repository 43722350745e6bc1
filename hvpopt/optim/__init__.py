"""hvpopt's methods as a ``torch.optim`` optimiser."""

from hvpopt.optim.newton import Newton

__all__ = ["Newton"]
