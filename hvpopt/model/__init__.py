"""Models: their tensors, their flat space, and what evaluations cost."""
