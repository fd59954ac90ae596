"""The scripts of `make gpu` run by themselves, and import one another from this folder: they are not collected."""

collect_ignore = ["correctness.py", "gpu.py", "phases.py", "static.py", "table.py"]
