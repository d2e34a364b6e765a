"""MySQL and Redis over TLS with generated certificates, and the errors if TLS is not possible."""

import datetime
import os
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from chat_server.model.mysql import connect
from chat_server.model.users import User
from chat_server.utils.errors import StartError
from tests import servers
from tests.faults.stores import count_connections, unavailable
from tests.harness import run_py, serving

PASSWORD = "hunter2-and-more"


class Authority:
    """A certificate authority. Its own certificate is in `file`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        own = self._builder(self._name, self._key, authority=True).sign(self._key, hashes.SHA256())
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(own.public_bytes(serialization.Encoding.PEM))

    def sign(self, address: str) -> tuple[Path, Path]:
        """Return the files with certificate and key for a server at this address."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, address)])
        alternative = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
        signed = self._builder(name, key).add_extension(alternative, False).sign(self._key, hashes.SHA256())
        certificate, private = self._folder / f"{address}.pem", self._folder / f"{address}.key"
        certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate, private

    def _builder(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, *, authority: bool = False
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        usage = x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=authority,
            crl_sign=authority,
            encipher_only=False,
            decipher_only=False,
        )
        return (
            x509.CertificateBuilder(self._name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )


class TlsServers(NamedTuple):
    """Database servers that accept only TLS, their authority, and another authority."""

    mysql: servers.DatabaseServer
    redis_port: int
    ours: Path
    other: Path


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServers]:
    folder = tmp_path_factory.mktemp("certificates")
    ours, other = Authority(folder, "ours"), Authority(folder, "other")
    certificate, key = ours.sign("127.0.0.1")
    files = (f"--ssl-cert={certificate}", f"--ssl-key={key}", f"--ssl-ca={ours.file}")
    port = servers.free_port()
    redis = servers.redis(
        *("--tls-port", str(port), "--tls-auth-clients", "no", "--requirepass", PASSWORD),
        *("--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--tls-ca-cert-file", str(ours.file)),
    )
    mysql = servers.mysql(*files, "--require-secure-transport=ON")
    yield TlsServers(mysql, port, ours.file, other.file)
    mysql.stop()
    redis.stop()


def mysql_over_tls(encrypted: TlsServers, authority: Path | str, tls: str = "verified") -> dict[str, str]:
    return servers.environ(mysql=encrypted.mysql) | {"CHAT_MYSQL_DBTLS": tls, "CHAT_MYSQL_DBTLSCA": str(authority)}


def redis_over_tls(encrypted: TlsServers, authority: Path) -> dict[str, str]:
    address = f"rediss://127.0.0.1:{encrypted.redis_port}/0?ssl_ca_certs={authority}"
    return {"CHAT_REDIS_REDISDB": "redis", "CHAT_REDIS_REDISADDR": address, "CHAT_REDIS_REDISPW": PASSWORD}


async def immediate_error(folder: Path, stores: Mapping[str, str], *arguments: str) -> str:
    """Return the one line with which a start fails immediately, without waiting for StartTimeout."""
    environ = {"CHAT_SERVICE_HTTPPORT": "0", "CHAT_SERVICE_DATADIR": str(folder), **stores}
    child = await run_py(*arguments, environ=environ)
    _, errors = await child.communicate()
    lines = errors.decode().splitlines()
    assert child.returncode == 1
    assert len(lines) == 1, lines
    assert "secret" not in lines[0]
    assert PASSWORD not in lines[0]
    return lines[0]


async def test_a_chat_works_over_tls(tmp_path: Path, encrypted: TlsServers) -> None:
    """The databases refuse unencrypted connections."""
    stores = mysql_over_tls(encrypted, encrypted.ours) | redis_over_tls(encrypted, encrypted.ours)
    async with serving(tmp_path, stores=stores) as server:
        await server.add_users("1", "2")
        async with server.chat("1", to="2") as one, server.chat("2", to="1") as two:
            assert (await one.send("a\nhello"))["op_type"] == 40018
            assert (await two.receive())["content"] == "a\nhello"
        assert (await server.post("/user/login", {"user_name": "1", "password": "wrong one"})).status_code == 401
    plain = servers.environ(mysql=encrypted.mysql)
    with pytest.raises(StartError):
        async with serving(tmp_path, stores=plain, StartTimeout=0.1):
            pass


@pytest.mark.parametrize("arguments", [(), ("--check",)], ids=["start", "check"])
async def test_a_certificate_of_another_authority_is_a_start_error(
    tmp_path: Path, encrypted: TlsServers, arguments: tuple[str, ...]
) -> None:
    line = await immediate_error(tmp_path, mysql_over_tls(encrypted, encrypted.other), *arguments)
    assert f"MySQL at 127.0.0.1:{encrypted.mysql.port}: no TLS (the certificate is not valid" in line
    assert "DbTlsCa" in line
    assert "no TLS (the certificate is not valid" in await immediate_error(
        tmp_path, mysql_over_tls(encrypted, ""), *arguments
    )
    line = await immediate_error(tmp_path, redis_over_tls(encrypted, encrypted.other), *arguments)
    assert f"Redis at 127.0.0.1:{encrypted.redis_port}: no TLS (the certificate is not valid" in line
    assert "RedisAddr" in line


