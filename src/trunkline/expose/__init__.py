"""Exposes a web server through a hybrid connection: an application of the SDK, behind `trunkline expose`.

sender -> relay -> listener -> forwarder  -> pool -> the target
                            -> upgrades   ->

exposure    all of it, as the handlers of a listener
target      what a person types for a web server
paths       the address that a sender asked for, and the path that the target gets
headers     what is dropped, added and rewritten, both ways
forwarder   one request and its answer, a piece at a time
upgrades    a WebSocket, by messages
pool        connections to the target, by aiohttp
answers     those that are ours: the target is down, lost, or no web server
access      the public address, and whether senders need a token
health      whether the target is there, told when that changes
report      what somebody who watches is told
"""

from trunkline.expose.exposure import Exposure
from trunkline.expose.headers import HeaderRules
from trunkline.expose.report import Kind, Record, Watcher
from trunkline.expose.target import Target, parse_target, tls_settings

__all__ = ["Exposure", "HeaderRules", "Kind", "Record", "Target", "Watcher", "parse_target", "tls_settings"]
