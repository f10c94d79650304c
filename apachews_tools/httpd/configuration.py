"""httpd's configuration, and the part of it that applies to a request.

Contract: ``Configuration`` is the result of ``control.py``; ``virtual_hosts`` returns its
sites; ``Scope`` has the directives that apply to one request, in httpd's order of
precedence.  Pure.

How this works: httpd merges the sections that match a request from the general to the
specific: directives of the server, those of the virtual host, ``<Directory>`` from the
shortest path to the longest, ``<DirectoryMatch>``, ``.htaccess``, ``<Files>``,
``<Location>``.  A scope is that list of levels.  (httpd merges the ``.htaccess`` of a
directory right after its ``<Directory>``; here that of a deeper directory also wins.)
``<If>`` is ignored.

Sources: "Configuration Sections" of httpd's manual; server/request.c
(``ap_directory_walk``), modules/mappers/mod_alias.c.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from .directives import Directive, find

# httpd's default since 2.3.11.
DEFAULT_OPTIONS: Final = frozenset({"followsymlinks"})
_ALL_OPTIONS: Final = frozenset({"includes", "followsymlinks", "execcgi", "indexes"})
_DIRECTORIES: Final = ("Directory", "DirectoryMatch")
_FILES: Final = ("Files", "FilesMatch")
_LOCATIONS: Final = ("Location", "LocationMatch")


@dataclass
class RunConfig:
    """The parts of the output of ``-D DUMP_RUN_CFG`` that matter here.

    Attributes:
        server_root, document_root, error_log, pid_file: paths; "" if absent.
        user: name of httpd's user; "" if absent.
        defines: names and values of ``Define``; of ``-D name``, "".
    """

    server_root: str = ""
    document_root: str = ""
    error_log: str = ""
    pid_file: str = ""
    user: str = ""
    defines: dict[str, str] = field(default_factory=dict)


def parse_run_config(text: str) -> RunConfig:
    """Parse the output of ``-D DUMP_RUN_CFG``."""
    found = RunConfig()
    for line in text.splitlines():
        name, _, value = line.strip().partition(": ")
        unquoted = value.removeprefix('"').removesuffix('"')
        if name == "ServerRoot":
            found.server_root = unquoted
        elif name == "Main DocumentRoot":
            found.document_root = unquoted
        elif name == "Main ErrorLog":
            found.error_log = unquoted
        elif name == "PidFile":
            found.pid_file = unquoted
        elif name == "User" and (match := re.match(r'name="([^"]*)"', value)):
            found.user = match[1]
        elif name == "Define":
            defined, _, content = value.partition("=")
            found.defines[defined] = content
    return found


def parse_modules(text: str) -> list[str]:
    """Return the modules that ``-D DUMP_MODULES`` lists, for example ``ssl_module``."""
    return re.findall(r"^ (\w+) \((?:static|shared)\)", text, re.MULTILINE)


@dataclass
class VirtualHost:
    """A site.

    Attributes:
        section: ``<VirtualHost>``, or None for the server itself.
        addresses: of the section, for example ``*:443``.
        names: ServerName and ServerAlias, without ports, as patterns.
        document_root: its own, or that of the server.
        is_tls: whether SSLEngine is on.
    """

    section: Directive | None
    addresses: tuple[str, ...]
    names: tuple[str, ...]
    document_root: str
    is_tls: bool

    @property
    def directives(self) -> list[Directive]:
        """The directives of the section."""
        return self.section.children if self.section else []

    def __str__(self) -> str:
        if self.section is None:
            return "the server"
        name = f" {self.names[0]}" if self.names else ""
        return f"the virtual host{name} ({self.section.where})"


@dataclass
class Configuration:
    """The configuration of an httpd.

    Attributes:
        directives: the tree.
        loaded: name -> file of each ``LoadModule``.
        modules: names of all modules, static ones included.
        run_config: httpd's report about itself.
        files: paths of all files of the configuration.
        is_resolved: whether the tree comes from httpd; otherwise from parsing the files.
    """

    directives: list[Directive]
    loaded: dict[str, str]
    modules: frozenset[str]
    run_config: RunConfig
    files: tuple[str, ...] = ()
    is_resolved: bool = True

    @property
    def server_directives(self) -> list[Directive]:
        """The directives at the level of the server."""
        return [one for one in self.directives if not one.is_section]

    def last(self, name: str) -> Directive | None:
        """Return the last directive of a name at the level of the server, or None."""
        return last(self.server_directives, name)

    def mpm(self) -> str:
        """Return the name of the MPM: event, worker or prefork; "" for any other."""
        for name in ("event", "worker", "prefork"):
            if f"mpm_{name}_module" in self.modules:
                return name
        return ""

    def virtual_hosts(self) -> list[VirtualHost]:
        """Return the sites; the server itself is the first if it has a document root."""
        main = VirtualHost(
            None,
            (),
            _names(self.server_directives),
            _document_root(self.directives, self.run_config.document_root),
            _is_tls(self.directives),
        )
        hosts = [
            VirtualHost(
                section,
                section.arguments,
                _names(section.children),
                _document_root(section.children, main.document_root),
                _is_tls(section.children) or main.is_tls,
            )
            for section in self.directives
            if section.is_named("VirtualHost")
        ]
        return [main, *hosts] if self.last("DocumentRoot") or not hosts else hosts

    def host_for(self, name: str, port: int, is_tls: bool) -> VirtualHost:
        """Return the site that answers a request.

        Args:
            name: the host of the URL.
            port: the port of the URL.
            is_tls: whether the scheme is ``wss`` or ``https``.
        """
        hosts = self.virtual_hosts()
        candidates = [
            host
            for host in hosts
            if any(address.rpartition(":")[2] in (str(port), "*") for address in host.addresses)
        ]
        for host in candidates:
            if any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in host.names):
                return host
        if candidates:
            return candidates[0]
        # A container or a firewall may map the port, so name and scheme decide.
        for host in hosts:
            if host.section and host.is_tls == is_tls and name.lower() in host.names:
                return host
        main = [host for host in hosts if host.section is None]
        return (main or hosts)[0]


class Scope:
    """The directives that apply to a request.

    Args:
        configuration: of httpd.
        host: the site.
        url_path: of the request, decoded.
        file: the file that httpd maps the request to.
        htaccess: the directives of each ``.htaccess`` on the way, the outermost first.
    """

    def __init__(
        self,
        configuration: Configuration,
        host: VirtualHost,
        url_path: str,
        file: str,
        htaccess: Iterable[list[Directive]] = (),
    ) -> None:
        self.configuration = configuration
        self.host = host
        self.url_path = url_path
        self.file = file
        sections = [one for one in configuration.directives if one.is_section] + [
            one for one in host.directives if one.is_section
        ]
        htaccess = list(htaccess)
        directory = file.rpartition("/")[0] or "/"
        directories = _matching_directories(sections, directory)
        inner = [one.children for one in directories] + htaccess
        files = [
            section
            for section in sections + [child for level in inner for child in level]
            if section.is_named(*_FILES) and _file_matches(section, file.rpartition("/")[2])
        ]
        locations = [
            section
            for section in sections
            if section.is_named(*_LOCATIONS) and _location_matches(section, url_path)
        ]
        # Only these levels decide about links: httpd checks links while it walks the path.
        self._walked = [
            configuration.server_directives,
            [one for one in host.directives if not one.is_section],
            *(section.children for section in directories),
            *htaccess,
        ]
        self._after = [section.children for section in [*files, *locations]]

    @property
    def levels(self) -> list[list[Directive]]:
        """All levels, the general first."""
        return self._walked + self._after

    @property
    def section_levels(self) -> list[list[Directive]]:
        """The levels of sections and of ``.htaccess``."""
        return self.levels[2:]

    def last(self, name: str) -> Directive | None:
        """Return the directive of a name that takes effect, or None."""
        for level in reversed(self.levels):
            if found := last(level, name):
                return found
        return None

    def all(self, name: str) -> list[Directive]:
        """Return all directives of a name that apply, the general first."""
        return [one for level in self.levels for one in level if one.is_named(name)]

    def options(self) -> tuple[frozenset[str], Directive | None]:
        """Return the ``Options`` of the file's directory, and the directive that set them last."""
        options, setter = DEFAULT_OPTIONS, None
        for level in self._walked:
            for directive in level:
                if directive.is_named("Options"):
                    options, setter = _merge_options(options, directive), directive
        return options, setter

    def denial(self) -> Directive | None:
        """Return the ``Require all denied`` that rejects all clients, or None."""
        for level in reversed(self.levels):
            rules = find(level_of_authorisation(level), "Require")
            if rules:
                is_denied = all(
                    tuple(map(str.lower, rule.arguments)) == ("all", "denied") for rule in rules
                )
                return rules[-1] if is_denied else None
        return None

    def has_restriction(self) -> bool:
        """Tell whether the ``Require`` that take effect are others than ``all granted``."""
        for level in reversed(self.levels):
            if rules := find(level_of_authorisation(level), "Require"):
                return any(
                    tuple(map(str.lower, rule.arguments)) != ("all", "granted") for rule in rules
                )
        return False

    def handler(self) -> Directive | None:
        """Return the directive that names the handler of the file, or None."""
        found = None
        for level in self.levels:
            for directive in level:
                if directive.is_named("SetHandler"):
                    found = None if directive.arguments[:1] == ("None",) else directive
        if found:
            return found
        extensions = [part.lower() for part in self.file.rpartition("/")[2].split(".")[1:]]
        for level in self.levels:
            for directive in level:
                named = {name.lower().lstrip(".") for name in directive.arguments[1:]}
                if directive.is_named("AddHandler") and named & set(extensions):
                    found = directive
                elif directive.is_named("RemoveHandler") and set(extensions) & {
                    name.lower().lstrip(".") for name in directive.arguments
                }:
                    found = None
        return found


