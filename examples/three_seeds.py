"""Two methods with three seeds each on handwritten digits: six run folders below runs, to compare."""

import curvlab

for method in ("kfac", "adamw"):
    for seed in range(3):
        curvlab.train(
            {
                "run": {"name": method, "seed": seed, "epochs": 5, "eval_every": 10, "threads": 1},
                "task": {"use": "digits"},
                "method": {"use": method, "lr": 3e-3},
                "report": {"use": "quiet"},
            }
        )
