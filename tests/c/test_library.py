"""libapachews without Apache: its own tests, valgrind, installation."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from apachews import wire

from ..conftest import wait_for
from ..support.bridge_by_hand import Bridge
from .build import SOURCE, WARNINGS, built, run

TESTS = ("test_core", "test_server")
# The start of a program for the first apachews.
ORIGINAL = """
#include <apache-ws-common.h>

/* Some define the types again. */
typedef int SOCKET;
typedef int32_t DWORD;

static int serve(const char *path)
{
    apachews_event *event;
    unlink(path);
    apachews_context *ctx = apachews_create(path);
    if (ctx == NULL)
        return -1;
    while ((event = apachews_server_next_event(ctx)) != NULL) {
        apachews_event_type type = apachews_event_get_type(event);
        apachews_client *const client = apachews_event_get_client(event);
        const apachews_context *const context = apachews_event_get_context(event);
        SOCKET sock = apachews_client_get_socket(client);
        uint8_t *data;
        size_t length;
        switch (type) {
        case ApacheWSAcceptEvent:
            if (sock == INVALID_SOCKET || apachews_client_get_language(client) == NULL)
                apachews_client_close(client);
            break;
        case ApacheWSIOEvent: {
            enum apachews_status status = (enum apachews_status)
                apachews_event_read(event, &data, &length);
            switch (status) {
            case ApacheWSSuccess:
                if (apachews_event_respond(event, data, length) == SOCKET_ERROR)
                    apachews_client_send(client, data, length);
                apachews_server_broadcast(context, data, length);
                free(data);
                break;
            case ApacheWSConnectionClosed:
                apachews_context_remove_client(ctx, client);
                apachews_client_free(client);
                break;
            case ApacheWSNoData:
            case ApacheWSOutOfMemory:
            case ApacheWSError:
            case ApacheWSWouldBlock:
            case ApacheWSOther:
                break;
            }
            break;
        }
        case ApacheWSCloseEvent:
        case ApacheWSInvalidEvent:
            break;
        }
        apachews_event_free(event);
    }
    DWORD result = apachews_server_close(ctx);
    apachews_context_free(ctx);
    return result;
}

int main(int argc, char **argv)
{
    apachews_stream *stream = apachews_stream_new();
    BOOL is_good = stream != NULL && apachews_stream_append(stream, "x", 1) == 0 &&
                   *apachews_stream_data(stream) == 'x' && apachews_stream_length(stream) == 1;
    apachews_stream_free(stream);
    apachews_initialize_os();
    return argc > 1 ? serve(argv[1]) : !is_good;
}
"""
NEW = """
#include <apachews.h>
#include <stdio.h>

int main(void)
{
    puts(apachews_version());
    return 0;
}
"""
CMAKE = """
cmake_minimum_required(VERSION 3.13)
project(theirs C)
find_package(apachews 0.1 REQUIRED)
add_executable(program new.c)
target_link_libraries(program PRIVATE apachews::apachews)
"""
PART = """
cmake_minimum_required(VERSION 3.13)
project(theirs C)
add_executable(echo new.c)
add_subdirectory({source} apachews)
target_link_libraries(echo PRIVATE apachews::apachews)
"""


@pytest.mark.parametrize("test", TESTS)
def test_its_own_tests(programs: Path, test: str) -> None:
    """The server's also make every allocation fail once; ASan detects leaks."""
    assert "all checks passed" in run(programs / test)


@pytest.mark.parametrize("test", TESTS)
def test_valgrind_finds_nothing(test: str) -> None:
    if not shutil.which("valgrind"):
        pytest.skip("valgrind is not installed: deploy/test installs it")
    said = run(
        "valgrind",
        "--quiet",
        "--error-exitcode=99",
        "--leak-check=full",
        "--show-leak-kinds=all",
        built("plain") / test,
    )
    assert "all checks passed" in said


def test_a_compiler_is_all_it_needs(tmp_path: Path) -> None:
    """Without options or a build system; and with strict warnings."""
    sources = sorted((SOURCE / "src").glob("*.c"))
    example = SOURCE / "examples" / "echo.c"
    run("cc", "-I", SOURCE / "include", *sources, example, "-o", tmp_path / "echo")
    strict = ("-std=c11", "-pedantic", "-Wshadow", "-Wvla", "-Wstrict-prototypes", *WARNINGS)
    for source in sources:
        run("cc", *strict, "-I", SOURCE / "include", "-c", source, "-o", tmp_path / "object")


