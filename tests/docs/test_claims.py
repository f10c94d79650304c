"""The pages' claims about Apache's behaviour that no other test checks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from ..conftest import DEADLINE_S
from ..support.site import HANDLER, Site, running_site
from .test_snippets import BLOCKS

pytestmark = pytest.mark.skipif(not HANDLER.exists(), reason="apachews_handler is not installed")


def block(page: str, text: str) -> str:
    """Return the block of directives of a page that contains a text."""
    (found,) = [
        block.text
        for block in BLOCKS
        if block.page == page and block.language == "apache" and text in block.text
    ]
    return found


DIRECTORIES = {
    "none": "Options None",
    "owner": "Options SymLinksIfOwnerMatch",
    "follow": "Options FollowSymLinks",
    "uploads": "RemoveHandler .ws",
    "basic": 'AuthType Basic\nAuthName Members\nAuthUserFile "${ROOT}/members"\nRequire valid-user',
}
MODULES = ("auth_basic", "authn_core", "authn_file", "authz_user")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    extra = "".join(f'LoadModule {name}_module "${{MODULES}}/mod_{name}.so"\n' for name in MODULES)
    for name, directives in DIRECTORIES.items():
        extra += f'<Directory "${{DOCROOT}}/{name}">\n{directives}\n</Directory>\n'
    alias = block("docs/howto/migration.md", "WSGIScriptAlias /chat").replace(
        "/var/www/html/ws", "${DOCROOT}"
    )
    with running_site(extra=extra + alias) as site:
        for name in DIRECTORIES:
            (site.docroot / name).mkdir()
            (site.docroot / name).chmod(0o777)  # Apache's user creates sockets there
            (site.docroot / name / "echo.ws").symlink_to(site.docroot / "echo.ws")
        # htpasswd -ns ann, with "secret"
        (site.apache.root / "members").write_text("ann:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\n")
        yield site


def answer(site: Site, path: str, **options: Any) -> int:
    """Return the status of the answer to a handshake."""
    try:
        with connect(site.ws(path), proxy=None, **options) as client:
            client.send("hello")
            assert client.recv(DEADLINE_S) == "hello"
            return 101
    except InvalidStatus as error:
        return error.response.status_code


def test_a_socket_needs_follow_symlinks(site: Site) -> None:
    statuses = {}
    for name in ("none", "owner", "follow"):
        with site.echo_process(f"{name}/socket.ws"):
            statuses[name] = answer(site, f"/{name}/socket.ws")
    assert statuses == {"none": 403, "owner": 403, "follow": 101}, site.apache.error_log
    assert site.log_lines("AH00038: Forbidden: .*socket.ws doesn't point to a file or directory")
    assert answer(site, "/none/echo.ws") == 403
    assert site.log_lines("AH00037: Symbolic link not allowed or link target not accessible")


def test_a_directory_for_uploads_can_turn_the_handler_off(site: Site) -> None:
    assert answer(site, "/uploads/echo.ws") != 101
    assert "RemoveHandler .ws" in block("docs/explanation/security.md", "RemoveHandler")


def test_a_url_of_a_proxy_can_stay_the_same(site: Site) -> None:
    with site.echo_process("chat.ws"):
        assert answer(site, "/chat") == 101


def test_a_page_of_another_site_is_refused(site: Site) -> None:
    origin = Origin("https://other.example")
    assert answer(site, "/echo.ws", origin=origin) == 403
    assert answer(site, "/echo.ws", origin=Origin(f"http://127.0.0.1:{site.apache.port}")) == 101


def test_apaches_logins_protect_it(site: Site) -> None:
    assert answer(site, "/basic/echo.ws") == 401
    basic = {"Authorization": "Basic YW5uOnNlY3JldA=="}
    assert answer(site, "/basic/echo.ws", additional_headers=basic) == 101


def test_a_plain_request_or_file_has_its_own_status(site: Site) -> None:
    assert requests.get(site.http("/echo.ws"), timeout=DEADLINE_S).status_code == 426
    assert answer(site, "/absent.ws") == 404
    (site.docroot / "plain.ws").write_text("print('hello')")
    assert answer(site, "/plain.ws") == 403
