"""The command line: arguments in, text out, no logic.  torch is imported by the commands that need it."""
