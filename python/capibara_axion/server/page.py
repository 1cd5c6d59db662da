# SPDX-License-Identifier: Apache-2.0
"""The page at `/ui/`: static files that anybody may read.

What the page shows it asks of the other routes, with the keys that its user gives it.
"""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

_DIRECTORY = Path(__file__).with_name("ui")
_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FILES = {
    f"/ui/{file.name}": file for file in _DIRECTORY.iterdir() if file.suffix in _CONTENT_TYPES
} | {"/ui/": _DIRECTORY / "index.html"}
# Relative, so that they also lead to the page behind a proxy that serves us below another path.
_REDIRECTS = {"/": "ui/", "/ui": "ui/"}

PATHS = frozenset({*_FILES, *_REDIRECTS})
"""What anybody may ask for."""

# Nothing from elsewhere, nothing inline, nothing framed: what a model says cannot become a script.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asks again, and is told 304
}


def add_to(app: web.Application) -> None:
    """Register the page's files, and the ways to it."""
    for path in _FILES:
        app.router.add_get(path, _file)
    for path in _REDIRECTS:
        app.router.add_get(path, _redirect)


async def _file(request: web.Request) -> web.StreamResponse:
    file = _FILES[request.path]
    return web.FileResponse(file, headers={**_HEADERS, "Content-Type": _CONTENT_TYPES[file.suffix]})


async def _redirect(request: web.Request) -> web.Response:
    return web.Response(status=302, headers={"Location": _REDIRECTS[request.path]})
