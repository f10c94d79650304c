"""``apachews config``: what it writes, and what it refuses."""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apachews_handler.backend.request import IDENTITY, IDENTITY_PREFIXES
from apachews_handler.backends import Backend as HandlersBackend
from apachews_tools.cli import config, main
from apachews_tools.httpd.backend import Backend
from apachews_tools.httpd.ownership import weakness
from apachews_tools.httpd.permissions import Account
from apachews_tools.httpd.python_environment import (
    DIST_PACKAGES,
    PythonEnvironment,
    python_of,
    version_in,
)
from apachews_tools.httpd.python_home import handler_in
from apachews_tools.install import installation
from apachews_tools.install.debian_module import (
    DebianModule,
    EditedError,
    is_sealed,
    package_of,
    sealed,
)
from apachews_tools.install.installation import (
    SetUpError,
    WsgiModule,
    choose_wsgi_module,
    require_readable,
    server_directives,
    tls_virtual_host,
)
from apachews_tools.install.tunnels import (
    SOFTWARE,
    TESTED_BY,
    USER_HEADERS,
    proxy_target,
    software_lines,
)

from ..support.site import ROOT

NOBODY = Account("nobody", 65534, frozenset({65534}))
LINKED_TO = b"\x7fELF\0\0libpython%s.so.1.0\0libc.so.6\0"


