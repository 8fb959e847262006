"""Namespaces, hybrid connections and authorization rules: what they are, where they are kept, who may do what.

In the order in which a change reaches a connection:

    model           the nouns, and the documents they are kept as
    declaration     makes the store hold what the declarative file says
    administration  the writes: creating, changing and removing entities, with their count
    store           the interface of what keeps documents, and the feed of their changes
    sqlite          one file on one node
    catalog         everything in memory, fed by that feed; the data plane looks things up here only
    authorization   a token becomes a grant; whether a grant still stands
"""
