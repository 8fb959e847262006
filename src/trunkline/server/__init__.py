"""A relay node."""