def module_for(path: Path, version: str) -> Path:
    """Make what looks like a mod_wsgi for a Python."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(LINKED_TO % version.encode())
    return path


def environment(root: Path, version: tuple[int, int] = (3, 11)) -> PythonEnvironment:
    """Make an environment with the packages."""
    packages = root / "lib" / f"python{version[0]}.{version[1]}" / "site-packages"
    (packages / "apachews_handler").mkdir(parents=True)
    (packages / "apachews_handler" / "wsgi.py").write_text("")
    (packages / "apachews_tools" / "httpd").mkdir(parents=True)
    (packages / "apachews_tools" / "httpd" / "apachews.conf").write_text("")
    return PythonEnvironment(version, root, root, packages)


def directives(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_a_module_tells_its_python(tmp_path: Path) -> None:
    assert python_of(module_for(tmp_path / "mod_wsgi.so", "3.13")) == (3, 13)
    inside = tmp_path / "static.so"
    inside.write_bytes(b"\0/usr/local/lib/python3.12/lib-dynload\0")
    assert python_of(inside) == (3, 12)
    named = tmp_path / "mod_wsgi-py310.cpython-310-x86_64-linux-gnu.so"
    named.write_bytes(b"\0")
    assert python_of(named) == (3, 10)
    unknown = tmp_path / "unknown.so"
    unknown.write_bytes(b"\0")
    assert python_of(unknown) is None


def test_a_path_tells_its_python() -> None:
    assert version_in("/opt/a/lib/python3.11/site-packages/apachews_handler/wsgi.py") == (3, 11)
    assert version_in("/usr/lib/python3/dist-packages/apachews_handler/wsgi.py") is None


def test_an_environment_gets_its_home_and_the_handler(tmp_path: Path) -> None:
    place = environment(tmp_path)
    text = server_directives(place, WsgiModule(tmp_path / "mod_wsgi.so", True))
    packages = place.packages
    assert directives(text) == [
        f"WSGIPythonHome {tmp_path}",
        f"Define APACHEWS_HANDLER {packages}/apachews_handler",
        f"Include {packages}/apachews_tools/httpd/apachews.conf",
    ]


def test_a_shared_python_and_the_systems_own_get_a_path(tmp_path: Path) -> None:
    place = environment(tmp_path)
    module = WsgiModule(tmp_path / "mod_wsgi.so", True)
    assert directives(server_directives(place, module, shares_python=True))[0] == (
        f"WSGIPythonPath {place.packages}"
    )
    system = PythonEnvironment((3, 11), Path("/usr"), Path("/usr"), place.packages)
    lines = directives(server_directives(system, module))
    assert lines[0] == f"WSGIPythonPath {place.packages}"
    assert not any(line.startswith("WSGIPythonHome") for line in lines)


def test_a_checkout_is_found_as_well(tmp_path: Path) -> None:
    place = environment(tmp_path / "checkout")
    outside = PythonEnvironment((3, 11), tmp_path / "env", Path("/usr"), place.packages)
    lines = directives(server_directives(outside, WsgiModule(tmp_path / "mod_wsgi.so", True)))
    assert lines[:2] == [f"WSGIPythonHome {tmp_path}/env", f"WSGIPythonPath {place.packages}"]


def test_the_systems_mod_wsgi_is_used_where_it_fits(tmp_path: Path) -> None:
    system = module_for(tmp_path / "system" / "mod_wsgi.so", "3.11")
    own = module_for(tmp_path / "mod_wsgi-py311.so", "3.11")
    place = PythonEnvironment((3, 11), tmp_path, Path("/usr"), tmp_path, own, system)
    assert choose_wsgi_module(place) == WsgiModule(system, True)
    # It fits another interpreter of that version too, but one's own fits better.
    other = PythonEnvironment((3, 11), tmp_path, tmp_path, tmp_path, None, system)
    assert choose_wsgi_module(other) == WsgiModule(system, True)
    with_own = PythonEnvironment((3, 11), tmp_path, tmp_path, tmp_path, own, system)
    assert choose_wsgi_module(with_own) == WsgiModule(own, False, conflicts=True)


def test_that_of_pip_is_used_where_the_systems_does_not_fit(tmp_path: Path) -> None:
    system = module_for(tmp_path / "system" / "mod_wsgi.so", "3.11")
    own = module_for(tmp_path / "mod_wsgi-py313.so", "3.13")
    both = PythonEnvironment((3, 13), tmp_path, tmp_path, tmp_path, own, system)
    module = choose_wsgi_module(both)
    assert module == WsgiModule(own, False, conflicts=True)
    text = server_directives(environment(tmp_path / "env", (3, 13)), module)
    assert directives(text)[0] == f"LoadModule wsgi_module {own}"
    assert "a2dismod wsgi" in text
    alone = PythonEnvironment((3, 13), tmp_path, tmp_path, tmp_path, own, None)
    assert choose_wsgi_module(alone) == WsgiModule(own, False)


def test_another_python_than_mod_wsgis_is_refused(tmp_path: Path) -> None:
    system = module_for(tmp_path / "mod_wsgi.so", "3.11")
    place = PythonEnvironment((3, 13), tmp_path, tmp_path, tmp_path, None, system)
    with pytest.raises(SetUpError, match=r"built for Python 3\.11, but this is Python 3\.13") as no:
        choose_wsgi_module(place)
    assert "/usr/bin/python3.11 -m venv" in str(no.value)
    assert f"{tmp_path}/bin/pip install mod_wsgi" in str(no.value)


def test_without_mod_wsgi_it_says_how_to_get_one(tmp_path: Path) -> None:
    place = PythonEnvironment((3, 13), tmp_path, tmp_path, tmp_path)
    with pytest.raises(SetUpError, match="libapache2-mod-wsgi-py3"):
        choose_wsgi_module(place)


def test_a_mod_wsgi_can_be_named(tmp_path: Path) -> None:
    place = PythonEnvironment((3, 13), tmp_path, tmp_path, tmp_path)
    fits = module_for(tmp_path / "a.so", "3.13")
    assert choose_wsgi_module(place, fits) == WsgiModule(fits, True)
    with pytest.raises(SetUpError, match=r"built for Python 3\.9"):
        choose_wsgi_module(place, module_for(tmp_path / "b.so", "3.9"))


def test_a_closed_home_is_named_with_the_chmod(short_path: Path) -> None:
    short_path.chmod(0o755)
    place = environment(short_path / "home" / "env")
    require_readable(place, NOBODY)
    (short_path / "home").chmod(0o700)
    (short_path / "home" / "env").chmod(0o750)
    with pytest.raises(SetUpError) as refused:
        require_readable(place, NOBODY)
    home = short_path / "home"
    assert f"{home} has mode 0700; chmod o+x {home} && " in str(refused.value)
    assert f"chmod o+rx {home}/env" in str(refused.value)


def test_a_file_that_only_its_owner_may_read_is_named(short_path: Path) -> None:
    short_path.chmod(0o755)
    place = environment(short_path / "env")
    (place.handler / "wsgi.py").chmod(0o600)
    with pytest.raises(SetUpError, match=rf"chmod o\+r {place.handler}/wsgi\.py"):
        require_readable(place, NOBODY)


ME = frozenset({0, os.geteuid()})


@pytest.fixture
def owned(short_path: Path) -> Path:
    """A file that only root, and who runs this, can change."""
    short_path.chmod(0o755)
    file = short_path / "env" / "lib" / "a.conf"
    file.parent.mkdir(parents=True)
    for path in (file.parent.parent, file.parent):
        path.chmod(0o755)
    file.touch(0o644)
    os.chown(file, -1, os.getegid())
    return file


def test_what_only_root_can_write_is_no_weakness(owned: Path) -> None:
    # All users may write to the temporary directory above, which has the sticky bit.
    assert weakness(owned, ME) is None


@pytest.mark.parametrize("mode", [0o757, 0o777])
@pytest.mark.parametrize("name", ["env/lib/a.conf", "env/lib", "env"])
def test_what_others_can_write_is_a_weakness(owned: Path, name: str, mode: int) -> None:
    path = owned.parents[2] / name
    path.chmod(mode)
    assert str(weakness(owned, ME)) == f"{path} has mode {mode:04o}"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_what_is_anothers_or_a_groups_is_a_weakness(owned: Path) -> None:
    for path in (owned, owned.parent):
        os.chown(path, 65534, -1)
        assert str(weakness(owned)) == f"{path} belongs to nobody"
        os.chown(path, 0, 0)
        path.chmod(0o775)
        assert weakness(owned) is None  # root's own group
        os.chown(path, -1, 65534)
        assert str(weakness(owned)) == f"{path} has mode 0775"
        path.chmod(0o755)
    # The sticky bit keeps only what is root's.
    owned.parent.chmod(0o1777)
    assert weakness(owned) is None
    os.chown(owned, 65534, -1)
    assert str(weakness(owned)) == f"{owned} belongs to nobody"


def test_links_on_the_way_are_looked_at_and_followed(owned: Path) -> None:
    root = owned.parents[2]
    shared = root / "shared"
    shared.mkdir()
    (root / "straight").symlink_to(owned)
    (root / "by-shared").symlink_to("shared/../env/lib")
    (shared / "inside").symlink_to(root / "env")
    (root / "by-inside").symlink_to("shared/inside/lib")
    shared.chmod(0o777)
    assert weakness(root / "straight", ME) is None
    for path in (root / "by-shared" / "a.conf", root / "by-inside" / "a.conf"):
        found = weakness(path, ME)
        assert found is not None
        assert found.path == shared
    with pytest.raises(OSError, match="No such file"):
        weakness(root / "absent", ME)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
@pytest.mark.parametrize(
    "name", ["apachews_tools/httpd/apachews.conf", "apachews_tools", "mod_wsgi.so"]
)
def test_root_gets_an_error_if_another_user_can_change_the_files(
    here: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["config", "--debian", "--directory", str(here / "etc")]
    (path,) = here.rglob(name)
    os.chown(path, 65534, -1)
    assert main(given) == 1
    said = capsys.readouterr().err
    assert f"{path} belongs to nobody" in said
    assert "sudo python3 -m venv /opt/apachews" in said
    assert not any((here / "etc" / "mods-available").iterdir())
    # Printing is allowed: the user decides about the lines.
    assert main(["config"]) == 0
    assert main([*given, "--force"]) == 0
    assert main([*given, "--undo"]) == 0


def test_a_virtual_host_has_all_it_needs() -> None:
    text = tls_virtual_host("Chat.Example.org.", Path("/srv/chat site"))
    assert text.count("    ServerName chat.example.org\n") == 2
    assert text.count('    DocumentRoot "/srv/chat site"\n') == 2
    assert "SSLCertificateFile /etc/letsencrypt/live/chat.example.org/fullchain.pem\n" in text
    assert "LogLevel warn wsgi:info\n" in text
    assert "Options FollowSymLinks\n" in text
    assert "https://chat.example.org/$1" in text
    given = tls_virtual_host("a.example", Path("/srv"), Path("/etc/a.pem"), Path("/etc/a.key"))
    assert "SSLCertificateFile /etc/a.pem\n    SSLCertificateKeyFile /etc/a.key\n" in given
    assert text.isascii()


@pytest.mark.parametrize("name", ["", "a b", "a/b", "-a.example", "a..b", "*.example.org", 'a"b'])
def test_what_is_no_name_of_a_host_is_refused(name: str) -> None:
    with pytest.raises(SetUpError, match="invalid host name"):
        tls_virtual_host(name, Path("/srv"))


@pytest.mark.parametrize("path", ["srv", '/srv/"x', "/srv/${X}", "/srv\nInclude /x"])
def test_a_document_root_that_cannot_be_written_is_refused(path: str) -> None:
    with pytest.raises(SetUpError):
        tls_virtual_host("a.example", Path(path))


TEXTS = {".load": "# Depends: wsgi\n", ".conf": "WSGIPythonHome /opt/a\n"}


@pytest.fixture
def debian(tmp_path: Path) -> DebianModule:
    """A configuration directory of Debian's Apache."""
    (tmp_path / "mods-available").mkdir()
    (tmp_path / "mods-enabled").mkdir()
    return DebianModule(tmp_path)


