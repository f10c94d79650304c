"""Checks of the machine: the running httpd, its systemd unit, logrotate, confinement.

Contract: each function yields findings about its arguments; none of them changes anything.

Sources: systemd.exec(5), systemd.kill(5), logrotate(8), proc(5).
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from apachews_tools.httpd.process import PROC, Httpd
from apachews_tools.httpd.shell import shipped, word

from .finding import Finding, Level, error, note, ok, warning

# One for the client, one for the producer.
DESCRIPTORS_EACH: Final = 2
# Other descriptors of a child: logs, listening sockets, requests in progress.
DESCRIPTORS_BESIDES: Final = 64
# Debian's apachectl sets this limit, regardless of the unit.
APACHECTL_LIMIT: Final = 8192
ENOUGH: Final = 65536
# The clocks of files and of processes may differ by this much.
CLOCK_S: Final = 0.1
# On Debian, SUSE and their derivatives; elsewhere it is /etc/httpd.
ETC_APACHE2: Final = Path("/etc/apache2")
UNITS: Final = ("apache2.service", "httpd.service")
# Of units, in systemd's order of precedence.
UNIT_DIRECTORIES: Final = tuple(
    map(
        Path,
        (
            "/etc/systemd/system",
            "/run/systemd/system",
            "/usr/local/lib/systemd/system",
            "/usr/lib/systemd/system",
            "/lib/systemd/system",
        ),
    )
)
_PROPERTIES: Final = "LoadState,LimitNOFILESoft,KillMode,PrivateTmp,Environment,ExecStart"
_SYSTEMD: Final = Path("/run/systemd/system")
# A restart, and the signals and commands with the same effect.
_RESTARTS: Final = re.compile(
    r"\b(?:try-|cond)?restart\b|\bstop\b|(?:-|-s\s*|--signal[ =])(?:SIG)?HUP\b"
)

_COMMENT: Final = re.compile(r"(?:^|(?<=\s))#.*")
_OURS: Final = re.compile(r"apache|httpd")
# A word that names the receiver of a signal.
_OTHERS: Final = re.compile(r"\.pid\b|\bpkill\b|\bkillall\b|systemctl|service")


def room(limit: int) -> int:
    """Return how many WebSockets fit into a child with this limit of descriptors."""
    return max(0, limit - DESCRIPTORS_BESIDES) // DESCRIPTORS_EACH


def check_process(httpd: Httpd | None, pid_file: str, websockets: int) -> Iterator[Finding]:
    """Yield findings about the running httpd.

    Args:
        httpd: the one that runs, or None.
        pid_file: the file that names its process.
        websockets: how many are to fit into one child.
    """
    if httpd is None and pid_file and _is_hidden(pid_file):
        yield note(
            "privileges",
            f"{pid_file} is not readable, so it is unknown whether httpd runs: use sudo",
        )
        return
    if httpd is None:
        yield warning(
            "running",
            f"httpd does not run, according to {pid_file or 'its pid file'}",
            breaks="everything",
            remedy=f"systemctl start {service()}",
        )
        return
    yield ok("running", f"httpd runs: process {httpd.pid}, {len(httpd.children)} children")
    if httpd.descriptor_limit is None:
        yield note("descriptors", "the limits of httpd's processes are not readable: use sudo")
        return
    has_room = room(httpd.descriptor_limit)
    used = "" if httpd.descriptors is None else f", {httpd.descriptors} in use"
    text = f"{httpd.descriptor_limit} descriptors per child{used}: room for {has_room} WebSockets"
    if has_room < websockets:
        yield warning(
            "descriptors",
            text,
            breaks="further WebSockets get 503, and soon the pages of the site as well",
            when=f"{has_room} WebSockets in one child (two descriptors each)",
            remedy=_drop_in(httpd.unit)
            if httpd.unit
            else f"ulimit -n {ENOUGH}, in the shell that starts httpd",
        )
    else:
        yield ok("descriptors", text)


def _is_hidden(path: str) -> bool:
    try:
        Path(path).read_bytes()
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def service() -> str:
    """Return the distribution's name of httpd's service, told by its configuration directory."""
    return "apache2" if ETC_APACHE2.is_dir() else "httpd"


def check_reload(httpd: Httpd | None, files: Iterable[str]) -> Iterator[Finding]:
    """Yield whether files of the configuration have changed since httpd read them.

    A change before httpd started a child for another reason remains undetected.
    """
    if httpd is None:
        return
    for file in dict.fromkeys(files):
        try:
            changed_at = os.stat(file).st_mtime
        except OSError:
            continue  # not accessible
        if changed_at > httpd.renewed_at + CLOCK_S:
            yield warning(
                "reload",
                f"{file} has changed since httpd read it",
                breaks="these findings may not apply to the running Apache",
                remedy=f"systemctl reload {word(httpd.unit.removesuffix('.service'))}"
                if httpd.unit
                else f"kill -USR1 {httpd.pid}  (apachectl graceful)",
            )
            return
    yield ok("reload", "the files of the configuration are older than httpd's children")


def _drop_in(unit: str) -> str:
    source = shipped("systemd/apache2.service.d/apachews.conf")
    place = word(f"/etc/systemd/system/{unit}.d/apachews.conf")
    return (
        f"install -D -m 644 {source} {place} &&"
        f" systemctl daemon-reload && systemctl restart {word(unit.removesuffix('.service'))}"
    )


def unit_properties(unit: str) -> dict[str, str]:
    """Return a unit's properties; {} if systemd does not run, or does not know the unit."""
    systemctl = shutil.which("systemctl")
    if not _SYSTEMD.is_dir() or systemctl is None:
        return {}
    try:
        done = subprocess.run(
            [systemctl, "show", unit, "--property", _PROPERTIES],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    found = parse_properties(done.stdout)
    return found if found.get("LoadState") == "loaded" else {}


def has_private_tmp(unit: str, directories: Iterable[Path] = UNIT_DIRECTORIES) -> bool:
    """Tell whether the files of a unit set PrivateTmp, for a machine where systemd does not run."""
    found = ""
    # The last one counts: that of /etc, and the drop-ins after the unit itself.
    places = [directory / unit for directory in directories]
    files = next(([place] for place in places if place.is_file()), [])
    for place in reversed(places):
        files += sorted(place.with_name(f"{unit}.d").glob("*.conf"))
    for file in files:
        try:
            text = file.read_text(errors="replace")
        except OSError:
            continue  # not readable
        found = (re.findall(r"^PrivateTmp\s*=\s*(\S*)", text, re.MULTILINE) or [found])[-1]
    return found.lower() not in ("", "no", "false", "off", "0")


def parse_properties(text: str) -> dict[str, str]:
    """Return the properties in the output of ``systemctl show``."""
    lines = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name: value for name, _, value in lines}


