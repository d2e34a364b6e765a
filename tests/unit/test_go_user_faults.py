"""Faults of the Go server with users, measured before this project began, that this server does not have."""

import asyncio

from tests.e2e.http_helpers import check_refusal, check_success, post, try_login
from tests.harness import ServerHandle


async def test_parallel_registrations_of_a_name_create_one_user(server: ServerHandle) -> None:
    passwords = [f"password {number}" for number in range(8)]
    answers = await asyncio.gather(
        *(post(server, "/user/register", user_name="3", password=password) for password in passwords)
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7
    for answer, password in zip(answers, passwords, strict=True):
        login = await try_login(server, "3", password)
        if answer.status_code == 200:
            check_success(answer, 41001)
            check_success(login, 41003)
        else:
            check_refusal(answer, 409, 41007, "user_exists", "user_name")
            check_refusal(login, 401, 41010, "wrong_password")


async def test_names_are_case_sensitive_everywhere(server: ServerHandle) -> None:
    await server.add_users("anna", "Anna")
    async with (
        server.chat("anna", to="1") as lower,
        server.chat("Anna", to="1") as upper,
        server.chat("1") as sender,
    ):
        for name, chat, other in (("anna", lower, upper), ("Anna", upper, lower)):
            assert (await sender.send("hello", to=name))["op_type"] == 40018
            assert (await chat.receive())["to"] == name
            await other.expect_nothing()
        refusal = await sender.send("hello", to="ANNA")
        assert (refusal["op_type"], refusal["reason"]) == (40008, "no_such_user")
        assert (await sender.ask(7, "-10"))[-1]["content"] == "2"
