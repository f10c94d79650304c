"""Asking httpd what it would do: ``apachectl -t`` and its dumps.

Contract: ``Control(program, arguments)`` names an httpd and its configuration;
``syntax_error()`` and ``read()`` run it for a moment, with bounds, and change nothing:
httpd parses its configuration, prints, and ends.  Blocks for as long.

How this works: with mod_info, ``-D DUMP_CONFIG`` prints the configuration as httpd has
understood it.  Where the configuration does not load mod_info, it is loaded for this
one question (``-C LoadModule``), if its file is there.  Without, the files are read.

Sources: httpd(8); server/config.c, server/core.c, modules/generators/mod_info.c.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .configuration import Configuration, RunConfig, parse_modules, parse_run_config
from .directives import (
    Directive,
    IncludedFile,
    find,
    parse_config_dump,
    parse_files,
    parse_includes,
)

# In this order: Debian's takes the variables from /etc/apache2/envvars; Fedora's apachectl
# passes no arguments on, its httpd needs no variables; the last is a bare Debian one.
PROGRAMS: Final = ("apache2ctl", "httpd", "apachectl", "apache2")
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/usr/local/apache2/bin"
# httpd itself takes some hundredths of a second; a server name that must be looked up,
# and DNS that does not answer, can make it more.
TIMEOUT_S: Final = 30.0
# Where distributions have their modules, besides where this configuration has some.
_MODULE_DIRECTORIES: Final = (
    "/usr/lib/apache2/modules",
    "/usr/lib64/httpd/modules",
    "/usr/lib/httpd/modules",
    "/usr/local/apache2/modules",
)


class ControlError(Exception):
    """httpd could not be asked; the text says why, and what to do."""


class Control:
    """An httpd and its configuration.

    Args:
        program: apachectl or httpd; None: whichever is found.
        arguments: those that name another configuration than httpd's own, as
            ``-f`` and ``-C``.

    Raises:
        ControlError: there is no such program.
    """

    def __init__(self, program: str | None = None, arguments: Sequence[str] = ()) -> None:
        names = [program] if program else list(PROGRAMS)
        path = f"{os.environ.get('PATH', '')}:{_PATH}"
        found = next(filter(None, (shutil.which(name, path=path) for name in names)), None)
        if found is None:
            raise ControlError(
                f"{program} is no program that can be run"
                if program
                else f"none of {', '.join(PROGRAMS)} is installed"
            )
        self.program = found
        self.arguments = tuple(arguments)

    @property
    def command(self) -> str:
        """What to type instead of this program's name, for the lines that mend something."""
        return Path(self.program).name

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run httpd with its configuration and further arguments.

        Raises:
            ControlError: it cannot be run, or does not end.
        """
        try:
            return subprocess.run(
                [self.program, *self.arguments, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=TIMEOUT_S,
                env={**os.environ, "LC_ALL": "C"},
            )
        except subprocess.TimeoutExpired:
            raise ControlError(
                f"{self.program} {' '.join(arguments)} has not ended within {TIMEOUT_S:g} s"
            ) from None
        except OSError as error:
            raise ControlError(f"{self.program} cannot be run: {error.strerror}") from error

    def version(self) -> tuple[int, ...]:
        """Return httpd's version, as (2, 4, 57); () where it does not say."""
        match = re.search(r"Apache/(\d+)\.(\d+)\.(\d+)", self.run("-v").stdout)
        return tuple(map(int, match.groups())) if match else ()

    def syntax_error(self) -> str | None:
        """Return what is wrong with the configuration, or None."""
        done = self.run("-t")
        if done.returncode == 0:
            return None
        noise = re.compile(r"Action '.*' failed\.|The Apache error log may have|AH00558|^$")
        lines = (done.stderr + done.stdout).splitlines()
        return " ".join(line.strip() for line in lines if not noise.search(line.strip()))

    def read(self) -> Configuration:
        """Return the configuration; it must be one that ``syntax_error`` found good.

        Raises:
            ControlError
        """
        modules = parse_modules(self._dump("DUMP_MODULES"))
        run_config = parse_run_config(self._dump("DUMP_RUN_CFG"))
        included = parse_includes(self._dump("DUMP_INCLUDES"))
        files = self._parse_files(included, modules, run_config) if included else []
        directives = self._parse_dump(modules, run_config, files)
        return Configuration(
            directives=files if directives is None else directives,
            loaded={
                directive.arguments[0]: _absolute(directive.arguments[1], run_config.server_root)
                for directive in find(files, "LoadModule")
                if len(directive.arguments) == 2
            },
            modules=frozenset(modules),
            run_config=run_config,
            files=tuple(included.paths()) if included else (),
            is_resolved=directives is not None,
        )

    def _dump(self, name: str) -> str:
        done = self.run("-t", "-D", name)
        if done.returncode != 0:
            raise ControlError(f"{self.program} -t -D {name} fails: {done.stderr.strip()}")
        return done.stdout

    def _parse_files(
        self, included: IncludedFile, modules: list[str], run_config: RunConfig
    ) -> list[Directive]:
        def read(path: str) -> str:
            return Path(path).read_text(errors="replace")

        try:
            return parse_files(included, read, modules, {**os.environ, **run_config.defines})
        except OSError as error:
            raise ControlError(f"{error.filename}: {error.strerror}") from error

    def _parse_dump(
        self, modules: list[str], run_config: RunConfig, files: list[Directive]
    ) -> list[Directive] | None:
        arguments = ["-t", "-D", "DUMP_CONFIG"]
        if "info_module" not in modules:
            directories = [
                Path(_absolute(directive.arguments[1], run_config.server_root)).parent
                for directive in find(files, "LoadModule")
                if len(directive.arguments) == 2
            ]
            for directory in dict.fromkeys([*directories, *map(Path, _MODULE_DIRECTORIES)]):
                if (directory / "mod_info.so").exists():
                    # Before the first file: httpd takes -C in the order of its arguments.
                    module = directory / "mod_info.so"
                    arguments += ["-C", f'LoadModule info_module "{module}"']
                    break
            else:
                return None
        done = self.run(*arguments)
        return parse_config_dump(done.stdout) if done.returncode == 0 else None


def _absolute(path: str, server_root: str) -> str:
    return os.path.join(server_root, path)
