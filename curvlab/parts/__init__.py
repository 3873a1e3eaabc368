"""Generic parts, registered like any plugin's."""
