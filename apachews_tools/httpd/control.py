"""Reads httpd's configuration by ``apachectl -t`` and its dumps.

Contract: ``Control(program, arguments)`` is an httpd with its configuration;
``syntax_error()`` and ``read()`` run it for a moment, with a timeout, and change nothing:
httpd parses its configuration, prints it and exits.  Both block meanwhile.

How this works: with mod_info, ``-D DUMP_CONFIG`` prints the parsed configuration.  If the
configuration does not load mod_info, ``-C LoadModule`` loads it for this one run.  If the
file of mod_info does not exist, this module parses the configuration files.

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

# In this order: Debian's apache2ctl sets the variables of /etc/apache2/envvars; Fedora's
# apachectl drops arguments, but its httpd works without variables; the last one is Debian's
# httpd without variables.
PROGRAMS: Final = ("apache2ctl", "httpd", "apachectl", "apache2")
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/usr/local/apache2/bin"
# httpd itself needs some 10 ms; a host name without a quick answer from DNS takes longer.
TIMEOUT_S: Final = 30.0
# The distributions' directories of modules, in addition to those in the configuration.
_MODULE_DIRECTORIES: Final = (
    "/usr/lib/apache2/modules",
    "/usr/lib64/httpd/modules",
    "/usr/lib/httpd/modules",
    "/usr/local/apache2/modules",
)


class ControlError(Exception):
    """httpd cannot be run; the text has the reason."""


class Control:
    """An httpd and its configuration.

    Args:
        program: apachectl or httpd; None: the first in PATH.
        arguments: those that select another configuration, for example ``-f`` and
            ``-C``.

    Raises:
        ControlError: the program does not exist.
    """

    def __init__(self, program: str | None = None, arguments: Sequence[str] = ()) -> None:
        names = [program] if program else list(PROGRAMS)
        path = f"{os.environ.get('PATH', '')}:{_PATH}"
        found = next(filter(None, (shutil.which(name, path=path) for name in names)), None)
        if found is None:
            raise ControlError(
                f"{program} is not an executable program"
                if program
                else f"Apache httpd is not installed (searched: {', '.join(PROGRAMS)})"
            )
        self.program = found
        self.arguments = tuple(arguments)

    @property
    def command(self) -> str:
        """The name of the program, for remedies."""
        return Path(self.program).name

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run httpd with its configuration and further arguments.

        Raises:
            ControlError: it cannot be run, or does not exit.
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
                f"{self.program} {' '.join(arguments)} did not exit within {TIMEOUT_S:g} s"
            ) from None
        except OSError as error:
            raise ControlError(f"{self.program} cannot be run: {error.strerror}") from error

    def version(self) -> tuple[int, ...]:
        """Return httpd's version, for example (2, 4, 57); () if it is unknown."""
        match = re.search(r"Apache/(\d+)\.(\d+)\.(\d+)", self.run("-v").stdout)
        return tuple(map(int, match.groups())) if match else ()

    def syntax_error(self) -> str | None:
        """Return httpd's message about an invalid configuration, or None."""
        done = self.run("-t")
        if done.returncode == 0:
            return None
        noise = re.compile(r"Action '.*' failed\.|The Apache error log may have|AH00558|^$")
        lines = (done.stderr + done.stdout).splitlines()
        return " ".join(line.strip() for line in lines if not noise.search(line.strip()))

    def read(self) -> Configuration:
        """Return the configuration, which must be valid (``syntax_error``).

        Raises:
            ControlError: httpd fails, or a file is not readable.
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
                    # httpd processes -C before the first file.
                    module = directory / "mod_info.so"
                    arguments += ["-C", f'LoadModule info_module "{module}"']
                    break
            else:
                return None
        done = self.run(*arguments)
        return parse_config_dump(done.stdout) if done.returncode == 0 else None


def _absolute(path: str, server_root: str) -> str:
    return os.path.join(server_root, path)
