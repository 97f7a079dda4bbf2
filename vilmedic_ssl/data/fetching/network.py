"""Requests that stay on https; their errors, sorted into those that may pass and the others."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from vilmedic_ssl import __version__

LOOPBACK = ("localhost", "127.0.0.1", "::1")
LATER = (408, 425, 429, 500, 502, 503, 504)  # answers that may differ in a minute


class Refused(Exception):
    """This address will not give the file, however often it is asked."""


class Broken(Exception):
    """The transfer broke off; asking again may help, after `wait` seconds if the server said so."""

    def __init__(self, text: str, *, wait: float = 0.0):
        super().__init__(text)
        self.wait = wait


def opened(url: str, headers: Mapping[str, str], stall: float) -> HTTPResponse:
    """The answer to a request; 416 (nothing in that range) counts as one.

    Raises:
        Refused: wrong scheme, unknown file, bad certificate. Broken: anything that may pass.
    """
    if not _allowed(url):
        raise Refused("only https addresses are fetched")
    ours = {"User-Agent": f"vilmedic_ssl/{__version__}", "Accept-Encoding": "identity"}
    request = Request(url, headers={**ours, **headers})
    try:
        return network(lambda: _opener().open(request, timeout=stall))
    except HTTPError as error:
        if error.code == 416:
            return error  # type: ignore[return-value]
        error.close()
        told = f"it answered {error.code} {error.reason}"
        if error.code not in LATER:
            raise Refused(told) from error
        asked = error.headers.get("Retry-After") or ""  # a date is left alone
        raise Broken(told, wait=float(asked) if asked.isdecimal() else 0.0) from error


def network(call: Callable[[], Any]) -> Any:
    """Run a call that uses the network; what may pass by itself becomes Broken."""
    try:
        return call()
    except HTTPError:
        raise
    except (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise Refused(f"its certificate is not trusted ({reason.verify_message})") from error
        if isinstance(reason, TimeoutError):
            raise Broken("nothing came any more") from error
        raise Broken(str(reason) or type(reason).__name__) from error
    except ValueError as error:  # a redirect to something that is no address
        raise Refused(f"it answered nonsense ({error})") from error


def _allowed(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)


class _Redirects(HTTPRedirectHandler):
    """Follow redirects that stay on https; from this machine's http also within this machine."""

    def redirect_request(self, req: Request, *args: Any) -> Request | None:
        url = args[-1]
        if not _allowed(url) or (req.type == "https" and urlsplit(url).scheme != "https"):
            raise Refused(f"it redirects to {url}, which is not https")
        return super().redirect_request(req, *args)


def _opener() -> OpenerDirector:
    """Only http and https: no file:, ftp: or data: addresses, whatever a server says."""
    opener = OpenerDirector()
    for handler in (
        *(ProxyHandler(), HTTPHandler(), HTTPSHandler(), HTTPDefaultErrorHandler()),
        *(_Redirects(), HTTPErrorProcessor()),
    ):
        opener.add_handler(handler)
    return opener
