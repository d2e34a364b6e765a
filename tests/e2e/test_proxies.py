"""The samples in docs/proxy work in the real proxies: TLS, client addresses, sockets, no token in a log."""

import asyncio
import logging
import os
import re
import shutil
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple, cast

import httpx
import pytest
import websockets

from tests import needs
from tests.e2e.http_helpers import check_refusal, check_success
from tests.faults.test_tls import Authority
from tests.harness import PASSWORD, ROOT, TIMEOUT, ChatClient, ServerHandle, serving
from tests.servers import free_port

SAMPLES = ROOT / "docs" / "proxy"
# Another address of this machine, different from the address of the proxy.
CLIENT = "127.0.0.2"
TOKEN = "a-token-that-no-log-may-hold"


class Ports(NamedTuple):
    """The ports of a proxy, with and without TLS, and of one server, or of two with `Processes = many`."""

    tls: int
    plain: int
    behind: Sequence[int]


Sample = Callable[[Path, Ports, Path, Path], tuple[str, ...]]


class RunningProxy(NamedTuple):
    """A running proxy. Its logs are the *.log files in `folder`."""

    ports: Ports
    trust: ssl.SSLContext
    folder: Path

    @property
    def url(self) -> str:
        """The HTTPS URL of the proxy."""
        return f"https://127.0.0.1:{self.ports.tls}"

    def client(self) -> httpx.AsyncClient:
        """Return a client whose address differs from the proxy's and whose headers claim a third address."""
        transport = httpx.AsyncHTTPTransport(verify=self.trust, local_address=CLIENT, trust_env=False)
        headers = {"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Host": "elsewhere.example"}
        return httpx.AsyncClient(base_url=self.url, transport=transport, headers=headers, timeout=TIMEOUT)

    @asynccontextmanager
    async def chat(self, user: str, to: str, token: str) -> AsyncIterator[ChatClient]:
        """Open a socket through the proxy with the token in the URL."""
        url = f"{self.url.replace('https', 'wss')}/chat/test?uid={user}&to_uid={to}&token={token}"
        headers = {"Origin": self.url}
        async with websockets.connect(url, ssl=self.trust, proxy=None, additional_headers=headers) as connection:
            chat = ChatClient(connection, user, to)
            assert (await chat.receive())["op_type"] == 40003
            yield chat

    def logs(self) -> str:
        """Return the contents of all logs."""
        return "".join(path.read_text() for path in self.folder.glob("*.log"))


def nginx(folder: Path, ports: Ports, certificate: Path, key: Path) -> tuple[str, ...]:
    """Return the command that runs nginx with the sample, included as in Debian's nginx.conf."""
    sample = changed(
        "nginx.conf",
        {
            "listen 80;": f"listen 127.0.0.1:{ports.plain};",
            "listen 443 ssl;": f"listen 127.0.0.1:{ports.tls} ssl;",
            "/etc/letsencrypt/live/chat.example.org/fullchain.pem": str(certificate),
            "/etc/letsencrypt/live/chat.example.org/privkey.pem": str(key),
            "/var/log/nginx": str(folder),
            "127.0.0.1:8081": f"127.0.0.1:{ports.behind[0]}",
        },
    )
    for port in ports.behind[1:]:
        sample = sample.replace("# server 127.0.0.1:8082", f"server 127.0.0.1:{port}")
    (folder / "chat.conf").write_text(sample)
    places = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    http = "".join(f"{place}_temp_path {folder}/{place};\n" for place in places)
    http += f"access_log {folder}/access.log;\nerror_log {folder}/error.log;\ninclude {folder}/chat.conf;\n"
    user = "user root;\n" if os.geteuid() == 0 else ""
    (folder / "main.conf").write_text(f"{user}daemon off;\npid {folder}/pid;\nevents {{}}\nhttp {{\n{http}}}\n")
    return "nginx", "-e", f"{folder}/start.log", "-c", f"{folder}/main.conf"


def caddy(folder: Path, ports: Ports, certificate: Path, key: Path) -> tuple[str, ...]:
    """Return the command that runs Caddy with the sample."""
    sample = changed(
        "Caddyfile",
        {
            "\n{\n": "\n{\n\tadmin off\n\tauto_https disable_redirects\n",
            "\nhttp://chat.example.org {": f"\nhttp://127.0.0.1:{ports.plain} {{",
            "\nchat.example.org {": f"\nhttps://127.0.0.1:{ports.tls} {{\n\ttls {certificate} {key}",
        },
    )
    if len(ports.behind) > 1:
        sample = sample.replace("\treverse_proxy 127.0.0.1:8081\n", "")
        sample = re.sub(r"\t# (reverse_proxy|\t|\})", r"\t\1", sample)
    for number, port in enumerate(ports.behind, 8081):
        sample = sample.replace(f"127.0.0.1:{number}", f"127.0.0.1:{port}")
    (folder / "Caddyfile").write_text(sample)
    return "caddy", "run", "--adapter", "caddyfile", "--config", f"{folder}/Caddyfile"


def changed(sample: str, values: Mapping[str, str]) -> str:
    """Return the text of a sample with values for this machine."""
    text = (SAMPLES / sample).read_text()
    for old, new in values.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


