"""A contract suite for spawners of JupyterHub: what the hub does to a spawner in trouble, played on a real hub."""

from .driver import Driver

__all__ = ["Driver"]
