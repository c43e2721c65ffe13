"""`python -m mindmoe` is the command `mindmoe`; workers are started this way."""

import sys

from mindmoe.cli.main import main

sys.exit(main())
