"""The pages that a reader follows from top to bottom: every command, every file.

Each is run as root on a copy of this machine (``sandbox.py``): Debian's own Apache on
ports 80 and 443, Debian's Python, the shipped units.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..support.site import IS_ROOT, ROOT

NAMESPACES = ("unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child")
PROGRAMS = ("unshare", "setpriv", "ip", "curl", "openssl", "apache2", "cmake", "pkg-config", "gcc")
# Pages that a reader follows one after the other, on one machine.
READINGS = [
    ["README.md"],
    ["docs/howto/pip.md"],
    [
        "docs/tutorial/quickstart.md",
        "docs/reference/c.md",
        "docs/tutorial/tutorial.md",
        "docs/howto/publish.md",
        "docs/howto/deploy.md",
        "docs/howto/operations.md",
    ],
]


def why_not() -> str:
    """Return why a sandbox is not possible here, or ""."""
    if not IS_ROOT:
        return "root only: it needs its own file systems and the ports 80 and 443"
    for program in PROGRAMS:
        if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin"):
            return f"{program} is not installed"
    if not Path("/etc/apache2/apache2.conf").exists() and not os.environ.get(
        "APACHEWS_DEBIAN_APACHE"
    ):
        return "Debian's package apache2 is missing: deploy/test unpacks it"
    if os.path.realpath(sys.base_prefix) != "/usr":
        return "the pages use the system's Python, and so must the tests"
    # As in sandbox.py: some file systems cannot be below or above an overlay.
    overlay = "lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work"
    script = (
        "mount -t tmpfs none /mnt && mkdir /mnt/upper /mnt/work"
        f" && mount -t overlay none -o {overlay} /etc"
    )
    probe = subprocess.run([*NAMESPACES, "sh", "-c", script], capture_output=True, check=False)
    return (
        f"namespaces do not work here: {probe.stderr.decode().strip()}" if probe.returncode else ""
    )


@pytest.mark.timeout(240)
@pytest.mark.parametrize("pages", READINGS, ids=lambda pages: pages[0])
def test_the_instructions_of_a_page_work(pages: list[str]) -> None:
    if reason := why_not():
        pytest.skip(reason)
    result = subprocess.run(
        [*NAMESPACES, sys.executable, "-m", "tests.docs.sandbox", *pages],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(result.stdout)
    assert result.returncode == 0
