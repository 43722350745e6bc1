"""Interoperation of methods, objectives and operators with SciPy and PyLops."""
