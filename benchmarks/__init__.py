"""What `make bench` runs: a node beside a bare forwarder and others, in turn.

    options     the command line, and which cases it chooses
    servers     the measured processes that are written in Python: node, forwarder, a relay on aiohttp
    processes   starts what is measured, and asks for its processor time and memory
    streams     one end of a connection: a blocking socket, with TLS or without
    pairs       a sender and a listener with something between them
    subjects    everything that is compared, with the way to make pairs through it
    load        streams of messages, round trips, and a look at the content
    connects    connections set up in a second
    paced       messages that come one by one, evenly
    memory      what idle ones cost
    cases       all of these in rounds, made to rows

    applications  what answers HTTP requests: listeners, and the same application without a relay
    routes        the ways to them that are compared
    exchanges     requests: as many as get through, or one whenever it is due
    bodies        large ones
    http_cases    all of these in rounds, made to rows

    rounds      what all cases share
    report      medians of ratios, tables
    hot_path    profiles of the node

Machines differ and are noisy: a ratio of two measurements of the same minute is worth more than any absolute figure.
"""
