"""A race: methods on tasks, each with the same number of settings to try, measured on seeds kept apart."""
