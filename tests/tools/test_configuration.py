"""apachews_tools.httpd: directives, and what httpd's configuration says for a request."""

from __future__ import annotations

from pathlib import Path

import pytest

from apachews_tools.httpd.configuration import (
    Configuration,
    RunConfig,
    Scope,
    alias_matches,
    parse_modules,
    parse_run_config,
)
from apachews_tools.httpd.directives import (
    Directive,
    IncludedFile,
    find,
    parse_config_dump,
    parse_files,
    parse_includes,
    quote,
    split_arguments,
    walk,
)
from apachews_tools.httpd.mapping import scope_of, socket_of
from apachews_tools.install.diversion import disabled_denial, diversion

MODULES = frozenset({"proxy_module", "rewrite_module", "wsgi_module", "mpm_event_module"})


def configuration(text: str) -> Configuration:
    directives = parse_files(IncludedFile("/c", 0), lambda _: text, MODULES, {})
    return Configuration(directives, {}, MODULES, RunConfig(document_root="/default"))


def scope(text: str, url_path: str = "/ws/a.ws", host: str = "a.example") -> Scope:
    read = configuration(text)
    return scope_of(read, read.host_for(host, 80, False), url_path)


RUN_CONFIG = """\
ServerRoot: "/etc/apache2"
Main DocumentRoot: "/var/www/html"
Main ErrorLog: "/var/log/apache2/error.log"
Mutex default: dir="/var/run/apache2/" mechanism=default
PidFile: "/var/run/apache2/apache2.pid"
Define: DUMP_RUN_CFG
Define: APACHEWS_HANDLER=/opt/a=b/apachews_handler
User: name="www-data" id=33
Group: name="www-data" id=33
"""


def test_what_httpd_says_of_itself() -> None:
    assert parse_run_config(RUN_CONFIG) == RunConfig(
        "/etc/apache2",
        "/var/www/html",
        "/var/log/apache2/error.log",
        "/var/run/apache2/apache2.pid",
        "www-data",
        {"DUMP_RUN_CFG": "", "APACHEWS_HANDLER": "/opt/a=b/apachews_handler"},
    )
    assert parse_run_config("") == RunConfig()


def test_modules_are_listed() -> None:
    text = "Loaded Modules:\n core_module (static)\n mpm_event_module (shared)\nSyntax OK\n"
    assert parse_modules(text) == ["core_module", "mpm_event_module"]


HOSTS = """\
ServerName main.example
DocumentRoot /main
<VirtualHost *:80>
    ServerName first.example
</VirtualHost>
<VirtualHost 10.0.0.1:80 [::1]:80>
    ServerName https://a.example:8443
    ServerAlias *.a.example B.example
    DocumentRoot /a/
</VirtualHost>
<VirtualHost _default_:443>
    ServerName t.example
    SSLEngine on
</VirtualHost>
"""


@pytest.mark.parametrize(
    ("name", "port", "is_tls", "found"),
    [
        ("a.example", 80, False, "a.example"),
        ("WWW.a.example", 80, False, "a.example"),
        ("b.example", 80, False, "a.example"),
        ("elsewhere.example", 80, False, "first.example"),  # the first of its port
        ("elsewhere.example", 443, True, "t.example"),
        ("t.example", 8443, True, "t.example"),  # a port that something maps
        ("a.example", 8080, False, "a.example"),
        ("elsewhere.example", 8080, False, "main.example"),
    ],
)
def test_a_host_is_chosen_by_port_and_name(name: str, port: int, is_tls: bool, found: str) -> None:
    assert configuration(HOSTS).host_for(name, port, is_tls).names[0] == found


def test_hosts_inherit_the_servers_document_root() -> None:
    hosts = {host.names[0]: host for host in configuration(HOSTS).virtual_hosts()}
    assert {name: host.document_root for name, host in hosts.items()} == {
        "main.example": "/main",
        "first.example": "/main",
        "a.example": "/a",
        "t.example": "/main",
    }
    assert hosts["t.example"].is_tls
    # A server without its own document root is not a site if it has virtual hosts.
    without = HOSTS.replace("DocumentRoot /main\n", "")
    assert len(configuration(without).virtual_hosts()) == 3
    assert configuration("").virtual_hosts()[0].document_root == "/default"


