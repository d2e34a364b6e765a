"""Passwords: hashing and checking in a small pool of threads, the fair queue and its longest wait."""

import asyncio
import threading
import time
import unicodedata
from collections.abc import AsyncIterator
from typing import Any, Literal

import bcrypt
import pytest

from chat_server.conf import AccountSettings
from chat_server.service.accounts import Accounts
from chat_server.service.coordinator import SingleProcess
from chat_server.status import Reason, Refused
from chat_server.utils.clock import Clock, Timeline
from chat_server.utils.completion import Completion
from chat_server.utils.passwords import MAX_BYTES, MAX_INPUT, Passwords, TooBusy, prepare
from tests.harness import TIMEOUT, wait_until

# Slow enough that later requests must wait.
SLOW = 11


@pytest.fixture
async def passwords() -> AsyncIterator[Passwords]:
    """Passwords with the lowest cost."""
    passwords = Passwords(cost=4, timeout=60)
    yield passwords
    passwords.close()


async def test_a_hash_matches_only_its_password(passwords: Passwords) -> None:
    for password in ("secret1", "日本語日本語", "x" * MAX_BYTES, " "):
        hashed = await passwords.hash(password)
        assert await passwords.check(password, hashed)
        for other in (password + "x", password[:-1], password.swapcase() + "!"):
            assert not await passwords.check(other, hashed)


async def test_each_hash_of_a_password_is_different(passwords: Passwords) -> None:
    assert await passwords.hash("secret1") != await passwords.hash("secret1")


async def test_a_hash_has_the_configured_cost() -> None:
    for cost in (4, 5):
        passwords = Passwords(cost, timeout=60)
        assert (await passwords.hash("secret1")).startswith(f"$2b$0{cost}$")
        passwords.close()


async def test_hashes_made_by_go_verify(passwords: Passwords) -> None:
    """golang.org/x/crypto/bcrypt writes $2a$; the Go server used cost 12."""
    for cost in (4, 12):
        made = bcrypt.hashpw("geheim ü".encode(), bcrypt.gensalt(cost)).replace(b"$2b$", b"$2a$", 1).decode()
        assert made.startswith(f"$2a${cost:02d}$")
        assert await passwords.check("geheim ü", made)
        assert not await passwords.check("geheim u", made)


async def test_a_password_beyond_the_limit_of_bcrypt_is_wrong(passwords: Passwords) -> None:
    hashed = await passwords.hash("x" * MAX_BYTES)
    for longer in ("x" * (MAX_BYTES + 1), "x" * 10_000, "日" * 25):
        assert not await passwords.check(longer, hashed)


async def test_a_password_with_a_nul_is_always_wrong(passwords: Passwords) -> None:
    """bcrypt alone would accept this one: its key is the password and a NUL, repeated."""
    assert not await passwords.check("secret1\0secret1", await passwords.hash("secret1"))


async def test_an_unknown_user_has_no_correct_password(passwords: Passwords) -> None:
    for password in ("secret1", "", "x" * 100, "\0"):
        assert not await passwords.check(password, None)


