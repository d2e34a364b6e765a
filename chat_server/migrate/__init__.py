"""python run.py migrate: copies what one set of stores holds to another, or what the Go original stored."""

from chat_server.migrate.command import add_options, run

__all__ = ["add_options", "run"]
