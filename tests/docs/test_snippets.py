"""Every fenced block of README.md and docs/: Python runs, Apache reads, JSON parses.

A Python block is a producer, which the runner runs and a client talks to; a program that
publishes to a running producer; or tests, for pytest.  A block of PHP is one of the first two.
The comment before it can have the client's messages and the messages that it must receive::

    <!-- talk: {"uri": "/chat.ws?room=1", "say": ["hi"], "hear": ["hi"]} -->

``hear`` has messages that must arrive in this order, possibly among others; ``answer`` has members
of the answer to the handshake.  ``uri``, ``user``, ``offered``, ``asking`` and ``headers`` set
members of the request.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from apachews import Server, wire
from apachews.channels import load
from apachews_tools.cli import make_parser
from apachews_tools.httpd import private_apache
from apachews_tools.httpd.private_apache import DEBIAN_MODULES, PrivateApache

from ..c import build as c_build
from ..c.test_library import CMAKE
from ..conftest import DEADLINE_S, wait_for
from ..library.test_reference import OPEN, Browser, serving
from ..support.site import HANDLER, IS_ROOT, ROOT
from .pages import Block, all_blocks
from .test_pages_in_a_sandbox import READINGS

BLOCKS = all_blocks()
EXAMPLES = "docs/examples/"
PHP_LIBRARY = re.compile(r"/opt/apachews-php/|bindings/php/(?=autoload\.php)")
SOCKETS = re.compile(r"(/var/www/html/ws|/run/apachews)/(\w+\.ws)")
TESTED_ELSEWHERE = {page for pages in READINGS for page in pages}
LANGUAGES = {
    "sh",
    "toml",
    "python",
    "apache",
    "json",
    "js",
    "html",
    "perl",
    "php",
    "text",
    "ini",
    "c",
    "cmake",
    "",
    "console",
    "yaml",
}
# A fragment of a program may use these names.
PRELUDE = """\
import sys
from apachews import *
rooms = {"room=1"}
server = Server(sys.argv[1])
"""
# The same in C.
C_PRELUDE = """\
#include <apachews.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
extern apachews_server *server;
extern apachews_event event;
extern volatile sig_atomic_t received;
void handle(apachews_event *event);
void fragment(void);
void fragment(void)
{
"""
# Modules that Debian enables, or that a page enables, in addition to those of private.conf.
MODULES = (
    "alias",
    "auth_basic",
    "authn_core",
    "authn_file",
    "authz_host",
    "authz_user",
    "headers",
    "proxy",
    "proxy_http",
    "proxy_wstunnel",
    "remoteip",
    "rewrite",
    "status",
)


def in_language(language: str) -> pytest.MarkDecorator:
    blocks = [block for block in BLOCKS if block.language == language]
    return pytest.mark.parametrize("block", blocks, ids=lambda block: block.name)


def skip_if_marked(block: Block) -> None:
    """Skip a block that cannot be run; pytest's summary counts and prints it."""
    if block.why_not_run:
        pytest.skip(f"{block.name}: {block.why_not_run}")


def is_excerpt(block: Block) -> bool:
    """Return whether a file of the examples, which have tests, contains exactly this text."""
    return block.page.startswith(EXAMPLES) and any(
        block.text.rstrip() in path.read_text(errors="replace")
        for directory in ("examples", "deploy")
        for path in (ROOT / directory).rglob("*")
        if path.is_file()
    )


def test_every_language_has_a_test() -> None:
    strange = [
        block.name
        for block in BLOCKS
        if block.language not in LANGUAGES and not block.language.startswith("{")
    ]
    assert not strange


@in_language("yaml")
def test_yaml_is_for_other_programs(block: Block) -> None:
    skip_if_marked(block)
    pytest.fail(f"{block.name}: no test reads YAML; mark it, and name its program")


@in_language("sh")
def test_commands_are_run(block: Block) -> None:
    """In the sandbox, if it runs the page; otherwise our command line must accept them."""
    skip_if_marked(block)
    if block.page in TESTED_ELSEWHERE:
        return
    others = [
        line
        for line in re.sub(r"\\\n\s*", "", block.text).splitlines()
        if not is_known_to_the_command_line(line)
    ]
    if others:
        pytest.skip(f"{block.name}: a page that the sandbox does not run has {others[0]!r}")


def is_known_to_the_command_line(line: str) -> bool:
    """Parse a command of ours; return False for another command."""
    found = re.fullmatch(r"(?:.*\| |sudo |-u \S+ )*(?:/\S+/)?apachews (?P<arguments>.*)", line)
    if not found:
        return not line.strip() or line.startswith("#")
    arguments = shlex.split(re.sub(r" <\S+| >\S+", "", found["arguments"]), comments=True)
    if not any("…" in argument for argument in arguments):  # a synopsis has one
        make_parser().parse_args(arguments)
    return True


@in_language("toml")
def test_channels_read_it(block: Block, tmp_path: Path) -> None:
    (tmp_path / "channels.toml").write_text(block.text)
    load(tmp_path / "channels.toml")


@in_language("json")
def test_json_parses(block: Block) -> None:
    json.loads(block.text)


@in_language("js")
def test_javascript_is_understood(block: Block, tmp_path: Path) -> None:
    skip_if_marked(block)
    if is_excerpt(block):
        return
    if not (node := shutil.which("node")):
        pytest.skip("node is not installed")
    (tmp_path / "snippet.js").write_text(block.text)
    subprocess.run([node, "--check", "snippet.js"], cwd=tmp_path, check=True)


@in_language("apache")
def test_apache_reads_it(block: Block, short_path: Path) -> None:
    skip_if_marked(block)
    if is_excerpt(block):
        return
    apache = make_apache(short_path)
    loaded = "".join(
        f"LoadModule {name}_module {DEBIAN_MODULES}/mod_{name}.so\n" for name in MODULES
    )
    text = re.sub(r"/\S+/apachews_handler\b", str(HANDLER), block.text)
    text = re.sub(r"Include /\S+/apachews.conf", "", text)
    text = re.sub(r"(WSGIPythonHome) \S+", rf"\1 {sys.prefix}", text)
    text = re.sub(r"(?m)^(\s*SSLCertificate\w+) .*", rf"\1 {apache.certificate}", text)
    if block.comment == "in a directory":
        text = f"<Directory {short_path}>\n{text}</Directory>\n"
    (short_path / "conf.d").mkdir()
    (short_path / "conf.d" / "extra.conf").write_text(loaded + text)
    result = subprocess.run(apache.command("-t"), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def make_apache(root: Path) -> PrivateApache:
    docroot = root / "htdocs"
    docroot.mkdir()
    apache = PrivateApache(
        root,
        docroot,
        port=private_apache.free_port(),
        tls_port=private_apache.free_port(),
        wsgi_module=private_apache.find_wsgi_module(),
        python_home=Path(sys.prefix),
        handler=HANDLER,
    )
    private_apache.create_certificate(apache.certificate)
    return apache


@in_language("perl")
def test_perl_is_understood(block: Block) -> None:
    """tests/integration/test_raw.py tests its behaviour."""
    if not (perl := shutil.which("perl")):
        pytest.skip("perl is not installed")
    subprocess.run([perl, "-c"], input=block.text.encode(), check=True)


@in_language("php")
def test_php_runs(block: Block, short_path: Path) -> None:
    skip_if_marked(block)
    if is_excerpt(block):
        return
    if not (php := shutil.which("php")):
        pytest.skip("php is not installed")
    if block.comment.startswith("part of "):  # an application that is not here
        subprocess.run([php, "-l"], input=block.text.encode(), check=True)
        return
    block = dataclasses.replace(block, text=PHP_LIBRARY.sub(f"{ROOT}/bindings/php/", block.text))
    if "Server(" in block.text:
        serves_in_php(php, block, short_path)
    else:
        publishes([php], block, short_path)


@in_language("python")
def test_python_runs(block: Block, short_path: Path) -> None:
    skip_if_marked(block)
    if is_excerpt(block):
        return
    if 'group="www-data"' in block.text and not IS_ROOT:
        pytest.skip(f"{block.name}: root only: it gives its socket to Apache's group")
    if "def test_" in block.text:
        is_tests(block, short_path)
    elif "publish(" in block.text and not re.search(r"\b([Ss]erve|Server)\(", block.text):
        publishes([sys.executable], block, short_path)
    else:
        serves(block, short_path)


@in_language("c")
def test_c_compiles_and_runs(block: Block, short_path: Path) -> None:
    """A client talks to a complete program; a fragment is only compiled."""
    skip_if_marked(block)
    if reason := c_build.why_not():
        pytest.skip(reason)
    source, program = short_path / "snippet.c", short_path / "snippet"
    compiler: list[str | Path] = ["cc", *c_build.WARNINGS, "-I", c_build.SOURCE / "include", source]
    if "int main(" not in block.text:
        is_case = block.text.startswith("case ")
        text = f"switch (event.kind) {{\n{block.text}default: break;\n}}" if is_case else block.text
        source.write_text(f"{C_PRELUDE}{text}\n}}\n")
        c_build.run(*compiler, "-fsyntax-only")
        return
    source.write_text(SOCKETS.sub(rf"{short_path}/\2", block.text))
    c_build.run(*compiler, c_build.built("plain") / "libapachews.a", "-o", program)
    found = SOCKETS.search(block.text)
    assert found, f"{block.name} has no path to listen on"
    path = short_path / found[2]
    process = subprocess.Popen([program])
    try:
        wait_for(lambda: path.exists() or process.poll() is not None)
        converse({"say": [], "hear": [], "answer": {}} | talk_of(block), path)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


@in_language("cmake")
def test_cmake_is_what_its_test_has(block: Block) -> None:
    assert block.text in CMAKE


def talk_of(block: Block) -> dict[str, Any]:
    """Return the talk of the comment before a block, {} without one."""
    is_there = block.comment.startswith("talk: ")
    return dict(json.loads(block.comment.removeprefix("talk: "))) if is_there else {}


def write(block: Block, directory: Path, prelude: str = "") -> Path:
    program = directory / ("test_it.py" if "def test_" in block.text else "program")
    program.write_text(prelude + SOCKETS.sub(rf"{directory}/\2", block.text))
    return program


def is_tests(block: Block, directory: Path) -> None:
    for other in BLOCKS:  # the module that the tests import
        if other.page == block.page and other.file and other is not block:
            (directory / Path(other.file).name).write_text(other.text)
    write(block, directory)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"],
        cwd=directory,
        env=environment() | {"PYTHONPATH": f"{ROOT}:{directory}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def environment() -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}


def publishes(interpreter: list[str], block: Block, directory: Path) -> None:
    found = SOCKETS.search(block.text)
    assert found, f"{block.name} has no path to publish to"
    group = re.search(r'"?group"?\s*(?:=|:|=>)\s*"(\w+)"', block.text)
    with Server(directory / found[2]) as server:
        browser = Browser(directory / found[2])
        try:
            event = server.dequeue(DEADLINE_S)
            assert event
            if group:
                server.group(group[1]).add(event.client())
            with serving(server):
                result = subprocess.run(
                    [*interpreter, str(write(block, directory))],
                    env=environment(),
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert result.returncode == 0, result.stderr
                wait_for(lambda: browser.received)
        finally:
            browser.leave()


def serves(block: Block, directory: Path) -> None:
    talk = {"say": ["hello"], "hear": [], "answer": {}} | talk_of(block)
    is_whole = "Server(" in block.text or "serve(" in block.text
    program = write(block, directory, "" if is_whole else PRELUDE)
    found = SOCKETS.search(block.text)
    path = directory / (found[2] if found else "it.ws")
    process = subprocess.Popen(
        [sys.executable, "-m", "apachews.runner", str(program), str(path)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: path.exists() or process.poll() is not None)
        assert path.exists(), process.communicate()[1]
        converse(talk, path)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors, errors


def serves_in_php(php: str, block: Block, directory: Path) -> None:
    talk = {"say": ["hello"], "hear": [], "answer": {}}
    if block.comment.startswith("talk: "):
        talk |= json.loads(block.comment.removeprefix("talk: "))
    found = SOCKETS.search(block.text)
    assert found, f"{block.name} has no path to serve"
    path = directory / found[2]
    log = directory / "errors"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [php, str(write(block, directory))],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
    try:
        wait_for(lambda: path.exists() or process.poll() is not None)
        assert path.exists(), log.read_text()
        converse(talk, path)
        assert process.poll() is None, log.read_text()
    finally:
        process.kill()
        process.wait()
    assert "PHP " not in log.read_text(), log.read_text()  # the beginning of PHP's warnings


def converse(talk: dict[str, Any], path: Path) -> None:
    headers = tuple((name, value) for name, value in talk.get("headers", {}).items())
    browser = Browser(
        path,
        dataclasses.replace(
            OPEN,
            uri=talk.get("uri", OPEN.uri),
            user=talk.get("user", OPEN.user),
            offered=tuple(talk.get("offered", OPEN.offered)),
            answer_required=talk.get("asking", False),
            headers=OPEN.headers + headers,
        ),
    )
    try:
        for message in talk["say"] if not talk.get("asking") else ():
            browser.say(message)
        expected = talk["hear"]
        wait_for(
            lambda: all(message in browser.received for message in expected),
            what=lambda: f"received {browser.received} instead of {expected}",
        )
        order = [message for message in browser.received if message in expected]
        assert order[: len(expected)] == expected
        if talk["answer"]:
            answer = wait_for(lambda: browser.answer) or {}
            assert talk["answer"].items() <= answer.items(), answer
        if not expected and not talk["answer"]:
            # When the program has closed its end, it has read everything before the CLOSE.
            browser.bridge.send(wire.CLOSE, wire.encode_close(1000))
            browser.wait_closed()
    finally:
        browser.leave()
