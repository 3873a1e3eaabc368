"""Differential equations with known solutions, as tasks."""
