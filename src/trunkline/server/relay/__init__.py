"""The data plane of a node."""