def check_unit(unit: str, properties: Mapping[str, str], websockets: int) -> Iterator[Finding]:
    """Yield findings about the systemd unit of httpd."""
    if properties.get("KillMode") not in ("control-group", "process", "none"):
        # A note: the stop disconnects all clients in any case.
        yield Finding(
            "systemd-drop-in",
            Level.NOTE,
            f"{unit} has KillMode={properties.get('KillMode')}",
            breaks="clients of custodians (connected before a reload) may see the connection break"
            " (1006) instead of 1001",
            when="a stop or restart of Apache after a reload",
            remedy=_drop_in(unit),
        )
    else:
        yield ok("systemd-drop-in", f"{unit} lets custodians close their clients")
    limit = properties.get("LimitNOFILESoft", "")
    number = int(limit) if limit.isdigit() else 1 << 30
    if "apachectl" in properties.get("ExecStart", ""):
        match = re.search(
            r"APACHE_ULIMIT_MAX_FILES=ulimit -n (\d+)", properties.get("Environment", "")
        )
        number = int(match[1]) if match else APACHECTL_LIMIT
    if room(number) < websockets:
        yield warning(
            "descriptors-unit",
            f"{unit} gives httpd {number} descriptors",
            breaks="further WebSockets get 503, and soon the pages of the site as well",
            when=f"{room(number)} WebSockets in one child (two descriptors each)",
            remedy=_drop_in(unit),
        )
    else:
        yield ok("descriptors-unit", f"{unit}: room for {room(number)} WebSockets per child")


def check_visible(
    httpd: Httpd | None, properties: Mapping[str, str], path: str, private_unit: str = ""
) -> Iterator[Finding]:
    """Yield whether Apache sees the same file at a path as this process.

    Args:
        httpd: the one that runs, or None.
        properties: of its unit.
        path: of the socket file; if it is a link, its target counts.
        private_unit: a unit with PrivateTmp that would start this httpd; "" without one.
    """
    real = os.path.realpath(path)
    is_temporary = real.startswith(("/tmp/", "/var/tmp/"))
    shown = path if real == os.path.abspath(path) else f"{path}, a link to {real}"
    remedy = (
        "put the producer's socket in the document root, or in /run/apachews"
        f" ({shipped('systemd/apachews.tmpfiles.conf')})"
    )
    is_hidden = properties.get("PrivateTmp") == "yes" and is_temporary
    if httpd is not None:
        try:
            ours = os.stat(real)
        except OSError:
            return  # another check reports that
        try:
            theirs = os.stat(f"{PROC}/{httpd.pid}/root{real}")
        except FileNotFoundError:
            is_hidden = True
        except OSError:
            if not is_hidden:
                return  # not accessible
        else:
            is_hidden = (ours.st_dev, ours.st_ino) != (theirs.st_dev, theirs.st_ino)
    if is_hidden:
        yield error(
            "private-tmp",
            f"Apache does not see {shown}: it has its own"
            + (" /tmp (PrivateTmp)" if is_temporary else " file system"),
            breaks="every WebSocket of it is a 404",
            remedy=remedy,
        )
    elif is_temporary and private_unit:
        yield warning(
            "private-tmp",
            f"{private_unit} has PrivateTmp, its own /tmp, which lacks {shown}",
            breaks="every WebSocket of it is a 404",
            when="if systemd starts Apache",
            remedy=remedy,
        )
    else:
        yield ok("private-tmp", f"Apache sees {path}")


