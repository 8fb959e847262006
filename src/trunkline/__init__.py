"""Trunkline: a self-hosted relay that speaks the Azure Relay protocols, and an asyncio SDK for both."""

from trunkline._version import __version__

__all__ = ["__version__"]
