"""A relay node.

    node        knows all parts: builds, starts and stops them in order
    relay/      the data plane
    entities/   the product's nouns, where they are kept, and who may do what
    config/     settings of a node and the declarative file
    tls         certificates: from files, or from the node's own development authority
    status      what the admin port answers

Never imports `trunkline.sdk`: compatibility is proved with other people's clients.
"""
