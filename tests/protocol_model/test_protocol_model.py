"""The model of the protocol and a real server perform the same steps; their frames never differ."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from tests import servers
from tests.harness import SEARCH
from tests.protocol_model.machine import GroupAction, ProtocolMachine, group_actions
from tests.protocol_model.server_runner import ServerRunner

STEPS = 40


def run_sequences(folder: Path, stores: Mapping[str, str], count: int) -> None:
    """Compare the model with a server in `count` sequences of steps."""
    with serving(folder, stores):
        run_state_machine_as_test(ProtocolMachine, settings=options(count, stateful_step_count=STEPS))


def run_group_sequences(folder: Path, stores: Mapping[str, str], count: int, *phases: Phase) -> None:
    """The same with steps in one group, which change the members more often."""

    @options(count, phases=phases or tuple(Phase))
    @given(actions=st.lists(group_actions, min_size=STEPS, max_size=2 * STEPS))
    def run(actions: Sequence[GroupAction]) -> None:
        machine = ProtocolMachine()
        try:
            machine.begin()
            machine.acts_in_a_group(actions)
        finally:
            machine.teardown()

    with serving(folder, stores):
        run()


@contextmanager
def serving(folder: Path, stores: Mapping[str, str]) -> Iterator[None]:
    """Run the server that all sequences share."""
    runner = ProtocolMachine.runner = ServerRunner(folder, stores)
    try:
        yield
    finally:
        runner.close()


def options(count: int, **more: Any) -> settings:
    """The settings of Hypothesis for `count` sequences: the same in each run, unless it searches longer."""
    return settings(
        max_examples=count * SEARCH,
        derandomize=SEARCH == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
        **more,
    )


def test_server_agrees_with_the_model_on_embedded_stores(tmp_path: Path) -> None:
    run_sequences(tmp_path, {}, 20)


def test_server_agrees_with_the_model_in_groups(tmp_path: Path) -> None:
    run_group_sequences(tmp_path, {}, 15)


def test_server_agrees_with_the_model_on_database_servers(tmp_path: Path) -> None:
    with servers.running() as databases:
        stores = servers.environ(**{database.name: database for database in databases})
        run_sequences(tmp_path, stores, 5)
        run_group_sequences(tmp_path, stores, 3)
