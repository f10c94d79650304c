"""A finding: what a check has seen, what it breaks, and what mends it.

Contract: ``CHECKS`` names every check there is; the names are stable, scripts may rely
on them, and docs/howto/troubleshooting.md has a section for each.  Pure.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Final


class Level(str, Enum):
    """How bad it is."""

    OK = "ok"
    # Nothing to do; said only to those who want to know everything.
    NOTE = "note"
    # It works, but not as it should, or not under load.
    WARNING = "warning"
    # WebSockets do not work.
    ERROR = "error"


ALWAYS: Final = "always"

# Name of a check -> what it is about.
CHECKS: Final[dict[str, str]] = {
    "httpd": "httpd is there, and says what it is",
    "privileges": "doctor may see what it is to look at",
    "syntax": "httpd understands its configuration",
    "mod-wsgi": "mod_wsgi is loaded",
    "python-version": "mod_wsgi has the Python that the handler is installed for",
    "handler-script": "the handler is mapped, and its file exists",
    "handler-mode": "the handler runs in Apache's own children and Python's main interpreter",
    "pass-request": "mod_wsgi hands the handler httpd's request",
    "import-script": "the handler is imported when a child starts",
    "status-page": "the status page belongs to the server's configuration",
    "packages": "Python finds the handler's packages",
    "readable": "Apache's user can read the interpreter and the packages",
    "ownership": "only root can change what Apache reads as root",
    "tls-module": "TLS is mod_ssl's",
    "http2": "WebSockets do not come over HTTP/2",
    "mpm": "which MPM, and what its limits mean",
    "max-connections-per-child": "children are not replaced too often",
    "reqtimeout": "mod_reqtimeout",
    "restart-support": "httpd and the kernel are new enough for restarts that drop nobody",
    "add-handler": ".ws files belong to the handler",
    "follow-symlinks": "httpd may serve a socket file",
    "access": "the directory is open to clients",
    "proxy": "no proxy and no rewriting takes the WebSockets elsewhere",
    "settings": "the settings are ones that exist",
    "running": "httpd runs",
    "reload": "the running httpd has read the files as they are",
    "descriptors": "descriptors of the running httpd",
    "descriptors-unit": "descriptors that its systemd unit gives it",
    "systemd-drop-in": "goodbyes when systemd stops Apache",
    "private-tmp": "Apache sees the directory of the sockets",
    "logrotate": "rotating logs drops nobody",
    "confinement": "SELinux and AppArmor",
    "socket": "the socket file exists",
    "socket-link": "links to it are those of its owner, or root's",
    "socket-permission": "Apache's user may connect to it",
    "producer": "somebody listens on it",
    "other-apache": "the Apache that answers is the one looked at",
    "connect": "httpd answers at the URL",
    "certificate": "the certificate is one that browsers accept",
    "handshake": "the handshake ends in 101",
    "echo": "a message comes back",
}


@dataclass(frozen=True)
class Finding:
    """What a check has found.

    Attributes:
        id: of the check, one of ``CHECKS``.
        level: how bad it is.
        text: what is wrong; or right.
        breaks: what does not work, because of it.
        load: from which load on, or at which moments; "" where nothing is wrong.
        remedy: the line or the command that fixes it.
        where: file and line; "" for nowhere.
    """

    id: str
    level: Level
    text: str
    breaks: str = ""
    load: str = ""
    remedy: str = ""
    where: str = ""

    def __post_init__(self) -> None:
        assert self.id in CHECKS, self.id

    def as_dict(self) -> dict[str, str]:
        """Return it for ``--json``, with what its check is about."""
        return asdict(self) | {"level": self.level.value, "about": CHECKS[self.id]}


def ok(id: str, text: str, where: str = "") -> Finding:
    """Return a finding that there is nothing to do."""
    return Finding(id, Level.OK, text, where=where)


def note(id: str, text: str, where: str = "") -> Finding:
    """Return a finding for those who want to know everything."""
    return Finding(id, Level.NOTE, text, where=where)


def warning(
    id: str, text: str, *, breaks: str, remedy: str, load: str = ALWAYS, where: str = ""
) -> Finding:
    """Return a finding of something that works, but not as it should."""
    return Finding(id, Level.WARNING, text, breaks, load, remedy, where)


def error(
    id: str, text: str, *, breaks: str, remedy: str, load: str = ALWAYS, where: str = ""
) -> Finding:
    """Return a finding of something because of which WebSockets do not work."""
    return Finding(id, Level.ERROR, text, breaks, load, remedy, where)
