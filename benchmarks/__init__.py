"""What `make bench` runs: a node against a bare forwarder, side by side.

    servers     the processes that are measured: a node, and a forwarder of a few lines on the same transports
    load        the peers: blocking sockets and frames made beforehand, so that the load is not what is measured
    __main__    the cases, in interleaved pairs; prints medians of ratios with their spread

Machines differ and are noisy: a ratio of two measurements of the same minute is worth more than any absolute figure.
"""
