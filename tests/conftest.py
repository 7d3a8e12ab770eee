"""Lets test files import the modules beside them, however pytest is started, and gives generated tests all the time."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
settings.register_profile("project", deadline=None)  # a busy machine is no defect
settings.load_profile("project")
