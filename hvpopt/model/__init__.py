"""Models: their tensors, their flat coordinates, and counts of evaluations."""