@pytest.mark.parametrize(
    ("text", "follows"),
    [
        ("", True),
        ("Options None", False),
        ("<Directory />\nOptions None\n</Directory>", False),
        ("<Directory /default>\nOptions Indexes\n</Directory>", False),
        ("<Directory /default/ws/>\nOptions -FollowSymLinks\n</Directory>", False),
        ("<Directory /default/other>\nOptions None\n</Directory>", True),
        ("<Directory /default/w>\nOptions None\n</Directory>", True),
        (
            "<Directory /default>\nOptions +FollowSymLinks\n</Directory>\n"
            "<Directory />\nOptions None\n</Directory>",
            True,  # the longer path counts, whatever comes first
        ),
        (
            "<Directory />\nOptions None\n</Directory>\n"
            "<Directory /d*/ws>\nOptions All\n</Directory>",
            True,
        ),
        ("<DirectoryMatch ^/default/>\nOptions None\n</DirectoryMatch>", False),
        ('<Directory ~ "/ws/?$">\nOptions None\n</Directory>', False),
        ("<Location /ws>\nOptions None\n</Location>", True),  # links are decided on before
        ("<Directory />\nOptions SymLinksIfOwnerMatch\n</Directory>", False),
    ],
)
def test_options_are_merged_along_the_path(text: str, follows: bool) -> None:
    options, _ = scope(text).options()
    assert ("followsymlinks" in options) is follows


def test_a_hosts_section_wins_over_the_servers() -> None:
    text = (
        "<Directory /default>\nOptions None\n</Directory>\n"
        "<VirtualHost *:80>\n<Directory /default>\nOptions FollowSymLinks\n</Directory>\n"
        "</VirtualHost>"
    )
    options, setter = scope(text).options()
    assert options == {"followsymlinks"}
    assert setter is not None
    assert setter.where == "/c:6"


@pytest.mark.parametrize(
    ("text", "handler"),
    [
        ("", None),
        ("AddHandler websocket .ws", "AddHandler websocket .ws"),
        ("AddHandler websocket WS", "AddHandler websocket WS"),
        ("AddHandler websocket .wsx", None),
        ("AddHandler websocket .ws\n<Directory />\nRemoveHandler .ws\n</Directory>", None),
        (
            "AddHandler websocket .ws\n<Files *.ws>\nSetHandler other\n</Files>",
            "SetHandler other",
        ),
        ("<FilesMatch \\.ws$>\nSetHandler websocket\n</FilesMatch>", "SetHandler websocket"),
        ("<Location />\nSetHandler x\n</Location>\nSetHandler y", "SetHandler x"),
        ("SetHandler y\n<Location /ws>\nSetHandler None\n</Location>", None),
        (
            "<Directory /default/ws>\nAddHandler websocket .ws\n</Directory>",
            "AddHandler websocket .ws",
        ),
        ("<Directory /elsewhere>\nAddHandler websocket .ws\n</Directory>", None),
    ],
)
def test_the_handler_of_a_file(text: str, handler: str | None) -> None:
    found = scope(text).handler()
    assert (None if found is None else str(found)) == handler


@pytest.mark.parametrize(
    ("text", "is_denied"),
    [
        ("", False),
        ("<Directory />\nRequire all denied\n</Directory>", True),
        (
            "<Directory />\nRequire all denied\n</Directory>\n"
            "<Directory /default>\nRequire all granted\n</Directory>",
            False,
        ),
        ("<Directory />\n<RequireAll>\nRequire all denied\n</RequireAll>\n</Directory>", True),
        ("<Directory />\nRequire all denied\nRequire ip 10.0.0.1\n</Directory>", False),
        ("<Location /ws>\nRequire valid-user\n</Location>", False),
        ("<Files *.ws>\nRequire all denied\n</Files>", True),
        ("<Files .ht*>\nRequire all denied\n</Files>", False),
    ],
)
def test_who_is_kept_out(text: str, is_denied: bool) -> None:
    assert (scope(text).denial() is not None) is is_denied


def test_a_path_becomes_a_file() -> None:
    assert socket_of(scope("")) == "/default/ws/a.ws"
    assert socket_of(scope("Alias /ws /run/apachews")) == "/run/apachews/a.ws"
    assert socket_of(scope("Alias /w /run/apachews")) == "/default/ws/a.ws"
    assert socket_of(scope("AliasMatch ^/ws/(.*) /run/$1")) == "/run/a.ws"


