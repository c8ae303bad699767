"""Notebooks, and what builds them from their sources."""