@pytest.mark.parametrize("options", [("-std=c11",), ("-std=gnu17", "-O2"), ("-std=gnu99",)])
def test_a_program_for_the_first_apachews_compiles_unchanged(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    (tmp_path / "original.c").write_text(ORIGINAL)
    library = built("plain") / "libapachews.a"
    where: tuple[str | Path, ...] = ("-I", SOURCE / "include", "-o", tmp_path / "original")
    run("cc", *options, *WARNINGS, *where, tmp_path / "original.c", library)
    run(tmp_path / "original")


def test_both_headers_and_cxx(tmp_path: Path) -> None:
    text = "#include <apachews.h>\n#include <apache-ws-common.h>\nint main() { return 0; }\n"
    (tmp_path / "both.c").write_text(text)
    compilers = ["cc"]
    if shutil.which("g++"):
        compilers.append("g++")
    for compiler in compilers:
        language = ["-x", "c++"] if compiler == "g++" else ["-std=c11"]
        where: tuple[str | Path, ...] = ("-I", SOURCE / "include", "-o", tmp_path / "both")
        run(compiler, *language, *WARNINGS, *where, tmp_path / "both.c")


@pytest.fixture(scope="module")
def installed(can_build: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prefix with the files that cmake installs."""
    prefix = tmp_path_factory.mktemp("prefix")
    build = tmp_path_factory.mktemp("build")
    run(
        *("cmake", "-S", SOURCE, "-B", build, f"-DCMAKE_INSTALL_PREFIX={prefix}"),
        *("-DCMAKE_INSTALL_LIBDIR=lib", "-DAPACHEWS_TESTS=OFF"),
    )
    run("cmake", "--build", build, "--parallel", "2")
    run("cmake", "--install", build)
    return prefix


@pytest.mark.parametrize("static", [False, True], ids=["shared", "static"])
def test_pkg_config(installed: Path, tmp_path: Path, static: bool) -> None:
    if not shutil.which("pkg-config"):
        pytest.skip("pkg-config is not installed: deploy/test installs it")
    (tmp_path / "new.c").write_text(NEW)
    where = f"--with-path={installed}/lib/pkgconfig"
    flags = run("pkg-config", where, "--cflags", "--libs", "apachews").split()
    link = ("-Wl,-Bstatic", *flags, "-Wl,-Bdynamic") if static else flags
    run("cc", *WARNINGS, tmp_path / "new.c", *link, "-o", tmp_path / "new")
    said = run("env", f"LD_LIBRARY_PATH={'' if static else installed / 'lib'}", tmp_path / "new")
    assert said.strip() == run("pkg-config", where, "--modversion", "apachews").strip()


def test_a_part_of_another_project(can_build: None, tmp_path: Path) -> None:
    """The other project can have targets with the same names."""
    (tmp_path / "new.c").write_text(NEW)
    (tmp_path / "CMakeLists.txt").write_text(PART.format(source=SOURCE))
    run("cmake", "-S", tmp_path, "-B", tmp_path / "build")
    run("cmake", "--build", tmp_path / "build", "--parallel", "2")
    assert run(tmp_path / "build" / "echo").strip()


def test_cmake_finds_it(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "new.c").write_text(NEW)
    (tmp_path / "CMakeLists.txt").write_text(CMAKE)
    run("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={installed}")
    run("cmake", "--build", tmp_path / "build")
    assert run(tmp_path / "build" / "program").strip()


def test_other_names_are_not_exported(installed: Path) -> None:
    """The shared library exports only the interface; the static one, only names with a prefix."""
    lib = installed / "lib"
    headers = "".join(path.read_text() for path in (installed / "include").glob("*.h"))
    for line in run("nm", "-D", "--defined-only", lib / "libapachews.so").splitlines():
        name = line.split()[-1]
        assert f"{name}(" in headers, name
    for line in run("nm", "-g", "--defined-only", lib / "libapachews.a").splitlines():
        if len(line.split()) == 3:
            assert line.split()[-1].startswith("apachews_"), line
    assert "SONAME" in run("objdump", "-p", lib / "libapachews.so")


# Executes a program like systemd; the arguments are a descriptor and the program.
AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3, inheritable=True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_a_socket_of_systemd(programs: Path, short_path: Path) -> None:
    """It is served, systemd is notified, and its file outlives the program."""
    path = short_path / "echo.ws"
    with socket.socket(socket.AF_UNIX) as listening, notified(short_path) as systemd:
        listening.bind(str(path))
        listening.listen()
        early = Bridge(str(path))
        early.send(wire.TEXT, b"early")
        fd = listening.fileno()
        process = subprocess.Popen(
            [sys.executable, "-c", AS_SYSTEMD, str(fd), str(programs / "echo"), str(path)],
            pass_fds=[fd],
            env={"NOTIFY_SOCKET": str(short_path / "notify")},
        )
        try:
            wait_for(lambda: "early" in early.read_available())
            assert systemd.recv(1000).startswith(b"READY=1\n")
            process.terminate()
            assert process.wait(10) == 0
            assert systemd.recv(1000) == b"STOPPING=1"
            assert early.read_available() == [wire.Close(1001, "the server closes")]
        finally:
            process.kill()
            process.wait()
            early.socket.close()
        assert path.exists()


def notified(directory: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(directory / "notify"))
    sock.settimeout(10)
    return sock
