"""These tests need Qualcomm's SDK, which there is for x86-64 alone."""

import platform

collect_ignore = [] if platform.machine() == "x86_64" else ["test_compiled.py", "test_damage.py", "test_probe.py"]
