"""The part of the build that setup.cfg cannot say: two optional extensions.

Without a compiler, or Python's headers, the build goes on without them:
``apachews_handler/protocol/mask.py`` does the same in Python, and a custodian keeps its clients
with TLS (``apachews_handler/native/tls_relay.py``).  A Python without a GIL has no stable ABI
(before 3.15), and gets none either.

A wheel is built in a temporary directory: a build as root leaves no files in the checkout that
stop the next build by another user, and modules of an older checkout do not reach the wheel.
"""

import sys
import sysconfig
import tempfile

from setuptools import Extension, setup

# An sdist contains its egg-info, which must be below the checkout.
if "sdist" not in sys.argv:
    scratch = tempfile.TemporaryDirectory(prefix="apachews-build-")
    build_options = {
        "build": {"build_base": scratch.name},
        "egg_info": {"egg_base": scratch.name},
    }
else:
    build_options = {}

if sysconfig.get_config_var("Py_GIL_DISABLED"):
    setup(options=build_options)
else:
    setup(
        ext_modules=[
            Extension(
                "apachews_handler.protocol._mask",
                ["apachews_handler/protocol/_mask.c"],
                # Not all compilers work on several words at once otherwise: twice as fast.
                extra_compile_args=["-O3"],
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
                optional=True,
                py_limited_api=True,
            ),
        ],
        # One wheel for all versions of Python: the extensions keep to the stable ABI.
        options={**build_options, "bdist_wheel": {"py_limited_api": "cp310"}},
    )
