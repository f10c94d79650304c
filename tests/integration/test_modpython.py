"""mod_python as the host: what else a site has in it goes on as it was."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator

import pytest

from ..support.frames import masked
from ..support.raw_client import RawClient
from ..support.site import MOD_PYTHON, Site, running_site

pytestmark = pytest.mark.skipif(not MOD_PYTHON, reason="mod_python is the host in tox -e modpython")

ANOTHER = """
PythonPath "sys.path + ['${APACHEWS_HANDLER}/..', '${DOCROOT}/programs']"
<Location /another>
    SetHandler mod_python
    PythonHandler another_program
</Location>
"""
PROGRAM = """
from mod_python import apache


def handler(req):
    req.content_type = "text/plain"
    req.write(req.interpreter)
    return apache.OK
"""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running_site(extra=ANOTHER) as site:
        programs = site.docroot / "programs"
        programs.mkdir()
        programs.chmod(0o755)
        (programs / "another_program.py").write_text(PROGRAM)
        yield site


def test_another_program_keeps_its_interpreter_and_its_path(site: Site) -> None:
    with urllib.request.urlopen(site.http("/another"), timeout=10) as response:
        interpreter = response.read()
    assert interpreter not in (b"", b"main_interpreter")
    with RawClient(site.dial("ws")).upgrade("/echo.ws") as client:
        client.send(masked(0x81, b"hi"))
        assert client.read_data_frame() == (0x81, b"hi")
