"""Waveforms of groups of shots, and products of their Hessian."""
