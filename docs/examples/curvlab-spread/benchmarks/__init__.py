"""Benchmarks for asv, which wants a package."""
