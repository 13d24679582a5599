"""Print the lower bounds of ``setup.cfg`` as requirements, for an environment of the oldest packages."""

from configparser import ConfigParser
from pathlib import Path

config = ConfigParser()
config.read(Path(__file__).parent.parent / "setup.cfg")
print(config["options"]["install_requires"].strip().replace(">=", "=="))
