"""A finding: the result of a check, its effect and its remedy.

Contract: ``CHECKS`` names every check; the names are stable, scripts may rely on them, and
docs/howto/troubleshooting.md has a section for each.  Pure.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Final


class Level(str, Enum):
    """The severity of a finding."""

    OK = "ok"
    # Nothing to do; shown with --verbose only.
    NOTE = "note"
    # WebSockets work, but with a disadvantage, or only up to some load.
    WARNING = "warning"
    # WebSockets do not work.
    ERROR = "error"


ALWAYS: Final = "always"

# Name of a check -> its subject.
CHECKS: Final[dict[str, str]] = {
    "httpd": "httpd is installed, and reports its version",
    "privileges": "doctor has the permissions for its checks",
    "syntax": "httpd understands its configuration",
    "mod-wsgi": "mod_wsgi is loaded",
    "python-version": "mod_wsgi has the Python that the handler is installed for",
    "handler-script": "the handler is mapped, and its file exists",
    "handler-mode": "the handler runs in Apache's own children and Python's main interpreter",
    "pass-request": "mod_wsgi passes httpd's request to the handler",
    "import-script": "each child imports the handler when it starts",
    "status-page": "the status page belongs to the server's configuration",
    "installation": "the installation of apachews that Apache uses",
    "packages": "Python finds the handler's packages",
    "extensions": "the C extensions of the handler are built",
    "compiled": "whether the modules that messages pass are compiled",
    "readable": "Apache's user can read the interpreter and the packages",
    "ownership": "only root can change the files that Apache reads as root",
    "tls-module": "the TLS module is mod_ssl",
    "http2": "WebSockets do not use HTTP/2",
    "mpm": "the MPM, and the meaning of its limits",
    "max-connections-per-child": "children are not replaced too often",
    "reqtimeout": "mod_reqtimeout",
    "restart-support": "httpd and the kernel support restarts that keep WebSockets open",
    "add-handler": ".ws files belong to the handler",
    "follow-symlinks": "httpd may serve a socket file",
    "access": "the directory is open to clients",
    "rewrite-denial": "rules that deny apply to .ws files",
    "proxy": "proxies and rewriting rules leave the WebSockets alone",
    "proxied-websockets": "no proxy holds a worker of Apache for each WebSocket",
    "no-proxy": "mod_proxy leaves the WebSockets to the tunnel, and only those",
    "tunnel": "the lines of a tunnel agree with those of its pages",
    "htaccess": "no .htaccess file leads requests to the handler",
    "backend": "a WebSocket server listens at the end of each tunnel",
    "settings": "the names and values of the settings are allowed",
    "running": "httpd runs",
    "reload": "the running httpd has read the current files",
    "descriptors": "the descriptor limit of the running httpd",
    "descriptors-unit": "the descriptor limit of its systemd unit",
    "systemd-drop-in": "clients get 1001 when systemd stops Apache",
    "private-tmp": "Apache sees the directory of the sockets",
    "logrotate": "the rotation of logs keeps WebSockets open",
    "confinement": "SELinux and AppArmor",
    "socket": "the socket file exists",
    "socket-link": "links to it belong to its owner or to root, and are not too long",
    "socket-permission": "Apache's user may connect to it",
    "producer": "a producer listens on it",
    "relay": "the relay of --relay carries messages",
    "relay-history": "the relay stores the histories of groups",
    "relay-version": "the version of the relay's server",
    "relay-memory": "the relay does not evict the keys of other programs",
    "relay-buffers": "the relay's server keeps enough messages for a slow producer, and not all",
    "other-apache": "the Apache that answers has this configuration",
    "connect": "httpd answers at the URL",
    "certificate": "browsers accept the certificate",
    "handshake": "the handshake ends in 101",
    "echo": "a message comes back",
}


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        id: of the check, one of ``CHECKS``.
        level: the severity.
        text: what is wrong, or right.
        breaks: the effect.
        when: the load or the moment at which the effect shows; "" if nothing is wrong.
        remedy: the line or the command that fixes it.
        where: file and line; "" without one.
        lines: directives that belong to the remedy.
    """

    id: str
    level: Level
    text: str
    breaks: str = ""
    when: str = ""
    remedy: str = ""
    where: str = ""
    lines: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert self.id in CHECKS, self.id

    def as_dict(self) -> dict[str, Any]:
        """Return it for ``--json``, with the subject of its check."""
        return asdict(self) | {"level": self.level.value, "about": CHECKS[self.id]}


def ok(id: str, text: str, where: str = "") -> Finding:
    """Return a finding that all is well."""
    return Finding(id, Level.OK, text, where=where)


def note(id: str, text: str, where: str = "") -> Finding:
    """Return a finding that is shown with ``--verbose`` only."""
    return Finding(id, Level.NOTE, text, where=where)


def warning(
    id: str,
    text: str,
    *,
    breaks: str,
    remedy: str,
    when: str = ALWAYS,
    where: str = "",
    lines: tuple[str, ...] = (),
) -> Finding:
    """Return a finding about a disadvantage, with its effect and its remedy."""
    return Finding(id, Level.WARNING, text, breaks, when, remedy, where, lines)


def error(
    id: str,
    text: str,
    *,
    breaks: str,
    remedy: str,
    when: str = ALWAYS,
    where: str = "",
    lines: tuple[str, ...] = (),
) -> Finding:
    """Return a finding about an error that prevents WebSockets, with its remedy."""
    return Finding(id, Level.ERROR, text, breaks, when, remedy, where, lines)


def supposed(finding: Finding) -> Finding:
    """Weaken a finding about a site that does not have a socket file yet."""
    if finding.level is Level.OK:
        return finding
    if finding.id == "proxy":
        # Probably a site without WebSockets.
        return note(finding.id, finding.text, finding.where)
    return warning(
        finding.id,
        finding.text,
        breaks=finding.breaks,
        remedy=finding.remedy,
        when="the first WebSocket of this site" if finding.when == ALWAYS else finding.when,
        where=finding.where,
    )
