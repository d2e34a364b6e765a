"""The protocol as a whole: a model of it and the server are led through the same steps, and never differ."""

import os
from collections.abc import Mapping
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests import servers
from tests.walk.machine import Walk
from tests.walk.server_thread import ServerThread

STEPS = 40
# The same walks each time; where CHAT_TEST_WALKS is set, so many other ones.
WALKS = int(os.environ.get("CHAT_TEST_WALKS", "0"))


def walk(folder: Path, stores: Mapping[str, str], walks: int) -> None:
    """Go so many walks."""
    house = Walk.house = ServerThread(folder, stores)
    try:
        run_state_machine_as_test(
            Walk,
            settings=settings(
                max_examples=WALKS or walks,
                stateful_step_count=STEPS,
                deadline=None,
                derandomize=not WALKS,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        house.close()


def test_the_server_does_what_the_model_expects_on_the_embedded_store(tmp_path: Path) -> None:
    walk(tmp_path, {}, 20)


def test_the_server_does_what_the_model_expects_on_the_servers(tmp_path: Path) -> None:
    with servers.running() as databases:
        walk(tmp_path, servers.environ(**{database.name: database for database in databases}), 5)