def enable(place: DebianModule) -> None:
    """Do what a2enmod does."""
    for suffix in TEXTS:
        name = f"apachews{suffix}"
        (place.directory / "mods-enabled" / name).symlink_to(f"../mods-available/{name}")


def test_the_files_are_written_once(debian: DebianModule) -> None:
    assert set(debian.write(TEXTS).values()) == {"written"}
    file = debian.directory / "mods-available" / "apachews.conf"
    assert file.read_text().endswith("\nWSGIPythonHome /opt/a\n")
    assert file.stat().st_mode & 0o777 == 0o644
    before = file.stat()
    assert set(debian.write(TEXTS).values()) == {"unchanged"}
    assert file.stat().st_ino == before.st_ino
    assert sorted(os.listdir(file.parent)) == ["apachews.conf", "apachews.load"]


def test_what_an_older_version_wrote_is_updated(debian: DebianModule) -> None:
    debian.write(TEXTS)
    fates = debian.write({**TEXTS, ".conf": "WSGIPythonHome /opt/b\n"})
    assert sorted(fates.values()) == ["unchanged", "updated"]


def test_an_edited_file_is_left_alone_unless_forced(debian: DebianModule) -> None:
    debian.write(TEXTS)
    file = debian.directory / "mods-available" / "apachews.conf"
    edited = file.read_text().replace("/opt/a", "/opt/mine")
    file.write_text(edited)
    with pytest.raises(EditedError) as refused:
        debian.write({".load": "# Depends: wsgi env\n", ".conf": TEXTS[".conf"]})
    assert "-WSGIPythonHome /opt/mine\n+WSGIPythonHome /opt/a" in str(refused.value)
    assert "--force" in str(refused.value)
    assert file.read_text() == edited
    # All or none.
    assert "env" not in (debian.directory / "mods-available" / "apachews.load").read_text()
    assert debian.write(TEXTS, forced=True)[file] == "updated"


