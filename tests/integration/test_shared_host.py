"""Neighbours on one Apache: what the author of an .htaccess file reaches beyond his own site.

Mallory owns a directory of the document root and writes its .htaccess (``AllowOverride
FileInfo Indexes``).  The victim's sockets, files and visitors belong to other users.  Each
attack is tried against a real Apache; what the server's configuration allows is tried as well.
"""

from __future__ import annotations

import os
import pwd
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from apachews import Event, Server, wire
from apachews_tools.httpd import private_apache
from apachews_tools.httpd.private_apache import DEBIAN_MODULES

from ..conftest import let_pass, wait_for
from ..support.frames import masked
from ..support.raw_client import RawClient, request
from ..support.site import HANDLER, IS_ROOT, MOD_PYTHON, Site, running_site

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="root only: the neighbours are other users")
wsgi_only = pytest.mark.skipif(bool(MOD_PYTHON), reason="about directives of mod_wsgi")

# Users without an entry in /etc/passwd.
MALLORY = 23001
VICTIM = 23002
EVIL = "<?php system($_GET['c']); ?>"
SWAPS = 300

OVERRIDE = """
<Directory "${DOCROOT}">
    AllowOverride FileInfo Indexes
    Options +IncludesNoExec
</Directory>
"""
# Status pages that Require keeps from every client, and modules with further ways to a URL.
ELSEWHERE = f"""
LoadModule rewrite_module {DEBIAN_MODULES}/mod_rewrite.so
LoadModule actions_module {DEBIAN_MODULES}/mod_actions.so
LoadModule include_module {DEBIAN_MODULES}/mod_include.so
<IfDefine WSGI_MODULE>
    WSGIScriptAlias /private-status "${{APACHEWS_HANDLER}}/status_page.py" \\
        process-group=%{{GLOBAL}} application-group=%{{GLOBAL}}
    WSGIScriptAlias /env-status "${{APACHEWS_HANDLER}}/status_page.py" \\
        process-group=%{{GLOBAL}} application-group=%{{GLOBAL}}
</IfDefine>
RewriteEngine on
RewriteRule ^/by-the-server$ /ws/mallory/x [PT]
<Location /env-status>
    Require env is_monitor
</Location>
<Location /private-status>
    Require all denied
</Location>
"""


class Host:
    """An Apache with Mallory's directory in its document root.

    Attributes:
        mallory: her directory, at ``/mallory``.
        neighbour: the victim's directory, at ``/neighbour``.
        outside: a directory beside the document root, of Apache's user.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.mallory = site.docroot / "mallory"
        self.mallory.mkdir()
        os.chown(self.mallory, MALLORY, MALLORY)
        self.neighbour = site.docroot / "neighbour"
        self.neighbour.mkdir()
        os.chown(self.neighbour, VICTIM, VICTIM)
        self.outside = site.apache.root / "outside"
        self.outside.mkdir()
        account = pwd.getpwnam(private_apache.APACHE_USER)
        os.chown(self.outside, account.pw_uid, account.pw_gid)

    def htaccess(self, text: str) -> None:
        """Write Mallory's .htaccess."""
        file = self.mallory / ".htaccess"
        file.write_text(text)
        os.chown(file, MALLORY, MALLORY)

    def link(self, name: str, target: Path | str, owner: int = MALLORY) -> Path:
        """Make a symbolic link in Mallory's directory."""
        link = self.mallory / name
        link.symlink_to(target)
        os.chown(link, owner, owner, follow_symlinks=False)
        return link

    def status(self, name: str = "x.ws") -> int:
        """Ask for a WebSocket in Mallory's directory; return the HTTP status."""
        with RawClient(self.site.dial("ws")) as client:
            client.send(request(f"/mallory/{name}"))
            return client.read_head()[0]

    def clear(self) -> None:
        for path in (*self.mallory.iterdir(), *self.neighbour.iterdir(), *self.outside.iterdir()):
            path.unlink()


@pytest.fixture(scope="module")
def server() -> Iterator[Host]:
    with running_site(extra=OVERRIDE + ELSEWHERE) as site:
        yield Host(site)


@pytest.fixture
def host(server: Host) -> Iterator[Host]:
    """The server, whose configuration widens nothing."""
    yield server
    server.clear()


