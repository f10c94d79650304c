"""The part of the build that setup.cfg cannot say: two optional extensions.

Without a compiler, or Python's headers, the build goes on without them:
``apachews_handler/protocol/mask.py`` does the same in Python, and a custodian keeps its clients
with TLS (``apachews_handler/native/tls_relay.py``).  A Python without a GIL has no stable ABI
(before 3.15), and gets none either.
"""

import sysconfig

from setuptools import Extension, setup

if sysconfig.get_config_var("Py_GIL_DISABLED"):
    setup()
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
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )
