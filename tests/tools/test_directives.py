"""httpd's dumps and files, read as trees."""

from __future__ import annotations

import pytest

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
