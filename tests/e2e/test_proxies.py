"""The samples in docs/proxy, each in the real proxy: TLS, the client's own address, sockets, no token in a log."""

import asyncio
import logging
import os
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import websockets

from tests.e2e.answers import done, refused
from tests.faults.test_tls import Authority
from tests.harness import PASSWORD, PATIENCE, ROOT, Chat, Server, serving
from tests.servers import free_port

SAMPLES = ROOT / "docs" / "proxy"
# Another address of this machine, to be told from the proxy's.
CLIENT = "127.0.0.2"


class Proxy(NamedTuple):
    """A proxy in front of a server."""

    server: Server
    port: int
    trust: ssl.SSLContext
    folder: Path

    def client(self) -> httpx.AsyncClient:
        """A client at another address, who says that he is at yet another."""
        transport = httpx.AsyncHTTPTransport(verify=self.trust, local_address=CLIENT, trust_env=False)
        headers = {"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Host": "elsewhere.example"}
        return httpx.AsyncClient(base_url=self.url, transport=transport, headers=headers, timeout=PATIENCE)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"https://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def chat(self, user: str, to: str, **headers: str) -> AsyncIterator[Chat]:
        """A socket through the proxy, its token in the address."""
        url = f"wss://127.0.0.1:{self.port}/chat/test?uid={user}&to_uid={to}&token={self.server.tokens[user]}"
        async with websockets.connect(url, ssl=self.trust, proxy=None, additional_headers=headers) as connection:
            chat = Chat(connection, user, to)
            assert (await chat.receive())["op_type"] == 40003
            yield chat


def nginx(folder: Path, port: int, behind: int, certificate: Path, key: Path) -> tuple[str, ...]:
    """The command that runs nginx with the sample."""
    sample = (SAMPLES / "nginx.conf").read_text()
    for old, new in {
        "listen 80;": f"listen 127.0.0.1:{free_port()};",
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "/etc/letsencrypt/live/chat.example.org/fullchain.pem": str(certificate),
        "/etc/letsencrypt/live/chat.example.org/privkey.pem": str(key),
        "/var/log/nginx": str(folder),
        "127.0.0.1:8081": f"127.0.0.1:{behind}",
    }.items():
        assert old in sample
        sample = sample.replace(old, new)
    (folder / "chat.conf").write_text(sample)
    places = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{place}_temp_path {folder}/{place};\n" for place in places)
    user = "user root;\n" if os.geteuid() == 0 else ""
    main = f"{user}daemon off;\npid {folder}/pid;\nevents {{}}\nhttp {{\n{temporary}include {folder}/chat.conf;\n}}\n"
    (folder / "main.conf").write_text(main)
    return "nginx", "-e", f"{folder}/start.log", "-c", f"{folder}/main.conf"


def caddy(folder: Path, port: int, behind: int, certificate: Path, key: Path) -> tuple[str, ...]:
    """The command that runs Caddy with the sample."""
    sample = (SAMPLES / "Caddyfile").read_text()
    for old, new in {
        "chat.example.org {": f"https://127.0.0.1:{port} {{\n\ttls {certificate} {key}",
        "127.0.0.1:8081": f"127.0.0.1:{behind}",
    }.items():
        assert old in sample
        sample = sample.replace(old, new)
    (folder / "Caddyfile").write_text("{\n\tadmin off\n\tauto_https disable_redirects\n}\n" + sample)
    return "caddy", "run", "--adapter", "caddyfile", "--config", f"{folder}/Caddyfile"


@pytest.fixture(params=[nginx, caddy])
async def proxy(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Proxy]:
    """A server with the users 1 and 2 behind the proxy."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    if not shutil.which(request.param.__name__, path=path):
        if os.environ.get("CHAT_TEST_ALL"):
            raise RuntimeError(f"a proxy is missing: apt-get install {request.param.__name__}")
        pytest.skip(f"the sample for it was left out: apt-get install {request.param.__name__}")
    authority = Authority(tmp_path, "ours")
    certificate, key = authority.sign("127.0.0.1")
    port = free_port()
    async with serving(tmp_path / "data", TrustedProxies="127.0.0.1", HeartbeatSeconds=0.5) as server:
        await server.users("1", "2")
        command = request.param(tmp_path, port, server.port, certificate, key)
        with (tmp_path / "out.log").open("wb") as out:
            environ = {"PATH": path, "HOME": str(tmp_path)}
            child = await asyncio.create_subprocess_exec(*command, env=environ, stdout=out, stderr=out)
        try:
            await _listening(port, child, tmp_path / "out.log")
            yield Proxy(server, port, ssl.create_default_context(cafile=authority.file), tmp_path)
        finally:
            if child.returncode is None:
                child.terminate()
            await child.wait()


async def _listening(port: int, child: asyncio.subprocess.Process, log: Path) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                assert child.returncode is None, log.read_text()
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


async def test_a_login_through_it_is_the_clients_own_and_its_cookie_secure(
    proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        async with proxy.client() as client:
            response = await client.post("/user/login", json={"user_name": "1", "password": PASSWORD})
            done(response, 41003)
            assert "Secure" in response.headers["Set-Cookie"]
            assert response.headers["Strict-Transport-Security"] == "max-age=31536000"
            own = await client.post("/user/login", json={"user_name": "1"}, headers={"Origin": proxy.url})
            refused(own, 400, 41002, "bad_request", "password")
            for origin in ("https://elsewhere.example", proxy.url.replace("https", "http")):
                foreign = await client.post("/user/login", json={}, headers={"Origin": origin})
                refused(foreign, 403, 41002, "foreign_origin")
    assert [vars(record)["address"] for record in caplog.records if record.message == "logged in"] == [CLIENT]


async def test_sockets_go_through_it_silent_ones_too_and_no_log_has_their_tokens(proxy: Proxy) -> None:
    await proxy.server.friends("1", "2")
    async with proxy.chat("1", "2", Origin=proxy.url) as one, proxy.chat("2", "1") as two:
        await asyncio.sleep(2)  # some heartbeats
        for number in range(50):
            assert (await one.send(f"m{number}\n{'x' * 10_000}"))["op_type"] == 40018
            assert (await two.receive())["id"] == f"m{number}"
    logs = "".join(path.read_text() for path in proxy.folder.glob("*.log"))
    for user in ("1", "2"):
        assert proxy.server.tokens[user] not in logs
    if (proxy.folder / "chat.log").exists():
        assert '"GET /chat/test" 101' in logs
