"""The engine: a method, its one step, its state, and the loop around it.  It knows no part by name."""
