"""Fixtures for pytest that give a real relay node."""
