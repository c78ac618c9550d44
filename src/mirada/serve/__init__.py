"""Serving: the Explorer's page and its calls, on this machine only."""