def last(directives: Iterable[Directive], name: str) -> Directive | None:
    """Return the last directive of a name, or None; directives in sections do not count."""
    found = None
    for directive in directives:
        if directive.is_named(name):
            found = directive
    return found


def is_on(directive: Directive | None) -> bool:
    """Tell whether a directive exists and is On."""
    return directive is not None and [a.lower() for a in directive.arguments[:1]] == ["on"]


def level_of_authorisation(level: list[Directive]) -> Iterator[Directive]:
    """Yield the directives of a level that are or contain ``Require``."""
    for directive in level:
        if directive.is_named("Require", "RequireAll", "RequireAny", "RequireNone"):
            yield directive


def alias_matches(alias: str, url_path: str) -> bool:
    """Tell whether a path is below another, as mod_alias and mod_proxy compare them."""
    if alias.endswith("/"):
        return url_path.startswith(alias) or url_path == alias.rstrip("/")
    return url_path == alias or url_path.startswith(alias + "/")


def _names(directives: list[Directive]) -> tuple[str, ...]:
    names = []
    for directive in directives:
        if directive.is_named("ServerName"):
            # It may have a scheme and a port.
            first = directive.arguments[0].rpartition("//")[2]
            names.append(re.sub(r":\d+$", "", first).lower())
        elif directive.is_named("ServerAlias"):
            names += [name.lower() for name in directive.arguments]
    return tuple(names)


