"""How a loss is evaluated: losses with their curvature, label kinds, GGN products, objectives."""
