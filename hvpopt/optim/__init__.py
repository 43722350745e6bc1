"""hvpopt's methods as a ``torch.optim`` optimiser."""

from hvpopt.optim.torch_optimizer import Newton

__all__ = ["Newton"]