ALIAS = "WSGIScriptAlias /ws /opt/apachews_handler/wsgi.py\n"


def test_a_script_alias_has_its_sockets_elsewhere() -> None:
    text = ALIAS + "<Location /ws>\nSetEnv APACHEWS_ROOT /run/apachews/\n</Location>"
    assert socket_of(scope(text, "/ws/chat")) == "/run/apachews/chat.ws"
    assert socket_of(scope(text, "/ws/")) is None
    assert socket_of(scope(ALIAS, "/ws/chat")) is None


@pytest.mark.parametrize(
    ("alias", "path", "matches"),
    [
        ("/", "/a", True),
        ("/ws", "/ws", True),
        ("/ws", "/ws/a", True),
        ("/ws", "/wsa", False),
        ("/ws/", "/ws/a", True),
        ("/ws/", "/ws", True),
    ],
)
def test_an_alias_ends_at_a_slash(alias: str, path: str, matches: bool) -> None:
    assert alias_matches(alias, path) is matches


def test_htaccess_counts_where_it_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "ws").mkdir()
    (tmp_path / "ws" / ".htaccess").write_text("Options -FollowSymLinks\n")
    allowed = f"DocumentRoot {tmp_path}\n<Directory {tmp_path}>\nAllowOverride %s\n</Directory>"
    assert "followsymlinks" not in scope(allowed % "All").options()[0]
    assert "followsymlinks" in scope(allowed % "None").options()[0]
    assert "followsymlinks" in scope(f"DocumentRoot {tmp_path}").options()[0]


REWRITE = "RewriteEngine On\n"
UPGRADE = "RewriteCond %{HTTP:Upgrade} =websocket [NC]\n"
NO_PROXY = 'SetEnvIfNoCase Upgrade "^websocket$" no-proxy\n'


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", None),
        ("ProxyPass / http://b/", ("proxy", "certain")),
        ("ProxyPass /ws http://b/", ("proxy", "certain")),
        ("ProxyPass /app http://b/", None),
        ("ProxyPass /ws !\nProxyPass / http://b/", None),
        ("ProxyPass / http://b/\nProxyPass /ws !", ("proxy", "certain")),  # the first counts
        ("ProxyPassMatch \\.ws$ http://b/", ("proxy", "certain")),
        ("<Location /ws>\nProxyPass http://b/\n</Location>", ("proxy", "certain")),
        ("<Location /app>\nProxyPass http://b/\n</Location>", None),
        ("<Files *.ws>\nSetHandler proxy:http://b/\n</Files>", ("proxy", "certain")),
        (f"{REWRITE}RewriteRule .* http://b/ [P]", ("proxy", "certain")),
        ("RewriteRule .* http://b/ [P]", None),  # the engine is off
        (f"{REWRITE}RewriteRule ^/app http://b/ [P]", None),
        (
            f"{REWRITE}RewriteCond %{{HTTP:Upgrade}} websocket [NC]\nRewriteRule .* ws://b/ [P,L]",
            ("proxy", "certain"),
        ),
        (f"{REWRITE}{UPGRADE}RewriteRule .* ws://b/ [P]", ("proxy", "certain")),
        (f"{REWRITE}{UPGRADE.replace('=', '!=')}RewriteRule .* http://b/ [P]", None),
        # Case matters, and only the whole text is equal.
        (
            f"{REWRITE}{UPGRADE.replace('websocket [NC]', 'WebSocket')}RewriteRule .* ws://b/ [P]",
            None,
        ),
        (f"{REWRITE}{UPGRADE.replace('=websocket', '=web')}RewriteRule .* ws://b/ [P]", None),
        # no-proxy keeps WebSockets from ProxyPass, and not from mod_rewrite.
        (f"{NO_PROXY}ProxyPass / http://b/", None),
        (f"{NO_PROXY}{REWRITE}RewriteRule .* http://b/ [P]", ("proxy", "certain")),
        (
            f"{REWRITE}RewriteCond %{{HTTP:Upgrade}} !websocket\nRewriteRule .* http://b/ [P]",
            None,
        ),
        (
            f"{REWRITE}RewriteCond %{{HTTP_HOST}} b\nRewriteRule .* http://b/ [P]",
            ("proxy", "perhaps"),
        ),
        (
            f"{REWRITE}RewriteCond %{{HTTP_HOST}} b [OR]\n"
            "RewriteCond %{REQUEST_URI} \\.ws$\nRewriteRule .* http://b/ [P]",
            ("proxy", "certain"),
        ),
        (f"{REWRITE}RewriteRule \\.ws$ - [END]\nRewriteRule .* http://b/ [P]", None),
        (f"{REWRITE}RewriteRule !\\.ws$ http://b/ [P]", None),
        (
            f"<Directory /default>\n{REWRITE}RewriteCond %{{REQUEST_FILENAME}} !-f\n"
            "RewriteRule . /index.php [L]\n</Directory>",
            ("page", "certain"),
        ),
        (
            f"{REWRITE}RewriteCond %{{DOCUMENT_ROOT}}%{{REQUEST_URI}} !-f\n"
            "RewriteRule . /index.php [L]",
            ("page", "certain"),
        ),
        (
            f"{REWRITE}RewriteCond %{{DOCUMENT_ROOT}}/%{{REQUEST_URI}} -f\nRewriteRule . /x [L]",
            None,
        ),
        (
            f"<Directory /default>\n{REWRITE}RewriteRule ^index\\.php$ - [L]\n"
            "RewriteCond %{REQUEST_FILENAME} -f\nRewriteRule . /x [L]\n</Directory>",
            None,
        ),
        (
            f"<Directory /default>\n{REWRITE}RewriteRule . /index.php [L]\n</Directory>\n"
            f"<Directory /default/ws>\nRewriteEngine Off\n</Directory>",
            None,
        ),
    ],
)
def test_rules_that_take_a_request_elsewhere(text: str, found: tuple[str, str] | None) -> None:
    rule = diversion(scope(text))
    told = rule and (
        "proxy" if rule.is_proxy else "page",
        "certain" if rule.is_certain else "perhaps",
    )
    assert told == found