def _document_root(directives: list[Directive], default: str) -> str:
    found = last(directives, "DocumentRoot")
    path = found.arguments[0] if found else default
    return path.rstrip("/") or "/"


def _is_tls(directives: list[Directive]) -> bool:
    return is_on(last(directives, "SSLEngine"))


def _merge_options(options: frozenset[str], directive: Directive) -> frozenset[str]:
    for argument in directive.arguments:
        name = argument.lstrip("+-").lower()
        named = {"all": _ALL_OPTIONS, "none": frozenset[str]()}.get(name, frozenset({name}))
        if argument.startswith("+"):
            options |= named
        elif argument.startswith("-"):
            options -= named
        elif argument is directive.arguments[0]:
            options = named
        else:
            options |= named
    return options


def _matching_directories(sections: list[Directive], directory: str) -> list[Directive]:
    plain: list[tuple[int, Directive]] = []
    patterns: list[Directive] = []
    for section in sections:
        if not section.is_named(*_DIRECTORIES) or not section.arguments:
            continue
        if section.is_named("DirectoryMatch") or section.arguments[0] == "~":
            if _searches(section.arguments[-1], directory + "/"):
                patterns.append(section)
        elif _directory_matches(section.arguments[0], directory):
            plain.append((section.arguments[0].rstrip("/").count("/"), section))
    plain.sort(key=lambda found: found[0])  # stable: those of the server before those of the host
    return [section for _, section in plain] + patterns


def _directory_matches(pattern: str, directory: str) -> bool:
    wanted = [part for part in pattern.split("/") if part]
    parts = [part for part in directory.split("/") if part]
    return len(wanted) <= len(parts) and all(
        fnmatch.fnmatchcase(part, one) for one, part in zip(wanted, parts, strict=False)
    )


def _file_matches(section: Directive, name: str) -> bool:
    if not section.arguments:
        return False
    if section.is_named("FilesMatch") or section.arguments[0] == "~":
        return _searches(section.arguments[-1], name)
    return fnmatch.fnmatchcase(name, section.arguments[0])


def _location_matches(section: Directive, url_path: str) -> bool:
    if not section.arguments:
        return False
    if section.is_named("LocationMatch") or section.arguments[0] == "~":
        return _searches(section.arguments[-1], url_path)
    pattern = section.arguments[0]
    if re.search(r"[*?\[]", pattern):
        return fnmatch.fnmatchcase(url_path, pattern)
    return alias_matches(pattern, url_path)


def _searches(pattern: str, text: str) -> bool:
    """Tell whether a PCRE matches, according to Python's similar regular expressions."""
    try:
        return re.search(pattern, text) is not None
    except re.error:
        return False
