"""Arithmetic: dtypes, and the one place where matrices are factorized."""
