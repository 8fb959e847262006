"""A relay node.

    node          knows all parts: builds, starts and stops them in order
    admin/        the admin port: who is connected, health, levels of the log
    relay/        the data plane
    entities/     the product's nouns, where they are kept, and who may do what
    config/       settings of a node and the declarative file
    tls           certificates: from files, or from the node's own development authority
    metrics       what is counted: one table, and plain integers
    exposition    the metrics as Prometheus reads them
    telemetry     the metrics and spans as OpenTelemetry takes them
    logs          what is told: one table of operations, lines for people or JSON
    spare_memory  gives memory back to the system after a flood
    steady_clock  counts no time in which the node itself stood still
    status        health and readiness

Never imports `trunkline.sdk`: compatibility is proved with other people's clients.
"""
