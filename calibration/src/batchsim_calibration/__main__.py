from batchsim_calibration.cli import main

main(prog_name="batchsim-calibrate")
