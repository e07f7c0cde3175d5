"""Desktops in the browser: the relay between a browser and an instance, and the room in which people share one."""