@pytest.mark.parametrize(
    ("rule", "websocket"),
    [
        (r"^/ws/a\.ws$ /ws/b.ws [L]", "/ws/b.ws"),
        (r"^/ws/(\w)\.ws$ /$1/$1.ws [L]", "/a/a.ws"),
        (r"^/WS/(A)\.ws$ /ws/new-$1.ws [NC,L]", "/ws/new-a.ws"),
        (r"\.ws$ /index.php [L]", ""),
        (r"^/ws/(\w)\.ws$ /ws/$2.ws [L]", ""),  # the pattern has one group
        (r"!^/x /ws/b.ws [L]", ""),  # nothing is known of what a negated pattern matched
        (r".* http://b/ws/b.ws [P]", ""),
        (r".* https://b/ws/b.ws [L]", ""),
        (r".* //b/ws/b.ws [L]", ""),
        (r".* /%{HTTP_HOST}/b.ws [L]", ""),
        (r".* /ws/b.ws [R=301]", ""),
    ],
)
def test_the_socket_that_a_rule_leads_to(rule: str, websocket: str) -> None:
    found = diversion(scope(f"{REWRITE}RewriteRule {rule}"))
    assert found is not None
    assert found.websocket == websocket


def test_rules_for_files_in_a_directory() -> None:
    """The section for files wins, also with the engine off; its rules get the whole path."""
    front = f"{REWRITE}RewriteRule . /index.php [L]\n"
    assert diversion(scope(f"<Directory /default>\n{front}</Directory>")) is not None
    off = "<FilesMatch \\.ws$>\nRewriteEngine Off\n</FilesMatch>\n"
    assert diversion(scope(f"{off}<Directory /default>\n{front}</Directory>")) is None
    on = (
        f"<FilesMatch \\.ws$>\n{REWRITE}RewriteRule ^/default/ws/a\\.ws$ /b.ws [L]\n</FilesMatch>\n"
    )
    found = diversion(scope(f"{off}<Directory /default>\n{front}{on}</Directory>"))
    assert found is not None
    assert found.websocket == "/b.ws"


