"""The protocol core: data and state machines, no I/O. In the order data meets the pieces:

    proxy_protocol     whose connection it is that a proxy passes on
    http_body          which body a request has, and its bytes
    urls               what a request target asks for; the addresses handed out
    connection_string  where an entity is, and with which key
    sas                shared access signatures: made, read, checked
    limits             every number a user can set, and the constants of the wire
    frames             bytes <-> WebSocket frames and messages
    messages           text <-> commands of the control channel
    control_channel    a listener's long-lived WebSocket, both ends of it; what they say is in channel_commands
    http_forwarding    what of a plain HTTP request and its response is passed on
    relayed_http       one plain HTTP request, from its head to the end of its answer
    http_rendezvous    the WebSocket of one large request or answer, both ends of it
    rendezvous         one sender, from its offer to the join
    splice             two joined WebSockets, frame by frame
    causes, errors     why a channel or a connection ended; everything that can go wrong, with status and close code
    records            data that nobody changes, and that is cheap to make

Events and the time go in, commands come out; what runs them is in `trunkline.server` and `trunkline.sdk`.
"""
