"""The own policies of `docs/examples`, imported as a user does: from a folder on the path."""

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "examples"
if str(FOLDER) not in sys.path:
    sys.path.append(str(FOLDER))

fastserve, srpt, my_policy = (importlib.import_module(name) for name in ("fastserve", "srpt", "my_policy"))
