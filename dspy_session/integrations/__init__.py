"""Tools that people already have, each in a module of its own that needs an extra."""
