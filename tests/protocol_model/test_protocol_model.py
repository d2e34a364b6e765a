"""The model of the protocol and a real server perform the same steps; their frames never differ."""

import os
from collections.abc import Mapping
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests import servers
from tests.protocol_model.machine import ProtocolMachine
from tests.protocol_model.server_runner import ServerRunner

STEPS = 40
# The number of sequences. By default, the sequences are the same in each run; CHAT_TEST_SEQUENCES tries others.
SEQUENCES = int(os.environ.get("CHAT_TEST_SEQUENCES", "0"))


def run_sequences(folder: Path, stores: Mapping[str, str], count: int) -> None:
    """Compare the model with a server in `count` sequences of steps, or in CHAT_TEST_SEQUENCES."""
    runner = ProtocolMachine.runner = ServerRunner(folder, stores)
    try:
        run_state_machine_as_test(
            ProtocolMachine,
            settings=settings(
                max_examples=SEQUENCES or count,
                stateful_step_count=STEPS,
                deadline=None,
                derandomize=not SEQUENCES,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        runner.close()


def test_server_agrees_with_the_model_on_embedded_stores(tmp_path: Path) -> None:
    run_sequences(tmp_path, {}, 20)


def test_server_agrees_with_the_model_on_database_servers(tmp_path: Path) -> None:
    with servers.running() as databases:
        run_sequences(tmp_path, servers.environ(**{database.name: database for database in databases}), 5)
