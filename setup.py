"""With BATCHSIM_COMPILE=1, mypyc compiles the engines as the package is built; all else stands in setup.cfg.

They are the same modules, to the same results; `make compiled` builds them.
"""

import os

from setuptools import setup

#: Where runs spend their time. A class that derives from a compiled one has to be compiled with it.
ENGINES = (
    "sim/arrivals/source.py",
    "sim/cluster/outlook.py",
    "sim/decoding.py",
    "sim/engine.py",
    "sim/gpu.py",
    "sim/holdings.py",
    "sim/recording/iteration_recorder.py",
    "sim/recording/recorder.py",
    "sim/replica.py",
    "sim/running.py",
    "sim/scheduler.py",
    "sim/spans.py",
    "sim/speculation/decoding.py",
    "sim/step.py",
    "sim/step_view.py",
    "sim/waiting.py",
)

if os.environ.get("BATCHSIM_COMPILE") == "1":
    from mypyc.build import mypycify

    modules = [f"src/batchsim/{name}" for name in ENGINES]
    setup(ext_modules=mypycify(["--config-file=setup.cfg", *modules], debug_level="0"))
else:
    setup()