def test_a_foreign_file_counts_as_edited(debian: DebianModule) -> None:
    file = debian.directory / "mods-available" / "apachews.conf"
    file.write_text("Include /somewhere\n")
    with pytest.raises(EditedError):
        debian.write(TEXTS)
    with pytest.raises(EditedError):
        debian.undo()
    assert debian.undo(forced=True) == [file]


def test_undo_disables_and_removes(debian: DebianModule) -> None:
    debian.write(TEXTS)
    enable(debian)
    assert debian.is_enabled
    assert len(debian.undo()) == 4
    assert list(debian.directory.rglob("*.*")) == []
    assert debian.undo() == []


def test_undo_leaves_links_that_lead_elsewhere(debian: DebianModule) -> None:
    debian.write(TEXTS)
    enable(debian)
    elsewhere = debian.directory / "elsewhere.conf"
    elsewhere.touch()
    other = debian.directory / "mods-enabled" / "apachews.conf"
    other.unlink()
    other.symlink_to(elsewhere)
    assert [path.name for path in debian.undo()] == [
        "apachews.load",  # the link
        "apachews.conf",
        "apachews.load",
    ]
    assert other.resolve() == elsewhere
    # An absolute link is one of ours too.
    other.unlink()
    other.symlink_to(debian.directory / "mods-available" / "apachews.conf")
    assert debian.undo() == [other]


