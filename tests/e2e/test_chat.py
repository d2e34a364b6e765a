"""Op 1: sending to one user (protocol section 2)."""

from tests.harness import Server


async def test_a_message_reaches_the_receiver_and_is_acknowledged(server: Server) -> None:
    async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
        ack = await one.send("m1\nhello")
        assert (ack["op_type"], ack["from"], ack["to"], ack["id"]) == (40018, "System", "1", "m1")
        frame = await two.receive()
        assert frame == {
            "from": "1",
            "to": "2",
            "type": 1,
            "op_type": 40011,
            "content": "m1\nhello",
            "msg": "message received",
            "id": "m1",
            "time": ack["time"],
        }
