"""Settings of a node and the declarative file."""
