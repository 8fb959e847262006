"""Trunkline: a self-hosted relay that speaks the Azure Relay protocols, and an asyncio SDK for both.

    from trunkline import HybridConnectionClient, HybridConnectionListener

Everything else of the SDK is in `trunkline.sdk`, its errors in `trunkline.protocol.errors`.
"""

from typing import TYPE_CHECKING

from trunkline._version import __version__

if TYPE_CHECKING:
    from trunkline.sdk import HybridConnectionClient, HybridConnectionListener

__all__ = ["HybridConnectionClient", "HybridConnectionListener", "__version__"]


def __getattr__(name: str) -> object:
    """The SDK's two entrances, loaded when they are asked for: a node and `trunkline.protocol` do without them."""
    if name in ("HybridConnectionClient", "HybridConnectionListener"):
        from trunkline import sdk

        return getattr(sdk, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
