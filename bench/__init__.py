"""Means to measure chat_server beside a bare aiohttp relay: see README.md."""
