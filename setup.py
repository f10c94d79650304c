"""The part of the build that setup.cfg cannot express: extensions and the long description.

Contract: the two extensions are optional.  Without a compiler or Python's headers, the build
goes on without them: ``apachews_handler/protocol/mask.py`` does the same in Python, and a
custodian keeps its clients with TLS (``apachews_handler/native/tls_relay.py``).  A Python
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

ROOT = Path(__file__).resolve().parent
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
options = {}
if has_stable_abi:
    # One wheel for all versions of Python: the extensions keep to the stable ABI.
    options["bdist_wheel"] = {"py_limited_api": "cp310"}
# An sdist contains its egg-info, which must be below the checkout.
if "sdist" not in sys.argv:
    scratch = tempfile.TemporaryDirectory(prefix="apachews-build-")
    options["build"] = {"build_base": scratch.name}
    options["egg_info"] = {"egg_base": scratch.name}

setup(
    long_description=index_description((ROOT / "README.md").read_text(encoding="utf-8")),
    ext_modules=EXTENSIONS if has_stable_abi else [],
    options=options,
)
