"""Lets test files import the modules beside them, such as ``nasty_models``, however pytest is started."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