OFF = "<FilesMatch \\.ws$>\nRewriteEngine Off\n</FilesMatch>\n"
DENY = f"<Directory /default>\n{REWRITE}%s\n</Directory>\n"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (OFF + DENY % "RewriteRule a - [F]", "RewriteRule a - [F]"),
        (OFF + DENY % "RewriteRule ^ws/ - [forbidden]", "RewriteRule ^ws/ - [forbidden]"),
        (OFF + DENY % "RewriteRule . - [G,NC]", "RewriteRule . - [G,NC]"),
        (
            OFF + DENY % "RewriteCond %{REMOTE_ADDR} !^10\\.\nRewriteRule ^ - [F]",
            "RewriteRule ^ - [F]",
        ),
        (OFF + DENY % "RewriteCond %{REQUEST_METHOD} TRACE\nRewriteRule ^ - [F]", None),
        (OFF + DENY % "RewriteRule ^\\.git - [F]", None),
        (OFF + DENY % "RewriteRule \\.ws$ - [L]\nRewriteRule . - [F]", None),
        (OFF + DENY % "RewriteRule . /index.php [L]", None),
        # The rules of the deepest directory replace those above it.
        (
            OFF + DENY % "RewriteRule . - [F]" + f"<Directory /default/ws>\n{REWRITE}</Directory>",
            None,
        ),
        # Without the section the rule applies; a section after it enables rules of its own.
        (DENY % "RewriteRule . - [F]", None),
        (OFF + DENY % "RewriteRule . - [F]" + OFF.replace("Off", "On"), None),
        # An administrator has disabled the rules of a directory.
        (
            DENY % "RewriteRule . - [F]"
            + "<Directory /default/ws>\nRewriteEngine Off\n</Directory>",
            None,
        ),
    ],
)
def test_rules_that_deny_and_are_off(text: str, rule: str | None) -> None:
    found = disabled_denial(scope(text))
    assert (str(found[0]) if found else None) == rule


def test_the_denying_rule_of_an_htaccess_is_off(tmp_path: Path) -> None:
    (tmp_path / ".htaccess").write_text(f"{REWRITE}RewriteRule . - [F]\n")
    text = f"DocumentRoot {tmp_path}\n<Directory {tmp_path}>\nAllowOverride All\n</Directory>\n"
    found = disabled_denial(scope(OFF + text, "/a.ws"))
    assert found is not None
    assert (found[0].file, found[1].where) == (f"{tmp_path}/.htaccess", "/c:2")
    assert disabled_denial(scope(text, "/a.ws")) is None


@pytest.mark.parametrize(
    ("rules", "restricts"),
    [
        ("", False),
        ("Require all granted", False),
        ("Require all denied", True),
        ("<RequireAll>\nRequire all granted\nRequire not ip 10.1\n</RequireAll>", True),
        ("Require ip 10", True),
    ],
)
def test_rules_of_access_that_restrict(rules: str, restricts: bool) -> None:
    text = "<Directory /default>\nRequire all granted\n</Directory>\n"
    assert scope(f"{text}<Files *.ws>\n{rules}\n</Files>").has_restriction() is restricts


def test_a_rule_of_a_module_that_is_not_there_takes_nothing() -> None:
    read = configuration("ProxyPass / http://b/")
    read.modules = frozenset()
    assert diversion(Scope(read, read.virtual_hosts()[0], "/a.ws", "/default/a.ws")) is None


# httpd's dumps and files, read as trees.


DUMP = """\
# In file: /etc/apache2/apache2.conf
#  87:
PidFile /var/run/apache2/apache2.pid
#  154:
<Directory />
  #  155:
  Options FollowSymLinks
  #  157:
  Require all denied
</Directory>
# In file: /etc/apache2/mods-enabled/mime.conf
#   4:
AddHandler websocket .ws
# In file: macro 'm' (defined on line 7 of "/etc/apache2/a.conf") used on line 10 of "/b.conf"
#   1:
LogFormat "%h \\"%r\\" %>s" common
# In file: /etc/apache2/sites-enabled/000-default.conf
#   1:
<VirtualHost *:80>
  #   2:
  DocumentRoot "/var/www/a b"
  #   3:
  <Directory "/var/www/a b">
    #   4:
    <Files x.ws>
      #   5:
      Require all granted
    </Files>
  </Directory>
</VirtualHost>
"""


