"""Sources of the kernels, as data: AscendC, what cuts them up on the host, and the simulator that runs them here."""
