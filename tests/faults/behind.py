"""Listeners and senders of our SDK whose way to the node leads through a faulty network."""

from __future__ import annotations

from typing import Any

from faults.faulty_network import FaultyNetwork
from trunkline.sdk import HybridConnectionClient, HybridConnectionListener
from trunkline.testing import RelayNode


def listener_behind(network: FaultyNetwork, node: RelayNode, **options: Any) -> HybridConnectionListener:
    """Its control channel is the first link, each rendezvous one more: the relay names the port that was dialed."""
    return HybridConnectionListener(_address(network, node), ssl=node.client_context(), **options)


def client_behind(network: FaultyNetwork, node: RelayNode, **options: Any) -> HybridConnectionClient:
    """Each connection is one link."""
    return HybridConnectionClient(_address(network, node), ssl=node.client_context(), **options)


def _address(network: FaultyNetwork, node: RelayNode) -> str:
    return node.connection_string().replace(f":{node.port}", f":{network.port}")
