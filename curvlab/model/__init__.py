"""How a network is read: which parameters form blocks, and what its layers saw."""
