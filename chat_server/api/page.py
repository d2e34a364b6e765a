"""Serves the files of the web client: read at startup, compressed on the first request."""

import gzip
import hashlib
from collections.abc import Mapping
from functools import cached_property
from importlib.resources import files

from aiohttp import web

_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "png": "image/png",
    "webmanifest": "application/manifest+json",
}
# Only files of this server, nothing inline. The trusted-types policy `worker` allows the URL of the service worker.
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "manifest-src 'self'",
        "worker-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types worker",
    ]
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
}
_CACHE_FOREVER = "public, max-age=31536000, immutable"
_REVALIDATE = "no-cache"


class Page:
    """The handlers of the web client's files.

    The page and its service worker have fixed paths. All other files are under /web/VERSION/, where VERSION is a hash
    of all files: relative imports work, browsers may cache the files forever, and a new version has new URLs.
    `settings` become attributes of the page, for its scripts; names are in lower case with `-`.
    """

    def __init__(self, settings: Mapping[str, str | int]) -> None:
        sources = {file.name: file.read_bytes() for file in files("chat_server").joinpath("web").iterdir()}
        self.version = _hash(b"".join(name.encode() + sources[name] for name in sorted(sources)))
        page = sources.pop("index.html").decode()
        attributes = " ".join(f'data-{name}="{value}"' for name, value in settings.items())
        page = page.replace("{version}", self.version).replace("{settings}", attributes)
        self._page = _File("index.html", page.encode(), _REVALIDATE)
        self._worker = _File("sw.js", sources.pop("sw.js"), _REVALIDATE)
        self._files = {name: _File(name, content, _CACHE_FOREVER) for name, content in sources.items()}

    async def get_page(self, request: web.Request) -> web.Response:
        """GET /"""
        return self._page.answer(request)

    async def get_worker(self, request: web.Request) -> web.Response:
        """GET /sw.js"""
        return self._worker.answer(request)

    async def get_file(self, request: web.Request) -> web.Response:
        """GET /web/VERSION/NAME"""
        file = self._files.get(request.match_info["name"])
        if file is None or request.match_info["version"] != self.version:
            raise web.HTTPNotFound
        return file.answer(request)

    def fallback_page(self, request: web.Request) -> web.Response | None:
        """GET /chat/test without an upgrade: the page, if a browser asks for HTML."""
        wants_page = "text/html" in request.headers.get("Accept", "") and "Upgrade" not in request.headers
        return self._page.answer(request) if wants_page else None


class _File:
    """One file, uncompressed and compressed with gzip."""

    def __init__(self, name: str, content: bytes, caching: str) -> None:
        self._content = content
        self._tag = _hash(content)
        self._headers = _HEADERS | {
            "Content-Type": _TYPES[name.rpartition(".")[2]],
            "Cache-Control": caching,
            "Vary": "Accept, Accept-Encoding",
        }

    def answer(self, request: web.Request) -> web.Response:
        encoding = "gzip" if "gzip" in request.headers.get("Accept-Encoding", "") else ""
        tag = f'"{self._tag}{encoding}"'
        headers = self._headers | {"ETag": tag}
        if tag in request.headers.get("If-None-Match", ""):
            return web.Response(status=304, headers=headers)
        if encoding:
            headers["Content-Encoding"] = encoding
        return web.Response(body=self._compressed if encoding else self._content, headers=headers)

    @cached_property
    def _compressed(self) -> bytes:
        return gzip.compress(self._content, mtime=0)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
