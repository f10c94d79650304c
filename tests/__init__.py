"""The tests, of the checkout's packages.

``APACHEWS_INSTALLED=1`` tests the packages that are installed in the environment instead: tox sets
it if these are compiled.  Apache uses the installed ones in any case.
"""

import importlib
import os
import sys
import sysconfig

if os.environ.get("APACHEWS_INSTALLED") == "1":
    sys.path.insert(0, sysconfig.get_path("platlib"))
    # Imported at once: pytest puts the checkout in front.
    for name in ("apachews", "apachews_handler", "apachews_tools"):
        importlib.import_module(name)
    del sys.path[0]
