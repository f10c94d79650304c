"""Autobahn's cases, driven by kosoku, against a site: what is run, and what may come of it.

Contract: ``running_target()`` yields a site whose ``/`` is an echo producer;
``check(port, include, report)`` runs cases and fails on the first that did not come
out as it must.  A case that does not finish is an ERROR there, and fails as well.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from apachews_tools.httpd import private_apache

from ..conftest import wait_for
from .site import HANDLER, ROOT, Site, echo, running_site

ARTEFACTS = ROOT / "artefacts"
KOSOKU = Path(sys.executable).with_name("kosoku")
ALL_CASES = 517
LIMIT = 128 * 1024 * 1024  # section 9 sends messages of 16 MiB
# kosoku can name a host and a port only, so / is the socket.  And it fails itself
# (a TypeError, on the sizes 16 and 64) where a short message comes back uncompressed
# on a connection that has compression.
CONFIGURATION = """
LoadModule alias_module "${MODULES}/mod_alias.so"
AliasMatch "^/$" "${DOCROOT}/auto.ws"
SetEnv APACHEWS_MAX_MESSAGE 128M
SetEnv APACHEWS_DEFLATE_MIN_SIZE 0
"""

# A violation is answered at once, so that its CLOSE can come before the echo of
# what was sent in the same segment: allowed, and faster to be rid of the peer.
NON_STRICT = {
    *("3.2", "3.3", "3.4"),
    *("4.1.3", "4.1.4", "4.1.5", "4.2.3", "4.2.4", "4.2.5"),
    "5.15",
}
# Autobahn only watches what a server does: with 256 KiB still to send when the
# client closes, and with close codes that RFC 6455 leaves open.
INFORMATIONAL = {"7.1.6", "7.13.1", "7.13.2"}


@contextmanager
def running_target(extra: str = "") -> Iterator[Site]:
    """Start an Apache with an echo producer on ``/``."""
    with (
        running_site(extra=CONFIGURATION + extra) as site,
        site.producer("auto.ws", echo, max_message_bytes=LIMIT, max_queue_bytes=LIMIT),
    ):
        yield site


@contextmanager
def running_target_in_python() -> Iterator[Site]:
    """Start one whose Python finds the handler and the wire as they are without a compiler.

    Its modules are a copy: other tests use those of the environment at the same time.
    """
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        for name in ("apachews", "apachews_handler"):
            shutil.copytree(HANDLER.with_name(name), Path(directory, name), ignore=ignored)
        with running_target(f'WSGIPythonPath "{directory}"\n') as site:
            yield site


@contextmanager
def wrapped(site: Site) -> Iterator[int]:
    """Put TLS around the client's side; yield the port to connect to."""
    port = private_apache.free_port()
    process = subprocess.Popen(
        [
            "socat",
            f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork,nodelay",
            f"OPENSSL:localhost:{site.apache.tls_port},cafile={site.apache.certificate},nodelay",
        ],
        start_new_session=True,
    )
    try:
        wait_for(lambda: b"%04X" % port in Path("/proc/net/tcp").read_bytes(), what=process.poll)
        yield port
    finally:
        process.terminate()
        process.wait()


def check(port: int, include: Sequence[str], report: Path) -> int:
    """Run the cases that some patterns name; return how many there were."""
    shutil.rmtree(report, ignore_errors=True)
    patterns = [argument for pattern in include for argument in ("-i", pattern)]
    result = subprocess.run(
        [str(KOSOKU), "-p", "2", "-o", str(report), *patterns, f"127.0.0.1:{port}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (report / "index.json").exists(), result.stdout + result.stderr
    (cases,) = json.loads((report / "index.json").read_text()).values()
    for name, case in cases.items():
        allowed = {"OK"}
        if name in NON_STRICT:
            allowed.add("NON-STRICT")
        if name in INFORMATIONAL:
            allowed.add("INFORMATIONAL")
        assert case["behavior"] in allowed, (name, case)
        assert case["behaviorClose"] in allowed, (name, case)
    assert result.returncode == 0, result.stdout + result.stderr
    return len(cases)
