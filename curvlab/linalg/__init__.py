"""The algebra: block vectors, linear operators, conjugate gradients.  Imports torch and errors only."""
