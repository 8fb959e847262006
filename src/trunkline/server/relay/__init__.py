"""The data plane, in the order in which one connection passes through it:

    frontend         where connections come in; what those of one port share
    front_connection one of them, a request head after the other, until a leg takes it over
    exchange         a request whose answer is owed: its body, and the answer
    forwarded        whose connection it is that a trusted proxy passes on
    request_head     what it asks for, read
    admission        may it listen or connect: the order of checks
    runtime_information   what the relay itself answers to the .NET client
    held_refusals    whose refusals are answered a moment later
    broker           brings a sender and a listener together
    http_relays      the plain HTTP requests in flight
    http_relay       one of them: to a listener, and its answer back
    http_rendezvous  the WebSocket on which a listener fetches a large one, or answers it
    listeners        who listens, who gets the next sender, is there room
    control_channel  tells the listener; keeps its control channel
    splicing         the established connection
    legs             its two WebSockets
    journal          counts and tells what the broker says has happened
    request_record   what is known of a plain HTTP request in flight
    readings         what all of them hold now, as metrics
    prompt           runs what is awaited and mostly ends at once, without a task
    sockets          what all of them share with the system: the receive buffer, keepalive, lost peers, descriptors
Nothing here reads the store: the catalog in memory decides, and its changes come in by `Broker.changed`.
"""
