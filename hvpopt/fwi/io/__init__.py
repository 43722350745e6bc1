"""Models and gathers in files."""
