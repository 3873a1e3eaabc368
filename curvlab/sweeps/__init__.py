"""A search over ranges of settings: each trial is an ordinary run, and a search that was stopped goes on."""