@contextmanager
def listening(path: Path, owner: int) -> Iterator[socket.socket]:
    """Listen on a socket file to which every user may connect, as PHP-FPM's may be."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        os.chown(path, owner, owner)
        path.chmod(0o666)
        listener.listen(SWAPS)  # clients are not accepted, only counted
        listener.setblocking(False)
        yield listener
    path.unlink(missing_ok=True)


def was_reached(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


RAW = "SetEnv APACHEWS_WIRE raw\n"


def test_a_link_to_a_neighbours_socket_is_refused(host: Host) -> None:
    host.htaccess(RAW)
    target = host.outside / "fpm.sock"
    with listening(target, VICTIM) as listener:
        link = host.link("x.ws", target)
        assert host.status() == 403
        assert not was_reached(listener)
    (line,) = host.site.log_lines(r"403 foreign-link for /mallory/x\.ws: ")
    for part in (str(link), str(target), str(MALLORY), str(VICTIM)):
        assert part in line, line
    assert "Define APACHEWS_ENDPOINT_DIRECTORIES" in line
    assert "as root" in line


def test_a_linked_directory_leads_to_no_socket_of_a_neighbour(host: Host) -> None:
    with listening(host.outside / "fpm.ws", VICTIM) as listener:
        host.link("d", host.outside)
        assert host.status("d/fpm.ws") == 403
        assert not was_reached(listener)


def test_a_link_to_a_link_of_root_is_still_mallorys(host: Host) -> None:
    with listening(host.outside / "fpm.ws", VICTIM) as listener:
        (host.outside / "current.ws").symlink_to("fpm.ws")
        host.link("x.ws", host.outside / "current.ws")
        assert host.status() == 403
        assert not was_reached(listener)


def test_a_neighbours_loopback_socket_is_refused(host: Host) -> None:
    path = host.outside / "loop.ws"
    account = pwd.getpwnam(private_apache.APACHE_USER)
    with Server(path, transport="loopback"):
        os.chown(path, VICTIM, account.pw_gid)
        host.link("x.ws", path)
        assert host.status() == 403


@pytest.mark.parametrize(
    ("link_owner", "socket_owner"), [(MALLORY, MALLORY), (0, VICTIM)], ids=["own", "by root"]
)
def test_a_link_of_the_sockets_owner_or_of_root_is_followed(
    host: Host, link_owner: int, socket_owner: int
) -> None:
    with listening(host.outside / "a.ws", socket_owner) as listener:
        host.link("x.ws", host.outside / "a.ws", link_owner)
        assert host.status() == 101
        assert was_reached(listener)


def test_a_socket_in_the_directory_itself_needs_no_link(host: Host) -> None:
    # A user who may create a socket there may serve it, and the program may run as any user.
    with listening(host.mallory / "x.ws", VICTIM) as listener:
        assert host.status() == 101
        assert was_reached(listener)


def test_a_swap_between_check_and_connect_gains_nothing(host: Host) -> None:
    """A socket and a link take each other's place while clients connect."""
    ended = threading.Event()
    own, wanted = host.mallory / "own.ws", host.mallory / "x.ws"

    def swap() -> None:
        while not ended.is_set():
            link = host.link("link", host.outside / "fpm.sock")
            wanted.rename(own)
            link.rename(wanted)
            own.rename(wanted)

    with listening(wanted, MALLORY), listening(host.outside / "fpm.sock", VICTIM) as theirs:
        thread = threading.Thread(target=swap)
        thread.start()
        deadline = time.monotonic() + 30
        try:
            answers = [host.status() for _ in range(SWAPS)]
            while not {101, 403} <= set(answers):  # the socket and the link have their turns
                assert time.monotonic() < deadline, set(answers)
                answers.append(host.status())
        finally:
            ended.set()
            thread.join()
        assert set(answers) <= {101, 403, 404}
        assert not was_reached(theirs)


def test_a_client_that_is_held_is_not_resumed_by_a_neighbours_socket(host: Host) -> None:
    host.htaccess("SetEnv APACHEWS_HOLD 1s\n")
    with listening(host.outside / "fpm.sock", VICTIM) as theirs:
        with listening(host.mallory / "x.ws", MALLORY) as mine:
            client = RawClient(host.site.dial("ws")).upgrade("/mallory/x.ws")
            mine.setblocking(True)
            producer = mine.accept()[0]
            producer.settimeout(10)
            assert producer.recv(1)
        with client:
            host.link("x.ws", host.outside / "fpm.sock")
            producer.close()
            assert client.read_close() == 1012
        assert not was_reached(theirs)


