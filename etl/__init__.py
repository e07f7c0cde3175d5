"""Brings facility records into the database: adapter -> frames -> validate -> diff -> guard -> load, in one transaction."""
