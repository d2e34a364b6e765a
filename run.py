"""python run.py [--config FILE]: start the server, or run one of its commands."""

import sys

if __name__ == "__main__":
    try:
        from chat_server.cli import main

        sys.exit(main())
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("chat_server"):
            raise
        sys.exit(f"chat-server: the package {error.name} is missing; `make run` installs all requirements and starts")
