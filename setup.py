"""The one part of the build that setup.cfg cannot say: an optional extension.

Without a compiler, or Python's headers, the build goes on without it, and
``apachews_handler/mask.py`` does the same in Python.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "apachews_handler._mask",
            ["apachews_handler/_mask.c"],
            # Not all compilers work on several words at once otherwise: twice as fast.
            extra_compile_args=["-O3"],
            optional=True,
            py_limited_api=True,
        )
    ]
)
