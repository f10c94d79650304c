"""Facts of a run: the machine, the versions, the command."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import subprocess
import time
from importlib import metadata
from pathlib import Path

from apachews_tools.httpd.private_apache import find_httpd, find_wsgi_module

from . import relay
from .peers import NGINX, NODE_MODULES

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    *("apachews", "websockets", "picows", "uvicorn", "uvloop", "wsproto"),
    *("redis", "python-socketio", "channels", "channels_redis"),
)
NODE_PACKAGES = {"ws": "ws", "uWebSockets.js": "@trufflesuite/uws-js-unofficial"}


def cpu_model(cpuinfo: str) -> str:
    """Return the processor's name in the text of /proc/cpuinfo."""
    found = re.search(r"^model name\s*: (.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def memory_gib(meminfo: str) -> float:
    """Return the machine's memory from the text of /proc/meminfo."""
    found = re.search(r"^MemTotal:\s+(\d+) kB$", meminfo, re.MULTILINE)
    return int(found[1]) / 1024**2 if found else 0.0


def version_of(package: str) -> str:
    """Return the version of an installed Python package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def form_of(module: str) -> str:
    """Return whether an installed module is compiled or interpreted."""
    spec = importlib.util.find_spec(module)
    return "interpreted" if spec and (spec.origin or "").endswith(".py") else "compiled"


def describe(arguments: list[str]) -> dict[str, str]:
    """Return machine and versions for the report, in its order."""
    return {
        "Date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "Command": " ".join(["bench/run", *arguments]),
        "Processor": f"{cpu_model(_read('/proc/cpuinfo'))}, {os.cpu_count()} cores",
        "Memory": f"{memory_gib(_read('/proc/meminfo')):.0f} GiB",
        "Kernel": platform.release(),
        "httpd": _said([str(find_httpd()), "-v"], r"Apache/(\S+)"),
        "mod_wsgi": _wsgi_version(),
        "OpenSSL": _said(["openssl", "version"], r"OpenSSL (\S+)"),
        "Python": platform.python_version(),
        **{package: version_of(package) for package in PACKAGES},
        "Node": _said(["node", "--version"], r"v(\S+)"),
        **{name: _node_version(package) for name, package in NODE_PACKAGES.items()},
        "Redis": _said([*relay.COMMAND[:1], "--version"], r"v=(\S+)", relay.program()),
        "nginx": _debian_version("nginx"),
        "Nchan": _debian_version("libnginx-mod-nchan"),
        "Modules of apachews": form_of("apachews._server.loop"),
        "Commit of apachews": _commit(),
    }


def _wsgi_version() -> str:
    """Return mod_wsgi's version: its module has it among its strings."""
    found = re.search(rb"\0(\d+\.\d+\.\d+)\0mod_wsgi/", find_wsgi_module().read_bytes())
    return found[1].decode() if found else "unknown"


def _node_version(package: str) -> str:
    """Return the version of a package that bench/run has installed for Node."""
    try:
        version: str = json.loads(_read(str(NODE_MODULES / package / "package.json")))["version"]
    except FileNotFoundError:
        return "not installed"
    return version


def _debian_version(package: str) -> str:
    """Return the version of a package that bench/run has unpacked."""
    try:
        packages = _read(str(NGINX / "packages"))
    except FileNotFoundError:
        return "not installed"
    found = re.search(rf"^{package}\t(?:\d+:)?(\S+)$", packages, re.MULTILINE)
    return found[1] if found else "unknown"


def _commit() -> str:
    commit = _said(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"], r"(\w+)")
    changed = _said(["git", "-C", str(ROOT), "status", "--porcelain", "-uno"], r"(\w)")
    return f"{commit}, with changes" if changed != "unknown" else commit


def _said(command: list[str], pattern: str, program: str | None = None) -> str:
    """Return a part of a program's output; ``program``: the file, if not that of the command."""
    try:
        output = subprocess.run(
            command, executable=program, capture_output=True, text=True, check=False
        ).stdout
    except FileNotFoundError:
        return "unknown"
    found = re.search(pattern, output)
    return found[1] if found else "unknown"


def _read(path: str) -> str:
    return Path(path).read_text()
