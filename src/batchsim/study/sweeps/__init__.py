"""What a sweep needs besides its plan: axes, its folder, an estimate of its time, clusters to run on."""
