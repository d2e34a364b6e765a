"""Benchmarks of chat_server against a bare aiohttp relay: see README.md."""