@pytest.fixture(params=[nginx, caddy])
def sample(request: pytest.FixtureRequest) -> Sample:
    """The sample of each proxy; the test is skipped if the proxy is missing."""
    needs.program(request.param.__name__)
    return cast("Sample", request.param)


@asynccontextmanager
async def running_proxy(sample: Sample, folder: Path, *behind: int) -> AsyncIterator[RunningProxy]:
    """Run the proxy in front of the ports `behind`."""
    authority = Authority(folder, "ours")
    certificate, key = authority.sign("127.0.0.1")
    ports = Ports(free_port(), free_port(), behind)
    command = sample(folder, ports, certificate, key)
    with (folder / "out.log").open("wb") as out:
        environ = {"PATH": needs.PATH, "HOME": str(folder)}
        child = await asyncio.create_subprocess_exec(*command, env=environ, stdout=out, stderr=out)
    try:
        await _listening(ports.tls, child, folder / "out.log")
        yield RunningProxy(ports, ssl.create_default_context(cafile=authority.file), folder)
    finally:
        if child.returncode is None:
            child.terminate()
        await child.wait()


@asynccontextmanager
async def chatting(sample: Sample, folder: Path) -> AsyncIterator[tuple[RunningProxy, ServerHandle]]:
    """Run a server with the users 1 and 2 behind the proxy."""
    async with (
        serving(folder / "data", users=("1", "2"), TrustedProxies="127.0.0.1", HeartbeatSeconds=1.5) as server,
        running_proxy(sample, folder, server.port) as proxy,
    ):
        yield proxy, server


async def _listening(port: int, child: asyncio.subprocess.Process, log: Path) -> None:
    async with asyncio.timeout(TIMEOUT):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                assert child.returncode is None, log.read_text()
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


async def test_a_login_has_the_client_address_and_a_secure_cookie(
    sample: Sample, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        async with chatting(sample, tmp_path) as (proxy, _), proxy.client() as client:
            response = await client.post("/user/login", json={"user_name": "1", "password": PASSWORD})
            check_success(response, 41003)
            assert "Secure" in response.headers["Set-Cookie"]
            assert response.headers["Strict-Transport-Security"] == "max-age=31536000"
            own = await client.post("/user/login", json={"user_name": "1"}, headers={"Origin": proxy.url})
            check_refusal(own, 400, 41002, "bad_request", "password")
            for origin in ("https://elsewhere.example", proxy.url.replace("https", "http")):
                foreign = await client.post("/user/login", json={}, headers={"Origin": origin})
                check_refusal(foreign, 403, 41002, "foreign_origin")
    logins = [vars(record)["address"] for record in caplog.records if record.message == "user logged in"]
    assert logins[-1:] == [CLIENT]


async def test_sockets_work_and_stay_open_while_silent(sample: Sample, tmp_path: Path) -> None:
    async with chatting(sample, tmp_path) as (proxy, server):
        await server.make_contacts("1", "2")
        one, two = server.tokens["1"], server.tokens["2"]
        async with proxy.chat("1", "2", one) as sender, proxy.chat("2", "1", two) as receiver:
            await asyncio.sleep(5)  # more than three heartbeats
            for number in range(50):
                assert (await sender.send(f"m{number}\n{'x' * 10_000}"))["op_type"] == 40018
                assert (await receiver.receive())["id"] == f"m{number}"
        logs = proxy.logs()
        assert one not in logs
        assert two not in logs
        if (proxy.folder / "chat.log").exists():
            assert '"GET /chat/test" 101' in logs


async def test_failing_requests_put_no_token_into_a_log(sample: Sample, tmp_path: Path) -> None:
    """The server is unavailable, the request is malformed, or the proxy itself fails."""
    address = f"/chat/test?uid=1&to_uid=2&token={TOKEN}"
    headers = {"Referer": f"https://chat.example.org{address}", "Authorization": f"Bearer {TOKEN}"}
    headers["Cookie"] = f"session={TOKEN}"
    async with running_proxy(sample, tmp_path, free_port()) as proxy, proxy.client() as client:
        assert (await client.get(address, headers=headers)).status_code == 502
        shutil.rmtree(proxy.folder / "client_body", ignore_errors=True)  # the folder of nginx for large bodies
        failed = await client.post(address, content=b"x" * 1_000_000, headers=headers)
        assert failed.status_code in (500, 502)
        _, writer = await asyncio.open_connection("127.0.0.1", proxy.ports.tls)
        writer.write(f"GET {address} HTTP/1.1\r\nHost: chat.example.org\r\n\r\n".encode())  # without TLS
        await writer.drain()
        writer.close()
    assert proxy.logs().count("502") >= 1
    assert TOKEN not in proxy.logs()


async def test_without_tls_a_token_is_neither_logged_nor_forwarded(sample: Sample, tmp_path: Path) -> None:
    async with running_proxy(sample, tmp_path, free_port()) as proxy:
        url = f"http://127.0.0.1:{proxy.ports.plain}/chat/test?uid=1&token={TOKEN}"
        async with httpx.AsyncClient(trust_env=False, timeout=TIMEOUT) as client:
            answer = await client.get(url, headers={"Referer": url})
        assert answer.status_code == 301
        assert answer.headers["Location"] == "https://chat.example.org/"
    assert TOKEN not in proxy.logs()
