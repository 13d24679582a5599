"""What a sweep needs besides its plan and its folder: axes, an estimate of its time, clusters to run on."""
