"""Curves of runs and pictures of tasks, drawn with matplotlib, which is an extra: ``curvlab[plot]``."""
