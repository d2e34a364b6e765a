"""The edge: the only room, with app.py, that knows aiohttp."""
