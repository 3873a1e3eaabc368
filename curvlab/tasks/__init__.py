"""Tasks: small, offline, deterministic.  A task is a recipe; its workload is what trains."""
