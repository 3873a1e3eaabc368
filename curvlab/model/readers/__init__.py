"""Readers of torch's own layers, one kind of layer in a file."""