def test_a_maze_of_links_does_not_delay_a_neighbours_messages(host: Host) -> None:
    """Links that the kernel follows, of a client that Apache holds, and processor time."""
    host.htaccess("SetEnv APACHEWS_HOLD 60s\n")
    with listening(host.mallory / "x.ws", MALLORY) as mine:
        mine.setblocking(True)
        client = RawClient(host.site.dial("ws")).upgrade("/mallory/x.ws")
        producer = mine.accept()[0]
    with client, listening(host.outside / "fpm.sock", VICTIM):
        for number in range(38):
            host.link(f"l{number}", f"{'../mallory/' * 72}l{number + 1}")
        host.link("l38", host.outside / "fpm.sock")
        host.link("x.ws", "l0")
        before = children_seconds(host.site)
        producer.close()
        with RawClient(host.site.dial("ws")).upgrade("/echo.ws") as neighbour:
            ends_at = time.monotonic() + 2
            while time.monotonic() < ends_at:
                neighbour.send(masked(0x81, b"x"))
                assert neighbour.read_frame() == (0x81, b"x")
                let_pass(0.05)
        assert children_seconds(host.site) - before < 0.5


def children_seconds(site: Site) -> float:
    """Return the processor time of Apache's children."""
    ticks = 0
    for child in site.apache.children():
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # utime and stime, proc(5)
    return ticks / os.sysconf("SC_CLK_TCK")


def test_a_close_log_is_the_servers_business(host: Host) -> None:
    target = host.outside / "shell.log"
    with listening(host.mallory / "x.ws", MALLORY):
        host.htaccess(
            f'SetEnv APACHEWS_CLOSE_LOG "{target}"\nSetEnv APACHEWS_CLOSE_LOG_FORMAT "{EVIL}"\n'
        )
        with RawClient(host.site.dial("ws")) as client:
            client.send(request("/mallory/x.ws"))
            status = client.read_head()[0]
            if status == 101:
                client.send(masked(0x88, wire.encode_close(1000, "")))
                wait_for(target.exists)
    assert status == 500
    assert not target.exists()
    assert host.site.log_lines("500 .*/mallory/x.ws: .*Define APACHEWS_LOG_DIRECTORY")


@pytest.mark.parametrize(
    "setting",
    [
        "APACHEWS_LOG_DIRECTORY /",
        "APACHEWS_ENDPOINT_DIRECTORIES /",
        "APACHEWS_LOG_DIRECTORY ''",
        "APACHEWS_MAX_WAITING 1048576",
    ],
)
def test_what_only_define_may_say_is_refused_from_setenv(host: Host, setting: str) -> None:
    with listening(host.outside / "fpm.sock", VICTIM) as listener:
        host.link("x.ws", host.outside / "fpm.sock")
        host.htaccess(f"SetEnv {setting}\n")
        assert host.status() == 500
        assert not was_reached(listener)
    name = setting.split()[0]
    assert host.site.log_lines(f"/mallory/x.ws: SetEnv {name} .*Define {name}")


@pytest.mark.parametrize(
    "directive",
    [
        "Define APACHEWS_ENDPOINT_DIRECTORIES /",
        "UnDefine APACHEWS_MAX_BUFFER",
        pytest.param('WSGIScriptAlias /s "${APACHEWS_HANDLER}/status_page.py"', marks=wsgi_only),
        pytest.param('WSGIHandlerScript s "${APACHEWS_HANDLER}/status_page.py"', marks=wsgi_only),
        pytest.param("WSGIPassApacheRequest Off", marks=wsgi_only),
        pytest.param("WSGIApplicationGroup %{GLOBAL}", marks=wsgi_only),
        pytest.param('WSGIImportScript "/x.py"', marks=wsgi_only),
        # Code in Apache's process: of AuthConfig, which this host does not allow.
        pytest.param('WSGIAccessScript "/x.py"', marks=wsgi_only),
        pytest.param('WSGIAuthUserScript "/x.py"', marks=wsgi_only),
    ],
)
def test_directives_of_the_servers_configuration_are_refused(host: Host, directive: str) -> None:
    host.htaccess(f"{directive}\n")
    with listening(host.mallory / "x.ws", MALLORY):
        assert host.status() == 500
    assert host.site.log_lines(f"{directive.split()[0]} not allowed here")


STATUS_WAYS = {
    "handler": ("SetHandler websocket-status\n", None),
    "handler script": ("SetHandler wsgi-script\n", "status_page.py"),
    "callable": ("SetHandler websocket\nWSGICallableObject application\n", "status_page.py"),
    "rewriting": ("RewriteEngine on\nRewriteRule ^page$ /private-status?json [PT,L]\n", None),
    "action": ("Action mine /private-status\nSetHandler mine\n", None),
    "error document": (
        'RewriteEngine on\nRewriteRule ^page$ - [F]\nErrorDocument 403 "/private-status?json"\n',
        None,
    ),
}


