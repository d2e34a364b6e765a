"""Origins of web pages (RFC 6454), as browsers send them."""

DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def canonical(origin: str) -> str:
    """An origin in lower case, without the default port of its scheme."""
    origin = origin.lower()
    return origin.removesuffix(DEFAULT_PORTS.get(origin.partition(":")[0], ""))


def without_default_port(host: str) -> str:
    """A host in lower case without port 80 or 443, for a host whose scheme is unknown."""
    return host.lower().removesuffix(":80").removesuffix(":443")