@pytest.mark.parametrize(
    "password", ["secret1", "s\u00e9cret", "se\u0301cret", "x" * 73, "\u3000" * 24, "\u3000" * 25, "\0"]
)
async def test_an_unknown_user_costs_the_same_number_of_hashes(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    """Also if a password has two forms to try, whichever of them is correct."""
    checked: list[bytes] = []
    check = bcrypt.checkpw

    def counting(secret: bytes, hashed: bytes) -> bool:
        checked.append(secret)
        return check(secret, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", counting)
    right = password if len(password.encode()) <= MAX_BYTES and "\0" not in password else "secret1"
    unprepared = bcrypt.hashpw(right.encode(), bcrypt.gensalt(4)).decode()
    costs = []
    for hashed in (None, await passwords.hash("another1"), await passwords.hash(right), unprepared, ""):
        checked.clear()
        await passwords.check(password, hashed)
        costs.append(len(checked))
    assert len(set(costs)) == 1
    assert costs[0] == (2 if prepare(password) != password and len(password.encode()) <= MAX_BYTES else 1)


def test_only_short_passwords_are_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [0]
    normalize = unicodedata.normalize

    def counting(form: Literal["NFC"], text: str) -> str:
        lengths.append(len(text))
        return normalize(form, text)

    monkeypatch.setattr(unicodedata, "normalize", counting)
    for part in ("\u0301", "\u0315\u0300", "\u3000", "\u03b1\u0313\u0300\u0345"):
        for size in (MAX_BYTES, MAX_INPUT, MAX_INPUT + 1, 16384):
            prepare((part * size)[:size])
    assert max(lengths) == MAX_INPUT


def test_a_prepared_byte_comes_from_at_most_two_code_points() -> None:
    """MAX_INPUT relies on it."""
    for point in range(0x110000):
        composed = chr(point).encode("utf-8", "surrogatepass")
        assert len(unicodedata.normalize("NFD", chr(point))) <= len(composed) * MAX_INPUT // MAX_BYTES


async def test_clients_take_turns() -> None:
    passwords = Passwords(cost=4, timeout=60)
    order: list[str] = []

    async def hash_for(client: str) -> None:
        await passwords.hash("secret1", client)
        order.append(client)

    flood = [asyncio.create_task(hash_for("flood")) for _ in range(200)]
    await asyncio.sleep(0)
    await asyncio.gather(*(hash_for(f"neighbour {number}") for number in range(3)))
    assert order.count("flood") < 100
    await asyncio.gather(*flood)
    passwords.close()


async def test_a_flood_of_one_client_leaves_room_for_others() -> None:
    passwords = Passwords(SLOW, timeout=20)
    await passwords.hash("secret1")
    flood = [asyncio.create_task(passwords.hash("secret1", "flood")) for _ in range(500)]
    await asyncio.sleep(0)
    with pytest.raises(TooBusy):
        passwords.check_wait("flood")
    passwords.check_wait("neighbour")
    for task in flood:
        task.cancel()
    await asyncio.gather(*flood, return_exceptions=True)
    passwords.close()


async def test_checking_an_unknown_user_takes_as_long() -> None:
    """The time depends on the cost, as for a wrong password; it is neither fixed nor short."""

    async def seconds(cost: int, password: str) -> float:
        passwords = Passwords(cost, timeout=60)
        taken = []
        for _ in range(5):
            started = time.perf_counter()
            assert not await passwords.check(password, None)
            taken.append(time.perf_counter() - started)
        passwords.close()
        return min(taken)

    for password in ("secret1", "x" * 100, "\0"):
        assert await seconds(10, password) > 8 * await seconds(4, password)  # 64 times the work


async def test_a_refusal_says_when_to_retry() -> None:
    passwords = Passwords(SLOW, timeout=0.001)
    hashed = await passwords.hash("secret1")
    answers = await asyncio.gather(*(passwords.check("secret1", hashed) for _ in range(16)), return_exceptions=True)
    busy = [answer for answer in answers if isinstance(answer, TooBusy)]
    assert busy
    assert [answer for answer in answers if answer not in busy] == [True] * (16 - len(busy))
    assert all(answer.retry_after > 0.001 for answer in busy)
    assert await passwords.check("secret1", hashed)  # the queue is empty again
    passwords.close()


async def test_cancelled_checks_leave_the_queue(passwords: Passwords) -> None:
    slow = bcrypt.hashpw(b"secret1", bcrypt.gensalt(13)).decode()
    waiting = [asyncio.create_task(passwords.check("secret1", slow)) for _ in range(256)]
    await asyncio.sleep(0.01)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert passwords.waiting == 0
    async with asyncio.timeout(TIMEOUT):
        assert await passwords.check("secret1", await passwords.hash("secret1"))


async def test_hashing_does_not_block_the_event_loop() -> None:
    passwords = Passwords(SLOW, timeout=60)
    hashing = asyncio.create_task(passwords.hash("secret1"))
    turns = 0
    while not hashing.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 10
    passwords.close()


async def test_the_few_threads_end_at_close() -> None:
    before = set(threading.enumerate())
    passwords = Passwords(cost=4, timeout=60)
    await asyncio.gather(*(passwords.hash("secret1") for _ in range(50)))
    threads = [thread for thread in threading.enumerate() if thread not in before]
    assert 1 <= len(threads) <= 4
    passwords.close()
    await wait_until(lambda: not any(thread.is_alive() for thread in threads))


async def test_a_login_refused_as_too_many_asks_no_store() -> None:
    no_store: Any = None
    passwords = Passwords(SLOW, timeout=0)
    coordinator = SingleProcess(Timeline(Clock()))
    accounts = Accounts(AccountSettings(), no_store, no_store, no_store, passwords, no_store, coordinator, Completion())
    under_way = asyncio.create_task(passwords.hash("secret1"))
    await asyncio.sleep(0)  # hashing starts
    for refused in (accounts.login("1", "secret1", "192.0.2.1"), accounts.register("1", "secret1", "192.0.2.1")):
        with pytest.raises(Refused) as caught:
            await refused
        assert caught.value.reason is Reason.TOO_MANY
    await under_way
    passwords.close()