@wsgi_only
@pytest.mark.parametrize("way", STATUS_WAYS)
def test_the_status_of_all_sites_is_not_for_mallory(host: Host, way: str) -> None:
    text, script = STATUS_WAYS[way]
    host.htaccess(text)
    if script:
        host.link("page", HANDLER / script, 0)
    else:
        (host.mallory / "page").touch()
    with RawClient(host.site.dial("ws")).upgrade("/echo.ws"):
        answer = requests.get(host.site.http("/mallory/page?json"), timeout=10)
    assert answer.status_code != 200 or "processes" not in answer.text
    assert "echo.ws" not in answer.text
    assert requests.get(host.site.http("/websocket-status?json"), timeout=10).status_code == 200


def test_rewriting_does_not_change_the_root_of_an_alias(host: Host) -> None:
    with listening(host.outside / "fpm.ws", VICTIM) as listener:
        host.htaccess(
            "RewriteEngine on\n"
            f"RewriteRule ^x.ws$ /ws/fpm [E=APACHEWS_ROOT:{host.outside},PT,L]\n"
            f'SetEnvIf Host . "APACHEWS_ROOT={host.outside}"\n'
            f'SetEnv APACHEWS_ROOT "{host.outside}"\n'
        )
        assert host.status() == 500
        assert not was_reached(listener)
    assert host.site.log_lines("500 htaccess for /mallory/x.ws")


# Ways from Mallory's directory to another URL.  After the first two httpd continues the very
# request, with the variables that her file has set; the others begin another request.
WAYS_ELSEWHERE = {
    "directory index": "DirectoryIndex {url}\n",
    "fallback": "FallbackResource {url}\n",
    "rewriting": "RewriteEngine on\nRewriteRule ^$ {url} [PT,L]\n",
    "action": "Action mine {url}\nSetHandler mine\n",
    "include": 'SetOutputFilter INCLUDES\nDirectoryIndex page.html\nErrorDocument 403 "no"\n',
    # httpd does not list the file again for the second request.
    "rewriting to an index": (
        "RewriteEngine on\nRewriteRule ^go$ /mallory/ [PT,L]\nDirectoryIndex {url}\n"
    ),
}
VARIABLES = "SetEnv REMOTE_USER root\nSetEnvIf Host . is_monitor=1\n"


def require_refusal_elsewhere(host: Host, way: str, url: str, variables: str) -> None:
    """Ask for a WebSocket in Mallory's directory that leads elsewhere, and require the refusal.

    In the log, and also in the answer if that is not a page which includes the refused one.
    """

    def logged() -> int:
        return len(host.site.log_lines(f"500 htaccess for /mallory/.*{host.mallory}/' led"))

    host.htaccess(variables + WAYS_ELSEWHERE[way].format(url=url))
    (host.mallory / "page.html").write_text(f'<!--#include virtual="{url}" -->')
    before = logged()
    with RawClient(host.site.dial("ws")) as client:
        client.send(request("/mallory/go" if way == "rewriting to an index" else "/mallory/"))
        status, headers = client.read_head()
    if way != "include":
        assert (status, headers.get("apachews-refused")) == (500, "htaccess")
    wait_for(lambda: logged() > before)


@contextmanager
def loopback(
    host: Host, name: str, owner: int, serve: Callable[[Event], None] = lambda event: None
) -> Iterator[None]:
    """Serve by a loopback socket: a file, to which DirectoryIndex and FallbackResource lead."""
    account = pwd.getpwnam(private_apache.APACHE_USER)
    with host.site.producer(name, serve, transport="loopback", mode=0o640):
        os.chown(host.site.docroot / name, owner, account.pw_gid)
        yield


@wsgi_only
@pytest.mark.parametrize("way", WAYS_ELSEWHERE)
def test_no_way_leads_to_an_alias_with_variables(host: Host, way: str) -> None:
    with listening(host.outside / "fpm.ws", VICTIM) as listener:
        root = f'SetEnv APACHEWS_ROOT "{host.outside}"\n'
        require_refusal_elsewhere(host, way, "/ws/fpm", root + VARIABLES)
        assert not was_reached(listener)


