"""Checks of the machine: the running httpd, its systemd unit, logrotate, confinement.

Contract: each function yields findings about what it is given; all of them only read.

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

from .finding import Finding, error, note, ok, warning

# One to the client, one to the producer.
DESCRIPTORS_EACH: Final = 2
# What a child has open besides: libraries, logs, listening sockets, and requests at work.
DESCRIPTORS_BESIDES: Final = 64
# What Debian's apachectl sets, whatever the unit says.
APACHECTL_LIMIT: Final = 8192
ENOUGH: Final = 65536
# What the clocks of files and of processes may differ by.
CLOCK_S: Final = 0.1
# Debian, SUSE and their kin; it is /etc/httpd elsewhere.
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
# A restart, and signals and commands that amount to one.
_RESTARTS: Final = re.compile(
    r"\b(?:try-|cond)?restart\b|\bstop\b|(?:-|-s\s*|--signal[ =])(?:SIG)?HUP\b"
)

_COMMENT: Final = re.compile(r"(?:^|(?<=\s))#.*")
_OURS: Final = re.compile(r"apache|httpd")
# What names whom it signals.
_OTHERS: Final = re.compile(r"\.pid\b|\bpkill\b|\bkillall\b|systemctl|service")


def room(limit: int) -> int:
    """Return how many WebSockets a child with so many descriptors has room for."""
    return max(0, limit - DESCRIPTORS_BESIDES) // DESCRIPTORS_EACH


def check_process(httpd: Httpd | None, pid_file: str, websockets: int) -> Iterator[Finding]:
    """Yield what there is to say about the running httpd.

    Args:
        httpd: the one that runs, or None.
        pid_file: where its number was looked for.
        websockets: how many a child is to have room for.
    """
    if httpd is None and pid_file and _is_hidden(pid_file):
        yield note(
            "privileges", f"{pid_file} is not for us to see, nor whether httpd runs: use sudo"
        )
        return
    if httpd is None:
        yield warning(
            "running",
            f"httpd does not run (by {pid_file or 'its pid file'})",
            breaks="everything",
            remedy=f"systemctl start {service()}",
        )
        return
    yield ok("running", f"httpd runs: process {httpd.pid}, {len(httpd.children)} children")
    if httpd.descriptor_limit is None:
        yield note("descriptors", "the limits of httpd's processes are not for us to see: use sudo")
        return
    has_room = room(httpd.descriptor_limit)
    used = "" if httpd.descriptors is None else f", {httpd.descriptors} in use"
    text = f"{httpd.descriptor_limit} descriptors a child{used}: room for {has_room} WebSockets"
    if has_room < websockets:
        yield warning(
            "descriptors",
            text,
            breaks="further WebSockets get 503, and soon the site's pages do as well",
            load=f"{has_room} WebSockets in one child (two descriptors each)",
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
    """Return what the distribution calls httpd's service: by where it configures it."""
    return "apache2" if ETC_APACHE2.is_dir() else "httpd"


def check_reload(httpd: Httpd | None, files: Iterable[str]) -> Iterator[Finding]:
    """Yield whether files of the configuration are younger than what httpd has read.

    A file that was changed before a child was started for another reason is missed.
    """
    if httpd is None:
        return
    for file in dict.fromkeys(files):
        try:
            changed_at = os.stat(file).st_mtime
        except OSError:
            continue  # not for us to see
        if changed_at > httpd.renewed_at + CLOCK_S:
            yield warning(
                "reload",
                f"{file} has been changed since httpd has read it",
                breaks="the running Apache may do other than what is said here",
                remedy=f"systemctl reload {word(httpd.unit.removesuffix('.service'))}"
                if httpd.unit
                else f"kill -USR1 {httpd.pid}  (apachectl graceful)",
            )
            return
    yield ok("reload", "no file of the configuration is younger than httpd's children")


def _drop_in(unit: str) -> str:
    source = shipped("systemd/apache2.service.d/apachews.conf")
    place = word(f"/etc/systemd/system/{unit}.d/apachews.conf")
    return (
        f"install -D -m 644 {source} {place} &&"
        f" systemctl daemon-reload && systemctl restart {word(unit.removesuffix('.service'))}"
    )


def unit_properties(unit: str) -> dict[str, str]:
    """Return what systemd says of a unit; {} where there is no systemd, or no such unit."""
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
    """Tell whether a unit's files say PrivateTmp, where no systemd runs to be asked."""
    found = ""
    # The last one read counts: that of /etc, and the drop-ins behind the unit itself.
    places = [directory / unit for directory in directories]
    files = next(([place] for place in places if place.is_file()), [])
    for place in reversed(places):
        files += sorted(place.with_name(f"{unit}.d").glob("*.conf"))
    for file in files:
        try:
            text = file.read_text(errors="replace")
        except OSError:
            continue  # not for us to see
        found = (re.findall(r"^PrivateTmp\s*=\s*(\S*)", text, re.MULTILINE) or [found])[-1]
    return found.lower() not in ("", "no", "false", "off", "0")


def parse_properties(text: str) -> dict[str, str]:
    """Return what ``systemctl show`` has printed."""
    lines = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name: value for name, _, value in lines}


