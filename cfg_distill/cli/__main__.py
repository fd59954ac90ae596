"""``python -m cfg_distill.cli`` is ``cfg-distill``."""

import sys

from cfg_distill.cli import main

sys.exit(main())