def check_logrotate(directory: Path, logs: Iterable[str]) -> Iterator[Finding]:
    """Yield whether the rotation of httpd's logs keeps WebSockets open.

    Args:
        directory: logrotate's configuration, for example /etc/logrotate.d.
        logs: paths of httpd's log files.
    """
    paths = [log for log in logs if log.startswith("/")]
    for file in sorted(directory.glob("*")) if directory.is_dir() else []:
        try:
            text = file.read_text(errors="replace")
        except OSError:
            continue  # a directory, or not readable
        for patterns, script in rotations(text):
            if not any(fnmatch.fnmatch(log, one) for log in paths for one in patterns):
                continue
            if found := restart_in(script):
                yield warning(
                    "logrotate",
                    f"{file} restarts Apache after a rotation ({found})",
                    breaks="all WebSockets are closed with 1001",
                    when="every rotation: daily, on Debian",
                    remedy=f"in its postrotate: systemctl reload {service()} or apachectl graceful",
                    where=str(file),
                )
            else:
                yield ok(
                    "logrotate", f"{file} reloads Apache, which keeps WebSockets open", str(file)
                )
            return
    yield note("logrotate", f"{directory} does not rotate these logs")


def restart_in(script: str) -> str:
    """Return the part of a logrotate script that restarts Apache, "" without one."""
    for line in script.replace("\\\n", " ").splitlines():
        command = _COMMENT.sub("", line)
        for match in _RESTARTS.finditer(command):
            # The receiver of a signal is a process id, which may be Apache's.
            may_be_ours = match[0].endswith("HUP") and not _OTHERS.search(command)
            if may_be_ours or _OURS.search(command):
                return match[0].strip()
    return ""


def rotations(text: str) -> Iterator[tuple[list[str], str]]:
    """Yield, for each block of logrotate's configuration, its patterns and its scripts."""
    patterns: list[str] = []
    scripts: list[str] = []
    is_inside = is_script = False
    for raw in text.splitlines():
        line = raw.strip()
        if is_script:
            is_script = line != "endscript"
            if is_script:
                scripts.append(line)
        elif line.startswith("#") or not line:
            continue
        elif is_inside:
            if line in ("postrotate", "prerotate", "firstaction", "lastaction", "preremove"):
                is_script = True
            elif line == "}":
                yield patterns, "\n".join(scripts)
                patterns, scripts, is_inside = [], [], False
        elif line.startswith(("/", '"', "'", "{")):
            names, brace, _ = line.partition("{")
            patterns += [name.strip("\"'") for name in names.split()]
            is_inside = bool(brace)


def check_confinement(httpd: Httpd | None) -> Iterator[Finding]:
    """Yield whether SELinux or AppArmor restrict what httpd may connect to."""
    if httpd is None:
        return
    try:
        context = (PROC / str(httpd.pid) / "attr" / "current").read_text().strip(" \n\0")
        ours = (PROC / "self" / "attr" / "current").read_text().strip(" \n\0")
    except OSError:
        return  # this kernel lacks it, or it is not readable
    if context == ours:
        return  # that of a container, which includes this process and the producers
    enforced = Path("/sys/fs/selinux/enforce")
    is_selinux = ":httpd_t" in context and enforced.exists() and enforced.read_text() == "1"
    if is_selinux or context.endswith("(enforce)"):
        system = "SELinux" if is_selinux else "AppArmor"
        yield warning(
            "confinement",
            f"{system} confines httpd ({context})",
            breaks="every WebSocket is a 500 if the policy forbids httpd to connect to sockets of"
            " producers",
            remedy="ausearch -m avc -c httpd shows what was denied; audit2allow makes the rule"
            if is_selinux
            else "journalctl -k | grep DENIED shows what was denied; allow the paths of the sockets"
            " with rw in the profile",
        )
