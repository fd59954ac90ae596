"""Students in the engines that people have: ``make serve-check``, or in a clone without make

    PYTHONPATH=tests python -m serving --cache build/serve [--engines llama,peft] [--students DIR]

The first call installs an environment of its own into the cache folder, builds llama.cpp's server there, and trains three
small students. Later calls need no network. Every check is one line, ``ok`` or ``FAILED``; the exit code is 1 when one failed.
docs/serving.md has the numbers.
"""
