"""Namespaces, hybrid connections and authorization rules, and where they are kept."""