def test_undo_leaves_an_edited_file_enabled(debian: DebianModule) -> None:
    debian.write(TEXTS)
    enable(debian)
    file = debian.directory / "mods-available" / "apachews.conf"
    file.write_text(file.read_text() + "SetEnv X y\n")
    with pytest.raises(EditedError):
        debian.undo()
    assert debian.is_enabled


def test_elsewhere_than_on_debian_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(SetUpError, match="is this Debian's Apache"):
        DebianModule(tmp_path).write(TEXTS)


def test_a_seal_is_of_this_text_only() -> None:
    assert is_sealed(sealed("a\n"))
    assert not is_sealed(sealed("a\n") + "b\n")
    assert not is_sealed("a\n")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment and a mod_wsgi that fit, whatever this machine has."""
    place = environment(tmp_path / "env", sys.version_info[:2])
    version = ".".join(map(str, sys.version_info[:2]))
    system = module_for(tmp_path / "modules" / "mod_wsgi.so", version)
    fits = PythonEnvironment(
        place.version, place.prefix, place.base_prefix, place.packages, None, system
    )
    monkeypatch.setattr(PythonEnvironment, "running", lambda: fits)
    monkeypatch.setattr(installation, "obstacles", lambda *_: [])
    (tmp_path / "etc" / "mods-available").mkdir(parents=True)
    (tmp_path / "etc" / "mods-enabled").mkdir()
    return tmp_path


def test_config_prints_the_directives(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config"]) == 0
    lines = directives(capsys.readouterr().out)
    assert lines[0] == f"WSGIPythonHome {here}/env"
    assert lines[1].startswith("Define APACHEWS_HANDLER ")
    assert lines[2].startswith("Include ")
    assert main(["config", "--share-python"]) == 0
    assert directives(capsys.readouterr().out)[0].startswith("WSGIPythonPath ")


def test_config_debian_says_what_to_run_next(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["config", "--debian", "--directory", str(here / "etc")]
    assert main(given) == 0
    told = capsys.readouterr().out
    assert f"{here}/etc/mods-available/apachews.load: written\n" in told
    assert told.endswith("\n  a2enmod apachews\n  systemctl restart apache2\n")
    enable(DebianModule(here / "etc"))
    assert main(given) == 0
    told = capsys.readouterr().out
    assert told.count(": unchanged\n") == 2
    assert "systemctl" not in told
    load = (here / "etc" / "mods-available" / "apachews.load").read_text()
    assert "\n# Depends: wsgi mime env\n" in load
    assert main([*given, "--undo"]) == 0
    assert capsys.readouterr().out.count(": removed\n") == 4
    assert main([*given, "--undo"]) == 0
    assert "unchanged" in capsys.readouterr().out


def test_a_packaged_installation_needs_no_path_of_python() -> None:
    usr = Path("/usr")
    packaged = PythonEnvironment((3, 13), usr, usr, DIST_PACKAGES)
    lines = directives(server_directives(packaged, WsgiModule(Path("/m.so"), True)))
    assert lines == [
        f"Define APACHEWS_HANDLER {DIST_PACKAGES}/apachews_handler",
        f"Include {DIST_PACKAGES}/apachews_tools/httpd/apachews.conf",
    ]


@pytest.fixture
def dpkg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A dpkg-query that knows the paths in a file, one per line."""
    known = tmp_path / "known"
    known.touch()
    program = tmp_path / "bin" / "dpkg-query"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\n[ "$1" = --search ] || exit 2\n'
        f'grep -qxF "$2" {known} || exit 1\n'
        'echo "diversion by other from: $2"\necho "libapache2-mod-apachews:amd64: $2"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return known


