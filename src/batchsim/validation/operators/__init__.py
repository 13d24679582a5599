"""Published measurements, predicted from NVIDIA's operator times, without any calibration."""
