"""What a node was told: its settings, and the declarative file.

names        what things may be called
errors       the error of every file, variable and flag
positions    on which line a key stands
declarative  reads ``trunkline.toml``: the node's table and the entities
settings     the table of settings; flags over environment over file over defaults
"""