@pytest.mark.parametrize("way", WAYS_ELSEWHERE)
def test_no_way_leads_to_a_neighbours_socket_with_variables(host: Host, way: str) -> None:
    """The producer would believe REMOTE_USER; with the raw wire a client writes the OPEN itself."""
    users: list[str | None] = []

    def note(event: Event) -> None:
        users.append(event.client().request.user)

    with loopback(host, "neighbour/chat.ws", VICTIM, note):
        require_refusal_elsewhere(host, way, "/neighbour/chat.ws", VARIABLES)
    assert not users


@wsgi_only
@pytest.mark.parametrize("url", ["/private-status", "/env-status"])
@pytest.mark.parametrize("way", WAYS_ELSEWHERE)
def test_no_way_leads_to_the_status(host: Host, way: str, url: str) -> None:
    """The variable for ``Require env`` is set in the request that httpd continues."""
    host.htaccess(VARIABLES + WAYS_ELSEWHERE[way].format(url=url))
    (host.mallory / "page.html").write_text(f'<!--#include virtual="{url}?json" -->')
    name = "go" if way == "rewriting to an index" else ""
    answer = requests.get(host.site.http(f"/mallory/{name}?json"), timeout=10)
    assert "processes" not in answer.text
    assert answer.status_code in ((200,) if way == "include" else (403, 500))


def test_own_rules_lead_to_own_sockets(host: Host) -> None:
    """A file above the socket, which applies to the socket as well."""
    with listening(host.mallory / "x.ws", MALLORY) as listener:
        host.htaccess("RewriteEngine on\nRewriteRule ^chat$ /mallory/x.ws [PT,L]\n")
        assert host.status("chat") == 101
        assert was_reached(listener)
    with loopback(host, "mallory/index.ws", MALLORY):
        host.htaccess("DirectoryIndex index.ws\n")
        assert host.status("") == 101


def test_a_file_in_the_document_root_does_not_close_an_alias(host: Host) -> None:
    file = host.site.docroot / ".htaccess"
    file.write_text("RewriteEngine on\nRewriteRule ^chat$ /mallory/x.ws [PT,L]\n")
    try:
        with listening(host.mallory / "x.ws", MALLORY) as listener:
            for url in ("/ws/mallory/x", "/mallory/x.ws", "/chat", "/by-the-server"):
                RawClient(host.site.dial("ws")).upgrade(url).socket.close()
                assert was_reached(listener)
    finally:
        file.unlink()


CODE = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"MALLORY RUNS"]

def allow_access(environ, host):
    with open({mark!r}, "w") as file:
        file.write("MALLORY RUNS")
    return True
"""


@wsgi_only
def test_fileinfo_alone_runs_no_python(host: Host) -> None:
    (host.mallory / "code.wsgi").write_text(CODE.format(mark="/nowhere"))
    host.htaccess("SetHandler wsgi-script\n")
    assert requests.get(host.site.http("/mallory/code.wsgi"), timeout=10).status_code == 403
    assert host.site.log_lines("ExecCGI is off in this directory")


@wsgi_only
def test_authconfig_runs_python_as_the_documentation_says() -> None:
    """A fact of mod_wsgi's that docs/explanation/security.md warns of; and the remedy it names."""
    listed = (
        '<Directory "${DOCROOT}/listed">\n'
        "AllowOverride None\nAllowOverrideList SetEnv AddType Redirect\n</Directory>\n"
    )
    override = OVERRIDE.replace("FileInfo Indexes", "AuthConfig") + listed
    with running_site(extra=override) as site:
        mark = site.docroot / "mark"
        code = site.docroot / "code.wsgi"
        code.write_text(CODE.format(mark=str(mark)))
        for name in ("listed", "free"):
            (site.docroot / name).mkdir()
            (site.docroot / name / "page.html").touch()
            (site.docroot / name / ".htaccess").write_text(f'WSGIAccessScript "{code}"\n')
        assert requests.get(site.http("/listed/page.html"), timeout=10).status_code == 500
        assert not mark.exists()
        assert requests.get(site.http("/free/page.html"), timeout=10).status_code == 200
        assert mark.read_text() == "MALLORY RUNS"
        for text, status in (("SetHandler websocket\n", 500), ("SetEnv NAME value\n", 200)):
            (site.docroot / "listed" / ".htaccess").write_text(text)
            assert requests.get(site.http("/listed/page.html"), timeout=10).status_code == status


