"""The history of benchmarks: asv's results read, commits compared, a table and a page made of them.

Nothing here imports torch or asv: results are JSON, and asv is run as a process of its own.
"""
