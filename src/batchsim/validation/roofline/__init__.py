"""Published measurements, predicted by the roofline alone, without any calibration."""
