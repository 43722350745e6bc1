"""Symmetric operators by products, and what they combine to."""
