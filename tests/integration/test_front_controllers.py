"""Sites whose rules rewrite every name that is not a file: .ws sockets, pages, and the doctor."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from apachews_tools.cli import main
from apachews_tools.doctor.finding import Level
from apachews_tools.doctor.handshake import check_url
from apachews_tools.httpd.address import Address
from apachews_tools.httpd.private_apache import DEBIAN_MODULES, PrivateApache

from .test_answers import listening
from .test_doctor import IN_DOCROOT, Seed, doctor, seeded_apache, url

# As Debian does: the modules are loaded before any configuration is read.
WITH_REWRITING = (
    "LoadModule env_module",
    f"LoadModule rewrite_module {DEBIAN_MODULES}/mod_rewrite.so\nLoadModule env_module",
)
OVERRIDE = IN_DOCROOT % "AllowOverride All"
PAGE = "the front controller"
# The lines of WordPress itself.
WORDPRESS = r"""
# BEGIN WordPress
<IfModule mod_rewrite.c>
RewriteEngine On
RewriteRule .* - [E=HTTP_AUTHORIZATION:%{HTTP:Authorization}]
RewriteBase /
RewriteRule ^index\.php$ - [L]
RewriteCond %{REQUEST_FILENAME} !-f
RewriteCond %{REQUEST_FILENAME} !-d
RewriteRule . /index.php [L]
</IfModule>
# END WordPress
"""
LARAVEL = r"""
<IfModule mod_rewrite.c>
    <IfModule mod_negotiation.c>
        Options -MultiViews -Indexes
    </IfModule>
    RewriteEngine On
    RewriteCond %{HTTP:Authorization} .
    RewriteRule .* - [E=HTTP_AUTHORIZATION:%{HTTP:Authorization}]
    RewriteCond %{REQUEST_FILENAME} !-d
    RewriteCond %{REQUEST_URI} (.+)/$
    RewriteRule ^ %1 [L,R=301]
    RewriteCond %{REQUEST_FILENAME} !-d
    RewriteCond %{REQUEST_FILENAME} !-f
    RewriteRule ^ index.php [L]
</IfModule>
"""
DRUPAL = r"""
<IfModule mod_rewrite.c>
  RewriteEngine on
  RewriteRule "/\.|^\.(?!well-known/)" - [F]
  RewriteCond %{REQUEST_FILENAME} !-f
  RewriteCond %{REQUEST_FILENAME} !-d
  RewriteCond %{REQUEST_URI} !=/favicon.ico
  RewriteRule ^ index.php [L]