def test_a_dump_becomes_a_tree() -> None:
    tree = parse_config_dump(DUMP)
    assert [one.name for one in tree] == [
        "PidFile",
        "Directory",
        "AddHandler",
        "LogFormat",
        "VirtualHost",
    ]
    directory = tree[1]
    assert directory.is_section
    assert [str(one) for one in directory.children] == [
        "Options FollowSymLinks",
        "Require all denied",
    ]
    assert directory.children[0].where == "/etc/apache2/apache2.conf:155"
    assert tree[2].where == "/etc/apache2/mods-enabled/mime.conf:4"
    assert tree[3].arguments == ('%h "%r" %>s', "common")
    (inner,) = find(tree[4:], "Files")
    assert inner.children[0].where == "/etc/apache2/sites-enabled/000-default.conf:5"
    assert len(list(walk(tree))) == 11


def test_names_are_found_in_any_case() -> None:
    tree = [Directive("addhandler", ("websocket", ".ws"))]
    assert find(tree, "AddHandler", "SetHandler") == tree


@pytest.mark.parametrize("text", ["", "Syntax OK\n</VirtualHost>\n", "#  1:\n", "<Broken"])
def test_a_dump_that_is_cut_off_is_no_failure(text: str) -> None:
    assert len(parse_config_dump(text)) <= 2


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("", ()),
        ("a  b\tc", ("a", "b", "c")),
        ('"a b" c', ("a b", "c")),
        ("'a \"b\"' c", ('a "b"', "c")),
        (r'"a \"b\" \\ c"', (r'a "b" \ c',)),
        (r"\.ws$ - [L]", (r"\.ws$", "-", "[L]")),
        ('"" x', ("", "x")),
        ('"open', ("open",)),
    ],
)
def test_arguments_are_parted_as_httpd_does(text: str, arguments: tuple[str, ...]) -> None:
    assert split_arguments(text) == arguments


@pytest.mark.parametrize("argument", ["a", "a b", "", 'a"b', "a\\b", r"\.ws$"])
def test_an_argument_can_be_written_again(argument: str) -> None:
    assert split_arguments(quote(argument)) == (argument,)


INCLUDES = """\
Included configuration files:
  (*) /etc/apache2/apache2.conf
    (146) /etc/apache2/mods-enabled/a.load
    (147) /etc/apache2/mods-enabled/a.conf
      (3) /opt/apachews.conf
    (222) /etc/apache2/sites-enabled/x y.conf
"""


def test_the_list_of_files_becomes_a_tree() -> None:
    root = parse_includes(INCLUDES)
    assert root is not None
    assert root.path == "/etc/apache2/apache2.conf"
    assert [(file.line, file.path.rpartition("/")[2]) for file in root.files] == [
        (146, "a.load"),
        (147, "a.conf"),
        (222, "x y.conf"),
    ]
    assert [file.path for file in root.files[1].files] == ["/opt/apachews.conf"]
    assert len(root.paths()) == 5
    assert parse_includes("Included configuration files:\n") is None


FILES = {
    "/a.conf": """\
# a comment \\
Define ROOT /srv
LoadModule wsgi_module ${MODULES}/mod_wsgi.so
<IfModule mod_ssl.c>
    SSLEngine on
    <IfModule !ssl_module>
        Listen 1
    </IfModule>
</IfModule>
<IfModule mpm_event_module>
    ThreadsPerChild 25
</IfModule>
<IfModule event.c>
    StartServers 1
</IfModule>
<IfDefine !LOCAL>
    Listen 2
    Include /never.conf
</IfDefine>
Include /b.conf
AddHandler \\
  websocket \\
  .ws
""",
    "/b.conf": "<Directory ${ROOT}>\n    Options None\n</Directory>\n",
}


def test_files_become_a_tree_with_conditions_resolved() -> None:
    root = IncludedFile("/a.conf", 0, [IncludedFile("/b.conf", 20)])
    tree = parse_files(
        root,
        FILES.__getitem__,
        ["ssl_module", "mpm_event_module"],
        {"MODULES": "/m", "ROOT": "/srv", "LOCAL": ""},
    )
    assert [(str(one), one.where) for one in walk(tree)] == [
        ("LoadModule wsgi_module /m/mod_wsgi.so", "/a.conf:3"),
        ("SSLEngine on", "/a.conf:5"),
        ("ThreadsPerChild 25", "/a.conf:11"),
        ("StartServers 1", "/a.conf:14"),
        ("<Directory /srv>", "/b.conf:1"),
        ("Options None", "/b.conf:2"),
        ("AddHandler websocket .ws", "/a.conf:23"),
    ]
