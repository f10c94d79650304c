"""The one part of the build that setup.cfg cannot say: an optional extension.

Without a compiler, or Python's headers, the build goes on without it, and
``apachews_handler/protocol/mask.py`` does the same in Python.  A Python without a GIL has no
stable ABI (before 3.15), and gets none either.
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
            )
        ],
        # One wheel for all versions of Python: the extension keeps to the stable ABI.
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )
