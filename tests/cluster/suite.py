"""The e2e suite on several processes: CHAT_TEST_PROCESSES=2 .venv/bin/python -m pytest tests/e2e

Every request and every socket goes to the next process. A test that cannot make sense there is skipped, with a reason
that begins with "one process:". Three rules decide, so no test is edited for it:

- a fixture that changes code in the process of the test (FIXTURES)
- an argument of `serving` or `subprocess_server` that one process of many cannot have
- the list ONE_PROCESS
"""

import asyncio
import atexit
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, cast

import pytest

from chat_server.utils.clock import Clock
from tests.cluster.harness import PROCESSES, Databases, ProcessGroup, cluster, data_name, running_databases
from tests.harness import SubprocessServer

PREFIX = "one process: "
FIXTURES = {
    "monkeypatch": "the test changes code or variables of its own process",
    "caplog": "the test reads the log of its own process",
}
EMBEDDED = "the test reads, changes or damages the embedded database"
FOLDER = "the test is about the files of the embedded database"
COMMANDS = "the test runs commands on the embedded stores"
MEMORY = "the test is about the memory of its own process"
PROCESS = "the test measures or signals one process"
CONFIRMED = "a pong is stored a little later, and another process sees it then (docs/protocol.md, section 3.7)"
KEPT = "several processes keep confirmations that arrive too early (docs/decisions/0002-several-processes.md, Order)"
REMOVAL = (
    "several processes erase a user's messages after more than a minute (docs/decisions/0002-several-processes.md)"
)
BALANCER = "the buffers of the balancer hide from the server how a client reads"
PER_PROCESS = "the limit applies to each process (docs/protocol.md, section 3.7)"
PASSWORDS = "each process has its own queue of passwords"
TOGETHER = "the server must stop when its client does: two heartbeats without a pong take a fifth of a second"
PORT = "the test listens on the port of the killed server, which the balancer still has"
# File, or file::test, below tests/e2e -> the reason.
ONE_PROCESS: dict[str, str] = {
    "test_backup.py": FOLDER,
    "test_data_folder.py": FOLDER,
    "test_migrate.py": COMMANDS,
    "test_migrate_from_go.py": COMMANDS,
    "test_upgrade.py": EMBEDDED,
    "test_users.py::test_a_removed_user_with_messages_leaves_nothing": REMOVAL,
    "test_users.py::test_a_removed_user_with_kept_messages_keeps_the_name": REMOVAL,
    "test_users.py::test_messages_in_groups_are_erased_on_request": REMOVAL,
    "test_users.py::test_a_running_server_learns_of_the_members_left": REMOVAL,
    "test_users.py::test_removing_many_messages_does_not_block_the_chat": REMOVAL,
    "test_users.py::test_a_removed_user_leaves_all_groups": REMOVAL,
    "test_users.py::test_only_add_creates_a_missing_data_folder": FOLDER,
    "test_users.py::test_an_export_contains_all_data_of_only_this_user": EMBEDDED,
    "test_streams.py::test_in_release_mode_a_failed_start_is_json": FOLDER,
    "test_streams.py::test_unencodable_output_is_escaped": FOLDER,
    "test_accounts.py::test_existing_users_keep_names_that_are_now_refused": EMBEDDED,
    "test_accounts.py::test_hashes_of_unprepared_passwords_verify": EMBEDDED,
    "test_accounts.py::test_a_hash_made_by_the_go_server_verifies": EMBEDDED,
    "test_accounts.py::test_only_token_digests_and_password_hashes_are_stored": EMBEDDED,
    "test_backpressure.py::test_live_messages_over_outbox_bytes_close_with_1013": BALANCER,
    "test_backpressure.py::test_vanished_sockets_leak_nothing": MEMORY,
    "test_blocks.py::test_a_user_blocks_at_most_a_thousand_others": EMBEDDED,
    "test_blocks.py::test_nothing_passes_after_the_answer": EMBEDDED,
    "test_blocks.py::test_a_new_user_of_a_removed_name_is_not_blocked": COMMANDS,
    "test_chat.py::test_a_retry_after_a_store_failure_delivers_once": EMBEDDED,
    "test_chat.py::test_known_users_chat_while_the_user_store_is_unavailable": EMBEDDED,
    "test_cli.py::test_check_reports_its_findings_and_changes_nothing": COMMANDS,
    "test_cli.py::test_check_does_not_affect_a_running_server": COMMANDS,
    "test_cli.py::test_check_after_a_kill_changes_nothing": COMMANDS,
    "test_cli.py::test_a_second_signal_ends_the_server_immediately": EMBEDDED,
    "test_cli.py::test_a_second_process_on_the_same_data_is_refused": FOLDER,
    "test_connection.py::test_a_deleted_session_closes_its_sockets_with_4001": EMBEDDED,
    "test_connection.py::test_an_unavailable_store_closes_no_socket": EMBEDDED,
    "test_contact_limit.py::test_a_message_that_was_not_stored_counts_once": EMBEDDED,
    "test_costs.py::test_a_closed_socket_is_freed_without_garbage_collection": MEMORY,
    "test_examples.py::test_both_examples_chat_and_survive_a_restart": PORT,
    "test_examples.py::test_both_examples_chat_in_a_group": PORT,
    "test_extremes.py::test_a_very_long_conversation_list_is_complete": EMBEDDED,
    "test_go_faults.py::test_history_recovers_with_the_store": EMBEDDED,
    "test_go_faults.py::test_nothing_is_acknowledged_while_the_store_is_unavailable": EMBEDDED,
    "test_group_barrier.py::test_no_former_member_passes_after_the_answer": EMBEDDED,
    "test_group_chat.py::test_a_pong_skips_no_message_that_was_missed": KEPT,
    "test_heartbeat.py::test_an_idle_client_that_answers_pings_stays": TOGETHER,
    "test_heartbeat.py::test_an_idle_client_of_another_library_stays": TOGETHER,
    "test_heartbeat.py::test_an_unresponsive_client_is_disconnected": TOGETHER,
    "test_heartbeat.py::test_a_client_that_sends_a_frame_slowly_stays": TOGETHER,
    "test_heartbeat.py::test_a_client_that_reads_a_page_slowly_stays": TOGETHER,
    "test_heartbeat.py::test_a_reader_that_stops_in_a_page_is_disconnected": BALANCER,
    "test_heartbeat.py::test_a_half_closed_reader_that_stops_is_disconnected": BALANCER,
    "test_heartbeat.py::test_a_client_that_reads_each_message_stays": BALANCER,
    "test_heartbeat.py::test_a_user_that_sends_too_fast_is_read_more_slowly": PER_PROCESS,
    "test_heartbeat.py::test_a_new_socket_gets_no_new_burst": PER_PROCESS,
    "test_http.py::test_an_error_in_the_server_is_500": EMBEDDED,
    "test_http.py::test_an_unresponsive_database_is_503_until_it_recovers": EMBEDDED,
    "test_http.py::test_health_reports_an_unresponsive_database": EMBEDDED,
    "test_http.py::test_an_unreadable_database_is_unavailable": EMBEDDED,
    "test_http.py::test_a_database_too_damaged_to_write_is_unavailable": EMBEDDED,
    "test_limits.py::test_a_disconnected_client_leaves_the_queue": EMBEDDED,
    "test_limits.py::test_a_flood_of_logins_does_not_delay_other_addresses": PASSWORDS,
    "test_limits.py::test_sockets_per_address_are_limited": PER_PROCESS,
    "test_logs.py::test_debug_lines_are_readable_and_contain_no_secret": EMBEDDED,
    "test_logs.py::test_release_lines_are_json_and_contain_no_secret": EMBEDDED,
    "test_many_sockets.py": MEMORY,
    "test_metrics.py::test_store_calls_and_batches_are_measured": MEMORY,
    "test_metrics.py::test_labels_are_few_and_contain_no_user": EMBEDDED,
    "test_promises.py::test_a_pong_confirms_only_what_preceded_its_ping": CONFIRMED,
    "test_promises.py::test_contacts_chat_while_the_counters_are_unavailable": EMBEDDED,
    "test_promises.py::test_logout_answers_after_the_frames_in_progress": EMBEDDED,
    "test_promises.py::test_an_upgrade_during_logout_is_refused_or_closed": EMBEDDED,
    "test_promises.py::test_no_frame_to_an_ended_session_passes_after_the_answer": BALANCER,
    "test_streams.py::test_repeated_errors_are_counted": EMBEDDED,
}


def reason(file: str, test: str, fixtures: Sequence[str]) -> str | None:
    """Return the reason for which a test cannot run on several processes, or None."""
    found = [text for name, text in FIXTURES.items() if name in fixtures]
    found += [text for key, text in ONE_PROCESS.items() if key in (file, f"{file}::{test}")]
    return PREFIX + found[0] if found else None


def _skip(why: str) -> NoReturn:
    pytest.skip(PREFIX + why)


@cache
def databases() -> Databases:
    """Start the databases, once for all tests of this run."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(running_databases(durable=False))


def command_environ(folder: Path) -> dict[str, str]:
    """Return the environment of commands on the stores of the servers with this `folder`."""
    return databases().environ(data_name(folder)) | {"CHAT_SERVICE_PROCESSES": "many"}


@asynccontextmanager
async def serving(
    folder: Path, clock: Clock | None, *, stores: Mapping[str, str] | None, **options: Any
) -> AsyncIterator[ProcessGroup]:
    """Replace `harness.serving`."""
    if clock:
        _skip("the test moves the clock of its own process")
    if stores:
        _skip("the test selects stores")
    if "MetricsPort" in options:
        _skip("each process has metrics of its own")
    port = options.pop("HttpPort", 0)
    started = await asyncio.to_thread(databases)
    async with cluster(folder, started, PROCESSES, port=port, **options) as running:
        yield running


@asynccontextmanager
async def subprocess_server(
    folder: Path, *, prefix: tuple[str, ...], coverage: bool = True, **options: Any
) -> AsyncIterator[SubprocessServer]:
    """Replace `harness.subprocess_server`. A cluster has the same methods, for all of its processes."""
    if prefix:
        _skip("the test runs the server under another program")
    if not coverage:
        _skip(PROCESS)
    options = {"stores": None, "log": folder.parent / "server.log", **options}
    async with serving(folder, None, **options) as running:
        yield cast("SubprocessServer", running)
