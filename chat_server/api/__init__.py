"""HTTP and WebSocket: with app.py the only part of the server that uses aiohttp."""
