"""The packages as an administrator meets them: installed, used, upgraded, removed.

The tests are steps on one machine, in the order of this file.  ``APACHEWS_SUITE`` selects Debian's
release: bookworm, trixie, sid.  Without it these tests are skipped, because they take minutes;
``deploy/test -e packages`` runs them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from ..browser.conftest import CHROMEDRIVER, CHROMIUM, chromium
from ..conftest import wait_for
from ..docs.pages import blocks_of
from ..support.site import ROOT, for_two_threads
from . import machine as machines
from .machine import Machine

SUITE: Final = os.environ.get("APACHEWS_SUITE", "")
OBSTACLE: Final = machines.obstacle() if SUITE else "APACHEWS_SUITE does not name a release"
pytestmark = [
    pytest.mark.skipif(bool(OBSTACLE), reason=OBSTACLE),
    pytest.mark.timeout(machines.COMMAND_TIMEOUT_S),
]

PRODUCER: Final = """\
import sys

from apachews import Event, Server

server = Server(sys.argv[1])
while event := server.dequeue():
    if event.type() == Event.IO:
        event.write(event.read())
"""
C_PROGRAM: Final = """\
#include <apachews.h>
#include <stdio.h>

int main(void)
{
    puts(apachews_version());
    return 0;
}
"""
# A page of the site, and sockets next to it.
DOCROOT: Final = "/var/www/html"
ORIGINAL_PATH: Final = f"{DOCROOT}/websocket.ws"
# Files that programs rewrite while packages come and go.
VOLATILE: Final = re.compile(
    r"/(proc|sys|dev|run|tmp|packages|var/(cache|log|tmp|lib/(apt|dpkg|ucf|systemd)))(/|$)"
    r"|/__pycache__(/|$)|/etc/ld\.so\.cache$|/var/lib/php/sessions"
)


@pytest.fixture(scope="module")
def packages() -> list[Path]:
    """The packages of this checkout, with all their files."""
    built = machines.build(SUITE)
    assert {path.name.split("_")[0] for path in built} == {
        *("libapache2-mod-apachews", "python3-apachews", "php-apachews"),
        *("libapachews0", "libapachews-dev"),
    }
    return built


def test_lintian_accepts_the_packages(packages: list[Path]) -> None:
    """Debian's checks: no error, and no warning without an override."""
    lintian = ["lintian", "--fail-on=error,warning", "--tag-display-limit=0", *map(str, packages)]
    done = subprocess.run(
        lintian, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def machine(packages: list[Path]) -> Iterator[Machine]:
    """A machine with the packages, as ``apt install ./dist/*.deb`` leaves it."""
    found = Machine(SUITE, ("gcc", "libc6-dev", "pkg-config"))
    try:
        (found.root / "packages").mkdir()
        for package in packages:
            shutil.copy(package, found.root / "packages")
        found.boot()
        found.run("apt-get -qq install -y /packages/*.deb")
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def enabled(machine: Machine) -> Machine:
    """The same, with the module in force, TLS, and a producer as a service."""
    machine.run("a2enmod apachews && systemctl restart apache2")
    machine.run("a2enmod ssl && a2ensite default-ssl && systemctl restart apache2")
    machine.write("/etc/apachews/producers/echo.py", PRODUCER)
    machine.run("systemctl enable --now apachews-producer@echo")
    machine.run(f"ln -s /run/apachews/echo.ws {DOCROOT}/echo.ws")
    return machine


def client(
    machine: Machine, path: str = "/echo.ws", *, is_secure: bool = False
) -> ClientConnection:
    """Return a WebSocket to the machine's Apache."""
    context = for_two_threads(ssl.create_default_context())
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # Debian's default site has a certificate of its own
    return connect(
        f"{'wss' if is_secure else 'ws'}://localhost{path}",
        sock=machine.connect(443 if is_secure else 80),
        ssl=context if is_secure else None,
        proxy=None,
    )


def echoed(websocket: ClientConnection, text: str) -> str | bytes:
    websocket.send(text)
    return websocket.recv(10)


def page(machine: Machine) -> str:
    """Return the first line of the answer to a request for the site's page."""
    with machine.connect(80) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return connection.makefile("rb").readline().decode().strip()


def children(machine: Machine) -> set[str]:
    """Return the process ids of Apache's children."""
    return set(machine.run("cat /proc/$(cat /run/apache2/apache2.pid)/task/*/children").split())


def have_handler(machine: Machine) -> bool:
    """Tell whether each child has imported the handler: a new one does it when it starts."""
    command = "grep -l _mask.abi3.so $(printf '/proc/%s/maps ' {}) | wc -l"
    processes = children(machine)
    return int(machine.run(command.format(" ".join(processes)))) == len(processes)


def upgrade(machine: Machine, packages: list[Path], version: str) -> None:
    """Install a later version of the packages, whose module has one more line."""
    (machine.root / version).mkdir()
    for package in packages:
        work = machine.root / version / package.name.split("_")[0]
        subprocess.run(["dpkg-deb", "--raw-extract", package, work], check=True)
        control = work / "DEBIAN" / "control"
        control.write_text(control.read_text().replace("0.1.0", version))
        module = work / "etc/apache2/mods-available/apachews.conf"
        if module.exists():
            module.write_text(f"{module.read_text()}# {version}\n")
            handler = work / "usr/lib/python3/dist-packages/apachews_handler/__init__.py"
            handler.write_text(f"{handler.read_text()}\nPACKAGED = '{version}'\n")
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Znone", "--build", work, work.with_suffix(".deb")],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        shutil.rmtree(work)
    machine.run(f"apt-get -qq install -y -o Dpkg::Options::=--force-confold /{version}/*.deb")


def is_enabled(machine: Machine) -> bool:
    return machine.run("a2query -m apachews >/dev/null 2>&1 && echo yes || echo no") == "yes\n"


def test_the_installation_enables_nothing(machine: Machine) -> None:
    assert machine.run("systemctl is-active apache2") == "active\n"
    assert not is_enabled(machine)
    for command in ("apachews", "python3 -m apachews"):
        assert machine.run(f"{command} --version") == "apachews 0.1.0\n"
    said = machine.run("apachews config --debian")
    assert "nothing to write: the package libapache2-mod-apachews has the module's files" in said
    assert "a2enmod apachews" in said
    # A private Apache needs neither the module nor root's configuration.
    assert "usage" in machine.run("apachews run --help")


def test_modules_do_not_depend_on_the_version_of_python(machine: Machine) -> None:
    files = machine.run("dpkg -L libapache2-mod-apachews python3-apachews").splitlines()
    assert [path for path in files if re.search(r"python3\.\d|cpython", path)] == []
    extensions = [path.rpartition("/")[2] for path in files if path.endswith(".so")]
    assert sorted(extensions) == ["_mask.abi3.so", "_pump.abi3.so", "_tls_relay.abi3.so"]
    depends = machine.run("dpkg-query -W -f '${Depends}' libapache2-mod-apachews python3-apachews")
    assert "python3 (<<" not in depends


def test_a_client_gets_its_echo_over_ws_and_wss(enabled: Machine) -> None:
    for is_secure in (False, True):
        with client(enabled, is_secure=is_secure) as websocket:
            assert echoed(websocket, "hello") == "hello"


def say_in_browser(url: str, script: str, expected: str) -> str:
    """Run a script on a page, wait for a line of its console; return its socket's address."""
    with chromium() as driver:
        driver.get(url)
        address = driver.execute_script(f"{script}\nreturn socket.url;")
        said: list[str] = []

        def is_there() -> bool:
            log = driver.get_log("browser")  # type: ignore[no-untyped-call]
            said.extend(line["message"] for line in log)
            return any(message.endswith(f'"{expected}"') for message in said)

        wait_for(is_there, what=lambda: f"the console has {said}")
        return str(address)


@pytest.mark.skipif(
    not CHROMIUM or not CHROMEDRIVER, reason="no browser: apt-get install chromium chromium-driver"
)
def test_a_browser_gets_its_echo_over_wss(enabled: Machine) -> None:
    """The README's lines for the console work on the default page of Debian's Apache."""
    comment = "console of http://localhost/: "
    [block] = [one for one in blocks_of(ROOT / "README.md") if one.comment.startswith(comment)]
    expected = block.comment.removeprefix(comment)
    address = enabled.in_network(lambda: say_in_browser("https://localhost/", block.text, expected))
    assert address == "wss://localhost/echo.ws"


def test_doctor_finds_nothing_wrong(enabled: Machine) -> None:
    assert enabled.run("apachews doctor").splitlines()[-1].endswith(": nothing is wrong")
    assert "a2enmod" not in enabled.run("apachews config --debian")


def test_reloads_keep_the_clients(enabled: Machine) -> None:
    with client(enabled) as plain, client(enabled, is_secure=True) as secure:
        before = children(enabled)
        enabled.run("systemctl reload apache2 && systemctl reload apachews-producer@echo")
        wait_for(lambda: not before & children(enabled))
        assert [echoed(plain, "a"), echoed(secure, "b")] == ["a", "b"]


def say(websocket: ClientConnection, *commands: dict[str, Any]) -> list[Any]:
    """Send commands of channels; return an answer to each."""
    websocket.send("\n".join(map(json.dumps, commands)))
    return [json.loads(websocket.recv(10)) for _ in commands]


def test_channels_as_a_service_from_the_page(enabled: Machine) -> None:
    """The page is followed: its configuration, its page and its commands; then a deploy."""
    blocks = blocks_of(ROOT / "docs/howto/channels.md")
    [toml] = [one.text for one in blocks if one.language == "toml"]
    [html] = [one.text for one in blocks if one.language == "html"]
    enabled.write("/srv/live/live.toml", toml)
    enabled.write("/srv/live/site/index.html", html)
    install = commands("channels.md", "As a service")
    assert enabled.run(f"cd /srv/live && {install}").endswith("\n0 reached\n")
    with client(enabled, "/live.ws") as one:
        connect, subscribe = {"id": 1, "connect": {}}, {"channel": "news"}
        _, subscribed = say(one, connect, {"id": 2, "subscribe": subscribe})
        place = {name: subscribed["subscribe"][name] for name in ("epoch", "offset")}
        assert place["offset"] == 1
        enabled.run("systemctl reload apachews-channels@live")
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                one.recv(10)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 3011
    enabled.run('apachews publish /run/apachews/live.ws news -m \'{"text": "missed"}\'')
    with client(enabled, "/live.ws") as one:
        recover = {"id": 2, "subscribe": {**subscribe, "recover": True, **place}}
        found = say(one, connect, recover)[1]["subscribe"]
        assert found["recovered"] and found["publications"][0]["data"] == {"text": "missed"}
    journal = enabled.run("journalctl -u apachews-channels@live")
    assert "Traceback" not in journal, journal


def test_the_api_of_channels_from_the_page(enabled: Machine) -> None:
    [conf] = [
        one.text
        for one in blocks_of(ROOT / "docs/reference/channels.md")
        if one.language == "apache"
    ]
    assert "192.0.2.0/24" in conf
    enabled.write(
        "/etc/apache2/conf-enabled/live-api.conf", conf.replace("192.0.2.0/24", "127.0.0.1")
    )
    enabled.run("echo a-key-of-the-programs >/etc/apachews/api.key")
    enabled.run("chown www-data /etc/apachews/api.key && chmod 400 /etc/apachews/api.key")
    settings = enabled.root / "etc/apachews/channels/live.toml"
    settings.write_text(f'{settings.read_text()}[api]\nkey_file = "/etc/apachews/api.key"\n')
    enabled.run("systemctl reload apachews-channels@live && systemctl reload apache2")
    body = '{"channel": "news", "data": 1}'
    head = (
        "POST /live/api/publish HTTP/1.0\r\nHost: localhost\r\nX-API-Key: a-key-of-the-programs\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )

    def is_published() -> bool:
        # The deploy ends after the reload has returned.
        with enabled.connect(80) as connection:
            connection.sendall((head + body).encode())
            answer = connection.makefile("rb").read().decode()
        return '{"result":{"offset":3,' in answer

    wait_for(is_published)


def test_files_of_a_next_version_do_not_disturb_before_the_reload(enabled: Machine) -> None:
    """dpkg replaces the files seconds before it reloads Apache."""
    wait_for(lambda: have_handler(enabled))
    script = enabled.root / "usr/lib/python3/dist-packages/apachews_handler/wsgi.py"
    text, before = script.read_text(), children(enabled)
    script.write_text("raise ImportError('of another version')\n")
    try:
        for _ in before:  # each child may answer
            with client(enabled) as websocket:
                assert echoed(websocket, "old") == "old"
    finally:
        script.write_text(text)
    assert children(enabled) == before


def test_an_upgrade_keeps_the_clients_and_the_configuration(
    enabled: Machine, packages: list[Path]
) -> None:
    module = enabled.root / "etc/apache2/mods-available/apachews.conf"
    edited = module.read_text() + "# edited by the admin\n"
    module.write_text(edited)
    with client(enabled) as plain, client(enabled, is_secure=True) as secure:
        before = children(enabled)
        upgrade(enabled, packages, "0.1.0+1")
        wait_for(lambda: not before & children(enabled))
        assert [echoed(plain, "a"), echoed(secure, "b")] == ["a", "b"]
    assert module.read_text() == edited
    assert enabled.run("dpkg-query -W -f '${Version}' libapache2-mod-apachews") == "0.1.0+1"
    with client(enabled) as websocket:  # of a child with the new handler
        assert echoed(websocket, "new") == "new"


def test_an_upgrade_does_not_reload_a_broken_configuration(
    enabled: Machine, packages: list[Path]
) -> None:
    broken = enabled.root / "etc/apache2/conf-enabled/broken.conf"
    broken.write_text("NoSuchDirective\n")
    with client(enabled) as websocket:
        before = children(enabled)
        upgrade(enabled, packages, "0.1.0+2")
        assert before & children(enabled)
        broken.unlink()
        assert echoed(websocket, "still") == "still"
    assert page(enabled) == "HTTP/1.1 200 OK"


def original_program() -> str:
    """Return the original project's program in PHP: no line of it loads a library."""
    text = (ROOT / "bindings/php/tests/programs/seed.php").read_text()
    text = text.replace("require __DIR__ . '/../../autoload.php';\n", "")
    text = text.replace("$argv[1]", f"'{ORIGINAL_PATH}'")
    assert "require" not in text
    assert "argv" not in text
    return text


def test_the_original_program_in_php_runs_verbatim(enabled: Machine) -> None:
    enabled.write("/srv/echo.php", original_program())
    enabled.run(f"install -d -o www-data {DOCROOT}")
    enabled.run("systemd-run --unit=php --uid=www-data --working-directory=/srv php echo.php")
    wait_for((enabled.root / ORIGINAL_PATH.lstrip("/")).exists)
    with client(enabled, "/websocket.ws") as websocket:
        assert echoed(websocket, "php") == "php"
    enabled.run("systemctl stop php")


def test_php_loads_the_library_on_the_command_line_only(enabled: Machine) -> None:
    found = enabled.run("find /etc/php -name '*apachews*' | sort").split()
    versions = enabled.run("ls /usr/lib/php | grep '^[0-9]\\.'").split()
    assert found == [
        path
        for version in versions
        for path in (
            f"/etc/php/{version}/cli/conf.d/99-apachews.ini",
            f"/etc/php/{version}/mods-available/apachews.ini",
        )
    ]


def test_a_prepended_file_of_the_user_is_loaded_too(enabled: Machine) -> None:
    asks = "var_dump(defined('MINE'), class_exists('apachews\\Server'), defined('ApacheWSError'));"
    enabled.write("/srv/asks.php", f"<?php {asks}")
    enabled.write("/srv/mine.php", "<?php const MINE = 1;")
    assert enabled.run("php /srv/asks.php").split() == ["bool(false)", "bool(true)", "bool(true)"]
    [scanned] = enabled.root.glob("etc/php/*/cli/conf.d")
    for place in (scanned / "50-mine.ini", scanned.parent / "php.ini"):
        before = place.read_text() if place.exists() else None
        place.write_text((before or "") + "\n[PHP]\nauto_prepend_file = /srv/mine.php\n")
        assert enabled.run("php /srv/asks.php").split() == ["bool(true)"] * 3
        if before is None:
            place.unlink()
        else:
            place.write_text(before)


def test_a_copy_of_the_php_library_in_a_project_serves_that_project(enabled: Machine) -> None:
    enabled.run("cp -r /usr/share/php/apachews /srv/copy")
    enabled.write(
        "/srv/project.php",
        "<?php require '/srv/copy/autoload.php';"
        " echo (new ReflectionClass('apachews\\Server'))->getFileName();",
    )
    assert enabled.run("php /srv/project.php") == "/srv/copy/src/Server.php"


def test_an_admin_disables_the_prepended_file(enabled: Machine) -> None:
    enabled.write("/srv/asks.php", "<?php var_dump(class_exists('apachews\\Server'));")
    enabled.run("phpdismod -s cli apachews")
    enabled.run("dpkg-reconfigure php-apachews")
    assert enabled.run("php /srv/asks.php") == "bool(false)\n"
    enabled.run("phpenmod -s cli apachews")
    assert enabled.run("php /srv/asks.php") == "bool(true)\n"


def test_a_program_in_c_is_compiled_with_pkg_config(enabled: Machine) -> None:
    enabled.write("/srv/x.c", C_PROGRAM)
    enabled.run("cc /srv/x.c -o /srv/x $(pkg-config --cflags --libs apachews)")
    assert enabled.run("/srv/x") == "0.1.0\n"
    assert "libapachews.so.0" in enabled.run("ldd /srv/x")


@pytest.mark.skipif(
    SUITE != "bookworm" or not os.environ.get("APACHEWS_EVERYTHING"),
    reason="an upgrade of Debian takes many minutes: deploy/test --everything -e packages",
)
@pytest.mark.timeout(2 * machines.COMMAND_TIMEOUT_S)
def test_the_packages_work_after_an_upgrade_of_debian(enabled: Machine) -> None:
    before = enabled.run("python3 --version; php --version | head -n 1")
    sources = enabled.root / "etc/apt/sources.list"
    sources.write_text(sources.read_text().replace("bookworm", "trixie"))
    enabled.run("apt-get -qq update")
    enabled.run("apt-get -qq full-upgrade -y -o Dpkg::Options::=--force-confold")
    assert enabled.run("python3 --version; php --version | head -n 1") != before
    for is_secure in (False, True):
        with client(enabled, is_secure=is_secure) as websocket:
            assert echoed(websocket, "hello") == "hello"
    enabled.run(f"rm -f {ORIGINAL_PATH}")
    assert enabled.run("apachews doctor").splitlines()[-1].endswith(": nothing is wrong")
    test_php_loads_the_library_on_the_command_line_only(enabled)
    test_the_original_program_in_php_runs_verbatim(enabled)


def test_removal_disables_the_module_and_apache_goes_on(enabled: Machine) -> None:
    enabled.run("apt-get -qq remove -y libapache2-mod-apachews")
    assert not is_enabled(enabled)
    assert enabled.run("systemctl is-active apachews-producer@echo || true") == "inactive\n"
    assert enabled.run("systemctl is-active apache2") == "active\n"
    assert page(enabled) == "HTTP/1.1 200 OK"
    assert (enabled.root / "etc/apache2/mods-available/apachews.conf").exists()


def commands(page: str, heading: str) -> str:
    """Return the first commands below a heading of a page, for root."""
    text = (ROOT / "docs/howto" / page).read_text().partition(f"\n## {heading}\n")[2]
    block = re.search(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    return block[1].replace("sudo ", "")


def test_the_copies_of_an_installation_with_pip_are_removed(enabled: Machine) -> None:
    """The page of the packages removes what the page of pip has copied."""
    enabled.run("apt-get -qq purge -y libapache2-mod-apachews")
    before = enabled.run("find /etc -name '*apachews*' | sort")
    shared = enabled.root / "opt/apachews/share/apachews"
    shutil.copytree(ROOT / "deploy/systemd", shared / "systemd")
    enabled.run(commands("pip.md", "Install the units"))
    made = enabled.run("find /etc -name '*apachews*' | sort")
    # Three units, the directories of /run, the drop-in of Apache's unit.
    assert len(made.splitlines()) == len(before.splitlines()) + 5
    enabled.run(commands("packages.md", "Replace an installation with pip"))
    enabled.run("rm -r /opt/apachews && systemctl daemon-reload")
    assert enabled.run("find /etc -name '*apachews*' | sort") == before


def test_the_files_of_an_installation_with_pip_give_way(enabled: Machine) -> None:
    """``apachews config --debian`` of pip's installation has written the module's files."""
    script = (
        "from pathlib import Path; from apachews_tools.install.debian_module import DebianModule;"
        f"DebianModule(Path('{enabled.root}/etc/apache2'))"
        ".write({'.load': '# Depends: wsgi\\n', '.conf': '# of pip\\n'})"
    )
    subprocess.run(["python3", "-c", script], cwd=ROOT, check=True)
    enabled.run("apt-get -qq install -y /0.1.0+2/libapache2-mod-apachews.deb")
    text = (enabled.root / "etc/apache2/mods-available/apachews.conf").read_text()
    assert "from the package libapache2-mod-apachews" in text


def files(machine: Machine) -> set[str]:
    found = machine.run("find / -xdev").splitlines()
    return {path for path in found if not VOLATILE.match(path)}


def purge(machine: Machine) -> None:
    command = commands("packages.md", "Remove")
    assert command.startswith("apt purge ")
    machine.run(command.replace("apt purge", "apt-get -qq purge -y"))


def test_purge_leaves_nothing(enabled: Machine) -> None:
    enabled.run(f"rm {DOCROOT}/echo.ws")  # the admin's, as the program
    enabled.run(f"rm {DOCROOT}/live.ws {DOCROOT}/news.html")
    enabled.run("rm -rf /etc/apachews/producers/echo.py /etc/apachews/channels/live.toml")
    enabled.run("rm -rf /etc/apachews/api.key /etc/apache2/conf-enabled/live-api.conf")
    enabled.run("rm -rf /srv/* /0.1.0+*")
    purge(enabled)
    assert "apachews" not in enabled.run("dpkg-query -W -f '${Package}\\n'")
    # This includes the records of dpkg, systemd and phpenmod.
    names = enabled.run("find / -xdev -name '*apachews*' -not -path '/packages/*'").split()
    assert names == []
    # The packages that it needs stay: their files are the ones to find after a second round.
    before = files(enabled)
    enabled.run("apt-get -qq install -y /packages/*.deb && a2enmod apachews")
    enabled.run("systemctl restart apache2")
    enabled.write("/packages/asks.php", "<?php new apachews\\Server('/run/a.ws');")
    enabled.run("php /packages/asks.php")
    purge(enabled)
    assert files(enabled) == before
    assert page(enabled) == "HTTP/1.1 200 OK"