@pytest.mark.skipif(
    not MOD_PYTHON, reason="about mod_python, which is the host in tox -e modpython"
)
def test_any_override_runs_python_in_mod_python(host: Host) -> None:
    code = "def handler(req):\n    req.write('MALLORY RUNS')\n    return 0\n"
    (host.mallory / "mallorys.py").write_text(code)
    host.htaccess(
        "SetHandler mod_python\nPythonHandler mallorys\n"
        f"PythonPath \"sys.path + ['{host.mallory}']\"\n"
    )
    assert requests.get(host.site.http("/mallory/page"), timeout=10).text == "MALLORY RUNS"


DEFINES = """
Define APACHEWS_LOG_DIRECTORY "${ROOT}/outside/"
Define APACHEWS_ENDPOINT_DIRECTORIES "/run/apachews-not-there ${ROOT}/outside"
Define APACHEWS_MAX_BUFFER 64K
Define APACHEWS_MAX_CONNECTIONS_PER_ENDPOINT 2
"""


@pytest.fixture(scope="module")
def widened_server() -> Iterator[Host]:
    with running_site("worker", extra=DEFINES + OVERRIDE) as site:
        yield Host(site)


@pytest.fixture
def widened(widened_server: Host) -> Iterator[Host]:
    """A server whose configuration names a directory of logs, one of sockets, and limits."""
    yield widened_server
    widened_server.clear()


def test_a_directory_of_sockets_is_open_to_every_site(widened: Host) -> None:
    with listening(widened.outside / "shared.ws", VICTIM) as listener:
        widened.link("x.ws", widened.outside / "shared.ws")
        assert widened.status() == 101
        assert was_reached(listener)
    (widened.mallory / "x.ws").unlink()
    beside = widened.site.apache.root / "outside-too.ws"
    with listening(beside, VICTIM) as listener:
        widened.link("x.ws", widened.outside / ".." / beside.name)
        assert widened.status() == 403
        assert not was_reached(listener)


def test_a_directory_of_logs_is_open_to_every_site(widened: Host) -> None:
    log = widened.outside / "close.log"
    widened.htaccess(f'SetEnv APACHEWS_CLOSE_LOG "{log}"\nSetEnv APACHEWS_CLOSE_TIMEOUT 100ms\n')
    with (
        listening(widened.mallory / "x.ws", MALLORY),
        RawClient(widened.site.dial("ws")).upgrade("/mallory/x.ws") as client,
    ):
        client.send(masked(0x88, wire.encode_close(1000, "")))
        wait_for(log.exists)
    for path in (f"{widened.outside}/../x.log", f"{widened.mallory}/x.log"):
        widened.htaccess(f'SetEnv APACHEWS_CLOSE_LOG "{path}"\n')
        assert widened.status() == 500
    assert not (widened.site.apache.root / "x.log").exists()


def test_what_the_server_fixes_no_site_changes(widened: Host) -> None:
    with listening(widened.mallory / "x.ws", MALLORY):
        widened.htaccess("SetEnv APACHEWS_MAX_BUFFER 16M\n")
        assert widened.status() == 500
        assert widened.site.log_lines("APACHEWS_MAX_BUFFER '16M' .*Define APACHEWS_MAX_BUFFER 64K")
        widened.htaccess("SetEnv APACHEWS_MAX_BUFFER 64K\n")
        clients = [RawClient(widened.site.dial("ws")).upgrade("/mallory/x.ws") for _ in range(2)]
        assert widened.status() == 503
        for client in clients:
            client.socket.close()


def test_a_reload_changes_what_the_server_says() -> None:
    with running_site("event", extra=OVERRIDE) as site:
        host = Host(site)
        with listening(host.outside / "shared.ws", VICTIM) as listener:
            host.link("x.ws", host.outside / "shared.ws")
            assert host.status() == 403
            extra = site.apache.root / "conf.d" / "extra.conf"
            closed = extra.read_text()
            extra.write_text(DEFINES + closed)
            site.renew()
            # An old child may serve a request that it had accepted before the reload.
            wait_for(lambda: host.status() == 101)
            assert was_reached(listener)
            extra.write_text(closed)
            site.renew()
            wait_for(lambda: host.status() == 403)


def test_a_bad_definition_is_named(short_path: Path) -> None:
    with running_site("prefork", extra="Define APACHEWS_MAX_BUFFER much\n") as site:
        with RawClient(site.dial("ws")) as client:
            client.send(request("/echo.ws"))
            assert client.read_head()[0] == 500
        assert site.log_lines("/echo.ws: Define APACHEWS_MAX_BUFFER 'much' is not allowed: use 4K")
