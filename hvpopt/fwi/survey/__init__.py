"""Surveys: acquisition, time step and physics."""
