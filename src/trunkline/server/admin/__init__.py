"""The admin port: what a node holds, and what an operator may do about it.

    Frontend -> Admin.serve -> who may (doors) -> Answer

doors   the two ways in: a Unix socket for the user of the node, a port with a token
rows    what is shown of a listener and of a connection
routes  which address answers what
"""