def check_unit(unit: str, properties: Mapping[str, str], websockets: int) -> Iterator[Finding]:
    """Yield what there is to say about httpd's systemd unit."""
    if properties.get("KillMode") not in ("control-group", "process", "none"):
        yield warning(
            "systemd-drop-in",
            f"{unit} has KillMode={properties.get('KillMode')}",
            breaks="clients of custodians (those that were there before a reload) may be cut off"
            " (1006), instead of a goodbye (1001)",
            load="a stop or restart of Apache after a reload",
            remedy=_drop_in(unit),
        )
    else:
        yield ok("systemd-drop-in", f"{unit} lets custodians say goodbye")
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
            breaks="further WebSockets get 503, and soon the site's pages do as well",
            load=f"{room(number)} WebSockets in one child (two descriptors each)",
            remedy=_drop_in(unit),
        )
    else:
        yield ok("descriptors-unit", f"{unit}: room for {room(number)} WebSockets a child")


def check_visible(
    httpd: Httpd | None, properties: Mapping[str, str], path: str, private_unit: str = ""
) -> Iterator[Finding]:
    """Yield whether Apache sees the same file at a path as we do.

    Args:
        httpd: the one that runs, or None.
        properties: of its unit.
        path: of the socket file; where it is a link, what it leads to counts.
        private_unit: a unit that has a /tmp of its own and would start this httpd; "" for
            none.
    """
    real = os.path.realpath(path)
    is_temporary = real.startswith(("/tmp/", "/var/tmp/"))
    shown = path if real == os.path.abspath(path) else f"{path}, a link to {real}"
    remedy = (
        "have the producer make its socket in the document root, or in /run/apachews"
        f" ({shipped('systemd/apachews.tmpfiles.conf')})"
    )
    is_hidden = properties.get("PrivateTmp") == "yes" and is_temporary
    if httpd is not None:
        try:
            ours = os.stat(real)
        except OSError:
            return  # another check says so
        try:
            theirs = os.stat(f"{PROC}/{httpd.pid}/root{real}")
        except FileNotFoundError:
            is_hidden = True
        except OSError:
            if not is_hidden:
                return  # not for us to see
        else:
            is_hidden = (ours.st_dev, ours.st_ino) != (theirs.st_dev, theirs.st_ino)
    if is_hidden:
        yield error(
            "private-tmp",
            f"Apache does not see {shown}: it has a {'/tmp' if is_temporary else 'file system'}"
            " of its own" + (" (PrivateTmp)" if is_temporary else ""),
            breaks="every WebSocket of it is a 404",
            remedy=remedy,
        )
    elif is_temporary and private_unit:
        yield warning(
            "private-tmp",
            f"{private_unit} has PrivateTmp, a /tmp of its own, without {shown}",
            breaks="every WebSocket of it is a 404",
            load="Apache that systemd has started",
            remedy=remedy,
        )
    else:
        yield ok("private-tmp", f"Apache sees {path}")


def check_logrotate(directory: Path, logs: Iterable[str]) -> Iterator[Finding]:
    """Yield how the rotation of httpd's logs ends.

    Args:
        directory: logrotate's configuration, as /etc/logrotate.d.
        logs: paths of httpd's log files.
    """
    paths = [log for log in logs if log.startswith("/")]
    for file in sorted(directory.glob("*")) if directory.is_dir() else []:
        try:
            text = file.read_text(errors="replace")
        except OSError:
            continue  # a directory, or not for us to see
        for patterns, script in rotations(text):
            if not any(fnmatch.fnmatch(log, one) for log in paths for one in patterns):
                continue
            if found := restart_in(script):
                yield warning(
                    "logrotate",
                    f"{file} has Apache restarted after a rotation ({found})",
                    breaks="all clients get 1001",
                    load="every rotation: daily, on Debian",
                    remedy=f"in its postrotate: systemctl reload {service()} or apachectl graceful",
                    where=str(file),
                )
            else:
                yield ok("logrotate", f"{file} reloads Apache, and drops nobody", str(file))
            return
    yield note("logrotate", f"nothing in {directory} rotates these logs")


def restart_in(script: str) -> str:
    """Return what in a script of logrotate's restarts Apache, "" for nothing."""
    for line in script.replace("\\\n", " ").splitlines():
        command = _COMMENT.sub("", line)
        for match in _RESTARTS.finditer(command):
            # A signal goes to a number, of which the script may not say whose it is.
            is_anybodys = match[0].endswith("HUP") and not _OTHERS.search(command)
            if is_anybodys or _OURS.search(command):
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
    """Yield whether SELinux or AppArmor have a say in what httpd may connect to."""
    if httpd is None:
        return
    try:
        context = (PROC / str(httpd.pid) / "attr" / "current").read_text().strip(" \n\0")
        ours = (PROC / "self" / "attr" / "current").read_text().strip(" \n\0")
    except OSError:
        return  # no such thing in this kernel, or not for us to see
    if context == ours:
        return  # a container's, which has us and the producers in it as well
    enforced = Path("/sys/fs/selinux/enforce")
    is_selinux = ":httpd_t" in context and enforced.exists() and enforced.read_text() == "1"
    if is_selinux or context.endswith("(enforce)"):
        system = "SELinux" if is_selinux else "AppArmor"
        yield warning(
            "confinement",
            f"{system} confines httpd ({context})",
            breaks="where its policy does not let httpd connect to the producers' sockets, every"
            " WebSocket is a 500",
            remedy="ausearch -m avc -c httpd shows what was denied; audit2allow makes the rule"
            if is_selinux
            else "journalctl -k | grep DENIED shows what was denied; allow the sockets' paths"
            " with rw in the profile",
        )
