"""An instant-messaging server in one aiohttp process. Messages are durable before they are acknowledged."""

__version__ = "1.0.0"
