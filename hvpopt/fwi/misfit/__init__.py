"""Waveform misfits, and illumination."""