async def test_a_failed_tls_start_leaves_no_connection_open(tmp_path: Path, encrypted: TlsServers) -> None:
    """An unclosed connection causes a warning, and a warning fails the test."""
    plain = servers.mysql()
    try:
        for stores, why in (
            (mysql_over_tls(encrypted, encrypted.other), "DbTlsCa"),
            (mysql_over_tls(encrypted, "/nowhere"), "DbTlsCa"),
            (mysql_over_tls(encrypted, encrypted.ours) | servers.environ(mysql=plain), "does not support it"),
            (redis_over_tls(encrypted, encrypted.other), "certificate is not valid"),
            (redis_over_tls(encrypted, encrypted.ours) | {"CHAT_REDIS_REDISADDR": "x://"}, "neither"),
        ):
            with pytest.raises(StartError, match=why):
                async with serving(tmp_path, stores=stores):
                    pass
    finally:
        plain.stop()


async def test_a_certificate_for_another_address_is_a_start_error(tmp_path: Path, encrypted: TlsServers) -> None:
    stores = mysql_over_tls(encrypted, encrypted.ours) | {"CHAT_MYSQL_DBHOST": "localhost"}
    assert "Hostname mismatch" in await immediate_error(tmp_path, stores)
    stores = redis_over_tls(encrypted, encrypted.ours)
    stores["CHAT_REDIS_REDISADDR"] = stores["CHAT_REDIS_REDISADDR"].replace("127.0.0.1", "localhost")
    assert "Hostname mismatch" in await immediate_error(tmp_path, stores)


async def test_unverified_tls_needs_no_authority(encrypted: TlsServers) -> None:
    config = servers.mysql_config(encrypted.mysql)
    users = await connect(msgspec.structs.replace(config, db_tls="unverified"), 5)
    try:
        await users.add(User("unverified", "x"))
        assert await users.get("unverified") == User("unverified", "x")
    finally:
        await users.close()


async def test_connections_close_without_an_answer_of_the_server(encrypted: TlsServers) -> None:
    users = await connect(msgspec.structs.replace(servers.mysql_config(encrypted.mysql), db_tls="unverified"), 5)
    await users.get("unknown")
    assert count_connections(os.getpid(), encrypted.mysql.port) == 1
    async with unavailable(encrypted.mysql, "frozen"):
        await users.close()
        assert count_connections(os.getpid(), encrypted.mysql.port) == 0


@pytest.mark.parametrize("tls", ["verified", "unverified"])
async def test_tls_never_falls_back_to_an_unencrypted_connection(
    tmp_path: Path, encrypted: TlsServers, tls: str
) -> None:
    """The driver alone would continue without TLS."""
    plain = servers.mysql()
    try:
        stores = servers.environ(mysql=plain) | {"CHAT_MYSQL_DBTLS": tls, "CHAT_MYSQL_DBTLSCA": str(encrypted.ours)}
        assert "no TLS" in await immediate_error(tmp_path, stores)
    finally:
        plain.stop()


@pytest.mark.parametrize("what", ["missing", "empty", "folder"])
async def test_an_invalid_file_of_authorities_is_a_start_error(tmp_path: Path, what: str) -> None:
    path = tmp_path / what
    if what == "empty":
        path.touch()
    elif what == "folder":
        path.mkdir()
    stores = {"CHAT_MYSQL_DB": "mysql", "CHAT_MYSQL_DBTLS": "verified", "CHAT_MYSQL_DBTLSCA": str(path)}
    for arguments in ((), ("--check",)):
        assert f"[mysql] DbTlsCa = {path}: " in await immediate_error(tmp_path / "data", stores, *arguments)


@pytest.mark.parametrize(
    ("section", "key", "address"),
    [
        ("redis", "RedisAddr", f"http://:{PASSWORD}@db.example"),
        ("redis", "RedisAddr", f"redis://:{PASSWORD}@db.example:port"),
        ("redis", "RedisAddr", f"redis://:{PASSWORD}@db.example/0?nonsense=1"),
        ("redis", "RedisAddr", "db.example:port"),
        ("MongoDB", "MongoDBAddr", f"mongodb://chat:{PASSWORD}:@db.example"),
        ("MongoDB", "MongoDBAddr", f"mongodb://chat:{PASSWORD}@db.example/?tls=true&tlsCAFile=/nowhere"),
    ],
)
async def test_an_invalid_database_address_is_a_start_error(
    tmp_path: Path, section: str, key: str, address: str
) -> None:
    word = {"redis": "REDISDB", "MongoDB": "MONGODB"}[section]
    stores = {f"CHAT_{section.upper()}_{word}": section.lower(), f"CHAT_{section.upper()}_{key.upper()}": address}
    for arguments in ((), ("--check",)):
        assert f"[{section}] {key} is neither" in await immediate_error(tmp_path, stores, *arguments)
