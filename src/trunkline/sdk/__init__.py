"""The asyncio SDK: listener and sender for Trunkline and for Azure Relay."""
