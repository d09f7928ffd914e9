"""Failures of the network in words, whichever client met them: what may pass, and what the user can change."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import ssl
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

from bytegolf.errors import BytegolfError, install

_CLIENTS = ("aiohttp", "httpx", "httpx2", "huggingface_hub", "fsspec")
"""Packages whose exceptions stand for failures of the network."""


class TransientError(Exception):
    """Something that may go away by itself; ``wait``: the seconds that the server asked to wait."""

    def __init__(self, said: str, wait: float = 0.0) -> None:
        super().__init__(said)
        self.wait = wait


@contextlib.contextmanager
def translated(where: str, names: str = "the mirror, --repo and --root") -> Iterator[None]:
    """Turn what the clients raise about ``where`` into `TransientError` or a ``BytegolfError``.

    ``names`` is what to check where something is not there.
    """
    try:
        yield
    except BytegolfError:
        raise
    except Exception as error:
        packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
        if not isinstance(error, OSError) and not packages & set(_CLIENTS):
            raise
        raise _explained(error, where, names) from error


def _explained(error: Exception, where: str, names: str) -> Exception:
    # fsspec reports whatever goes wrong with an address as FileNotFoundError; the reason is its cause
    reason = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    if isinstance(reason, BytegolfError):
        return reason
    said = " ".join(str(reason).split())[:160] or type(reason).__name__
    response = getattr(reason, "response", None)
    status = getattr(reason, "status", None) or getattr(response, "status_code", None)
    headers = getattr(reason, "headers", None) or getattr(response, "headers", None) or {}
    causes: list[BaseException] = [reason]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return BytegolfError(f"{where}: the certificate is not valid ({said}): choose another mirror")
    if type(reason).__name__ == "OfflineModeIsEnabled":
        return BytegolfError(f"{where} cannot be read while HF_HUB_OFFLINE is set: unset it, or give a --mirror")
    if status in (401, 403) or isinstance(reason, PermissionError):
        return BytegolfError(f"{where} refuses access ({status or said}): log in (`hf auth login`) or change mirrors")
    if status in (404, 410) or isinstance(reason, FileNotFoundError | NotADirectoryError):
        return BytegolfError(f"{where} does not exist{f' ({status})' if status else ''}: check {names}")
    if type(reason).__name__ in ("NonHttpUrlRedirectClientError", "TooManyRedirects", "InvalidUrlRedirectClientError"):
        return BytegolfError(f"{where} redirects in a circle, or to nothing safe: choose another mirror")
    if isinstance(reason, ValueError):
        return BytegolfError(f"{where} is no valid name ({said}): check {names}")
    if status is not None and 400 <= status < 500 and status not in (408, 425, 429):
        return BytegolfError(f"{where} answers {status}: check the address, or choose another mirror")
    wait = str(headers.get("Retry-After", "")) if status is not None else ""
    answers = f"answers {status}" if status is not None else f"broke off ({said})"
    return TransientError(f"{where} {answers}", float(wait) if wait.isdecimal() and len(wait) < 10 else 0.0)


def check_proxy(address: str, keys: Sequence[str] = (), more: Sequence[str] = ()) -> None:
    """Raise if the environment names a proxy for ``address`` that cannot be used: trying again would change nothing.

    ``keys``: other proxies that count, as in ``all_proxy``; ``more``: schemes that are understood besides http(s).
    """
    parts = urllib.parse.urlsplit(address)
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return
    proxies = urllib.request.getproxies()
    key = next((key for key in (parts.scheme, *keys) if key in proxies), None)
    scheme = proxies[key].partition("://")[0] if key and "://" in proxies[key] else None  # it may hold a password
    if key is not None and scheme not in ("http", "https", *more):
        kind = f"a {scheme}:// proxy" if scheme else "a proxy without http:// in front"
        raise BytegolfError(f"{key}_proxy names {kind}, which cannot be used: set it to an http:// one, or unset it")


def _check_hub_proxy() -> None:
    """The same for the hub, whose client can use a SOCKS proxy where the package for it is installed."""
    constants = importlib.import_module("huggingface_hub.constants")
    if constants.HF_HUB_OFFLINE:
        return
    has_socks = importlib.util.find_spec("socksio") is not None
    check_proxy(constants.ENDPOINT, ("all",), ("socks5", "socks5h") if has_socks else ())


def required(module: str, doing: str, instead: str) -> Any:
    """An optional module, which ``doing`` needs. Raises BytegolfError where it is missing; ``instead``: another way."""
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise BytegolfError(
            f"{doing} needs {module.partition('.')[0]}: run `{install('hub')}`, or {instead}"
        ) from error
    if module == "huggingface_hub":
        _check_hub_proxy()
    return found
