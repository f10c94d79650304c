"""The part of the build that setup.cfg cannot express: extensions and the long description.

Contract: a wheel has the modules of ``COMPILED`` twice: as Python, and compiled by mypyc from the
same source, which Python prefers.  All of them are compiled, or none: ``build_backend`` says when.
The compiled ones are for one minor version of Python; a wheel without them is for all versions.
``APACHEWS_COMPILE=1 python setup.py build_ext --inplace`` compiles in the checkout.  (Python then
ignores changes of these modules until they are compiled again.)

The three extensions in C are optional.  Without a compiler or Python's headers, the build
goes on without them: ``apachews_handler/protocol/mask.py`` and ``apachews_handler/bridge`` do the
same in Python, and a custodian keeps its clients with TLS
(``apachews_handler/native/tls_relay.py``).  A Python
without a GIL has no stable ABI before 3.15; its wheel has no extension either.

The long description is README.md without relative links, which lead nowhere on the page of a
package index.

A wheel is built in a temporary directory: a build as root leaves no files in the checkout that
stop the next build by another user, and modules of an older checkout do not reach the wheel.
"""

import os
import re
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # setuptools runs this file without its directory in the path
import build_backend  # noqa: E402

# What a message passes, in the bridge and in the library.  Not: the library's public classes,
# which programs subclass and refer to weakly; Enums, which mypyc leaves as they are; what runs
# once for each connection; and ``protocol/deflate``, whose base class is wsproto's: the build
# may not have wsproto.  Nor ``bridge/deadlines``, whose items are a Protocol.
COMPILED = [
    *(
        f"apachews/{name}.py"
        for name in (
            "_server/calls",
            "_server/connection",
            "_server/connections",
            "_server/lane_user",
            "_server/loop",
            "_server/mailbox",
            "_server/poller",
            "wire/channel",
            "wire/frames",
            "wire/messages",
            "wire/reader",
        )
    ),
    *(
        f"apachews_handler/bridge/{name}.py"
        for name in (
            "connection",
            "fast_path",
            "loop",
            "poller",
            "relay",
            "send_queue",
            "timers",
        )
    ),
    *(
        f"apachews_handler/protocol/{name}.py"
        for name in (
            "client_reader",
            "frame_walker",
            "header_checks",
            "opaque",
            "producer_reader",
            "progress",
            "raw",
            "redelivery",
            "session",
            "session_data",
            "text",
            "timeouts",
            "tunnel",
        )
    ),
]
# The extension that has the code of all of them.  In a package, so that it moves with the package.
GROUP = "apachews._compiled"
# Debug information names the directory of the build, which is another one for each build.
# A relative name makes two builds equal.
SAME_EVERYWHERE = f"-fdebug-prefix-map={os.getcwd()}=."
# [text](target) and ![text](target), if the target is a file of this checkout.
RELATIVE_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^]]*)\]\((?!https?:|mailto:|#)[^)\s]+\)")


def index_description(readme: str) -> str:
    """Return README.md's text for the page of a package index.

    A relative link becomes its text, and a relative image is removed.  Comments are for the
    tests of the documentation.
    """
    text = re.sub(r"<!--.*?-->\n*", "", readme, flags=re.DOTALL)
    text = RELATIVE_LINK.sub(lambda link: "" if link["image"] else link["text"], text)
    return re.sub(r"\n{3,}", "\n\n", text)


def compiled_modules(directory: str) -> list[Extension]:
    """Translate ``COMPILED`` to C; return the extensions, none if this build has none.

    Args:
        directory: for the C files and mypy's cache.
    """
    reason = build_backend.why_not()
    try:
        if reason:
            raise RuntimeError(reason)
        from mypyc.build import mypycify

        options = ["--config-file=", f"--cache-dir={directory}/mypy", "--follow-imports=silent"]
        options += ["--ignore-missing-imports", "--explicit-package-bases"]
        # No debug information: it has the name of the build's directory.
        # (Older versions, as Debian 12 and 13 have, lack group_name: TypeError.  Their compiled
        # code leaks memory when it joins bytes with +, so this build goes on without.)
        extensions = mypycify(
            [*options, *COMPILED], target_dir=directory, debug_level="0", group_name=GROUP
        )
    except (Exception, SystemExit) as error:  # mypy exits after errors in a module
        go_on_without(error)
        return []
    for extension in extensions:
        # A newer compiler may have a warning that mypyc does not switch off.
        flags = extension.extra_compile_args
        extension.extra_compile_args = [flag for flag in flags if flag != "-Werror"]
    return extensions


def go_on_without(error: BaseException) -> None:
    """Say that modules are not compiled; or fail, if they must be."""
    if build_backend.is_required():
        raise SystemExit(f"apachews: the modules cannot be compiled: {error}")
    print(f"apachews: modules are interpreted, not compiled: {error}", file=sys.stderr)


class BuildExtensions(build_ext):
    """Builds the compiled modules, all or none, and the optional extensions."""

    def build_extensions(self) -> None:
        """Build them; a wheel with compiled modules is for this version of Python only."""
        wanted = self.extensions
        if MODULES:
            try:
                self.extensions = MODULES
                super().build_extensions()
            except Exception as error:  # of the compiler
                go_on_without(error)
                for name in self.get_outputs():
                    Path(name).unlink(missing_ok=True)
                wanted = [one for one in wanted if one not in MODULES]
            else:
                self.get_finalized_command("bdist_wheel").py_limited_api = False
        self.extensions = [one for one in wanted if one not in MODULES]
        super().build_extensions()
        self.extensions = wanted


EXTENSIONS = [
    Extension(
        "apachews_handler.protocol._mask",
        ["apachews_handler/protocol/_mask.c"],
        # Not all compilers work on several words at once otherwise: twice as fast.
        extra_compile_args=["-O3", SAME_EVERYWHERE],
        optional=True,
        py_limited_api=True,
    ),
    Extension(
        "apachews_handler.bridge._pump",
        ["apachews_handler/bridge/_pump.c"],
        extra_compile_args=["-O3", SAME_EVERYWHERE],
        optional=True,
        py_limited_api=True,
    ),
    Extension(
        "apachews_handler.native._tls_relay",
        [
            "apachews_handler/native/_tls_relay.c",
            "apachews_handler/native/_relay_loop.c",
            "apachews_handler/native/_cold_memory.c",
        ],
        depends=["apachews_handler/native/_tls_relay.h"],
        extra_compile_args=[SAME_EVERYWHERE],
        optional=True,
        py_limited_api=True,
    ),
]
has_stable_abi = not sysconfig.get_config_var("Py_GIL_DISABLED")
if not has_stable_abi:
    EXTENSIONS = []
options = {}
if has_stable_abi:
    # One wheel for all versions of Python: the extensions keep to the stable ABI.
    options["bdist_wheel"] = {"py_limited_api": "cp310"}
scratch = tempfile.TemporaryDirectory(prefix="apachews-build-")
# An sdist contains its egg-info, which must be below the checkout.
if "sdist" not in sys.argv:
    options["build"] = {"build_base": scratch.name}
    options["egg_info"] = {"egg_base": scratch.name}
# An installation in place would hide changes of the sources.
compiles = "bdist_wheel" in sys.argv or ("build_ext" in sys.argv and build_backend.is_required())
MODULES = compiled_modules(scratch.name) if compiles else []

setup(
    long_description=index_description((ROOT / "README.md").read_text(encoding="utf-8")),
    ext_modules=[*MODULES, *EXTENSIONS],
    cmdclass={"build_ext": BuildExtensions},
    options=options,
)
