"""The PHP library's own tools: its test suite, PSR-12, static analysis."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from apachews import wire

from ..conftest import wait_for
from ..library.test_relay import producers, received
from ..support.bridge_by_hand import Bridge
from ..support.brokers import running_broker
from ..support.site import ROOT

LIBRARY = ROOT / "bindings" / "php"
# The names of the tools in Debian; vendor/bin of Composer has precedence.
PACKAGES = {
    "php": "php-cli",
    "phpunit": "phpunit",
    "phpcs": "php-codesniffer",
    "composer": "composer",
    "phpstan": "neither Debian nor PyPI has it; Composer does: phpstan/phpstan",
}


def tool(name: str) -> str:
    """Return the path of a tool; skip the test if it is missing."""
    path = f"{LIBRARY / 'vendor' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    if found := shutil.which(name, path=path):
        return found
    pytest.skip(f"{name} is not installed ({PACKAGES[name]})")


def allow_files() -> None:
    """Raise a process's limit of descriptors beyond select()'s, if permitted."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))


def run(*command: str) -> str:
    """Run a tool in the library's directory; return its output, which a failure reports."""
    result = subprocess.run(
        command,
        cwd=LIBRARY,
        preexec_fn=allow_files,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def phpunits_report() -> str:
    """PHPUnit 9 to 13 run the tests: data providers are both annotations and attributes."""
    tool("php")
    phpunit = tool("phpunit")
    version = subprocess.run([phpunit, "--version"], capture_output=True, text=True, check=True)
    (major,) = re.findall(r"^PHPUnit (\d+)\.", version.stdout, re.M)
    # The report names what is skipped.
    return run(phpunit, "--verbose" if int(major) < 10 else "--display-skipped")


def test_phpunit(phpunits_report: str) -> None:
    print(phpunits_report)
    assert re.search(r"^(OK|Tests: )", phpunits_report, re.M)


def test_phpunit_skips_nothing(phpunits_report: str) -> None:
    """Its skipped tests are skips of this suite, which lists them."""
    skipped = re.findall(r"^\d+\) apachews\\Tests\\(\S+)\n(.+)", phpunits_report, re.M)
    if skipped:
        pytest.skip("; ".join(f"{test}: {reason}" for test, reason in skipped))
    assert "kipped" not in phpunits_report


def test_psr_12() -> None:
    run(tool("phpcs"))


def test_phpstan_at_its_strictest() -> None:
    run(tool("phpstan"), "analyse", "--no-progress", "--memory-limit=1G")


def files() -> list[Path]:
    return sorted(path for path in LIBRARY.rglob("*.php") if "vendor" not in path.parts)


def test_every_file_parses_and_is_strict() -> None:
    php = tool("php")
    for path in files():
        result = subprocess.run([php, "-l", path], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        is_seed = path.name == "seed.php"  # as others have written it
        assert is_seed or "declare(strict_types=1);" in path.read_text(), path


def test_it_needs_no_extension_that_is_not_compiled_in(short_path: Path) -> None:
    """A PHP without php.ini, and so without ext-ffi or even ctype, can serve."""
    path = short_path / "it.ws"
    # -n: only compiled-in extensions are loaded.
    command = [tool("php"), "-n", str(LIBRARY / "tests/programs/seed.php"), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            wait_for(lambda: path.exists() or process.poll() is not None)
            bridge = Bridge(str(path))
            bridge.send(wire.TEXT, b"hello")
            assert wait_for(bridge.read_available) == ["hello"]
            bridge.socket.close()
        finally:
            process.kill()
            said, _ = process.communicate()
            print(said.decode())
    assert said == b""


@pytest.fixture
def original(short_path: Path) -> str:
    """The customer's program, unchanged except for the path: it does not load the library."""
    text = (LIBRARY / "tests" / "programs" / "seed.php").read_text()
    text = text.replace("require __DIR__ . '/../../autoload.php';\n", "")
    text = text.replace("$argv[1]", f'"{short_path}/websocket.ws"')
    assert "require" not in text
    assert "argv" not in text
    return text


@pytest.mark.parametrize("loader", ["autoload.php", "prepend.php"])
@pytest.mark.parametrize("answers", [True, False], ids=["answers", "prints"])
def test_a_program_of_the_original_needs_no_line_that_loads_the_library(
    short_path: Path, original: str, answers: bool, loader: str
) -> None:
    """auto_prepend_file loads the library, like php.ini loaded the original extension."""
    if not answers:  # like the customer's second program, which also closes clients that have ended
        indent = "\n" + 16 * " "
        original = original.replace("$event->write($data);", "echo $data;")
        original = original.replace(
            f"case ApacheWSConnectionClosed:{indent}break;",
            f"case ApacheWSConnectionClosed:{indent}$event->close();{indent}break;",
        )
        assert "echo" in original
        assert "close()" in original
    program = short_path / "program.php"
    program.write_text(original)
    path = short_path / "websocket.ws"
    prepended = f"auto_prepend_file={LIBRARY / loader}"
    command = [tool("php"), "-d", prepended, str(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            wait_for(lambda: path.exists() or process.poll() is not None)
            leaving = Bridge(str(path))
            leaving.send(wire.TEXT, b"bye")
            leaving.send(wire.CLOSE, wire.encode_close(1000))
            wait_for(lambda: leaving.is_at_end or leaving.read_available())
            leaving.socket.close()
            bridge = Bridge(str(path))
            bridge.send(wire.TEXT, b"hello")
            if answers:
                assert wait_for(bridge.read_available) == ["hello"]
            else:
                assert process.stdout
                assert process.stdout.read(len("byehello")) == b"byehello"
            bridge.socket.close()
        finally:
            process.kill()
            said, _ = process.communicate()
            print(said.decode())
    assert said == b""


def test_composer_takes_it_as_the_documentation_says(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "reference" / "php.md").read_text()
    commands = re.findall(r"`composer ([^`]+)`", page)
    assert len(commands) == 2
    (tmp_path / "composer.json").write_text('{"repositories": [{"packagist.org": false}]}')
    library = tmp_path / "apachews-php"
    shutil.copytree(LIBRARY, library, ignore=shutil.ignore_patterns("vendor"))
    environment = {
        **os.environ,
        "COMPOSER_HOME": str(tmp_path / "composer"),
        "COMPOSER_ALLOW_SUPERUSER": "1",
        "COMPOSER_DISABLE_NETWORK": "1",
    }
    for command in commands:
        arguments = command.replace("/opt/apachews-php", str(library)).split()
        result = subprocess.run(
            [tool("composer"), "--no-interaction", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
    (tmp_path / "program.php").write_text(
        "<?php require 'vendor/autoload.php'; new apachews\\Server('it.ws');"
        " echo ApacheWSIOEvent->name, (new ReflectionClass('apachews\\Server'))->getFileName();"
    )
    # With another copy for all programs, as Debian's package has it, the project's own serves.
    for options in ([], ["-d", f"auto_prepend_file={LIBRARY / 'prepend.php'}"]):
        result = subprocess.run(
            [tool("php"), *options, "program.php"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        (tmp_path / "it.ws").unlink(missing_ok=True)
        installed = (tmp_path / "vendor/apachews/apachews/src/Server.php").resolve()
        assert (result.stdout, result.stderr) == (f"IO{installed}", "")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_understands_the_drop_in(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "reference" / "php.md").read_text()
    (drop_in,) = re.findall(r"^```ini\n(.*?)^```", page, re.M | re.S)
    name = "apachews-producer@.service"
    template = (ROOT / "deploy" / "systemd" / name).read_text()
    (tmp_path / name).write_text(template.replace("/opt/apachews/bin/python", sys.executable))
    directory = tmp_path / "apachews-producer@chat.service.d"
    directory.mkdir()
    (directory / "php.conf").write_text(drop_in.replace("/usr/bin/php", sys.executable))
    result = subprocess.run(
        [
            "systemd-analyze",
            "verify",
            "--man=no",
            "--recursive-errors=no",
            name.replace("@", "@chat"),
        ],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in result.stderr.splitlines() if "apachews" in line]
    assert (ours, result.returncode) == ([], 0)


# publish() through a relay, with each of the libraries that PHP has for Redis.

PUBLISH = """
require $argv[1];
@include 'Predis/Autoloader.php';
if (class_exists('Predis\\\\Autoloader')) {
    Predis\\Autoloader::register();
}
try {
    $delivery = apachews\\publish($argv[2], $argv[3], $argv[4] === '' ? null : $argv[4]);
    echo json_encode($delivery);
} catch (apachews\\Exception\\ServerException $error) {
    echo $error->getMessage();
}
"""
# phpredis is an extension that php.ini loads; Predis is found in the include path.
LIBRARIES = {
    "phpredis": ["-d", "include_path=/nonexistent"],
    "Predis": ["-n", "-d", "include_path=/usr/share/php"],
    "none": ["-n", "-d", "include_path=/nonexistent"],
}


def publish_in_php(library: str, url: str, text: str, group: str = "") -> str:
    done = subprocess.run(
        [
            *(tool("php"), *LIBRARIES[library], "-r", PUBLISH, "--"),
            *(str(LIBRARY / "autoload.php"), url, text, group),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr, done.stderr
    return done.stdout


def require_library(library: str) -> None:
    code = {
        "phpredis": "echo class_exists('Redis');",
        "Predis": "echo @include 'Predis/Client.php';",
    }
    found = subprocess.run(
        [tool("php"), *LIBRARIES[library], "-r", code[library]], capture_output=True, check=False
    )
    if b"1" not in found.stdout:
        pytest.skip(f"{library} is not installed (php-redis, php-predis)")


@pytest.mark.parametrize("library", ["phpredis", "Predis"])
def test_publish_through_a_relay(library: str, short_path: Path) -> None:
    require_library(library)
    with (
        running_broker(short_path, "--requirepass", "a:b") as broker,
        producers(short_path, broker.url.replace("//", "//:a%3Ab@"), 1) as (one,),
    ):
        client = one.client("room")
        url = f"{broker.url.replace('//', '//:a%3Ab@')}?name=chat.ws"
        assert '"relayed":true' in publish_in_php(library, url, "hé", "room")
        assert '"relayed":true' in publish_in_php(library, url, "to all")
        assert received(client, 2) == ["hé", "to all"]
        assert '"relayed":false' in publish_in_php(library, url, "x", "empty")
        socket_url = f"{broker.unix_url.replace('unix://', 'unix://:a%3Ab@')}?name=chat.ws"
        assert '"relayed":true' in publish_in_php(library, socket_url, "by the socket")
        assert received(client, 1) == ["by the socket"]
        wrong = publish_in_php(library, f"{broker.url.replace('//', '//:wrong@')}?name=x", "x")
        assert "check that the relay runs" in wrong and "wrong@" not in wrong
        assert "add ?name=" in publish_in_php(library, broker.url, "x")
        assert publish_in_php(library, one.path, "hello") == (
            '{"reached":1,"skipped":0,"relayed":true}'
        )


@pytest.mark.parametrize("library", ["phpredis", "Predis"])
def test_publish_into_a_history(library: str, short_path: Path) -> None:
    """The message gets an offset, also in another database than the first."""
    require_library(library)
    with running_broker(short_path) as broker:
        url = broker.url.removesuffix("0") + "2"
        with producers(short_path, url, 1) as (one,):
            group = one.server.group(
                "room", history=10, formatter=lambda data, at: f"{at.offset}{data!s}"
            )
            client = one.client("room")
            assert '"relayed":true' in publish_in_php(library, f"{url}?name=chat.ws", "hé", "room")
            socket_url = f"{broker.unix_url}?name=chat.ws&db=2"
            assert '"relayed":true' in publish_in_php(library, socket_url, "two", "room")
            group.broadcast("three")
            assert received(client, 3) == ["1hé", "2two", "3three"]
            broker.call("SCRIPT", "FLUSH")
            answer = publish_in_php(library, f"{url}?name=chat.ws", "x", "room")
            assert "check that" in answer


@pytest.mark.parametrize("library", ["phpredis", "Predis"])
def test_an_error_of_the_relay_is_reported_with_its_reason(library: str, short_path: Path) -> None:
    """Not as a relay without a producer, and the message is not sent without its history."""
    require_library(library)
    rules = "user ann on >pw &apachews* +@connection +hget ~{apachews*"
    with running_broker(short_path, "--user", *rules.split()[1:]) as broker:
        url = f"{broker.url}?name=chat.ws"
        limited = url.replace("//", "//ann:pw@")
        assert "publish" in publish_in_php(library, limited, "x").lower()
        with producers(short_path, broker.url, 1) as (one,):
            client = one.client("room")
            broker.call("SET", "{apachews:chat.ws:room}:meta", "of another type")
            assert "WRONGTYPE" in publish_in_php(library, url, "lost", "room")
            broker.call("DEL", "{apachews:chat.ws:room}:meta")
            assert '"relayed":true' in publish_in_php(library, url, "sent", "room")
            assert received(client, 1) == ["sent"]


@pytest.mark.parametrize("library", ["phpredis", "Predis"])
def test_a_user_without_the_right_for_histories_publishes_to_plain_groups(
    library: str, short_path: Path
) -> None:
    require_library(library)
    rules = "user ann on >pw &apachews* +@connection +publish"
    with (
        running_broker(short_path, "--user", *rules.split()[1:]) as broker,
        producers(short_path, broker.url, 1) as (one,),
    ):
        client = one.client("room")
        url = f"{broker.url.replace('//', '//ann:pw@')}?name=chat.ws"
        assert '"relayed":true' in publish_in_php(library, url, "hello", "room")
        assert received(client, 1) == ["hello"]


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:1/0?name=x&password=x@secret", "x://ann:a@secret?b@host"]
)
def test_a_password_is_in_no_message_of_php(url: str) -> None:
    assert "secret" not in publish_in_php("none", url, "hello")


def test_publish_through_a_relay_needs_a_library() -> None:
    answer = publish_in_php("none", "redis://127.0.0.1?name=chat.ws", "hello")
    assert "PHP has no library for Redis" in answer and "php-redis" in answer
    assert "unknown scheme" in publish_in_php("none", "redis+cluster://h?name=x", "x")


def test_a_refusal_of_the_relay_reaches_a_program_in_php(short_path: Path) -> None:
    with (
        running_broker(short_path) as broker,
        producers(short_path, broker.url, 1, relay_max_message_bytes=3) as (one,),
    ):
        assert "the relay carries 3" in publish_in_php("none", one.path, "hello")
