"""``python -m batchsim``."""

from batchsim.cli import main

main()
