"""Drivers for spawners that many use; each is also an example."""
