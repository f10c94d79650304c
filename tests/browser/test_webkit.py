"""WebKit, the engine of Safari: its WebSockets send no password; a ticket opens one."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from selenium import webdriver
from selenium.webdriver.webkitgtk.options import Options
from selenium.webdriver.webkitgtk.service import Service

from apachews import Event

from ..conftest import DEADLINE_S
from ..support.site import MOD_PYTHON, Site, running_site

DRIVER = shutil.which("WebKitWebDriver")
BROWSER = next(iter(sorted(glob.glob("/usr/lib/*/webkit2gtk-4*/MiniBrowser"))), "")
XVFB = shutil.which("Xvfb")
pytestmark = [
    pytest.mark.skipif(
        not (DRIVER and BROWSER and XVFB),
        reason="no WebKit: apt-get install webkit2gtk-driver xvfb",
    ),
    pytest.mark.skipif(bool(MOD_PYTHON), reason="ticket.py needs mod_wsgi"),
    # Selenium's own class for this browser.
    pytest.mark.filterwarnings("ignore:setting remote_server_addr:DeprecationWarning"),
]

LOGIN = """
    AuthType Basic
    AuthName "Members"
    AuthUserFile "${DOCROOT}/members"
    Require valid-user
"""
CONFIG = f"""
LoadModule auth_basic_module "${{MODULES}}/mod_auth_basic.so"
LoadModule authn_core_module "${{MODULES}}/mod_authn_core.so"
LoadModule authn_file_module "${{MODULES}}/mod_authn_file.so"
LoadModule authz_user_module "${{MODULES}}/mod_authz_user.so"
WSGIScriptAlias /ticket "${{APACHEWS_HANDLER}}/ticket.py" \\
    process-group=%{{GLOBAL}} application-group=%{{GLOBAL}}
<Location /members.html>{LOGIN}</Location>
<Location /password.ws>{LOGIN}</Location>
<Location /ticket>{LOGIN}
    SetEnv APACHEWS_TICKET_FOR "${{DOCROOT}}/members.ws"
</Location>
<Location /members.ws>
    SetEnv APACHEWS_TICKET required
</Location>
"""
# (The page's own address has the password here, which fetch() refuses in a relative URL.)
SCRIPT = """
const done = arguments[0];
const open = (path) => new Promise((resolve) => {
  const socket = new WebSocket(`ws://${location.host}${path}`);
  socket.onmessage = (event) => resolve(event.data);
  socket.onclose = (event) => resolve(event.code);
});
(async () => {
  const answer = await fetch(`http://${location.host}/ticket`, {method: "POST"});
  const {ticket} = await answer.json();
  const paths = ["/password.ws", "/members.ws", `/members.ws?ticket=${ticket}`];
  const said = [];
  for (const path of [...paths, paths[2]]) said.push(await open(path));
  done(said);
})().catch((error) => done(String(error)));
"""


@contextlib.contextmanager
def webkit() -> Iterator[webdriver.WebKitGTK]:
    """Run WebKitGTK's browser on a screen of its own."""
    read, write = os.pipe()
    screen = subprocess.Popen(
        [str(XVFB), "-displayfd", str(write), "-nolisten", "tcp"],
        pass_fds=[write],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(write)
    try:
        with open(read) as number:
            display = f":{number.readline().strip()}"
        options = Options()
        options.binary_location = BROWSER
        options.add_argument("--automation")
        # Its sandbox needs namespaces that a container, and root, may not have.
        env = {"DISPLAY": display, "WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS": "1"}
        service = Service(str(DRIVER), env={**os.environ, **env}, log_output=subprocess.DEVNULL)
        driver = webdriver.WebKitGTK(options=options, service=service)
        try:
            yield driver
        finally:
            driver.quit()
    finally:
        screen.terminate()
        screen.wait(DEADLINE_S)


@pytest.fixture
def site() -> Iterator[Site]:
    with running_site("event", extra=CONFIG) as site:
        # htpasswd -nbs ann secret
        (site.docroot / "members").write_text("ann:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\n")
        (site.docroot / "members.html").write_text("<!doctype html><title>members</title>")
        yield site


def test_a_ticket_opens_a_websocket_that_a_password_does_not(site: Site) -> None:
    def tell(event: Event) -> None:
        if event.type() == Event.Accept:
            event.write(f"{event.client().request.user}")

    with (
        site.producer("members.ws", tell),
        site.producer("password.ws", tell),
        webkit() as driver,
    ):
        driver.set_script_timeout(DEADLINE_S)
        driver.get(site.http("/members.html").replace("//", "//ann:secret@"))
        assert driver.title == "members"
        # The password is not sent; a ticket is required; it opens one WebSocket.
        assert driver.execute_async_script(SCRIPT) == [1006, 1006, "ann", 1006]