def test_the_package_of_a_file(dpkg: Path) -> None:
    dpkg.write_text("/etc/a.conf\n")
    assert package_of(Path("/etc/a.conf")) == "libapache2-mod-apachews"
    assert package_of(Path("/etc/b.conf")) == ""


def test_without_dpkg_a_file_has_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert package_of(Path("/usr/bin/python3")) == ""


def test_config_debian_of_the_package_writes_nothing(
    here: Path, dpkg: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dpkg.write_text(f"{config.HERE}\n")
    given = ["config", "--debian", "--directory", str(here / "etc")]
    assert main(given) == 0
    told = capsys.readouterr().out
    assert "the package libapache2-mod-apachews has the module's files" in told
    assert told.endswith("\n  a2enmod apachews\n  systemctl restart apache2\n")
    assert not list((here / "etc" / "mods-available").iterdir())
    for suffix in (".load", ".conf"):
        (here / "etc" / "mods-enabled" / f"apachews{suffix}").touch()
    assert main(given) == 0
    assert "a2enmod" not in capsys.readouterr().out


@pytest.mark.parametrize("option", [[], ["--force"], ["--undo"], ["--undo", "--force"]])
def test_config_debian_leaves_the_files_of_the_package_alone(
    here: Path, dpkg: Path, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    load = here / "etc" / "mods-available" / "apachews.load"
    load.write_text("# of the package\n")
    dpkg.write_text(f"{load}\n")
    assert main(["config", "--debian", "--directory", str(here / "etc"), *option]) == 1
    told = capsys.readouterr().err
    assert "belongs to the Debian package libapache2-mod-apachews" in told
    assert "apt-get purge libapache2-mod-apachews" in told
    assert load.read_text() == "# of the package\n"


def test_config_debian_shows_what_was_edited(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["config", "--debian", "--directory", str(here / "etc")]
    main(given)
    file = here / "etc" / "mods-available" / "apachews.conf"
    file.write_text(file.read_text() + "SetEnv APACHEWS_MAX_MESSAGE 4K\n")
    capsys.readouterr()
    assert main(given) == 1
    assert "-SetEnv APACHEWS_MAX_MESSAGE 4K" in capsys.readouterr().err
    assert main([*given, "--undo"]) == 1
    assert main([*given, "--force"]) == 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--undo"], "need --debian"),
        (["--tls-vhost", "a.example", "--key", "/x"], "need each other"),
        (["--user", "nobody-of-that-name"], "unknown user 'nobody-of-that-name'"),
        (["--wsgi-module", "/nonexistent.so"], "/nonexistent.so: No such file"),
    ],
)
def test_config_refuses(
    here: Path, given: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", *given]) == 1
    assert says in capsys.readouterr().err


def packaged(monkeypatch: pytest.MonkeyPatch) -> PythonEnvironment:
    """Let the packages be those of Debian's package."""
    found = PythonEnvironment((3, 13), Path("/usr"), Path("/usr"), DIST_PACKAGES)
    monkeypatch.setattr(PythonEnvironment, "running", lambda: found)
    return found


def test_the_lines_of_the_package_do_not_depend_on_a_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = packaged(monkeypatch)
    module = WsgiModule(Path("/usr/lib/apache2/modules/mod_wsgi.so"), True)
    text = server_directives(here, module)
    assert "3.13" not in text
    assert directives(text) == [
        "Define APACHEWS_HANDLER /usr/lib/python3/dist-packages/apachews_handler",
        "Include /usr/lib/python3/dist-packages/apachews_tools/httpd/apachews.conf",
    ]
    shared = directives(server_directives(here, module, shares_python=True))
    assert shared[0] == "WSGIPythonPath /usr/lib/python3/dist-packages"


def test_a_private_apache_finds_the_packaged_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's Python names /usr/local as the place of packages."""
    here = packaged(monkeypatch)
    assert handler_in(Path("/usr")) == here.handler


# Tunnels.


def test_each_program_has_lines_and_says_whether_it_was_tested() -> None:
    assert len(SOFTWARE) == 20
    for name, software in SOFTWARE.items():
        text = "\n".join(software_lines(name))
        assert text.startswith(f"# {software.title}. The ")
        assert ("tests of apachews run it with lines" in text) is (name in TESTED_BY)
        assert f"WSGIScriptAlias {software.path} " in text
        assert ("\nProxyPass " in text) is software.has_pages
        assert "{path}" not in text
        assert max(len(line) for line in text.splitlines() if line.startswith("#")) <= 98


def test_what_is_marked_as_tested_is_tested() -> None:
    tests = {
        node.name
        for file in (ROOT / "tests" / "integration").glob("test_tunnel_software*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert set(TESTED_BY) <= set(SOFTWARE)
    assert set(TESTED_BY.values()) <= tests
    # A test that names a program makes it a tested one.
    named = {
        name
        for name in SOFTWARE
        if any(re.search(rf"_{name.replace('-', '_')}(_|$)", test) for test in tests)
    }
    assert named <= set(TESTED_BY)


def test_a_tunnel_at_the_root_has_the_line_for_producers() -> None:
    for name, software in SOFTWARE.items():
        lines = software_lines(name, document_root="/srv/a b$/")
        comment = '# AliasMatch "^(/.+\\.ws)$" "/srv/a b\\$$1"'
        assert (comment in lines) is (software.path == "/")
    assert not any("AliasMatch" in line for line in software_lines("uvicorn", path="/app"))


def test_the_help_has_the_names_of_the_pages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["config", "--help"])
    told = capsys.readouterr().out
    assert "--tunnel NAME" in told
    assert "SOFTWARE" not in told
    assert "/opt/" not in told
    assert "\n  sudo apachews config --debian\n" in told


def rows(page: str) -> list[list[str]]:
    text = (ROOT / "docs" / page).read_text()
    return [
        [cell.strip().replace("\\|", "|") for cell in line.strip("|").split(" | ")]
        for line in text.splitlines()
        if line.startswith("| `") or line.startswith("| Tunnel")
    ]


def test_the_pages_have_the_table_of_programs() -> None:
    wanted = [
        [
            f"`{name}`",
            software.title,
            f"`{software.backend}`",
            f"`{software.path}`",
            software.needs_at(software.path),
            "yes" if name in TESTED_BY else "",
        ]
        for name, software in SOFTWARE.items()
    ]
    found = [row for row in rows("howto/tunnel.md") if row[0].strip("`") in SOFTWARE]
    assert found == wanted
    support = (ROOT / "docs" / "reference" / "support.md").read_text()
    origins = [(one.title, name in TESTED_BY) for name, one in SOFTWARE.items()]
    table = "".join(
        f"| {title} | {'tested' if is_tested else 'from its documentation'} |\n"
        for title, is_tested in origins
    )
    assert f"| program | lines |\n|---|---|\n{table}\n" in support


def test_pages_lose_the_headers_of_users_as_websockets_do() -> None:
    headers = {header.lower().encode() for header in USER_HEADERS}
    assert {one for one in headers if not one.startswith(IDENTITY_PREFIXES)} <= IDENTITY
    for header in USER_HEADERS:
        assert f"    RequestHeader unset {header}" in software_lines("grafana")


@pytest.mark.parametrize(
    ("backend", "path", "target"),
    [
        ("http://127.0.0.1:3000", "/app", "http://127.0.0.1:3000/app"),
        ("ws://127.0.0.1:3000", "/app", "http://127.0.0.1:3000/app"),
        ("http://127.0.0.1:3000/", "/app", "http://127.0.0.1:3000"),
        ("http://127.0.0.1:3000/live/", "/app", "http://127.0.0.1:3000/live"),
        ("http://127.0.0.1:3000", "/", "http://127.0.0.1:3000/"),
        ("http://127.0.0.1:3000/live", "/", "http://127.0.0.1:3000/live/"),
        ("http://[::1]:3000", "/app", "http://[::1]:3000/app"),
        ("unix:/run/a.sock|http://site", "/app", "unix:/run/a.sock|http://site/app"),
        ("unix:/run/a.sock", "/", "unix:/run/a.sock|http://localhost/"),
    ],
)
def test_the_proxy_of_the_pages_agrees_with_the_tunnel(
    backend: str, path: str, target: str
) -> None:
    assert proxy_target(backend, path) == target


@pytest.mark.parametrize(
    "text",
    [
        *("http://a", "http://a:0", "http://a:3000/", "ws://a_b:1/x%20y", "http://[::1]:9/a/"),
        *("https://a", "a", "", "http://", "http://a b", "http://a/%", "http://a?b", "http://a#"),
        *("http://u@a", "http://a:99999", "http://a:x", "http://a/ü", "http://ä", "ftp://a"),
        *(
            "unix:/a",
            "unix:/a|http://b",
            "unix:/a|ws://b/",
            "unix:a",
            "unix:",
            "unix:/a|",
            "unix:/\0",
        ),
    ],
)
def test_the_tools_read_a_backend_as_the_handler_does(text: str) -> None:
    def read(parse: Callable[[str], Any]) -> tuple[object, ...] | None:
        try:
            found = parse(text)
        except ValueError:
            return None
        return found.socket_path, found.host, found.port, found.path

    assert read(Backend.parse) == read(HandlersBackend.parse)


def test_another_backend_and_another_path() -> None:
    lines = software_lines("code-server", "unix:/run/code.sock", "/ide/")
    assert "ProxyPass /ide unix:/run/code.sock|http://localhost" in lines
    assert "    SetEnv APACHEWS_BACKEND unix:/run/code.sock|http://localhost/" in lines
    lines = software_lines("code-server", "http://127.0.0.1:9")
    assert "    SetEnv APACHEWS_BACKEND http://127.0.0.1:9/" in lines
    text = " ".join(software_lines("jupyter", path="/lab/a")).replace(" # ", " ")
    assert "ServerApp.base_url = '/lab/a/'" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backend", "https://127.0.0.1:1"], "invalid backend 'https://127.0.0.1:1'"),
        (["--backend", "unix:/a\nb"], "invalid backend"),
        (["--backend", "unix:/${a}"], "invalid backend"),
        (["--path", "app"], "invalid path 'app'"),
        (["--path", '/a"b'], "invalid path"),
        (["--path", "/a\nLoadModule"], "invalid path"),
    ],
)
def test_lines_that_httpd_would_misread_are_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "--tunnel", "ttyd", *arguments]) == 1
    assert words in capsys.readouterr().err


def test_options_of_a_tunnel_need_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--path", "/app"]) == 1
    assert "--backend and --path need --tunnel" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["config", "--tunnel", "absent"])
    assert "mosquitto" in capsys.readouterr().err
