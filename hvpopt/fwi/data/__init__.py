"""Misfits of data."""
