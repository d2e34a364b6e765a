"""An instant-messaging server: one aiohttp process, durable before it acknowledges."""

__version__ = "1.0.0"
