"""The web service where scientists see their instances and launch new ones."""
