"""Broken input of every kind, from fixed seeds, and what must come of it.

cd tests && python -m fuzz                     all cases, a table at the end; exit code 1 when one is not as it must be
cd tests && python -m fuzz --sample 60         some of them
cd tests && python -m fuzz --only prompts      one area; `--only prompts/17` one case, with its files and its output
"""
