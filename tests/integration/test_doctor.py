"""``apachews doctor`` against real Apaches, each with one thing wrong."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from apachews_tools.cli import main
from apachews_tools.httpd.private_apache import DEBIAN_MODULES, SHIPPED, PrivateApache

from ..support.site import HANDLER, IS_ROOT, Site, configured_apache, running_without_path
from .test_answers import listening

PROXY = (
    f"LoadModule proxy_module {DEBIAN_MODULES}/mod_proxy.so\n"
    f"LoadModule proxy_http_module {DEBIAN_MODULES}/mod_proxy_http.so\n"
)
REWRITE = f"LoadModule rewrite_module {DEBIAN_MODULES}/mod_rewrite.so\nRewriteEngine On\n"
# As apachews.conf, which these tests read before the module.
OFF = '<FilesMatch "\\.ws$">\nRewriteEngine Off\n</FilesMatch>\n'
# Port 9 is that of "discard": usually without a listener.
BACKEND = "http://127.0.0.1:9"
IN_DOCROOT = '<Directory "${DOCROOT}">\n%s\n</Directory>\n'


@dataclass
class Seed:
    """Something wrong.

    Attributes:
        id: of the check that is to find it.
        level: of what it is to find.
        remedy: a piece of the remedy that it is to name.
        status: HTTP status that clients get because of it; None where they get
            their WebSocket all the same.
        also: checks that find something besides, before it.
        extra: directives that make it so.
        replace: instead or besides, a piece of the configuration, and what
            stands in its place.
    """

    id: str
    level: str
    remedy: str
    status: int | None
    extra: str = ""
    replace: tuple[str, str] = ("", "")
    also: tuple[str, ...] = ()


SEEDS = {
    "options-none": Seed(
        "follow-symlinks", "error", "Options +FollowSymLinks", 403, IN_DOCROOT % "Options None"
    ),
    "owner-match": Seed(
        "follow-symlinks",
        "error",
        "Options +FollowSymLinks",
        403,
        IN_DOCROOT % "Options SymLinksIfOwnerMatch",
    ),
    "no-request": Seed(
        "pass-request",
        "error",
        "WSGIPassApacheRequest On",
        500,
        IN_DOCROOT % "WSGIPassApacheRequest Off",
    ),
    "no-import": Seed(
        "import-script",
        "warning",
        "WSGIImportScript",
        None,
        replace=("\nWSGIImportScript", "\n#WSGIImportScript"),
    ),
    "embedded-restricted": Seed(
        "handler-mode", "error", "WSGIRestrictEmbedded Off", 500, "WSGIRestrictEmbedded On\n"
    ),
    "daemon-mode": Seed(
        "handler-mode",
        "error",
        "process-group=%{GLOBAL}",
        500,
        "WSGISocketPrefix ${ROOT}/wsgi\nWSGIDaemonProcess site threads=1\nWSGIProcessGroup site\n",
        (
            'WSGIHandlerScript websocket "${APACHEWS_HANDLER}/wsgi.py" process-group=%{GLOBAL}',
            'WSGIHandlerScript websocket "${APACHEWS_HANDLER}/wsgi.py"',
        ),
    ),
    "sub-interpreter": Seed(
        "handler-mode",
        "error",
        "application-group=%{GLOBAL}",
        500,
        replace=(
            'WSGIHandlerScript websocket "${APACHEWS_HANDLER}/wsgi.py" process-group=%{GLOBAL}'
            " application-group=%{GLOBAL}",
            'WSGIHandlerScript websocket "${APACHEWS_HANDLER}/wsgi.py" process-group=%{GLOBAL}',
        ),
    ),
    "no-handler": Seed(
        "add-handler",
        "error",
        "AddHandler websocket .ws",
        403,
        replace=("\nAddHandler websocket", "\n#AddHandler websocket"),
    ),
    "other-handler": Seed(
        "add-handler",
        "error",
        "SetHandler websocket",
        None,
        f"LoadModule status_module {DEBIAN_MODULES}/mod_status.so\n"
        "<Location /echo.ws>\nSetHandler server-status\n</Location>\n",
    ),
    "no-such-script": Seed(
        "handler-script",
        "error",
        "Define APACHEWS_HANDLER",
        500,
        replace=('websocket "${APACHEWS_HANDLER}/wsgi.py"', 'websocket "${APACHEWS_HANDLER}/w.py"'),
    ),
    "proxy": Seed("proxy", "error", "ProxyPass /echo.ws !", 503, f"{PROXY}ProxyPass / {BACKEND}/"),
    "proxy-by-rewriting": Seed(
        "proxy",
        "error",
        "RewriteRule \\.ws$ - [END]",
        503,
        f"{PROXY}{REWRITE}RewriteCond %{{HTTP:Upgrade}} websocket [NC]\n"
        f"RewriteRule ^/(.*) {BACKEND}/$1 [P,L]",
        also=("proxied-websockets",),
    ),
    "front-controller": Seed(
        "proxy",
        "error",
        "RewriteRule \\.ws$ - [END]",
        200,
        f"{REWRITE}RewriteCond %{{DOCUMENT_ROOT}}%{{REQUEST_URI}} !-f\n"
        "RewriteRule . /front.php [L]",
    ),
    "denying-rule": Seed(
        "rewrite-denial",
        "warning",
        '<Files "*.ws"> with a Require',
        None,
        f"{REWRITE}{OFF}" + IN_DOCROOT % "RewriteEngine On\nRewriteRule . - [F]",
    ),
    "access-denied": Seed(
        "access", "error", "Require all granted", 403, IN_DOCROOT % "Require all denied"
    ),
    "files-denied": Seed(
        "access",
        "error",
        "replace Require all denied at {extra}:2 by: Require all granted",
        403,
        '<Files "*.ws">\nRequire all denied\n</Files>',
    ),
    "location-denied": Seed(
        "access",
        "error",
        "replace Require all denied at {extra}:2 by: Require all granted",
        403,
        "<Location />\nRequire all denied\n</Location>",
    ),
    "bad-setting": Seed(
        "settings",
        "error",
        "SetEnv APACHEWS_MAX_MESSAGE",
        500,
        "SetEnv APACHEWS_MAX_MESSAGE lots",
    ),
    "unknown-setting": Seed(
        "settings", "error", "SetEnv APACHEWS_MAX_MESSAGE,", 500, "SetEnv APACHEWS_MAX_MESSAGES 1M"
    ),
    "bad-definition": Seed(
        "settings",
        "error",
        "Define APACHEWS_MAX_BUFFER with 4K",
        500,
        "Define APACHEWS_MAX_BUFFER much",
    ),
    "fixed-setting": Seed(
        "settings",
        "error",
        "Define APACHEWS_MAX_BUFFER 64K",
        500,
        "Define APACHEWS_MAX_BUFFER 64K\nSetEnv APACHEWS_MAX_BUFFER 1M",
    ),
    "unknown-definition": Seed(
        "settings",
        "warning",
        "Define APACHEWS_LOG_DIRECTORY,",
        None,
        "Define APACHEWS_LOG_DIRECTRY /var/log/apachews",
    ),
    "close-log": Seed(
        "settings",
        "error",
        "Define APACHEWS_LOG_DIRECTORY /var/log/apachews",
        500,
        "SetEnv APACHEWS_CLOSE_LOG /var/log/apachews/x.log",
    ),
    "server-only": Seed(
        "settings",
        "error",
        "Define APACHEWS_ENDPOINT_DIRECTORIES instead",
        500,
        "SetEnv APACHEWS_ENDPOINT_DIRECTORIES /run/apachews",
    ),
    "status-page": Seed(
        "status-page",
        "error",
        "WSGIScriptAlias /websocket-status",
        None,
        "<Location /all>\nSetHandler websocket-status\n</Location>",
    ),
    "http-2": Seed(
        "http2",
        "error",
        "H2WebSockets off",
        None,
        f"LoadModule http2_module {DEBIAN_MODULES}/mod_http2.so\n"
        "Protocols h2 http/1.1\nH2WebSockets on",
    ),
    "without-packages": Seed(
        "packages",
        "error",
        "WSGIPythonPath",
        500,
        replace=("    WSGIPythonHome", "    #WSGIPythonHome"),
    ),
    "children-leave": Seed(
        "max-connections-per-child",
        "warning",
        "MaxConnectionsPerChild 0",
        None,
        "MaxConnectionsPerChild 10",
    ),
}


class SeededApache(PrivateApache):
    """A private Apache whose configuration is a copy, with a piece replaced."""

    def replace(self, old: str, new: str) -> None:
        configuration = self.root / "shipped"
        configuration.mkdir()
        texts = {path.name: path.read_text() for path in SHIPPED.glob("*.conf")}
        assert old in "".join(texts.values())
        for name, text in texts.items():
            (configuration / name).write_text(text.replace(old, new) if old else text)

    def command(self, *arguments: str) -> list[str]:
        there = str(self.root / "shipped")
        return [one.replace(str(SHIPPED), there) for one in super().command(*arguments)]


@contextmanager
def seeded_apache(root: Path, seed: Seed, handler: Path = HANDLER) -> Iterator[PrivateApache]:
    """Run an Apache with a mistake in its configuration, and a producer."""
    apache = configured_apache(SeededApache, root, handler, Path(sys.prefix), seed.extra)
    (apache.docroot / "front.php").write_text("<!doctype html><title>the application</title>")
    apache.replace(*seed.replace)
    with running_without_path(apache), listening(apache.docroot / "echo.ws"):
        yield apache


def doctor(
    capsys: pytest.CaptureFixture[str], apache: PrivateApache, *arguments: str
) -> tuple[int, list[dict[str, str]]]:
    """Return the exit status, and what is not as it should be."""
    program, *rest = apache.command()
    logs = str(apache.root / "logrotate.d")
    if "--websockets" not in arguments:
        arguments += ("--websockets", "100")  # a shell's own limit is often 1024
    status = main(
        [
            *("doctor", "--json", "--logrotate", logs, *arguments),
            *("--apachectl", program, "--httpd-arguments", *rest),
        ]
    )
    told = json.loads(capsys.readouterr().out)
    assert told["healthy"] == (status == 0)
    return status, [
        one
        for one in told["findings"]
        # Whose the checkout is, in which these tests run, is not for them to say.
        if one["level"] in ("warning", "error") and one["id"] != "ownership"
    ]


def url(apache: PrivateApache, path: str = "/echo.ws") -> str:
    return f"ws://127.0.0.1:{apache.port}{path}"


@pytest.mark.parametrize("name", SEEDS)
def test_a_seeded_misconfiguration_is_found_with_its_remedy(
    name: str, short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = SEEDS[name]
    with seeded_apache(short_path, seed) as apache:
        status, findings = doctor(capsys, apache, url(apache))
        by_id = {finding["id"]: finding for finding in findings}
        assert status == (1 if seed.level == "error" or seed.status else 0)
        # It, what clients see of it, and nothing else.
        handshake = by_id.pop("handshake", None)
        assert list(by_id) == [*seed.also, seed.id], findings
        found = by_id[seed.id]
        assert found["level"] == seed.level
        assert seed.remedy.replace("{extra}", f"{short_path}/conf.d/extra.conf") in found["remedy"]
        assert found["breaks"]
        assert found["when"]
        if seed.status:
            assert handshake is not None
            assert f": {seed.status}: " in handshake["text"]
        # Without a URL as well: there is a socket in the document root.
        if name != "proxy-by-rewriting":
            _, without_url = doctor(capsys, apache)
            assert [one["id"] for one in without_url] == [seed.id], without_url


@pytest.mark.parametrize("is_tls", [False, True])
def test_a_healthy_apache_has_no_finding(
    site: Site, is_tls: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [site.wss() if is_tls else site.ws(), "--echo", "--ca", str(site.apache.certificate)]
    assert doctor(capsys, site.apache, *given) == (0, [])
    given[0] = given[0].replace("/echo.ws", "/ws/echo")  # by WSGIScriptAlias
    assert doctor(capsys, site.apache, *given) == (0, [])


def test_without_a_url_a_healthy_apache_has_no_finding(
    short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with seeded_apache(short_path, Seed("", "ok", "", None)) as apache:
        assert doctor(capsys, apache) == (0, [])
        assert doctor(capsys, apache, "--socket", str(apache.docroot / "echo.ws")) == (0, [])
        absent = str(apache.docroot / "absent.ws")
        assert doctor(capsys, apache, "--socket", absent)[1][0]["id"] == "socket"


def test_a_mistake_in_the_configuration(
    short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with seeded_apache(short_path, Seed("syntax", "error", "", None)) as apache:
        (short_path / "conf.d" / "extra.conf").write_text("Listne 80\n")
        status, findings = doctor(capsys, apache, url(apache))
    assert (status, [one["id"] for one in findings]) == (1, ["syntax"])
    assert "extra.conf" in findings[0]["text"]
    assert "Listne" in findings[0]["text"]


def test_the_limit_of_the_running_httpd(
    short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))  # Apache has what we have
    try:
        seeded = seeded_apache(short_path, Seed("descriptors", "warning", "ulimit", None))
        apache = seeded.__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with contextlib.ExitStack() as undo:
        undo.push(seeded)
        status, (finding,) = doctor(capsys, apache, url(apache), "--websockets", "1000")
        assert (status, finding["id"]) == (0, "descriptors")
        assert finding["when"].startswith("480 WebSockets")
        assert doctor(capsys, apache, url(apache), "--websockets", "480") == (0, [])


def test_logs_whose_rotation_restarts(short_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with seeded_apache(short_path, Seed("logrotate", "warning", "", None)) as apache:
        (short_path / "logrotate.d").mkdir()
        file = short_path / "logrotate.d" / "apache2"
        text = "%s/*.log {\n\tdaily\n\tpostrotate\n\t\tsystemctl %s apache2\n\tendscript\n}\n"
        file.write_text(text % (short_path, "restart"))
        status, (finding,) = doctor(capsys, apache, url(apache))
        assert (status, finding["id"], finding["where"]) == (0, "logrotate", str(file))
        assert "reload" in finding["remedy"]
        file.write_text(text % (short_path, "reload"))
        assert doctor(capsys, apache, url(apache)) == (0, [])


@pytest.mark.skipif(not IS_ROOT, reason="root only: otherwise Apache is the user itself")
def test_packages_that_apaches_user_cannot_read(
    short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = short_path / "home"
    shutil.copytree(HANDLER, closed / "apachews_handler")
    closed.chmod(0o700)
    seed = Seed("readable", "error", f"chmod o+x {closed}", 500)
    with seeded_apache(short_path, seed, closed / "apachews_handler") as apache:
        status, findings = doctor(capsys, apache, url(apache))
    assert (status, [one["id"] for one in findings]) == (1, ["readable", "handshake"])
    assert seed.remedy in findings[0]["remedy"]
    assert "0700" in findings[0]["text"]


# Names of this module's own: other tests share the site, and count the lines of its log.


def problems_of_socket(
    capsys: pytest.CaptureFixture[str], site: Site, name: str
) -> dict[str, dict[str, str]]:
    _, findings = doctor(capsys, site.apache, site.ws(f"/{name}"))
    return {finding["id"]: finding for finding in findings}


def test_a_socket_that_is_not_there(event_site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    found = problems_of_socket(capsys, event_site, "doctor-absent.ws")
    assert list(found) == ["socket", "handshake"]
    assert f"Server('{event_site.docroot}/doctor-absent.ws')" in found["socket"]["remedy"]
    assert ": 404: the socket file does not exist" in found["handshake"]["text"]
    assert (
        "start the producer, or check the path" in found["handshake"]["text"]
    )  # the error log's own words


@pytest.mark.parametrize("name", ["doctor-beside", "doctor-besids.ws"])
def test_a_url_that_misses_its_socket(
    name: str, event_site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    with listening(event_site.docroot / "doctor-beside.ws"):
        found = problems_of_socket(capsys, event_site, name)
    for finding in ("socket", "handshake"):
        assert re.search(r"connect to /?doctor-beside\.ws beside it", found[finding]["remedy"])


def test_a_file_in_the_place_of_a_socket(
    event_site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    file = event_site.docroot / "doctor-file.ws"
    file.write_text("text")
    found = problems_of_socket(capsys, event_site, file.name)
    file.unlink()
    assert list(found) == ["socket", "handshake"]
    assert f"move the file {file} away" in found["socket"]["remedy"]


def test_a_socket_without_a_listener(event_site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    file = event_site.docroot / "doctor-left.ws"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(file))
    file.chmod(0o666)
    found = problems_of_socket(capsys, event_site, file.name)
    file.unlink()
    assert list(found) == ["producer", "handshake"]
    assert found["producer"]["remedy"] == "start the producer"


@pytest.mark.skipif(not IS_ROOT, reason="root only: otherwise Apache is the user itself")
def test_a_socket_that_apaches_user_may_not_connect_to(
    event_site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    file = event_site.docroot / "doctor-private.ws"
    with listening(file):
        file.chmod(0o600)
        found = problems_of_socket(capsys, event_site, file.name)
    assert list(found) == ["socket-permission", "handshake"]
    assert "group=" in found["socket-permission"]["remedy"]


@pytest.mark.skipif(not IS_ROOT, reason="root only: otherwise Apache is the user itself")
@pytest.mark.parametrize(
    ("override", "logged"), [("AllowOverride None", "AH00035"), ("AllowOverride All", "AH00529")]
)
def test_a_directory_that_apaches_user_may_not_enter(
    override: str, logged: str, short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = Seed("socket-permission", "error", "", 403, IN_DOCROOT % override)
    with seeded_apache(short_path, seed) as apache:
        directory = apache.docroot / "closed"
        directory.mkdir()
        with listening(directory / "a.ws"):
            directory.chmod(0o700)
            _, (found, handshake) = doctor(capsys, apache, url(apache, "/closed/a.ws"))
            assert (found["id"], handshake["id"]) == ("socket-permission", "handshake")
            assert logged in found["breaks"]
            assert ": 403: Apache's user may not enter a directory" in handshake["text"]
            assert logged in handshake["text"]
            assert handshake["remedy"] == f"chmod o+x {directory} (socket-permission, above)"
            directory.chmod(0o701)
            assert doctor(capsys, apache, url(apache, "/closed/a.ws")) == (0, [])


def test_options_of_an_htaccess(short_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = Seed("follow-symlinks", "error", "", 403, IN_DOCROOT % "AllowOverride All")
    with seeded_apache(short_path, seed) as apache:
        file = apache.docroot / ".htaccess"
        file.write_text("# none\nOptions None\n")
        _, (found, handshake) = doctor(capsys, apache, url(apache))
        assert (found["id"], handshake["id"]) == ("follow-symlinks", "handshake")
        assert found["remedy"] == (
            f"after Options None at {file}:2, on a separate line: Options +FollowSymLinks"
        )
        assert found["remedy"] in handshake["remedy"]
        # Taken literally, the remedy works.
        file.write_text("# none\nOptions None\nOptions +FollowSymLinks\n")
        assert doctor(capsys, apache, url(apache)) == (0, [])


def test_an_origin_that_may_not_connect(
    event_site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [event_site.ws("/echo.ws?doctor"), "--origin", "https://elsewhere.example"]
    status, (finding,) = doctor(capsys, event_site.apache, *given)
    assert (status, finding["id"], finding["level"]) == (0, "handshake", "warning")
    assert "APACHEWS_ORIGINS" in finding["remedy"]


def test_a_port_that_is_for_tls(event_site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    given = event_site.wss().replace("wss:", "ws:")
    status, findings = doctor(capsys, event_site.apache, given)
    assert status == 1
    assert findings[-1]["id"] == "handshake"
    assert ": 400: this port is for TLS" in findings[-1]["text"]
    assert findings[-1]["remedy"] == "connect with wss:// instead of ws://"


def test_a_certificate_that_is_not_trusted(
    event_site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    status, (finding,) = doctor(capsys, event_site.apache, event_site.wss())
    assert (status, finding["id"]) == (1, "certificate")
    assert "SSLCertificateFile" in finding["remedy"]
    assert finding["remedy"].endswith("--cafile FILE")


def test_a_url_of_another_apache(
    event_site: Site, short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The checked Apache lacks that socket, and denies the access to it.
    seed = Seed("other-apache", "warning", "--httpd-arguments", None, IN_DOCROOT % "Options None")
    file = event_site.docroot / "doctor-another.ws"
    with seeded_apache(short_path, seed) as apache, listening(file):
        status, (found,) = doctor(capsys, apache, event_site.ws(f"/{file.name}"))
        assert (status, found["id"], found["level"]) == (0, seed.id, seed.level)
        assert seed.remedy in found["remedy"]
        # What fails is explained by what is known of that one only.
        status, findings = doctor(capsys, apache, event_site.ws("/doctor-absent.ws"))
        assert status == 1
        assert "other-apache" in [one["id"] for one in findings]
        assert findings[-1]["id"] == "handshake"
        assert "above" not in findings[-1]["remedy"]


@pytest.mark.skipif(not IS_ROOT, reason="root only: otherwise Apache was the user itself")
def test_an_apache_that_does_not_run(short_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with seeded_apache(short_path, Seed("running", "warning", "", None)) as apache:
        apache.kill()
        status, findings = doctor(capsys, apache, url(apache))
    assert (status, [one["id"] for one in findings]) == (1, ["running", "connect"])


def test_a_file_that_was_changed_and_not_read(
    short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with seeded_apache(short_path, Seed("reload", "warning", "", None)) as apache:
        file = short_path / "conf.d" / "extra.conf"
        file.write_text(IN_DOCROOT % "Options None")
        later = time.time() + 60  # than any child that httpd may start meanwhile
        os.utime(file, (later, later))
        status, findings = doctor(capsys, apache, url(apache))
        # The files are wrong already, and clients do not notice yet.
        assert (status, [one["id"] for one in findings]) == (1, ["reload", "follow-symlinks"])
        assert f"kill -USR1 {apache.pid}" in findings[0]["remedy"]
