"""The protocol core: pure data and state machines, no I/O."""
