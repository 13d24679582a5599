"""What is chosen by name, apart from what it takes to do it: the command line offers it in no time."""

from typing import Literal

#: What a calibration is fitted with; the last two take the best.
Family = Literal["affine", "phase", "table", "linear", "iteration_table", "auto", "auto-iteration"]

#: What the axes of a table besides the batch size count.
TableLength = Literal["output", "prompt+output", "prompt,output"]

#: Which time of raw trials counts: by the wall, by device events, or of the processor alone.
Clock = Literal["wall_s", "cuda_s", "cpu_s"]

#: Forms of profiles and of models of others that can be imported.
ProfileKind = Literal["operators", "distserve", "splitwise", "aiconfigurator"]

#: What a replay of a measured engine takes times from: sums of operators, or a linear model fitted to them.
ReplayFamily = Literal["operator", "linear"]