</IfModule>
"""
IN_HOST = r"""
RewriteEngine On
RewriteCond %{DOCUMENT_ROOT}%{REQUEST_URI} !-f
RewriteRule . /index.php [L]
"""
EXCEPTION = r"RewriteRule \.ws$ - [END]"
FILES = '<FilesMatch "\\.ws$">\n%s\n</FilesMatch>\n'


@contextmanager
def site(root: Path, extra: str, htaccess: str = "") -> Iterator[PrivateApache]:
    """Run a site with rewriting rules; echo.ws and ws/deep.ws are sockets."""
    seed = Seed("", "ok", "", None, extra, WITH_REWRITING)
    with seeded_apache(root, seed) as apache, contextlib.ExitStack() as undo:
        (apache.docroot / "index.php").write_text(PAGE)
        (apache.docroot / ".htaccess").write_text(htaccess)
        (apache.docroot / "ws").mkdir()
        undo.enter_context(listening(apache.docroot / "ws" / "deep.ws"))
        yield apache


def connects(apache: PrivateApache, path: str) -> bool:
    findings = check_url(Address.parse(url(apache, path)))
    return [one.level for one in findings if one.id == "handshake"] == [Level.OK]


def page(apache: PrivateApache, path: str) -> str:
    return requests.get(f"http://127.0.0.1:{apache.port}{path}", timeout=10).text


@pytest.mark.parametrize("htaccess", [WORDPRESS, LARAVEL, DRUPAL])
def test_a_front_controller_in_htaccess_leaves_sockets_alone(
    htaccess: str, short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with site(short_path, OVERRIDE, htaccess) as apache:
        for path in ("/echo.ws", "/ws/deep.ws"):
            assert connects(apache, path)
            assert doctor(capsys, apache, url(apache, path)) == (0, [])
        # It answers for pages, and for sockets of directories that do not exist.
        for path in ("/2026/hello", "/absent/x.ws"):
            assert page(apache, path) == PAGE
        assert page(apache, "/ws/") != PAGE  # a directory
        assert doctor(capsys, apache) == (0, [])


def test_a_rule_of_a_directory_section_leaves_sockets_alone(
    short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with site(short_path, IN_DOCROOT % WORDPRESS) as apache:
        assert connects(apache, "/ws/deep.ws")
        assert page(apache, "/2026/hello") == PAGE
        assert doctor(capsys, apache) == (0, [])


def test_a_rule_of_the_host_takes_sockets_and_is_found(
    short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with site(short_path, IN_HOST) as apache:
        assert main(["connect", url(apache, "/ws/deep.ws"), "-m", "hello"]) == 1
        told = capsys.readouterr().err
        assert "a rewriting rule, a front controller or a proxy took the request" in told
        assert EXCEPTION in told
        assert "AddHandler" not in told
        status, findings = doctor(capsys, apache, url(apache, "/ws/deep.ws"))
        assert status == 1
        by_id = {one["id"]: one for one in findings}
        assert set(by_id) == {"proxy", "handshake"}
        assert by_id["proxy"]["where"] == f"{short_path}/conf.d/extra.conf:4"
        assert by_id["proxy"]["remedy"] == f"before it: {EXCEPTION}"
        assert EXCEPTION in by_id["handshake"]["remedy"]


def test_the_remedy_of_the_doctor_keeps_sockets_from_a_rule_of_the_host(
    short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = IN_HOST.replace("RewriteEngine On", f"RewriteEngine On\n{EXCEPTION}")
    with site(short_path, extra) as apache:
        assert connects(apache, "/ws/deep.ws")
        assert page(apache, "/2026/hello") == PAGE
        assert doctor(capsys, apache, url(apache, "/ws/deep.ws")) == (0, [])


@pytest.mark.parametrize(
    ("extra", "htaccess"),
    [
        # In the virtual host: the first choice.
        (f"RewriteEngine On\nRewriteRule ^/chat\\.ws$ /ws/deep.ws [L]\n{OVERRIDE}", WORDPRESS),
        # In .htaccess, in a section for the names: its pattern gets the whole path of the file.
        (
            OVERRIDE,
            WORDPRESS + FILES % "RewriteEngine On\nRewriteRule /chat\\.ws$ /ws/deep.ws [L]",
        ),
        # A name without .ws is as any other in .htaccess.
        (OVERRIDE, "RewriteEngine On\nRewriteRule ^chat$ ws/deep.ws [L]\n" + WORDPRESS),
    ],
    ids=["host", "htaccess", "other-name"],
)
def test_rules_that_lead_to_a_socket_on_purpose(
    extra: str, htaccess: str, short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = "/chat" if "^chat$" in htaccess else "/chat.ws"
    with site(short_path, extra, htaccess) as apache:
        assert connects(apache, path)
        assert connects(apache, "/ws/deep.ws")
        assert page(apache, "/2026/hello") == PAGE
        assert doctor(capsys, apache, url(apache, path)) == (0, [])


@pytest.mark.parametrize(
    ("denial", "denies_sockets"),
    [
        ("RewriteEngine On\nRewriteRule ^ - [F]\n", False),
        ("RewriteEngine On\n" + FILES % "RewriteEngine On\nRewriteRule ^ - [F]", True),
        ("Require all denied\n", True),
    ],
    ids=["rule", "rule-of-files", "require"],
)
def test_require_denies_sockets_and_a_rule_of_htaccess_does_not(
    denial: str, denies_sockets: bool, short_path: Path
) -> None:
    """docs/explanation/security.md says so."""
    with site(short_path, OVERRIDE, denial) as apache:
        assert connects(apache, "/ws/deep.ws") is not denies_sockets


def test_a_rule_of_htaccess_for_a_ws_name_is_off(
    short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The price of the above; docs/howto/troubleshooting.md says how to write such a rule."""
    rule = "RewriteEngine On\nRewriteRule ^chat\\.ws$ ws/deep.ws [L]\n"
    with site(short_path, OVERRIDE, rule) as apache:
        assert not connects(apache, "/chat.ws")
        status, findings = doctor(capsys, apache, url(apache, "/chat.ws"))
        assert (status, [one["id"] for one in findings]) == (1, ["socket", "handshake"])
